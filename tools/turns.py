"""Six turns of a conversation over a long system prompt: what each sends, reads and waits.

    PYTHONPATH=src python tools/turns.py [--link 40ms] [--system 600]
        [--draft DIR --target DIR]

A turn's prompt is all that was said before and twelve new ids. The link is emulated by a
proxy; the verifier and the draft are those of models/, or others. "Beside ids" is what a
turn sends beside its new ids and its drafts at ceil(log2 V) bits each: the open's fields,
the heads of the blocks.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import draftwire
from draftwire.bench.child import VerifierProcess
from draftwire.bench.link.emulate import emulate
from draftwire.reference import draft_path, target_path


def main() -> None:
    """Print a row for each turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--link", default="40ms")
    parser.add_argument("--system", type=int, default=600)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--draft", type=Path, default=draft_path())
    parser.add_argument("--target", type=Path, default=target_path("v1"))
    args = parser.parse_args()
    rng = random.Random(7)
    ids = [rng.randrange(300, 2000) for _ in range(args.system)]
    verifier = VerifierProcess([args.target])
    verifier.start()
    first = {}
    print(
        "turn  prompt  unsent  reused  up bytes  beside ids  draft prefill ms  "
        "first token ms"
    )
    try:
        with emulate(args.link, verifier.port) as link:
            url = f"ws://127.0.0.1:{link.url_port}"
            with draftwire.connect(url, draft=args.draft) as session:
                for turn in range(args.turns):
                    new = [rng.randrange(300, 2000) for _ in range(12)]
                    stream = session.generate([*ids, *new], max_new_tokens=24)
                    text = [token.id for chunk in stream for token in chunk.tokens]
                    found = stream.report
                    sent = found["prompt_tokens"] - found["prefix"]["unsent"]
                    bits = (session.welcome.vocab_size - 1).bit_length()
                    up = found["bytes"]["up_payload"]
                    beside = up - (sent + found["drafted"]) * bits / 8
                    first[turn + 1] = found["seconds"]["first_token"]
                    print(
                        f"{turn + 1:4}  {found['prompt_tokens']:6}"
                        f"  {found['prefix']['unsent']:6}  {found['prefix']['reused']:6}"
                        f"  {up:8}  {beside:10.0f}"
                        f"  {found['seconds']['prefill'] * 1e3:16.1f}"
                        f"  {found['seconds']['first_token'] * 1e3:14.1f}"
                    )
                    ids += [*new, *text]
    finally:
        verifier.kill()
    last = max(first)
    if last > 2:
        print(f"first token of turn {last}: {first[last] / first[2]:.2f} times turn 2's")


if __name__ == "__main__":
    main()
