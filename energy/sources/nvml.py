"""NVIDIA management library: the power of a discrete GPU.

On a Jetson the library loads and every power query answers "not supported": that is not
0 W, it is no source.  Read through ctypes, so nothing has to be installed.
"""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any

from draftwire.energy.rails import Accuracy
from draftwire.energy.sources.base import Clock, PowerSource, Reading
from draftwire.errors import SensorError

_NOT_SUPPORTED = 3  # NVML_ERROR_NOT_SUPPORTED of nvml.h


class NvmlSource(PowerSource):
    """Power of each GPU that tells it; a SensorError where none does."""

    name = "nvml"
    scope = "gpu"
    update_s = 0.1  # boards renew between 20 and 100 ms; averaged over longer on some
    notes = ("GPU only: no host, no memory outside the board",)

    def __init__(self, library: Any = None, *, clock: Clock | None = None) -> None:
        super().__init__(clock)
        try:
            self._lib = ctypes.CDLL("libnvidia-ml.so.1") if library is None else library
        except OSError as exc:
            raise SensorError("no NVIDIA management library") from exc
        count = ctypes.c_uint()
        code = self._lib.nvmlInit_v2() or self._lib.nvmlDeviceGetCount_v2(
            ctypes.byref(count)
        )
        if code:
            raise SensorError(f"NVML failed with code {code}")
        devices, refused = {}, False
        for index in range(count.value):
            handle = ctypes.c_void_p()
            if self._lib.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)):
                continue
            try:
                self._power(handle)
                devices[f"GPU{index}"] = handle
            except OSError as exc:
                refused = refused or exc.errno == _NOT_SUPPORTED
        if not devices:
            why = "answers NotSupported (as on every Jetson)" if refused else "has no GPU"
            self.close()
            raise SensorError(f"NVML is there, but power {why}")
        self._devices = devices
        self.rails = self.total = tuple(devices)
        # nvml.h: "+/- 5 % of current power draw" for Fermi and later.
        known = Accuracy(0.001, 0.0, 0.05, "nvml.h, nvmlDeviceGetPowerUsage")
        self.accuracy = dict.fromkeys(self.rails, known)

    def _power(self, handle: Any) -> float:
        milli = ctypes.c_uint()
        code = int(self._lib.nvmlDeviceGetPowerUsage(handle, ctypes.byref(milli)))
        if code:
            raise OSError(code, f"NVML code {code}")
        return milli.value * 1e-3

    def read(self) -> Reading:
        return self.gather({r: partial(self._power, h) for r, h in self._devices.items()})

    def close(self) -> None:
        self._lib.nvmlShutdown()
