"""What OpenAI's clients ask and are answered: every field honoured, or refused by name.

Chat completions, completions and responses become the same thing (:class:`Ask`); what is
drawn and when it ends is checked by :mod:`draftwire.options`, as everywhere.

Source:
    https://platform.openai.com/docs/api-reference, read through openai-python 2.x.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Union,
)

from draftwire.errors import ConfigError
from draftwire.io import did_you_mean, parse_json
from draftwire.options import STREAM_GROUPS, check_prompt, options_of
from draftwire.runtime.edge.actions import Token
from draftwire.runtime.report import total as report_total
from draftwire.runtime.service.http import HttpError
from draftwire.runtime.stream import Chunk
from draftwire.runtime.tools import Call, Calls
from draftwire.template import check_messages

if TYPE_CHECKING:
    Events = Iterator[tuple[str | None, Any]]  # their names and data

MAX_CHOICES = 8
_LOWEST = -9999.0  # JSON knows no infinity
_STREAM = {option.name: option for option in options_of(*STREAM_GROUPS)}


@dataclass(frozen=True)
class Ask:
    """A request for text."""

    kind: str  # ``"chat"``, ``"text"`` or ``"response"``
    model: str  # as the client calls it
    prompts: list[Any]  # text or ids each, or the messages of one conversation
    options: Mapping[str, Any]  # of the streams
    choices: int  # answers to each prompt
    stream: bool  # whether it is answered piece by piece
    usage: bool  # whether a streamed answer ends with what it cost
    report: bool  # whether the run report is wanted
    template_options: Mapping[str, Any] | None  # variables of the chat template
    tools: list[Any] | None = None
    tool_choice: str | Mapping[str, Any] | None = None
    parallel: bool = True
    # what the request calls the options that go by another name there
    fields: Mapping[str, str] = field(default_factory=dict)

    def field_of(self, option: str) -> str:
        """Return the field of the request that ``option`` came by."""
        if option in ("schema", "regex", "grammar") and option not in self.fields:
            return "tools"  # whose schemas are a grammar
        if option in ("prompt", "messages"):
            return _TOLD[self.kind]
        return self.fields.get(option, option)

    @property
    def logprobs(self) -> bool:
        return self.options.get("logprobs") is not None


@dataclass(frozen=True)
class Done:
    """A choice that is written."""

    text: str
    finish: str
    report: Mapping[str, Any] = field(default_factory=dict)
    tokens: Sequence[Token] = ()
    calls: Sequence[Call] | None = None


# ---- requests


# Fields that are not built yet, or never, and values of theirs that ask for nothing.
_NOT_YET: dict[str, list[Any]] = {
    "functions": [[]],
    "function_call": ["none", "auto"],
    "modalities": [["text"]],
    "service_tier": ["auto", "default"],
    "store": [False],
    "reasoning_effort": [],
    "verbosity": [],
    "audio": [],
    "prediction": [],
    "web_search_options": [],
}
_TEXT: dict[str, list[Any]] = {
    **_NOT_YET,
    "tools": [[]],
    "tool_choice": ["none", "auto"],
    "best_of": [1],
    "echo": [False],
    "suffix": [""],
}
_RESPONSE: dict[str, list[Any]] = {
    **{name: _NOT_YET[name] for name in ("service_tier", "store")},
    "reasoning": [{}],
    "truncation": ["disabled"],
    "background": [False],
    "previous_response_id": [],
    "conversation": [],
    "prompt": [],
    "max_tool_calls": [],
}
_PASSED = {"temperature", "top_p", "top_k", "min_p", "seed", "stop", "ignore_eos"}
_PASSED |= {"presence_penalty", "frequency_penalty", "repetition_penalty"}
_PASSED |= {"logit_bias", "bad_words"}
_TEMPLATE = "chat_template_kwargs"  # as vLLM and SGLang call it
_SHARED = {"model", "stream", "stream_options", "draftwire", "parallel_tool_calls"}
# What says something about the asker and nothing about the answer.
_SHARED |= {"user", "metadata", "safety_identifier", "prompt_cache_key"}
_SHARED |= {"prompt_cache_retention"}
_CHAT = {"messages", "n", "max_tokens", "max_completion_tokens", "tools", "tool_choice"}
_CHAT |= {"response_format", "logprobs", "top_logprobs", _TEMPLATE}
_ITEMS = {"input", "instructions", "max_output_tokens", "temperature", "top_p", "tools"}
_ITEMS |= {"top_logprobs", "include", "tool_choice", "text", _TEMPLATE}
_FIELDS = {
    "chat": (_NOT_YET, _CHAT | _PASSED | _SHARED),
    "text": (
        _TEXT,
        {"prompt", "n", "max_tokens", "logprobs", "response_format"} | _PASSED | _SHARED,
    ),
    "response": (_RESPONSE, _ITEMS | _SHARED),
}
_TOLD = {"chat": "messages", "text": "prompt", "response": "input"}
_INCLUDED = "message.output_text.logprobs"  # how responses ask for them
_SCHEMA = {"name", "description", "schema", "strict"}
_SUPPORTED = "docs/service.md says what is"


class _Fields(dict):
    """An object of a request, its nulls left out, that stands ``at`` a place there."""

    def __init__(self, given: Mapping[str, Any], at: str = "") -> None:
        super().__init__((k, v) for k, v in given.items() if v is not None)
        self.at = at

    def typed(self, name: str, kind: type, wants: str, default: Any) -> Any:
        value = self.get(name, default)
        if not isinstance(value, kind):
            raise _wrong(self.at + name, f"{name} is {_short(value)}; it must be {wants}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        found: bool = self.typed(name, bool, "true or false", default)
        return found

    def object(self, name: str) -> _Fields:
        found = self.typed(name, dict, "an object", {})
        return _Fields(found, f"{self.at}{name}.")

    def only(self, *known: str) -> None:
        for name in self:
            if name not in known:
                hint = did_you_mean(name, known, "docs/service.md says what is honoured")
                raise _wrong(self.at + name, f"there is no {name!r:.64} there", hint=hint)

    def option(self, name: str, option: str = "", param: str = "") -> dict[str, Any]:
        """Return the option that the field ``name`` sets, checked."""
        found = _STREAM[option or name]
        try:
            return {found.name: found.read(self.get(name), name)}
        except ConfigError as exc:
            raise _wrong(param or self.at + name, str(exc), hint=exc.hint) from exc


def read_ask(kind: str, body: bytes) -> Ask:
    """Read a request; ``kind`` is ``"chat"``, ``"text"`` or ``"response"``. An HttpError
    where it is none, or says which field cannot be honoured."""
    try:
        raw = parse_json(body)
    except ValueError as exc:
        raise HttpError(400, f"the body is not JSON: {exc}") from exc
    if not isinstance(raw, dict):
        raise HttpError(400, "the body is not a JSON object")
    refused, taken = _FIELDS[kind]
    for name, value in raw.items():
        if name in refused and not _asks_nothing(value, refused[name]):
            what = f"{name} = {_short(value)} is not supported"
            raise _wrong(name, what, "unsupported", _SUPPORTED)
        if name not in refused and name not in taken:
            hint = did_you_mean(name, {*taken, *refused}, "")
            raise _wrong(name, f"there is no field {name[:64]!r}", "unknown_field", hint)
    given = _Fields(raw)
    extra, settings = given.object("draftwire"), given.object("stream_options")
    report = extra.flag("report")
    settings.only("include_usage", "include_obfuscation")
    own = _own_options(raw.get("draftwire") or {}, extra)
    form = _structure(kind, given)
    where = "text.format" if kind == "response" else "response_format"
    return Ask(
        kind=kind,
        model=given.typed("model", str, "a name", ""),
        prompts=_checked(kind, given),
        options={**_options(given), **_logprobs(kind, given), **form, **own},
        choices=_choices(given),
        stream=given.flag("stream"),
        usage=settings.flag("include_usage"),
        report=report,
        template_options=dict(given.object(_TEMPLATE)) or None,
        fields={
            "template_options": _TEMPLATE,
            **dict.fromkeys(form, where),
            **{name: f"draftwire.{name}" for name in own},
        },
        **_tools(kind, given),
    )


def _asks_nothing(value: Any, harmless: Sequence[Any]) -> bool:
    # False is no 0 and 1 no True where a client writes JSON.
    return value is None or any(type(value) is type(h) and value == h for h in harmless)


def _own_options(raw: Mapping[str, Any], given: _Fields) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name in raw:
        if name not in _STREAM and name != "report":
            hint = did_you_mean(name, _STREAM, "see docs/options.md")
            what = f"there is no option {name[:64]!r}"
            raise _wrong(f"draftwire.{name}", what, "unknown_field", hint)
        if name in given and name != "report":
            options.update(given.option(name))
    return options


def _structure(kind: str, given: _Fields) -> dict[str, Any]:
    """Return the option for what the text must be, where that is asked for."""
    holder, name = given, "response_format"
    if kind == "response":
        holder, name = given.object("text"), "format"
        holder.only("format")
    if name not in holder:
        return {}
    found, where = holder.object(name), holder.at + name
    form = found.get("type")
    flat = kind == "response" and form == "json_schema"
    found.only("type", *(_SCHEMA if flat else ("json_schema", "regex", "choice")))
    if form == "json_object":
        return {"schema": _STREAM["schema"].read("object")}
    if form == "json_schema":
        inside = found if flat else found.object("json_schema")
        inside.only("type" if flat else "name", *_SCHEMA)
        inside.flag("strict")
        inside.typed("name", str, "text", "")
        if not isinstance(inside.get("schema"), (dict, bool)):
            raise _wrong(where, f"{where} has no schema", hint="an object beside its name")
        return inside.option("schema", param=where)
    if form == "choice" and not found.get("choice"):
        found.pop("choice", None)  # of no texts none can be chosen
    if form in ("regex", "choice"):  # beyond OpenAI's
        return found.option(form, param=where)
    if form != "text":
        what = f"{where}.type = {_short(form)} is not supported"
        hint = "text, json_object, json_schema, regex or choice"
        raise _wrong(where, what, "unsupported", hint)
    return {}


def _tools(kind: str, given: _Fields) -> dict[str, Any]:
    """Return the parts of an ask that say what may be called."""
    tools, choice = given.get("tools"), given.get("tool_choice", "auto")
    parallel = given.flag("parallel_tool_calls", True)
    if kind == "text" or tools is None or tools == []:
        if kind != "text" and choice not in ("auto", "none"):
            raise _wrong("tool_choice", "tool_choice is of use with tools alone")
        return {}
    try:
        for number, tool in enumerate(tools if isinstance(tools, list) else ()):
            found = tool.get("type", "function") if isinstance(tool, dict) else "function"
            if found != "function":
                raise ConfigError(
                    f"tools[{number}].type = {_short(found)} is not supported",
                    hint="functions are: nothing is looked up or run here",
                )
        Calls.of(tools, choice, parallel=parallel)
    except ConfigError as exc:
        param = "tool_choice" if "tool_choice" in str(exc) else "tools"
        raise _wrong(param, str(exc), hint=exc.hint) from exc
    if kind == "response":  # theirs are flat; templates know those of chats
        names = ("name", "description", "parameters", "strict")
        flat = [{n: tool[n] for n in names if n in tool} for tool in tools]
        nested = [tool.get("function", one) for tool, one in zip(tools, flat)]
        tools = [{"type": "function", "function": one} for one in nested]
    return {"tools": tools, "tool_choice": choice, "parallel": parallel}


def _options(given: _Fields) -> dict[str, Any]:
    options: dict[str, Any] = {}
    seed = given.get("seed")
    if type(seed) is int and -(2**63) <= seed < 0:
        given["seed"] = seed + 2**64  # the same 64 bits
    for name in sorted(_PASSED & given.keys()):
        options.update(given.option(name))
    for name in ("max_tokens", "max_output_tokens", "max_completion_tokens"):
        if name in given:  # the newest name, read last, wins
            options.update(given.option(name, "max_new_tokens"))
    return options


def _logprobs(kind: str, given: _Fields) -> dict[str, Any]:
    """Return how many likely tokens are wanted beside each one, where that is asked."""
    if kind == "text":
        return given.option("logprobs") if "logprobs" in given else {}
    asks = "logprobs: true"
    if kind == "chat":
        wanted = given.flag("logprobs")
    else:
        asks = f'include: ["{_INCLUDED}"]'
        wanted = bool(given.get("include"))
        for name in given.typed("include", list, "a list", []):
            if name != _INCLUDED:
                what = f"include: {_short(name)} is not supported"
                raise _wrong("include", what, "unsupported", f"{_INCLUDED} is")
    most = given.setdefault("top_logprobs", 0)
    if most != 0 and not wanted:
        raise _wrong("top_logprobs", f"top_logprobs is of use with {asks} alone")
    found = given.option("top_logprobs", "logprobs")
    return found if wanted else {}


def _choices(given: Mapping[str, Any]) -> int:
    found = given.get("n", 1)
    if type(found) is not int or not 1 <= found <= MAX_CHOICES:
        raise _wrong("n", f"n is {_short(found)}; it must be 1 to {MAX_CHOICES}")
    return found


def _checked(kind: str, given: _Fields) -> list[Any]:
    name = _TOLD[kind]
    if name not in given:
        raise _wrong(name, f"the field {name} is missing", "missing_field")
    try:
        if kind == "text":
            return _prompts(given[name], _choices(given))
        found = _messages(given[name]) if kind == "chat" else _items(given)
        return [check_messages(found)]
    except ConfigError as exc:
        text = str(exc)
        if kind == "response":
            text = text.replace("messages[", "input[", 1)
        raise _wrong(name, text, hint=exc.hint) from exc


def _prompts(value: Any, choices: int) -> list[Any]:
    several = isinstance(value, list) and value and not isinstance(value[0], int)
    found = [check_prompt(prompt) for prompt in (value if several else [value])]
    if len(found) * choices > MAX_CHOICES:
        raise ConfigError(f"a request has at most {MAX_CHOICES} answers, n for each prompt")
    return found


def _messages(value: object) -> object:
    """Return messages as chat templates know them: plain text, arguments as objects."""
    if not isinstance(value, list):
        return value
    found = []
    for message in value:
        if isinstance(message, dict):
            message = dict(message)
            if message.get("role") == "developer":  # what newer clients call it
                message["role"] = "system"
            content = message.get("content")
            if isinstance(content, list) and all(map(_is_text_part, content)):
                message["content"] = "\n".join(part["text"] for part in content)
            if isinstance(message.get("tool_calls"), list):
                message["tool_calls"] = [_call(call) for call in message["tool_calls"]]
        found.append(message)
    return found


def _is_text_part(part: object) -> bool:
    return (
        isinstance(part, dict)
        and part.get("type") in ("text", "input_text", "output_text")
        and isinstance(part.get("text"), str)
    )


def _call(call: Any) -> Any:
    try:
        function = call["function"]
        arguments = parse_json(function["arguments"])
    except (LookupError, TypeError, ValueError):
        return call  # whoever checks messages says what is wrong, if that is
    return {**call, "function": {**function, "arguments": arguments}}


def _items(given: _Fields) -> object:
    items = given["input"]
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    if isinstance(items, list):
        plain: list[Any] = []
        for number, item in enumerate(items):
            found = _item(item, f"messages[{number}]")
            before = plain[-1] if plain and isinstance(plain[-1], dict) else {}
            if "tool_calls" in (found or ()) and before.get("role") == "assistant":
                # What a turn says and calls comes in pieces, and is one message.
                calls = [*before.get("tool_calls", ()), *found["tool_calls"]]
                plain[-1] = {**before, "tool_calls": calls}
            else:
                plain.append(found)
        items = plain
    said = given.typed("instructions", str, "text", "")
    if said and isinstance(items, list):
        items = [{"role": "system", "content": said}, *items]
    return _messages(items)


def _item(item: Any, where: str) -> Any:
    """Return what an item of an input is as a message of a chat."""
    if not isinstance(item, dict):
        return item
    kind = item.get("type", "message")
    if kind == "message":
        return {name: item[name] for name in ("role", "content") if name in item}
    if kind not in ("function_call", "function_call_output"):
        raise ConfigError(f"{where}.type = {_short(kind)} is not supported")
    if not isinstance(item.get("call_id"), str):
        raise ConfigError(f"{where}.call_id is missing", hint="that of the call")
    if kind == "function_call_output":
        if "output" not in item:
            raise ConfigError(f"{where}.output is missing")
        told = {"tool_call_id": item["call_id"], "content": item["output"]}
        return {"role": "tool", **told}
    function = {name: item.get(name) for name in ("name", "arguments")}
    if not all(isinstance(value, str) for value in function.values()):
        raise ConfigError(f"{where} is a call without name and arguments")
    call = {"id": item["call_id"], "type": "function", "function": function}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _wrong(
    param: str, message: str, code: str = "invalid_value", hint: str = ""
) -> HttpError:
    return HttpError(400, message, hint=hint, param=param, code=code)


# ---- answers


def usage_of(done: list[Done], *, response: bool = False) -> dict[str, Any]:
    """Return what answers cost; what was not measured is null."""

    total = partial(report_total, [one.report for one in done])
    prompt, written = total("prompt_tokens") or 0, total("tokens") or 0
    kept = {"cached_tokens": total("prefix", "reused") or 0}
    found: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "prompt_tokens_details": kept,
    }
    if response:
        found = {
            "input_tokens": prompt,
            "output_tokens": written,
            "input_tokens_details": kept,
            "output_tokens_details": {"reasoning_tokens": 0},
        }
    keys = ("up_payload", "down_payload", "up_wire", "down_wire")
    own = {
        "forwards": total("target_forwards"),
        "drafted": total("drafted"),
        "accepted": total("accepted"),
        "bytes": {key: total("bytes", key) for key in keys},
        "joules": total("energy", "joules"),
    }
    return {**found, "total_tokens": prompt + written, "draftwire": own}


class Words:
    """Log-probabilities as OpenAI's clients read them; ``word`` is the text of a token."""

    def __init__(self, word: Callable[[int], str] = str) -> None:
        self.word = word

    def entry(self, token: int, logprob: float) -> dict[str, Any]:
        """Return one; a part of a character has no bytes that we know."""
        text = self.word(token)
        data = None if "\ufffd" in text else list(text.encode("utf-8"))
        return {"token": text, "logprob": max(logprob, _LOWEST), "bytes": data}

    def content(self, tokens: Iterable[Token]) -> list[dict[str, Any]]:
        """Return those of tokens, without guesses: these have none."""
        rows = [token.logprobs for token in tokens if token.logprobs]
        return [
            {**self.entry(*own), "top_logprobs": [self.entry(*pair) for pair in best]}
            for own, *best in rows
        ]

    def legacy(self, tokens: Iterable[Token], offset: int) -> dict[str, Any]:
        """Return those of completions, whose text begins at ``offset``."""
        content = self.content(tokens)
        words = [entry["token"] for entry in content]
        best = [entry["top_logprobs"] for entry in content]
        return {
            "tokens": words,
            "token_logprobs": [entry["logprob"] for entry in content],
            "top_logprobs": [{e["token"]: e["logprob"] for e in row} for row in best],
            "text_offset": [offset + len("".join(words[:i])) for i in range(len(words))],
        }


def extra_of(done: Done, *, report: bool) -> dict[str, Any]:
    """Return what only draftwire says of an answer."""
    energy = done.report.get("energy") or {}
    found = {
        "finish": done.finish,
        "warnings": list(done.report.get("warnings") or ()),
        "target": done.report.get("target"),
        "energy_source": energy.get("source"),
        "why_no_joules": energy.get("why_null"),
    }
    return {**found, "report": dict(done.report)} if report else found


def _piece(chunk: Chunk) -> dict[str, Any]:
    found: dict[str, Any] = {
        "token_ids": [token.id for token in chunk.tokens],
        "verified": chunk.verified,
        "unverified": chunk.unverified,
        "t_s": round(chunk.t_s, 6),
    }
    if chunk.revision is not None:
        found.update(revision=chunk.revision, kept_text=chunk.kept_text)
    return found


def _called(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


# How one ask is answered, by the target ``model``: as a whole, or as what comes when it
# begins, with a piece of text, when a choice is over, at the end, or when it fails.


class Answer:
    """How chat completions and completions are answered."""

    def __init__(self, ask: Ask, model: str) -> None:
        self._ask, self.words = ask, Words()
        self._length: dict[int, int] = {}  # of the text so far, by choice
        self._chat = ask.kind == "chat"
        self._base = {
            "id": ("chatcmpl-" if self._chat else "cmpl-") + secrets.token_hex(12),
            "object": "chat.completion" if self._chat else "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, done: list[Done]) -> dict[str, Any]:
        choices = []
        for index, one in enumerate(done):
            said: dict[str, Any] = {"text": one.text}
            if self._chat:
                message: dict[str, Any] = {"role": "assistant", "content": one.text}
                message["refusal"] = None
                if one.calls:
                    calls = [_called(call) for call in one.calls]
                    message.update(content=one.text or None, tool_calls=calls)
                said = {"message": message}
            said["logprobs"] = self._logprobs(index, one.tokens)
            choices.append(self._choice(index, said, one))
        return {**self._base, "choices": choices, "usage": usage_of(done)}

    def begin(self) -> Events:
        for index in range(self._ask.choices if self._chat else 0):
            delta = {"role": "assistant", "content": ""}
            yield self._event({**self._choice(index, {"delta": delta}), "draftwire": None})

    def piece(self, index: int, chunk: Chunk) -> Events:
        said: dict[str, Any] = {"text": chunk.text}
        if self._chat:
            said = {"delta": {"content": chunk.text}}
        said["logprobs"] = self._logprobs(index, chunk.tokens)
        self._length[index] = self._length.get(index, 0) + len(chunk.text)
        yield self._event({**self._choice(index, said), "draftwire": _piece(chunk)})

    def over(self, index: int, one: Done) -> Events:
        said: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        if one.calls is not None and one.text:  # it was held back
            yield self._event(self._choice(index, {"delta": {"content": one.text}}))
        if one.calls:
            calls = [{"index": i, **_called(call)} for i, call in enumerate(one.calls)]
            yield self._event(self._choice(index, {"delta": {"tool_calls": calls}}))
        yield self._event(self._choice(index, said, one))

    def end(self, done: list[Done]) -> Events:
        if self._ask.usage:
            name, data = self._event()
            yield name, {**data, "usage": usage_of(done)}
        yield None, "[DONE]"

    def failed(self, error: dict[str, Any]) -> Events:
        yield None, error

    def _logprobs(self, index: int, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._ask.logprobs:
            return None
        if self._chat:
            return {"content": self.words.content(tokens), "refusal": None}
        return self.words.legacy(tokens, self._length.get(index, 0))

    def _choice(
        self, index: int, said: Mapping[str, Any], one: Done | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "logprobs": None, **said, "finish_reason": None}
        if one is not None:
            why = "tool_calls" if one.calls else "stop"
            choice["finish_reason"] = why if one.finish == "stop" else "length"
            choice["draftwire"] = extra_of(one, report=self._ask.report)
        return choice

    def _event(self, *choices: Mapping[str, Any]) -> tuple[None, dict[str, Any]]:
        kind = {"object": "chat.completion.chunk"} if self._chat else {}
        usage = {"usage": None} if self._ask.usage else {}
        return None, {**self._base, **kind, **usage, "choices": list(choices)}


class Response:
    """How responses are answered: items, of which a message is one and a call another."""

    def __init__(self, ask: Ask, model: str) -> None:
        self._ask, self._model, self.words = ask, model, Words()
        self._created = int(time.time())
        self._id, self._item = (f"{k}_{secrets.token_hex(16)}" for k in ("resp", "msg"))
        self._number = -1
        self._speaks = False  # whether the message has begun
        self._items: list[dict[str, Any]] | None = None
        schema = ask.options.get("schema")
        self._format: dict[str, Any] = {"type": "text"}
        if schema is not None:
            whole = {"type": "json_schema", "name": "schema", "schema": parse_json(schema)}
            self._format = whole

    def whole(self, done: list[Done]) -> dict[str, Any]:
        return self._document(done[0])

    def begin(self) -> Events:
        for name in ("created", "in_progress"):
            yield self._event(f"response.{name}", response=self._document(None))

    def piece(self, index: int, chunk: Chunk) -> Events:
        said = self.words.content(chunk.tokens)
        yield from self._say(chunk.text, logprobs=said, draftwire=_piece(chunk))

    def over(self, index: int, one: Done) -> Events:
        for place, item in enumerate(self._output(one)):
            if item["type"] == "message":
                yield from self._say(one.text if one.calls is not None else "", logprobs=[])
                part = item["content"][0]
                said = {"text": one.text, "logprobs": part["logprobs"]}
                yield self._part("response.output_text.done", **said)
                yield self._part("response.content_part.done", part=part)
            else:
                empty = {**item, "arguments": "", "status": "in_progress"}
                at = {"item_id": item["id"], "output_index": place}
                said = {"arguments": item["arguments"]}
                kind = "response.function_call_arguments"
                yield self._added(empty, place)
                yield self._event(f"{kind}.delta", **at, delta=item["arguments"])
                yield self._event(f"{kind}.done", **at, name=item["name"], **said)
            name = "response.output_item.done"
            yield self._event(name, output_index=place, item=item)

    def end(self, done: list[Done]) -> Events:
        yield self._event(
            f"response.{self._status(done[0])}", response=self._document(done[0])
        )

    def failed(self, error: dict[str, Any]) -> Events:
        yield self._event(
            "error", **{k: v for k, v in error["error"].items() if k != "type"}
        )

    def _say(self, text: str, **more: Any) -> Events:
        if not self._speaks:
            self._speaks = True
            item = self._message("", "in_progress")
            yield self._added({**item, "content": []}, 0)
            yield self._part("response.content_part.added", part=item["content"][0])
        if text or "draftwire" in more:
            yield self._part("response.output_text.delta", delta=text, **more)

    def _added(self, item: Mapping[str, Any], place: int) -> tuple[str, dict[str, Any]]:
        return self._event("response.output_item.added", output_index=place, item=item)

    def _event(self, name: str, /, **data: Any) -> tuple[str, dict[str, Any]]:
        self._number += 1
        return name, {"type": name, "sequence_number": self._number, **data}

    def _part(self, name: str, /, **data: Any) -> tuple[str, dict[str, Any]]:
        return self._event(
            name, item_id=self._item, output_index=0, content_index=0, **data
        )

    @staticmethod
    def _status(one: Done) -> str:
        return "completed" if one.finish == "stop" else "incomplete"

    def _output(self, one: Done) -> list[dict[str, Any]]:
        """Return the items of an answer, the same ones each time."""
        if self._items is None:
            self._items = []
            if one.text or not one.calls:
                said = self._message(one.text, self._status(one), one.tokens)
                self._items.append(said)
            for call in one.calls or ():
                ids = {"id": f"fc_{secrets.token_hex(16)}", "call_id": _called(call)["id"]}
                said = {"name": call.name, "arguments": call.arguments}
                item = {"type": "function_call", **ids, **said, "status": "completed"}
                self._items.append(item)
        return self._items

    def _message(
        self, text: str, status: str, tokens: Sequence[Token] = ()
    ) -> dict[str, Any]:
        said = self.words.content(tokens)
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": said}
        return {
            "id": self._item,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [part],
        }

    def _document(self, one: Done | None) -> dict[str, Any]:
        ask, options = self._ask, self._ask.options
        status = "in_progress" if one is None else self._status(one)
        why = {"reason": "max_output_tokens"} if status == "incomplete" else None
        tools = [{"type": "function", **tool["function"]} for tool in ask.tools or ()]
        found = {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": why,
            "instructions": None,
            "max_output_tokens": options.get("max_new_tokens"),
            "metadata": {},
            "model": self._model,
            "output": [] if one is None else self._output(one),
            "parallel_tool_calls": ask.parallel and bool(tools),
            "previous_response_id": None,
            "store": False,
            "temperature": options.get("temperature"),
            "text": {"format": self._format},
            "tool_choice": ask.tool_choice or "none",
            "tools": tools,
            "top_p": options.get("top_p"),
            "truncation": "disabled",
            "usage": None if one is None else usage_of([one], response=True),
        }
        if one is not None:
            found["draftwire"] = extra_of(one, report=ask.report)
        return found


Form = Union[Answer, Response]
