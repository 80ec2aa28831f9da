"""One frozen draft, and targets that evolved well, badly, or elsewhere: end to end.

Packages made by the commands, a verifier process, real websockets. Whatever the draft
is, the text is the target's own; what changes is what the handshake says of it.
"""

import contextlib
import json
import random
import shutil

import numpy as np
import pieces
import pytest
from live import ids_of

import draftwire
from draftwire.bench.child import local_verifier
from draftwire.cli import main
from draftwire.errors import IncompatibleError
from draftwire.export.adapter import package_adapter
from draftwire.packages import load_draft, load_target
from draftwire.sampling import SamplingParams
from draftwire.tensors import target_weights, write_tensors
from draftwire.tokenizer import load_tokenizer
from draftwire.verifier.backends.base import SlotInput
from draftwire.verifier.backends.hf_target import HFTarget
from draftwire.verifier.backends.onnx_target import OnnxTarget

COUNT = 20
PROMPTS = ("the robot goes to the", "a red cup on the table and")


def command(*words):
    assert main([*map(str, words), "-q"]) == 0


@pytest.fixture(scope="module")
def shelf(models, tmp_path_factory):
    """A family made by the commands, a merged version, a stranger, two drafts."""
    home = tmp_path_factory.mktemp("shelf")
    rng = random.Random(3)
    words = "the robot takes red cup to table and then goes door".split()
    text = home / "robot.txt"
    text.write_text("\n\n".join(" ".join(rng.choices(words, k=60)) for _ in range(160)))
    base = models("llama")
    v1 = home / "v1.target"
    target = ("--role", "target", "--anchor-layers", 1)
    kin = ("--family", "kin", "--name", "kin")
    command("export", "onnx", base, *target, "--out", v1, *kin)
    small = ("--batch", 256, "--tokens", 512)
    command(
        "export", "draft", v1, "--layers", 1, "--data", text, "--out", home / "own.draft",
        *small, "--precision", "fp32", "--prompts", 2, "--min-agreement", 0,
    )  # fmt: skip
    for version, free in (("v2", []), ("v3", ["--free-anchor"])):
        command(
            "export", "evolve", v1, "--data", text, "--rank", 2, "--lr", 0.05, *small,
            "--version", version, "--name", "kin", "--out", home / f"{version}.target",
            *free,
        )  # fmt: skip
    # The same change as v2's, merged into a whole checkpoint.
    merged = shutil.copytree(base, home / "merged.hf")
    weights = target_weights(load_target(home / "v2.target"))
    write_tensors(merged / "model.safetensors", weights)
    words = ("--out", home / "v4.target", "--version", "v4", "--precision", "fp32")
    command("export", "onnx", merged, *target, *words, *kin)
    # A stranger: a tokenizer whose ids mean something else.
    other = shutil.copytree(base, home / "other.hf")
    raw = json.loads((other / "tokenizer.json").read_text())
    vocab = raw["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (other / "tokenizer.json").write_text(json.dumps(raw))
    words = ("--out", home / "w1.target", "--version", "w1", "--family", "stranger")
    command("export", "onnx", other, *target, *words)
    # A small model of the same tokenizer that shares nothing else.
    command(
        "export", "onnx", models("llama_tied_biased"), "--out", home / "small.draft",
        "--precision", "fp32", "--family", "small",
    )  # fmt: skip
    return home


@pytest.fixture(scope="module")
def verifier(shelf):
    with local_verifier(sorted(shelf.glob("*.target"))) as found:
        yield found


def target_only(path, prompt, scheme, temperature, seed):
    params = SamplingParams(scheme, temperature, 0, 1.0, seed)
    return pieces.target_only(OnnxTarget(path, threads=1), prompt, params, COUNT)


def last_logits(backend, prompt):
    slot = backend.allocate()
    (rows,) = backend.forward([SlotInput(slot, 0, np.array(prompt, np.int64), 1)])
    return rows[-1][:256]


def run(session, prompt, scheme="greedy", temperature=0.0, seed=0):
    return session.generate(
        prompt, max_new_tokens=COUNT, scheme=scheme, temperature=temperature, seed=seed
    )


@pytest.mark.parametrize(
    ("draft", "target", "compatibility"),
    [
        ("own", "v1", "family"),
        ("own", "v2", "family"),
        ("own", "v3", "tokenizer"),
        ("own", "v4", "family"),
        ("small", "v1", "tokenizer"),
        ("small", "v3", "tokenizer"),
    ],
)
def test_the_handshake_knows_the_family_by_its_anchor(
    shelf, verifier, draft, target, compatibility
):
    url, token = verifier
    package = load_draft(shelf / f"{draft}.draft")
    tokenizer = load_tokenizer(package.tokenizer_path)
    with draftwire.connect(url, draft=package, target=target, token=token) as session:
        assert session.welcome.target_version == target
        assert session.welcome.compatibility == compatibility
        for number, text in enumerate(PROMPTS):
            prompt = tokenizer.encode(text, bos_id=package.bos_id)
            for scheme, temperature in (("greedy", 0.0), ("coupled", 0.9)):
                expected = target_only(
                    shelf / f"{target}.target", prompt, scheme, temperature, number
                )
                found = ids_of(run(session, text, scheme, temperature, number))
                assert found == expected
        warned = " ".join(session.report["warnings"])
    # "small" is a model of its own, which never had a backbone to share.
    wanted = compatibility == "tokenizer" and draft == "own"
    assert ("not its backbone" in warned) == wanted


def test_a_stranger_is_refused_with_the_side_to_change(shelf, verifier):
    url, token = verifier
    with pytest.raises(
        IncompatibleError, match="their token ids mean different text"
    ) as found:
        draftwire.connect(url, draft=shelf / "own.draft", target="w1", token=token)
    assert "use a draft made for this target" in found.value.hint


def test_merged_and_adapter_say_the_same(shelf):
    tokenizer = load_tokenizer(shelf / "own.draft" / "tokenizer.json")
    for text in PROMPTS:
        prompt = tokenizer.encode(text, bos_id=0)
        texts = [
            target_only(shelf / f"{name}.target", prompt, "coupled", 0.9, 5)
            for name in ("v2", "v4")
        ]
        assert texts[0] == texts[1]


def test_two_versions_at_once_share_no_cache(shelf, verifier):
    """Same prompt, same moment, one verifier: each stream is its own target's."""
    url, token = verifier
    package = load_draft(shelf / "own.draft")
    tokenizer = load_tokenizer(package.tokenizer_path)
    prompt = tokenizer.encode(PROMPTS[0], bos_id=package.bos_id)
    names = ("v1", "v2", "v3")
    how = ("coupled", 0.9, 3)
    expected = {n: target_only(shelf / f"{n}.target", prompt, *how) for n in names}
    assert len({tuple(t) for t in expected.values()}) == 3, "the versions differ"
    with contextlib.ExitStack() as stack:
        streams, found = {}, {n: [] for n in names}
        for name in names:
            session = draftwire.connect(url, draft=package, target=name, token=token)
            streams[name] = iter(run(stack.enter_context(session), PROMPTS[0], *how))
        while streams:
            for name in list(streams):
                chunk = next(streams[name], None)
                if chunk is None:
                    del streams[name]
                else:
                    found[name] += [t.id for t in chunk.tokens]
        assert found == expected


def test_an_adapter_directory_joins_the_family(shelf, models):
    command(
        "export", "evolve", models("llama"), "--data", shelf / "robot.txt", "--rank", 2,
        "--batch", 256, "--tokens", 512, "--lr", 0.05, "--anchor-layers", 1,
        "--out", shelf / "adapter",
    )  # fmt: skip
    out = package_adapter(
        shelf / "adapter", shelf / "v1.target", shelf / "v5.target", version="v5"
    )
    assert load_target(out).family == load_draft(shelf / "own.draft").family
    # transformers serves the directory as it is, and says the same; the base alone not.
    prompt = load_tokenizer(shelf / "own.draft" / "tokenizer.json").encode(PROMPTS[0])
    rows = [
        last_logits(backend, prompt)
        for backend in (
            OnnxTarget(out, threads=1),
            HFTarget(shelf / "adapter", threads=1),
            HFTarget(models("llama"), threads=1),
        )
    ]
    largest = np.abs(rows[0]).max()
    assert np.abs(rows[0] - rows[1]).max() < 0.02 * largest  # one has weights in float16
    assert np.abs(rows[0] - rows[2]).max() > 0.05 * largest
    shutil.rmtree(out)
