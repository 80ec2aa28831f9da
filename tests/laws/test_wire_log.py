"""A live run that is logged on both sides: the same messages, and the same text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tools.faults import FaultProxy

import draftwire
from draftwire.bench.child import VerifierProcess
from draftwire.transport.wirelog import read_wire_log

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
OPTIONS = {"max_new_tokens": 60, "temperature": 0.8, "seed": 3, "pipeline": 2}


def said(events, connection):
    """Return what crossed a connection in each direction, in order.

    But for durations: they are rounded on the wire.
    """
    return {
        way: [
            (
                event.kind,
                event.bytes,
                {k: v for k, v in event.fields.items() if not k.endswith("_s")},
            )
            for event in events
            if event.connection == connection and event.direction == way
            if event.kind not in ("ping", "pong")
        ]
        for way in ("up", "down")
    }


def test_both_ends_log_the_same_messages(tmp_path):
    ours, theirs = tmp_path / "device", tmp_path / "verifier"
    verifier = VerifierProcess(
        [FIXTURES / "tiny.target"], flags=["--wire-log", str(theirs)]
    )
    verifier.start()
    proxy = FaultProxy(verifier.port)
    try:
        ids = {}
        for log in (None, ours):
            with draftwire.connect(
                proxy.url, draft=FIXTURES / "tiny.draft", wire_log=log, silence_s=15
            ) as session:
                if log is not None:
                    proxy.after([100])  # when some ten blocks have been answered
                list(session.generate([5, 17, 3], **OPTIONS))
                ids[log] = session.report["token_ids"]
        assert ids[None] == ids[ours]
    finally:
        proxy.close()
        verifier.kill()
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
    run = [sys.executable, "-m", "draftwire", "protocol", "log", str(ours)]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    shown = subprocess.run(run, env=env, check=True, capture_output=True, text=True).stdout
    assert len(shown.splitlines()) == len(mine) and "(not shown)" in shown
    run += ["--json", "--kind", "commit"]
    text = subprocess.run(run, env=env, check=True, capture_output=True, text=True).stdout
    assert len(json.loads(text)["events"]) == sum(e.kind == "commit" for e in mine)


def test_a_live_run_can_be_replayed(tmp_path):
    log = tmp_path / "wire"
    verifier = VerifierProcess([FIXTURES / "tiny.target"])
    verifier.start()
    try:
        with draftwire.connect(
            f"ws://127.0.0.1:{verifier.port}",
            draft=FIXTURES / "tiny.draft",
            wire_log=log,
            silence_s=15,
        ) as session:
            for _ in session.generate(
                [5, 17, 3], max_new_tokens=60, temperature=0.8, seed=3
            ):
                pass
            report = session.report
    finally:
        verifier.kill()
    run = [sys.executable, "-m", "draftwire", "bench", "simulate", "--replay", str(log)]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    run += ["--scheme", "cloud", "--json", "-"]
    text = subprocess.run(run, env=env, check=True, capture_output=True, text=True).stdout
    recorded, simulated, alone = json.loads(text)["rows"]
    assert recorded["tokens"] == simulated["tokens"] == report["tokens"]
    assert recorded["accepted_per_block"] == report["accepted"] / report["rounds"]
    assert recorded["forwards_per_token"] * report["tokens"] == report["rounds"]
    assert alone["forwards_per_token"] == 1
    assert recorded["tokens_per_s"] > 0 and simulated["tokens_per_s"] > 0
