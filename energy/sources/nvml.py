"""NVIDIA management library: the power of a discrete GPU.

On a Jetson the library loads and every power query answers "not supported": that is not
0 W, it is no source.  Read through ctypes, so nothing has to be installed.
"""

from __future__ import annotations

import ctypes
from typing import Any

from draftwire.energy.rails import Accuracy
from draftwire.energy.sources.base import Clock, Finding, PowerSource, Reading, monotonic_ns
from draftwire.errors import SensorError

__all__ = ["NvmlSource"]

_NOT_SUPPORTED = 3  # NVML_ERROR_NOT_SUPPORTED of nvml.h


class NvmlSource(PowerSource):
    """Power of each GPU that tells it.

    Args:
        library: The loaded library; None loads ``libnvidia-ml.so.1``.
        clock: Nanoseconds, monotonic.

    Raises:
        SensorError: No library, no GPU, or power is not supported.
    """

    name = "nvml"
    scope = "gpu"
    update_s = 0.1  # boards renew between 20 and 100 ms; averaged over longer on some

    def __init__(self, library: Any = None, *, clock: Clock = monotonic_ns) -> None:
        self._clock = clock
        self._lib = _load() if library is None else library
        self._check(self._lib.nvmlInit_v2(), "init")
        self._devices: dict[str, Any] = {}
        count = ctypes.c_uint()
        self._check(self._lib.nvmlDeviceGetCount_v2(ctypes.byref(count)), "count")
        refused = 0
        for index in range(count.value):
            handle = ctypes.c_void_p()
            code = self._lib.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
            if code:
                continue
            code = self._power(handle)[0]
            refused += code == _NOT_SUPPORTED
            if code == 0:
                self._devices[f"GPU{index}"] = handle
        if not self._devices:
            why = "answers NotSupported (as on every Jetson)" if refused else "has no GPU"
            self.close()
            raise SensorError(f"NVML is there, but power {why}")
        self.rails = tuple(self._devices)
        self.total = self.rails
        self.accuracy = {
            # nvml.h: "+/- 5 % of current power draw" for Fermi and later.
            rail: Accuracy(0.001, 0.0, 0.05, "nvml.h, nvmlDeviceGetPowerUsage")
            for rail in self.rails
        }
        self.notes = ("GPU only: no host, no memory outside the board",)

    def _power(self, handle: Any) -> tuple[int, float]:
        milli = ctypes.c_uint()
        code = self._lib.nvmlDeviceGetPowerUsage(handle, ctypes.byref(milli))
        return int(code), milli.value * 1e-3

    def _check(self, code: int, what: str) -> None:
        if code:
            raise SensorError(f"NVML {what} failed with code {code}")

    def read(self) -> Reading:
        """Read every GPU.

        Raises:
            SensorError: None answered.
        """
        start = self._clock()
        watts = {}
        for rail, handle in self._devices.items():
            code, watt = self._power(handle)
            if code == 0:
                watts[rail] = watt
        if not watts:
            raise SensorError("no GPU tells its power any more")
        return Reading((start + self._clock()) // 2, watts)

    def close(self) -> None:
        """Leave the library."""
        self._lib.nvmlShutdown()


def probe() -> Finding:
    """Tell whether a GPU tells its power."""
    try:
        source = NvmlSource()
    except SensorError as exc:
        return Finding("nvml", False, str(exc))
    source.close()
    return Finding("nvml", True, f"{', '.join(source.rails)}; the GPU only")


def _load() -> Any:
    try:
        return ctypes.CDLL("libnvidia-ml.so.1")
    except OSError as exc:
        raise SensorError("no NVIDIA management library") from exc
