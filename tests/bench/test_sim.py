"""The simulator: the same every time, the target's text, and times known otherwise."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from schedules import await_time, race_time

from draftwire.bench.link import LinkSpec
from draftwire.bench.sim.command import row_of
from draftwire.bench.sim.facts import find, parse_profile, profiles
from draftwire.bench.sim.schemes import SCHEMES, scheme_named, schemes_named
from draftwire.bench.sim.simulate import Plan, price, simulate, synthetic_of, tuned
from draftwire.bench.sim.texts import Synthetic, TextDraft, parse_luck
from draftwire.errors import ConfigError
from draftwire.runtime.report import check_report

NANO = find("nano-a100")


def cell(forward, draft, rtt, rate):
    """Return a profile in which only times count, as in the reference."""
    return NANO.replaced(
        "assumed", "a test", cloud__forward_ms=forward, draft__step_ms=draft,
        link__rtt_ms=rtt, text__acceptance=rate, link__up_mbit_s=math.inf,
        link__down_mbit_s=math.inf, cloud__read_ms_per_token=0.0,
        draft__read_ms_per_token=0.0,
    )  # fmt: skip


def plan(profile=NANO, scheme="await", **options):
    options.setdefault("streams", 1)
    options.setdefault("tokens", 300)
    return Plan(profile, scheme_named(scheme), **options)


# ---- laws


@pytest.mark.parametrize("name", [*sorted(SCHEMES), "await+leaves", "race+leaves"])
def test_every_scheme_writes_the_targets_text_over_a_bad_link(name):
    link = LinkSpec.parse("60ms/2mbit/jitter=10ms/loss=3%/outages=4s:500ms")
    source = synthetic_of(NANO, 3)
    outcome = simulate(
        plan(scheme=name, link=link, source=source, tokens=60, seed=3, decode=True)
    )
    (stream,) = outcome.streams
    assert tuple(stream.ids) == source.text(0, 60).tokens
    assert stream.over.finish == "length"
    assert stream.over.machine.committed == tuple(stream.ids)


def test_the_same_seed_gives_the_same_run_bit_for_bit():
    def run(seed):
        link = LinkSpec.parse("40ms/5mbit/jitter=8ms/loss=1%")
        outcome = simulate(
            plan(scheme="ours-latency", link=link, seed=seed, tokens=50, sessions=2)
        )
        return json.dumps([row_of(outcome), [s.last_s for s in outcome.streams]])

    assert run(5) == run(5)
    assert run(5) != run(6)


def test_frames_that_are_decoded_say_what_messages_handed_over_say():
    for name in ("await", "earlyexit", "picospec"):
        two = [plan(scheme=name, decode=d, tokens=100) for d in (False, True)]
        outcomes = [simulate(one) for one in two]
        assert row_of(outcomes[0]) == row_of(outcomes[1]), name


# ---- times


def test_stop_and_wait_takes_what_arithmetic_says():
    profile = cell(25, 10, 40, 0.8)
    for block in (1, 5):
        done = plan(profile, block=block, tokens=200)
        right = synthetic_of(profile, 1).text(0, 200).right
        outcome = simulate(done)
        stream = outcome.streams[0]
        whole = stream.last_s - stream.began_s
        # The device drafts while the prompt's forward runs: 25 ms are not seen twice,
        # and the last block is as short as what is left.
        expected = await_time(right, 10, 25, 40, block) * 200 / 1e3
        assert whole == pytest.approx(expected, abs=0.12)


def test_leaves_save_the_forwards_that_arithmetic_says():
    """Half of the wrong drafts have a right second choice: one more token each. Where few
    forwards are wanted the first of a block is worth its bytes, at such an acceptance."""
    cloud = cell(25, 10, 40, 0.6)
    plain, leaves = (
        simulate(plan(cloud, name, tokens=800)) for name in ("await", "await+leaves")
    )
    tokens = (1 - 0.6**5) / (1 - 0.6)
    ratio = tokens / (tokens + 0.5 * (1 - 0.6))
    assert leaves.forwards / plain.forwards == pytest.approx(ratio, abs=0.03)
    near = cell(25, 10, 10, 0.6)
    raced, plain = (simulate(plan(near, name)) for name in ("race+leaves", "race"))
    assert raced.forwards < plain.forwards


def test_streaming_takes_a_forward_a_token():
    outcome = simulate(plan(cell(25, 10, 150, 0.6), "cloud"))
    assert outcome.ms_per_token == pytest.approx(25, abs=1e-6)
    assert outcome.row["forwards_per_token"] == 1
    assert outcome.streams[0].counts.proposed == 0


SECTION_5 = [
    # forward, draft, rtt, acceptance: streaming, stop and wait, pipeline, race
    (25, 10, 40, 0.8, 25.0, 31.1, 29.2, 19.2),
    (25, 10, 150, 0.6, 25.0, 93.4, 96.0, 25.0),
    (72, 24, 80, 0.6, 72.0, 102.2, 106.8, 64.2),
    (72, 24, 80, 0.8, 72.0, 73.6, 68.9, 50.3),
    (145, 24, 40, 0.9, 145.0, 61.4, 52.0, 45.8),
    (145, 24, 150, 0.8, 145.0, 111.5, 108.1, 80.5),
]


@pytest.mark.parametrize("row", SECTION_5[::2], ids=lambda row: "-".join(map(str, row[:4])))
def test_race_takes_what_an_independent_simulation_says(row):
    forward, draft, rtt, rate, *_ = row
    profile = cell(forward, draft, rtt, rate)
    one = plan(profile, "race", tokens=500)
    found = simulate(one).ms_per_token
    right = synthetic_of(profile, 1).text(0, 500).right
    oracle = race_time(right, draft, forward, rtt, at_once=False)
    assert found == pytest.approx(oracle, rel=0.05)
    assert found <= forward * 1.001


@pytest.mark.slow
@pytest.mark.parametrize("row", SECTION_5, ids=lambda row: "-".join(map(str, row[:4])))
def test_the_reference_table_comes_out(row):
    """Streaming and race within 5 %; the published pipeline is no slower than thought.

    The reference's stop and wait and pipeline draft nothing that depends on a bonus
    token; ours guess it, so they may be faster.
    """
    forward, draft, rtt, rate, streams, waits, pipes, races = row
    long = plan(cell(forward, draft, rtt, rate), streams=4, tokens=2500)
    for name, expected in (("cloud", streams), ("race", races)):
        one = replace(long, scheme=scheme_named(name))
        assert simulate(one).ms_per_token == pytest.approx(expected, rel=0.05), name
    short = replace(long, streams=1)
    assert tuned(short).ms_per_token == pytest.approx(waits, rel=0.05)
    pipeline = tuned(replace(short, scheme=scheme_named("picospec"))).ms_per_token
    assert 0.8 * pipes < pipeline < 1.05 * pipes


def test_vanilla_pays_for_its_distributions():
    profile = cell(25, 10, 40, 0.8).replaced("assumed", "a test", link__up_mbit_s=10.0)
    dense, ids = (simulate(plan(profile, name)) for name in ("vanilla", "await"))
    blocks = sum(s.counts.rounds for s in dense.streams)
    extra_ms = (dense.ms_per_token - ids.ms_per_token) * 300 / blocks
    packets = 4 * 2 * 32000 / 1448
    assert extra_ms == pytest.approx(packets * 1500 * 8 / 10e6 * 1e3, rel=0.05)


def test_an_exit_lets_the_device_draft_during_the_verification():
    plain = cell(120, 20, 10, 0.9)
    assert plain.exits
    ahead = simulate(plan(plain, "earlyexit"))
    counts = ahead.streams[0].counts
    assert counts.provisional > 20
    # An exit is right on nine of ten tokens, and so is the draft where it says nothing; a
    # verdict rests on up to five, and the last word before it counts.
    assert 0.9**5 - 0.15 < counts.provisional_right / counts.rounds <= 1
    assert ahead.ms_per_token < 0.95 * simulate(plan(plain)).ms_per_token


def test_sessions_share_forwards_and_wait_for_each_other():
    alone = simulate(plan(scheme="await"))
    crowd = simulate(plan(scheme="await", sessions=8, tokens=150))
    assert crowd.forwards < 0.8 * sum(s.counts.forwards for s in crowd.streams)
    assert alone.ms_per_token < crowd.ms_per_token
    assert sum(s.counts.queue_s for s in crowd.streams) > 0
    assert len(crowd.streams) == 8


def test_hours_are_virtual():
    outcome = simulate(plan(scheme="await", hours=0.02, tokens=200))
    assert 72 <= outcome.seconds < 72 + 20


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["await", "picospec"])
def test_tuning_finds_the_best_block_length(scheme):
    wide = plan(cell(25, 10, 80, 0.9), scheme, tokens=400)
    found = tuned(wide)
    every = [simulate(replace(wide, block=k)).ms_per_token for k in range(1, 17)]
    assert found.ms_per_token <= min(every) * 1.03
    assert tuned(plan(scheme="cloud")).block is None


def test_objectives_have_prices():
    outcome = simulate(plan())
    assert price(outcome, "latency") == outcome.ms_per_token
    assert price(outcome, "cost") > outcome.ms_per_token
    assert price(outcome, "energy") == outcome.joules_per_token
    with pytest.raises(ConfigError, match="objective"):
        price(outcome, "beauty")
    with pytest.raises(ConfigError, match="no watts"):
        price(simulate(plan(find("go2"))), "energy")


def test_joules_are_watts_by_the_phase():
    outcome = simulate(plan(cell(25, 10, 40, 0.8)))
    (stream,) = outcome.streams
    energy, seconds = stream.energy, stream.energy["seconds_by_phase"]
    busy = seconds.get("prefill", 0) + seconds["draft"]
    # Each drafted token once, at 10 ms.
    assert busy == pytest.approx(stream.counts.proposed * 0.010, rel=0.02)
    rest = sum(seconds.values()) - busy
    assert energy["joules"] == pytest.approx(10.0 * busy + 0.94 * rest)
    assert energy["kind"] == "modelled" and "simulated" in energy["notes"][0]
    silent = simulate(plan(find("go2"), tokens=40)).streams[0].energy
    assert silent["joules"] is None and "no watts" in silent["why_null"]


# ---- profiles


def test_every_number_of_every_profile_has_a_source():
    table = profiles()
    assert {"nano-a100", "agx-a100-qwen", "agx-a100-llama"} <= set(table)
    assert {"earlyexit-nano-a100", "go2"} <= set(table)
    assert sum(name.startswith("picospec-") for name in table) == 4
    for profile in table.values():
        for fact in profile.facts.values():
            assert fact.how == "default" or len(fact.source) > 5, fact


GOOD = """
schema = "draftwire.timing/1"
name = "mine"
title = "A test"
[draft]
step_ms = { value = 1.0, how = "measured", source = "here" }
[cloud]
forward_ms = { value = 2.0, how = "measured", source = "here" }
[link]
rtt_ms = { value = 3.0, how = "measured", source = "here" }
[text]
acceptance = { value = 0.5, how = "measured", source = "here" }
vocabulary = { value = 100, how = "measured", source = "here" }
"""


def test_a_profile_of_the_users_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    mine = find(str(path))
    assert mine["cloud.forward_ms"] == 2.0 and math.isnan(mine["watts.draft"])
    assert simulate(plan(mine)).ms_per_token > 1
    with pytest.raises(ConfigError, match="drafting in the cloud"):
        simulate(plan(mine, "colocated"))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("draftwire.timing/1", "draftwire.timing/9", "no schema"),
        ("value = 2.0", "value = -2.0", "cloud.forward_ms is -2.0"),
        ("value = 2.0", "value = nan", "cloud.forward_ms"),
        ("{ value = 2.0,", "{ worth = 2.0,", "value, how and"),
        ('"measured"', '"guessed"', "'guessed'"),
        ('source = "here"', 'source = " "', "has no source"),
        ("[cloud]", "[clown]", "lacks cloud"),
        ("rtt_ms", "rtt_s", "no link.rtt_s"),
        ("[draft]", "[[exit]]\nfraction = 2\n[draft]", "an exit needs"),
        ("[draft]", "[[claim]]\nratio = 2\n[draft]", "a claim needs"),
        ("[draft]", "[[published]]\nscheme = 'x'\n[draft]", "published result needs"),
        ('title = "A test"', "title = [", "not TOML"),
    ],
)
def test_a_damaged_profile_is_refused(old, new, complaint):
    assert old in GOOD
    with pytest.raises(ConfigError, match=complaint):
        parse_profile(GOOD.replace(old, new), "mine.toml")


def test_unknown_names_are_refused_with_a_suggestion():
    with pytest.raises(ConfigError) as error:
        find("picospec-qwen-gsm8")
    assert "picospec-qwen-gsm8k" in error.value.hint
    with pytest.raises(ConfigError) as error:
        schemes_named("await,picospek")
    assert "picospec" in error.value.hint
    with pytest.raises(ConfigError, match="cannot read"):
        find("nowhere.toml")


# ---- texts


def test_luck_is_read_and_kept():
    for text, rate in (("0.8", 0.8), ("markov:0.7:0.6", 0.7), ("regimes:0.9:0.5:50", 0.7)):
        right = np.array(Synthetic(parse_luck(text), seed=2).text(0, 60000).right)
        assert right.mean() == pytest.approx(rate, abs=0.02), text
    right = np.array(Synthetic(parse_luck("markov:0.7:0.6"), seed=2).text(0, 60000).right)
    assert np.corrcoef(right[1:], right[:-1])[0, 1] == pytest.approx(0.6, abs=0.03)
    steps = Synthetic(parse_luck("steps:0.9,0.2@500"), seed=2)
    right = np.array(steps.text(0, 1000).right)
    assert right[:500].mean() > 0.85 and right[500:].mean() < 0.3
    assert np.mean(steps.text(3, 1000).right) < 0.3  # the run goes on, text by text
    for bad in ("", "1.2", "markov:0.7", "regimes:0.5:0.5:0", "steps:0.5,0.6", "luck:1"):
        with pytest.raises(ConfigError):
            parse_luck(bad)


def test_calibrated_confidence_is_what_it_says_and_noise_is_not():
    def bins(kind):
        text = Synthetic(parse_luck("0.7"), confidence=kind).text(0, 40000)
        right, sure = np.array(text.right), np.array(text.confidence)
        low, high = (sure > 0.15) & (sure < 0.25), (sure > 0.75) & (sure < 0.85)
        return right[low].mean(), right[high].mean()

    low, high = bins("calibrated")
    assert low == pytest.approx(0.2, abs=0.05) and high == pytest.approx(0.8, abs=0.05)
    low, high = bins("noise")
    assert low == pytest.approx(0.7, abs=0.05) and high == pytest.approx(0.7, abs=0.05)
    with pytest.raises(ConfigError):
        Synthetic(parse_luck("0.7"), confidence="loud")


def test_the_draft_is_right_only_behind_the_right_context():
    text = Synthetic(parse_luck("1.0"), prompt_tokens=4).text(0, 50)
    draft = TextDraft(text)
    assert draft.forward(text.prompt).argmax() == text.tokens[0]
    assert draft.forward(text.tokens[:3]).argmax() == text.tokens[3]
    wrong = (text.tokens[3] + 1) % text.width
    assert draft.forward([wrong]).argmax() != text.tokens[4]
    draft.rewind(draft.length - 1)
    row = draft.forward(text.tokens[3:4])
    assert row.argmax() == text.tokens[4]
    share = np.exp(row) / np.exp(row).sum()
    assert share.max() == pytest.approx(text.confidence[4], abs=0.05)


# ---- reports


def test_a_report_is_that_of_a_live_run_and_says_that_it_is_none():
    outcome = simulate(plan(scheme="ours-cost"))
    (report,) = outcome.reports
    assert check_report(report, "here") is report
    json.dumps(report, allow_nan=False)
    assert report["simulated"] is True
    assert report["tokens"] == 300 and report["target_forwards"] > 0
    assert report["bytes"]["up_wire"] > report["bytes"]["up_payload"] > 0
    energy = report["energy"]
    assert energy["joules"] > 0 and energy["source"].startswith("model:")
