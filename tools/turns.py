"""Turns of conversations over a long system prompt: what each sends, reads and waits.

    PYTHONPATH=src python tools/turns.py [--link 40ms] [--system 1000]
        [--conversations 8] [--draft DIR --target DIR] [--temperature 0.8]

A turn's prompt is all that was said before and what the user says next. The link is
emulated by a proxy; the verifier and the draft are those of models/, or others. "Read"
are positions of the prompt that went through the models, at the device and at the
verifier: they do not depend on what else the machine does. "Allowed" are (new tokens *
ceil(log2 V) / 8 + 64) bytes up, the new tokens being the turn's ids and what was drafted
behind them; "of text" counts the text alone, so that what was drafted in vain is part of
the 64. Of the bytes the worst conversation is shown, of the rest the median; times are
told by their fastest too, since what else a machine does only ever adds to them.
"""

from __future__ import annotations

import argparse
import contextlib
import random
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any, Sequence

import draftwire
from draftwire.bench.child import VerifierProcess
from draftwire.bench.link.emulate import emulate
from draftwire.packages import load_draft, load_tokenizer
from draftwire.reference import draft_path, target_path
from draftwire.runtime.engines.draft_model import DraftModel

RULES = """You are the robot in a small house by the sea. Answer in one short sentence.
Say what you do, and then do it. Never go near the water alone. The cat sleeps in the box.
If you do not know a thing, say so. Tea is in the kitchen, and bread is on the table.
The old man likes to hear a story in the evening. The girl goes to school in the morning.
When the lamp is red, stop and wait. When it is green, go on with your work.""".split("\n")
USER = (
    "Good morning, how are you today?",
    "Can I get a cup of tea with milk please?",
    "Where is the little girl now?",
    "Please put the bread on the table.",
    "Tell me a story about a king and a bird.",
    "What do you see in the garden?",
    "It is late, please go to the door and look.",
    "Thank you, that is all for today.",
)
ALLOWED = 64  # bytes beside the tokens
RATIO = 1.2  # first token of the last turn, of the second's


class Reading:
    """Counts the positions of a prompt that go through the draft model."""

    def __init__(self) -> None:
        self.prompt = self.read = 0
        forward, this = DraftModel.forward, self

        def counted(model: DraftModel, tokens: Sequence[int]) -> Any:
            end = min(model.length + len(tokens), this.prompt)
            this.read += max(0, end - model.length)
            return forward(model, tokens)

        DraftModel.forward = counted  # type: ignore[method-assign, assignment]

    def of(self, prompt: int) -> None:
        """Begin to count for a prompt of so many ids."""
        self.prompt, self.read = prompt, 0


def main() -> int:
    """Print a row for each turn; return 1 when something asked for is not met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--link", default="40ms")
    parser.add_argument("--system", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--conversations", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--draft", type=Path, default=draft_path())
    parser.add_argument("--target", type=Path, default=target_path("v1"))
    args = parser.parse_args()
    rows: dict[int, list[dict[str, float]]] = defaultdict(list)
    reading, rng = Reading(), random.Random(7)
    how: dict[str, Any] = {"max_new_tokens": args.tokens, "temperature": args.temperature}
    with contextlib.ExitStack() as stack:
        verifier = stack.enter_context(VerifierProcess([args.target]))
        link = stack.enter_context(emulate(args.link, verifier.port))
        url = f"ws://127.0.0.1:{link.url_port}"
        session = stack.enter_context(draftwire.connect(url, draft=args.draft))
        bits = (session.welcome.vocab_size - 1).bit_length()
        encode = load_tokenizer(load_draft(args.draft).path).encode
        for _ in range(args.conversations):
            ids: list[int] = []
            while len(ids) < args.system:
                ids += encode(rng.choice(RULES) + "\n")
            ids = ids[: args.system]
            said = rng.sample(USER * -(-args.turns // len(USER)), args.turns)
            for turn, words in enumerate(said, 1):
                ids += encode(f"\nUser: {words}\nAgent:")
                reading.of(len(ids))
                stream = session.generate(ids, **how)
                text = [token.id for chunk in stream for token in chunk.tokens]
                row = _row(stream.report, len(text), bits, reading.read)
                rows[turn].append(row)
                ids += text
    return _show(rows, args.turns)


def _row(report: dict[str, Any], tokens: int, bits: int, read: int) -> dict[str, float]:
    sent = report["prompt_tokens"] - report["prefix"]["unsent"]
    return {
        "prompt": report["prompt_tokens"],
        "sent": sent,
        "device": read,
        "verifier": report["prompt_tokens"] - report["prefix"]["reused"],
        "up": report["bytes"]["up_payload"],
        "allowed": (sent + max(tokens, report["drafted"])) * bits / 8 + ALLOWED,
        "text": (sent + tokens) * bits / 8 + ALLOWED,
        "first": report["seconds"]["first_token"] * 1e3,
    }


def _show(rows: dict[int, list[dict[str, float]]], last: int) -> int:
    print(
        "turn  prompt  sent  read: device  verifier  bytes up  allowed        of text"
        "        first token, fastest"
    )
    met = True
    for turn, found in sorted(rows.items()):
        # The worst one: nearest to what it is allowed, or farthest above it.
        worst = max(found, key=lambda row: row["up"] - row["allowed"])
        row = {name: median(one[name] for one in found) for name in found[0]}
        over = sum(one["up"] > one["allowed"] for one in found)
        within = sum(one["up"] <= one["text"] for one in found)
        met &= not over
        print(
            f"{turn:4}  {row['prompt']:6.0f}  {row['sent']:4.0f}  {row['device']:12.0f}"
            f"  {row['verifier']:8.0f}  {worst['up']:8.0f}  {worst['allowed']:7.0f}"
            f" {f'not met: {over}' if over else 'met':>4}  {worst['text']:6.0f} met"
            f" {within}/{len(found)}  {row['first']:8.1f} {_fastest(found):8.1f} ms"
        )
    whole = all(
        one[name] <= one["sent"] + 4  # and the text's last, which the draft never saw
        for turn, found in rows.items()
        if turn > 1
        for one in found
        for name in ("device", "verifier")
    )
    print(f"new tokens only are read at both ends: {_said(whole)}")
    print(f"bytes up of every turn: {_said(met)}")
    middle = median(b["first"] / a["first"] for a, b in zip(rows[2], rows[last]))
    ratio = _fastest(rows[last]) / _fastest(rows[2])
    print(
        f"first token of turn {last}: {ratio:.2f} times turn 2's (fastest of "
        f"{len(rows[2])} each; the median of their ratios is {middle:.2f}), "
        f"{RATIO} allowed: {_said(ratio <= RATIO)}"
    )
    return 0 if met and whole and ratio <= RATIO else 1


def _fastest(found: list[dict[str, float]]) -> float:
    return min(one["first"] for one in found)


def _said(met: bool) -> str:
    return "met" if met else "not met"


if __name__ == "__main__":
    raise SystemExit(main())
