"""The first program: stream a text, print what it cost.

Start a verifier beside it first::

    draftwire verifier serve --target models/v1.target --port 8765
    python examples/first.py ws://127.0.0.1:8765
"""

import sys

import draftwire

url = sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:8765"
with draftwire.connect(url, draft="models/reference.draft") as session:
    stream = session.generate(
        "Once upon a time", max_new_tokens=128, temperature=0.8, top_p=0.95, seed=7
    )
    for chunk in stream:
        print(chunk.text, end="", flush=True)

report = stream.report
print()
print(
    f"{report['tokens']} tokens, {report['target_forwards']} forwards of the target, "
    f"{report['bytes']['up_payload']} bytes up",
    file=sys.stderr,
)
