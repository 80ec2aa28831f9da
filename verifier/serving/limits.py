"""What a verifier allows its devices; every number has a flag of ``verifier serve``."""

from __future__ import annotations

from dataclasses import dataclass

from draftwire.errors import ConfigError, RefusedError
from draftwire.transport.codec import MAX_BLOCK, MAX_FRAME, MAX_STREAM

QUEUED_FRAMES = 2  # a device that floods is slowed down by its own connection


class Refusal(RefusedError):
    """What a device asks for is not to be had; ``code`` is of PROTOCOL.md, section 5."""

    fatal = False  # it ends the connection

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class FatalError(Refusal):
    """Ends a connection with an error frame."""

    fatal = True


class Rate:
    """A token bucket that lends: it says how long to wait for what was taken.

    ``rate`` may be taken a second, and ``burst`` at once.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self._burst = self._left = max(1.0, burst)
        self._at: float | None = None

    def take(self, amount: float, now: float) -> float:
        """Take ``amount``; return the seconds until it is covered."""
        if self._at is not None:
            self._left = min(self._burst, self._left + (now - self._at) * self.rate)
        self._at = now
        self._left -= amount
        return max(0.0, -self._left / self.rate)


@dataclass(frozen=True)
class Limits:
    """Bounds on what one device can take."""

    connections: int = 64  # devices at the same time
    strangers: int = 64  # sockets at the same time whose device has not said hello
    knocks_per_s: float = 50.0  # connections a second from one address, over four seconds
    # frames a second that are read of one connection, of any kind; of one token four times
    # that
    frames_per_s: float = 1000.0
    bytes_per_s: float = 16 << 20  # bytes a second that are read of one connection
    context: int | None = None  # longest sequence in tokens; None leaves the target's own
    block: int = 64  # most drafted tokens of one block
    waiting: int = 256  # most drafted tokens of a stream that wait for judgement
    streams: int = 16  # at the same time on one connection
    # seconds between two words of progress while a stream waits for the target
    progress_s: float = 1.0
    message_bytes: int = MAX_FRAME  # longest frame from a device
    hello_s: float = 10.0  # seconds to upgrade, and to greet after that
    idle_s: float = 300.0  # seconds without a frame before a silent device is shown out
    # seconds between two pings, and for the answer: a link that is half open is noticed
    # within twice that
    ping_s: float = 20.0
    send_s: float = 15.0  # seconds that a device may take to read one message
    # seconds that a stream waits for its device after a lost link; 0 keeps none
    resume_s: float = 120.0
    parked: int = 1024  # streams that wait so, at most
    parked_bytes: int = 64 << 20  # memory of their texts, at most
    # texts of one account that are kept when they have ended, so that the next turn need
    # not send and read them again; 0 keeps none
    prefixes: int = 8
    # tokens that a forward may judge beside the drafts because they followed the same words
    # in the stream's text before; 0 looks nothing up
    lookup: int = 4
    leaves: int = 16  # second choices of the device's that it may judge; 0 takes none

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value, least = getattr(self, name), _LEAST.get(name, 1)
            if value is not None and not least <= value <= most:
                raise ConfigError(f"the limit on {name} must be within {least}..{most}")
        if min(self.hello_s, self.idle_s, self.ping_s, self.send_s, self.progress_s) <= 0:
            raise ConfigError("time limits must be above 0 seconds")
        if self.resume_s < 0:
            raise ConfigError("the time to resume must be 0 seconds or more")

    def session_bytes(self, context: int) -> int:
        """Return the most bytes that one device can take here, its KV slot apart.

        Frames: :data:`QUEUED_FRAMES` that wait, one that is coming in, one in hand, one
        frame's worth of evidence that waits for judgement and one under judgement, of all
        streams together. Tokens: the prompt as it comes in and the texts of all streams,
        at 44 bytes an id, where the target's longest sequence is ``context``.
        """
        frames = (QUEUED_FRAMES + 4) * self.message_bytes
        texts = prompt_limit(context) + self.streams * context
        return frames + 44 * texts + (1 << 18)


def prompt_limit(context: int) -> int:
    """Return how many ids a prompt may hold before it is not even read.

    A prompt somewhat too long is answered in a sentence; one of millions of ids would
    take memory only to be refused.
    """
    return 2 * context + 1024


_MOST = {
    **dict.fromkeys(("connections", "strangers", "knocks_per_s", "parked"), 1 << 20),
    **dict.fromkeys(("bytes_per_s", "parked_bytes"), 1 << 40),
    "frames_per_s": 1 << 20,
    "block": MAX_BLOCK,
    "waiting": 65535,
    "streams": MAX_STREAM,
    "message_bytes": MAX_FRAME,
    "context": (1 << 24) + 1,
    "prefixes": 1 << 10,
    "lookup": 64,
    "leaves": 64,
}
_LEAST = {"context": 2, "prefixes": 0, "lookup": 0, "leaves": 0}
