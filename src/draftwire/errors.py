"""Every error draftwire raises on purpose.

DraftwireError
├── ConfigError          a file, flag or environment variable is wrong      exit 2
├── BoardError           this machine lacks what the profile promises       exit 3
│   └── SensorError      a power rail cannot be read
├── TransportError       the peer is gone, late or refused us               exit 4
│   ├── ProtocolError    the peer broke the wire format
│   ├── VerifierError    the verifier failed on its side
│   └── RefusedError     the peer answered, and said no
│       └── BusyError    it may say yes later
├── ModelError           a model does not load, or does not match           exit 5
│   ├── PackageError     a draft or target package is damaged or unknown
│   └── IncompatibleError  draft and target do not belong together
└── OutputError          a result is there and cannot be written            exit 6
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

__all__ = [
    "BoardError",
    "BusyError",
    "ConfigError",
    "DraftwireError",
    "IncompatibleError",
    "ModelError",
    "OutputError",
    "PackageError",
    "ProtocolError",
    "RefusedError",
    "SensorError",
    "TransportError",
    "VerifierError",
]


class DraftwireError(Exception):
    """Base class: ``except DraftwireError`` catches what we foresaw, no bugs.

    ``message`` is one sentence: what is wrong, with the names and numbers; ``hint`` one
    line: what to do next, by default the class's own.
    """

    exit_code: ClassVar[int] = 1  # what a command ends with
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint or self.default_hint

    def to_dict(self) -> dict[str, str]:
        """Return its kind, message and hint, as documents tell of it."""
        return {"kind": type(self).__name__, "message": str(self), "hint": self.hint}

    def __reduce__(self) -> tuple[Any, ...]:
        return (partial(type(self), hint=self.hint), (str(self),), self.__dict__)


class ConfigError(DraftwireError):
    """A setting is missing, unknown or out of range; ``about`` names it, where known."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "", about: str = "") -> None:
        super().__init__(message, hint=hint)
        self.about = about


class BoardError(DraftwireError):
    """This machine lacks what its board profile promises."""

    exit_code = 3


class SensorError(BoardError):
    """A power rail cannot be read."""


class TransportError(DraftwireError):
    """The connection to the verifier failed."""

    exit_code = 4


class ProtocolError(TransportError):
    """The peer sent bytes that the wire format does not allow."""


class VerifierError(TransportError):
    """The verifier failed on its side; neither the link nor this device is at fault."""


class RefusedError(TransportError):
    """The verifier answered and refused: token, limit, busy, draining."""

    transient = False  # true when trying again later may help (busy, draining)


class BusyError(RefusedError):
    """The verifier has no room now, or is going away.

    ``retry_after_s`` are seconds from now that it asks to wait; None when it did not say.
    """

    transient = True

    def __init__(
        self, message: str, *, hint: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class ModelError(DraftwireError):
    """A model does not load, or does not match its peer."""

    exit_code = 5


class PackageError(ModelError):
    """A draft or target package is damaged, incomplete or of an unknown format."""


class IncompatibleError(ModelError):
    """The draft and the target do not share tokenizer, vocabulary or family."""


class OutputError(DraftwireError):
    """A result is there and cannot be written: a full disk, a folder that is gone."""

    exit_code = 6
    default_hint = "free some space, or name another place"
