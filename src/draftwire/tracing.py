"""Traces of OpenTelemetry: one from the device's prompt to the verifier's commits.

Spans go to the program's own tracer provider, if it has set one up; a program that has not
imported OpenTelemetry pays nothing and imports nothing. What is in the environment of the
commands (``OTEL_EXPORTER_OTLP_ENDPOINT``) sets one up for them, with the extra ``otel``.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any, Mapping

from draftwire import __version__

log = logging.getLogger("draftwire")

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_SIZE = 26  # version, trace id, span id, flags


def _api() -> Any:
    """Return ``opentelemetry.trace`` if somebody has set up a provider, else None."""
    api: Any = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None
    nobody = (api.ProxyTracerProvider, api.NoOpTracerProvider)
    return None if isinstance(api.get_tracer_provider(), nobody) else api


def tracing() -> bool:
    """Return whether spans go anywhere."""
    return _api() is not None


class Trace:
    """One stream's span, at one end; ``tracer`` makes its children, ``api`` is
    ``opentelemetry.trace``."""

    def __init__(self, tracer: Any, span: Any, api: Any) -> None:
        self._tracer, self._span, self._api = tracer, span, api
        self._inside = api.set_span_in_context(span)

    @property
    def carried(self) -> bytes:
        """What the other end needs to go on with it: a ``traceparent`` in 26 bytes.

        Source:
            W3C Trace Context, section 3.2: version, trace-id, parent-id, trace-flags.
        """
        context = self._span.get_span_context()
        ids = context.trace_id.to_bytes(16, "big") + context.span_id.to_bytes(8, "big")
        flags = int(context.trace_flags)
        return bytes([0, *ids, flags])

    def step(self, name: str, seconds: float, attributes: Mapping[str, Any]) -> None:
        """Add a span inside it that took ``seconds`` and ends now."""
        end = time.time_ns()
        start = end - round(1e9 * seconds)
        span = self._tracer.start_span(
            name, context=self._inside, attributes=dict(attributes), start_time=start
        )
        span.end(end)

    def event(self, name: str, attributes: Mapping[str, Any] | None = None) -> None:
        """Note something that happened now."""
        self._span.add_event(name, dict(attributes or {}))

    def end(self, attributes: Mapping[str, Any], error: str = "") -> None:
        """It is over; ``error`` says why it has failed, if it has."""
        self._span.set_attributes(dict(attributes))
        if error:
            self._span.set_status(self._api.Status(self._api.StatusCode.ERROR, error))
        self._span.end()


def begin_trace(
    name: str, kind: str, attributes: Mapping[str, Any], carried: bytes = b""
) -> Trace | None:
    """Begin a stream's span (``"CLIENT"`` or ``"SERVER"``), or None when it would go
    nowhere.

    ``carried`` comes from the other end; empty goes on with what the program is in.
    """
    api = _api()
    if api is None:
        return None
    parent = None
    if len(carried) == _SIZE and carried[0] == 0:
        trace_id = int.from_bytes(carried[1:17], "big")
        span_id = int.from_bytes(carried[17:25], "big")
        flags = api.TraceFlags(carried[25])
        context = api.SpanContext(trace_id, span_id, is_remote=True, trace_flags=flags)
        if context.is_valid:
            parent = api.set_span_in_context(api.NonRecordingSpan(context))
    tracer = api.get_tracer("draftwire", __version__)
    span = tracer.start_span(
        name, context=parent, kind=api.SpanKind[kind], attributes=dict(attributes)
    )
    return Trace(tracer, span, api) if span.is_recording() else None


def from_environment() -> None:
    """Send spans where the environment says, as OpenTelemetry's own programs do."""
    if not any(os.environ.get(name) for name in _ENDPOINTS) or tracing():
        return
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("no traces: pip install 'draftwire[otel]' for the endpoint that is set")
        return
    name = os.environ.get("OTEL_SERVICE_NAME", "draftwire")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
