"""The channel, with times made up: matching, steps, stalls, races; and the radio."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftwire.errors import ConfigError
from draftwire.runtime.pacing.channel import Channel
from draftwire.runtime.pacing.path import Path
from draftwire.runtime.pacing.radio import parse_iw, parse_mmcli, read_radio
from draftwire.transport.messages import (
    Block,
    Commit,
    Finish,
    Open,
    Opened,
    Resume,
    Resumed,
)


def opened(channel, t_s=0.0, rtt_s=0.04, objective="cost"):
    request = Open((1, 2), "greedy", 0.0, 0, 1.0, 0, 500, objective=objective)
    channel.sent(t_s, request, 100)
    channel.received(t_s + rtt_s, Opened())


def block(base, tokens, epoch=0, **options):
    return Block(epoch, base, tuple(tokens), **options)


def stop_and_wait(channel, rounds, rtt_s, *, rate=None, sizes=(80,), t_s=1.0, at=0, seed=1):
    """Play rounds of three drafts, all accepted; return time and position."""
    rng = random.Random(seed)
    for _ in range(rounds):
        size = rng.choice(sizes)
        channel.sent(t_s, block(at, (1, 2, 3)), size)
        trip = rtt_s(rng) if callable(rtt_s) else rtt_s
        t_s += trip + (size / rate if rate else 0.0) + 0.005 + 0.03
        found = channel.received(t_s, Commit(0, 3, 9, Finish.NOT_YET, 0.005, 0.03))
        assert (found.tokens, found.drafted, found.accepted) == (4, 3, 3)
        at += 4
        t_s += 0.02
    return t_s, at


def test_the_verifiers_own_time_is_taken_off():
    channel = Channel()
    opened(channel)
    stop_and_wait(channel, 20, 0.04)
    assert channel.path.rtt_s == pytest.approx(0.04, rel=0.01)
    assert channel.up_bytes_s is None, "equal sizes tell no rate"
    report = channel.report()
    assert report["rtt_ms"] == pytest.approx(40, rel=0.01)
    assert report["up_mbit_s"] is None and report["stalls"] == 0


def test_sizes_tell_the_rate():
    channel = Channel()
    stop_and_wait(channel, 25, 0.04, rate=50_000.0, sizes=(90, 400, 900))
    assert channel.up_bytes_s == pytest.approx(50_000, rel=0.05)
    assert channel.path.rtt_s == pytest.approx(0.04, rel=0.1)


def test_a_step_is_followed_within_a_few_rounds():
    channel = Channel()
    t_s, at = stop_and_wait(channel, 30, lambda rng: 0.02 + rng.random() * 0.002)
    stop_and_wait(channel, 4, lambda rng: 0.15 + rng.random() * 0.004, t_s=t_s, at=at)
    assert channel.path.rtt_s == pytest.approx(0.152, rel=0.1)
    assert channel.path.stalls <= 3


def test_what_piled_up_before_a_change_was_seen_tells_the_rate():
    """Pings of one size over a link that is slow from one frame on, in a busy queue."""
    channel, free_s, t_s = Channel(), 0.0, 0.0
    out = []
    for n in range(40):
        t_s = 0.1 * n
        rate = 1e9 if n < 25 else 500.0
        behind = n % 3 == 2  # behind a frame of the stream
        if behind:
            channel.sent(t_s, block(n, (1,)), 70)
        channel.pinged(t_s, 62, behind)
        for nbytes in [70] * behind + [62]:
            free_s = max(free_s, t_s) + nbytes / rate
        out.append(free_s + 0.04)
        while out and out[0] <= t_s + 0.1:
            channel.ponged(out.pop(0))
    assert channel.up_bytes_s == pytest.approx(500.0, rel=0.05)
    assert channel.path.rtt_s == pytest.approx(0.04, rel=0.1)


def test_a_lost_packet_is_a_stall_and_no_round_trip():
    channel = Channel()

    def trip(rng):
        return 0.4 if rng.random() < 0.05 else 0.04 + rng.random() * 0.004

    stop_and_wait(channel, 200, trip)
    assert channel.path.rtt_s == pytest.approx(0.042, rel=0.1)
    assert 3 <= channel.path.stalls <= 20
    assert channel.path.rtt_s < channel.path.mean_rtt_s < 0.1


def test_outages_are_counted():
    channel = Channel()
    channel.lost(5.0)
    channel.lost(5.5)
    channel.back(8.0)
    channel.back(9.0)
    assert (channel.outages, channel.outage_s) == (1, 3.0)
    channel.sent(9.0, Resume(b"i" * 8, b"s" * 16, 7), 80)
    channel.received(9.0, Resumed(3, 7, (1, 2)))
    channel.sent(9.1, block(9, (4,), epoch=3), 80)
    found = channel.received(9.2, Commit(3, 1, 5))
    assert found.drafted == 1 and channel.in_flight == 0


def test_a_pipeline_is_matched_by_position():
    channel = Channel()
    opened(channel)
    channel.sent(1.00, block(0, (1, 2)), 80)
    channel.sent(1.02, block(2, (3, 4)), 80)
    channel.sent(1.03, block(4, (5, 6)), 80)
    found = channel.received(1.08, Commit(0, 2, 3, compute_s=0.04))  # the bonus was guessed
    assert (found.drafted, found.in_flight) == (2, 2)
    assert found.network_s == pytest.approx(0.04)
    # Both others in one forward; the third block is rejected at its second token.
    found = channel.received(1.12, Commit(0, 2, 7, compute_s=0.04))
    assert (found.drafted, found.accepted, found.in_flight) == (4, 2, 0)
    assert found.network_s is None, "it waited behind the block before"
    channel.sent(1.15, block(6, (8,), epoch=1), 80)
    found = channel.received(1.23, Commit(1, 1, 9, compute_s=0.04))
    assert found.network_s == pytest.approx(0.04)
    assert channel.path.rtt_s == pytest.approx(0.04, rel=0.01)


def test_a_race_commits_without_blocks_and_passes_others():
    channel = Channel()
    opened(channel, objective="latency")
    channel.sent(1.0, block(0, (1,), race=True), 80)
    found = channel.received(1.001, Commit(0, 0, 1, compute_s=0.03))
    assert found.drafted == 0 and found.network_s is None, "it had not arrived"
    found = channel.received(1.031, Commit(0, 0, 2, compute_s=0.03))
    assert found.wait_s is None and channel.in_flight == 0
    t_s, at, rng = 1.1, 2, random.Random(1)
    for _ in range(120):  # the model steps all the time: a block waits up to a step
        channel.sent(t_s, block(at, (5,), race=True), 80)
        t_s += 0.04 + rng.random() * 0.03 + 0.03
        channel.received(t_s, Commit(0, 1, 6, compute_s=0.03))
        at += 2
    assert channel.path.rtt_s == pytest.approx(0.04, rel=0.15)


def test_dead_branches_are_never_answered():
    channel = Channel()
    opened(channel)
    channel.sent(1.0, block(0, (1, 2, 3)), 80)
    channel.sent(1.01, block(3, (4,)), 80)
    found = channel.received(1.1, Commit(0, 1, 8, compute_s=0.05))
    assert (found.drafted, found.tokens, found.in_flight) == (3, 2, 0)
    channel.sent(1.11, block(2, (), epoch=1), 70)  # asks for a token
    found = channel.received(1.2, Commit(1, 0, 8, compute_s=0.05))
    assert found.network_s == pytest.approx(0.04) and channel.in_flight == 0


# ---- readings of the radio, from what the programs print

LTE = (
    '{"modem":{"signal":{"5g":{"rsrp":"--"},"lte":{"rsrp":"-97.00","rssi":"-65"},'
    '"refresh":{"rate":"5"}}}}'
)
WIFI = """Connected to 00:11:22:33:44:55 (on wlan0)
\tSSID: shop floor
\tsignal: -61 dBm
\trx bitrate: 130.0 MBit/s MCS 15
\ttx bitrate: 86.7 MBit/s MCS 4 short GI
"""


def test_what_the_programs_print():
    assert parse_mmcli(LTE) == {"signal_dbm": -97.0, "technology": "lte"}
    found = parse_iw(WIFI)
    assert found == {"signal_dbm": -61.0, "technology": "wifi", "tx_mbit_s": 86.7}


@pytest.mark.parametrize(
    "text", ["", "Not connected.", "{}", "[1]", '{"modem":{"signal":3}}']
)
def test_silence_is_no_reading(text):
    assert parse_mmcli(text) == {} and parse_iw(text) == {}


def test_sources():
    asked = []

    def run(words):
        asked.append(list(words))
        return WIFI

    assert read_radio("iw:wlp2s0", run=run)["signal_dbm"] == -61.0
    assert asked == [["iw", "dev", "wlp2s0", "link"]]
    assert read_radio("mmcli", run=lambda words: LTE)["source"] == "mmcli"
    with pytest.raises(ConfigError, match="radio source"):
        read_radio("psychic")


def test_a_missing_program_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="cannot run iw"):
        read_radio("iw")


@given(
    st.lists(
        st.tuples(
            st.floats(0.001, 60.0), st.floats(0.001, 90.0), st.sampled_from((0, 40, 900))
        ),
        min_size=1,
        max_size=60,
    )
)
@settings(max_examples=60, deadline=None)
def test_no_answers_break_the_path_however_late_and_seldom(answers):
    """Of a link of some kbit/s all answers may be older than what is kept."""
    path, now = Path(), 0.0
    for wait_s, trip_s, nbytes in answers:
        now += wait_s
        mark = path.sent(now, nbytes)
        path.answered(now + trip_s, mark, trip_s)
        assert path.rtt_s is not None and path.rtt_s >= 0 and path.byte_s >= 0
        now = max(now, now + trip_s - 0.5)
