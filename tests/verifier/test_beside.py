"""A draft beside the target: what it gives, when it is asked, what it must not change."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from urllib.request import Request, urlopen

import numpy as np
import pytest
from cached_target import FedDraft
from frozen import DRAFT, MODELS

import draftwire
from draftwire.bench.child import local_verifier
from draftwire.bench.sim.facts import find
from draftwire.bench.sim.schemes import scheme_named
from draftwire.bench.sim.simulate import Plan, simulate, tuned
from draftwire.verifier.beside import Beside, Drafts, draft

V = 12


class Counting(FedDraft):
    """Says that id + 1 follows an id."""

    def __init__(self):
        super().__init__(lambda fed: np.eye(V, dtype=np.float32)[(fed[-1] + 1) % V])


def own(path, row):
    return int(np.argmax(row))


def beside(tokens=(7, 1), model=None, **drafts):
    made = model or Counting()
    return Beside(tokens, 4, Drafts(lambda: made, drafts.get("vocab", V), 64)), made


def plan(one, waiting, most, forward_s=0.01, step_s=0.0):
    """Return what is to be drafted; free drafts are made to the last."""
    return one.plan(waiting, most, own, forward_s, 0.0, step_s)


def make(one, waiting, most, **cost):
    job = plan(one, waiting, most, **cost)
    return (0, 0.0) if job is None else draft([job])


def test_it_drafts_behind_the_drafts_of_the_device():
    one, model = beside()
    make(one, (2, 3), 5)
    assert one.find([2, 3]) == [4, 5, 6]
    assert (one.wanted, one.spared) == (5, 2)
    one.extend([2, 3, 4, 5, 6, 9])
    assert make(one, (), 2)[0] == 2
    assert one.find([]) == [10, 11] and model.fed == [7, 1, 2, 3, 4, 5, 6, 9, 10]


def test_it_takes_the_longer_of_two_continuations():
    one, _ = beside()
    make(one, (2,), 4)
    assert one.reach((2, 3)) == 2 and one.find([2, 3]) == [4, 5], "more came, and agrees"
    make(one, (2,), 4)
    assert one.reach((2, 8)) == 1, "what contradicts more than there is"
    assert one.find([2]) == [3, 4, 5]
    make(one, (2,), 4)
    assert one.reach((2, 8, 8, 8, 8)) == 5, "it reaches further"
    assert one.find([2, 8, 8, 8, 8]) == []


def test_it_is_not_asked_where_enough_has_come_or_the_draft_is_full():
    one, _ = beside()
    assert plan(one, (2, 3), 2) is None
    one._text.extend([1] * 60)
    assert plan(one, (), 80) is None


def test_ids_that_the_draft_does_not_know_are_not_fed_to_it():
    one, model = beside((7, 11), vocab=9)
    make(one, (), 3)
    assert one.find([]) == [] and model.fed == []


def test_a_long_prompt_is_read_in_pieces():
    one, model = beside([1] * 600)
    one.drafts.context = 4096
    read = []
    for _ in range(3):
        make(one, (), 3)
        read.append((model.length, one.find([])))
    assert [n for n, _ in read] == [256, 512, 602]
    assert read[2][1][:1] == [2]


def test_a_draft_that_fails_fails_nobody(caplog):
    model = Counting()
    model.forward = lambda tokens: 1 / 0
    one, _ = beside(model=model)
    make(one, (), 3)
    assert one.find([]) == [] and plan(one, (), 3) is None
    assert "none drafts now" in caplog.text


def test_a_model_goes_on_to_the_next_stream_when_its_work_is_done():
    one, model = beside()
    job = plan(one, (), 2)
    one.close()
    assert one.drafts._idle == []
    draft([job])
    assert one.drafts._idle == [model]


def test_streams_draft_side_by_side_where_their_model_can():
    asked, streams = [], [beside((7, n))[0] for n in (1, 2, 3)]
    drafts = streams[0].drafts
    drafts._make = Counting
    feed = drafts.forward
    drafts.forward = lambda jobs: asked.append(len(jobs)) or feed(jobs)
    for one in streams[1:]:
        one.drafts = drafts
    rounds, _ = draft([plan(one, (), n) for one, n in zip(streams, (1, 2, 4))])
    assert rounds == 4 and asked == [3, 2, 1, 1]
    assert [one.find([]) for one in streams] == [[2], [3, 4], [4, 5, 6, 7]]


def test_it_drafts_for_as_long_as_it_is_sure_enough():
    """Right where it is sure and wrong elsewhere: it learns to stop there."""
    rng, lengths = np.random.default_rng(1), []

    class Wavering(Counting):
        def forward(self, tokens):
            return super().forward(tokens) * (9.0 if self.fed[-1] % 4 else 3.0)

    one, _ = beside((1,), model=Wavering())
    one.drafts.context = 1 << 20
    text = [1]
    for _ in range(300):
        make(one, (), 12, step_s=0.001)
        made = one.find([])
        lengths.append(len(made))
        kept = []
        for token in made:
            right = text[-1] % 4 != 0 or rng.random() < 0.1
            kept.append(token if right else (token + 4) % V)
            text.append(kept[-1])
            if not right:
                break
        else:
            kept.append((text[-1] + 1) % V)
            text.append(kept[-1])
        one.extend(kept)
    assert np.mean(lengths[:3]) > 4.5, "nothing is known yet"
    assert np.mean(lengths[100:]) < 4.5


def test_a_stream_begins_with_all_that_earlier_ones_have_learned():
    """A first few wrong drafts say little beside hundreds that were right."""
    one, _ = beside((1,))
    for _ in range(40):
        make(one, (), 8, step_s=0.0001)
        made = one.find([])
        one.extend([*made, (made[-1] + 1) % V])
    one.close()
    other = Beside((1,), 4, one.drafts)
    for _ in range(5):
        make(other, (), 8, step_s=0.0001)
        other.extend([(other.find([])[0] + 3) % V])
    assert make(other, (), 8, step_s=0.0001)[0] == 8
    other.close()
    assert one.drafts.shares.mean < one._shares.mean, "and it learns, too"


def test_what_a_draft_takes_is_timed_without_its_loading_and_may_change():
    one, model = beside()
    one.drafts.context = 1 << 20
    feed, one.drafts._make = model.forward, lambda: time.sleep(0.3) or model

    def forward(tokens):
        time.sleep(0.2 if len(tokens) > 1 else 0.001)
        return feed(tokens)

    model.forward = forward
    assert 0.001 < make(one, (), 5)[1] < 0.1
    assert make(one, (), 1)[1] == 0, "the text was read, and no more"
    dear = [plan(one, (), 12, 0.005, 0.05) is not None for _ in range(1002)]
    trials = [i for i, made in enumerate(dear) if made]
    assert 6 <= len(trials) <= 7, "now and then it is timed anew"
    assert trials[-1] - trials[-2] > 2 * (trials[1] - trials[0])


@pytest.mark.parametrize("step_ms, rtt_ms, better", [(10.0, 40.0, 1.0), (1.0, 10.0, 0.9)])
def test_it_is_as_fast_as_both_models_on_one_machine(step_ms, rtt_ms, better):
    profile = find("nano-a100").replaced(
        "assumed", "a test", cloud__forward_ms=27.0, cloud__draft_step_ms=2.7,
        draft__step_ms=step_ms, link__rtt_ms=rtt_ms, text__acceptance=0.8,
    )  # fmt: skip
    plan = Plan(profile, scheme_named("colocated"), streams=1, tokens=1000)
    together = tuned(plan)
    ours = simulate(replace(plan, scheme=scheme_named("hybrid")))
    assert ours.ms_per_token < better * together.ms_per_token


@pytest.mark.timeout(300)
def test_the_text_is_the_same():
    target, texts = MODELS / "v1.target", []
    for more in ((), ("--draft", str(DRAFT))):
        with local_verifier([target], more) as (url, token), draftwire.connect(
            url, draft=DRAFT, token=token, energy="off", silence_s=15.0
        ) as session:
            for temperature, penalty in ((0.0, 0.0), (0.8, 0.5)):
                stream = session.generate(
                    "Once upon a time", max_new_tokens=40, temperature=temperature,
                    seed=3, objective="latency", presence_penalty=penalty,
                )  # fmt: skip
                texts.append([t.id for chunk in stream for t in chunk.tokens])
            if more:  # also once it knows what a draft takes here
                head = {"Authorization": f"Bearer {token}"}
                page = url.replace("ws:", "http:").rstrip("/") + "/metrics"
                with urlopen(Request(page, headers=head)) as answer:
                    text = answer.read().decode()
                (wanted,) = re.findall(r"beside_num_wanted_tokens_total\{.*\} (\d+)", text)
                assert int(wanted) > 8
    assert texts[:2] == texts[2:] and len(texts[0]) == 40
