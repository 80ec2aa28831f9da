"""A connection that comes back: notice the loss, connect anew with patience.

No I/O, no thread: everything happens in the driver's clock. A link is lost when its
connection ends, or when it is silent while an answer is owed: a ping goes out at half of
the time that silence may last, so a verifier that is slow is told from a flow that is
swallowed. Tries to connect anew follow each other in growing, jittered pauses; only
*progress* (a verdict) makes them short again, not a connection that comes to be.
"""

from __future__ import annotations

import enum
import logging
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from draftwire.clock import Clock, Timer
from draftwire.errors import BusyError, DraftwireError, TransportError
from draftwire.runtime.pacing.channel import Channel
from draftwire.runtime.ports import Network, Wire
from draftwire.transport.answers import may_pass
from draftwire.transport.messages import Frame, Hello, Message, Welcome
from draftwire.transport.traffic import Meter, Traffic

if TYPE_CHECKING:
    from draftwire.runtime.driver import Driver

log = logging.getLogger("draftwire.link")

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_LONGEST_RETRY_AFTER_S = 60.0  # a stream's own patience is mostly shorter
_LEAST_SILENCE_S, _MOST_SILENCE_S = 1.0, 15.0
_SILENCE = 4.0  # times the slowest answer of late
_LEAST_CONNECT_S = 3.0


class _Phase(enum.Enum):
    """Where a link is; to users, the first word of it."""

    IDLE = "closed", "not begun"
    CONNECTING = "reconnecting", "connecting"
    UP = "up", ""
    PAUSING = "reconnecting", "between two tries"
    ASLEEP = "asleep", ""
    FAILED = "failed", ""
    CLOSED = "closed", ""


@dataclass(frozen=True)
class LinkState:
    """What a user may know about the link."""

    # ``"up"``, ``"reconnecting"``, ``"asleep"`` (the verifier has shown it out as idle, and
    # the next stream connects again), ``"closed"`` or ``"failed"``
    state: str
    reconnects: int  # times that a lost link came back
    attempts: int  # tries since the link was lost
    down_s: float  # seconds since the link was lost, 0 while it is up
    error: str  # why it is not up, or ""


@dataclass(frozen=True)
class LinkSettings:
    """What a link is told."""

    timeout_s: float = 10.0  # for connecting and greeting
    # without a sign of life while an answer is owed, after which the link counts as lost;
    # None derives it from what answers took so far
    silence_s: float | None = None


class Link:
    """One connection after another to one verifier, whose ``owner`` is told what becomes of
    it.

    ``rng`` is the source of the jitter on pauses: a fleet that lost the same verifier shall
    not return as one. ``error`` says why it is not up.
    """

    def __init__(
        self,
        clock: Clock,
        network: Network,
        hello: Hello,
        settings: LinkSettings,
        owner: Driver,
        rng: random.Random,
    ) -> None:
        self._clock = clock
        self._network = network
        self._hello = hello
        self._settings = settings
        self._owner = owner
        self._rng = rng
        self.channel = Channel()
        self.welcome: Welcome | None = None
        self.error: DraftwireError | None = None
        self.reconnects = 0
        self._phase = _Phase.IDLE
        self._wire: Wire | None = None
        self._past = Meter()
        self._timer: Timer | None = None
        self._watch: Timer | None = None
        self._pause_s = _FIRST_PAUSE_S
        self._attempts = 0
        self._tried_s = 0.0
        self._lost_at: float | None = None
        self._slept = False
        self._greeted_in: float | None = None
        self._owing = False
        self._quiet_s = 0.0  # since when silence counts
        self._pinged = False
        self._slowest: float | None = None  # answer of late, seconds
        self._doubt = 1.0  # grows with every silence that was no loss

    @property
    def up(self) -> bool:
        return self._phase is _Phase.UP

    @property
    def failed(self) -> bool:
        return self._phase is _Phase.FAILED

    @property
    def silence_s(self) -> float:
        """Seconds that silence may last now."""
        if self._settings.silence_s is not None:
            return self._settings.silence_s
        slowest = self._slowest
        if slowest is None:
            slowest = 1.0 if self._greeted_in is None else self._greeted_in
        wanted = _SILENCE * slowest * self._doubt
        return min(max(wanted, _LEAST_SILENCE_S), _MOST_SILENCE_S)

    @property
    def ports(self) -> tuple[int, int]:
        """Local and remote TCP port, ``(0, 0)`` without a connection."""
        found: tuple[int, int] = getattr(self._wire, "ports", (0, 0))
        return found

    def state(self) -> LinkState:
        lost_at = self._lost_at
        up = self._phase is _Phase.UP
        return LinkState(
            self._phase.value[0],
            self.reconnects,
            self._attempts,
            0.0 if lost_at is None else self._clock.now() - lost_at,
            str(self.error) if self.error is not None and not up else "",
        )

    def traffic(self) -> Traffic:
        """Return the bytes of all connections so far."""
        wire = self._wire
        return self._past.total if wire is None else self._past.total.plus(wire.meter.total)

    def framed(self) -> Traffic:
        """Return those bytes of them that belong to streams."""
        wire, past = self._wire, self._past.framed
        return past if wire is None else past.plus(wire.meter.framed)

    def take_share(self, stream: int) -> Traffic:
        """Return the bytes of a stream's frames, and begin its count anew."""
        share = self._past.take(stream)
        return share if self._wire is None else share.plus(self._wire.meter.take(stream))

    def start(self) -> None:
        self._lost_at = self._clock.now()
        self._connect()

    def send(self, message: Message, stream: int) -> int:
        """Send ``message`` of a stream; what is lost with the link is said again later.
        Return its bytes on the wire."""
        wire = self._wire
        if wire is None or self._phase is not _Phase.UP:
            return 0
        nbytes = wire.send(message, stream)
        self.channel.sent(self._clock.now(), message, nbytes, stream)
        self._look_into(behind=True)
        return nbytes

    def owe(self, owing: bool) -> None:
        """Note whether an answer is owed now; silence counts only while it is."""
        if owing and not self._owing:
            self._quiet_s = self._clock.now()
            self._pinged = False
        self._owing = owing
        if owing and self._watch is None and self._phase is _Phase.UP:
            self._look_at(self._quiet_s + self.silence_s / 2)

    def progress(self) -> None:
        """A verdict came: what follows begins with short pauses and no doubt."""
        self._pause_s = _FIRST_PAUSE_S
        self._doubt = 1.0

    def lose(self, error: DraftwireError) -> None:
        """Give the connection up: the next one may serve better."""
        if self._phase is _Phase.UP:
            self._drop()
            self._lost(error)

    def sleep(self) -> None:
        """Let a connection go that nobody uses: the next one is for :meth:`wake`."""
        self._drop()
        self._phase, self._slept = _Phase.ASLEEP, True

    def wake(self) -> None:
        """Somebody asks for a stream: connect where the link sleeps."""
        if self._phase is _Phase.ASLEEP:
            self.start()

    def close(self) -> None:
        """End the connection; nothing follows."""
        self._drop()
        if self._timer is not None:
            self._timer.cancel()
        if self._phase is not _Phase.FAILED:
            self._phase = _Phase.CLOSED

    # ---- one connection

    def _connect(self) -> None:
        self._phase = _Phase.CONNECTING
        self._tried_s = self._clock.now()
        timeout_s = self._settings.timeout_s
        if self._greeted_in is not None:  # a first try that is swallowed costs little
            quick = max(_LEAST_CONNECT_S, 10 * self._greeted_in)
            timeout_s = min(timeout_s, quick * 2 ** min(self._attempts, 8))
        self._attempts += 1
        self._events = _Connection(self)
        self._wire = self._network.connect(self._hello, self._events, timeout_s)

    def greeted(self, welcome: Welcome) -> None:
        now = self._clock.now()
        self._greeted_in = now - self._tried_s
        again = self.welcome is not None
        self._phase = _Phase.UP
        self.welcome = welcome
        self.error = None
        self._lost_at = None
        self._attempts = 0
        self.reconnects += again and not self._slept
        self._slept = False
        self._owing = self._pinged = False
        self._quiet_s = now
        self.channel.back(now)
        log.info("link up: target %s %s", welcome.target, welcome.target_version)
        self._owner.link_up(self, welcome)

    def heard(self, frame: Frame | None) -> None:
        """A message or a pong came."""
        now = self._clock.now()
        if frame is None:
            self.channel.ponged(now)
        elif self._owing:
            self._slowest = max(now - self._quiet_s, 0.9 * (self._slowest or 0.0))
        self._quiet_s, self._pinged = now, False
        if frame is not None:
            self._owner.link_message(self, frame)
        if self._phase is _Phase.UP:
            self._look_into(behind=False)

    def ended(self, error: DraftwireError) -> None:
        """The connection is over, or did not come to be."""
        self._drop()
        self._lost(error)

    def _drop(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            self._events.link = None
            self._past.add(wire.meter)
            wire.close()
        if self._watch is not None:
            self._watch.cancel()
        self._watch, self._owing = None, False

    def _lost(self, error: DraftwireError) -> None:
        now = self._clock.now()
        was_up = self._phase is _Phase.UP
        self.error = error
        if self._lost_at is None:
            self._lost_at = now
        if was_up:  # an idle device is shown out now and then, and nobody misses it
            level = logging.WARNING if self._owner.streams else logging.INFO
            log.log(level, "link lost: %s", error)
            self.channel.lost(now)
        else:
            log.info("no link: %s", error)
        if not may_pass(error) or self._phase is _Phase.CLOSED:
            self._phase = _Phase.FAILED
            self._owner.link_failed(self, error)
            return
        self._phase = _Phase.PAUSING
        pause = self._pause_s * self._rng.uniform(0.5, 1.0)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        if isinstance(error, BusyError) and error.retry_after_s is not None:
            said_s = min(error.retry_after_s, _LONGEST_RETRY_AFTER_S)
            # A fleet shall not come back as one.
            pause = max(pause, said_s * self._rng.uniform(1.0, 1.5))
        self._timer = self._clock.call_at(now + pause, self._connect)
        self._owner.link_lost(self, error)

    # ---- silence, and how the path is

    def _look_into(self, *, behind: bool) -> None:
        """Ping where the channel would learn from it, while a stream goes on."""
        doubted = behind and self.channel.path.young
        if (self._owing or doubted) and self.channel.wants_ping(self._clock.now(), behind):
            self._ping(behind=behind)

    def _ping(self, *, behind: bool = False) -> None:
        assert self._wire is not None
        self.channel.pinged(self._clock.now(), self._wire.ping(), behind)

    def _look_at(self, when: float) -> None:
        self._watch = self._clock.call_at(when, self._look)

    def _look(self) -> None:
        self._watch = None
        if not self._owing or self._phase is not _Phase.UP:
            return  # the next `owe` watches again
        quiet, silence_s = self._clock.now() - self._quiet_s, self.silence_s
        due_s = silence_s if self._pinged else silence_s / 2
        if quiet < due_s - 1e-9:
            self._look_at(self._quiet_s + due_s)
        elif not self._pinged:
            self._pinged = True
            self._ping()
            self._look_at(self._quiet_s + silence_s)
        else:
            self._doubt *= 2
            self.ended(
                TransportError(
                    f"no word from the verifier for {quiet:.2g} s",
                    hint="if it is only slow, allow it more with silence_s",
                )
            )


class _Connection:
    """The events of one connection; those of one that was given up go nowhere."""

    def __init__(self, link: Link | None) -> None:
        self.link = link

    def up(self, welcome: Welcome) -> None:
        if self.link is not None:
            self.link.greeted(welcome)

    def message(self, frame: Frame) -> None:
        if self.link is not None:
            self.link.heard(frame)

    def alive(self) -> None:
        if self.link is not None:
            self.link.heard(None)

    def down(self, error: DraftwireError) -> None:
        if self.link is not None:
            self.link.ended(error)
