"""``draftwire energy record``: a meter, an account and a file, around a command or a
time.

Ctrl-C ends the measurement and not the record of it; a full disk ends the file and not
the measurement.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import threading
import time
from typing import Any, NamedTuple, Sequence

from draftwire.energy.account.account import COUNTS, Account
from draftwire.energy.account.integral import Vector
from draftwire.energy.account.meter import Meter
from draftwire.energy.files.recording import Recorder
from draftwire.energy.live.marks import ENVIRONMENT, MarkListener
from draftwire.energy.live.pulse import make_pulse
from draftwire.errors import ConfigError
from draftwire.io import end_child

PATIENCE_S = 5.0  # that a command may take to end


class Recorded(NamedTuple):
    """What came of a recording."""

    entry: dict[str, Any]  # as ``Account.result``
    exit_code: int | None  # of the command, or None
    interrupted: bool  # true when Ctrl-C or SIGTERM ended it
    truncated: str  # why the file ends early, or ""


def pull(marks: MarkListener, account: Account, recorder: Recorder) -> None:
    """Bring what was marked since into account and file."""
    for line in marks.new():
        if "phase" in line:
            account.phase(line["phase"], line["t"])
            recorder.phase(line["t"], line["phase"])
        known = {k: v for k, v in line["tokens"].items() if k in COUNTS}
        if known:
            account.count(**known)
            recorder.tokens(**known)


def record(
    meter: Meter,
    recorder: Recorder,
    *,
    seconds: float | None = None,
    command: Sequence[str] = (),
    pulse: bool = False,
    stdout: Any = None,
) -> Recorded:
    """Measure for some seconds, during a command (its output goes to ``stdout``), or until
    Ctrl-C; ``pulse``: begin and end with the load pulse that an external meter is aligned
    by. ConfigError: the command cannot be started."""
    stop = threading.Event()
    main = threading.current_thread() is threading.main_thread()
    old = signal.signal(signal.SIGTERM, lambda *_: stop.set()) if main else None
    marks = MarkListener()
    account = Account(meter, mirror=False)

    def tap(t_ns: int, watts: Vector, joules: Vector | None) -> None:
        pull(marks, account, recorder)  # what was marked comes ahead of each sample
        recorder.sample(t_ns, watts, joules)

    exit_code, interrupted = None, False
    try:
        meter.add_listener(tap)
        if pulse:
            _pulse(recorder)
        account.start("run")
        recorder.phase(account.start_ns, "run")
        end_s = time.monotonic() + (math.inf if seconds is None else seconds)
        try:
            if command:
                exit_code = _run(command, marks.path, stop, end_s, stdout)
            else:
                _wait(stop, meter, end_s)
                if meter.source.over and meter.last is not None:
                    account.close_at(meter.last.t_ns)
        except KeyboardInterrupt:
            interrupted = True
        interrupted = interrupted or stop.is_set()
        pull(marks, account, recorder)
        entry = account.result()
        # The recording has the very edges of the account: read back, it says the same.
        end = account.end_ns
        if pulse and not interrupted:
            _pulse(recorder)
    finally:
        meter.remove_listener(tap)
        if main:
            signal.signal(signal.SIGTERM, old)
        marks.close()
    recorder.end(end, entry)
    return Recorded(entry, exit_code, interrupted, recorder.truncated)


def _pulse(recorder: Recorder) -> None:
    for place, edge in enumerate(make_pulse()):
        recorder.mark(edge, "pulse off" if place % 2 else "pulse on")


def _wait(stop: threading.Event, meter: Meter, end_s: float) -> None:
    """Wait for the time, for a signal, or for the end of what is played."""
    while not meter.source.over and (left_s := end_s - time.monotonic()) > 0:
        if stop.wait(min(left_s, 0.1)):
            return


def _run(
    command: Sequence[str], marks: str, stop: threading.Event, end_s: float, stdout: Any
) -> int:
    try:
        environment = {**os.environ, ENVIRONMENT: marks}
        child = subprocess.Popen(list(command), env=environment, stdout=stdout)
    except OSError as exc:
        raise ConfigError(f"cannot start {command[0]}: {exc.strerror}") from exc
    try:
        while True:
            if stop.is_set() or time.monotonic() > end_s:
                end_child(child, PATIENCE_S)
            try:
                return child.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
    except KeyboardInterrupt:  # the terminal sent it to the command as well
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(PATIENCE_S)
        end_child(child, PATIENCE_S)
        raise
