"""What exactness costs, and whether it holds: ``draftwire bench verifier --numerics``.

Texts are written twice: by the target alone, one stream, no drafts, and then with drafts
in one of the ways in :data:`CASES`. Driver, wire format, dialogue, scheduler and backend
are those that run live; the clock is virtual and the draft knows the text, but errs at
one place in five. An exact target writes the same text both times. Of a close one the share
that differs is counted, and whether a near tie was counted in the streams that came apart.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np

from draftwire.bench.link.spec import LinkSpec, Outages
from draftwire.bench.machine import cores
from draftwire.bench.sim.cloud import ForwardCost, SimVerifier
from draftwire.bench.sim.facts import find
from draftwire.bench.sim.run import Device, Job, Plan
from draftwire.bench.sim.schemes import Scheme
from draftwire.bench.sim.texts import Text, TextDraft
from draftwire.clock import VirtualClock
from draftwire.io import format_table
from draftwire.runtime.edge.mode import Mode
from draftwire.sampling import SamplingParams
from draftwire.verifier.backends.base import SlotInput, TargetBackend
from draftwire.verifier.backends.loading import Loader
from draftwire.verifier.dialogue import Dialogue, Peer

SCHEMA = "draftwire.bench.numerics/1"
WRONG = 0.2  # share of drafted tokens that are not the target's
DEVICES = 8


@dataclass(frozen=True)
class Case:
    """A way to write a text with drafts."""

    mode: Mode = Mode.of()  # how the stream hides the network
    block: int = 4  # drafted tokens a block
    devices: int = 1  # so many streams at once, each a stranger to the others
    # all but the first lose their links for a while, twice. The first comes meanwhile, and
    # there is one slot too few: a stream that waits gives its own up and is read again in
    # another later.
    cuts: bool = False
    # a stream before leaves most of the prompt in its slot, and this one goes on from there
    turns: bool = False
    prompt: int = 24  # tokens in front of it
    # so many of them a forward. The target alone then reads all at once, and the prompt has
    # exactly that length.
    read: int | None = None


CASES = {
    **{f"k = {k}": Case(block=k) for k in range(1, 10)},
    "race": Case(Mode.of("latency"), devices=2),
    "pipeline": Case(Mode.of(pipeline=3, cut=True)),
    "exits": Case(Mode.of(pipeline=2, preempt="guess,exits")),
    "batch": Case(devices=DEVICES),
    "resume": Case(devices=4, cuts=True),
    "prefix": Case(turns=True, prompt=90),
    "long": Case(block=6, devices=2, prompt=700),
    "403 whole": Case(block=5, prompt=403, read=30),
}


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    target: Path  # package or checkpoint folder
    dtypes: Sequence[str] = ("float32",)  # of a checkpoint; packages are float32
    # of each dtype when exact, a quarter of them when close; 0 measures the
    # price alone
    texts: int = 60
    tokens: int = 48  # of a text
    threads: int | None = None  # of the engine
    seed: int = 1  # of prompts, drafts and sampling
    cases: Sequence[str] = tuple(CASES)  # ways to write them, names in :data:`CASES`


# ---- the texts


def _job(prompt: Sequence[int], text: Sequence[int], width: int) -> Job:
    """Return a prompt, what the target writes after it, and a draft that mostly knows."""
    rng = random.Random(len(text) + sum(prompt))
    guess = [(t + 1) % width if rng.random() < WRONG else t for t in text]
    sure, second = (0.9,) * len(text), tuple((t + 2) % width for t in text)
    known = Text(tuple(prompt), tuple(text), tuple(guess), sure, second, width)
    return Job(known.prompt, partial(TextDraft, known))


class _Verifier(SimVerifier):
    """A verifier whose links can be cut."""

    def __init__(self, clock: VirtualClock, backend: TargetBackend, chunk: int) -> None:
        cost = ForwardCost(0.02, free=1 << 30, most=chunk)
        super().__init__(clock, backend, cost)
        self.dialogues: list[Dialogue] = []

    def attach(self, peer: Peer) -> Dialogue:
        """Return the verifier's end of a new connection."""
        self.dialogues.append(super().attach(peer))
        return self.dialogues[-1]


_PROFILE = find("nano-a100").replaced("assumed", "a test", draft__read_ms_per_token=0)
_LINK = LinkSpec(delay_up_s=0.01, delay_down_s=0.01)
_CUTS = Outages(fixed=((0.4, 20.0), (21.2, 20.0)))


def _write(
    backend: TargetBackend,
    jobs: Sequence[Job],
    params: Sequence[SamplingParams],
    tokens: int,
    case: Case | None,
    chunk: int = 128,
) -> tuple[list[list[int]], int]:
    """Write the texts of ``jobs`` at the same time; return them and the near ties of all.

    Without a ``case`` the target writes alone; a forward reads ``chunk`` tokens of a
    prompt.
    """
    clock, left, results = VirtualClock(), len(jobs), []
    verifier = _Verifier(clock, backend, chunk)
    cuts = case is not None and case.cuts and len(jobs) > 1
    taken = [backend.allocate() for _ in range(backend.slots - len(jobs) + 1) if cuts]

    def done() -> None:
        nonlocal left
        left -= 1

    for number, (job, sampling) in enumerate(zip(jobs, params)):
        plan = Plan(
            # So that devices fall out of step.
            _PROFILE.replaced("assumed", "a test", draft__step_ms=4 + number),
            Scheme("off", "off", Mode.of())
            if case is None
            else Scheme("case", f"fixed:{case.block}", case.mode),
            link=dataclasses.replace(
                _LINK, outages=_CUTS if cuts and number else Outages()
            ),
            tokens=tokens,
            params=sampling,
            seed=number,
            backend=backend,
            vocabulary=backend.vocab_size,
        )
        todo: list[Job | None] = [job, None]
        if case is not None and case.turns:
            todo.insert(0, _job(job.prompt[:-4], (), backend.vocab_size))
        device = Device(clock, plan, verifier, todo.__getitem__, done)
        clock.call_at(6.0 if cuts and not number else 0.0, device.start)
        results.append(device.results)

    def lose() -> None:
        for dialogue in verifier.dialogues:
            dialogue.lost()

    if cuts:
        clock.call_at(5.0, lose)
    clock.run(lambda: not left)
    while verifier.kept.prefixes.give_up_slot(verifier.served):
        pass  # the next verifier knows nothing of what this one keeps
    for slot in taken:
        backend.release(slot)
    for result in itertools.chain(*results):
        if result.error is not None:
            raise result.error
    return [found[-1].ids for found in results], verifier.served.tally.near_ties


class _Prompts:
    """Prompts out of what the target itself has written, from other seeds each time."""

    def __init__(self, backend: TargetBackend, rng: random.Random) -> None:
        self._rng, most = rng, backend.vocab_size
        jobs = [_job([rng.randrange(most)], (), most) for _ in range(6 * DEVICES)]
        hot = [SamplingParams("coupled", 1.0, 0, 1.0, rng.getrandbits(60)) for _ in jobs]
        self._written: list[list[int]] = []
        for i in range(0, len(jobs), DEVICES):
            several = slice(i, i + DEVICES)
            self._written += _write(backend, jobs[several], hot[several], 24, None)[0]

    def of(self, length: int, *, exactly: bool = False) -> list[int]:
        """Return a prompt of about ``length`` tokens, at most so many."""
        rng, found = self._rng, list[int]()
        while len(found) < length:
            text = rng.choice(self._written)
            found += text[: rng.randrange(6, len(text))]
        less = 0 if exactly else rng.randrange(max(1, min(20, length // 2)))
        return found[: length - less]


@dataclass
class Count:
    """Texts of one case."""

    texts: int = 0  # written twice
    differ: int = 0  # those that came apart
    near_ties: int = 0  # positions that the target alone, or all streams together, counted
    untold: int = 0  # texts that came apart though no near tie was counted beside them


def texts_that_differ(
    backend: TargetBackend,
    settings: Settings,
    cases: Sequence[str] = tuple(CASES),
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Count]:
    """Write texts in every case, greedy and at temperature 1, and compare."""
    rng = random.Random(settings.seed)
    prompts = _Prompts(backend, rng)
    room = backend.context - settings.tokens - 1
    ways = [(name, hot) for name in cases for hot in (False, True)]
    found: dict[str, Count] = {}
    for number, (name, hot) in enumerate(ways):
        case = CASES[name]
        share = settings.texts * (number + 1) // len(ways)
        share -= settings.texts * number // len(ways)
        count = found[f"{name}, T = {int(hot)}"] = Count()
        while count.texts < share:
            jobs, params, texts, ties = [], [], [], []
            for _ in range(min(case.devices, share - count.texts)):
                prompt = prompts.of(min(case.prompt, room), exactly=case.read is not None)
                seed = rng.getrandbits(60)
                sampled = SamplingParams("coupled", 1.0, 0, 1.0, seed)
                params.append(sampled if hot else SamplingParams("greedy", 0.0))
                alone = _job(prompt, (), backend.vocab_size)
                way = (params[-1:], settings.tokens, None, 512 if case.read else 128)
                (text,), near = _write(backend, [alone], *way)
                jobs.append(_job(prompt, text, backend.vocab_size))
                texts.append(text)
                ties.append(near)
            pieces = case.read or 128
            drafted, near = _write(backend, jobs, params, settings.tokens, case, pieces)
            count.texts += len(jobs)
            count.near_ties += near
            for text, other, tie in zip(texts, drafted, ties):
                count.differ += text != other
                count.untold += text != other and not (tie or near)
        say(f"{name}, T = {int(hot)}: {count.differ} of {count.texts} texts differ")
    return found


# ---- the price


def _price(backends: dict[str, Any], turns: int = 16) -> dict[str, dict[str, float]]:
    """Return the milliseconds of forwards, the backends in turns.

    For every place in a window the quickest of five, then the mean over the places.
    """
    any_one = next(iter(backends.values()))
    rng = np.random.default_rng(0)
    ids = rng.integers(0, any_one.vocab_size, any_one.context)
    far = min(1000, any_one.context - 64)
    near = min(250, far)
    ways = {
        "a token": (1, 1, near),
        "a block of 5": (1, 5, near),
        f"a block of 5 at {far}": (1, 5, far),
        f"{DEVICES} blocks of 5": (DEVICES, 5, near),
        "a prompt of 403": (1, min(403, far), 0),
    }
    found: dict[str, dict[str, float]] = {}
    for way, (streams, n, context) in ways.items():
        slots = {key: [b.allocate() for _ in range(streams)] for key, b in backends.items()}
        best = {key: [math.inf] * turns for key in backends}
        for turn in range(5 * turns):
            start = context + turn % turns
            for key, backend in backends.items():
                if turn == 0 and context:
                    for slot in slots[key]:
                        _read(backend, slot, ids[: context + turns])
                for slot in slots[key]:  # a rewind forgets what it passes
                    backend.lengths[slot] = context + turns
                begin = time.perf_counter()
                if context:
                    part = ids[start : start + n]
                    items = [SlotInput(slot, start, part, n) for slot in slots[key]]
                    backend.forward(items)
                else:
                    _read(backend, slots[key][0], ids[:n])
                seconds = time.perf_counter() - begin
                best[key][turn % turns] = min(best[key][turn % turns], seconds)
        found[way] = {key: round(1e3 * sum(s) / turns, 3) for key, s in best.items()}
        for key, backend in backends.items():
            for slot in slots[key]:
                backend.release(slot)
    return found


def _read(backend: TargetBackend, slot: int, ids: Any) -> None:
    """Read a prompt as the scheduler does."""
    for at in range(0, len(ids), 128):
        backend.forward([SlotInput(slot, at, ids[at : at + 128], 0)])


def bench_numerics(
    settings: Settings, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Measure the target in every dtype, close and exact.

    Raises:
        DraftwireError: It does not load, or a stream fails.
    """
    found, path = [], settings.target
    package = (path / "target.json").is_file()
    for dtype in ("float32",) if package else settings.dtypes:
        form: Any = {"slots": DEVICES, "threads": settings.threads}
        form["dtype"] = None if package else dtype
        ways = ("close", "exact")
        backends: Any = {way: Loader(**form, numerics=way)(path) for way in ways}
        target = backends["exact"]
        engine = "onnxruntime" if package else "transformers"
        say(f"{target.name} on {engine}, {dtype}")
        row: dict[str, Any] = {
            "target": target.name,
            "engine": engine,
            "dtype": dtype,
            "logit_error": backends["close"].logit_error,
            "form": dataclasses.asdict(target.form),
            "ms": _price(backends),
        }
        if settings.texts:
            few = dataclasses.replace(settings, texts=-(-settings.texts // 4))
            for key, backend in backends.items():
                asked = settings if key == "exact" else few
                counts = texts_that_differ(backend, asked, settings.cases, say)
                row[key] = {name: dataclasses.asdict(c) for name, c in counts.items()}
        found.append(row)
    return {
        "schema": SCHEMA,
        "cores": cores(),
        "threads": settings.threads,
        "tokens": settings.tokens,
        "texts": settings.texts,
        "targets": found,
    }


def differing(document: dict[str, Any]) -> int:
    """Return how many texts of exact targets came apart."""
    rows = [row.get("exact", {}) for row in document["targets"]]
    return sum(count["differ"] for row in rows for count in row.values())


def render(document: dict[str, Any]) -> str:
    """Return the document as tables for people."""
    lines = []
    for row in document["targets"]:
        lines += [f"{row['target']} on {row['engine']}, {row['dtype']}", ""]
        cells = [
            [way, f"{ms['close']:.2f}", f"{ms['exact']:.2f}",
             f"{ms['exact'] / ms['close']:.2f}"]
            for way, ms in row["ms"].items()
        ]  # fmt: skip
        heads = ["a forward of", "close ms", "exact ms", "price"]
        lines += [format_table(heads, cells), ""]
        if "exact" in row:
            cells = [
                [name, *(str(row["exact"][name][key]) for key in ("texts", "differ")),
                 *(str(close[key]) for key in ("texts", "differ", "near_ties", "untold"))]
                for name, close in row["close"].items()
            ]  # fmt: skip
            total = [str(sum(int(line[i]) for line in cells)) for i in range(1, 7)]
            heads = ["", "exact texts", "differ", "close texts", "differ"]
            heads += ["near ties", "untold"]
            lines += [format_table(heads, [*cells, ["all", *total]]), ""]
        lines += [f"logits of close forwards differ by up to {row['logit_error']:.2g}", ""]
    return "\n".join(lines).rstrip()
