"""Fingerprints by PROTOCOL.md 4.1: packages, vectors, and a script that stands alone."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from places import MODELS, ROOT

pytest.importorskip("tokenizers")

from draftwire.packages import load_draft, load_target, tokenizer_fingerprint  # noqa: E402
from draftwire.tokenizer import PROBES  # noqa: E402

VECTORS = json.loads((ROOT / "tests" / "golden" / "fingerprints_v1.json").read_text())
SCRIPT = ROOT / "examples" / "fingerprint.py"


def script(*words):
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.check_output(command, env={}).decode().strip()


def digest(lines):
    return hashlib.sha256("".join(line + "\n" for line in lines).encode()).hexdigest()


def test_the_probes_are_those_of_the_document():
    text = (ROOT / "transport" / "PROTOCOL.md").read_text(encoding="utf-8")
    assert tuple(json.loads(text.split("```json\n")[1].split("```")[0])) == PROBES


@pytest.mark.parametrize("case", VECTORS["tokenizers"], ids=lambda case: case["file"])
def test_tokenizers(case):
    file = ROOT / case["file"]
    assert tokenizer_fingerprint(file) == case["fingerprint"]
    assert script("tokenizer", file) == case["fingerprint"]


@pytest.mark.parametrize("case", VECTORS["backbones"])
def test_backbones(case):
    assert digest(case["lines"]) == case["fingerprint"]
    assert script("backbone", case["layers"], ROOT / case["file"]) == case["fingerprint"]


@pytest.mark.parametrize("case", VECTORS["tensors"])
def test_rounding(case):
    with np.errstate(over="ignore"):
        values = np.frombuffer(bytes.fromhex(case["float32"]), "<f4").astype("<f2")
    halves = (values + np.float16(0)).tobytes()
    assert halves.hex() == case["binary16"]
    assert hashlib.sha256(halves).hexdigest() == case["digest"]


def test_the_packages_of_the_repository_have_them():
    """Also those that hold no weights to compute a backbone from."""
    words, _ = (case["fingerprint"] for case in VECTORS["tokenizers"])
    _, anchor, _ = (case["fingerprint"] for case in VECTORS["backbones"])
    models = MODELS
    found = [load_target(models / f"v{i}.target") for i in (1, 2, 3)]
    for package in (*found, load_draft(models / "reference.draft")):
        assert (package.family.tokenizer, package.family.backbone) == (words, anchor)


def test_the_script_is_short_and_knows_nothing_of_ours():
    code = SCRIPT.read_text(encoding="utf-8").split('"""')[2]
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 60
    assert "import draftwire" not in code and "from draftwire" not in code
