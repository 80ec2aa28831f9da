"""The tiny models' fixtures, the slots of a target, and what an engine's folder holds."""

import json

import pytest
from tiny_models import model_copy, models, tokenizer_file

__all__ = ["model_copy", "models", "slots", "tokenizer_file"]


@pytest.fixture
def slots(target):
    """All slots of a module's ``target``, taken for one test."""
    taken = [target.allocate() for _ in range(target.slots)]
    yield taken
    for slot in taken:
        target.release(slot)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The tokenizer and configuration of an engine's model of 300 words."""
    tokenizers = pytest.importorskip("tokenizers")
    place = tmp_path_factory.mktemp("engine")
    model = tokenizers.models.WordLevel({f"w{i}": i for i in range(300)}, unk_token="w2")
    tokenizers.Tokenizer(model).save(str(place / "tokenizer.json"))
    config = {"model_type": "made", "eos_token_id": 1}
    (place / "config.json").write_text(json.dumps(config))
    return place
