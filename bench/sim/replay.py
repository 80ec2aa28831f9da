"""A recorded run as the simulator's link, board, target and text.

A device's wire log (:mod:`draftwire.transport.wirelog`) tells when each message crossed,
what the verifier says that it took, and which drafts stood. From that:

- **link**: the round trips of blocks (of greetings, opens and pings where a race leaves
  none) less the verifier's own time; the quickest is the delay, the others a table of
  quantiles on top of it; a rate where frames differ enough in size to show one; the times
  without a connection as outages;
- **board**: the time from a rejection to the next block, for each token of it; in a race
  the time from block to block;
- **target**: the mean of queueing and computing;
- **text**: what was committed, and at each place whether the draft was right. Behind a
  rejection, and where the target gave a token unasked, nobody knows; there it is right as
  often as elsewhere. How sure the draft was is not on the wire either.

Every stream is simulated by itself, and the totals are compared with the recorded ones.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from draftwire.bench.link.spec import Jitter, LinkSpec, Outages
from draftwire.bench.sim.facts import Profile, measured
from draftwire.bench.sim.recording import Recording, renamed
from draftwire.bench.sim.run import Plan
from draftwire.bench.sim.schemes import Scheme
from draftwire.bench.sim.simulate import Outcome
from draftwire.bench.sim.texts import Text
from draftwire.errors import ConfigError
from draftwire.runtime.edge.mode import Mode
from draftwire.transport.traffic import MASK, wire_size
from draftwire.transport.wirelog import Event, read_wire_log

_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97, 1.0)
_ENOUGH = 8  # round trips of blocks that make others needless
_SPREAD = 1200  # bytes between frames that show a rate
_ANSWERED = {"welcome": "hello", "opened": "open", "resumed": "resume", "pong": "ping"}
_SAME = 0.5  # share of the longest blocks that makes theirs the length
_CUT_S = 0.05  # a connection that ends and comes back is no outage


@dataclass
class Recorded:
    """One stream of a log."""

    prompt: list[int]  # its ids
    objective: str  # of its open
    bonus: bool  # likewise
    secure: bool  # the connection had TLS
    began_s: float  # when it was opened, seconds of the log
    tokens: list[int] = field(default_factory=list)  # the text
    # what the draft said at each place, or None where nobody knows
    proposals: list[int | None] = field(default_factory=list)
    # ``(t_s, tokens)`` of each commit that brought some
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)  # lengths of its blocks
    verdicts: int = 0  # commits
    accepted: int = 0  # drafted tokens that were accepted
    # queueing and computing of each verdict
    cloud_s: list[float] = field(default_factory=list)
    # ``(bytes both ways, seconds)`` of blocks, the cloud's time left out
    round_trips: list[tuple[int, float]] = field(default_factory=list)
    steps_s: list[float] = field(default_factory=list)  # seconds of a drafted token
    flights: int = 0  # most blocks at once without a verdict
    up: int = 0  # bytes on the wire, computed
    down: int = 0  # likewise
    # ``(t_s, seconds)`` without a connection
    outages: list[tuple[float, float]] = field(default_factory=list)
    whole: bool = True  # its text is known to the end
    _sent: dict[int, dict[int, int]] = field(default_factory=dict)  # epoch -> base -> id
    # By the epoch that they would be of, and the place and id that they stand behind.
    _beside: dict[tuple[int, int, int], dict[int, int]] = field(default_factory=dict)
    # Of blocks without a verdict: when they left, epoch, first and last place, bytes.
    _flying: list[tuple[float, int, int, int, int]] = field(default_factory=list)
    _racing: bool = False  # commits come unasked
    _last: tuple[float, int | None] = (0.0, None)  # when a block left, its epoch
    # When a rejection freed the board, and for how long its block had been away.
    _free: tuple[float, float] | None = None

    @property
    def seconds(self) -> float:
        """From the first tokens to the last."""
        return self.arrivals[-1][0] - self.arrivals[0][0] if self.arrivals else 0.0

    @property
    def known(self) -> list[bool]:
        """Whether the draft was right, where that is known."""
        both = zip(self.proposals, self.tokens)
        return [said == token for said, token in both if said is not None]

    def block(self, event: Event) -> None:
        """Take in drafts that were sent."""
        says = event.fields
        base, ids = _whole(says["base"]), [_whole(t) for t in says.get("tokens", [])]
        if says.get("correction") is not None and base - 1 == len(self.tokens):
            self._put(_whole(says["correction"]))
        drafts = {base + i: token for i, token in enumerate(ids)}
        if says.get("instead"):  # of the next branch, where the text takes that id
            back, token = map(_whole, says["instead"])
            place = (_whole(says["epoch"]) + 1) & 0xFF, base - back, token
            self._beside.setdefault(place, {}).update(drafts)
            return
        self._sent.setdefault(says["epoch"], {}).update(drafts)
        self.blocks.append(len(ids))
        self._racing = self.objective != "cost" or bool(says.get("race"))
        self._flying.append(
            (event.t_s, says["epoch"], base, base + len(ids), event.bytes or 0)
        )
        self.flights = max(self.flights, len(self._flying))
        if ids:
            self._step(event.t_s, says["epoch"], len(ids))

    def _step(self, t_s: float, epoch: int, count: int) -> None:
        """Take the time of a drafted token from when a block of ``count`` leaves."""
        (before_s, before), self._last = self._last, (t_s, epoch)
        free, self._free = self._free, None
        if self._racing:  # it drafts on and on, and sends as it drafts
            if before == epoch:
                self.steps_s.append((t_s - before_s) / count)
        elif free is not None:
            took_s, flight_s = t_s - free[0], free[1]
            # A board that was not done with its guess ends its step first: half a one.
            busy = flight_s < took_s
            self.steps_s.append(took_s / (count + 0.5 * busy))

    def commit(self, event: Event) -> None:
        """Take in a verdict."""
        says = event.fields
        accepted, token = _whole(says["accepted"]), says.get("token")
        branch = self._sent.get(says["epoch"], {})
        before = len(self.tokens)
        for at in range(before, before + accepted):
            if at not in branch:  # sent before the log began
                self.whole = False
                return
            self._put(branch[at])
        refused = token is not None and self._put(_whole(token))
        for more in says.get("further", []):  # behind a second choice, or looked up
            refused |= self._put(_whole(more))
        cloud_s = float(says.get("queue_s", 0.0)) + float(says.get("compute_s", 0.0))
        self.verdicts += 1
        self.accepted += accepted
        self.cloud_s.append(cloud_s)
        if len(self.tokens) > before:
            self.arrivals.append((event.t_s, len(self.tokens) - before))
        flying = self._flying
        flight_s = event.t_s - flying[0][0] if flying else 0.0
        answered = [x[1:3] for x in flying] == [(says["epoch"], before)]
        if answered and not self._racing:
            size = flying[0][4] + (event.bytes or 0)
            self.round_trips.append((size, max(0.0, flight_s - cloud_s)))
        self._flying = [] if refused else [x for x in flying if x[3] > len(self.tokens)]
        self._free = (event.t_s, flight_s) if refused and not self._flying else None

    def resumed(self, event: Event) -> None:
        """Take in what was committed while there was no connection."""
        missed = len(self.tokens) - event.fields["position"]
        fresh = event.fields.get("tokens", [])[missed:]
        for token in fresh:
            self._put(_whole(token))
        self._flying, self._free = [], None
        if fresh:
            self.arrivals.append((event.t_s, len(fresh)))

    def _put(self, token: int) -> bool:
        """Make ``token`` text; return whether the draft had said something else.

        What was drafted behind that says nothing of a right context.
        """
        at, said = len(self.tokens), None
        for branch in self._sent.values():
            said = branch.get(at, said)  # of the latest branch that has it
            if branch.get(at, token) != token:
                branch.clear()
        self.tokens.append(token)
        for place in [place for place in self._beside if place[1] == at]:
            drafts = self._beside.pop(place)
            if place[2] == token:
                self._sent.setdefault(place[0], {}).update(drafts)
        self.proposals.append(said)
        return said is not None and said != token


@dataclass(frozen=True)
class Replay:
    """A recorded run, ready to be simulated."""

    name: str  # of the file
    profile: Profile  # board and target
    link: LinkSpec  # how it was
    scheme: Scheme  # as it was run
    streams: Sequence[Recorded]  # at least one, each with a token
    texts: Sequence[Text]  # theirs
    vocabulary: int  # ids on the connection are below this
    notes: Sequence[str]  # what a reader should know

    def plans(self, plan: Plan) -> list[Plan]:
        """Return a plan for each stream like ``plan``."""
        found = []
        for number, (stream, text) in enumerate(zip(self.streams, self.texts)):
            link = plan.link
            if link is self.link:  # its own outages
                gaps = tuple(
                    (t - stream.began_s, s)
                    for t, s in stream.outages
                    if t >= stream.began_s and s > _CUT_S
                )
                link = replace(link, outages=Outages(fixed=gaps), seed=number)
            one = Recording(self.name, [text], self.vocabulary)
            found.append(
                replace(
                    plan, link=link, source=one, streams=1, tokens=len(text.tokens),
                    seed=plan.seed + number,
                )
            )  # fmt: skip
        return found

    def row(self) -> dict[str, Any]:
        """Return what was recorded as a row of the table; see ``reports.row_of``."""
        streams = self.streams
        tokens = sum(len(s.tokens) for s in streams)
        seconds = sum(s.seconds for s in streams)
        later = tokens - sum(s.arrivals[0][1] for s in streams)
        waits = [s.arrivals[0][0] - s.began_s for s in streams]
        drafted = sum(sum(s.blocks) for s in streams)
        accepted = sum(s.accepted for s in streams)
        verdicts = sum(s.verdicts for s in streams)
        total_s = sum(s.arrivals[-1][0] - s.began_s for s in streams)
        return {
            "scheme": "recorded",
            "place": "device",
            "controller": self.scheme.controller,
            "tokens": tokens,
            "ms_per_token": 1e3 * seconds / later if later else None,
            "tokens_per_s": later / seconds,
            "first_token_ms": 1e3 * sum(waits) / len(waits),
            "accepted_per_block": accepted / verdicts,
            "acceptance": accepted / drafted if drafted else None,
            "forwards_per_token": verdicts / tokens,
            "target_busy_share": sum(sum(s.cloud_s) for s in streams) / total_s,
            "up_bytes_per_token": sum(s.up for s in streams) / tokens,
            "down_bytes_per_token": sum(s.down for s in streams) / tokens,
            "joules_per_token": None,
        }


def read_replay(path: Path, seed: int = 1) -> Replay:
    """Read a device's wire log.

    Args:
        path: The log.
        seed: Of what nobody knows.

    Raises:
        ConfigError: It is none, or holds no stream with two commits.
    """
    log = _Log()
    for event in read_wire_log(path):
        if event.role == "device":
            try:
                log.take(event)
            except (KeyError, TypeError, ValueError) as exc:
                raise ConfigError(
                    f"{path} has a {event.kind} that is none, at {event.t_s:.6f} s",
                    hint="was it written by another version of draftwire?",
                ) from exc
        else:
            log.others += 1
    streams = [s for s in log.streams if s.whole and s.verdicts > 1 and s.seconds > 0]
    if not streams:
        why = "it holds no stream of two commits that is whole"
        if not log.streams and log.others:
            why = "it is a verifier's, which cannot tell drafting from the network"
        raise ConfigError(
            f"{path} cannot be replayed: {why}", hint="record one: generate --wire-log FILE"
        )
    notes = []
    if len(streams) < len(log.streams):
        left = len(log.streams) - len(streams)
        notes.append(f"{left} streams of the log have no beginning or no text: left out.")
    link = _link(path.name, log, streams)
    texts, known = _texts(streams, log.vocabulary, seed)
    notes.append(known)
    profile = _profile(path.name, log, streams)
    scheme = _scheme(streams)
    notes.append(
        f"Recorded: objective {scheme.mode.objective}, {scheme.controller}, at most "
        f"{scheme.mode.pipeline} blocks in flight; that the next block is drafted "
        "meanwhile is assumed."
    )
    if scheme.controller == "auto":
        notes.append(
            "The controller knows nothing when a stream begins, nor how sure the draft was."
        )
    vocabulary = max(log.vocabulary, *(text.width for text in texts))
    return Replay(
        path.name, profile, link, scheme, streams, texts, vocabulary, tuple(notes)
    )


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value


class _Log:
    """The events of a log, as streams; what crossed beside them."""

    def __init__(self) -> None:
        self.streams: list[Recorded] = []
        self.others = 0
        self.vocabulary = 2
        self.round_trips: list[tuple[int, float]] = []  # beside blocks
        self._running: dict[tuple[int, int, int | None], Recorded] = {}
        self._known: dict[str, Recorded] = {}  # by what a resume names
        self._asked: dict[tuple[int, int, str], Event] = {}
        self._secure: dict[tuple[int, int], bool] = {}
        self._heard: dict[int, float] = {}  # run -> when the verifier last said something
        self._closed: dict[int, float] = {}  # run -> when a try last failed
        self._tried: dict[int, float] = {}  # run -> when the last one began
        self._takes: dict[int, float] = {}  # run -> seconds to connect

    def take(self, event: Event) -> None:
        """Take in an event."""
        kind, where = event.kind, (event.run, event.connection)
        stream = self._running.get((*where, event.stream))
        if stream is not None and event.bytes is not None:
            size = wire_size(event.bytes, secure=stream.secure)
            if event.direction == "up":
                stream.up += size + MASK
            else:
                stream.down += size
        if kind in _ANSWERED.values():
            self._asked[(*where, kind)] = event
        asked = self._asked.pop((*where, _ANSWERED.get(kind, "")), None)
        if asked is not None:
            size = (asked.bytes or 10) + (event.bytes or 6)
            self.round_trips.append((size, event.t_s - asked.t_s))
        if event.direction == "down" and kind != "welcome":
            self._heard[event.run] = event.t_s
        if kind == "connect":
            self._tried[event.run] = event.t_s
            self._secure[where] = str(event.fields.get("where")).startswith("wss")
        elif kind == "welcome":
            self.vocabulary = max(2, _whole(event.fields["vocab_size"]))
        elif kind == "hello":
            self._back(event.run, event.t_s)
        elif kind == "closed":
            self._closed[event.run] = event.t_s
        elif kind == "open":
            says = event.fields
            stream = Recorded(
                [_whole(t) for t in says["prompt"]], str(says.get("objective", "cost")),
                bool(says.get("bonus", True)), self._secure.get(where, False), event.t_s,
            )  # fmt: skip
            self.streams.append(stream)
            self._running[(*where, event.stream)] = stream
        elif kind == "opened" and stream is not None:
            self._known[str(event.fields.get("id"))] = stream
        elif kind == "resume":
            stream = self._known.get(str(event.fields["id"]))
            if stream is not None:
                self._running[(*where, event.stream)] = stream
        elif stream is not None and kind in ("block", "commit", "resumed"):
            getattr(stream, kind)(event)

    def _back(self, run: int, t_s: float) -> None:
        """A connection is there at ``t_s``: note for how long there was none."""
        took_s = t_s - self._tried.get(run, t_s)
        takes_s = self._takes.setdefault(run, took_s)
        heard_s, closed_s = self._heard.get(run), self._closed.pop(run, None)
        if heard_s is not None and closed_s is not None and self.streams:
            # The pause before the last try is the device's; a long try met the outage.
            end_s = closed_s if took_s < 2 * takes_s + 0.1 else t_s - takes_s
            self.streams[-1].outages.append((heard_s, end_s - heard_s))


def _scheme(streams: Sequence[Recorded]) -> Scheme:
    objective = Counter(s.objective for s in streams).most_common(1)[0][0]
    lengths = [n for s in streams for n in s.blocks[:-1] or s.blocks]
    often, times = Counter(lengths).most_common(1)[0] if lengths else (0, 1)
    controller = f"fixed:{often}" if often else "off"
    if lengths and (times < _SAME * len(lengths) or often < max(lengths)):
        controller = "auto"
    pipeline = max(s.flights for s in streams) if objective == "cost" else 1
    mode = Mode(objective=objective, pipeline=max(1, pipeline))
    return Scheme("as-recorded", controller, mode, bonus=all(s.bonus for s in streams))


def _link(name: str, log: _Log, streams: Sequence[Recorded]) -> LinkSpec:
    # Commits of a race that was given up look like quick answers to what came after it.
    least = min((t for _, t in log.round_trips), default=0.0) / 2
    of_blocks = [trip for s in streams for trip in s.round_trips if trip[1] >= least]
    every = [*of_blocks, *log.round_trips]
    trips = of_blocks if len(of_blocks) >= _ENOUGH else every
    if not trips:
        raise ConfigError(f"{name} holds no message with its answer")
    sizes, seconds = np.array(every, np.float64).T
    rate = None
    if np.ptp(sizes) >= _SPREAD:  # both ways together: prompts go up, little comes down
        slope = float(np.polyfit(sizes, seconds, 1)[0])
        rate = min(max(8 / slope, 100.0), 1e12) if slope > 0 else None
    sent = [max(0.0, t - (0.0 if rate is None else 8 * n / rate)) for n, t in trips]
    least = min(sent)
    table = np.quantile([t - least for t in sent], _QUANTILES)
    jitter = Jitter(
        "quantiles",
        directions=("up",),
        quantiles=tuple((q, float(x)) for q, x in zip(_QUANTILES, table)),
    )
    return LinkSpec(
        name=f"recorded({name})",
        delay_up_s=least / 2,
        delay_down_s=least / 2,
        jitter=jitter,
        up_bit_s=rate,
        source=f"{len(trips)} round trips of the log",
    )


def _profile(name: str, log: _Log, streams: Sequence[Recorded]) -> Profile:
    cloud = [x for s in streams for x in s.cloud_s]
    steps = [x for s in streams for x in s.steps_s]
    known = [right for s in streams for right in s.known]
    values = {
        "cloud.forward_ms": (
            1e3 * max(1e-6, float(np.mean(cloud))),
            f"mean queueing and computing of {len(cloud)} verdicts",
        ),
        "draft.step_ms": (
            1e3 * max(1e-6, float(np.median(steps))) if steps else 1e-3,
            f"median of {len(steps)} blocks, a token"
            if steps
            else "no block was drafted behind a rejection: nobody knows",
        ),
        "text.acceptance": (
            sum(known) / len(known) if known else 0.0,
            f"{len(known)} places where draft and target are known",
        ),
        "text.vocabulary": (float(max(4, log.vocabulary)), "the welcome"),
        "link.rtt_ms": (0.0, "see the link"),
    }
    return measured(name, f"replay of {name}", values)


def _texts(
    streams: Sequence[Recorded], vocabulary: int, seed: int
) -> tuple[list[Text], str]:
    known = [right for s in streams for right in s.known]
    rate = sum(known) / len(known) if known else 0.0
    rng = np.random.default_rng(seed)
    texts = []
    for stream in streams:
        wrong = [(token + 1) % vocabulary for token in stream.tokens]
        dice = rng.random(len(wrong)) < rate
        said = [
            (token if right else other) if p is None else p
            for p, token, other, right in zip(stream.proposals, stream.tokens, wrong, dice)
        ]
        second = [b if a == t else t for a, b, t in zip(said, wrong, stream.tokens)]
        columns: dict[str, Sequence[Any]] = {
            "prompt": stream.prompt, "tokens": stream.tokens, "proposals": said,
            "second": second, "confidence": [min(rate, 0.999)] * len(said),
        }  # fmt: skip
        texts.append(renamed(columns))
    total = sum(len(s.tokens) for s in streams)
    return texts, (
        f"The draft is known at {len(known)} of {total} places, right at {rate:.1%}; at "
        "the others it is right as often. How sure it was is not recorded."
    )


def merged(outcomes: Sequence[Outcome]) -> Outcome:
    """Return several runs, one after another, as one."""
    return replace(
        outcomes[0],
        streams=[stream for one in outcomes for stream in one.streams],
        seconds=sum(one.seconds for one in outcomes),
        forwards=sum(one.forwards for one in outcomes),
        busy_s=sum(one.busy_s for one in outcomes),
    )
