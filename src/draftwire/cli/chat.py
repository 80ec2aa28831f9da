"""``draftwire chat``: talk with a target, in a terminal or through a pipe."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from typing import TYPE_CHECKING, Any, Callable, Iterator

from draftwire.cli import _common
from draftwire.cli._leaf import Leaf
from draftwire.errors import ConfigError, DraftwireError
from draftwire.io import parse_json
from draftwire.options import GROUPS, MAX_TOKENS, check_prompt

if TYPE_CHECKING:
    from draftwire import Session, Stream

HELP = """\
/help           this
/reset          forget the conversation; the system message stays
/system TEXT    begin anew with this system message; without TEXT: with none
/quit           end, as Ctrl-D does
Ctrl-C          ends the answer that is being written; what is there stays
"""


LEAF = Leaf(
    "talk with a target",
    "draftwire.cli.chat:run",
    """
--system TEXT         begin with this system message
--tools FILE          JSON list of tools, as OpenAI's clients give them
--tool-choice WORD    auto (with --tools), none, required, or a tool's name
""",
    about="Talk with a target: each line is a message, /help lists commands. "
    "From a pipe each line is a turn. Answers go to stdout, what they cost to stderr.",
    groups=GROUPS,
)


def run(args: argparse.Namespace) -> None:
    """Connect, and talk until the input ends."""
    import draftwire

    values = _common.read_settings(args)
    options = _common.stream_options(values)
    if values["max_new_tokens"].origin == "default":
        options["max_new_tokens"] = MAX_TOKENS  # an answer ends by itself
    if args.tools is not None:
        try:
            options["tools"] = parse_json(args.tools.read_bytes())
        except (OSError, ValueError) as exc:
            raise ConfigError(f"--tools: {args.tools} is no file of JSON: {exc}") from exc
        options["tool_choice"] = args.tool_choice or "auto"
    elif args.tool_choice:
        raise ConfigError("--tool-choice needs --tools", hint="--tools FILE lists them")
    where = _common.session_options(values)
    _common.start_logging(verbose=args.verbose)
    with draftwire.connect(**where) as session:
        talk = _Talk(session, options, args)
        try:
            if sys.stdin.isatty():
                talk.at_terminal()
            else:
                for line in sys.stdin:
                    if not talk.take(line):
                        break
        finally:
            if args.json:
                _common.write_json(talk.reports, args.json)


class _Talk:
    """A conversation."""

    def __init__(
        self, session: Session, options: dict[str, Any], args: argparse.Namespace
    ) -> None:
        from draftwire.cli._stream import screen_of

        self._session = session
        self._options = options
        self._quiet = args.quiet
        self._terminal = sys.stdin.isatty()
        self._screen = screen_of(args)
        self._warned: set[str] = set()
        self._begin(args.system or "")
        self.reports: list[dict[str, Any]] = []

    def _begin(self, system: str) -> None:
        self._system = check_prompt(system) if system else ""
        self._messages: list[dict[str, Any]] = []
        if self._system:
            self._messages.append({"role": "system", "content": self._system})

    def at_terminal(self) -> None:
        """Talk with a person, who may err."""
        if not self._quiet:
            target = self._session.welcome.target or "the draft alone"
            print(f"talking with {target}; /help lists commands", file=sys.stderr)
        for line in _lines():
            try:
                if not self.take(line):
                    return
            except DraftwireError as exc:
                _common.say_error(exc, "")

    def take(self, line: str) -> bool:
        """Do what a line says; return False when it is to end (DraftwireError: it cannot be
        done; the conversation is as before)."""
        line = line.strip()
        word, _, rest = line.partition(" ")
        if word == "/quit":
            return False
        if word in ("/reset", "/system"):
            self._begin(rest.strip() if word == "/system" else str(self._system))
            print("begun anew", file=sys.stderr)
        elif word == "/help":
            print(HELP, end="", file=sys.stderr)
        elif word.startswith("/") and word[1:].isalpha():
            raise ConfigError(f"there is no command {word}", hint="/help lists them")
        elif line:
            self._turn(line)
        return True

    def _turn(self, text: str) -> None:
        from draftwire.cli._stream import Painter

        asked = {"role": "user", "content": check_prompt(text)}
        painter = Painter(self._screen)
        with _interrupts(self._terminal) as stop:
            stream = self._session.chat([*self._messages, asked], **self._options)
            stop(stream)
            try:
                for chunk in stream:
                    painter.show(chunk)
            finally:
                painter.end_line()
        self._messages += [asked, {"role": "assistant", "content": stream.text}]
        report = stream.report or {}
        self.reports.append(report)
        for warning in report.get("warnings") or ():
            if warning not in self._warned:
                self._warned.add(warning)
                print(f"warning: {warning}", file=sys.stderr)
        if not self._quiet:
            print(_cost(report), file=sys.stderr)


@contextlib.contextmanager
def _interrupts(wanted: bool) -> Iterator[Callable[[Stream], None]]:
    """Have Ctrl-C end the stream that the yielded function is told of, and no more."""
    found: list[Stream] = []
    pressed = False

    def end(*_: object) -> None:
        nonlocal pressed
        pressed = True
        for stream in found:
            stream.cancel()

    def tell(stream: Stream) -> None:
        found.append(stream)
        if pressed:
            stream.cancel()

    before = signal.signal(signal.SIGINT, end) if wanted else None
    try:
        yield tell
    finally:
        if wanted:
            signal.signal(signal.SIGINT, before)


def _lines() -> Iterator[str]:
    """Yield the lines of a person; Ctrl-C drops one, Ctrl-D ends them."""
    try:
        import readline  # noqa: F401  (input edits its lines with it)
    except ImportError:
        pass
    prompt = "> " if sys.stdout.isatty() else ""  # else it would be among the answers
    while True:
        if not prompt:
            print("> ", end="", file=sys.stderr, flush=True)
        try:
            yield input(prompt)
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /quit ends it)", file=sys.stderr)


def _cost(report: dict[str, Any]) -> str:
    """Return what a turn cost, in one line; what was not measured is left out."""
    bytes_, seconds = report.get("bytes") or {}, report.get("seconds") or {}
    parts = [f"{report.get('tokens', 0)} tokens"]
    unsent = (report.get("prefix") or {}).get("unsent")
    if unsent:
        parts.append(f"{report['prompt_tokens'] - unsent} of the prompt sent")
    for value, words in (
        (report.get("target_forwards"), "forwards"),
        (bytes_.get("up_payload"), "B up"),
        (bytes_.get("down_payload"), "B down"),
        ((report.get("energy") or {}).get("joules"), "J"),
        (seconds.get("first_token"), "s to first"),
    ):
        if value is not None:
            figure = f"{value:.3g}" if isinstance(value, float) else str(value)
            parts.append(f"{figure} {words}")
    if seconds.get("total") and report.get("tokens"):
        parts.append(f"{report['tokens'] / seconds['total']:.1f} tokens/s")
    return f"[{', '.join(parts)}; {report.get('finish')}]"
