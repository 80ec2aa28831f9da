"""``python -m tools.chaos``: faults by the hundred, and not a token lost.

A verifier process, a device with the default time-outs, and a relay between them. While
texts are generated the verifier is killed and restarted, frozen, and the link is cut,
reset, torn in mid-frame, swallowed, and left behind as by a device that roams. Every text
must be the one that an undisturbed run gives.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tools.faults import FaultProxy
from tools.fleet import options_of, texts_of

import draftwire
from draftwire.bench.child import VerifierProcess
from draftwire.errors import DraftwireError
from draftwire.reference import draft_path, target_path
from studies.command import Say, start

FAULTS = ("cut", "reset", "torn", "swallow", "roam", "freeze", "kill")


@dataclass
class ChaosResult:
    """What happened."""

    faults: dict[str, int] = field(default_factory=dict)  # faults by kind
    texts: int = 0  # texts generated under faults
    tokens: int = 0  # their tokens
    wrong: int = 0  # texts that differ from the undisturbed one, or failed; must be 0
    reconnects: int = 0  # links that came back
    # seconds from each fault to the next token, by kind
    recovery_s: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0  # of the whole run

    def report(self) -> dict[str, Any]:
        """Return the result as a document."""
        document = asdict(self)
        by_kind = document.pop("recovery_s")
        every = [time for times in by_kind.values() for time in times]
        return {
            "schema": "draftwire.chaos/1",
            **document,
            "seconds": round(self.seconds, 1),
            "recovery_p50_s": _quantile(every, 0.5),
            "recovery_p99_s": _quantile(every, 0.99),
            "recovery_by_kind": {
                kind: {"p50_s": _quantile(times, 0.5), "worst_s": _quantile(times, 1.0)}
                for kind, times in by_kind.items()
            },
        }


def render(document: dict[str, Any]) -> str:
    """Return the document as text, a number a line."""
    lines = [f"{k:15s} {v}" for k, v in document.items() if k != "recovery_by_kind"]
    for kind, times in document["recovery_by_kind"].items():
        lines.append(f"{kind:15s} p50 {times['p50_s']} s, worst {times['worst_s']} s")
    return "\n".join(lines)


def _quantile(times: list[float], q: float) -> float | None:
    found = sorted(times)
    return round(found[min(len(found) - 1, int(q * len(found)))], 4) if found else None


def run_chaos(
    draft: str | Path,
    target: str | Path,
    *,
    faults: int = 200,
    tokens: int = 48,
    seed: int = 1,
    say: Say = print,
) -> ChaosResult:
    """Generate texts of so many tokens under so many faults, whose kinds and moments are of
    ``seed``, and compare them with undisturbed ones.
    """
    rng = random.Random(seed)
    verifier = VerifierProcess([Path(target)])
    verifier.start()
    proxy = FaultProxy(verifier.port)
    result = ChaosResult(dict.fromkeys(FAULTS, 0))
    result.recovery_s = {kind: [] for kind in FAULTS}
    began = time.monotonic()
    try:
        prompts = [[rng.randrange(1, 200) for _ in range(6)] for _ in range(4)]
        expected, _ = texts_of(verifier.url, str(draft), prompts, tokens)
        with draftwire.connect(proxy.url, draft=str(draft)) as session:
            while sum(result.faults.values()) < faults:
                number = result.texts % len(prompts)
                found = _one_text(
                    session, prompts[number], tokens, rng, result, verifier, proxy
                )
                result.texts += 1
                result.tokens += len(found)
                if found != expected[number]:
                    result.wrong += 1
                    say(f"text {result.texts} differs: {found} and not {expected[number]}")
                if result.texts % 10 == 0:
                    say(f"{sum(result.faults.values())} faults, {result.wrong} wrong texts")
            result.reconnects = session.link.reconnects
    finally:
        proxy.close()
        verifier.kill()
    result.seconds = time.monotonic() - began
    return result


def _one_text(
    session: draftwire.Session,
    prompt: list[int],
    tokens: int,
    rng: random.Random,
    result: ChaosResult,
    verifier: VerifierProcess,
    proxy: FaultProxy,
) -> list[int]:
    found: list[int] = []
    struck: float | None = None
    kind = ""
    options = options_of(result.texts % 4, tokens)
    try:
        for chunk in session.generate(prompt, **options):
            now = time.monotonic()
            if struck is not None and chunk.tokens:
                result.recovery_s[kind].append(now - struck)
                struck = None
            found += [t.id for t in chunk.tokens]
            if struck is None and rng.random() < 0.35:
                kind = rng.choice(FAULTS)
                result.faults[kind] += 1
                struck = time.monotonic()
                _strike(kind, rng, verifier, proxy)
    except DraftwireError as exc:
        found.append(-1)  # never an id: the text counts as wrong
        print(f"a stream failed: {exc}")
    return found


def _strike(
    kind: str, rng: random.Random, verifier: VerifierProcess, proxy: FaultProxy
) -> None:
    if kind == "kill":
        verifier.kill()
        verifier.start()
    elif kind == "freeze":
        verifier.freeze()
        threading.Timer(rng.uniform(0.1, 1.0), verifier.thaw).start()
    elif kind == "swallow":
        proxy.swallow.set()

        def end() -> None:
            # What was swallowed left a hole in the stream of bytes: it cannot go on.
            proxy.cut()
            proxy.swallow.clear()

        threading.Timer(rng.uniform(0.1, 0.8), end).start()
    elif kind == "roam":
        proxy.roam()
    else:
        proxy.cut(torn=kind == "torn", reset=kind == "reset")


FLAGS = """
--draft DIR              draft package (default: the reference one)
--target DIR             target package (default: the reference one)
--faults N =200          how many
--seed N:int =1
"""


def _study(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    draft, target = args.draft or draft_path(), args.target or target_path("v1")
    result = run_chaos(draft, target, faults=args.faults, seed=args.seed, say=say)
    return result.report()


QUESTION = "Faults by the hundred, and not a token lost."
main = partial(start, "tools.chaos", QUESTION, FLAGS, _study, render)

if __name__ == "__main__":
    sys.exit(main())
