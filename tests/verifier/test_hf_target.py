"""The transformers backend on tiny random models, against plain recomputation."""

from __future__ import annotations

import gc
import json
import shutil
import weakref

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from pieces import assert_ragged  # noqa: E402  (after importorskip)
from safetensors.torch import save_file  # noqa: E402
from verifier_lab import assert_leaves  # noqa: E402

from draftwire.errors import IncompatibleError, ModelError, PackageError  # noqa: E402
from draftwire.verifier.backends.base import SlotInput  # noqa: E402
from draftwire.verifier.backends.hf_target import HFBases, HFTarget  # noqa: E402
from draftwire.verifier.backends.loading import Loader  # noqa: E402

pytestmark = pytest.mark.workstation

WORDS = 290  # of the tokenizer; the other rows of the embedding are padding


@pytest.fixture(scope="module")
def llama(models):
    return models("llama")


@pytest.fixture
def saved(tmp_path, tokenizer_file):
    """Return a function: the folder of a random model of some configuration."""

    def save(config):
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        shutil.copy(tokenizer_file, tmp_path)
        return tmp_path

    return save


def recompute(target, ids):
    with torch.inference_mode():
        logits = target._model(input_ids=torch.tensor([list(ids)]), use_cache=False)
    return logits.logits[0, :, : target.vocab_size].float().numpy()


def test_ragged_batches_and_rewinds_equal_recomputation(llama):
    target = HFTarget(llama, slots=5, threads=1)
    assert (target.vocab_size, target.context) == (WORDS, 160)
    assert (target.bos_id, target.eos_ids) == (None, (0,))
    slots = [target.allocate() for _ in range(5)]
    assert_ragged(target, slots, lambda ids: recompute(target, ids), 1, 2e-4)


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


def test_a_slot_begins_with_what_another_one_holds(llama):
    target = HFTarget(llama, slots=3, threads=1)
    old, one = target.allocate(), target.allocate()
    target.forward(
        [SlotInput(old, 0, np.arange(40), 0), SlotInput(one, 0, np.arange(20), 0)]
    )
    with torch.inference_mode():
        target._cache.layers[0].values[old, :, 30] = float("nan")
    target.release(old)
    two = target.allocate()
    assert not target.share(one, two, 21) and target.share(one, two, 18)
    ids = np.array([*range(18), 7, 8, 9])
    # Either goes on by itself, in one forward.
    batch = [SlotInput(two, 18, ids[18:], 3), SlotInput(one, 20, np.arange(20, 24), 4)]
    found, kept = target.forward(batch)
    assert found == pytest.approx(recompute(target, ids)[18:], abs=2e-4)
    assert kept == pytest.approx(recompute(target, range(24))[20:], abs=2e-4)


@pytest.mark.parametrize("shape", ["llama", "gemma2", "ministral"])
def test_rows_of_leaves_are_those_of_chains(shape, models):
    target = HFTarget(models(shape), slots=2, threads=1)
    assert target.leaves
    assert_leaves(target, 60, 3e-4)


def test_a_hybrid_whose_layers_are_all_attention_is_served(saved):
    config = transformers.GraniteMoeHybridConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, shared_intermediate_size=32,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=0, layer_types=["full_attention"] * 2, mamba_n_heads=4,
        initializer_range=0.3, max_position_embeddings=96,
    )  # fmt: skip
    target = HFTarget(saved(config), slots=2, threads=1)
    (rows,) = target.forward([SlotInput(target.allocate(), 0, np.arange(20), 20)])
    assert rows == pytest.approx(recompute(target, range(20)), abs=3e-4)
    assert target.slots == 2


def test_a_recurrent_model_is_refused(saved):
    config = transformers.MambaConfig(
        vocab_size=320, hidden_size=16, num_hidden_layers=1, state_size=4
    )
    with pytest.raises(IncompatibleError, match="cannot be rewound"):
        HFTarget(saved(config), slots=1, threads=1)


@pytest.mark.parametrize(
    ("break_it", "complaint"),
    [
        (lambda d: (d / "config.json").unlink(), "no config.json"),
        (lambda d: (d / "config.json").write_text('{"model_type": "x"}'), "cannot load"),
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
def test_a_damaged_or_pickled_checkpoint_is_refused(model_copy, break_it, complaint):
    folder = model_copy()
    break_it(folder)
    with pytest.raises((ModelError, PackageError), match=complaint):
        HFTarget(folder, slots=1, threads=1)


def write_adapter(folder, base, seed, **config):
    """Write a LoRA adapter; return its halves by the weights' names."""
    torch.manual_seed(seed)
    shapes = {
        "model.layers.1.self_attn.q_proj": (64, 64),
        "model.layers.0.mlp.down_proj": (96, 64),
    }
    halves = {
        name: (torch.randn(2, wide) / 4, torch.randn(tall, 2) / 4)
        for name, (wide, tall) in shapes.items()
    }
    tensors = {
        f"base_model.model.{name}.lora_{letter}.weight": half
        for name, pair in halves.items()
        for letter, half in zip("AB", pair)
    }
    folder.mkdir(exist_ok=True)
    save_file(tensors, str(folder / "adapter_model.safetensors"))
    named = {"peft_type": "LORA", "base_model_name_or_path": str(base)}
    text = json.dumps({**named, "r": 2, "lora_alpha": 4, **config})
    (folder / "adapter_config.json").write_text(text)
    return halves


def test_a_lora_adapter_is_merged(llama, tmp_path):
    halves = write_adapter(tmp_path, llama, 3)
    base = HFTarget(llama, slots=1, threads=1)
    evolved = HFTarget(tmp_path, slots=1, threads=1)
    for name, (down, up) in halves.items():
        wanted = base._model.get_parameter(f"{name}.weight") + 2.0 * up @ down
        merged = evolved._model.get_parameter(f"{name}.weight")
        assert torch.allclose(merged, wanted, atol=1e-5)
    assert evolved.family.tokenizer == base.family.tokenizer

    write_adapter(tmp_path, llama, 3, use_dora=True)
    for bases in (None, HFBases()):
        with pytest.raises(ModelError, match="use_dora"):
            HFTarget(tmp_path, slots=1, threads=1, bases=bases)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_versions_beside_one_base_are_the_merged_ones_in_its_memory(llama, tmp_path, dtype):
    loader = Loader(backend="hf", slots=2, threads=1, dtype=dtype)
    base = loader(llama)
    texts = [np.arange(3, 12, dtype=np.int64), np.arange(20, 25, dtype=np.int64)]
    own = {t.data_ptr() for t in base._model.parameters()}
    seen = [logits(base, texts)]
    versions = []
    for number in range(3):
        folder = tmp_path / f"v{number}"
        write_adapter(folder, llama, number)
        version = loader(folder)
        merged = HFTarget(folder, slots=2, threads=1, dtype=dtype)
        assert {t.data_ptr() for t in version._model.parameters()} == own
        assert not own & {t.data_ptr() for t in merged._model.parameters()}
        found, wanted = logits(version, texts), logits(merged, texts)
        limit = 1e-4 if dtype == "float32" else 0.15
        assert np.abs(found - wanted).max() < limit
        assert all(np.abs(found - other).max() > 10 * limit / 3 for other in seen)
        seen.append(found)
        versions.append(version)
    # The base's own texts are what they were.
    assert np.array_equal(logits(base, texts), seen[0])
    # With the last target that builds on it the base goes, too.
    gone = weakref.ref(base._base)
    del base, version, versions, merged
    gc.collect()
    assert gone() is None


def logits(target, texts):
    slots = [target.allocate() for _ in texts]
    batch = [SlotInput(slot, 0, ids, 3) for slot, ids in zip(slots, texts)]
    rows = target.forward(batch)
    for slot in slots:
        target.release(slot)
    return np.concatenate(rows)


def test_a_checkpoint_that_was_written_anew_is_read_anew(model_copy):
    folder, bases = model_copy(), HFBases()
    first = HFTarget(folder, slots=1, threads=1, bases=bases)
    assert HFTarget(folder, slots=1, threads=1, bases=bases)._base is first._base
    first._model.save_pretrained(folder)
    assert HFTarget(folder, slots=1, threads=1, bases=bases)._base is not first._base


def test_an_adapter_of_what_is_no_linear_layer_wants_to_be_merged(llama, tmp_path):
    name = "base_model.model.model.embed_tokens"
    tall = HFTarget(llama, slots=1, threads=1)._model.get_input_embeddings().weight.shape[0]
    halves = {f"{name}.lora_A.weight": torch.ones(2, 64)}
    write_adapter(tmp_path, llama, 1)
    halves[f"{name}.lora_B.weight"] = torch.ones(tall, 2)
    save_file(halves, str(tmp_path / "adapter_model.safetensors"))
    with pytest.raises(ModelError, match="no linear layer") as caught:
        HFTarget(tmp_path, slots=1, threads=1, bases=HFBases())
    assert "--adapters merged" in caught.value.hint
    HFTarget(tmp_path, slots=1, threads=1)
