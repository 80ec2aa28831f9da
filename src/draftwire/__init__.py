"""draftwire: a frozen draft model on the board, the target model in the cloud.

What is public: :func:`connect` for programs, ``draftwire --help`` for people.
Importing it costs nothing; the packages behind it are imported when they are used.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from draftwire import errors
from draftwire.errors import *  # noqa: F403  (all of them)

if TYPE_CHECKING:
    from pathlib import Path

    from draftwire import aio
    from draftwire.packages import DraftPackage
    from draftwire.runtime.accounting import EnergyChoice
    from draftwire.runtime.session import Chunk, Session, Stream, Token

# onnxruntime's wheels from 1.31 on keep an id in ~/.cache and send what they were used for.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
__all__ = ["Chunk", "Session", "Stream", "Token", "__version__", "aio", "connect"]
__all__ += errors.__all__


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
) -> Session:
    """Load a draft, connect it to a verifier, and return the session.

    Examples:
        >>> with draftwire.connect(url, draft="models/reference.draft") as session:
        ...     for chunk in session.generate("Once upon a time"):
        ...         print(chunk.text, end="", flush=True)  # doctest: +SKIP

    Args:
        url: Address of the verifier, ``ws://`` or ``wss://``.
        draft: Draft package: a folder, or one already loaded.
        target: Name or version of the target; "" takes the verifier's default.
        token: Bearer token.
        insecure: Allow plain ``ws://`` to other machines.
        tls_ca: File of trusted certificates for ``wss://``.
        tls_cert: This device's certificate, for mutual TLS.
        tls_key: Its key.
        proxy: ``"auto"`` (the environment's), ``"off"``, or the URL of an HTTP proxy.
        timeout_s: Seconds for connecting and greeting.
        silence_s: Seconds without a sign of life, while an answer is owed, after which
            the link counts as lost; None derives it from what answers take.
        offline: What streams do without a link, unless they say otherwise: ``"wait"``,
            ``"draft"`` or ``"error"``. With ``"draft"`` a session begins even where no
            verifier can be reached: what it knows of it is from the last time, or from
            the draft alone.
        precision: Which of the package's models to run; None takes its default.
        engine: ``"onnxruntime"`` or ``"litert"``; None takes what is there.
        provider: Where onnxruntime computes, e.g. ``"cuda"``; None takes the best here.
        threads: Of the engine; ``"auto"`` measures; None: the draft's hint, or 1.
        energy: Power source for the reports, see
            :class:`~draftwire.runtime.accounting.PowerMeter`.
        capture: Count the bytes on the wire instead of computing them (root).
        wire_log: Note every message in this file, as JSON lines; see
            :mod:`draftwire.transport.wirelog`.
        radio: Put the signal into the reports, of ``"mmcli"`` or ``"iw:wlan0"``.
        suffix_cache: Draft from text seen before: ``"off"``, ``"memory"``, or a file
            that keeps it from session to session.

    Returns:
        A session; use it as a context manager.

    Raises:
        ConfigError: A setting is wrong.
        ModelError: The draft does not load, or does not match the target.
        TransportError: The verifier cannot be reached or refuses.
    """
    given = dict(locals())
    from draftwire.runtime.session import Session

    return Session(given)


if not TYPE_CHECKING:  # they would believe any name; above they see those that there are

    def __getattr__(name):
        import importlib

        if name in ("Chunk", "Session", "Stream", "Token"):
            return getattr(importlib.import_module("draftwire.runtime.session"), name)
        if name == "aio":
            return importlib.import_module("draftwire.aio")
        raise AttributeError(f"module 'draftwire' has no attribute {name!r}")
