"""Every family: the transformers backend, and one command from checkpoint to draft.

The graphs themselves are held to transformers in tests/export/test_graphs.py.
``make models`` runs both.
"""

import random

import numpy as np
import pytest
from pieces import ask_in_pieces
from tiny_models import SHAPES

from draftwire.export.onnx import export_onnx
from draftwire.packages import load_draft
from draftwire.runtime.engines.draft_model import DraftModel
from draftwire.verifier.backends.base import SlotInput
from draftwire.verifier.backends.hf_target import HFTarget

IDS = np.random.default_rng(1).integers(0, 290, 90)  # the tokenizer has as many


@pytest.mark.parametrize("shape", SHAPES)
def test_the_transformers_backend_serves_it(shape, models, torch_logits):
    folder = models(shape)
    expected = torch_logits(folder, IDS)
    target = HFTarget(folder, slots=2, threads=1)
    # phi3_long is trained for 100 positions and scaled beyond.
    assert target.context == (100 if shape == "phi3_long" else 160)
    expected = expected[:, : target.vocab_size]
    slot = target.allocate()
    found = target.forward([SlotInput(slot, 0, IDS[:50], 50)])
    target.forward([SlotInput(slot, 50, IDS[:7], 0)])  # rejected
    found += target.forward([SlotInput(slot, 50, IDS[50:89], 39)])
    found += target.forward([SlotInput(slot, 89, IDS[89:], 1)])
    scale = np.abs(expected).max()
    assert np.abs(np.concatenate(found) - expected).max() < 1e-4 * scale


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_transformers_backend_can_be_exact(shape, dtype, models):
    target = HFTarget(models(shape), slots=5, threads=1, dtype=dtype, numerics="exact")
    slot = target.allocate()
    (whole,) = target.forward([SlotInput(slot, 0, IDS, 90)])
    target.release(slot)
    for seed in range(2):
        assert (ask_in_pieces(target, IDS, random.Random(seed)) == whole).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_one_command_makes_a_draft_of_it(shape, models, torch_logits, tmp_path):
    folder = models(shape)
    # Random weights are the worst case for rounding.
    how = {"precision": ["fp32", "int8"], "context": 96, "min_agreement": 0.6}
    out = export_onnx(folder, tmp_path / "tiny.draft", **how)
    package = load_draft(out)
    assert package.context == 96
    assert package.model_file("fp32").details["parity"]["agreement"] == 1.0
    model = DraftModel.load(package, precision="fp32")
    model.forward(IDS[:60].tolist())
    model.rewind(40)
    logits = model.forward(IDS[40:80].tolist())
    assert logits.argmax() == torch_logits(folder, IDS)[79].argmax()
