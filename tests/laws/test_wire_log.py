"""A live run that is logged on both sides: the same messages, and the same text."""

from __future__ import annotations

import json

import pytest
from live import connect, ids_of, serving
from places import draftwire, full_disk
from tools.faults import FaultProxy

from draftwire.errors import OutputError
from draftwire.transport.wirelog import read_wire_log

PROMPT = [5, 17, 3]
OPTIONS = {"max_new_tokens": 60, "temperature": 0.8, "seed": 3}


def said(events, connection):
    """Return what crossed a connection in each direction, in order.

    But for durations: they are rounded on the wire.
    """
    found = {"up": [], "down": []}
    for event in events:
        if event.connection == connection and event.direction in found:
            fields = {k: v for k, v in event.fields.items() if not k.endswith("_s")}
            if event.kind not in ("ping", "pong"):
                found[event.direction].append((event.kind, event.bytes, fields))
    return found


def test_both_ends_log_the_same_messages(tmp_path):
    ours, theirs, ids = tmp_path / "device", tmp_path / "verifier", {}
    with serving(flags=["--wire-log", str(theirs)]) as verifier:
        proxy = FaultProxy(verifier.port)
        for log in (None, ours):
            with connect(proxy, wire_log=log) as session:
                if log is not None:
                    proxy.after([100])  # when some ten blocks have been answered
                ids[log] = ids_of(session.generate(PROMPT, pipeline=2, **OPTIONS))
        proxy.close()
    assert ids[None] == ids[ours]
    mine, other = list(read_wire_log(ours)), list(read_wire_log(theirs))
    last = max(event.connection for event in mine)
    assert last >= 2  # it came back
    # The verifier's port was probed and served a session before: its last is our last.
    a, b = said(mine, last), said(other, max(event.connection for event in other))
    for way in ("up", "down"):  # the end may have been on its way, or in a buffer
        shared = min(len(a[way]), len(b[way]))
        assert a[way][:shared] == b[way][:shared]
        assert shared >= max(len(a[way]), len(b[way])) - 2 and shared > 5
    assert a["down"][-1][2].get("finish") in ("length", "stop")
    assert [e for e in mine if e.kind == "closed"]
    shown = draftwire("protocol", "log", ours).stdout
    assert len(shown.splitlines()) == len(mine) and "(not shown)" in shown
    text = draftwire("protocol", "log", ours, "--json", "--kind", "commit").stdout
    assert len(json.loads(text)["events"]) == sum(e.kind == "commit" for e in mine)


def test_a_live_run_can_be_replayed(verifier, tmp_path):
    log = tmp_path / "wire"
    with connect(verifier, wire_log=log) as session:
        list(session.generate(PROMPT, **OPTIONS))
        report = session.report
    words = ("bench", "simulate", "--replay", log, "--scheme", "cloud", "--json", "-")
    recorded, simulated, alone = json.loads(draftwire(*words).stdout)["rows"]
    assert recorded["tokens"] == simulated["tokens"] == report["tokens"]
    assert recorded["accepted_per_block"] == report["accepted"] / report["rounds"]
    assert recorded["forwards_per_token"] == report["rounds"] / report["tokens"]
    assert alone["forwards_per_token"] == 1
    assert recorded["tokens_per_s"] > 0 and simulated["tokens_per_s"] > 0


def test_a_full_disk_ends_the_log_and_not_the_text(verifier, tmp_path):
    with full_disk(2000), pytest.raises(OutputError, match="wire log .* is not whole"):
        with connect(verifier, wire_log=tmp_path / "wire") as session:
            ids = ids_of(session.generate(PROMPT, **OPTIONS))
    assert session.report["finish"] in ("length", "stop")
    assert session.report["token_ids"] == ids
