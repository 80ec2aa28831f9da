"""The asynchronous twin of :func:`draftwire.connect`: the same names, for coroutines.

Sessions and streams share their code with the synchronous ones; only the waiting is the
event loop's.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generator

if TYPE_CHECKING:
    from pathlib import Path

    from draftwire.packages import DraftPackage
    from draftwire.runtime.accounting import EnergyChoice
    from draftwire.runtime.session import AsyncSession, AsyncStream

__all__ = ["AsyncSession", "AsyncStream", "connect"]


class _Connecting:
    """What :func:`connect` returns: to be awaited, or entered with ``async with``."""

    def __init__(self, url: str, given: dict[str, object]) -> None:
        self._url = url
        self._given = given
        self._session: AsyncSession | None = None

    def __await__(self) -> Generator[object, None, AsyncSession]:
        return self._connect().__await__()

    async def __aenter__(self) -> AsyncSession:
        self._session = await self._connect()
        return self._session

    async def __aexit__(self, *exc: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def _connect(self) -> AsyncSession:
        def load() -> AsyncSession:
            from draftwire.runtime.session import AsyncSession, parts_of

            given = self._given
            parts = parts_of(given["draft"], given["energy"], given)  # type: ignore[arg-type]
            return AsyncSession(self._url, *parts)

        # A model takes seconds to load.
        session = await asyncio.get_running_loop().run_in_executor(None, load)
        await session._greet()
        return session


def connect(
    url: str,
    *,
    draft: str | Path | DraftPackage,
    target: str = "",
    token: str | None = None,
    insecure: bool = False,
    tls_ca: str | Path | None = None,
    tls_cert: str | Path | None = None,
    tls_key: str | Path | None = None,
    proxy: str = "auto",
    timeout_s: float = 10.0,
    silence_s: float | None = None,
    offline: str = "wait",
    precision: str | None = None,
    engine: str | None = None,
    provider: str | None = None,
    threads: int | str | None = None,
    energy: EnergyChoice = "auto",
    capture: bool = False,
    wire_log: str | Path | None = None,
    radio: str = "off",
    suffix_cache: str | Path = "off",
) -> _Connecting:
    """Connect as :func:`draftwire.connect` does, with the same arguments.

    Examples:
        >>> async with draftwire.aio.connect(url, draft=folder) as session:
        ...     async for chunk in session.generate("Once upon a time"):
        ...         print(chunk.text, end="", flush=True)  # doctest: +SKIP
    """
    return _Connecting(url, dict(locals()))


if not TYPE_CHECKING:

    def __getattr__(name):
        if name in ("AsyncSession", "AsyncStream"):
            import draftwire.runtime.session as module

            return getattr(module, name)
        raise AttributeError(f"module 'draftwire.aio' has no attribute {name!r}")
