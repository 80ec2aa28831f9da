"""A session: a draft model, a verifier, and streams between them.

:class:`Session` and its twin :class:`AsyncSession` share everything but how they wait.
What happens is the business of :class:`~draftwire.runtime.driver.Driver`, which runs in a
thread of its own; the draft model has another. Callers only put things into the driver's
inbox and take chunks out of a queue.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import random
import secrets
from collections import deque
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Mapping,
    Sequence,
    TypeVar,
    Union,
)
from urllib.parse import urlsplit

from draftwire.energy.account.account import Budget
from draftwire.errors import ConfigError, DraftwireError, OutputError
from draftwire.options import (
    Connect,
    Draft,
    Limits,
    Measure,
    Option,
    Pacing,
    Power,
    Sampling,
    Structure,
)
from draftwire.packages import DraftPackage, load_draft, load_tokenizer
from draftwire.rules import whole
from draftwire.runtime.accounting import PowerMeter
from draftwire.runtime.conversation import Conversation, Prompt
from draftwire.runtime.drafter import Drafter
from draftwire.runtime.driver import Driver, StreamRun, StreamSpec, closed
from draftwire.runtime.edge.actions import Token
from draftwire.runtime.engines.draft_model import DraftModel
from draftwire.runtime.greeting import (
    assumed_welcome,
    hello_of,
    recall_welcome,
    remember_welcome,
)
from draftwire.runtime.link import LinkSettings, LinkState
from draftwire.runtime.live import EngineThread, LoopThread
from draftwire.runtime.options import (
    Structures,
    controller_for,
    encode_prompt,
    generate_signature,
    guarded,
    insight,
    mode_of,
    params_of,
    with_defaults,
)
from draftwire.runtime.pacing.decisions import Memory
from draftwire.runtime.report import stream_report
from draftwire.runtime.stream import AsyncStream, Chunk, Stream, StreamBase
from draftwire.runtime.text import Screen
from draftwire.runtime.tools import Calls
from draftwire.runtime.traced import trace_of
from draftwire.sampling import make_proposer
from draftwire.sampling.qs import QsProposer, QsSettings
from draftwire.transport.answers import may_pass
from draftwire.transport.capture import WireCapture
from draftwire.transport.dial import is_loopback, tls_context
from draftwire.transport.messages import Welcome
from draftwire.transport.wire import WebsocketNetwork
from draftwire.transport.wirelog import WireLog

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from draftwire.runtime.options import StreamOptions

__all__ = ["AsyncSession", "AsyncStream", "Chunk", "Session", "Stream", "Token"]

_SAMPLES = Option("n", 1, whole(1, 64), "texts of one call")
log = logging.getLogger("draftwire.session")
# Who wants the log says so; Python would print warnings of one that nobody has set up.
logging.getLogger("draftwire").addHandler(logging.NullHandler())

_S = TypeVar("_S", bound=StreamBase)
_Outcome = Union[Welcome, DraftwireError]


class SessionBase(Generic[_S]):
    """What both kinds of sessions share; see :class:`Session`."""

    _kind: ClassVar[type[Any]]

    def __init__(self, given: Mapping[str, Any]) -> None:
        """Take the arguments of ``connect``; a ConfigError where one is out of range, a
        PackageError where the draft is damaged or unknown."""
        energy, package, self._url = given["energy"], given["draft"], given["url"]
        own = not isinstance(energy, str)  # a meter or a model of watts, no word for one
        values = {**given, "energy": "off"} if own else given
        self._offline = Limits(offline=given["offline"]).offline or "wait"
        connect, draft = Connect.pick(values), Draft.pick(values)
        self._measure = measure = Measure.pick(values)
        if not isinstance(package, (str, os.PathLike, DraftPackage)):
            hint = "the folder of a draft package"
            raise ConfigError(f"draft is {package!r:.60}", hint=hint)
        if not isinstance(package, DraftPackage):
            package = load_draft(os.fspath(package))
        self._package, self._target = package, connect.target
        self._tokenizer = load_tokenizer(package.tokenizer_path)
        self._conversation: Conversation | None = None  # made when somebody talks
        self._structures = Structures(package)
        self._anchor: tuple[list[int], int] | None = None
        tls = None
        if connect.tls_ca or connect.tls_cert:
            tls = tls_context(ca=connect.tls_ca, cert=connect.tls_cert, key=connect.tls_key)
        self._closed = False
        self._remembered: Welcome | None = None
        self._last: StreamBase | None = None
        self._unreported: deque[StreamBase] = deque()
        # Seed, sample and positions of the last texts that were drawn.
        self._drawn: deque[tuple[int, int, range]] = deque(maxlen=64)
        self._memory: Memory | None = None  # made when the verifier is known
        self._capture: WireCapture | None = None
        with ExitStack() as stack:  # what is undone, the last of it first
            self._thread = thread = LoopThread()
            stack.callback(thread.close, lambda: None)
            wire_log = None
            if measure.wire_log is not None:
                wire_log = WireLog(measure.wire_log, "device")
                stack.callback(wire_log.close)
            network = WebsocketNetwork(
                thread.clock.loop,
                self._url,
                token=connect.token,
                insecure=connect.insecure,
                tls=tls,
                proxy=connect.proxy,
                log=wire_log,
            )
            model = DraftModel.load(package, **vars(draft))
            self._power = PowerMeter(energy if own else measure.energy)
            stack.callback(self._power.close)
            self._facts = {
                "id": package.id,
                "name": package.name,
                "engine": model.engine,
                "precision": model.precision,
            }
            self._warnings = list(model.warnings)
            self._parallel, self._draft_context = model.parallel, model.context
            self._drafter = Drafter(model, package.vocab_size)
            engine = EngineThread(self._drafter)
            stack.callback(engine.join)
            self._driver = driver = Driver(
                thread.clock,
                network,
                self._drafter,
                engine,
                hello_of(package, connect.target),
                LinkSettings(connect.timeout_s, connect.silence_s),
                random.Random(),
            )
            engine.start(driver, thread.clock.post)
            if measure.capture:
                self._capture = WireCapture(lambda: driver.link.ports)
                stack.callback(self._capture.close)
            stack.callback(self._settle_reports)
            stack.callback(thread.close, driver.close)
            self._first: Future[_Outcome] = Future()
            thread.call(driver.connect, self._first.set_result)
            self._parts = stack.pop_all()

    def _greeted(self, outcome: _Outcome) -> None:
        """The first try is over: take what it says, or what is known already."""
        if isinstance(outcome, Welcome):
            self._welcome = outcome
        elif self._offline == "draft" and may_pass(outcome):
            log.warning("no verifier yet: %s", outcome)
            known = recall_welcome(self._url, self._target, self._package)
            self._welcome = known or assumed_welcome(self._package)
        else:
            raise outcome
        shares = self._package.family.backbone is not None  # else it never meant to
        if self._welcome.compatibility == "tokenizer" and shares:
            self._warnings.append(
                f"target {self._welcome.target!r} shares the draft's tokenizer but "
                "not its backbone: fewer drafts may be accepted"
            )
        self._settle_reports()
        self._memory = Memory(
            self._measure.suffix_cache,
            self._welcome.tokenizer,
            self._welcome.vocab_size,
            self._power.measures,
            self._measure.radio,
            self._parallel,
        )
        self._drafter.vocab_size = self._welcome.vocab_size

    @property
    def welcome(self) -> Welcome:
        """What the verifier said of itself, last."""
        return self._driver.link.welcome or self._welcome

    @property
    def link(self) -> LinkState:
        """How the link to the verifier is doing."""
        return self._driver.link.state()

    @property
    def report(self) -> dict[str, Any] | None:
        """Run report of the stream that ended last; None before any has."""
        last = self._last
        return None if last is None else last.report

    def word(self, token: int) -> str:
        """Return the text of a token, as it stands behind other text."""
        tokenizer, anchor = self._tokenizer, self._anchor
        if anchor is None:  # its own text, which what follows is told apart from
            ids = tokenizer.encode("a")
            anchor = self._anchor = ids, len(tokenizer.decode(ids, skip_special=False))
        ids, length = anchor
        return tokenizer.decode([*ids, token], skip_special=False)[length:]

    # ---- streams

    def generate(self, prompt: str | Sequence[int], **options: Unpack[StreamOptions]) -> _S:
        """Begin the target's continuation of ``prompt``; return the stream.

        Args:
            prompt: Text, or token ids (then nothing is added in front).
            options: Those of docs/options.md, which are :mod:`draftwire.options`.
                ``controller`` may be an object too, and ``explain`` is called with one
                line for each block, while the stream is iterated over: why it ended where
                it did.

        Returns:
            The stream; it has begun already.

        Raises:
            ConfigError: A value is out of range, or the prompt is too long.
        """
        given = with_defaults(options, "generate")
        return self._stream(prompt, given)

    generate.__signature__ = generate_signature()  # type: ignore[attr-defined]

    def samples(
        self,
        prompt: str | Sequence[int] | Sequence[Mapping[str, Any]],
        n: int,
        **options: Unpack[StreamOptions],
    ) -> tuple[_S, ...]:
        """Begin ``n`` texts of one prompt, told apart by ``sample``; return the streams.

        They share the seed, and text ``i`` is sample ``i`` of it, as with ``n`` of the
        OpenAI endpoint. The first one sends the prompt and has it read; the others begin
        with its first token, name the prompt and take over what was read of it.

        Args:
            prompt: Text, token ids, or the messages of a chat.
            n: How many, 1 to 64.
            options: As of :meth:`generate`; ``sample`` is that of the first.

        Raises:
            ConfigError: As of :meth:`generate`, or ``n`` is no such number.
        """
        given = with_defaults(options, "samples")
        n = _SAMPLES.read(n)
        whole: Any = prompt
        if not isinstance(prompt, str) and any(isinstance(m, Mapping) for m in prompt):
            messages: Any = prompt
            whole = self._talk().prompt(messages)
        if given["seed"] is None:
            given["seed"] = secrets.randbits(32)
        first = self._stream(whole, given)
        others = [
            self._stream(whole, {**given, "sample": given["sample"] + i}, behind=first)
            for i in range(1, n)
        ]
        return (first, *others)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool = True,
        template_options: Mapping[str, Any] | None = None,
        **options: Unpack[StreamOptions],
    ) -> _S:
        """Begin the target's answer to ``messages``, put into the draft's chat template.

        What is spelt like a special token inside a message stays text. The end of the
        model's turn ends the stream. A draft without a template gets a plain transcript
        (``User: ...``), which the report warns of.

        Args:
            messages: ``[{"role": "user", "content": "Hello"}, ...]``: the conversation so
                far, of roles system, user, assistant and what else the template takes.
            tools: JSON schemas of tools, for templates that take them.
            tool_choice: ``"auto"`` (the answer is text, or calls of these tools),
                ``"required"`` (calls), or the name of the tool to call: a grammar sees to
                it, and ``stream.tool_calls`` are the calls. None leaves it to the model.
            parallel_tool_calls: There may be several.
            template_options: Further variables of the template, e.g.
                ``{"enable_thinking": False}``.
            options: As of :meth:`generate`.

        Returns:
            The stream; it has begun already.

        Raises:
            ConfigError: A value is out of range, the conversation is too long, or the
                template refuses it or needs jinja2.
        """
        given, calls = with_defaults(options, "chat"), None
        if tools is not None and tool_choice is not None:
            calls = self.calls_of(tools, tool_choice, parallel=parallel_tool_calls)
            if not self._talk().template.shows_tools:
                if calls is not None:
                    messages = [calls.introduction(tools), *messages]
                tools = None
        prompt = self._talk().prompt(messages, tools=tools, options=template_options)
        if calls is not None:
            if any(given[name] for name in ("schema", "regex", "choice", "grammar")):
                raise ConfigError(
                    "an answer that may call tools has their grammar, and no other",
                    hint='use tool_choice="none" with a schema',
                    about="tools",
                )
            given["grammar"] = calls.grammar()
        stream = self._stream(prompt, given)
        stream.calls = calls
        return stream

    def calls_of(
        self,
        tools: Sequence[Mapping[str, Any]],
        choice: str | Mapping[str, Any] = "auto",
        *,
        parallel: bool = True,
    ) -> Calls | None:
        """Return what calls of ``tools`` an answer may hold, in the form of the draft's
        template, or None; ``choice`` is ``tool_choice`` of :meth:`chat`, or none. A
        ConfigError where they make no sense."""
        words = self._tokenizer
        return Calls.of(
            tools,
            choice,
            parallel=parallel,
            template=self._talk().template.text,
            special=words.special,
            spell=lambda ids: words.decode(ids, skip_special=False),
        )

    def _talk(self) -> Conversation:
        if self._conversation is None:
            self._conversation = Conversation(self._package, self._tokenizer)
        return self._conversation

    def _stream(
        self,
        prompt: str | Sequence[int] | Prompt,
        given: Mapping[str, Any],
        behind: StreamBase | None = None,
    ) -> _S:
        driver, memory = self._driver, self._memory
        if self._closed or memory is None:
            raise closed()
        sampling, limits = Sampling.pick(given), Limits.pick(given)
        structure = Structure.pick(given)
        words, explain = given["controller"], given["explain"]
        controller = None if words is None or isinstance(words, str) else words
        pacing = Pacing.pick(given if controller is None else {**given, "controller": None})
        power = Power.pick(given)
        chat = prompt if isinstance(prompt, Prompt) else Prompt([], (), (), "")
        welcome, tokenizer = self.welcome, self._tokenizer
        near = is_loopback(urlsplit(self._url).hostname or "")
        if near and pacing.objective is None:  # there drafting takes the target's time
            pacing = dataclasses.replace(pacing, objective="cost")
        mode = mode_of(pacing)
        params = params_of(sampling, welcome, mode, lambda text: tokenizer.encode(text))
        given_ids = chat.ids if prompt is chat else prompt
        ids = encode_prompt(given_ids, tokenizer, self._package.bos_id, welcome)
        policy = memory.controller(
            controller_for(pacing, controller), power.max_watts, power.max_joules_per_token
        )
        proposer = make_proposer(
            params,
            welcome.vocab_size,
            insight=insight(policy, mode),
            second="leaves" in welcome.capabilities,
        )
        if isinstance(proposer, QsProposer):
            proposer.settings = QsSettings.of(pacing.qs)
        stop = (*limits.stop, *chat.stop)
        screen = guarded(lambda: Screen(tokenizer, ids, stop))
        stream: _S = self._kind(self, screen, explain)
        stream.warning = chat.warning
        ends = {*welcome.eos_ids, *self._package.eos_ids, *chat.stop_ids}
        stop_ids = [] if limits.ignore_eos else sorted(ends)
        rules = self._structures.rules(structure, welcome, params, stop_ids)
        if rules is not None and sampling.logprobs is not None:
            rules = dataclasses.replace(rules, forcing=False)  # each token is judged then
        account, budget = self._power.account(), None
        if power.max_joules is not None:
            budget = Budget(account.account, power.max_joules)
        spec = StreamSpec(
            prompt=ids,
            params=params,
            proposer=proposer,
            controller=policy,
            mode=mode,
            max_new_tokens=limits.max_new_tokens,
            vocab_size=welcome.vocab_size,
            context=welcome.context,
            draft_context=self._draft_context,
            stop_ids=stop_ids,
            account=account,
            budget=budget,
            deadline_s=limits.deadline_s,
            offline=limits.offline or self._offline,
            patience_s=limits.patience_s,
            cache=memory.cache,
            explain=explain is not None,
            grammar=rules,
            trace=trace_of(welcome, params.scheme, params.temperature),
            logprobs=0 if sampling.logprobs is None else sampling.logprobs + 1,
        )

        def begin() -> None:
            try:
                capture = self._capture
                before = (0, 0) if capture is None else (capture.up, capture.down)
                stream.number = number = driver.open(spec, stream)
                if number in driver.streams:
                    driver.streams[number].captured = before
                if stream.dropped:
                    driver.stop(number, "cancelled")
            except DraftwireError as exc:
                memory.give_back(policy)
                stream.refused(exc)

        def next_one() -> None:
            if not self._thread.call(begin):
                stream.refused(closed())

        self._settle_reports()
        first = begin if behind is None else partial(behind.then, next_one)
        if not self._thread.call(first):
            raise closed()
        return stream

    # What a stream asks of its session.

    def now(self) -> float:
        """Return the seconds of the driver's clock."""
        return self._thread.clock.now()

    def cancel(self, stream: StreamBase) -> None:
        """Have ``stream`` ended; returns at once."""

        def stop() -> None:
            if stream.number is not None:
                self._driver.stop(stream.number, "cancelled")

        self._thread.call(stop)

    def ended(self, stream: StreamBase, run: StreamRun) -> None:
        """A stream is over; in the driver's thread."""
        self._last = stream
        self._unreported.append(stream)
        if self._memory is not None:
            self._memory.give_back(run.spec.controller)

    def _settle_reports(self) -> None:
        """Write the reports of streams that ended unread: they hold on to the meter; and
        keep what the verifier said, which may have come after this session began."""
        welcome = self._driver.link.welcome
        if welcome is not None and welcome is not self._remembered:
            self._remembered = welcome
            remember_welcome(self._url, self._target, self._package, welcome)
        while self._unreported:
            self._unreported.popleft().report  # noqa: B018  (it is made when asked for)

    def report_of(self, stream: StreamBase, run: StreamRun) -> dict[str, Any]:
        """Return the run report of a stream that has ended."""
        memory = self._memory
        return stream_report(
            run,
            draft=self._facts,
            welcome=run.welcome or self._welcome,
            token_ids=[token.id for token in stream.tokens],
            text=stream.text,
            first_token_s=stream.first_token_s,
            capture=self._capture,
            signal={} if memory is None else memory.signal(),
            warnings=[
                *self._warnings,
                *filter(None, [stream.warning]),
                *self._shared_noise(stream, run),
            ],
        )

    def _shared_noise(self, stream: StreamBase, run: StreamRun) -> list[str]:
        """Return a warning where an earlier text was drawn with the same noise."""
        params, start = run.spec.params, len(run.spec.prompt)
        if params.temperature == 0 or not stream.tokens:
            return []
        new = range(start, start + len(stream.tokens))
        shared = any(
            (seed, sample) == (params.seed, params.sample)
            and max(new.start, old.start) < min(new.stop, old.stop)
            for seed, sample, old in self._drawn
        )
        self._drawn.append((params.seed, params.sample, new))
        if not shared:
            return []
        return [
            f"another text of this session was drawn with seed {params.seed} and sample "
            f"{params.sample} at the same positions: they share their noise and are not "
            "independent; give each text a sample of its own (0, 1, 2, ...)"
        ]

    # ---- the end

    def _shut(self) -> None:
        """End everything; harmless a second time."""
        if self._closed:
            return
        self._closed = True
        try:
            self._parts.close()
        finally:
            if self._memory is not None:
                self._memory.close()


class Session(SessionBase[Stream]):
    """A draft model connected to one target.

    Use it as a context manager, or call :meth:`close`. Streams may run at once, from any
    threads: they share the draft model, and each says in its report what that meant.
    """

    _kind = Stream

    def __init__(self, given: Mapping[str, Any]) -> None:
        super().__init__(given)
        try:
            self._greeted(self._first.result())
        except BaseException:  # also Ctrl-C while connecting
            with suppress(OutputError):  # of a log that tells of nothing
                self._shut()
            raise

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End every stream, the threads and the connection; harmless a second time."""
        self._shut()


class AsyncSession(SessionBase[AsyncStream]):
    """A :class:`Session` for coroutines: the same names, and nothing blocks the loop."""

    _kind = AsyncStream

    async def _greet(self) -> None:
        """Wait for the first connection."""
        try:
            self._greeted(await asyncio.wrap_future(self._first))
        except BaseException:
            with suppress(OutputError):
                await self.close()
            raise

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End every stream, the threads and the connection; harmless a second time."""
        await asyncio.get_running_loop().run_in_executor(None, self._shut)
