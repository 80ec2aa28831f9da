"""The asynchronous twin of :func:`draftwire.connect`.

The work is done by the same threads; only the waiting is the event loop's.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, AsyncIterator, Awaitable, Callable, Generator

if TYPE_CHECKING:
    from draftwire.runtime.session import Chunk, Session

__all__ = ["AsyncSession", "connect"]


class AsyncSession:
    """A :class:`draftwire.Session` for coroutines.

    Args:
        make: Makes the session; called in a thread.
    """

    def __init__(self, make: Callable[[], Session]) -> None:
        self._make = make
        # One thread: the calls of a session come one after another.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="draftwire-aio")
        self._session: Session | None = None

    def _run(self, call: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        return asyncio.get_running_loop().run_in_executor(self._pool, call, *args)

    def __await__(self) -> Generator[Any, None, AsyncSession]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> AsyncSession:
        self._session = await self._run(self._make)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def report(self) -> dict[str, Any] | None:
        """Run report of the last finished stream."""
        return None if self._session is None else self._session.report

    async def close(self) -> None:
        """Close the session."""
        if self._session is not None:
            await self._run(self._session.close)
        self._pool.shutdown(wait=False)

    async def generate(self, prompt: Any, **options: Any) -> AsyncIterator[Chunk]:
        """Stream chunks; the arguments are those of ``Session.generate``.

        Cancelling the task, or leaving the loop and closing the iterator, cancels the
        stream.
        """
        if self._session is None:
            raise RuntimeError("use `async with draftwire.aio.connect(...)`")
        chunks = await self._run(
            lambda: self._session.generate(prompt, **options)  # type: ignore[union-attr]
        )
        try:
            while True:
                chunk = await self._run(next, chunks, None)
                if chunk is None:
                    return
                yield chunk
        finally:
            # A cancelled wait leaves `next` running in the thread; stopping the stream
            # lets it return, and then the generator can be closed.
            self._session.cancel()
            await asyncio.shield(self._run(chunks.close))


def connect(url: str, **options: Any) -> AsyncSession:
    """Return a session to be used with ``async with``.

    Args:
        url: Address of the verifier.
        options: As for :func:`draftwire.connect`.
    """
    import draftwire

    return AsyncSession(lambda: draftwire.connect(url, **options))
