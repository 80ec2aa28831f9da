"""What local programs ask of the service, all of it checked, and the streams they get.

A request is one JSON object on a line. A few streams are written at once, the others in
the order they came.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable, Mapping, Union

from draftwire.errors import BusyError, ConfigError, DraftwireError
from draftwire.io import did_you_mean
from draftwire.options import OPTIONS, STREAM_GROUPS, check_prompt, options_of
from draftwire.runtime.service.link import Keeper

if TYPE_CHECKING:
    from draftwire.runtime.stream import AsyncStream, Chunk

__all__ = [
    "MAX_LINE",
    "MAX_STREAMS",
    "MAX_WAITING",
    "Cancel",
    "Generate",
    "Job",
    "Status",
    "Streams",
    "error_event",
    "read_request",
    "request_of",
]

_LOG = logging.getLogger("draftwire.service")
MAX_LINE = 256 << 10  # bytes of one request: a prompt of some 50,000 words
MAX_STREAMS = 4  # at once; they share one draft model
MAX_WAITING = 8  # for their turn
# A prompt on a slow board, beyond a stream's own patience; after that something hangs.
SLACK_S = 120.0
_MAX_ID = 64
_OPTIONS = {option.name: option for option in options_of(*STREAM_GROUPS)}

Event = Mapping[str, Any]
Identity = Union[str, int, None]


@dataclass(frozen=True)
class Generate:
    """Write text; ``id`` is the asker's name for it, in every event of this stream."""

    id: Identity
    prompt: str | list[int]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cancel:
    """End the stream ``id`` of the same connection."""

    id: Identity


@dataclass(frozen=True)
class Status:
    """Tell how the service is."""

    id: Identity


Request = Union[Generate, Cancel, Status]


def read_request(line: bytes) -> tuple[Identity, dict[str, Any]]:
    """Read one line; return who asks, which belongs into every answer, and the rest.

    Raises:
        ConfigError: It is no request.
    """
    try:
        raw = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"the request is not one line of JSON: {exc}") from exc
    if not isinstance(raw, dict):
        raise ConfigError("the request is not a JSON object")
    identity = raw.pop("id", None)
    if not _is_identity(identity):
        raise ConfigError(f"id must be a whole number or at most {_MAX_ID} characters")
    return identity, raw


def request_of(identity: Identity, raw: dict[str, Any]) -> Request:
    """Return what is asked for.

    Raises:
        ConfigError: A value is out of range.
    """
    op = raw.pop("op", "generate")
    if op == "generate":
        return _generate(identity, raw)
    if op not in ("cancel", "status"):
        raise ConfigError(
            f"there is no op {str(op)[:64]!r}", hint="generate, cancel or status"
        )
    if raw:
        raise ConfigError(f"{op} takes no {sorted(raw)[0][:64]!r}")
    return Cancel(identity) if op == "cancel" else Status(identity)


def _is_identity(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _MAX_ID
    return value is None or (
        isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63
    )


def _generate(identity: Identity, raw: dict[str, Any]) -> Generate:
    prompt = raw.pop("prompt", None)
    if prompt is None:
        raise ConfigError("a request needs a prompt", hint='{"prompt": "Once upon"}')
    options = {}
    for name, value in raw.items():
        option = _OPTIONS.get(name)
        if option is None:
            hint = did_you_mean(name, _OPTIONS, ", ".join(sorted(_OPTIONS)))
            raise ConfigError(f"there is no option {name[:64]!r}", hint=hint)
        if value is not None:
            options[name] = option.read(value)
    return Generate(identity, check_prompt(prompt), options)


class Job:
    """One stream; ``send`` takes its events, and returns False when nobody reads them."""

    def __init__(self, request: Generate, send: Callable[[Event], bool]) -> None:
        self.request = request
        self.send = send
        self.came_s = time.monotonic()
        self.turn = asyncio.Event()
        self.stream: AsyncStream | None = None
        self.task: asyncio.Task[None] | None = None
        self.due: float | None = None
        self.refused: DraftwireError | None = None

    def stop(self) -> None:
        """End it, running or waiting; harmless when it is over."""
        if self.stream is not None:
            self.stream.cancel()
        elif self.task is not None:
            self.task.cancel()


class Streams:
    """Takes jobs and answers them; silence of ``slack_s`` beyond a request's own patience
    counts as hanging.
    """

    def __init__(
        self, keeper: Keeper, defaults: Mapping[str, Any], *, slack_s: float = SLACK_S
    ) -> None:
        self._keeper = keeper
        self._defaults = dict(defaults)
        self._slack_s = slack_s
        self._jobs: list[Job] = []  # in the order they came; the first ones run
        self.counts = {"finished": 0, "failed": 0, "cancelled": 0, "tokens": 0}

    @property
    def running(self) -> int:
        """Streams that have their turn."""
        return min(len(self._jobs), MAX_STREAMS)

    @property
    def waiting(self) -> int:
        """Streams that wait for it."""
        return len(self._jobs) - self.running

    @property
    def healthy(self) -> bool:
        """False once a stream has been silent for longer than anything explains."""
        now = time.monotonic()
        return all(job.due is None or now < job.due for job in self._jobs)

    def submit(self, job: Job) -> None:
        """Take a job.

        Raises:
            BusyError: Too many wait already.
        """
        if self.waiting >= MAX_WAITING:
            raise BusyError(
                f"{MAX_WAITING} streams wait already", hint="ask again a little later"
            )
        self._jobs.append(job)
        job.task = asyncio.ensure_future(self._run(job))
        # A task may be cancelled before its first step: what ends it is said by others.
        job.task.add_done_callback(lambda task: self._over(job, task))
        self._advance()

    async def close(self) -> None:
        """End the running streams and refuse the waiting ones."""
        jobs = list(self._jobs)
        for job in jobs[MAX_STREAMS:]:
            job.refused = BusyError("the service is going away")
        for job in jobs:
            job.stop()
        tasks = [job.task for job in jobs if job.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    def _advance(self) -> None:
        for job in self._jobs[:MAX_STREAMS]:
            job.turn.set()

    def _over(self, job: Job, task: asyncio.Task[None]) -> None:
        self._jobs.remove(job)
        self._advance()
        if not task.cancelled():
            return
        if job.refused is not None:
            self._fail(job, job.refused)
        else:
            self._done(job, "cancelled", None)

    async def _run(self, job: Job) -> None:
        try:
            await self._write(job)
        except DraftwireError as exc:
            self._fail(job, exc)
        except Exception as exc:  # noqa: BLE001  one stream must not end the service
            _LOG.exception("a stream failed: this is a bug")
            self._fail(job, DraftwireError(f"this is a bug: {exc}"))

    async def _write(self, job: Job) -> None:
        options = {**self._defaults, **job.request.options}
        patience = float(options.get("patience_s", OPTIONS["patience_s"].default))
        deadline = options.get("deadline_s")
        try:
            await asyncio.wait_for(job.turn.wait(), deadline)
        except asyncio.TimeoutError:
            raise BusyError(
                f"its deadline passed while {MAX_STREAMS} streams before it were written"
            ) from None
        job.due = time.monotonic() + patience + self._slack_s
        ends = None if deadline is None else job.came_s + float(deadline)
        left = None if ends is None else ends - time.monotonic()
        offline = options.get("offline") or "wait"
        bears = 0.0 if offline == "error" else patience
        try:
            session = await asyncio.wait_for(self._keeper.wait(offline, bears), left)
        except asyncio.TimeoutError:
            raise self._keeper.absent() from None
        if ends is not None:  # the deadline counts from when the request came
            options["deadline_s"] = max(ends - time.monotonic(), 1e-3)
        job.stream = stream = session.generate(job.request.prompt, **options)
        async for chunk in stream:
            job.due = time.monotonic() + patience + self._slack_s
            if not job.send(_event(job.request.id, chunk)):
                stream.cancel()
        # What a sensor says now belongs to it, and that may take a moment.
        loop = asyncio.get_running_loop()
        report = await loop.run_in_executor(None, lambda: stream.report)
        self._done(job, stream.finish or "cancelled", report)

    def _done(self, job: Job, finish: str, report: Mapping[str, Any] | None) -> None:
        self.counts["cancelled" if finish == "cancelled" else "finished"] += 1
        tokens = int(report["tokens"]) if report else 0
        self.counts["tokens"] += tokens
        done = {"event": "done", "finish": finish, "tokens": tokens, "report": report}
        job.send({"id": job.request.id, **done})

    def _fail(self, job: Job, exc: DraftwireError) -> None:
        self.counts["failed"] += 1
        job.send(error_event(job.request.id, exc))


def error_event(identity: Any, exc: DraftwireError) -> dict[str, Any]:
    """Return the event that tells of an error."""
    return {"id": identity, "event": "error", **exc.to_dict()}


def _event(identity: Any, chunk: Chunk) -> dict[str, Any]:
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
