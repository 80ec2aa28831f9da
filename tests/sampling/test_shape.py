"""What changes logits before a scheme sees them, in both halves."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from cached_target import CachedTarget, FedDraft

from draftwire.errors import ConfigError
from draftwire.runtime.drafter import Drafter
from draftwire.runtime.edge.actions import Draft
from draftwire.sampling import SamplingParams, law_of, make_proposer, shape_for

GOLDEN = Path(__file__).parents[1] / "golden" / "sampling_v2.json"
VECTORS = json.loads(GOLDEN.read_text())["shapes"]
NAMES = ("min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
EVERYTHING = {
    "min_p": 0.05,
    "repetition_penalty": 1.3,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.25,
    "logit_bias": ((1, 0.75), (2, -1.5)),
    "bad_words": ((3, 1), (0,)),
}


def tuples(rows):
    return tuple(map(tuple, rows))


def numbers(rows):
    return [[float(x) for x in row] for row in rows]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", VECTORS)
def test_vectors(case, dtype):
    named = {name: case[name] for name in ("temperature", "top_k", "top_p", *NAMES)}
    words = {
        "logit_bias": tuples(case["logit_bias"]),
        "bad_words": tuples(case["bad_words"]),
    }
    params = SamplingParams("match", **named, **words)
    rows = np.array(numbers(case["rows"]), dtype)
    context = case["context"]
    shape = shape_for(params, case["vocab_size"], len(context) - case["text"])
    if shape is not None:
        shape.follow(context)
        before = rows.copy()
        found = shape.rows(rows, case["drafts"])
        assert np.array_equal(rows, before), "the model's own rows are not touched"
        rows = found
    assert rows.tolist() == numbers(case["shaped"])
    law = law_of(rows[-1], params)
    ids = np.arange(case["vocab_size"]) if law.ids is None else law.ids
    assert ids.tolist() == case["ids"]
    assert np.allclose(law.probs, case["p"], rtol=1e-11)


def test_the_vectors_say_something():
    for name, none in zip(NAMES, (0, 1, 0, 0)):
        assert sum(case[name] != none for case in VECTORS) > 10
    assert sum(any("-inf" in row for row in case["shaped"]) for case in VECTORS) > 5


def test_a_shape_forgets_what_is_cut():
    rng = random.Random(4)
    params = SamplingParams("match", 1.0, **EVERYTHING)
    row = np.random.default_rng(1).normal(0, 2, (1, 6)).astype(np.float32)
    for prompt in (1, 4):
        wandering, sequence = shape_for(params, 6, prompt), [2] * prompt
        for _ in range(300):
            if rng.random() < 0.3:
                valid = rng.randrange(len(sequence) + 1)
                del sequence[valid:]
                wandering.cut(valid)
            sequence += [rng.randrange(6) for _ in range(rng.randrange(4))]
            wandering.follow(sequence)
            fresh = shape_for(params, 6, prompt)
            fresh.follow(sequence)
            drafts = [rng.randrange(6) for _ in range(rng.randrange(3))]
            rows = np.repeat(row, len(drafts) + 1, axis=0)
            found = wandering.rows(rows, drafts)
            assert np.array_equal(found, fresh.rows(rows, drafts))
            for j in range(len(drafts) + 1):  # each row is that of a single step
                one = shape_for(params, 6, prompt)
                one.follow([*sequence, *drafts[:j]])
                assert np.array_equal(found[j], one.rows(row)[0])


def test_the_drafter_shapes_as_the_target_does():
    """So the drafts of a draft that is the target are its text, after any rewind."""
    params = SamplingParams("coupled", 1.0, seed=5, **{**EVERYTHING, "min_p": 0.0})
    target, rng = CachedTarget(12, salt=b"x"), random.Random(1)
    text = target.text([1, 2, 3], params, 60)
    drafter = Drafter(FedDraft(target.rows_after), 12)
    shape = shape_for(params, 12, 3)
    drafter.begin(1, make_proposer(params, 12), shape=shape)
    drafter.submit(1, Draft(1, 0, (1, 2, 3), 5))
    held = 0
    for branch in range(2, 40):
        got = []
        while (step := drafter.step()) is not None:
            got.append(step.proposal.token)
        wrong = [rng.randrange(12) for _ in range(rng.randrange(2) * 3)]
        if got:
            assert got == text[held : held + 5][: len(got)]
        held = rng.randrange(50)
        fresh = (*text[:held],)
        drafter.submit(1, Draft(branch, 3, (*fresh, *wrong), 0))
        drafter.submit(1, Draft(branch + 100, 3 + len(fresh), (), 5))
    assert len(got) == 5


@pytest.mark.workstation
def test_combinations_are_those_of_transformers():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.generation import logits_process as hf

    rng = np.random.default_rng(3)
    for _ in range(150):
        vocab = int(rng.choice([6, 40, 1000]))
        context = rng.integers(0, vocab, int(rng.integers(1, 30)))
        logits = rng.normal(0, 3, vocab).astype(np.float32)
        r = float(rng.choice([1.0, 1.2, 0.8, 2.0]))
        t, k = float(rng.choice([0.5, 1.0, 1.4])), int(rng.choice([0, 5]))
        p, m = float(rng.choice([1.0, 0.9, 0.5])), float(rng.choice([0.0, 0.05, 0.3]))
        bias = {int(i): float(rng.normal()) for i in rng.integers(0, vocab, 3)}
        bias = {i: float(np.float32(x)) for i, x in bias.items()}
        words = [(int(context[-1]), 1), (2,)] if rng.random() < 0.5 else []
        params = SamplingParams(
            "match",
            t,
            k,
            p,
            min_p=m,
            repetition_penalty=r,
            logit_bias=tuple(bias.items()),
            bad_words=tuple(words),
        )
        theirs = hf.LogitsProcessorList(
            [hf.SequenceBiasLogitsProcessor({(i,): x for i, x in bias.items()})]
            + [hf.RepetitionPenaltyLogitsProcessor(r)]
            + ([hf.NoBadWordsLogitsProcessor(list(map(list, words)))] if words else [])
            + [hf.TemperatureLogitsWarper(t)]
            + ([hf.TopKLogitsWarper(k)] if k else [])
            + ([hf.TopPLogitsWarper(p)] if p < 1 else [])
            + ([hf.MinPLogitsWarper(m)] if m else [])
        )
        scores = theirs(torch.tensor(context[None]), torch.tensor(logits[None]))
        expected = torch.softmax(scores[0].double(), -1).numpy()
        shape = shape_for(params, vocab, 0)
        shape.follow(context.tolist())
        found = law_of(shape.rows(logits[None])[0], params).dense(vocab)
        assert np.allclose(found, expected, atol=3e-6), (params, context)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"min_p": 1.5}, "min_p 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"presence_penalty": 2.5}, "presence_penalty 2.5"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty"),
        ({"logit_bias": ((1, 101.0),)}, "logit_bias of token 1"),
        ({"logit_bias": ((1, 1.0), (1, 2.0))}, "each once"),
        ({"logit_bias": ((9, 1.0),)}, "token id 9"),
        ({"bad_words": ((),)}, "bad_words"),
        ({"bad_words": ((4, 9),)}, "token id 9"),
        ({"bad_words": tuple((i,) for i in range(8))}, "no token"),
    ],
)
def test_what_cannot_be_done_is_said(values, says):
    with pytest.raises(ConfigError, match=says):
        shape_for(SamplingParams("match", 1.0, **values), 8, 0)


def test_a_stream_without_any_of_it_has_no_shape():
    assert shape_for(SamplingParams("match", 1.0, min_p=0.5), 8, 0) is None


class Odd:
    """A constraint: odd ids after even ones, and the other way round."""

    def follow(self, sequence):
        self.last = sequence[-1]

    def masks(self, drafts):
        before = np.array([self.last, *drafts])
        return (np.arange(8)[None] + before[:, None]) % 2 == 1


def test_a_constraint_masks_each_row():
    params = SamplingParams("greedy", frequency_penalty=1.0)
    shape = shape_for(params, 8, 1, Odd())
    shape.follow([4])
    rows = shape.rows(np.zeros((3, 8), np.float32), [3, 6])
    assert np.isneginf(rows[0]).tolist() == [True, False] * 4
    assert np.isneginf(rows[1]).tolist() == [False, True] * 4
    assert rows[2][3] == -1.0
