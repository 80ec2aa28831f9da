"""The transformers backend on tiny random models, against plain recomputation."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from safetensors.torch import save_file  # noqa: E402  (after importorskip)

from draftwire.errors import IncompatibleError, ModelError, PackageError  # noqa: E402
from draftwire.verifier.backends.base import SlotInput  # noqa: E402
from draftwire.verifier.backends.hf_target import HFTarget  # noqa: E402

pytestmark = pytest.mark.workstation

WORDS = 61  # three rows of the embedding are padding
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.3,
}


def save(folder, config):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    words = {f"w{i}": i for i in range(WORDS)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w2"))
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save(tmp_path_factory.mktemp("hf") / "tiny", transformers.LlamaConfig(**SHAPE))


def recompute(target, ids):
    with torch.inference_mode():
        logits = target._model(input_ids=torch.tensor([list(ids)]), use_cache=False)
    return logits.logits[0, :, :WORDS].float().numpy()


def test_ragged_batches_and_rewinds_equal_recomputation(llama):
    target = HFTarget(llama, slots=5, threads=1)
    assert (target.vocab_size, target.context) == (WORDS, 96)
    assert (target.bos_id, target.eos_ids) == (None, (1,))
    rng = np.random.default_rng(1)
    texts = {target.allocate(): [] for _ in range(5)}
    for _ in range(12):
        batch = []
        for slot in rng.permutation(5)[: rng.integers(1, 6)]:
            text = texts[int(slot)]
            del text[len(text) - rng.integers(0, min(4, len(text) + 1)) :]
            n = int(rng.integers(1, 7))
            tokens = rng.integers(0, WORDS, n)
            rows = int(rng.integers(0, n + 1))
            batch.append(SlotInput(int(slot), len(text), tokens, rows))
            text += tokens.tolist()
        for item, rows in zip(batch, target.forward(batch)):
            assert rows.shape == (item.rows, WORDS)
            wanted = recompute(target, texts[item.slot])
            wanted = wanted[len(wanted) - item.rows :]
            assert rows == pytest.approx(wanted, abs=2e-4)


def test_a_reused_slot_holds_nothing_of_the_last_session(llama):
    target = HFTarget(llama, slots=1, threads=1)
    slot = target.allocate()
    target.forward([SlotInput(slot, 0, np.arange(20), 0)])
    with torch.inference_mode():
        target._cache.layers[0].values[slot, :, 10] = float("nan")
    target.release(slot)
    slot = target.allocate()
    with pytest.raises(ModelError, match="the slot holds 0"):
        target.forward([SlotInput(slot, 5, np.arange(3), 1)])
    (rows,) = target.forward([SlotInput(slot, 0, np.arange(30), 30)])
    assert rows == pytest.approx(recompute(target, range(30)), abs=2e-4)


MIXED = {"layer_types": ["sliding_attention", "full_attention"]}


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("Mistral", {}),
        ("Qwen3", {**MIXED, "use_sliding_window": True, "head_dim": 8}),
        ("Gemma2", {**MIXED, "head_dim": 8}),
        ("Gemma3Text", {**MIXED, "head_dim": 8}),
        ("Olmo3", MIXED),
    ],
)
def test_a_sliding_window_leaves_the_context(family, options, tmp_path):
    config = getattr(transformers, family + "Config")(
        **{**SHAPE, "num_hidden_layers": 2, "sliding_window": 12, **options}
    )
    target = HFTarget(save(tmp_path, config), slots=2, threads=1)
    assert target.context == SHAPE["max_position_embeddings"]
    slot, ids = target.allocate(), np.random.default_rng(3).integers(0, 60, 45)
    found = target.forward([SlotInput(slot, 0, ids[:20], 20)])
    target.forward([SlotInput(slot, 20, ids[:9], 0)])  # rejected
    found += target.forward([SlotInput(slot, 20, ids[20:44], 24)])
    found += target.forward([SlotInput(slot, 44, ids[44:], 1)])
    assert np.concatenate(found) == pytest.approx(recompute(target, ids), abs=3e-4)


def test_a_hybrid_whose_layers_are_all_attention_is_served(tmp_path):
    config = transformers.GraniteMoeHybridConfig(
        **{**SHAPE, "num_hidden_layers": 2, "num_local_experts": 0},
        layer_types=["full_attention"] * 2,
        shared_intermediate_size=32,
        mamba_n_heads=4,
    )
    target = HFTarget(save(tmp_path, config), slots=2, threads=1)
    (rows,) = target.forward([SlotInput(target.allocate(), 0, np.arange(20), 20)])
    assert rows == pytest.approx(recompute(target, range(20)), abs=3e-4)
    assert target.slots == 2


def test_a_recurrent_model_is_refused(tmp_path):
    config = transformers.MambaConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4
    )
    with pytest.raises(IncompatibleError, match="cannot be rewound"):
        HFTarget(save(tmp_path, config), slots=1, threads=1)


@pytest.mark.parametrize(
    ("break_it", "complaint"),
    [
        (lambda d: (d / "config.json").unlink(), "no config.json"),
        (
            lambda d: (d / "config.json").write_text('{"model_type": "x"}'),
            "cannot load",
        ),
        (lambda d: (d / "model.safetensors").write_bytes(b"\x00" * 64), "cannot load"),
        (
            lambda d: (d / "model.safetensors").write_bytes(
                (1 << 23).to_bytes(8, "little") + bytes(1 << 23)
            ),
            "claims a header of 8388608 bytes",
        ),
        (
            lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
            "cannot load",
        ),
    ],
)
def test_a_damaged_or_pickled_checkpoint_is_refused(tmp_path, break_it, complaint):
    folder = save(tmp_path, transformers.LlamaConfig(**SHAPE))
    break_it(folder)
    with pytest.raises((ModelError, PackageError), match=complaint):
        HFTarget(folder, slots=1, threads=1)


def test_a_lora_adapter_is_merged(llama, tmp_path):
    name = "model.layers.1.self_attn.q_proj"
    torch.manual_seed(3)
    down, up = torch.randn(2, 32), torch.randn(32, 2)
    save_file(
        {
            f"base_model.model.{name}.lora_A.weight": down,
            f"base_model.model.{name}.lora_B.weight": up,
        },
        str(tmp_path / "adapter_model.safetensors"),
    )
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(llama),
        "r": 2,
        "lora_alpha": 4,
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    base = HFTarget(llama, slots=1, threads=1)
    evolved = HFTarget(tmp_path, slots=1, threads=1)
    wanted = base._model.get_parameter(f"{name}.weight") + 2.0 * up @ down
    merged = evolved._model.get_parameter(f"{name}.weight")
    assert torch.allclose(merged, wanted, atol=1e-5)
    assert evolved.family.tokenizer == base.family.tokenizer

    config["use_dora"] = True
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="use_dora"):
        HFTarget(tmp_path, slots=1, threads=1)
