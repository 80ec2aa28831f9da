"""Early exits on the transformers backend: made by the command, told by hooks."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("onnx")
pytestmark = pytest.mark.workstation

from draftwire.errors import ConfigError, ModelError, PackageError  # noqa: E402
from draftwire.export.exits.make import Text, export_exits  # noqa: E402
from draftwire.export.settings import ExitSettings  # noqa: E402
from draftwire.verifier.backends.base import SlotInput  # noqa: E402
from draftwire.verifier.backends.hf_target import HFTarget  # noqa: E402

WORDS = 61
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.3,
}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(num_key_value_heads=2, **SHAPE),
    "neox": lambda: transformers.GPTNeoXConfig(**SHAPE),
}
IDS = np.random.default_rng(0).integers(0, WORDS, 2400)
TEXTS = [Text("noise", IDS[:1600], IDS)]


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / request.param
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[request.param]())
    model.save_pretrained(folder)
    words = {f"w{i}": i for i in range(WORDS)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w2"))
    made.save(str(folder / "tokenizer.json"))
    export_exits(
        folder,
        texts=TEXTS,
        settings=ExitSettings(rank=4, agreement=0.05, tokens=4096),
        say=lambda line: None,
    )
    return folder


@pytest.fixture(scope="module")
def target(checkpoint):
    return HFTarget(checkpoint, slots=3, threads=1)


def test_exits_speak_in_the_middle_and_change_nothing(target, slots):
    assert [e.layer for e in target.exits] == [1, 2]
    target.forward([SlotInput(slots[1], 0, IDS[:30], 0)])
    batch = [
        SlotInput(slots[0], 0, IDS[:5], 2),
        SlotInput(slots[1], 30, IDS[30:34], 4),
        SlotInput(slots[2], 0, IDS[:3], 0),
    ]
    heard = []
    parts = target.forward(batch, on_exit=lambda k, rows: heard.append((k, rows)))
    for a, b in zip(parts, target.forward(batch), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert [k for k, _ in heard] == [0, 1]
    for _, rows in heard:
        assert [r.shape for r in rows] == [(2, WORDS), (4, WORDS), (0, WORDS)]
    # block invariant too: the same position alone
    alone = []
    last = SlotInput(slots[1], 33, IDS[33:34], 1)
    target.forward([last], on_exit=lambda k, rows: alone.append(rows[0]))
    for (_, rows), one in zip(heard, alone, strict=True):
        assert one[0] == pytest.approx(rows[1][3], abs=1e-4)


def test_a_forward_broken_off_is_forgotten(target, slots):
    slot = slots[0]
    (wanted,) = target.forward([SlotInput(slot, 0, IDS[:20], 20)])

    def stop(k, rows):
        if k == 1:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        target.forward([SlotInput(slot, 10, IDS[40:50], 1)], on_exit=stop)
    with pytest.raises(ModelError, match="the slot holds 10"):
        target.forward([SlotInput(slot, 20, IDS[20:21], 1)])
    (rows,) = target.forward([SlotInput(slot, 10, IDS[10:20], 10)])
    assert rows == pytest.approx(wanted[10:], abs=1e-4)


def test_files_of_exits_are_checked(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="has exits already"):
        export_exits(checkpoint, texts=TEXTS)
    with pytest.raises(ConfigError, match="no --out"):
        export_exits(checkpoint, out=tmp_path / "x.target")
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    file = copy / "exits.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-8])
    with pytest.raises(PackageError, match="cut short|holds"):
        HFTarget(copy, slots=1)
    file.write_bytes(content.replace(b"draftwire.exits/1", b"draftwire.exits/7"))
    with pytest.raises(PackageError, match="has format"):
        HFTarget(copy, slots=1)
    file.write_bytes(content.replace(b"exit.1.up.weight", b"exit.1.to.weight"))
    with pytest.raises(PackageError, match="does not belong"):
        HFTarget(copy, slots=1)
    file.unlink()
    assert HFTarget(copy, slots=1).exits == ()
