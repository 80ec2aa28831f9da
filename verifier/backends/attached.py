"""A server that may not be touched, as a target: every verdict is an HTTP request.

``k`` drafts are judged by one request of ``k + 1`` prompts (the text, the text and one
draft, ...) for one token each: what the server says after each is what the draft must be.
So the server needs nothing but completions of token ids, a prefix cache that makes them
cheap, and an answer in ids. What it samples with decides which schemes there are:

- ``greedy`` always;
- ``coupled`` where our processor sits in the server (:mod:`.vllm.http_processor`), which a
  probe at the start finds out;
- ``match`` without it: the server draws with coins of its own, independent for each row.

docs/engines-outside.md has what it costs: often more than not speculating at all.
"""

from __future__ import annotations

import http.client
import json
import logging
import secrets
import ssl
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Sequence
from urllib.parse import urlsplit

import numpy as np

from draftwire.clock import Clock
from draftwire.errors import (
    BusyError,
    ConfigError,
    DraftwireError,
    IncompatibleError,
    ModelError,
)
from draftwire.io import parse_json
from draftwire.sampling import SamplingParams
from draftwire.sampling.races import noise_of
from draftwire.transport.answers import clean, retry_after
from draftwire.transport.dial import is_loopback, web
from draftwire.verifier.backends.hf_adapter import OfCheckpoint, token_ids
from draftwire.verifier.backends.streaming import OnEnd, OnStep, Order, Push, Run, Step
from draftwire.verifier.backends.vllm.wish import Wish

log = logging.getLogger("draftwire.verifier")

_PAUSES_S = 0.1, 5.0  # between two tries: the first, the longest
_ANSWER_BYTES = 64 << 20
_PROBE_TOKENS = 6
_PIECE, _PIECE_S = 256, 0.25  # tokens of a prompt that are read at once, at first
_HOT = 100.0  # a temperature at which noise decides
_TRIES, _COINS = 8, 48  # seeds whose tokens, and whose coins, are looked at


class Engine:
    """The HTTP side: one question, one answer, patience with a server without room.

    ``key`` is its bearer token, or ""; ``timeout_s`` are for one answer, ``patience_s`` for
    one question, tries and pauses together. A ConfigError where the address is none, or
    the key would cross the network in the clear.
    """

    def __init__(
        self, url: str, *, key: str = "", timeout_s: float = 60.0, patience_s: float = 120.0
    ) -> None:
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            parts, host = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not host or parts.query:
            raise ConfigError(
                f"{clean(url)!r} is no server's address",
                hint="--engine http://127.0.0.1:8000",
            )
        if key and parts.scheme == "http" and not is_loopback(host):
            raise ConfigError(
                f"{host} would be sent its key in the clear", hint="use https://"
            )
        self.url = url.rstrip("/")
        if self.url.endswith("/v1"):
            self.url = self.url[:-3]
        self._key, self.timeout_s, self.patience_s = key, timeout_s, patience_s
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._web = web(host, tls)

    def ask(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        given_up: Callable[[], bool] = lambda: False,
    ) -> Any:
        """Return what the server answers to a ``body`` (None: to a GET), as JSON; blocks.

        Raises:
            BusyError: It had no room, or was not there, for all of our patience.
            ModelError: It refuses the question, or answers no JSON.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "draftwire"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        until = time.monotonic() + self.patience_s
        pause_s = _PAUSES_S[0]
        while True:
            request = urllib.request.Request(self.url + path, data, headers)
            wait_s = None
            try:
                with self._web.open(request, timeout=self.timeout_s) as answer:
                    return parse_json(answer.read(_ANSWER_BYTES))
            except urllib.error.HTTPError as error:
                said = clean(error.read(4096).decode("utf-8", "replace"))
                why = f"{self.url} answers {error.code}: {said}"
                if error.code not in (408, 425, 429, 500, 502, 503, 504):
                    raise ModelError(why) from None
                wait_s = retry_after(dict(error.headers))
            except ValueError as error:
                raise ModelError(
                    f"{self.url} answers no JSON: {clean(str(error))}"
                ) from None
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", None) or error
                why = f"{self.url} cannot be asked: {clean(str(reason))}"
            pause = max(pause_s, wait_s or 0.0)
            pause_s = min(2 * pause_s, _PAUSES_S[1])
            if given_up() or time.monotonic() + pause > until:
                raise BusyError(why, hint="is the engine up, and has it room?")
            time.sleep(pause)


_Ids = List[List[int]]
_Fields = Dict[str, Any]


class _Vllm:
    """A kind of server: how it is asked for one token after each of several prompts.

    A salt of its own for each stream: nobody learns from the time of an answer what another
    one has asked (vLLM, docs/design/prefix_caching, cache isolation).

    Source: vLLM 0.32 entrypoints/openai (return_token_ids, cache_salt).
    """

    path = "/v1/completions"
    ids = "token_ids"  # field of a row of the answer
    seed = "seed"  # field of the question
    noises: tuple[str, ...] = ("philox", "murmur3/vllm")  # its seeded sampling may have
    # it hashes ranks where it sorts (races.py), so it is to sort always; without a seed its
    # deterministic inference takes 42 for all
    ranked = False

    def body(self, prompts: _Ids, how: _Fields, model: str, salt: str) -> _Fields:
        """Return a question; ``how`` says how tokens are chosen."""
        fixed = {"max_tokens": 1, "return_token_ids": True, "ignore_eos": True}
        return {"prompt": prompts, **fixed, **how, "model": model, "cache_salt": salt}

    def rows(self, answer: Any) -> list[Any]:
        """Return what an answer says, by prompts."""
        return list(answer["choices"])


class _LlamaCpp(_Vllm):
    """llama.cpp's own server; source: tools/server/README.md (return_tokens)."""

    path, ids = "/completion", "tokens"
    noises: tuple[str, ...] = ()

    def body(self, prompts: _Ids, how: _Fields, model: str, salt: str) -> _Fields:
        fixed = {
            "n_predict": 1,
            "return_tokens": True,
            "cache_prompt": True,
            # Its other samplers are on by default; what is left out of the list is off.
            "samplers": ["top_k", "top_p", "temperature"],
            # An answer repeats its settings and its prompt unless it is told not to.
            "response_fields": ["index", "tokens"],
        }
        return {"prompt": prompts, **fixed, **how}

    def rows(self, answer: Any) -> list[Any]:
        return answer if isinstance(answer, list) else [answer]


class _SGLang(_LlamaCpp):
    """SGLang; source: 0.5.23 /generate."""

    path, ids, seed = "/generate", "output_ids", "sampling_seed"
    noises, ranked = ("murmur3/sglang",), True

    def body(self, prompts: _Ids, how: _Fields, model: str, salt: str) -> _Fields:
        settings = {"max_new_tokens": 1, "ignore_eos": True, **how}
        return {"input_ids": prompts, "sampling_params": settings, "cache_salt": salt}


# By what a server calls itself (`owned_by` of /v1/models); all others are as vLLM.
_KINDS = {"llamacpp": _LlamaCpp, "sglang": _SGLang}


class AttachedTarget(OfCheckpoint):
    """A model on a server, and a stream backend for the verifier.

    Raises:
        ConfigError: There is no tokenizer, no such model, or no context is known.
        ModelError: The server does not answer as one that we know.
        IncompatibleError: It does not give one text whatever is asked at once.
    """

    exits = ()
    numerics, logit_error = "unstated", 0.0
    noises: tuple[str, ...] = ("philox",)

    def __init__(
        self,
        # with the model's ``tokenizer.json`` (and ``config.json`` or
        # ``generation_config.json``, which name what ends a text)
        folder: Path,
        engine: Engine,  # the server
        *,
        model: str = "",  # which of its models; "" takes the only one, or the first
        slots: int = 16,  # streams at the same time
        context: int | None = None,  # most tokens of one; None takes what the server says
    ) -> None:
        if not (folder / "tokenizer.json").is_file():
            raise ConfigError(
                f"{folder} has no tokenizer.json",
                hint="--target names the folder of the model's tokenizer and config; the "
                "weights are the server's",
            )
        self._engine = engine
        listed = engine.ask("/v1/models")
        card = _card(listed, model, engine.url)
        owner = str(card.get("owned_by", ""))
        self._kind = _KINDS.get(owner, _Vllm)()
        self._model = str(card.get("id", model))
        meta = card.get("meta") or {}  # of llama.cpp: a slot's own context, the model's
        known = (card.get("max_model_len"), meta.get("n_ctx"), meta.get("n_ctx_train"))
        named = min((int(n) for n in known if n), default=None)
        if context is None and named is None:
            raise ConfigError(
                f"{engine.url} does not say how long a text may be",
                hint="say it: --context N",
            )
        self.context = min(int(c) for c in (context, named) if c is not None)
        config = _read(folder / "config.json")
        kind = str(config.get("model_type", folder.name))
        words = self._describe("engine", self._model, kind, folder)
        self.vocab_size = words.vocab_size
        said = _read(folder / "generation_config.json").get("eos_token_id")
        self.eos_ids = token_ids(config.get("eos_token_id") if said is None else said)
        self.slots = slots
        self._workers = ThreadPoolExecutor(slots, "draftwire-engine")
        self._prompt = [int(i) for i in words.encode("The quick brown fox jumps over")]
        self._probe()
        # Seeds decide by a noise we know, our processor's or its own, or by none.
        noise = next((name for name in self._kind.noises if self._follows(name)), None)
        sampled: tuple[str, ...] = ("coupled",) if noise else ("match",)
        if noise and noise != "philox":  # devices may not know it
            self.noises, sampled = (noise,), ("coupled", "match")
        self.schemes = ("greedy", "argmax", *sampled)
        log.info("%s at %s (%s): %s", self._model, engine.url, owner, sampled)

    # ---- the contract

    def open(self, order: Order, clock: Clock, on_step: OnStep, on_end: OnEnd) -> _Run:
        """Begin to keep a stream; see :class:`~.streaming.StreamBackend`."""
        if order.params.scheme not in self.schemes:
            raise ConfigError(
                f"{self._engine.url} cannot do {order.params.scheme}",
                hint=f"one of {', '.join(self.schemes)}",
            )
        params = order.params
        both = params.top_k and params.top_p < 1
        if both and self._kind.ranked and params.scheme == "coupled":
            raise ConfigError(
                f"{self._engine.url} measures top_p before top_k, and we behind it",
                hint="with coupled give one of them",
            )
        if order.vocab_size < self.vocab_size:  # nobody tells that server what not to say
            raise ConfigError(
                f"{self._engine.url} says ids up to {self.vocab_size}, and the draft knows "
                f"{order.vocab_size}",
                hint="export the draft from a checkpoint of the target's own vocabulary",
            )
        run = _Run(self, order, clock, on_step, on_end)
        run.go_on()
        return run

    def close(self) -> None:
        """Let go; the server stays as it is."""
        self._workers.shutdown(wait=False)

    # ---- questions

    def winners(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        salt: str,
        given_up: Callable[[], bool] = lambda: False,
    ) -> list[int]:
        """Return what the server says after each of ``prompts``; blocks.

        Raises:
            BusyError: It has no room.
            ModelError: It refuses, or answers something else than it was asked for.
        """
        kind, how = self._kind, self._how(params)
        body = kind.body([list(ids) for ids in prompts], how, self._model, salt)
        answer = self._engine.ask(kind.path, body, given_up)
        try:
            rows = kind.rows(answer)
            order = [int(row.get("index", n)) for n, row in enumerate(rows)]
            if sorted(order) != list(range(len(prompts))):
                raise ValueError(f"{len(rows)} answers to {len(prompts)} prompts")
            found = [0] * len(rows)
            for place, row in zip(order, rows):
                found[place] = self._token(list(row[kind.ids]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ModelError(
                f"{self._engine.url} does not answer with token ids: {clean(what)}",
                hint="vLLM, SGLang and llama.cpp's own server do",
            ) from None
        return found

    def _token(self, ids: list[Any]) -> int:
        if not ids and self.eos_ids:
            return self.eos_ids[0]  # a server that keeps the end to itself
        token = int(ids[0])
        if len(ids) != 1 or not 0 <= token < self.vocab_size:
            raise ValueError(f"ids {ids[:4]} of a vocabulary of {self.vocab_size}")
        return token

    def _how(self, params: SamplingParams) -> dict[str, Any]:
        kind = self._kind
        own = params.noise.startswith("murmur3")
        if params.scheme == "match" or params.scheme == "coupled" and own:
            how: dict[str, Any] = {
                "temperature": params.temperature,
                "top_k": params.top_k or (self.vocab_size if kind.ranked else 0),
                "top_p": params.top_p,
            }
            if params.scheme == "coupled" or kind.ranked:
                seed = params.seed if params.scheme == "coupled" else secrets.randbits(64)
                signed = seed - (seed >> 63 << 64)
                how[kind.seed] = signed
            return how
        how = {"temperature": 0}
        if params.scheme == "coupled":
            how["vllm_xargs"] = {
                "draftwire_seed": str(params.seed),
                "draftwire_sample": params.sample,
                "draftwire_temperature": params.temperature,
                "draftwire_top_k": params.top_k,
                "draftwire_top_p": params.top_p,
            }
        return how

    # ---- what is found out at the start

    def _probe(self) -> None:
        """See that right, wrong and no drafts give one text."""
        greedy = SamplingParams()
        text: list[int] = []
        salt = secrets.token_hex(16)
        for _ in range(_PROBE_TOKENS):
            text += self.winners([self._prompt + text], greedy, salt)
        wrong = [(text[0] + 1) % self.vocab_size, *text[1:]]
        for drafts, right in ((text, _PROBE_TOKENS), (wrong, 1)):
            rows = [self._prompt + drafts[:n] for n in range(_PROBE_TOKENS)]
            found = self.winners(rows, greedy, salt)
            if found[:right] != text[:right]:
                raise IncompatibleError(
                    f"{self._engine.url} gives another text when it is asked for several "
                    f"tokens at once ({found[:right]} and not {text[:right]})",
                    hint="batch invariance: VLLM_BATCH_INVARIANT=1, or "
                    "--enable-deterministic-inference of SGLang",
                )

    def _follows(self, name: str) -> bool:
        """Tell whether hot texts follow this noise, as they do only by it."""
        position, ranked = len(self._prompt), name == "murmur3/sglang"
        salt = secrets.token_hex(16)
        (likeliest,) = self.winners([self._prompt], SamplingParams(), salt)
        for seed in range(1, (_COINS if ranked else _TRIES) + 1):
            # Of ranks only the first is known here: of two, is it that one?
            params = SamplingParams("coupled", _HOT, 2 * ranked, seed=seed, noise=name)
            keys = np.arange(2 if ranked else self.vocab_size)
            noise = noise_of(seed, position, keys, name)
            # At such heat logits that are 60 apart make a factor of 2.
            if ranked and noise.max() <= 2.0 * noise.min():
                continue
            try:
                (token,) = self.winners([self._prompt], params, salt)
            except ModelError as error:  # a server that knows no vllm_xargs
                log.info("no coupled sampling: %s", error)
                return False
            key = int(token != likeliest) if ranked else token
            if noise[key] > 2.0 * noise.min():
                return False
        return True


@dataclass
class AttachedLoader:
    """Makes a target of a folder, whose model a server has."""

    engine: str  # address of the server
    engine_model: str = ""  # which of its models; "" for the first
    engine_key: Path | None = None  # file with its bearer token
    engine_timeout_s: float = 60.0  # for one of its answers
    slots: int = 16  # streams at the same time
    context: int | None = None  # most tokens of a stream; None takes what the server says

    def __call__(self, path: Path) -> AttachedTarget:
        """Attach to the server; ``path`` holds the tokenizer.

        Raises as :class:`Engine` and :class:`AttachedTarget`.
        """
        key = ""
        if self.engine_key is not None:
            try:
                key = self.engine_key.read_text("utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"cannot read {self.engine_key}: {error}") from error
        engine = Engine(self.engine, key=key, timeout_s=self.engine_timeout_s)
        return AttachedTarget(
            path, engine, model=self.engine_model, slots=self.slots, context=self.context
        )


class _Run(Run):
    """One stream: its text here, its cache there."""

    def __init__(
        self,
        target: AttachedTarget,
        order: Order,
        clock: Clock,
        on_step: OnStep,
        on_end: OnEnd,
    ) -> None:
        super().__init__(order, clock, on_step, on_end)
        self._target = target
        self._salt = secrets.token_hex(16)
        self._text = list(order.tokens)
        self._wish = Wish()
        self._lock = threading.Lock()
        self._read = self._busy = self._over = False
        self._known, self._piece = 0, _PIECE  # of the prompt, tokens

    def push(self, push: Push) -> None:
        """Say what the stream wants."""
        with self._lock:
            self._wish.take(push, time.monotonic())
        self.go_on()

    def go_on(self) -> None:
        """Ask for what is wanted, if anything is and nothing is asked for yet."""
        with self._lock:
            if self._busy or not self._wants():
                return
            self._busy = True
        self._target._workers.submit(self._work)

    def _wants(self) -> bool:
        if self.closed or self._over:
            return False
        self._wish.settle(self._text, len(self._text))
        return not self._read or not self._wish.holds(len(self._text))

    def _work(self) -> None:
        try:
            while self._step():
                pass
        except DraftwireError as error:
            self.end(error)
        except Exception as error:  # noqa: BLE001 - what a worker raises, nobody would see
            log.exception("asking an engine failed")
            self.end(ModelError(f"asking the engine failed: {type(error).__name__}"))

    def _step(self) -> bool:
        """Ask once, if anything is wanted; return whether to look again."""
        target, length = self._target, len(self._text)
        with self._lock:
            if not self._wants():
                self._busy = False
                return False
            room = self.order.end - length
            # The first step reads the prompt, with nothing else in its way.
            drafts = self._wish.drafts(length, room) if self._read else []
            epoch, since = self._wish.epoch, self._wish.since
        if not self._read and length > self._known + self._piece:
            return self._read_on(epoch)
        prompts = [self._text + drafts[:n] for n in range(min(len(drafts) + 1, room))]
        began = time.monotonic()
        params = self.order.params
        said = target.winners(prompts, params, self._salt, lambda: self.closed)
        took = time.monotonic() - began
        new: list[int] = []
        for n, token in enumerate(said):
            new.append(token)
            if token in self.order.stop_ids or n >= len(drafts) or token != drafts[n]:
                break
        self._text += new
        self._over = new[-1] in self.order.stop_ids or len(self._text) >= self.order.end
        self._read = True
        waited = max(0.0, began - since) if since and drafts else 0.0
        step = Step(tuple(new), len(drafts), epoch, waited, took)
        self.say(step)
        return True

    def _read_on(self, epoch: int) -> bool:
        """Have a piece of a long prompt read, so that devices hear that it goes on."""
        began = time.monotonic()
        self._known += self._piece
        self._target.winners(
            [self._text[: self._known]], SamplingParams(), self._salt, lambda: self.closed
        )
        took = time.monotonic() - began
        if took < _PIECE_S:  # a quick engine is asked seldom
            self._piece *= 2
        self.say(Step((), 0, epoch, 0.0, took))
        return True


def _card(listed: Any, model: str, url: str) -> dict[str, Any]:
    """Return what a server says of a model."""
    cards = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(cards, list) or not all(isinstance(c, dict) for c in cards):
        raise ModelError(
            f"{url}/v1/models is no list of models",
            hint="--engine names a server of OpenAI's kind: vLLM, SGLang, llama.cpp",
        )
    names = [str(card.get("id")) for card in cards]
    if model and model not in names or not cards:
        raise ConfigError(
            f"{url} has no model {model!r}" if model else f"{url} has no model",
            hint=f"it has {clean(', '.join(names))}: --engine-model NAME",
        )
    return dict(cards[names.index(model) if model else 0])


def _read(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(path.read_bytes())
    except OSError:
        return {}
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from None
    return found if isinstance(found, dict) else {}
