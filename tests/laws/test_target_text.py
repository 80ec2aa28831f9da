"""Law 1 on the reference family: the streamed tokens are the target's own.

Twenty prompts x three targets x (greedy, coupled at 0.8), a verifier process and a real
websocket, against plain decoding of the same package: one forward, one token, no draft.
"""

from __future__ import annotations

import functools
import itertools
import json
import shutil

import numpy as np
import pytest
from cached_target import FedDraft
from live import MODELS, connect, ids_of, serving
from pieces import target_only

from draftwire.packages import load_draft, load_tokenizer
from draftwire.runtime.drafter import Drafter
from draftwire.runtime.edge.actions import Draft
from draftwire.runtime.pacing.suffix_cache import SuffixCache
from draftwire.sampling import SamplingParams, make_proposer
from draftwire.verifier.backends.onnx_target import OnnxTarget

TARGETS = ("v1", "v2", "v3")
REFERENCE = MODELS / "reference.draft"
COUNT = 24

PROMPTS = (
    "Once upon a time there was a king who",
    "The little girl looked out of the window and saw",
    '"I am not afraid," said',
    "In the middle of the forest there stood",
    "The old woman gave him a",
    "He ran down to the river, and",
    "There was once a tailor",
    "When the sun rose the next morning",
    "User: Can I get a latte with oat milk please?\nAgent:",
    "User: Hello\nAgent:",
    "User: I'd like a mocha.\nAgent: Is the order correct?\nUser:",
    "User: turn off the lights in the kitchen\nIntent:",
    "User: wake me up at seven\nIntent:",
    "User: play some jazz\nIntent:",
    "Command: walk left twice and jump\nPlan:",
    "Command: look around right and walk thrice\nPlan:",
    "Question: Tom has 3 apples and buys 4 more. How many apples has he now?\nAnswer:",
    "KING:\nWhat news,",
    "a",
    "caf\u00e9 \U0001f916",
)
MODES = {"greedy": {"temperature": 0.0}, "coupled": {"temperature": 0.8, "top_p": 0.95}}

# What goes on while a verdict is out must not show in the text.
WAYS = (
    {},
    {"objective": "cost", "preempt": "off"},
    {"objective": "cost", "pipeline": 3, "cut": True},
    {"objective": "cost", "preempt": "guess,exits,outcomes"},
    {"objective": "latency"},
    {"objective": "latency", "preempt": "exits", "batch": 2},
    {"objective": "cost", "pipeline": 2, "preempt": "guess,exits"},
    {"max_forwards_per_token": 0.4},
)


@pytest.fixture(scope="module")
def verifier():
    with serving(*(MODELS / f"{name}.target" for name in TARGETS)) as found:
        yield found


@pytest.fixture(scope="module")
def alone():
    """Return what a target writes without a draft: of its name, a text, a mode, a seed."""
    backends = {name: OnnxTarget(MODELS / f"{name}.target", threads=1) for name in TARGETS}
    tokenizer = load_tokenizer(load_draft(REFERENCE).tokenizer_path)

    @functools.lru_cache(maxsize=None)
    def write(target, text, mode, seed):
        how = {"temperature": 0.0, "top_p": 1.0, **MODES[mode]}
        params = SamplingParams(mode, seed=seed, **how)
        return target_only(
            backends[target], tokenizer.encode(text, bos_id=0), params, COUNT
        )

    return write


def streamed(session, text, mode, seed, **options):
    how = {"max_new_tokens": COUNT, "seed": seed, **MODES[mode], **options}
    tokens = ids_of(session.generate(text, **how))
    report = session.report
    assert report["token_ids"] == tokens
    # A text that came out right after a retry would hide a fault of the verifier.
    assert report["link"]["reconnects"] == 0
    assert not any("anew" in warning for warning in report["warnings"])
    return tokens


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("target", TARGETS)
def test_the_targets_own_text(alone, verifier, target, mode, learned):
    """A draft that has learned nothing changes nothing but speed."""
    blocks = itertools.cycle((4, 1, 7, 16))
    ways = itertools.cycle(WAYS if learned else [{"objective": "cost"}])
    with connect(verifier, draft=REFERENCE, target=target) as session:
        if not learned:
            session._drafter.use(luck(2048, 5))
        for seed, (text, block, way) in enumerate(zip(PROMPTS, blocks, ways)):
            found = streamed(session, text, mode, seed, block=block, **way)
            assert found == alone(target, text, mode, seed), (target, text, block, way)
            right = session.report["accepted"] / max(1, session.report["drafted"])
            assert learned or right < 0.5


@pytest.fixture(scope="module")
def parallel_draft(tmp_path_factory):
    """The reference draft with one of its rows for masks: they mostly say wrong things."""
    folder = tmp_path_factory.mktemp("parallel") / "reference.draft"
    shutil.copytree(REFERENCE, folder)
    raw = json.loads((folder / "draft.json").read_text(encoding="utf-8"))
    raw["parallel"] = {"mask_ids": [2047], "block": 6}
    (folder / "draft.json").write_text(json.dumps(raw), encoding="utf-8")
    return load_draft(folder)


PARALLEL = (
    {"controller": "fixed:6:parallel"},
    {"controller": "fixed:9:parallel", "objective": "cost", "pipeline": 3, "cut": True},
    {
        "controller": "fixed:5:hybrid",
        "objective": "cost",
        "preempt": "guess,exits,outcomes",
    },
    {"controller": "fixed:7:parallel", "objective": "latency"},
    {"controller": "auto"},
    {"controller": "auto", "objective": "cost", "preempt": "off"},
    {"controller": "fixed:4"},
)


@pytest.mark.parametrize("mode", MODES)
def test_the_targets_own_text_from_a_parallel_draft(alone, verifier, parallel_draft, mode):
    assert parallel_draft.id == load_draft(REFERENCE).id  # the same draft, frozen
    masked = 0
    with connect(verifier, draft=parallel_draft, target="v1") as session:
        for seed, (text, way) in enumerate(zip(PROMPTS, 2 * PARALLEL)):
            expected = alone("v1", text, mode, seed)
            assert streamed(session, text, mode, seed, **way) == expected, (text, way)
            told = session.report["mode"]["drafting"]
            rows = [told[name] for name in ("autoregressive", "parallel", "hybrid")]
            for count in ("drafted", "accepted"):
                assert sum(row[count] for row in rows) == session.report[count]
            asked = way["controller"].split(":")[-1]
            if asked in told:
                assert told[asked]["drafted"] == session.report["drafted"]
                if way.get("objective") != "latency":  # a race may overtake all of them
                    assert told[asked]["drafted"] > 0
            masked += told["parallel"]["drafted"] + told["hybrid"]["drafted"]
        assert masked > 0
        lines = []
        options = {"controller": "fixed:4:hybrid", "explain": lines.append}
        list(session.generate(PROMPTS[0], max_new_tokens=8, **options))
        assert "hybrid (asked for)" in lines[0]
        for scheme in ("residual", "qs"):  # evidence of rows behind masks is taken
            options = {"scheme": scheme, "temperature": 0.8, "ignore_eos": True}
            options["controller"] = "fixed:6:parallel"
            list(session.generate(PROMPTS[0], max_new_tokens=16, **options))
            assert session.report["tokens"] == 16


def luck(vocab, seed):
    """Return a draft model of dice."""
    rng = np.random.default_rng(seed)
    return FedDraft(lambda fed: rng.normal(0, 3, vocab).astype(np.float32))


# A loop, a list and plain prose: much to repeat, and nothing.
REPEATING = (
    "one two three four one two three four one two three four one",
    "The king said to the king, and the king said to the king, and",
    PROMPTS[0],
)
AHEAD = {"pipeline": 3, "preempt": "guess,outcomes"}
CONTROLLERS = (
    ("auto:cost", {"controller": "auto", "objective": "cost"}),
    ("fixed:4", {"objective": "cost"}),
    ("auto", {"objective": "auto"}),
    ("auto:energy", {"controller": "auto:energy", **AHEAD}),
    ("fixed:6", {"controller": "fixed:6", "pipeline": 2}),
)


@pytest.mark.parametrize("mode", MODES)
def test_the_targets_own_text_with_a_suffix_cache(alone, verifier, mode, tmp_path):
    path, lines, recalled = tmp_path / "cache", [], 0
    for again in range(2):
        ways = CONTROLLERS[again * 2 :] * 2
        with connect(verifier, draft=REFERENCE, target="v1", suffix_cache=path) as session:
            for seed, (text, (name, way)) in enumerate(zip(REPEATING, ways)):
                found = streamed(session, text, mode, seed, explain=lines.append, **way)
                assert found == alone("v1", text, mode, seed), (text, way)
                recalled += session.report["link"]["suffix_cache"]["recalled"]
                assert session.report["mode"]["controller"] == name
        assert path.stat().st_size > 100
    assert recalled > 0, "the second session knows the text of the first"
    assert lines and all("\n" not in line and line for line in lines)


def test_the_model_reads_what_the_cache_gave():
    """Random drafts: the sequence that the drafter holds is the one it proposed."""
    vocab, text = 50, [*range(20), 41, 42, 43]
    cache = SuffixCache(vocab)
    cache.begin(text)
    model, got, recalled = luck(vocab, 1), [], 0
    drafter = Drafter(model, vocab)
    drafter.begin(1, make_proposer(SamplingParams("greedy", 0.0), vocab), cache)
    prompt = (*text, *range(12))
    drafter.submit(1, Draft(1, 0, prompt, 40))
    while (step := drafter.step()) is not None:
        if step.proposal is not None:
            got.append(step.proposal.token)
            recalled += not step.fed
    assert len(got) == 40 and recalled >= 8 and got[:8] == list(range(12, 20))
    assert recalled < 40, "the cache came to its end"
    assert model.fed == [*prompt, *got][: len(model.fed)]


def test_the_frozen_draft_earns_its_place(verifier):
    """What the family must show on v1: at least 2 of 4 accepted, under half a forward."""
    keys = ("drafted", "accepted", "rounds", "tokens", "target_forwards")
    sums = dict.fromkeys((*keys, "payload"), 0)
    with connect(verifier, draft=REFERENCE, target="v1") as session:
        for text in PROMPTS[:8]:
            list(session.generate(text, max_new_tokens=64, block=4, objective="cost"))
            for key in keys:
                sums[key] += session.report[key]
            sums["payload"] += session.report["bytes"]["up_payload"]
    assert sums["accepted"] / sums["rounds"] >= 2.0
    assert sums["target_forwards"] / sums["tokens"] < 0.5
    # The prompts crossed too: they are in these bytes.
    assert sums["payload"] / sums["drafted"] < 4.0
