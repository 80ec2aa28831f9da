"""When a board had better not draft: it rests where the verifier's own draft makes its
drafts needless, and is hushed before a verdict that would void the step; never for long."""

import math
from dataclasses import replace

import pytest

from draftwire.bench.sim.facts import find
from draftwire.bench.sim.schemes import scheme_named
from draftwire.bench.sim.simulate import Plan, simulate
from draftwire.runtime.drafter import Drafter
from draftwire.runtime.edge.machine import EdgeSession
from draftwire.runtime.edge.rest import Hush, Rest
from draftwire.runtime.pacing.auto import Auto
from draftwire.runtime.pacing.governor import Governor


def test_it_rests_longer_each_time_and_looks_again():
    rest, length, wanted, spared, naps, drafting = Rest(), 0, 0, 0, [], 0
    for _ in range(6000):
        asleep = rest.lasts(length)
        length, wanted = length + 2, wanted + 4
        drafting += not asleep
        if asleep and not (naps and naps[-1][1] == length - 2):
            naps.append([length - 2, length])
        elif asleep:
            naps[-1][1] = length
        rest.passed(length, 2)
        rest.told(wanted, spared, length)
    lengths = [end - begin for begin, end in naps]
    assert lengths[:3] == [128, 256, 512] and max(lengths) == 4096
    assert drafting < 400 and rest.tokens >= sum(lengths[:-1])


@pytest.mark.parametrize("share", [0.15, 0.9])
def test_it_does_not_rest_where_its_drafts_are_of_use(share):
    rest = Rest()
    for n in range(1, 500):
        rest.told(10 * n, int(10 * n * share), 3 * n)
        assert not rest.lasts(3 * n)


def test_one_needless_window_among_useful_ones_is_a_short_rest():
    rest = Rest()
    rest.told(0, 0, 0)
    rest.told(64, 0, 40)
    assert rest.lasts(167) and not rest.lasts(168)
    rest.told(300, 0, 160)  # what it says of that time is no news
    rest.told(304, 0, 170)
    rest.told(404, 90, 230)
    rest.told(504, 90, 290)
    assert rest.lasts(290 + 127) and not rest.lasts(290 + 128)


@pytest.mark.parametrize("step_ms, idle", [(40.0, True), (4.0, False)])
def test_a_slow_board_rests_and_the_report_says_so(step_ms, idle):
    profile = find("agx-a100-llama").replaced(
        "assumed", "a test", draft__step_ms=step_ms, link__rtt_ms=20.0,
        text__acceptance=0.8,
    )  # fmt: skip
    plan = Plan(profile, scheme_named("hybrid"), streams=1, tokens=400)
    (stream,) = simulate(plan).streams
    report = stream.report({}, ())
    beside, said = report["beside"], " ".join(report["warnings"])
    assert beside["wanted"] > 100 and (beside["rested_tokens"] > 200) is idle
    assert (beside["saved_share"] < 0.1) is idle and ("drafts faster" in said) is idle
    assert "beside the target" in said or not idle
    eager = simulate(replace(plan, scheme=scheme_named("race"))).streams[0]
    assert eager.report({}, ())["beside"] is None
    assert (stream.counts.proposed < 0.6 * eager.counts.proposed) is idle


def known(right=0, wrong=0, drafts=8):
    """Return what is known at 1.0 s, when the next news are due at 1.1 s and speak of about
    so many drafts."""
    hush = Hush()
    for _ in range(wrong):
        hush.verdict(1.0, 0.1, 0, False, False, drafts)
    hush._took_s.clear()
    hush.verdict(1.0, 0.1, right, True, True, drafts)
    return hush


def test_it_waits_for_news_that_are_due_before_a_step_ends():
    hush = known(24, 16)
    assert hush.until_s(1.01, 0.02, 8) == 1.01, "it ends before them"
    assert hush.until_s(1.09, 0.02, 8) == pytest.approx(1.15)
    assert hush.until_s(1.09, 0.02, 1) == 1.09, "that may well be of use"
    assert hush.until_s(1.2, 0.02, 8) == 1.2, "news that are late are not waited for"


def test_a_draft_that_is_hardly_ever_of_use_is_not_made_however_far_the_news_are():
    hush = known(24, 16)
    assert hush.until_s(1.01, 0.02, 20) == pytest.approx(1.15)
    assert hush.until_s(1.2, 0.02, 20) == 1.2


def test_news_of_one_token_void_less_than_those_of_many():
    """Over a long way drafts come when their text is there: a verdict adds a token."""
    assert known(24, 16, drafts=8).until_s(1.09, 0.02, 8) > 1.09
    assert known(24, 16, drafts=0).until_s(1.09, 0.02, 8) == 1.09
    assert known(24, 16, drafts=0).until_s(1.09, 0.02, 20) > 1.09, "hardly ever of use"


def test_a_draft_that_is_mostly_right_goes_on():
    assert known(395, 5).until_s(1.09, 0.02, 9) == 1.09
    assert known(0, 40).until_s(1.09, 0.02, 1) > 1.09


def test_news_are_foreseen_by_whether_the_verifier_has_drafts_or_waits_for_them():
    """A patient one holds its forward, 60 ms here, where the branch has broken."""

    hush, now_s = known(24, 16), 1.0
    for held, stands in ((False, False), (True, True), (False, False)):
        now_s += 0.16 if held else 0.1
        hush.verdict(now_s, 0.16 if held else 0.1, 0, stands, stands, 8)
    ahead = 5  # of use with a chance between the two limits
    assert hush.until_s(now_s + 0.08, 0.03, ahead) == now_s + 0.08, "it is held again"
    assert hush.until_s(now_s + 0.14, 0.03, ahead) > now_s + 0.14
    now_s += 0.16
    hush.verdict(now_s, 0.16, 0, True, True, 8)
    assert hush.until_s(now_s + 0.08, 0.03, ahead) > now_s + 0.08


def test_where_it_pays_in_simulation(monkeypatch):
    """A draft that says eight tokens at once, nearly as slow as the target."""
    profile = find("nano-a100").replaced(
        "assumed", "a test", link__rtt_ms=40.0, text__acceptance=0.8, draft__at_once=8,
        cloud__read_ms_per_token=0.0, draft__read_ms_per_token=0.0,
        link__up_mbit_s=math.inf, link__down_mbit_s=math.inf,
    )  # fmt: skip
    plan = Plan(profile, scheme_named("cloud"), streams=1, tokens=600)
    quiet = simulate(replace(plan, scheme=scheme_named("ours-no-exits")))
    monkeypatch.setattr(Hush, "until_s", lambda self, now_s, step_s, ahead: now_s)
    loud = simulate(replace(plan, scheme=scheme_named("ours-no-exits")))
    assert quiet.ms_per_token < 0.99 * loud.ms_per_token


def test_what_an_exit_says_ends_a_hush(monkeypatch):
    """It may be the very news that the board waits for."""
    profile = find("agx-a100-llama").replaced(
        "assumed", "a test", link__rtt_ms=10.0, text__acceptance=0.6, draft__at_once=8
    )
    hushed, provisional = [], EdgeSession._provisional

    def seen(self, message):
        hushed.append(self.hushed)
        return provisional(self, message)

    monkeypatch.setattr(EdgeSession, "_provisional", seen)
    monkeypatch.setattr(Hush, "until_s", lambda self, now_s, step_s, ahead: now_s + 1.0)
    simulate(Plan(profile, scheme_named("ours"), streams=1, tokens=200))
    assert hushed and not any(hushed)


def test_what_a_forward_says_is_heard_out(monkeypatch):
    """Eight tokens come of one forward of the draft: to leave it is to waste the rest, and
    a hush in their midst cuts the block that they make."""
    profile = find("agx-a100-qwen").replaced(
        "assumed", "a test", text__acceptance=0.8, draft__at_once=8
    )
    left, news, cuts = [0], [0], []
    step, commit = Drafter.step, EdgeSession._commit

    def seen(self):
        found = step(self)
        if found is not None and found.drafts:
            if found.fed and left[0]:
                cuts.append(news[0])
            left[0] = found.masks if found.fed else left[0] - 1
            news[0] = 0 if found.fed else news[0]
        return found

    def told(self, message):
        news[0] += 1
        return commit(self, message)

    monkeypatch.setattr(Drafter, "step", seen)
    monkeypatch.setattr(EdgeSession, "_commit", told)
    simulate(Plan(profile, scheme_named("ours-no-exits"), streams=1, tokens=400))
    assert cuts and all(cuts), "news alone cut a forward short"


def blocks_of(monkeypatch, scheme, **facts):
    """Return the profile's plan, and the lengths of what leaves while it is simulated."""
    profile = find("agx-a100-qwen").replaced("assumed", "a test", **facts)
    sizes, block = [], EdgeSession._block

    def seen(self, message):
        sizes.append(len(message.tokens))
        return block(self, message)

    monkeypatch.setattr(EdgeSession, "_block", seen)
    return Plan(profile, scheme_named(scheme), streams=1, tokens=300), sizes


def test_what_a_forward_says_leaves_in_one_frame_by_default_too(monkeypatch):
    """One frame for a token was eight frames, and a verifier that took them for a pace."""
    plan, sizes = blocks_of(monkeypatch, "auto", draft__at_once=8, text__acceptance=0.9)
    simulate(plan)
    assert sum(sizes) > 5 * len(sizes)


def test_the_default_is_as_fast_as_blocks_of_one_token_always(monkeypatch):
    """The controller's own forecast of what is hopeless kept the board from drafting; and
    what a hint brought forward waited for one draft more."""
    facts = {"text__acceptance": 0.6, "draft__step_ms": 5.4, "cloud__forward_ms": 145.0}
    facts = {**facts, "link__rtt_ms": 80.0, "draft__lanes": 4}
    plan, _ = blocks_of(monkeypatch, "auto", **facts)
    ours = simulate(replace(plan, scheme=scheme_named("ours")))
    assert simulate(plan).ms_per_token < 1.04 * ours.ms_per_token


def test_outcomes_are_prepared_only_where_the_length_rule_has_something_to_spare():
    class Poor(Auto):
        spare = False

    profile = find("agx-a100-qwen").replaced("assumed", "a test", text__acceptance=0.6)
    plan = Plan(profile, scheme_named("ours-no-exits"), streams=1, tokens=150)

    def made(rule):
        found = simulate(replace(plan, controller=rule))
        return sum(s.counts.outcomes for s in found.streams)

    assert made(Auto()) > 0
    assert made(Poor()) == 0


def test_a_budget_that_is_used_up_has_nothing_to_spare():
    rule = Auto(governor=Governor(max_watts=5.0))
    rule.power({"draft": 40.0, "verify-wait": 4.0})
    assert rule.spare
    rule.governor.passed(1.0, 0, 4.0)
    rule.drafted_in(8.0)
    assert not rule.spare
