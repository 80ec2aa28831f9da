"""The asynchronous twin of :func:`draftwire.connect`: the same names, for coroutines.

Sessions and streams share their code with the synchronous ones; only the waiting is the
event loop's.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from typing import TYPE_CHECKING, Any, Callable, Generator

import draftwire

if TYPE_CHECKING:
    from typing_extensions import ParamSpec

    from draftwire.runtime.session import AsyncSession, AsyncStream

    _P = ParamSpec("_P")

__all__ = ["AsyncSession", "AsyncStream", "connect"]


class _Connecting:
    """What :func:`connect` returns: to be awaited, or entered with ``async with``."""

    def __init__(self, given: dict[str, Any]) -> None:
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
            from draftwire.runtime.session import AsyncSession

            return AsyncSession(self._given)

        # A model takes seconds to load.
        session = await asyncio.get_running_loop().run_in_executor(None, load)
        await session._greet()
        return session


def _twin(plain: Callable[_P, object]) -> Callable[_P, _Connecting]:
    signature = inspect.signature(plain)

    @functools.wraps(plain, assigned=())
    def connect(*args: Any, **named: Any) -> _Connecting:
        """Connect as :func:`draftwire.connect` does, with the same arguments.

        Examples:
            >>> async with draftwire.aio.connect(url, draft=folder) as session:
            ...     async for chunk in session.generate("Once upon a time"):
            ...         print(chunk.text, end="", flush=True)  # doctest: +SKIP
        """
        given = signature.bind(*args, **named)
        given.apply_defaults()
        return _Connecting(given.arguments)

    return connect


connect = _twin(draftwire.connect)


if not TYPE_CHECKING:

    def __getattr__(name):
        if name in ("AsyncSession", "AsyncStream"):
            import draftwire.runtime.session as module

            return getattr(module, name)
        raise AttributeError(f"module 'draftwire.aio' has no attribute {name!r}")
