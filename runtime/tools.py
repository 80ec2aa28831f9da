"""Calls of tools: the grammar that an answer with tools keeps to, and how it is read.

A model is asked for calls in the form that its family writes, one row of :data:`FORMS`.
The grammar lets it write nothing else: names are those of the tools, arguments keep to
their schemas, and what leaves no choice costs nothing.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Callable, Mapping, NamedTuple, Sequence

from draftwire.errors import ConfigError
from draftwire.sampling.grammar.text import as_json

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
_MOST = 128
_NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}


class Form(NamedTuple):
    """How a family of models writes calls: mark, begin, call, between, call, ..., end."""

    signs: tuple[str, ...]  # what all stands in its chat templates
    mark: str = ""  # begins all calls; a special token where the tokenizer has it
    begin: str = ""  # follows it
    head: str = '{"name":"'  # of one call, in front of the name
    middle: str = '","arguments":'  # between name and arguments
    tail: str = "}"  # behind the arguments
    end: str = ""  # behind the last call
    between: str | None = None  # two calls; None where there is only one
    needed: bool = True  # calls never come without the mark


_TAG, _DEEP = "<tool_call>", "<｜tool▁call▁begin｜>"
_DEEPSEEK: dict[str, Any] = {
    "mark": "<｜tool▁calls▁begin｜>",
    "end": "<｜tool▁calls▁end｜>",
    "between": "",
}
_LIST: dict[str, Any] = {"begin": "[", "between": ",", "end": "]"}
# The first whose signs a template has. Sources: the chat templates of the families' own
# checkpoints, and the parsers of vLLM (docs/features/tool_calling).
FORMS: Mapping[str, Form] = {
    "deepseek v3": Form(
        ("<｜tool▁calls▁begin｜>", "```json"),
        head=_DEEP + "function<｜tool▁sep｜>",
        middle="\n```json\n",
        tail="\n```<｜tool▁call▁end｜>",
        **{**_DEEPSEEK, "between": "\n"},
    ),
    "deepseek v3.1": Form(
        ("<｜tool▁calls▁begin｜>",),
        head=_DEEP,
        middle="<｜tool▁sep｜>",
        tail="<｜tool▁call▁end｜>",
        **_DEEPSEEK,
    ),
    "mistral v11": Form(
        ("[TOOL_CALLS]", "[ARGS]"),
        "[TOOL_CALLS]",
        head="",
        middle="[ARGS]",
        tail="",
        between="[TOOL_CALLS]",
    ),
    "mistral v3": Form(("[TOOL_CALLS] [",), "[TOOL_CALLS]", " [", between=",", end="]"),
    "mistral nemo": Form(("[TOOL_CALLS]",), "[TOOL_CALLS]", **_LIST),
    "granite 3": Form(("<|tool_call|>",), "<|tool_call|>", **_LIST),
    "phi 4": Form(("<|/tool|>",), "<|tool_call|>", **{**_LIST, "end": "]<|/tool_call|>"}),
    "hermes": Form(
        (_TAG,), _TAG, "\n", between=f"\n</tool_call>\n{_TAG}\n", end="\n</tool_call>"
    ),
    "llama 3": Form(
        ('"parameters": dictionary', "<|python_tag|>"),
        "<|python_tag|>",
        middle='","parameters":',
        needed=False,
    ),
    "llama 3 without a tag": Form(
        ('"parameters": dictionary',), middle='","parameters":', needed=False
    ),
}


@dataclass(frozen=True)
class Call:
    """One call."""

    name: str  # of the tool
    arguments: str  # JSON, as the model wrote it


def read_tools(tools: object) -> dict[str, Any]:
    """Return the schemas of the arguments of ``tools``, by name.

    They are as OpenAI's clients give them, ``{"type": "function", "function": {...}}``, or
    the functions themselves.

    Raises:
        ConfigError: One is none, or a name comes twice.
    """
    if not isinstance(tools, Sequence) or isinstance(tools, str) or len(tools) > _MOST:
        raise ConfigError(f"tools are a list of at most {_MOST} tools")
    found: dict[str, Any] = {}
    for number, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not _NAME.match(name):
            if name:
                hint = "up to 64 letters, digits and _ . -"
                raise ConfigError(f"tools[{number}].name is {name!r:.80}", hint=hint)
            raise ConfigError(
                f"tools[{number}] has no name",
                hint='{"type": "function", "function": {"name": ..., "parameters": ...}}',
            )
        if name in found:
            raise ConfigError(f"two tools are called {name!r}")
        assert isinstance(function, Mapping)
        schema = function.get("parameters")
        schema = _NOTHING if schema is None else schema
        if not isinstance(schema, Mapping):
            raise ConfigError(f"tools[{number}]: parameters are a JSON schema")
        found[name] = schema
    return found


@dataclass(frozen=True)
class Calls:
    """What tools an answer may call, or must."""

    tools: Mapping[str, Any]  # schemas of their arguments, by name
    must: bool = False  # the answer is a call; otherwise it may be
    parallel: bool = True  # it may be several
    form: Form = FORMS["hermes"]  # how they are written
    special: Mapping[str, int] = field(default_factory=dict)  # ids of special words
    spell: Callable[[Sequence[int]], str] | None = None  # text of ids, with special words

    @classmethod
    def of(
        cls,
        tools: object,
        choice: object = "auto",
        *,
        parallel: bool = True,
        template: str | None = None,
        special: Mapping[str, int] | None = None,
        spell: Callable[[Sequence[int]], str] | None = None,
    ) -> Calls | None:
        """Return what ``tools`` and ``choice`` ask for; None where no call may come.

        ``choice`` is ``"auto"``, ``"none"``, ``"required"``, the name of a tool, or
        ``{"type": "function", "function": {"name": ...}}``; ``template`` is the model's.

        Raises:
            ConfigError: They are none, or the choice is none of them.
        """
        found = read_tools(tools)
        if isinstance(choice, Mapping):
            function = choice.get("function", choice)
            choice = function.get("name") if isinstance(function, Mapping) else None
        if choice == "none" or not found:
            return None
        must = choice != "auto"
        if choice not in ("auto", "required"):
            if not isinstance(choice, str) or choice not in found:
                raise ConfigError(
                    f"tool_choice is {choice!r:.80}",
                    hint="auto, none, required, or one of " + ", ".join(found),
                )
            found, parallel = {choice: found[choice]}, False
        text = template or ""
        fits = (one for one in FORMS.values() if all(sign in text for sign in one.signs))
        form = next(fits, FORMS["hermes"])
        several = parallel and form.between is not None
        return cls(found, must, several, form, special or {}, spell)

    @staticmethod
    def introduction(tools: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """Return a message that says which tools there are, where no template does."""
        known = [tool.get("function", tool) for tool in tools]
        return {"role": "system", "content": f"You may call these tools: {as_json(known)}"}

    def _lark(self, text: str) -> str:
        """Return ``text`` as a grammar has it: letters, and ids of special tokens."""
        words = sorted(self.special, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, words))})" if words else "(?!)", text)
        return " ".join(
            f"<[{self.special[part]}]>" if part in self.special else as_json(part)
            for part in parts
            if part
        )

    def grammar(self) -> str:
        """Return the grammar of the answer, in llguidance's Lark."""
        form = self.form
        names = [f"c{i}" for i in range(len(self.tools))]
        lines = [f"one: {' | '.join(names)}"]
        for rule, (name, schema) in zip(names, self.tools.items()):
            shown = as_json({**schema, "x-guidance": {"whitespace_flexible": False}})
            head, tail = self._lark(form.head + name + form.middle), self._lark(form.tail)
            lines.append(f"{rule}: {head} %json {shown} {tail}")
        again = f"({self._lark(form.between or '')} one)*" if self.parallel else ""
        rest = f"{self._lark(form.begin)} one {again} {self._lark(form.end)}"
        mark = self._lark(form.mark)
        whole = f"{mark}{'' if form.needed or not mark else '?'} {rest}"
        anything = r"/(.|\n)*/"
        if self.must:
            start = whole
        elif not form.needed:
            start = f"plain | {whole}"
            lines.append(r"plain: /[^{](.|\n)*/")
        elif form.mark in self.special:  # which no plain text can hold
            start = f"plain | plain {whole}"
            lines.append(f"plain: {anything}")
        else:
            start = f"plain | preface {rest}"
            lines.append(rf"preface[lazy]: /(.|\n)*{re.escape(form.mark)}/")
            lines.append(f"plain: {anything}")
        return "\n".join([f"start: {start}", *lines, ""])

    def read(self, text: str) -> tuple[str, list[Call]]:
        """Return what an answer, its special tokens spelt out, says, and the calls in it
        that are whole."""
        form, calls = self.form, []
        said, mark, rest = text.partition(form.mark) if form.mark else ("", "", text)
        if not mark and form.needed:
            return "" if self.must else text, []
        names = "|".join(map(re.escape, self.tools))
        one = re.compile(f"{re.escape(form.head)}({names}){re.escape(form.middle)}")
        if not mark:
            said, rest = ("", text) if text.startswith(form.head[:1]) else (text, "")
        at = 0
        while begun := one.search(rest, at):
            try:
                arguments, at = json.JSONDecoder().raw_decode(rest, begun.end())
                call = Call(begun[1], as_json(arguments))
            except (ValueError, RecursionError, ConfigError):
                break  # the answer ended in it, or went deeper and deeper
            if not rest.startswith(form.tail, at):
                break
            calls.append(call)
        return said.rstrip("\n"), calls
