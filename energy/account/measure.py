"""Energy of a piece of other people's code, as a context manager or a decorator.

    with draftwire.energy.measure("grasp") as m:
        grasp()
    print(m.energy_j, m.uncertainty_j, m.scope, m.why_null)

    @draftwire.energy.measure("plan")
    def plan(): ...

    plan(); print(plan.energy[-1].energy_j)

A machine without a sensor runs the code all the same: ``energy_j`` is then None and
``why_null`` says why.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Callable, Sequence, TypeVar

from draftwire.energy.account.meter import DEFAULT_HZ, Meter, Window
from draftwire.energy.account.result import EnergyResult, null_result
from draftwire.energy.rails import RailTable, load_tables
from draftwire.energy.sources.choose import open_meter
from draftwire.errors import SensorError

Function = TypeVar("Function", bound=Callable[..., Any])
KEEP = 1000  # results that a decorated function remembers


class measure:  # noqa: N801 - used like a function
    """Measure a block or a function, with a running ``meter`` or one of its own.

    ``result`` is the whole result once the block is left; its ``energy_j``,
    ``uncertainty_j``, ``source``, ``scope``, ``why_null`` and so on are attributes here.
    """

    def __init__(
        self,
        label: str = "",
        *,
        meter: Meter | None = None,
        source: str = "auto",
        board: str | None = None,
        rails: Sequence[str] | None = None,
        hz: float = DEFAULT_HZ,
        tables: Sequence[RailTable] | None = None,
        root: Path = Path("/"),
    ) -> None:
        self.label = label
        self.result: EnergyResult = null_result(label, "the block has not ended yet")
        self._shared, self._tables = meter, tables
        self._choice = {"board": board, "rails": rails, "hz": hz, "root": root}
        self._choice["name"] = source
        self._meter: Meter | None = None
        self._window: Window | None = None

    def __enter__(self) -> measure:
        meter = self._shared
        if meter is None:
            tables = load_tables() if self._tables is None else self._tables
            try:
                meter = self._meter = open_meter(tables, **self._choice)  # type: ignore[arg-type]
            except SensorError as exc:
                self.result = null_result(self.label, str(exc))
                return self
            meter.start()
        self._window = meter.window(self.label).open()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._window is not None:
            self._window.__exit__(*exc)
            self.result = self._window.result
        if self._meter is not None:
            self._meter.close()
        self._window = self._meter = None

    def __call__(self, function: Function) -> Function:
        """Decorate a function; its results are in ``function.energy``."""
        results: list[EnergyResult] = []

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            label = self.label or function.__name__
            block = measure(label, meter=self._shared, tables=self._tables)
            block._choice = self._choice
            with block:
                value = function(*args, **kwargs)
            results.append(block.result)
            del results[:-KEEP]
            return value

        wrapper.energy = results  # type: ignore[attr-defined]
        return wrapper  # type: ignore[return-value]

    def __getattr__(self, name: str) -> Any:
        if name == "result":  # not there yet: no way round
            raise AttributeError(name)
        return getattr(self.result, name)
