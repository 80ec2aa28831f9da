"""SGLang's shapes, as read in its sources: what it is asked, and what it answers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from http_engine import HttpEngine

pytest.importorskip("tokenizers")

from draftwire.errors import ModelError  # noqa: E402
from draftwire.sampling import SamplingParams  # noqa: E402
from draftwire.verifier.backends.attached import AttachedTarget, Engine  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
# Names of fields as of SGLang 0.5.23, and one answer of each kind, put together by hand.
SEEN = json.loads((ROOT / "tests/fixtures/sglang_0_5_23.json").read_text("utf-8"))
DECODER = ROOT / ".venvs" / "sglang" / "sglang" / "api" / "v1" / "api_types.py"
NOISE = "murmur3/sglang"
ASKED = [
    SamplingParams(),
    SamplingParams("match", 1.0, 40, 0.9),
    SamplingParams("coupled", 0.8, seed=2**63 + 5, noise=NOISE),
    SamplingParams("coupled", 0.8, 40, seed=2**64 - 1, noise=NOISE),
    SamplingParams("coupled", 0.8, 0, 0.9, seed=7, noise=NOISE),
]


@pytest.fixture
def asked(folder):
    """Everything that the adapter asks: at the start, and for each scheme."""
    engine = HttpEngine("sglang", seeded=True)
    target = AttachedTarget(folder, Engine(engine.url, patience_s=5.0))
    assert target.noises == (NOISE,)
    for params in ASKED:
        target.winners([[5, 9], [5, 9, 200]], params, "ab" * 16)
    yield engine.asked, engine, target
    target.close()
    engine.close()


def test_every_field_is_one_that_sglang_has(asked):
    bodies, engine, target = asked
    assert len(bodies) > 20
    for body in bodies:
        assert body.keys() <= set(SEEN["generate"]["fields"])
        sampling = body["sampling_params"]
        assert sampling.keys() <= set(SEEN["generate"]["sampling_params"])
        # With a seed it always sorts: a text does not depend on who else is in the batch.
        if "sampling_seed" in sampling:
            assert 1 <= sampling["top_k"] <= 300
            assert -(2**63) <= sampling["sampling_seed"] < 2**63
    # A draw without a seed of ours has a fresh one: SGLang's own default is 42 for all.
    drawn = SamplingParams("match", 1.0)
    seeds = {target._how(drawn)["sampling_seed"], target._how(drawn)["sampling_seed"]}
    assert len(seeds) == 2 and 42 not in seeds


def test_recorded_answers_are_understood(asked):
    _, engine, target = asked
    engine.complete = lambda path, body: (200, [SEEN["answer"]] * len(body["input_ids"]))
    assert target.winners([[5], [5, 9]], ASKED[0], "") == [259, 259]
    engine.complete = lambda path, body: (400, SEEN["refusal"])
    with pytest.raises(ModelError, match="invalid_request_error"):
        target.winners([[5]], ASKED[0], "")
    (card,) = SEEN["models"]["data"]
    assert card["owned_by"] == engine.kind and card["max_model_len"] == target.context


@pytest.mark.slow
@pytest.mark.skipif(not DECODER.is_file(), reason="no decoder of SGLang: make test-engines")
def test_sglangs_own_decoder_takes_every_request(asked, monkeypatch):
    monkeypatch.syspath_prepend(str(DECODER.parents[3]))  # msgspec
    spec = importlib.util.spec_from_file_location("sglang_api_types", DECODER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for body in asked[0]:
        took = module.GenerateRequest.from_json_value(body)
        assert took.input_ids == body["input_ids"] and took.cache_salt == body["cache_salt"]
        for name, value in body["sampling_params"].items():
            assert getattr(took.sampling_params, name) == value, name
    wrong = {**asked[0][0], "sampling_params": {"sampling_sed": 1}}
    with pytest.raises(module.JsonContractError, match="unknown field"):
        module.GenerateRequest.from_json_value(wrong)
