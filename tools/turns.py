"""Six turns of a conversation over a long system prompt: what each sends, reads and waits.

    PYTHONPATH=src python tools/turns.py [--link 40ms] [--system 600]

A turn's prompt is all that was said before and twelve new ids. The link is emulated by a
proxy; the verifier and the draft are those of models/.
"""

from __future__ import annotations

import argparse
import random

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
    args = parser.parse_args()
    rng = random.Random(7)
    ids = [rng.randrange(300, 2000) for _ in range(args.system)]
    verifier = VerifierProcess([target_path("v1")])
    verifier.start()
    print("turn  prompt  unsent  reused  up bytes  draft prefill ms  first token ms")
    try:
        with emulate(args.link, verifier.port) as link:
            url = f"ws://127.0.0.1:{link.url_port}"
            with draftwire.connect(url, draft=draft_path()) as session:
                for turn in range(args.turns):
                    new = [rng.randrange(300, 2000) for _ in range(12)]
                    stream = session.generate([*ids, *new], max_new_tokens=24)
                    text = [token.id for chunk in stream for token in chunk.tokens]
                    found = stream.report
                    print(
                        f"{turn + 1:4}  {found['prompt_tokens']:6}"
                        f"  {found['prefix']['unsent']:6}  {found['prefix']['reused']:6}"
                        f"  {found['bytes']['up_payload']:8}"
                        f"  {found['seconds']['prefill'] * 1e3:16.1f}"
                        f"  {found['seconds']['first_token'] * 1e3:14.1f}"
                    )
                    ids += [*new, *text]
    finally:
        verifier.kill()


if __name__ == "__main__":
    main()
