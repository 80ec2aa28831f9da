"""Greedy speculative decoding over a websocket, from the public parts, one phase a block.

    draftwire verifier serve --target models/v1.target --port 8765
    python examples/textbook.py ws://127.0.0.1:8765 "Once upon a time"

This is the whole algorithm: propose, verify, commit, rewind. What `draftwire.connect`
adds is in docs/how-it-works.md: drafting while a verdict is out, lost links, sampling,
deciding how far to draft, joules.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from draftwire.packages import load_draft, load_tokenizer
from draftwire.runtime.engines.draft_model import DraftModel
from draftwire.runtime.greeting import hello_of
from draftwire.transport.client import Connection
from draftwire.transport.messages import Block, Commit, Finish, Open, Opened, Progress

K = 4  # tokens of a draft block
NEW = 48  # tokens of the answer, at most


def main(url: str, prompt: str) -> None:
    """Print the target's continuation of ``prompt``, drafted here."""
    package = load_draft(os.environ.get("DRAFT", "models/reference.draft"))
    tokenizer = load_tokenizer(package.tokenizer_path)
    model = DraftModel.load(package)
    text = tokenizer.encode(prompt, bos_id=package.bos_id)  # prompt, then final tokens
    begin = len(text)

    # Connect: hello and welcome settle target, vocabulary and tokenizer.
    hello = replace(hello_of(package, ""), capabilities=())  # the bare algorithm
    link = Connection(url, hello, token=os.environ.get("TOKEN"))
    vocab = link.welcome.vocab_size

    # Open: the context crosses the network once.
    stops = tuple(sorted({*link.welcome.eos_ids, *package.eos_ids}))
    link.send(
        Open(
            prompt=tuple(text),
            scheme="greedy",
            temperature=0.0,
            top_k=0,
            top_p=1.0,
            seed=0,
            max_new_tokens=NEW,
            stop_ids=stops,
        )
    )
    epoch = rounds = drafted = kept = 0
    finish = Finish.NOT_YET
    while finish is Finish.NOT_YET:
        # Propose: feed what the cache has not got, then K tokens one by one. The verifier
        # adds a token to what it accepts, so the last one of the answer needs no draft.
        drafts: list[int] = []
        fresh = text[model.length :]
        for _ in range(min(K, NEW - (len(text) - begin) - 1)):
            token = int(model.forward(fresh)[:vocab].argmax())
            drafts.append(token)
            fresh = [token]
            if token in stops:
                break

        # Verify: one frame up, one forward of the target, one frame down.
        link.send(Block(epoch, len(text) - begin, tuple(drafts)))
        answer = link.receive(30.0)
        while isinstance(answer, (Opened, Progress)):
            answer = link.receive(30.0)
        if not isinstance(answer, Commit):
            raise SystemExit(f"the verifier says {answer}")

        # Commit: the accepted drafts, and the target's own next token.
        new = drafts[: answer.accepted]
        if answer.token is not None:
            new.append(answer.token)
        text += new
        finish = answer.finish

        # Rewind: the draft's cache goes back to where the text and the drafts agree; a
        # rejection ends this branch, and the next one has the next number.
        if answer.accepted < len(drafts):
            epoch = (epoch + 1) % 256
        model.rewind(min(model.length, len(text) - len(new) + answer.accepted))
        rounds, drafted, kept = rounds + 1, drafted + len(drafts), kept + answer.accepted

    link.close()
    print(prompt + tokenizer.decode(text[begin:]))
    print(
        f"{len(text) - begin} tokens in {rounds} forwards of the target, "
        f"{kept} of {drafted} drafts accepted",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 3 else sys.exit(__doc__)
