"""The link model: order, bytes, rates and dice, against laws and not examples."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftwire.bench.link import Jitter, LinkModel, LinkSpec, Outages, StreamLink, Trace
from draftwire.bench.link.model import MSS, TCP_IP, OutagePlan, rto_s, websocket_bytes
from draftwire.bench.link.text import presets
from draftwire.bench.link.traces import parse_trace, read_trace
from draftwire.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("DRAFTWIRE_SHARED", ROOT.parent / "shared")) / "data"
TRACES = sorted((SHARED / "channel").glob("*.csv"))
QUICK = settings(max_examples=60, deadline=None)

gaps = st.floats(0, 0.5)
sizes = st.integers(1, 4000)
packets = st.lists(st.tuples(gaps, sizes), min_size=1, max_size=60)
rates = st.lists(
    st.one_of(st.just(0.0), st.floats(1e4, 1e7)), min_size=1, max_size=8
).filter(lambda found: max(found) > 0)
links = st.builds(
    LinkSpec,
    delay_up_s=st.floats(0, 0.2),
    jitter=st.one_of(
        st.just(Jitter()),
        st.builds(
            Jitter,
            st.sampled_from(["uniform", "normal", "pareto"]),
            st.floats(0, 0.05),
            st.floats(0, 0.99),
        ),
    ),
    up_bit_s=st.one_of(st.none(), st.floats(1e4, 1e8)),
    loss=st.floats(0, 0.5),
    queue_bytes=st.one_of(st.none(), st.integers(1500, 20000)),
    outages=st.one_of(
        st.just(Outages()), st.builds(Outages, st.just(((1.0, 2.0), (5.0, 0.5))))
    ),
    seed=st.integers(0, 99),
)


def trace_of(rates: list[float], step_s: float = 0.25) -> Trace:
    return Trace([i * step_s for i in range(len(rates))], rates, len(rates) * step_s)


def deliveries(model: LinkModel, sent: list[tuple[float, int]]) -> list:
    now, found = 0.0, []
    for gap, size in sent:
        now += gap
        found.append((now, size, model.send(now, size)))
    return found


@QUICK
@given(links, packets)
def test_nothing_overtakes_or_arrives_too_early(spec, sent):
    last = departed = 0.0
    for now, _, found in deliveries(LinkModel(spec, "up"), sent):
        assert found.departure_s >= max(now, departed)
        departed = found.departure_s
        if found.arrival_s is not None:
            assert found.arrival_s >= max(last, now + spec.delay_up_s)
            last = found.arrival_s


@QUICK
@given(rates, packets)
def test_no_window_carries_more_than_the_rate(rates, sent):
    trace, model = trace_of(rates), LinkModel(LinkSpec(), "up")
    model._trace = trace
    found = deliveries(model, sent)
    for i, (now, _, first) in enumerate(found):
        # On the link from `now` (or from the departure before) to each later one.
        start = now if i == 0 else max(now, found[i - 1][2].departure_s)
        carried = 0
        for _, size, later in found[i:]:
            carried += size
            room = trace.bits_until(later.departure_s) - trace.bits_until(start)
            assert 8 * carried <= room * (1 + 1e-9) + 1e-3
        assert first.arrival_s is not None


@QUICK
@given(packets)
def test_a_busy_link_carries_every_bit_it_can(sent):
    spec = LinkSpec(up_bit_s=1e6)
    found = deliveries(LinkModel(spec, "up"), [(0.0, size) for _, size in sent])
    total = sum(size for _, size in sent)
    assert found[-1][2].departure_s == pytest.approx(8 * total / 1e6)


@QUICK
@given(links, packets)
def test_the_same_seed_gives_the_same_link(spec, sent):
    one, two = (deliveries(LinkModel(spec, "up"), sent) for _ in range(2))
    assert one == two


def test_the_dice_of_loss_and_jitter_are_apart():
    base = LinkSpec.parse("40ms/10mbit/loss=20%/seed=3")
    shaky = LinkSpec.parse("40ms/10mbit/loss=20%/seed=3/jitter=9ms")
    sent = [(0.1, 100)] * 300
    lost = [
        [bool(found.lost) for _, _, found in deliveries(LinkModel(spec, "up"), sent)]
        for spec in (base, shaky)
    ]
    assert lost[0] == lost[1]
    up, down = (deliveries(LinkModel(base, way), sent) for way in ("up", "down"))
    assert [f.lost for _, _, f in up] != [f.lost for _, _, f in down]
    other = deliveries(LinkModel(base, "up", seed=4), sent)
    assert [f.lost for _, _, f in other] != [f.lost for _, _, f in up]


def test_loss_and_bursts_have_their_long_run_shares():
    plain = LinkModel(LinkSpec(loss=0.03, seed=1), "up")
    bursty = LinkModel(LinkSpec.parse("burst=1%:25%/seed=1"), "up")
    for model, share in ((plain, 0.03), (bursty, 0.01 / 0.26)):
        lost = [model.send(i * 0.01, 100).lost == "loss" for i in range(40000)]
        assert sum(lost) / len(lost) == pytest.approx(share, rel=0.15)
        runs = sum(1 for a, b in zip(lost, lost[1:]) if b and not a)
        mean = 1 / (1 - 0.03) if model is plain else 4.0
        assert sum(lost) / runs == pytest.approx(mean, rel=0.15)


@pytest.mark.parametrize("name", ["driving-5g", "walking-lte", "robot-wifi"])
def test_published_round_trips_come_back(name):
    spec = presets()[name]
    up, down = LinkModel(spec, "up"), LinkModel(spec, "down")
    trips = []
    for i in range(8000):
        there = up.send(i * 60.0, 64).arrival_s
        back = None if there is None else down.send(there, 64).arrival_s
        if back is not None:
            trips.append(back - i * 60.0)
    trips.sort()
    base = spec.rtt_s
    for share, extra in spec.jitter.quantiles[1:-1]:
        found = trips[int(share * len(trips))]
        assert found == pytest.approx(base + extra, rel=0.03 if share < 0.95 else 0.2)
    assert len(trips) / 8000 == pytest.approx(1 - 2 * spec.loss, abs=0.004)


def test_jitter_is_correlated_as_asked():
    model = LinkModel(LinkSpec(jitter=Jitter("uniform", 0.01, 0.62, 0.1)), "up")
    x = [model.send(i * 0.1, 64).arrival_s - i * 0.1 for i in range(20000)]
    mean = sum(x) / len(x)
    spread = sum((a - mean) ** 2 for a in x)
    lag = sum((a - mean) * (b - mean) for a, b in zip(x, x[1:])) / spread
    assert lag == pytest.approx(0.60, abs=0.03)  # 6/pi asin(0.62/2) for uniforms


# Traces


@QUICK
@given(rates, st.floats(0, 20), st.integers(1, 10**6))
def test_a_trace_integrates_exactly(rates, start, nbytes):
    trace = trace_of(rates)
    end = trace.finish(start, nbytes)
    got = trace.bits_until(end) - trace.bits_until(start)
    assert got == pytest.approx(8 * nbytes, rel=1e-6, abs=1e-2)
    assert end >= start
    # A sum over small steps says the same, and so does sending it in two halves.
    half = trace.finish(trace.finish(start, nbytes / 2), nbytes / 2)
    rate = rates[int(half % trace.period_s / 0.25) % len(rates)]
    assert half == pytest.approx(end, rel=1e-6, abs=1e-6) or rate == 0
    if end - start < 50:
        steps = [start + (end - start) * (i + 0.5) / 4000 for i in range(4000)]
        area = sum(rates[int(t % trace.period_s / 0.25) % len(rates)] for t in steps)
        area *= (end - start) / 4000
        assert area == pytest.approx(8 * nbytes, rel=0.02, abs=max(rates) * 0.004)


def test_a_trace_starts_over_at_its_end():
    trace = Trace([0.0, 1.0], [1e6, 3e6], 2.0)
    assert trace.finish(0, 1e6) == pytest.approx(4.0)  # 8 Mbit, 4 Mbit a round
    assert trace.bits_until(2.5) == pytest.approx(4.5e6)


def test_mahimahi_traces_are_read():
    trace = parse_trace("1\n1\n3\n10\n", name="m")
    assert trace.period_s == 0.010
    assert trace.bits_until(0.010) == pytest.approx(4 * 12000)
    assert trace.finish(0, 1500) == pytest.approx(0.0005)
    assert trace.finish(0, 4500) == pytest.approx(0.003)
    assert trace.finish(0, 6001) > 0.010


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "empty"),
        ("time,rate\n0,1\n", "line 1 is neither"),
        ("t_s,mbit_s\n", "no rows"),
        ("t_s,mbit_s\n0,1\n0,2\n", "line 3: the time does not rise"),
        ("t_s,mbit_s\n0,-1\n", "line 2: out of range"),
        ("t_s,mbit_s\n0,nan\n", "line 2: out of range"),
        ("t_s,mbit_s\n0,1,2\n", "line 2: not two numbers"),
        ("t_s,mbit_s\n0,0\n1,0\n", "nothing would ever get through"),
        ("5\n3\n", "line 2: the time falls"),
        ("5\nx\n", "line 2: not a millisecond"),
        ("0\n0\n", "above 0"),
    ],
)
def test_a_damaged_trace_is_refused_by_line(text, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse_trace(text)


@pytest.mark.skipif(not TRACES, reason="the real traces are not here")
@pytest.mark.parametrize("path", TRACES, ids=[path.stem for path in TRACES])
def test_real_traces_keep_their_mean(path):
    rows = [line.split(",") for line in path.read_text().split()[1:]]
    trace = read_trace(path)
    mean = sum(float(rate) for _, rate in rows) / len(rows)
    round_bytes = trace.bits_until(trace.period_s) / 8
    assert round_bytes * 8e-6 / trace.period_s == pytest.approx(mean, rel=1e-3)
    assert trace.finish(3.3, 5 * round_bytes) == pytest.approx(3.3 + 5 * trace.period_s)


# Streams


@QUICK
@given(links, packets)
def test_a_stream_delivers_everything_in_order(spec, sent):
    link = StreamLink(spec, "up")
    now = last = 0.0
    for gap, size in sent:
        now += gap
        found = link.send(now, size)
        assert math.isfinite(found.arrival_s)
        assert found.arrival_s >= max(last, now + spec.delay_up_s)
        last = found.arrival_s
        assert found.wire_bytes >= size + TCP_IP


@pytest.mark.parametrize(
    ("payload", "client", "wire"),
    [(64, True, 122), (64, False, 118), (126, True, 186), (70000, False, None)],
)
def test_bytes_on_the_wire(payload, client, wire):
    link = StreamLink(LinkSpec(), "up" if client else "down")
    found = link.send(0.0, payload).wire_bytes
    if wire is None:
        assert found == payload + 10 + -(-(payload + 10) // MSS) * TCP_IP
    else:
        assert found == wire
    assert websocket_bytes(payload, client=client) < found


def test_an_acknowledgement_of_its_own_when_messages_are_apart():
    link = StreamLink(LinkSpec(), "up")
    assert [link.send(t, 9).ack_bytes for t in (0, 0.01, 0.02, 0.1)] == [52, 0, 0, 52]


def test_a_lost_segment_costs_a_timeout_and_holds_up_what_follows():
    spec = LinkSpec.parse("82ms/loss=1%/seed=5")
    up, down = StreamLink(spec, "up"), StreamLink(spec, "down")
    trips = []
    now = 0.0
    for _ in range(5000):
        back = down.send(up.send(now, 64).arrival_s, 64).arrival_s
        trips.append(back - now)
        now = back
    trips.sort()
    assert trips[2500] == pytest.approx(0.082)
    assert 0.35 < trips[4950] < 0.45  # measured: 393 ms at 1 %
    link = StreamLink(LinkSpec(delay_up_s=0.04, loss=0.99, seed=1), "up")
    first = link.send(0.0, 10).arrival_s
    assert link.send(0.001, 10).arrival_s >= first > rto_s(0.04)


def test_an_outage_delivers_nothing_until_after_its_end():
    spec = LinkSpec.parse("80ms/outage=1s+3s")
    link = StreamLink(spec, "up")
    inside = [link.send(t, 20).arrival_s for t in (0.5, 1.5, 2.0, 3.9, 4.5, 60.0)]
    assert inside[0] == pytest.approx(0.54)
    assert all(4.04 < at < 7.0 for at in inside[1:5])
    assert inside[1:5] == sorted(inside[1:5])
    assert inside[5] == pytest.approx(60.04)


def test_random_outages_are_the_same_whoever_asks_in_whatever_order():
    spec = LinkSpec.parse("outages=10s:2s/seed=8").outages
    ahead, behind = OutagePlan(spec, 8), OutagePlan(spec, 8)
    times = [i * 0.25 for i in range(4000)]
    behind.end_s(900.0)
    found = [ahead.end_s(t) for t in times]
    assert found == [behind.end_s(t) for t in times]
    gone = sum(end is not None for end in found) / len(found)
    assert 0.08 < gone < 0.28  # 2 in 12 in the long run


# Specifications


@QUICK
@given(links)
def test_a_link_survives_its_report(spec):
    assert LinkSpec.from_dict(spec.to_dict()) == spec


def test_the_text_form():
    link = LinkSpec.parse("80ms/up=500kbit/down=2mbit/loss=1%/queue=64kb/seed=7")
    assert (link.delay_up_s, link.delay_down_s) == (0.04, 0.04)
    assert (link.up_bit_s, link.down_bit_s) == (5e5, 2e6)
    assert (link.loss, link.queue_bytes, link.seed) == (0.01, 64000, 7)
    traced = LinkSpec.parse("40ms/trace-up:/a/b.csv,trace-down:c.csv,outage=1s+2s")
    assert (traced.trace_up, traced.trace_down) == ("/a/b.csv", "c.csv")
    assert traced.outages.fixed == ((1.0, 2.0),)
    moving = LinkSpec.parse("driving-5g/20mbit")
    assert moving.jitter.kind == "quantiles" and moving.up_bit_s == 2e7
    assert moving.name == "driving-5g/20mbit" and "5G" in moving.source
    assert LinkSpec.parse("ideal").rtt_s == 0
    assert LinkSpec.parse("poor").loss == 0.01


@pytest.mark.parametrize(
    ("text", "complaint", "hint"),
    [
        ("", "empty", "40ms"),
        ("lann", "no link is called 'lann'", "lan"),
        ("40parsec", "not a time", "ms"),
        ("looss=1%", "no part of a link", "loss="),
        ("loss=120%", "loss is 1.2", "between"),
        ("1bit", "rate up is 1", "between"),
        ("burst=1%", "enter:leave", "burst="),
        ("outage=3s", "start\\+length", "outage="),
        ("queue=10", "holds no packet", "1500"),
        ("jitter=5ms:cauchy", "no jitter 'cauchy'", "normal"),
        ("seed=-1", "no seed", "whole"),
    ],
)
def test_a_wrong_link_is_refused_with_advice(text, complaint, hint):
    with pytest.raises(ConfigError, match=complaint) as caught:
        LinkSpec.parse(text)
    assert hint in caught.value.hint


def test_every_named_link_names_its_source():
    assert {"lan", "wan", "poor", "driving-5g"} <= set(presets())
    assert all(link.source for link in presets().values())


def test_what_waits_for_the_link_is_known():
    """The proxy stops reading by it: it must not run ahead of a slow link for ever."""
    model = LinkModel(LinkSpec.parse("20ms/1mbit"), "up")
    for _ in range(100):
        model.send(0.0, 1250)  # 10 ms each
    assert model.queued_bytes(0.0) == 125_000
    assert model.queued_bytes(0.5) == pytest.approx(62_500, abs=1250)
    assert model.queued_bytes(1.001) == model.queued_bytes(9.0) == 0
