"""``python -m tools.fleet``: verifiers behind a gateway come and go, and no token is lost.

Verifier processes, a gateway process and devices, each a real session in a thread of its
own. While they generate texts, a verifier is killed, comes back, is drained by its signal
and by the gateway's list, and a new one is added; at the end the gateway itself is killed
and started again. Every text must be the one that a verifier gives without all that.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Sequence

import draftwire
from draftwire import reference
from draftwire.bench.child import VerifierProcess
from draftwire.cli._common import fields_of
from draftwire.errors import ConfigError, DraftwireError
from draftwire.transport.dial import web
from studies.command import Say, markdown, start

SCHEMA = "draftwire.fleet/1"
EVENTS = ("nothing", "killed", "back", "drained", "left out", "added", "gateway killed")
_TEXTS = 4
_WAITS = "wait_median_s", "wait_worst_s"


@dataclass(frozen=True)
class Settings:
    """What runs."""

    draft: Path | None = None  # draft package, None for the reference one
    target: Path | None = None  # target package, None for the reference one
    verifiers: int = 3  # at first
    devices: int = 6  # sessions
    rounds: int = 1  # times that all events happen
    seconds: float = 6.0  # for each event
    tokens: int = 96  # of a text


@dataclass
class _Device:
    """What one device has seen: when tokens came, and what went wrong."""

    came: list[tuple[float, int]] = field(default_factory=list)
    texts: int = 0
    wrong: int = 0
    reconnects: int = 0


class _Fleet:
    """The processes, and the list from which the gateway knows the verifiers."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._target = settings.target or reference.target_path("v1")
        self._folder = folder
        self.list = folder / "verifiers"
        self.serving: list[VerifierProcess] = []
        self._old: list[VerifierProcess] = []
        for _ in range(settings.verifiers):
            self.add()
        flags = ["--to-file", str(self.list), "--health-seconds", "0.5"]
        log = folder / "gateway.log"
        self.gateway = VerifierProcess([], flags=flags, log=log, command="gateway")
        self.gateway.start()

    def add(self) -> None:
        number = len(self.serving) + len(self._old)
        flags = ["--threads", "1", "--drain-timeout", "2"]
        log = self._folder / f"verifier-{number}.log"
        one = VerifierProcess([self._target], flags=flags, log=log)
        one.start()
        self.serving.append(one)
        self.write()

    def write(self, *words: str) -> None:
        """Write the list, ``words`` behind the first ones."""
        lines = [one.url for one in self.serving]
        lines[: len(words)] = [f"{line} {word}" for line, word in zip(lines, words)]
        self.list.write_text("\n".join(lines) + "\n")

    def happen(self, event: str) -> None:
        """Let one of :data:`EVENTS` happen; the first verifier is who it happens to."""
        if event == "killed":
            self.serving[0].kill()
        elif event == "back":
            self.serving[0].start()
        elif event == "drained":
            self.serving[0].drain()
        elif event == "left out":
            gone = self.serving.pop(0)
            self._old.append(gone)
            self.write("drain")
        elif event == "added":
            self.add()
        elif event == "gateway killed":
            self.gateway.kill()
            self.gateway.start()

    def close(self) -> None:
        for process in (self.gateway, *self.serving, *self._old):
            process.kill()


def bench_fleet(settings: Settings, say: Say = print) -> dict[str, Any]:
    """Run devices through all events; return texts and tokens, how many texts were wrong
    (0), and for each event how many seconds the devices had to wait for a token around it.
    """
    draft = str(settings.draft or reference.draft_path())
    prompts = [[11 + 7 * number, 23, 5 + number] for number in range(_TEXTS)]
    with tempfile.TemporaryDirectory() as folder:
        fleet = _Fleet(settings, Path(folder))
        devices = [_Device() for _ in range(settings.devices)]
        over = threading.Event()
        try:
            say("the texts without a gateway")
            alone, beside = (
                texts_of(url, draft, prompts, settings.tokens)
                for url in (fleet.serving[0].url, fleet.gateway.url)
            )
            expected = alone[0]
            shared = fleet.gateway.url, draft, prompts, expected, settings, over
            threads = [
                threading.Thread(target=_run, args=(*shared, one, number))
                for number, one in enumerate(devices)
            ]
            for thread in threads:
                thread.start()
            rows = []
            for event in EVENTS * settings.rounds:
                began = time.monotonic()
                fleet.happen(event)
                time.sleep(max(0.0, began + settings.seconds - time.monotonic()))
                rows.append(_row(event, devices, began, time.monotonic()))
                say(f"{event}: longest wait {rows[-1]['wait_worst_s']} s")
            shares = _shares(fleet.gateway.url)
            over.set()
            for thread in threads:
                thread.join()
        finally:
            over.set()
            fleet.close()
    return {
        "schema": SCHEMA,
        "verifiers": settings.verifiers,
        "devices": settings.devices,
        "texts": sum(one.texts for one in devices),
        "tokens": sum(n for one in devices for _, n in one.came),
        "wrong": sum(one.wrong for one in devices) + (beside[0] != expected),
        "reconnects": sum(one.reconnects for one in devices),
        "token_ms": {"direct": alone[1], "gateway": beside[1]},
        "streams": shares,
        "events": rows,
    }


def render(document: dict[str, Any]) -> str:
    """Return the document as text."""
    direct, gateway = (document["token_ms"][name] for name in ("direct", "gateway"))
    lines = [
        f"{document['devices']} devices, {document['verifiers']} verifiers: "
        f"{document['texts']} texts, {document['tokens']} tokens, "
        f"{document['wrong']} wrong, {document['reconnects']} links came back",
        f"a token alone: {direct} ms direct, {gateway} ms through the gateway",
        "streams since the gateway's start: "
        + ", ".join(f"{count:.0f}" for count in document["streams"]),
        "",
    ]
    rows = [
        (row["event"], row["tokens_per_s"], *(f"{row[key]} s" for key in _WAITS))
        for row in document["events"]
    ]
    heads = ["event", "tokens/s", "a device's longest wait, median", "worst"]
    return "\n".join(lines + markdown(heads, rows))


def options_of(number: int, tokens: int) -> dict[str, Any]:
    """Return how text ``number`` is generated: half of them greedily."""
    temperature = 0.8 if number % 2 else 0.0
    return {"max_new_tokens": tokens, "temperature": temperature, "seed": number}


def texts_of(
    url: str, draft: str, prompts: Sequence[list[int]], tokens: int
) -> tuple[list[list[int]], float]:
    """Return the texts of ``prompts``, and the milliseconds of a token."""
    texts: list[list[int]] = []
    with draftwire.connect(url, draft=draft) as session:
        began = time.perf_counter()
        for number, prompt in enumerate(prompts):
            chunks = session.generate(prompt, **options_of(number, tokens))
            texts.append([token.id for chunk in chunks for token in chunk.tokens])
        seconds = time.perf_counter() - began
    return texts, round(1e3 * seconds / sum(map(len, texts)), 3)


def _run(
    url: str,
    draft: str,
    prompts: Sequence[list[int]],
    expected: list[list[int]],
    settings: Settings,
    over: threading.Event,
    seen: _Device,
    first: int,
) -> None:
    """Be a device until it is over."""
    with draftwire.connect(url, draft=draft) as session:
        while not over.is_set():
            number = (first + seen.texts) % len(prompts)
            found: list[int] = []
            try:
                how = options_of(number, settings.tokens)
                for chunk in session.generate(prompts[number], patience_s=120.0, **how):
                    found += [token.id for token in chunk.tokens]
                    seen.came.append((time.monotonic(), len(chunk.tokens)))
            except DraftwireError as error:
                print(f"a stream failed: {error}")
            seen.texts += 1
            seen.wrong += found != expected[number]
        seen.reconnects = session.link.reconnects


def _row(
    event: str, devices: Sequence[_Device], began: float, end: float
) -> dict[str, Any]:
    """Return how an event went: tokens, and how long each device waited at most."""
    waits, tokens = [], 0
    for one in devices:
        times = [began, *(at for at, _ in tuple(one.came) if began <= at < end), end]
        waits.append(max(b - a for a, b in zip(times, times[1:])))
        tokens += sum(n for at, n in tuple(one.came) if began <= at < end)
    waits.sort()
    return {
        "event": event,
        "tokens_per_s": round(tokens / (end - began), 1),
        "wait_median_s": round(waits[len(waits) // 2], 2),
        "wait_worst_s": round(waits[-1], 2),
    }


def _shares(url: str) -> list[float]:
    """Return how many streams each verifier has had of the gateway."""
    where = url.replace("ws://", "http://") + "/metrics"
    with web("127.0.0.1", None).open(where, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    name = "draftwire:gateway_verifier_streams_total{"
    return [float(line.split()[-1]) for line in lines if line.startswith(name)]


FLAGS = """
--draft DIR              draft package (default: the reference one)
--target DIR             target package (default: the reference one)
--verifiers N =3
--devices N =6
--rounds N =1            of all events
--seconds S:positive =6  for each event
--tokens N =96           of a text
"""


def _study(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    if args.verifiers < 2:
        raise ConfigError("--verifiers must be at least 2")
    return bench_fleet(Settings(**fields_of(Settings, args)), say)


QUESTION = "Verifiers behind a gateway come and go, and no token is lost."
main = partial(start, "tools.fleet", QUESTION, FLAGS, _study, render)

if __name__ == "__main__":
    sys.exit(main())
