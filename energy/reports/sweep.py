"""``draftwire energy sweep``: one command in several power modes, and the Pareto front.

Faster is not thriftier and slower is not either: on one board the middle mode wins, on
another the fastest.  The tool never changes a mode by itself: the user sets it, or
gives the command that does and agrees to it.  A run that is done is never lost, and the
mode that the board was in comes back however the sweep ends.
"""

from __future__ import annotations

import shlex
import statistics
import subprocess
from dataclasses import dataclass, field
from typing import Any, Callable, Sequence

from draftwire.energy.live.record import Recorded
from draftwire.energy.reports.compare import spread
from draftwire.errors import BoardError, ConfigError, DraftwireError


@dataclass
class Point:
    """One power mode: means of its runs per ``per`` with 95 % half-widths (the larger of a
    run's own and of the spread); None when a run has none."""

    mode: str  # its name
    energy_j: float | None = None
    uncertainty_j: float | None = None
    seconds: float | None = None  # mean seconds, per ``per``
    per: str = "run"  # ``run``, or ``emitted token`` when every run told its tokens
    runs: list[dict[str, Any]] = field(default_factory=list)
    pareto: bool = False  # true when no other mode is surely both faster and thriftier
    uncertainty_s: float = 0.0  # 95 % half-width of the seconds, 0 for a single run
    error: str = ""  # why there is nothing, or not all, of this mode

    def add_up(self, per: str = "") -> None:
        """Make the figures from the runs."""
        runs = self.runs
        emitted = [run.get("tokens", {}).get("emitted", 0) for run in runs]
        self.per = per or ("emitted token" if runs and all(emitted) else "run")
        if not runs:
            return
        over = [float(count) if self.per != "run" else 1.0 for count in emitted]
        times = [sum(r["seconds_by_phase"].values()) / n for r, n in zip(runs, over)]
        self.seconds, self.uncertainty_s = statistics.fmean(times), spread(times)
        self.energy_j = self.uncertainty_j = None
        if all(run["joules"] is not None for run in runs):
            joules = [run["joules"] / n for run, n in zip(runs, over)]
            halves = [(r["uncertainty"] or 0.0) / n for r, n in zip(runs, over)]
            self.energy_j = statistics.fmean(joules)
            self.uncertainty_j = max(statistics.fmean(halves), spread(joules))

    def beats(self, other: Point) -> bool:
        """Tell whether it is surely both faster and thriftier."""
        a, b = self, other
        if a.energy_j is None or b.energy_j is None or a.seconds is None or a is b:
            return False
        assert b.seconds is not None
        joules = ((a.uncertainty_j or 0.0) ** 2 + (b.uncertainty_j or 0.0) ** 2) ** 0.5
        seconds = (a.uncertainty_s**2 + b.uncertainty_s**2) ** 0.5
        surely = a.energy_j <= b.energy_j - joules and a.seconds <= b.seconds - seconds
        return surely and (a.energy_j, a.seconds) != (b.energy_j, b.seconds)


def set_mode(
    mode: str,
    number: int | None,
    *,
    template: str | None,
    present: Callable[[], str | None],
    agree: Callable[[str], None],
) -> str | None:
    """Bring the board into a mode, by the user's hand or a command with ``{mode}`` and
    ``{id}``; return a note when ``present`` cannot tell. BoardError: it is in another
    mode afterwards; ConfigError: the command fails."""
    if present() == mode:
        return None
    if template is None:
        agree(f"set power mode {mode}, then continue")
    else:
        if "{id}" in template and number is None:
            why = f"no id of mode {mode} in /etc/nvpmodel.conf"
            raise ConfigError(why, hint="use {mode} in --set")
        words = [
            word.replace("{mode}", mode).replace("{id}", str(number))
            for word in shlex.split(template)
        ]
        agree(f"run: {shlex.join(words)}")
        try:
            done = subprocess.run(words, check=False, stdout=subprocess.DEVNULL)
        except OSError as exc:
            raise ConfigError(f"cannot run {words[0]}: {exc}") from exc
        if done.returncode:
            raise ConfigError(f"{shlex.join(words)} ended with {done.returncode}")
    now = present()
    if now is None:
        return f"nobody can tell whether the board is in mode {mode}: the user says so"
    if now != mode:
        why = f"the board is in power mode {now}, not {mode}"
        hint = "some switches need a reboot; see /etc/nvpmodel.conf for the names"
        raise BoardError(why, hint=hint)
    return None


def sweep(
    modes: Sequence[str],
    *,
    enter: Callable[[str], None],
    run: Callable[[str, int], Recorded],
    repeats: int = 3,
    leave: Callable[[], None],
    done: Callable[[list[Point]], None],
) -> list[Point]:
    """Run in each mode and mark the Pareto front. A mode that fails is noted and the next
    one tried; Ctrl-C keeps what is done. ``leave`` brings the board back on every exit,
    ``done`` gets the points after every run, to keep them."""
    points: list[Point] = []
    try:
        for mode in modes:
            point = Point(mode)
            points.append(point)
            try:
                enter(mode)
                for number in range(repeats):
                    recorded = run(mode, number)
                    if recorded.interrupted:  # which ends the command as well
                        raise KeyboardInterrupt
                    if recorded.exit_code:
                        code = recorded.exit_code
                        raise ConfigError(f"in mode {mode} the command ended with {code}")
                    point.runs.append(recorded.entry)
                    point.add_up()
                    done(points)
            except DraftwireError as exc:
                point.error = str(exc)
            except KeyboardInterrupt:
                point.error = "interrupted"
                break
    finally:
        leave()
    if len({point.per for point in points if point.runs}) > 1:
        for point in points:
            point.add_up("run")
    pareto(points)
    done(points)
    return points


def pareto(points: Sequence[Point]) -> None:
    """Mark the modes that no other mode surely beats in time and energy together."""
    for point in points:
        beaten = any(other.beats(point) for other in points)
        point.pareto = point.energy_j is not None and not beaten
