"""Chat templates: what a model's makers want messages turned into, exactly.

A package carries the template of its checkpoint (``chat_template.jinja``, with the special
tokens that ``tokenizer_config.json`` names). It is rendered as transformers renders it,
by jinja2 in its sandbox. A board may lack jinja2: most templates only put fixed texts
between messages, and an export keeps those (``chat.json``) where they gave the same text
as the template on every probe.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence

from draftwire.errors import ConfigError, PackageError
from draftwire.io import parse_json, read_text, version_tuple
from draftwire.rules import is_text

TEMPLATE, TOOL_TEMPLATE = "chat_template.jinja", "chat_template.tool_use.jinja"
SETTINGS, PLAIN = "tokenizer_config.json", "chat.json"
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
_MAX_BYTES, _WHAT = 4 << 20, "a chat template"
_SUCH = '[{"role": "user", "content": "Hello"}]'
_NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_REASONING = ("reasoning_content", "thinking", "reasoning")

_TURN = {"system": "\n\n", "user": "\nUser: ", "assistant": "\nAssistant: "}
_TURN["generate"] = "\nAssistant:"
# What a package without a template gets: a transcript, which base models know how to go
# on with. Its end is the next line of the user.
NO_TEMPLATE: Mapping[str, Any] = {
    "trim": ["system", "user", "assistant"],
    "stop": ["\nUser:", "\nSystem:"],
    "between": {
        "start": {"system": "", "user": "User: ", "assistant": "Assistant: "},
        "system": {"system": "\n\n", "user": "\n\nUser: ", "generate": "\n\nAssistant:"},
        **dict.fromkeys(("user", "assistant"), _TURN),
    },
}


def check_messages(messages: object) -> list[dict[str, Any]]:
    """Return messages as plain data, for a template to read.

    They are mappings with ``role``, ``content`` (text, or parts of type ``text``) and what
    else the template knows (``tool_calls``, ``name``); a ConfigError names the one that is
    not.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ConfigError("messages must be a list", hint=_SUCH)
    if not messages:
        raise ConfigError("there are no messages", hint=_SUCH)
    found = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, Mapping):
            raise ConfigError(f"{where} is no object with role and content", hint=_SUCH)
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            # Templates write roles between special tokens: a free word could spell one.
            raise ConfigError(
                f"{where}.role is {role!r:.60}", hint=f"it must be {', '.join(ROLES)}"
            )
        if isinstance(content, (list, tuple)):
            for at, part in enumerate(content):
                kind = part.get("type") if isinstance(part, Mapping) else None
                if kind != "text" or not isinstance(part.get("text"), str):
                    raise ConfigError(
                        f"{where}.content[{at}] is no part of type text",
                        hint="the models here read text alone",
                    )
        elif not isinstance(content, str):
            more = any(message[key] is not None for key in message if key != "role")
            if content is not None or not more:
                raise ConfigError(f"{where}.content must be text", hint=_SUCH)
        # As transformers: None counts as absent, and reasoning goes by three names.
        data = {k: plain_data(v, where) for k, v in message.items() if v is not None}
        thoughts = [data[name] for name in _REASONING if name in data]
        if thoughts:
            data = {"thinking": thoughts[0], **data, "reasoning_content": thoughts[0]}
        found.append(data)
    return found


def plain_data(value: Any, where: str) -> Any:
    """Return a copy of JSON's own types: a template calls nothing of a caller's
    (ConfigError: it holds something else, or text that is none)."""
    if value is None or type(value) in (int, float, bool):
        return value
    if isinstance(value, str) and is_text(value):
        return str.__str__(value)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {plain_data(k, where): plain_data(v, where) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_data(item, where) for item in value]
    raise ConfigError(f"{where} holds {value!r:.60}, which is no JSON or no Unicode text")


class Template:
    """A package's chat template: its ``text`` and one for when there are tools (None: the
    package has none), the special tokens that it may name, e.g. ``{"bos_token": "<s>"}``,
    and its form without jinja2."""

    def __init__(
        self,
        text: str | None,
        tokens: Mapping[str, str],
        tool_text: str | None = None,
        plain: Mapping[str, Any] | None = None,
    ) -> None:
        self.text = text
        self._tokens = dict(tokens)
        self._tool_text = tool_text
        self._plain = NO_TEMPLATE if text is None else plain
        self._compiled: dict[str, Any] = {}
        # Texts that end an answer, where no token does.
        self.stop = tuple((self._plain or {}).get("stop", ()))
        # It says what tools there are; otherwise a message has to.
        self.shows_tools = tool_text is not None or "tools" in (text or "")

    @classmethod
    def of(cls, folder: Path) -> Template:
        """Return the template of a package, or of a Hugging Face directory (PackageError: a
        file of it cannot be read)."""
        settings = _read_json(folder / SETTINGS)
        tokens = {}
        for name in _NAMED:
            token = settings.get(f"{name}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                tokens[f"{name}_token"] = token
        said = settings.get("chat_template")
        named = {"default": said} if isinstance(said, str) else {}
        for entry in said if isinstance(said, list) else ():
            if isinstance(entry, dict) and isinstance(entry.get("template"), str):
                named[str(entry.get("name"))] = entry["template"]
        for name, file in (
            ("default", TEMPLATE),
            ("tool_use", "additional_chat_templates/tool_use.jinja"),
            ("tool_use", TOOL_TEMPLATE),
        ):
            if (folder / file).is_file():
                named[name] = read_text(folder / file, _MAX_BYTES, _WHAT)
        plain = _read_json(folder / PLAIN) or None
        if plain is not None and not _is_form(plain):
            raise PackageError(f"{folder / PLAIN} is no form of a chat template")
        return cls(named.get("default"), tokens, named.get("tool_use"), plain)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """Return the prompt of checked messages, with the schemas of ``tools``.

        ``options`` are further variables of the template. A ConfigError where it refuses
        the conversation, or jinja2 is missing.
        """
        if self._plain is not None and (self.text is None or not _has_jinja()):
            if tools or options:
                why = "takes no tools and no options of a template"
                about = "tools" if tools else "template_options"
            else:
                found = _plain_text(self._plain, messages, add_generation_prompt)
                if isinstance(found, str):
                    return found
                why, about = f"takes no {found[0]} message there", "messages"
            if self.text is None:
                raise ConfigError(
                    f"this draft has no chat template, and a plain transcript {why}",
                    hint="export it from a checkpoint with a chat template",
                    about=about,
                )
            raise ConfigError(
                f"the chat template's form for boards without jinja2 {why}",
                hint="pip install 'draftwire[chat]'",
                about=about,
            )
        text = (tools and self._tool_text) or self.text or ""
        if text not in self._compiled:
            self._compiled[text] = _compile(text)
        variables = {**self._tokens, **(options or {}), "messages": messages}
        variables.update(tools=tools or None, documents=None)
        variables.update(add_generation_prompt=add_generation_prompt)
        import jinja2

        values = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
        try:
            return str(self._compiled[text].render(variables))
        except (jinja2.TemplateError, RecursionError, *values) as exc:
            reason = (str(exc).strip() or type(exc).__name__).splitlines()[0][:200]
            what = f"the chat template refuses this conversation: {reason}"
            raise ConfigError(what, about="messages") from exc

    def turn_end(self) -> str:
        """Return what stands between an answer and the user's next message."""
        try:
            text = self.render(_conversation("uau", _WORDS))
            return text.partition(_WORDS[1])[2].partition(_WORDS[2])[0]
        except ConfigError:
            return ""

    def plain_form(self) -> dict[str, Any] | None:
        """Return what renders without jinja2 as this does, or None where nothing does."""
        if self.text is None or "strftime_now" in self.text:
            return None
        between = self._between()
        for roles in ("", "u", "su", "sua", "a", "s", "ua", "sa") if between else ():
            form = {"trim": [_ROLE[role] for role in roles], "between": between}
            if all(self._agrees(form, probe) for probe in _probes()):
                return form
        return None

    def _between(self) -> dict[str, dict[str, str]] | None:
        """Return the texts between messages, or None where they vary."""
        between: dict[str, dict[str, str]] = {}
        for roles in _SHAPES:
            conversation = _conversation(roles, _WORDS)
            try:
                rest, before = self.render(conversation), "start"
            except ConfigError:
                continue  # not every template takes a system message
            for message in conversation:
                gap, word, rest = rest.partition(message["content"])
                role = message["role"]
                if not word or between.setdefault(before, {}).setdefault(role, gap) != gap:
                    return None
                before = role
            if between.setdefault(before, {}).setdefault("generate", rest) != rest:
                return None
        return between

    def _agrees(self, form: Mapping[str, Any], probe: list[dict[str, Any]]) -> bool:
        found = _plain_text(form, probe, True)
        if isinstance(found, tuple):
            return True  # what the form has no text for is refused
        try:
            return found == self.render(probe)
        except ConfigError:
            return False


def template_files(folder: Path) -> dict[str, bytes]:
    """Return what a package carries of a checkpoint's chat template, by file name; a
    ConfigError where it is no text, or jinja2 is there and cannot read it."""
    template = Template.of(folder)
    if template.text is None:
        return {}
    for text in (template.text, template._tool_text or ""):
        if not is_text(text):
            raise ConfigError("the chat template is no Unicode text")
        if _has_jinja():
            _compile(text)
    files = {TEMPLATE: template.text.encode()}
    if template._tool_text is not None:
        files[TOOL_TEMPLATE] = template._tool_text.encode()
    if (folder / SETTINGS).is_file():
        files[SETTINGS] = (folder / SETTINGS).read_bytes()
    form = template.plain_form() if _has_jinja() else None
    if form is not None:
        files[PLAIN] = json.dumps(form, ensure_ascii=False, indent=1).encode()
    return files


_SHAPES = ("u", "su", "uau", "suau", "uaua", "suaua")
_ROLE = {"s": "system", "u": "user", "a": "assistant"}
_WORDS = tuple(f"Qx{i}xQ" for i in range(8))


def _conversation(roles: str, texts: Sequence[str]) -> list[dict[str, Any]]:
    return [{"role": _ROLE[r], "content": text} for r, text in zip(roles, texts)]


def _probes() -> Iterator[list[dict[str, Any]]]:
    odd = [" a\n", "", "{{ x }}{% if %}", "<think>\nhm\n</think>\n\nso", "\n\n"]
    odd += ["é 😀 <b>", "\ta\tb", "'\"\\", "a\r\n  b", "</s><|im_end|>"]
    for roles in (*_SHAPES, "us", "aua", "uu", "uauau", "suausua", "s", "a", "uaa"):
        yield _conversation(roles, _WORDS)
        for at in range(len(odd)):
            yield _conversation(roles, [odd[(at + i) % len(odd)] for i in range(8)])


def _is_form(raw: Mapping[str, Any]) -> bool:
    trim, between = raw.get("trim"), raw.get("between")
    return (
        isinstance(trim, list)
        and isinstance(between, dict)
        and all(isinstance(gaps, dict) for gaps in between.values())
        and all(isinstance(g, str) for gaps in between.values() for g in gaps.values())
    )


def _plain_text(
    form: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], generate: bool
) -> str | tuple[str]:
    """Return the prompt, or the role that the form has no text for."""
    out, before, between = [], "start", form["between"]
    for message in messages:
        role, content = message["role"], message.get("content")
        gap = between.get(before, {}).get(role)
        if gap is None or not isinstance(content, str) or len(message) > 2:
            return (role,)
        out += [gap, content.strip() if role in form["trim"] else content]
        before = role
    if generate:
        gap = between.get(before, {}).get("generate")
        if gap is None:
            return (f"last {before}",)
        out.append(gap)
    return "".join(out)


def _has_jinja() -> bool:
    try:
        import jinja2
    except ImportError:
        return False
    # Older ones let a template out of the sandbox.
    return version_tuple(jinja2.__version__) >= (3, 1, 6)


def _compile(text: str) -> Any:
    """Return the template, in the surroundings that transformers gives it.

    Source:
        transformers 5.23, utils/chat_template_utils.py: options, filters and globals.

    Raises:
        ConfigError: jinja2 is missing, or this is no template of it.
    """
    if not _has_jinja():
        raise ConfigError(
            "this draft's chat template needs jinja2, 3.1.6 or newer, and it is not there",
            hint="pip install 'draftwire[chat]'",
        )
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):  # type: ignore[misc]
        """``{% generation %}`` marks an answer for training; here it is its content."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(
                self.call_method("_same", []), [], [], body
            ).set_lineno(line)

        def _same(self, caller: Callable[[], str]) -> str:
            return caller()

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, *form: Any, **named: Any) -> str:
        named.update(zip(("indent", "separators", "sort_keys"), form))
        return json.dumps(value, ensure_ascii=ensure_ascii, **named)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(text)
    except (jinja2.TemplateError, SyntaxError, RecursionError, ValueError) as exc:
        raise ConfigError(
            f"the chat template is no jinja2 template: {exc}",
            hint="its line counts from the top of chat_template.jinja; export it mended",
        ) from exc


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = parse_json(read_text(path, _MAX_BYTES, _WHAT))
    except ValueError as exc:
        raise PackageError(f"{path} is not JSON") from exc
    return found if isinstance(found, dict) else {}
