"""A control loop that asks for a plan and never waits longer than it may.

While the link is lost the draft goes on alone; such tokens are marked unverified, and the
robot treats them as a suggestion. Whatever happens, the answer is there at the deadline.

    draftwire verifier serve --target models/v2.target --port 8765
    python examples/robot_deadline.py ws://127.0.0.1:8765
"""

import sys
import time

import draftwire

PERIOD_S = 0.8
COMMANDS = ("walk left twice and jump", "look around right", "run thrice after turn left")


def plan(session: draftwire.Session, command: str) -> tuple:
    """Return the plan's text, and whether the target has verified all of it."""
    text, verified = "", True
    for chunk in session.generate(
        f"Command: {command}\nPlan:",
        max_new_tokens=40,
        stop=["\n"],
        deadline_s=PERIOD_S,
        offline="draft",
    ):
        if chunk.revision is not None:  # guesses were wrong: start over from here
            text = chunk.kept_text
        text += chunk.text
        verified = chunk.unverified == 0
    return text.strip(), verified


url = sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:8765"
with draftwire.connect(url, draft="models/reference.draft", target="v2") as session:
    for command in COMMANDS:
        began = time.monotonic()
        text, verified = plan(session, command)
        print(
            f"{command!r} -> {text!r} "
            f"({'verified' if verified else 'the draft alone'}, link "
            f"{session.link.state}, {time.monotonic() - began:.2f} s)"
        )
