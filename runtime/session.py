"""The live session: a draft model, a connection, and the state machine between them.

Three threads work on one stream. The drafting thread runs the model, the receiving
thread waits for verdicts, and the caller's thread takes text out of a queue. The state
machine (:class:`~draftwire.runtime.edge_session.EdgeSession`) runs under one lock in
whichever thread brings the event, so no event waits for another thread to wake up.
"""

from __future__ import annotations

import queue
import secrets
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Sequence

import draftwire
from draftwire.errors import ConfigError, DraftwireError, ModelError
from draftwire.packages import DraftPackage, load_draft, load_tokenizer
from draftwire.runtime.controller import Controller, make_controller
from draftwire.runtime.draft_model import DraftModel
from draftwire.runtime.drafter import Drafter
from draftwire.runtime.edge_session import (
    Action,
    Draft,
    EdgeSession,
    Emit,
    Finished,
    Send,
    Token,
)
from draftwire.runtime.stream_facts import StreamFacts, report_of
from draftwire.runtime.text import TextStream
from draftwire.sampling import Proposal, SamplingParams, make_proposer
from draftwire.transport.client import Connection, tls_context, to_exception
from draftwire.transport.codec import VERSION
from draftwire.transport.messages import Error, Hello

__all__ = ["Chunk", "Session", "Token"]


@dataclass(frozen=True)
class Chunk:
    """A piece of the stream.

    Attributes:
        text: New text; valid UTF-8, possibly empty (a character may need more tokens).
        tokens: The final tokens behind this piece.
        t_s: Seconds since the generation began.
        finish: Why the stream ended, on the last chunk; else None.
    """

    text: str
    tokens: tuple[Token, ...]
    t_s: float
    finish: str | None = None


class Session:
    """A draft model connected to one target.

    Use it as a context manager, or call :meth:`close`. Streams run one after another.

    Args:
        url: Address of the verifier, ``ws://`` or ``wss://``.
        draft: Draft package: a folder, or one already loaded.
        target: Name or version of the target; "" takes the verifier's default.
        token: Bearer token.
        precision: Which of the package's models to run; None takes its default.
        threads: Of the engine; ``"auto"`` measures.
        insecure: See :class:`~draftwire.transport.client.Connection`.
        tls_ca: File of trusted certificates for ``wss://``.
        tls_cert: This device's certificate, for mutual TLS.
        tls_key: Its key.
        timeout: Seconds for connecting.

    Attributes:
        welcome: What the verifier said of itself.
        report: Run report of the last finished stream (design: one run, one report).

    Raises:
        ConfigError: A setting is wrong.
        ModelError: The draft does not load, or does not match the target.
        TransportError: The verifier cannot be reached or refuses.
    """

    def __init__(
        self,
        url: str,
        *,
        draft: str | Path | DraftPackage,
        target: str = "",
        token: str | None = None,
        precision: str | None = None,
        threads: int | str = 1,
        insecure: bool = False,
        tls_ca: str | Path | None = None,
        tls_cert: str | Path | None = None,
        tls_key: str | Path | None = None,
        timeout: float = 10.0,
    ) -> None:
        package = draft if isinstance(draft, DraftPackage) else load_draft(draft)
        self._package = package
        self._tokenizer = load_tokenizer(package.tokenizer_path)
        self._model = DraftModel.load(
            package,
            precision=precision,
            threads=threads,  # type: ignore[arg-type]
        )
        tls: ssl.SSLContext | None = None
        if tls_ca or tls_cert:
            tls = tls_context(ca=tls_ca, cert=tls_cert, key=tls_key)
        self._connection = Connection(
            url,
            _hello(package, target),
            token=token,
            insecure=insecure,
            tls=tls,
            timeout=timeout,
        )
        self.welcome = self._connection.welcome
        self.report: dict[str, Any] | None = None
        self._lock = threading.RLock()
        self._machine: EdgeSession | None = None
        self._out: queue.Queue[Any] = queue.Queue()
        self._failure: Exception | None = None
        self._streams = 0
        self._closed = False
        self._warnings: list[str] = []
        if self.welcome.compatibility != "family":
            self._warnings.append(
                f"target {self.welcome.target!r} shares the draft's tokenizer but not "
                "its backbone: fewer drafts may be accepted"
            )
        self._drafter = Drafter(
            self._model,
            vocab_size=self.welcome.vocab_size,
            on_proposal=self._on_proposal,
            on_error=self._on_draft_error,
        )
        self._receiver = threading.Thread(
            target=self._receive, name="draftwire-receiver", daemon=True
        )
        self._receiver.start()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the stream, the threads and the connection; harmless a second time."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._stop("cancelled")
        self._connection.close()
        self._drafter.close()
        self._receiver.join(timeout=5)

    def cancel(self) -> None:
        """End the running stream; callable from any thread, harmless without one."""
        with self._lock:
            self._stop("cancelled")

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_new_tokens: int = 128,
        scheme: str | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        block: int = 4,
        controller: str | Controller | None = None,
        deadline_s: float | None = None,
    ) -> Iterator[Chunk]:
        """Stream the target's continuation of ``prompt``.

        Leaving the iterator early (``break``, Ctrl-C) cancels the stream at once.

        Args:
            prompt: Text, or token ids (then nothing is added in front).
            max_new_tokens: At most so many tokens.
            scheme: Sampling scheme; None takes ``greedy`` at temperature 0, else
                ``coupled``.
            temperature: 0 is greedy.
            top_k: 0 keeps all.
            top_p: 1 keeps all.
            seed: Of the sampling noise, 64 bits; None draws one (it is in the report).
            stop: Strings that end the text; they are not part of it.
            block: Tokens per draft block, when ``controller`` is None.
            controller: Policy for the block length, e.g. ``"fixed:4"``.
            deadline_s: Return what is there after so many seconds.

        Returns:
            Iterator of chunks. :attr:`report` is set when it ends.

        Raises:
            ConfigError: A value is out of range, or the prompt is too long.
            TransportError: The link or the verifier failed on the way.
        """
        params = SamplingParams(
            scheme or ("greedy" if temperature == 0 else "coupled"),
            float(temperature),
            top_k,
            float(top_p),
            secrets.randbits(63) if seed is None else seed,
        )
        if params.scheme not in self.welcome.schemes:
            raise ConfigError(
                f"the verifier does not know the sampling scheme {params.scheme!r}",
                hint="it knows " + ", ".join(self.welcome.schemes),
            )
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {max_new_tokens}, must be at least 1")
        if deadline_s is not None and not deadline_s > 0:
            raise ConfigError(f"deadline_s is {deadline_s}, must be above 0")
        ids = self._encode(prompt)
        if controller is None:
            controller = f"fixed:{block}"
        if isinstance(controller, str):
            controller = make_controller(controller)
        text = TextStream(self._tokenizer, prompt_ids=ids, stop=stop)
        return self._stream(ids, params, controller, text, max_new_tokens, deadline_s)

    def _encode(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            ids = self._tokenizer.encode(prompt, bos_id=self._package.bos_id)
        else:
            ids = [int(t) for t in prompt]
        if not ids:
            raise ConfigError("the prompt is empty")
        limit = self.welcome.vocab_size
        if min(ids) < 0 or max(ids) >= limit:
            raise ConfigError(f"the prompt holds a token id outside 0..{limit - 1}")
        context = min(self.welcome.context, self._model.context)
        if len(ids) >= context:
            raise ConfigError(
                f"the prompt has {len(ids)} tokens, but draft and target hold "
                f"{context} together with the answer",
                hint="shorten the prompt",
            )
        return ids

    def _stream(
        self,
        ids: list[int],
        params: SamplingParams,
        controller: Controller,
        text: TextStream,
        max_new_tokens: int,
        deadline_s: float | None,
    ) -> Iterator[Chunk]:
        began = time.perf_counter()
        proposer = make_proposer(params, self.welcome.vocab_size)
        with self._lock:
            self._check_usable()
            self._stop("cancelled")  # a stream that was left lying
            self._streams += 1
            machine = EdgeSession(
                ids,
                params=params,
                proposer=proposer,
                controller=controller,
                max_new_tokens=max_new_tokens,
                context=min(self.welcome.context, self._model.context),
                stop_ids=sorted({*self.welcome.eos_ids, *self._package.eos_ids}),
                stream=self._streams,
                max_block=self.welcome.max_block,
            )
            self._machine = machine
            out: queue.Queue[Any] = queue.Queue()
            self._out = out
            before = self._connection.traffic.copy()
            self._drafter.begin(proposer)
            self._apply(machine.start())
        facts = StreamFacts(began, len(ids), params, controller.name, before)
        try:
            yield from self._drain(machine, out, text, facts, deadline_s)
        finally:
            # Also on break, Ctrl-C and errors: nothing goes on behind the user's back.
            with self._lock:
                if self._machine is machine:
                    self._stop("cancelled")
            self.report = self._report(machine, facts)

    def _drain(
        self,
        machine: EdgeSession,
        out: queue.Queue[Any],
        text: TextStream,
        facts: StreamFacts,
        deadline_s: float | None,
    ) -> Iterator[Chunk]:
        while True:
            left = None
            if deadline_s is not None:
                left = max(0.0, facts.began + deadline_s - time.perf_counter())
            try:
                event = out.get(timeout=left)
            except queue.Empty:
                with self._lock:
                    self._stop("deadline")
                deadline_s = None
                continue
            now = time.perf_counter() - facts.began
            if isinstance(event, Exception):
                facts.finish = "error"
                raise event
            if isinstance(event, Finished):
                rest = text.flush()
                facts.text.append(rest)
                facts.finish = event.reason
                yield Chunk(rest, (), now, event.reason)
                return
            if facts.first_token_s is None:
                facts.first_token_s = now
            facts.ids += [t.id for t in event.tokens]
            piece = text.push(t.id for t in event.tokens)
            facts.text.append(piece)
            if text.stopped is not None:
                facts.finish = "stop"
                with self._lock:
                    self._stop("stop")
                yield Chunk(piece, event.tokens, now, "stop")
                return
            yield Chunk(piece, event.tokens, now)

    # ---- events, from any thread

    def _on_proposal(self, branch: int, proposal: Proposal) -> None:
        with self._lock:
            if self._machine is not None:
                self._apply(self._machine.drafted(branch, proposal))

    def _on_draft_error(self, error: Exception) -> None:
        if not isinstance(error, DraftwireError):
            error = ModelError(f"the draft model failed: {error}")
        with self._lock:
            self._fail_stream(error)

    def _receive(self) -> None:
        while True:
            try:
                message = self._connection.receive()
                with self._lock:
                    if isinstance(message, Error):
                        self._fail_stream(to_exception(message))
                        if message.fatal:
                            self._failure = to_exception(message)
                    elif self._machine is not None:
                        self._apply(self._machine.message(message))
            except DraftwireError as exc:
                with self._lock:
                    if self._failure is None:
                        self._failure = exc
                    self._fail_stream(self._failure)
                self._connection.close()
                return

    def _apply(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._connection.send(action.message)
            elif isinstance(action, Draft):
                self._drafter.submit(action)
            else:
                assert isinstance(action, (Emit, Finished))
                self._out.put(action)

    def _stop(self, reason: str) -> None:
        machine = self._machine
        if machine is None or machine.done:
            return
        try:
            self._apply(machine.stop(reason))
        except DraftwireError as exc:  # the link is gone: there is nobody to tell
            self._out.put(Finished(reason))
            if self._failure is None:
                self._failure = exc

    def _fail_stream(self, error: Exception) -> None:
        machine = self._machine
        if machine is None or machine.done:
            return
        for action in machine.stop("error"):
            if isinstance(action, Draft):
                self._drafter.submit(action)
        self._out.put(error)

    def _check_usable(self) -> None:
        if self._closed:
            raise ConfigError("this session is closed")
        if self._failure is not None:
            raise self._failure

    def _report(self, machine: EdgeSession, facts: StreamFacts) -> dict[str, Any]:
        package, model = self._package, self._model
        return report_of(
            facts,
            machine.counts,
            self.welcome,
            draft={
                "id": package.id,
                "name": package.name,
                "engine": model.engine,
                "precision": model.precision,
            },
            traffic=self._connection.traffic.minus(facts.before),
            draft_s=self._drafter.draft_s,
            prefill_s=self._drafter.prefill_s,
            warnings=self._warnings,
        )


def _hello(package: DraftPackage, target: str) -> Hello:
    backbone = package.family.backbone
    return Hello(
        (VERSION,),
        f"draftwire/{draftwire.__version__}",
        target,
        bytes.fromhex(package.family.tokenizer),
        bytes.fromhex(backbone) if backbone else b"",
        package.vocab_size,
        bytes.fromhex(package.id),
        package.family.name,
    )
