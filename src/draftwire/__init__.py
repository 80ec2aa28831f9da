"""draftwire: a frozen draft model on the board, the target model in the cloud.

The face of the package: :func:`connect` for programs, ``draftwire --help`` for people.
Importing it costs nothing; the rooms behind it are imported when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from draftwire.packages import DraftPackage
    from draftwire.runtime.session import Chunk, Session, Token

__version__ = "0.1.0"
__all__ = ["Chunk", "Session", "Token", "__version__", "connect"]

_LAZY = {name: "draftwire.runtime.session" for name in ("Chunk", "Session", "Token")}


def connect(
    url: str,
    *,
    draft: str | Path | DraftPackage,
    target: str = "",
    token: str | None = None,
    **options: Any,
) -> Session:
    """Load a draft, connect it to a verifier, and return the session.

    >>> with draftwire.connect(url, draft="models/reference.draft") as session:
    ...     for chunk in session.generate("Once upon a time"):
    ...         print(chunk.text, end="", flush=True)      # doctest: +SKIP

    Args:
        url: Address of the verifier, ``ws://`` or ``wss://``.
        draft: Draft package: a folder, or one already loaded.
        target: Name or version of the target; "" takes the verifier's default.
        token: Bearer token.
        options: See :class:`draftwire.runtime.session.Session`.

    Returns:
        A session; use it as a context manager.
    """
    from draftwire.runtime.session import Session

    return Session(url, draft=draft, target=target, token=token, **options)


def __getattr__(name: str) -> Any:
    import importlib

    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name == "aio":
        return importlib.import_module("draftwire.aio")
    raise AttributeError(f"module 'draftwire' has no attribute {name!r}")
