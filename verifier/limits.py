"""What a verifier allows its devices; every number has a flag of ``verifier serve``."""

from __future__ import annotations

from dataclasses import dataclass

from draftwire.errors import ConfigError
from draftwire.transport.codec import MAX_BLOCK, MAX_FRAME

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Bounds on what one device can take.

    Attributes:
        connections: Devices at the same time.
        context: Longest sequence in tokens; None leaves the target's own.
        block: Most drafted tokens that wait for judgement.
        message_bytes: Longest frame from a device.
        hello_s: Seconds to greet after the upgrade.
        idle_s: Seconds without a frame before a silent device is shown out.
    """

    connections: int = 64
    context: int | None = None
    block: int = 64
    message_bytes: int = MAX_FRAME
    hello_s: float = 10.0
    idle_s: float = 300.0

    def __post_init__(self) -> None:
        for name, value, most in (
            ("connections", self.connections, 1 << 20),
            ("block", self.block, MAX_BLOCK),
            ("message_bytes", self.message_bytes, MAX_FRAME),
            ("context", 2 if self.context is None else self.context - 1, 1 << 24),
        ):
            if not 1 <= value <= most:
                raise ConfigError(f"the limit on {name} must be within 1..{most}")
        if not (self.hello_s > 0 and self.idle_s > 0):
            raise ConfigError("time limits must be above 0 seconds")
