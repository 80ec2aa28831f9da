"""``python -m tools.peace``: one hostile client and its neighbour.

Three processes: a verifier, the enemy, and here a device that drafts all the time. Its
rounds during each attack stand beside those of the quiet before and after it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import random
import re
import resource
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, Awaitable, Iterator, Sequence

from tools.attacker import ATTACKS

from draftwire.bench.child import Child, VerifierProcess
from draftwire.bench.verifier import FAULTS, Load, bench_verifier, draft, enter, text_of
from draftwire.errors import TransportError
from draftwire.io import format_table
from draftwire.packages import TargetPackage, load_target
from draftwire.reference import target_path
from studies.command import Say, start

SCHEMA = "draftwire.bench.peace/1"
ENOUGH, TIMES = 0.8, 3.0  # of its rounds it keeps; its worst round may take so much longer
FLOOD = tuple(name for name in ATTACKS if name.startswith("flood"))
SLICES = 4
_WAITING = "200 waiting devices"
_DESCRIPTORS = 96
_OURS, _THEIRS = "neighbour" * 3, "enemy" * 5


def bench_peace(
    load: Load,
    *,
    attack: bool,
    devices: int = 128,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Measure a neighbour's rounds of ``load`` while others do their worst, for its
    ``seconds`` each attack and each quiet: with ``attack`` all of :data:`ATTACKS`, and so
    many devices, otherwise the floods alone. A TransportError where a process does not
    start or answer.
    """
    rows: list[dict[str, Any]] = []
    special = {_WAITING: 1, "no file descriptors": 64}
    plain = [name for name in (ATTACKS if attack else FLOOD) if name not in special]
    with _verifier(load) as (process, log):
        rows += _measure(load, process, plain, say)
        memory = {"before": rows[0].pop("mib_before"), "after": _mib(process.pid)}
        lines = _lines(log)
    document = {
        "schema": SCHEMA,
        "seconds": load.seconds,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": [],
        "memory_mib": memory,
        "log_lines": lines,
        "attacks": rows,
    }
    for name in special if attack else ():
        if name not in ATTACKS:
            continue
        places = special[name]
        with _verifier(load, places) as (process, log):
            if places > 1:
                most = (_DESCRIPTORS, _DESCRIPTORS)
                resource.prlimit(process.pid, resource.RLIMIT_NOFILE, most)
            (row,) = _measure(load, process, [name], say)
            row.pop("mib_before")
            rows.append({**row, "log_lines": _lines(log)})
    if attack:
        say(f"{devices} devices")
        many = dataclasses.replace(load, devices=devices)
        document["many"] = devices
        (document["devices"],) = bench_verifier(many, (None,))["runs"]
    document["load_average"] = [round(x, 2) for x in os.getloadavg()]
    return document


@contextlib.contextmanager
def _verifier(load: Load, places: int = 64) -> Iterator[tuple[VerifierProcess, Path]]:
    """Run a verifier with two tokens; yield it and its log."""
    with tempfile.TemporaryDirectory() as folder:
        tokens, log = Path(folder, "tokens"), Path(folder, "log")
        tokens.write_text(f"{_OURS} name=neighbour\n{_THEIRS} name=enemy\n")
        tokens.chmod(0o600)
        flags = ["--token-file", str(tokens), "--ping-seconds", "2", "--slots", "16"]
        flags += ["--max-sessions", str(places), "-q"]
        flags += [] if load.threads is None else ["--threads", str(load.threads)]
        with VerifierProcess([load.target], flags=flags, log=log) as process:
            yield process, log


def _measure(
    load: Load, process: VerifierProcess, names: Sequence[str], say: Say
) -> list[dict[str, Any]]:
    """Run the attacks, each between two quiets."""
    package = load_target(load.target)
    enemy = Child("tools.attacker", "the enemy", TransportError)

    async def run() -> list[dict[str, Any]]:
        loop = asyncio.get_running_loop()
        async with Neighbour(load, package, process.port, _OURS) as neighbour:
            mib = _mib(process.pid)
            rows = []

            def ask(name: str, seconds: float) -> asyncio.Future[dict[str, Any]]:
                words = {"attack": name, "port": process.port, "token": _THEIRS}
                words |= {"target": str(load.target), "seconds": seconds}
                return loop.run_in_executor(None, enemy.ask, json.dumps(words), 180.0)

            for name in names:
                say(name)
                # A flood comes in slices: other people's work on this machine drifts.
                slices = SLICES if name in FLOOD else 1
                quiet, during = Phase(), Phase()
                told: dict[str, Any] = {}
                for _ in range(slices):
                    seconds = load.seconds / slices
                    quiet.add(await _phase(process.pid, neighbour.work(seconds / 2)))
                    done = ask(name, seconds)
                    work = neighbour.work(seconds, until=done)
                    during.add(await _phase(process.pid, work))
                    came = await _newcomer(load, package, process.port)
                    for key, value in (await done).items():
                        told[key] = round(told.get(key, 0) + value, 2)
                    await asyncio.sleep(0.2)
                    quiet.add(await _phase(process.pid, neighbour.work(seconds / 2)))
                rows.append(
                    {
                        "attack": name,
                        "share": round(during.rate / quiet.rate, 3),
                        "quiet": quiet.figures(),
                        "during": during.figures(),
                        "times_worst": round(during.worst_s / quiet.worst_s, 2),
                        "mib": _mib(process.pid),
                        "newcomer": came,
                        "enemy": told,
                    }
                )
                if name in (*FLOOD, _WAITING):  # what it costs while nobody drafts
                    cpu_s, begun = _cpu_s(process.pid), time.monotonic()
                    await ask(name, load.seconds * (4 if name == _WAITING else 0.5))
                    spent_s = time.monotonic() - begun
                    alone = (_cpu_s(process.pid) - cpu_s) / spent_s
                    rows[-1]["cores_alone"] = round(alone, 3)
            rows[0]["mib_before"] = mib
            return rows

    try:
        return asyncio.run(run())
    finally:
        enemy.close()


@dataclasses.dataclass
class Phase:
    """What the neighbour and the verifier did in one kind of time."""

    seconds: float = 0.0  # how long that was
    rounds: int = 0  # of the neighbour
    worst_s: float = 0.0  # the longest of them
    cpu_s: float = 0.0  # the verifier's

    def add(self, other: Phase) -> None:
        """Add a slice of it."""
        self.seconds += other.seconds
        self.rounds += other.rounds
        self.worst_s = max(self.worst_s, other.worst_s)
        self.cpu_s += other.cpu_s

    @property
    def rate(self) -> float:
        """Rounds a second."""
        return self.rounds / self.seconds

    def figures(self) -> dict[str, float]:
        """Return it for a report; ``cores`` are the verifier's."""
        return {
            "rounds_per_s": round(self.rate, 1),
            "worst_ms": round(1e3 * self.worst_s, 1),
            "cores": round(self.cpu_s / self.seconds, 3),
        }


class Neighbour:
    """One device that drafts all the time, on a verifier that others use too; a
    TransportError where that does not take it.
    """

    def __init__(self, load: Load, package: TargetPackage, port: int, token: str) -> None:
        self._load, self._package, self._token = load, package, token
        self._url = f"ws://127.0.0.1:{port}"
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Neighbour:
        rng = random.Random(self._load.seed)
        self._prompt = [rng.randrange(3, 200) for _ in range(16)]
        try:
            self._device = await enter(self._stack, self._url, self._package, self._token)
            self._text = await text_of(self._device, self._prompt, self._load.tokens)
        except FAULTS as error:
            await self._stack.aclose()
            said = f"the verifier does not take the device: {error}"
            raise TransportError(said) from error
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def work(self, seconds: float, until: asyncio.Future[Any] | None = None) -> Phase:
        """Draft for some time, or until something is done, and count the rounds; a
        TransportError where the verifier ends it, or the text is not the target's.
        """
        rounds: list[float] = []
        load, start = self._load, time.perf_counter()

        def going() -> bool:
            if until is not None:
                return not until.done()
            return time.perf_counter() < start + seconds

        def count(seconds: float, tokens: int) -> None:
            rounds.append(seconds)

        rng = random.Random(load.seed)
        try:
            while going():
                await draft(self._device, self._prompt, self._text, load, rng, count)
        except FAULTS as error:
            raise TransportError(f"the neighbour is hurt: {error}") from error
        return Phase(time.perf_counter() - start, len(rounds), max(rounds))


async def _phase(pid: int, work: Awaitable[Phase]) -> Phase:
    cpu_s, found = _cpu_s(pid), await work
    return dataclasses.replace(found, cpu_s=_cpu_s(pid) - cpu_s)


async def _newcomer(load: Load, package: Any, port: int) -> str:
    """Say whether a device that comes now is taken."""
    try:
        async with Neighbour(load, package, port, _OURS):
            return "served"
    except TransportError as error:
        return str(error)


def _mib(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return round(int(found[1]) / 1024, 1) if found else 0.0


def _cpu_s(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _lines(log: Path) -> int:
    lines = log.read_text(errors="replace").splitlines()
    return sum(not line.startswith("listening on ") for line in lines)


def _hurts(row: dict[str, Any]) -> bool:
    return bool(row["share"] < ENOUGH or row["times_worst"] >= TIMES)


def render(document: dict[str, Any]) -> str:
    """Return the document as a table for people."""
    rows = [
        [
            row["attack"],
            f"{row['share']:.2f}",
            f"{row['quiet']['worst_ms']:.0f}",
            f"{row['during']['worst_ms']:.0f}",
            f"{row['times_worst']:.1f}",
            f"{row['quiet']['cores']:.2f}",
            f"{row['during']['cores']:.2f}",
            f"{row['cores_alone']:.3f}" if "cores_alone" in row else None,
            f"{row['mib']:.0f}",
            row["newcomer"],
            ", ".join(f"{k} {v}" for k, v in row["enemy"].items()),
        ]
        for row in document["attacks"]
    ]
    head = ["", "share of rounds", "worst ms quiet", "during", "times"]
    head += ["cores quiet", "during", "attack alone", "MiB"]
    memory = document["memory_mib"]
    lines = [
        f"{document['seconds']:g} s each, {document['cores']} cores, load average "
        f"{document['load_average'][0]:g}",
        "",
        format_table([*head, "a newcomer is", "the enemy"], rows),
        "",
        f"memory of the verifier: {memory['before']} MiB before, {memory['after']} after; "
        f"{document['log_lines']} lines of log",
    ]
    for row in document["attacks"]:
        if "log_lines" in row:
            lines.append(f"{row['attack']}: {row['log_lines']} lines of log")
    floods = [row for row in document["attacks"] if row["attack"] in FLOOD]
    hurt = [row["attack"] for row in floods if _hurts(row)]
    lines.append(
        f"floods: the neighbour keeps at least {ENOUGH:g} of its rounds, and its worst "
        f"round stays under {TIMES:g} times its quiet worst: "
        + (f"not met by {', '.join(hurt)}" if hurt else "met")
    )
    many = document.get("devices")
    if many is not None:
        lines.append(
            f"{document['many']} devices: {many['tokens_per_s']} tokens/s, "
            f"{many['errors']} errors, smallest share of the mean "
            f"{many['share']['min']}, Jain's index {many['share']['jain']}"
        )
    return "\n".join(lines)


FLAGS = """
--target DIR             target package (default: the reference one)
--attack                 every attack there is, not the floods of cheap frames alone
--devices N =128         at once, at the end of --attack
--seconds S:positive =60  an attack, and each quiet
--block N =4             drafted tokens
--acceptance P:share =0.8  of a draft
--tokens N =64           of a text
--threads N              of the verifier's engine
"""


def _study(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    names = ("seconds", "block", "acceptance", "tokens", "threads")
    how = {name: getattr(args, name) for name in names}
    load = Load(args.target or target_path("v1"), **how)
    return bench_peace(load, attack=args.attack, devices=args.devices, say=say)


QUESTION = "What a device has of a verifier while another one attacks it."
main = partial(start, "tools.peace", QUESTION, FLAGS, _study, render)

if __name__ == "__main__":
    sys.exit(main())
