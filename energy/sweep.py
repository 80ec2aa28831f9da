"""``draftwire energy sweep``: one command in several power modes, and the Pareto front.

Faster is not thriftier and slower is not either: on one board the middle mode wins, on
another the fastest.  The tool never changes a mode by itself: the user sets it, or
gives the command that does and agrees to it.
"""

from __future__ import annotations

import shlex
import statistics
import subprocess
from dataclasses import dataclass, field
from typing import Any, Callable, Sequence

from draftwire.energy.record import Recorded
from draftwire.errors import BoardError, ConfigError

__all__ = ["Point", "pareto", "set_mode", "sweep"]


@dataclass
class Point:
    """One power mode.

    Attributes:
        mode: Its name.
        energy_j: Median joules of its runs, per ``per``; None when one has none.
        uncertainty_j: 95 % half-width: the larger of one run's own and the spread.
        seconds: Median seconds, per ``per``.
        per: ``run``, or ``emitted token`` when every run told its tokens.
        runs: The ``energy`` entry of each run.
        pareto: True when no other mode is both faster and thriftier.
    """

    mode: str
    energy_j: float | None
    uncertainty_j: float | None
    seconds: float
    per: str
    runs: list[dict[str, Any]] = field(default_factory=list)
    pareto: bool = False


def set_mode(
    mode: str,
    number: int | None,
    *,
    template: str | None,
    present: Callable[[], str | None],
    agree: Callable[[str], None],
) -> str | None:
    """Bring the board into a mode, by the user's hand or with the user's command.

    Args:
        mode: Name of the mode.
        number: Its id in ``/etc/nvpmodel.conf``, when it has one.
        template: Command with ``{mode}`` and ``{id}``; None asks the user to do it.
        present: Returns the name of the present mode, or None when nobody can tell.
        agree: Asks the user; raises when the answer is no.

    Returns:
        A note for the report when the mode could not be checked, else None.

    Raises:
        BoardError: The board is in another mode afterwards.
        ConfigError: The command fails, or has a field that nobody knows.
    """
    if present() == mode:
        return None
    if template is None:
        agree(f"set power mode {mode}, then continue")
    else:
        if "{id}" in template and number is None:
            raise ConfigError(
                f"no id of mode {mode} in /etc/nvpmodel.conf",
                hint="use {mode} in --set",
            )
        words = [
            word.replace("{mode}", mode).replace("{id}", str(number))
            for word in shlex.split(template)
        ]
        agree(f"run: {shlex.join(words)}")
        try:
            done = subprocess.run(words, check=False)
        except OSError as exc:
            raise ConfigError(f"cannot run {words[0]}: {exc}") from exc
        if done.returncode:
            raise ConfigError(f"{shlex.join(words)} ended with {done.returncode}")
    now = present()
    if now is None:
        return f"nobody can tell whether the board is in mode {mode}: the user says so"
    if now != mode:
        raise BoardError(
            f"the board is in power mode {now}, not {mode}",
            hint="some switches need a reboot; see /etc/nvpmodel.conf for the names",
        )
    return None


def sweep(
    modes: Sequence[str],
    *,
    enter: Callable[[str], None],
    run: Callable[[str, int], Recorded],
    repeats: int = 3,
    settle: Callable[[], None] = lambda: None,
) -> list[Point]:
    """Run in each mode and mark the Pareto front.

    Args:
        modes: Names, in the order to try.
        enter: Brings the board into a mode.
        run: Measures one run of the command in a mode; gets the mode and the number.
        repeats: Runs a mode; the median counts.
        settle: Waits after a change of mode.

    Raises:
        ConfigError: The command failed.
    """
    points = []
    for mode in modes:
        enter(mode)
        settle()
        recorded = [run(mode, number) for number in range(repeats)]
        failed = [r.exit_code for r in recorded if r.exit_code]
        if failed:
            raise ConfigError(f"in mode {mode} the command ended with {failed[0]}")
        points.append(_point(mode, [r.entry for r in recorded]))
        if any(r.interrupted for r in recorded):
            break
    if len({point.per for point in points}) > 1:
        raise ConfigError("some modes told their tokens and some did not")
    pareto(points)
    return points


def _point(mode: str, runs: list[dict[str, Any]]) -> Point:
    seconds = [sum(run["seconds_by_phase"].values()) for run in runs]
    emitted = [run.get("tokens", {}).get("emitted", 0) for run in runs]
    per = "emitted token" if all(emitted) else "run"
    over = [float(count) if per != "run" else 1.0 for count in emitted]
    time = statistics.median(s / n for s, n in zip(seconds, over))
    if any(run["joules"] is None for run in runs):
        return Point(mode, None, None, time, per, runs)
    joules = [run["joules"] / n for run, n in zip(runs, over)]
    own = statistics.median((run["uncertainty"] or 0.0) / n for run, n in zip(runs, over))
    spread = 0.0
    if len(joules) > 1:
        spread = 2.0 * statistics.stdev(joules) / len(joules) ** 0.5
    middle = statistics.median(joules)
    return Point(mode, middle, max(own, spread), time, per, runs)


def pareto(points: Sequence[Point]) -> None:
    """Mark the modes that no other mode beats in time and energy together."""
    for point in points:
        point.pareto = point.energy_j is not None and not any(
            other.energy_j is not None
            and other.energy_j <= point.energy_j
            and other.seconds <= point.seconds
            and (other.energy_j, other.seconds) != (point.energy_j, point.seconds)
            for other in points
        )
