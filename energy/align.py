"""An external meter's file on our clock, with the phases of our recording."""

from __future__ import annotations

from pathlib import Path

from draftwire.energy.pulse import Offset, find_offset
from draftwire.energy.recording import Recording, read_recording
from draftwire.energy.sources.base import Reading
from draftwire.errors import ConfigError

__all__ = ["align"]


def align(meter: Recording, path: Path) -> Offset:
    """Shift a meter's readings to the clock of a recording, and take its phases.

    Args:
        meter: From ``recording_of_meter``; changed in place.
        path: A recording made with ``--pulse``.

    Raises:
        ConfigError: The recording has no pulse, or the meter does not show it.
    """
    own = read_recording(path)
    edges = [t for t, text in own.marks if text.startswith("pulse")]
    count = 6  # one pulse: on, off, on, off, on, off
    if len(edges) < count:
        raise ConfigError(f"{path} holds no load pulse", hint="record it with --pulse")
    seconds = [t * 1e-9 for t in edges[:count]]
    samples = [(r.t_ns * 1e-9, sum(r.watts.values())) for r in meter.samples]
    offset = find_offset(samples, seconds)
    shift = round(offset.seconds * 1e9)
    meter.samples = [Reading(r.t_ns + shift, r.watts, r.joules) for r in meter.samples]
    meter.phases = list(own.phases)
    meter.tokens = dict(own.tokens)
    meter.end_ns = own.end_ns
    # The two clocks run apart by some 50 ppm; a second pulse tells by how much.
    if len(edges) >= 2 * count:
        again = find_offset(samples, [t * 1e-9 for t in edges[count : 2 * count]])
        drift = again.seconds - offset.seconds
        span = (edges[count] - edges[0]) * 1e-9
        scale = 1.0 + drift / span if span > 0 else 1.0
        origin = edges[0]
        meter.samples = [
            Reading(origin + round((r.t_ns - origin) * scale), r.watts, r.joules)
            for r in meter.samples
        ]
    meter.header["notes"] = [
        *meter.header.get("notes", ()),
        f"aligned by a load pulse, +- {offset.uncertainty_s:.3f} s",
    ]
    return offset
