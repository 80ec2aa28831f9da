"""The device and the verifier of examples/js: with each other, and with ours.

Whatever the two ends are and however drafts travel, the text is that of the target alone.
"""

import asyncio
import functools
import hashlib
import json

import js_ends
import numpy as np
import places
import pytest
import verifier_lab as lab
from cached_target import CachedTarget, FedDraft
from js_ends import toy_text

import draftwire
from draftwire.sampling import SamplingParams

FIXTURES, GOLDEN = places.FIXTURES, places.ROOT / "tests" / "golden"
PROMPTS = ([1, 2, 3], [77], [5, 250, 250, 9])
COUPLED = {"scheme": "coupled", "temperature": 0.8, "top_p": 0.9, "top_k": 60}
LAWS = {
    "greedy": {"scheme": "greedy", "temperature": 0},
    "coupled": {**COUPLED, "seed": 2**64 - 1},
    "sparse": {**COUPLED, "seed": 12, "noise": "sparse", "sample": 3},
}
MODES = {
    "wait": {"mode": "wait", "block": 5},
    "pipeline": {"mode": "pipeline", "block": 3},
    "pipeline without bonus": {"mode": "pipeline", "block": 3, "bonus": 0},
    "race": {"mode": "race", "block": 4, "draft_ms": 4},
    "race with credit": {"mode": "race", "block": 4, "draft_ms": 8, "credit": 6},
    "from the start": {"mode": "race", "block": 2, "draft_ms": 8, "objective": "latency"},
}
# Every mode with a law or two.
PAIRS = [
    *((law, "wait") for law in ("greedy", "coupled")),
    *((law, "pipeline without bonus") for law in ("greedy", "coupled")),
    *((law, "race") for law in ("greedy", "coupled")),
    *(("sparse", mode) for mode in ("pipeline", "race with credit")),
    ("greedy", "from the start"),
]


@pytest.fixture(scope="module")
def verifier():
    with js_ends.verifier(token="a token", streams=2) as url:
        yield url


@pytest.mark.parametrize("part", ["wire", "sampling"])
def test_against_the_vectors(part):
    assert js_ends.check(part, GOLDEN / f"{part}_v2.json") == []


@pytest.mark.parametrize("mode", ["pipeline", "race", "race with credit"])
def test_a_bye_is_answered_and_the_number_used_again(verifier, mode):
    options = {**MODES[mode], "max_new_tokens": 64, "token": "a token"}
    found = js_ends.device(verifier, prompt=PROMPTS, cancel_after=9, **options)
    for prompt, stream in zip(PROMPTS, found):
        assert stream["finish"] == "cancelled" and len(stream["ids"]) >= 9
        assert stream["ids"] == toy_text(prompt, len(stream["ids"]))


REFUSED = {
    "token": ({"token": "another"}, "401"),
    "target": ({"target": "other"}, "target: "),
    "tokenizer": ({"tokenizer": "22" * 32}, "tokenizer: "),
    "prompt": ({"prompt": ([1] * 4096,)}, "request: "),
    "scheme": ({"scheme": "teleport"}, "request: "),
    "law": ({"scheme": "greedy", "temperature": 0.8}, "request: "),
}


@pytest.mark.parametrize(("options", "complaint"), REFUSED.values(), ids=REFUSED)
def test_refused(verifier, options, complaint):
    told = {"token": "a token", "prompt": ([1],), **options}
    streams, error = js_ends.ended(js_ends.start_device(verifier, **told))
    assert streams is None and complaint in error


def test_progress_keeps_patience():
    """One target for six streams: each waits longer than patience, and hears of work."""
    prompts = tuple([n] for n in range(6))
    with js_ends.verifier(forward_ms=250, progress_ms=50) as url:
        options = {"max_new_tokens": 2, "patience_ms": 1000}
        found = js_ends.device(url, prompt=prompts, **options)
        assert [s["ids"] for s in found] == [toy_text(p, 2) for p in prompts]
        process = js_ends.start_device(url, prompt=([1],), **{**options, "patience_ms": 1})
        assert "no verdict came" in js_ends.ended(process)[1]


def test_the_examples_stay_short():
    def code(name):
        lines = (js_ends.SOURCE / name).read_text("utf-8").splitlines()
        assert all(len(line) <= 100 for line in lines), name
        return sum(not s.startswith(("//", "/**")) for s in map(str.strip, lines) if s)

    shared = sum(map(code, ("codec.mjs", "sampling.mjs", "text.mjs")))
    assert shared + code("device.mjs") <= 410
    assert shared + code("verifier.mjs") <= 450
    assert code("evidence.mjs") <= 180 and code("check.mjs") <= 140
    package = json.loads((js_ends.SOURCE / "package.json").read_text("utf-8"))
    assert list(package["dependencies"]) == ["ws"]


# ---- with ours


async def in_thread(call, *args, **options):
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(None, functools.partial(call, *args, **options))


def near_miss(sequence, vocab):
    """Return it with every fourth token wrong."""
    return [(t + (i % 4 == 0)) % vocab for i, t in enumerate(sequence)]


@pytest.mark.parametrize(("law", "mode"), [*PAIRS, ("greedy", "cut link")])
async def test_device_with_our_verifier(tmp_path, law, mode):
    law, cut = LAWS[law], mode == "cut link"
    mode = {"block": 2, "draft_ms": 2} if cut else MODES[mode]
    target, count = CachedTarget(vocab_size=300, context=512), 150 if cut else 40
    wanted = [target.text(prompt, SamplingParams(**law), count) for prompt in PROMPTS]
    script = tmp_path / "drafts.json"
    script.write_text(json.dumps([p + near_miss(t, 300) for p, t in zip(PROMPTS, wanted)]))

    async with lab.serving(target) as service:
        url = js_ends.cutter(service.url, every=1000, times=3).url if cut else service.url
        options = {**law, **mode, "draft": script, "max_new_tokens": count}
        options.update(family="hashed", tokenizer="aa" * 32, vocab_size=300)
        streams = await in_thread(js_ends.device, url, prompt=PROMPTS, **options)
    assert [s["ids"] for s in streams] == wanted
    assert all(s["finish"] == "length" for s in streams)
    assert any(s["resumes"] for s in streams) == cut
    if mode.get("mode") in ("wait", "pipeline"):  # drafts did save some
        assert sum(s["forwards"] for s in streams) < 110


def toy_model():
    """Return the toy draft of ``text.mjs`` as the model of our device."""
    return FedDraft(lambda fed: np.asarray(js_ends.toy_draft(fed, 264), np.float32))


OURS = {
    "await": {"preempt": "off"},
    "pipeline": {"pipeline": 3},
    "guess": {"preempt": "guess"},
    "race": {"objective": "latency"},
}
TINY = json.loads((FIXTURES / "tiny.draft" / "draft.json").read_text("utf-8"))["family"]


@pytest.fixture(scope="module")
def tiny_verifier():
    """A JavaScript verifier that takes the draft of the fixtures for its own."""
    options = {key: TINY[key] for key in ("tokenizer", "backbone")}
    options.update(family=TINY["name"], vocab_size=264, context=160)
    with js_ends.verifier(**options) as url:
        yield url


def texts(url, law, mode, count):
    options = {k: v for k, v in law.items() if v != "greedy"}
    options.update(mode, max_new_tokens=count)
    with draftwire.connect(url, draft=FIXTURES / "tiny.draft", silence_s=15) as session:
        session._drafter.use(toy_model())
        streams = [session.generate(p, **options) for p in PROMPTS]
        return [[t.id for chunk in s for t in chunk.tokens] for s in streams]


@pytest.mark.parametrize("mode", OURS)
@pytest.mark.parametrize("law", LAWS)
def test_our_device_with_the_verifier(tiny_verifier, law, mode):
    law = {"sample": 3, **LAWS[law]}
    found = texts(tiny_verifier, law, OURS[mode], 40)
    assert found == [toy_text(p, 40, vocab=264, stops=(0,), **law) for p in PROMPTS]


@pytest.mark.parametrize("mode", ["pipeline", "race"])
def test_our_device_with_the_verifier_over_a_cut_link(tiny_verifier, mode):
    proxy = js_ends.cutter(tiny_verifier, every=1000, times=3)
    found = texts(proxy.url, LAWS["greedy"], OURS[mode], 120)
    assert found == [toy_text(p, 120, vocab=264, stops=(0,)) for p in PROMPTS]
    assert proxy.acts


# ---- the kits


def kit(*words):
    done = places.draftwire("verifier", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_verifier_conforms_and_its_texts_are_those_of_the_kits_target(tmp_path):
    """The toy target is the kit's, so that every text is known to the kit as well."""
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("a token of the kit\n".replace(" ", "-"))
    names = {name: f"draftwire kit {name}".encode() for name in ("tokenizer", "backbone")}
    options = {name: hashlib.sha256(text).hexdigest() for name, text in names.items()}
    options.update(target="kit", family="kit", vocab_size=512, forward_ms=0, max_block=32)
    with js_ends.verifier(token="a-token-of-the-kit", **options) as url:
        said = kit("check", url, "--target", "kit", "--quick", "--token-file", str(token))
    assert "drafts change nothing" in said and " 0 fail" in said


@pytest.mark.parametrize(
    "mode",
    ["wait", *(pytest.param(m, marks=pytest.mark.slow) for m in ("pipeline", "race"))],
)
def test_the_device_conforms(mode):
    command = ["node", str(js_ends.programs() / "device.mjs"), "{url}", "--prompt", "1,2,3"]
    said = kit("mimic", "--", *command, "--max_new_tokens", "60", "--mode", mode)
    assert " 0 fail" in said and "link lost after a commit" in said
