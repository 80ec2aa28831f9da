"""Runs the requests of all local programs, one stream after another, in one thread."""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import Any, Callable, Mapping

from draftwire.errors import BusyError, DraftwireError, TransportError
from draftwire.runtime.service_link import Keeper
from draftwire.runtime.service_requests import Generate

__all__ = ["MAX_WAITING", "Job", "Worker"]

_LOG = logging.getLogger("draftwire.service")
MAX_WAITING = 8  # streams that wait for their turn
PATIENCE_S = 10.0
# A prompt on a slow board, and the link's own patience; after that something hangs.
SLACK_S = 120.0


class Job:
    """One stream.

    Args:
        request: What to write.
        send: Takes events, from any thread; returns False when nobody reads any more.
    """

    def __init__(self, request: Generate, send: Callable[[dict[str, Any]], bool]) -> None:
        self.request = request
        self.send = send
        self.stopped = threading.Event()
        self.came_s = time.monotonic()


class Worker:
    """Takes jobs and answers them.

    Args:
        keeper: Has the session.
        defaults: Options for ``Session.generate`` that a request may override.
        slack_s: Silence beyond a request's own patience that counts as hanging.
    """

    def __init__(
        self, keeper: Keeper, defaults: Mapping[str, Any], *, slack_s: float = SLACK_S
    ) -> None:
        self._keeper = keeper
        self._defaults = dict(defaults)
        self._slack_s = slack_s
        self._jobs: queue.Queue[Job | None] = queue.Queue(MAX_WAITING)
        self._running: Job | None = None
        self._due: float | None = None
        self.counts = {"finished": 0, "failed": 0, "cancelled": 0, "tokens": 0}
        self._thread = threading.Thread(
            target=self._run, name="draftwire-worker", daemon=True
        )

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def close(self) -> None:
        """End the running stream, refuse the waiting ones, and end the thread."""
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                self._fail(job, BusyError("the service is going away"))
        running = self._running
        if running is not None:
            self.stop(running)
        self._jobs.put(None)
        self._thread.join(timeout=10)

    @property
    def waiting(self) -> int:
        """Streams that wait for their turn."""
        return self._jobs.qsize()

    @property
    def running(self) -> bool:
        """True while a stream is written."""
        return self._running is not None

    @property
    def healthy(self) -> bool:
        """False once a stream has been silent for longer than anything explains."""
        due = self._due
        if not self._thread.is_alive():
            return False
        return due is None or time.monotonic() < due

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            BusyError: Too many wait already.
        """
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise BusyError(
                f"{MAX_WAITING} streams wait already", hint="ask again a little later"
            ) from None

    def stop(self, job: Job) -> None:
        """End a job, running or waiting; harmless when it is over."""
        job.stopped.set()
        session = self._keeper.session
        if job is self._running and session is not None:
            session.cancel()

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            self._running = job
            try:
                self._write(job)
            except DraftwireError as exc:
                self._fail(job, exc)
            except Exception as exc:  # noqa: BLE001  one stream must not end the service
                _LOG.exception("a stream failed: this is a bug")
                self._fail(job, DraftwireError(f"this is a bug: {exc}"))
            finally:
                self._running = None
                self._due = None

    def _write(self, job: Job) -> None:
        options = {"patience_s": PATIENCE_S, **self._defaults, **job.request.options}
        patience = float(options["patience_s"])
        deadline = options.get("deadline_s")
        self._expect(patience)
        left = None
        if deadline is not None:
            left = job.came_s + deadline - time.monotonic()
        wait = 0.0 if options.get("offline") == "error" else patience
        session = self._keeper.wait(
            wait if left is None else max(0.0, min(wait, left)), job.stopped
        )
        if deadline is not None:
            left = job.came_s + deadline - time.monotonic()
            if left <= 0:
                return self._done(job, "deadline", None)
            options["deadline_s"] = left
        if job.stopped.is_set():
            return self._done(job, "cancelled", None)
        if session is None:
            error = self._keeper.error
            raise TransportError(
                f"there is no verifier yet: {error or 'still connecting'}",
                hint="the service goes on trying; `draftwire service status`",
            )
        finish = "cancelled"
        chunks = session.generate(job.request.prompt, **options)
        try:
            for chunk in chunks:
                self._expect(patience)
                if chunk.finish is not None:
                    finish = chunk.finish
                if not job.send(_event(job.request.id, chunk)) or job.stopped.is_set():
                    # The generator may not have begun when `stop` cancelled the session.
                    finish = "cancelled" if chunk.finish is None else finish
                    break
        finally:
            chunks.close()
        return self._done(job, finish, session.report)

    def _expect(self, patience: float) -> None:
        self._due = time.monotonic() + patience + self._slack_s

    def _done(self, job: Job, finish: str, report: Mapping[str, Any] | None) -> None:
        self.counts["cancelled" if finish == "cancelled" else "finished"] += 1
        tokens = int(report["tokens"]) if report else 0
        self.counts["tokens"] += tokens
        job.send(
            {
                "id": job.request.id,
                "event": "done",
                "finish": finish,
                "tokens": tokens,
                "report": report,
            }
        )

    def _fail(self, job: Job, exc: DraftwireError) -> None:
        self.counts["failed"] += 1
        job.send(error_event(job.request.id, exc))


def error_event(identity: Any, exc: DraftwireError) -> dict[str, Any]:
    """Return the event that tells of an error."""
    return {
        "id": identity,
        "event": "error",
        "kind": type(exc).__name__,
        "message": str(exc),
        "hint": exc.hint,
    }


def _event(identity: Any, chunk: Any) -> dict[str, Any]:
    event = {
        "id": identity,
        "event": "chunk",
        "text": chunk.text,
        "token_ids": [token.id for token in chunk.tokens],
        "verified": chunk.verified,
        "t_s": round(chunk.t_s, 6),
    }
    if chunk.revision is not None:
        event.update(revision=chunk.revision, kept_text=chunk.kept_text)
    return event
