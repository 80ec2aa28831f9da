"""Shows a generation as it comes: each token in the colour of how it came about."""

from __future__ import annotations

import argparse
import sys
from typing import IO, TYPE_CHECKING, Any, Iterator, Mapping

from draftwire.cli._common import wants_colour
from draftwire.errors import OutputError

if TYPE_CHECKING:
    from draftwire.tokenizer import Tokenizer

# How a token came about -> SGR parameters.  They differ in weight and not in hue alone.
COLOURS = {
    "accepted": "32",
    "correction": "1;33",
    "bonus": "1;36",
    "forced": "34",
    "resumed": "36",
    "unverified": "2;3",
    "completed": "2;35",
}
LEGEND = {
    "accepted": "drafted here and accepted",
    "correction": "corrected by the target",
    "bonus": "added by the target after a whole block",
}


class Painter:
    """Writes chunks to a stream; in colours where a ``tokenizer`` splits their text."""

    def __init__(self, stream: IO[str], tokenizer: Tokenizer | None = None) -> None:
        self._stream = stream
        self._colour = tokenizer is not None
        if tokenizer is not None:
            from draftwire.runtime.text import detokenizer

            self._pieces = detokenizer(tokenizer)
        self._kind = "accepted"
        self.ended_line = True

    def legend(self) -> None:
        """Say what the colours mean, when there are any."""
        if self._colour:
            for kind, meaning in LEGEND.items():
                self._stream.write(self._paint(meaning, kind) + "\n")
            self._stream.write("\n")

    def prompt(self, text: str) -> None:
        """Show the prompt, before the text that continues it."""
        self._put(f"\x1b[2m{text}\x1b[0m" if self._colour else text)
        self.ended_line = text.endswith("\n")

    def event(self, event: Mapping[str, Any]) -> None:
        """Show an event of the service: its text, without colours."""
        text = event.get("text", "")
        self._add(text, text, event.get("revision"), event.get("kept_text"))

    def show(self, chunk: Any) -> None:
        """Show a chunk: its text, and which of it came about how."""
        text = "".join(self._painted(chunk)) if self._colour else chunk.text
        self._add(text, chunk.text, chunk.revision, chunk.kept_text)

    def _add(self, shown: str, text: str, revision: int | None, kept: str | None) -> None:
        if revision is not None:
            # Guesses of the draft alone were wrong: say so, and show what stands.
            self._put(f"\n[revised from token {revision} on]\n{kept}")
            self.ended_line = False
        if text:
            self._put(shown)
            self.ended_line = text.endswith("\n")

    def end_line(self) -> None:
        """See that what comes next begins on a line of its own."""
        if not self.ended_line:
            self._put("\n")
            self.ended_line = True

    def _painted(self, chunk: Any) -> Iterator[str]:
        rest: str = chunk.text
        for token in chunk.tokens:
            self._kind = token.kind
            # The chunk is the authority: a stop string may hold back or cut its text.
            piece = rest[: len(self._pieces.push([token.id]))]
            rest = rest[len(piece) :]
            if piece:
                yield self._paint(piece, self._kind)
        if rest:
            yield self._paint(rest, self._kind)

    def _paint(self, text: str, kind: str) -> str:
        return f"\x1b[{COLOURS[kind]}m{text}\x1b[0m"

    def _put(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise OutputError(f"cannot write the text: {exc.strerror}") from exc


def painter_of(args: argparse.Namespace, draft: Any) -> Painter:
    """Return what shows text where it goes, in colours where a terminal has them."""
    screen = screen_of(args)
    if not wants_colour(screen, never=args.no_color):
        return Painter(screen)
    from draftwire.tokenizer import load_tokenizer

    return Painter(screen, load_tokenizer(draft))


def screen_of(args: argparse.Namespace) -> IO[str]:
    """Return where text goes: a document on stdout has that to itself."""
    return sys.stderr if args.json == "-" else sys.stdout


def warn(*reports: Mapping[str, Any]) -> None:
    """Say what these reports warn of, each sentence once."""
    said = (sentence for report in reports for sentence in report.get("warnings") or ())
    for sentence in dict.fromkeys(said):
        print(f"warning: {sentence}", file=sys.stderr)


def summary(report: Mapping[str, Any]) -> str:
    """Return a line on a run, what it cost and what the draft saved, and one on joules."""
    from draftwire.cli.energy import sentence
    from draftwire.runtime.report import summarise

    found = summarise("", report)
    parts = [f"{found.tokens} tokens in {found.rounds} rounds"]
    for value, words in (
        (found.accepted_per_block, "accepted a block"),
        (found.forwards_per_token, "target forwards a token"),
        (found.bytes_per_drafted, "bytes up a drafted token"),
        (found.tokens_per_s, "tokens/s"),
    ):
        if value is not None:
            parts.append(f"{value:.2f} {words}")
    line, energy = f"{', '.join(parts)} ({report['finish']})", report["energy"]
    return f"{line}\n{sentence(energy)}" if energy["source"] else line
