"""Readings from a recording, as if they came from the sensor."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Callable

from draftwire.energy.files.recording import Recording, read_recording
from draftwire.energy.sources.base import Clock, PowerSource, Reading, response_of
from draftwire.errors import SensorError


class ReplaySource(PowerSource):
    """Plays a recording: speed 1 as it was, 10 ten times faster, 0 all at once."""

    paced = True

    def __init__(
        self,
        recording: Recording | Path,
        *,
        speed: float = 0.0,
        clock: Clock | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(clock)
        if isinstance(recording, Path):
            recording = read_recording(recording)
        self.recording = recording
        header, total = recording.header, recording.choice.total
        self.name = f"replay:{recording.name}"
        self.kind = str(header.get("source_kind", "measured"))
        self.rails = recording.rails
        self.scope, self.total = (total.scope, total.rails) if total else (None, ())
        self.accuracy = recording.accuracy
        self.lag_s: float | None = header.get("update_s")
        self.update_s = 1.0 / header["hz"] if header.get("hz") else self.lag_s
        self.response = response_of(header.get("response"))
        self.notes = tuple(header.get("notes", ()))
        self._speed, self._sleep = speed, sleep
        self._next, self._begin = 0, 0

    def read(self) -> Reading:
        """Return the next reading; a SensorError at the end."""
        samples = self.recording.samples
        if self._next >= len(samples):
            raise SensorError(f"{self.recording.path} ended")
        reading = samples[self._next]
        self._next += 1
        if self._speed <= 0:
            return reading
        if self._next == 1:
            self._begin = self._clock()
        t_ns = self._begin + int((reading.t_ns - samples[0].t_ns) / self._speed)
        wait_s = (t_ns - self._clock()) * 1e-9
        if wait_s > 0:
            self._sleep(wait_s)
        return Reading(t_ns, reading.watts, reading.joules)
