"""Calls of tools: the grammar that an answer with tools keeps to, and how it is read.

A model is asked for calls in the form that its chat template teaches: between
``<tool_call>`` tags (Hermes, Qwen, and whatever says nothing of it), or as a bare object
with ``parameters`` (Llama 3). The grammar lets it write nothing else: names are those of
the tools, arguments keep to their schemas, and what leaves no choice costs nothing.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Mapping, Sequence

from draftwire.errors import ConfigError
from draftwire.sampling.grammar.text import as_json

__all__ = ["Call", "Calls", "read_tools"]

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
_MOST = 128
_NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class Call:
    """One call."""

    name: str  # of the tool
    arguments: str  # JSON, as the model wrote it


def read_tools(tools: object) -> dict[str, Any]:
    """Return the schemas of the arguments of ``tools``, by name.

    Args:
        tools: As OpenAI's clients give them, ``{"type": "function", "function": {...}}``,
            or the functions themselves.

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
    bare: bool = False  # calls are bare objects with ``parameters``, as of Llama 3

    @classmethod
    def of(
        cls,
        tools: object,
        choice: object = "auto",
        *,
        parallel: bool = True,
        template: str | None = None,
    ) -> Calls | None:
        """Return what ``tools`` and ``choice`` ask for; None where no call may come.

        Args:
            tools: See :func:`read_tools`.
            choice: ``"auto"``, ``"none"``, ``"required"``, the name of a tool, or
                ``{"type": "function", "function": {"name": ...}}``.
            parallel: Several calls may come.
            template: Chat template of the model.

        Raises:
            ConfigError: They are none, or the choice is none of them.
        """
        found = read_tools(tools)
        if isinstance(choice, Mapping):
            function = choice.get("function", choice)
            choice = function.get("name") if isinstance(function, Mapping) else None
        if choice == "none" or not found:
            return None
        text = template or ""
        bare = _OPEN not in text and '"parameters": dictionary' in text
        if choice in ("auto", "required"):
            return cls(found, choice == "required", parallel and not bare, bare)
        if not isinstance(choice, str) or choice not in found:
            raise ConfigError(
                f"tool_choice is {choice!r:.80}",
                hint="auto, none, required, or one of " + ", ".join(found),
            )
        return cls({choice: found[choice]}, True, False, bare)

    @staticmethod
    def introduction(tools: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """Return a message that says which tools there are, where no template does."""
        known = [tool.get("function", tool) for tool in tools]
        return {"role": "system", "content": f"You may call these tools: {as_json(known)}"}

    def grammar(self) -> str:
        """Return the grammar of the answer, in llguidance's Lark."""
        key = "parameters" if self.bare else "arguments"
        names = [f"c{i}" for i in range(len(self.tools))]
        lines = [f"one: {' | '.join(names)}"]
        for rule, (name, schema) in zip(names, self.tools.items()):
            head = as_json(f'{{"name":{as_json(name)},"{key}":')
            shown = as_json({**schema, "x-guidance": {"whitespace_flexible": False}})
            lines.append(f'{rule}: {head} %json {shown} "}}"')
        inside = f"{as_json(chr(10))} one {as_json(chr(10) + _CLOSE)}"
        again = f"({as_json(chr(10) + _OPEN)} {inside})*" if self.parallel else ""
        if self.bare:
            start = "one" if self.must else "plain | one"
            lines.append(r"plain: /[^{](.|\n)*/")
        elif self.must:
            start = f"{as_json(_OPEN)} {inside} {again}"
        else:
            start = f"plain | preface {inside} {again}"
            lines += [rf"preface[lazy]: /(.|\n)*{_OPEN}/", r"plain: /(.|\n)*/"]
        return "\n".join([f"start: {start}", *lines, ""])

    def split(self, text: str) -> tuple[str, str]:
        """Return what of ``text`` is said, and what is calls, or may become some."""
        if self.must:
            return "", text
        if self.bare:
            return ("", text) if text.startswith("{") else (text, "")
        at = text.find(_OPEN)
        if at < 0:  # the tag may be half there
            held = next(
                (n for n in range(len(_OPEN) - 1, 0, -1) if text.endswith(_OPEN[:n])), 0
            )
            return text[: len(text) - held], text[len(text) - held :]
        return text[:at], text[at:]

    def read(self, text: str) -> tuple[str, list[Call]]:
        """Return what an answer says, and the calls in it that are whole."""
        said, rest = self.split(text)
        if not self.bare and _OPEN not in rest:
            return text, []
        whole = rf"{_OPEN}\n(.*?)\n{_CLOSE}"
        parts = [rest] if self.bare else re.findall(whole, rest, re.S)
        calls = []
        for part in parts:
            try:
                found = json.loads(part)
            except ValueError:
                continue  # the answer ended in it
            arguments = found.get("parameters" if self.bare else "arguments")
            calls.append(Call(found["name"], as_json(arguments)))
        return said.rstrip("\n"), calls
