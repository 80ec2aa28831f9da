"""``studies.family``: the recipe of the reference family, at a size for tests."""

from __future__ import annotations

import json
import random

import pytest

for library in ("torch", "transformers", "safetensors", "onnx", "onnxruntime"):
    pytest.importorskip(library)
pytestmark = pytest.mark.workstation

from draftwire.errors import ConfigError  # noqa: E402
from draftwire.packages import load_draft, load_target  # noqa: E402
from studies.family.__main__ import main  # noqa: E402
from studies.family.corpus import DOMAINS  # noqa: E402
from studies.family.package import make_family  # noqa: E402
from studies.family.recipe import SHAPE, Evolution, FamilySettings  # noqa: E402

TINY = FamilySettings(
    config=dict(zip(SHAPE, (300, 32, 48, 3, 2, 1, 2048))),
    anchor_layers=1,
    trained_layers=1,
    base_steps=2,
    draft_steps=2,
    evolutions=(Evolution("v2", ("home",), 2),),
    rank=2,
    workers=1,
)


@pytest.fixture
def corpus(tmp_path):
    """Files of the names that the recipe asks for, of nonsense."""
    rng = random.Random(3)
    words = "the robot takes red cup to table and then goes door".split()
    folder = tmp_path / "corpus"
    folder.mkdir()
    for domain in DOMAINS:
        length = 400 if domain.name == "stories" else 200
        texts = [" ".join(rng.choices(words, k=length)) for _ in range(160)]
        (folder / domain.file).write_text(domain.separator.join(["", *texts]))
    return folder


@pytest.mark.slow
def test_a_tiny_family(corpus, tmp_path):
    said = []
    made = make_family(corpus, tmp_path / "work", tmp_path / "out", TINY, said.append)
    assert [p.name for p in made] == ["reference.draft", "v1.target", "v2.target"]
    draft, v1, v2 = load_draft(made[0]), load_target(made[1]), load_target(made[2])
    assert draft.family == v1.family == v2.family
    assert (draft.bos_id, v1.bos_id, v1.context) == (0, 0, 1280)
    rows = json.loads((tmp_path / "work" / "evaluation.json").read_text())
    assert set(rows["v2"]) == {"home"} and set(rows["v1"]) == {d.name for d in DOMAINS}
    assert "rank 2" in (tmp_path / "out" / "cards" / "v2.md").read_text()
    # Every stage is there: nothing is trained again, and the same packages come out.
    before = len(said)
    again = make_family(corpus, tmp_path / "work", tmp_path / "again", TINY, said.append)
    assert not [line for line in said[before:] if line.startswith("step 2/2 loss")]
    assert [load_draft(again[0]).id, load_target(again[1]).id] == [draft.id, v1.id]


def test_what_the_recipe_refuses(corpus, tmp_path, capsys):
    (tmp_path / "out" / "v1.target").mkdir(parents=True)
    with pytest.raises(ConfigError, match="already"):
        make_family(corpus, tmp_path / "w", tmp_path / "out", TINY, print)
    words = ["--corpus", tmp_path, "--work", tmp_path / "w", "--out", tmp_path / "o"]
    words = [str(word) for word in words]
    assert main(words) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert main([*words, "--steps", "0"]) == 2
    assert "is not a training" in capsys.readouterr().err
