"""The live session: a draft model, a connection, and the state machine between them.

Three threads work on one stream. The drafting thread runs the model, the receiving
thread waits for verdicts (and reconnects), and the caller's thread takes text out of a
queue. The state
machine (:class:`~draftwire.runtime.edge_session.EdgeSession`) runs under one lock in
whichever thread brings the event, so no event waits for another thread to wake up.
"""

from __future__ import annotations

import queue
import ssl
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

from draftwire.energy.budget import Budget
from draftwire.errors import BusyError, ConfigError, DraftwireError, ModelError
from draftwire.packages import DraftPackage, load_draft, load_tokenizer
from draftwire.runtime.accounting import EnergyChoice, PowerMeter, StreamAccount
from draftwire.runtime.actions import (
    Action,
    Draft,
    Emit,
    Finished,
    Revise,
    Send,
    Token,
)
from draftwire.runtime.chunks import chunks_of
from draftwire.runtime.controller import Controller
from draftwire.runtime.decisions import Decisions
from draftwire.runtime.draft_model import DraftModel
from draftwire.runtime.drafter import Drafter
from draftwire.runtime.edge_session import EdgeSession
from draftwire.runtime.greeting import hello_of
from draftwire.runtime.link import Link, LinkState
from draftwire.runtime.mode import Mode
from draftwire.runtime.options import (
    PATIENCE_S,
    Chunk,
    StreamOptions,
    controller_for,
    encode_prompt,
)
from draftwire.runtime.screen import Screen
from draftwire.runtime.session_report import Reporter
from draftwire.runtime.stream_facts import StreamFacts
from draftwire.sampling import Proposal, make_proposer
from draftwire.transport.capture import WireCapture
from draftwire.transport.client import Connection, tls_context, to_exception
from draftwire.transport.messages import Error, Message

__all__ = ["Chunk", "Session", "Token"]


class Session:
    """A draft model connected to one target.

    Use it as a context manager, or call :meth:`close`. Streams run one after another.

    Args:
        url: Address of the verifier, ``ws://`` or ``wss://``.
        draft: Draft package: a folder, or one already loaded.
        target: Name or version of the target; "" takes the verifier's default.
        token: Bearer token.
        precision: Which of the package's models to run; None takes its default.
        engine: ``"onnxruntime"`` or ``"litert"``; None takes what is there.
        provider: Where onnxruntime computes, e.g. ``"cuda"``; None takes the best here.
        threads: Of the engine; ``"auto"`` measures; None: the draft's hint, or 1.
        insecure: See :class:`~draftwire.transport.client.Connection`.
        tls_ca: File of trusted certificates for ``wss://``.
        tls_cert: This device's certificate, for mutual TLS.
        tls_key: Its key.
        timeout: Seconds for connecting.
        silence_s: Seconds without a verdict after which the link counts as lost.
        energy: Power source for the reports, see
            :class:`~draftwire.runtime.accounting.PowerMeter`.
        capture: Count the bytes on the wire instead of computing them (root).
        suffix_cache: Draft from text seen before: ``"off"``, ``"memory"``, or a file
            that keeps it from session to session.
        radio: Put the signal into the reports, of ``"mmcli"`` or ``"iw:wlan0"``.

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
        engine: str | None = None,
        provider: str | None = None,
        threads: int | str | None = None,
        insecure: bool = False,
        tls_ca: str | Path | None = None,
        tls_cert: str | Path | None = None,
        tls_key: str | Path | None = None,
        timeout: float = 10.0,
        silence_s: float = 15.0,
        energy: EnergyChoice = "auto",
        capture: bool = False,
        suffix_cache: str | Path = "off",
        radio: str = "off",
    ) -> None:
        package = draft if isinstance(draft, DraftPackage) else load_draft(draft)
        self._package = package
        self._tokenizer = load_tokenizer(package.tokenizer_path)
        self._model = DraftModel.load(
            package,
            precision=precision,
            engine=engine,
            provider=provider,
            threads=threads,
        )
        tls: ssl.SSLContext | None = None
        if tls_ca or tls_cert:
            tls = tls_context(ca=tls_ca, cert=tls_cert, key=tls_key)
        self._lock = threading.RLock()
        self._machine: EdgeSession | None = None
        self._out: queue.Queue[Any] = queue.Queue()
        self._options: StreamOptions | None = None
        self._streams = 0
        self._closed = False
        self.report: dict[str, Any] | None = None

        def connect() -> Connection:
            hello = hello_of(package, target)
            return Connection(
                url, hello, token=token, insecure=insecure, tls=tls, timeout=timeout
            )

        self._power = PowerMeter(energy)
        self._account: StreamAccount | None = None
        self._budget: Budget | None = None
        self._link = Link(connect, self, silence_s=silence_s)
        self.welcome = self._link.connection.welcome
        self._warnings: list[str] = list(self._model.warnings)
        if self.welcome.compatibility != "family":
            self._warnings.append(
                f"target {self.welcome.target!r} shares the draft's tokenizer but not "
                "its backbone: fewer drafts may be accepted"
            )
        try:
            measures = self._power.measures
            self._decisions = Decisions(suffix_cache, self.welcome, measures, radio)
        except ConfigError:  # leave nothing open
            self._link.close()
            raise
        self._drafter = Drafter(
            self._model,
            vocab_size=self.welcome.vocab_size,
            on_proposal=self._on_proposal,
            on_error=self._on_draft_error,
        )
        self._capture = (
            WireCapture(lambda: self._link.connection.ports) if capture else None
        )
        self._reporter = Reporter(
            package, self._model, self._drafter, self._link, self._decisions, self._capture
        )
        self._link.start()

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
        self._link.close()
        self._drafter.close()
        self._power.close()
        if self._capture is not None:
            self._capture.close()
        self._decisions.close()

    @property
    def link(self) -> LinkState:
        """How the link to the verifier is doing."""
        return self._link.state()

    def cancel(self) -> None:
        """End the running stream; callable from any thread, harmless without one."""
        self._stop_from_outside("cancelled")

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
        block: int | None = None,
        controller: str | Controller | None = None,
        objective: str = "cost",
        pipeline: int = 1,
        preempt: str = "guess",
        cut: bool = False,
        batch: int = 0,
        deadline_s: float | None = None,
        offline: str = "wait",
        patience_s: float = PATIENCE_S,
        max_joules: float | None = None,
        max_watts: float | None = None,
        max_joules_per_token: float | None = None,
        explain: Callable[[str], None] | None = None,
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
            block: Tokens per draft block, when ``controller`` is None; None takes 4, and
                in a race the controller ``auto``.
            controller: Policy for the block length: ``"auto"``, ``"auto:energy"``,
                ``"fixed:4"``, ... (``runtime.controller.make_controller``).
            objective: ``"cost"`` spends few forwards of the target, ``"latency"`` races
                them against the drafts: see :class:`~draftwire.runtime.mode.Mode`, as
                for the next four.
            pipeline: Blocks in flight, at most.
            preempt: What is drafted while verdicts are out: ``"off"``, or any of
                ``guess``, ``exits``, ``outcomes``, joined by commas.
            cut: Send a half-drafted block once nothing is in flight.
            batch: Tokens per piece of a block that is still being drafted; 0 for none.
            deadline_s: Return what is there after so many seconds.
            offline: What to do while the link is lost: ``"wait"`` for it, ``"draft"``
                on alone and show guesses as such, or raise the ``"error"``.
            patience_s: How long to bear a lost link before that is an error all the
                same (with ``"draft"``: once the draft has no more to say).
            max_joules: End with what is there once the device has spent so much
                (``finish`` is ``"budget"``); needs a power source.
            max_watts: Mean watts over any ten seconds; ``auto`` keeps them by drafting
                less. Needs a power source, as the next.
            max_joules_per_token: Likewise, for each token of text.
            explain: Called with one line for each block: why it ended where it did.

        Returns:
            Iterator of chunks. :attr:`report` is set when it ends.

        Raises:
            ConfigError: A value is out of range, or the prompt is too long.
            TransportError: The link or the verifier failed on the way.
        """
        options = StreamOptions.of(
            self.welcome,
            max_new_tokens=max_new_tokens,
            scheme=scheme,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            controller=self._decisions.controller(
                controller_for(controller, block, objective),
                max_watts,
                max_joules_per_token,
            ),
            mode=Mode.of(objective, pipeline, preempt, cut, batch),
            deadline_s=deadline_s,
            offline=offline,
            patience_s=patience_s,
            max_joules=max_joules,
        )
        context = min(self.welcome.context, self._model.context)
        ids = encode_prompt(
            prompt, self._tokenizer, self._package.bos_id, self.welcome.vocab_size, context
        )
        screen = Screen(self._tokenizer, ids, stop)
        return self._stream(ids, options, screen, explain)

    def _stream(
        self,
        ids: list[int],
        options: StreamOptions,
        screen: Screen,
        explain: Callable[[str], None] | None,
    ) -> Iterator[Chunk]:
        began = time.perf_counter()
        proposer = make_proposer(
            options.params, self.welcome.vocab_size, insight=options.insight
        )
        with self._lock:
            self._check_usable(options.offline)
            self._stop("cancelled")  # a stream that was left lying
            self._streams += 1
            machine = EdgeSession(
                ids,
                params=options.params,
                proposer=proposer,
                controller=options.controller,
                max_new_tokens=options.max_new_tokens,
                context=min(self.welcome.context, self._model.context),
                stop_ids=sorted({*self.welcome.eos_ids, *self._package.eos_ids}),
                stream=self._streams,
                max_block=self.welcome.max_block,
                guess_offline=options.offline == "draft",
                mode=options.mode,
            )
            self._machine, self._options = machine, options
            out: queue.Queue[Any] = queue.Queue()
            self._out = out
            before = self._reporter.traffic()
            cache = self._decisions.begin(
                options.controller, options.params.scheme, ids, proposer, explain
            )
            self._drafter.begin(proposer, cache)
            self._account = self._power.account()
            self._budget = None
            if options.max_joules is not None:
                self._budget = Budget(self._account.account, options.max_joules)
            self._apply(machine.start() if self._link.up else machine.start_offline())
        name = options.controller.name
        facts = StreamFacts(began, len(ids), options.params, name, before, options.mode)
        try:
            yield from chunks_of(
                out, screen, facts, options.deadline_s, self._stop_from_outside
            )
        finally:
            # Also on break, Ctrl-C and errors: nothing goes on behind the user's back.
            with self._lock:
                if self._machine is machine:
                    self._stop("cancelled")
            self.report = self._reporter.report(
                machine, facts, self.welcome, self._account, self._warnings
            )

    # ---- events, from any thread

    def _on_proposal(self, branch: int, proposal: Proposal) -> None:
        with self._lock:
            if self._account is not None:
                self._account.proposal()
            self._decisions.drafted(self._drafter.steps, self._drafter.last_step_s)
            if self._machine is not None:
                self._apply(self._machine.drafted(branch, proposal))

    def _on_draft_error(self, error: Exception) -> None:
        if not isinstance(error, DraftwireError):
            error = ModelError(f"the draft model failed: {error}")
        with self._lock:
            self._fail_stream(error)

    def link_message(self, message: Message) -> None:
        """Take a message of the verifier; called by the link."""
        with self._lock:
            if isinstance(message, Error):
                self._error(message)
            elif self._machine is not None:
                self._apply(self._machine.message(message))
                self._decisions.received(message)
                if self._power.measures and self._account:
                    self._decisions.power(self._account.account.watts_by_phase())
                if self._budget is not None and self._budget.exceeded():
                    self._stop("budget")

    def _error(self, message: Error) -> None:
        error = to_exception(message)
        if message.fatal:
            raise error
        if message.code == "session" and self._machine is not None:
            self._apply(self._machine.link_up(resume=False))
        elif isinstance(error, BusyError) and self._mode != "error":
            # No room for the stream now: a later connection may find some.
            raise error
        else:
            self._fail_stream(error)

    def link_quiet(self) -> bool:
        """Tell whether a verdict is overdue; called by the link."""
        machine = self._machine
        return machine is not None and not machine.done and machine.waiting

    def link_lost(self, error: DraftwireError) -> None:
        """Put the stream on hold; called by the link."""
        with self._lock:
            self._decisions.link_lost()
            machine = self._machine
            if machine is None:
                return
            if self._mode == "error":
                self._fail_stream(error)
            else:
                if self._account is not None:
                    self._account.link_lost()
                self._apply(machine.link_lost())

    def link_still_down(self, error: DraftwireError, down_s: float) -> None:
        """Lose patience some time; called by the link."""
        with self._lock:
            machine, options = self._machine, self._options
            if machine is None or machine.done or options is None:
                return
            if down_s < options.patience_s:
                return
            if self._mode == "draft":
                if machine.guessed_all:
                    self._warnings_once(
                        f"{len(machine.unverified)} tokens are the draft's alone: the "
                        "link did not come back in time"
                    )
                    self._stop("length")
                return
            self._fail_stream(error)

    def link_up(self) -> None:
        """Take the stream up again; called by the link."""
        with self._lock:
            self.welcome = self._link.connection.welcome
            self._decisions.link_up()
            if self._machine is not None:
                self._apply(self._machine.link_up(resume=True))

    def link_failed(self, error: DraftwireError) -> None:
        """Give up; called by the link."""
        with self._lock:
            self._fail_stream(error)

    @property
    def _mode(self) -> str:
        return "error" if self._options is None else self._options.offline

    def _warnings_once(self, sentence: str) -> None:
        if sentence not in self._warnings:
            self._warnings.append(sentence)

    def _apply(self, actions: Sequence[Action]) -> None:
        account = self._account
        for action in actions:
            if account is not None and isinstance(action, Send):
                account.sending()
            if isinstance(action, Send):
                self._decisions.send(self._link, action.message)
            elif isinstance(action, Draft):
                self._drafter.submit(action)
            else:
                assert isinstance(action, (Emit, Revise, Finished))
                if isinstance(action, Emit):
                    self._decisions.emitted(action)
                self._out.put(action)
        machine = self._machine
        if account is not None and machine is not None and not machine.done:
            account.settle(drafting=machine.drafting, waiting=machine.waiting)

    def _stop_from_outside(self, reason: str) -> None:
        with self._lock:
            self._stop(reason)

    def _stop(self, reason: str) -> None:
        machine = self._machine
        if machine is not None and not machine.done:
            self._apply(machine.stop(reason))

    def _fail_stream(self, error: Exception) -> None:
        machine = self._machine
        if machine is None or machine.done:
            return
        for action in machine.stop("error"):
            if isinstance(action, Draft):
                self._drafter.submit(action)
        self._out.put(error)

    def _check_usable(self, offline: str) -> None:
        if self._closed:
            raise ConfigError("this session is closed")
        error = self._link.error
        if error is not None and (self._link.failed or offline == "error"):
            if not self._link.up:
                raise error
