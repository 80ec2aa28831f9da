"""A legged robot that walks by JSON: a plan loop with a schema, a deadline and a fallback.

Each step asks for one command for the legs (as a Go2's sport mode or a LeRobot policy
takes them), with what the robot sees in the prompt. The schema makes it valid whatever
the model says, the deadline makes it whole in time, and a step without one is to stand.
What the target has not verified is walked slowly.

    draftwire verifier serve --target models/v2.target --port 8765
    python examples/robot_plan.py ws://127.0.0.1:8765
"""

import json
import sys
import time
from typing import Any, Dict

import draftwire
from draftwire.errors import DraftwireError

DEADLINE_S = 0.8
SEEN = ("the way is free", "a chair to the left", "a person ahead", "the door is open")
STAND: Dict[str, Any] = {"gait": "stand", "forward": 0, "turn": 0}
SCHEMA = {
    "type": "object",
    "properties": {
        "gait": {"enum": ["stand", "walk", "trot"]},
        "forward": {"enum": [0, 1, 2]},  # decimetres a second
        "turn": {"enum": [-1, 0, 1]},  # tenths of a radian a second
    },
    "required": ["gait", "forward", "turn"],
    "additionalProperties": False,
}


def plan(session: draftwire.Session, seen: str) -> Dict[str, Any]:
    """Return the command for a step, in at most the deadline and a little."""
    prompt = f"Robot sees: {seen}\nCommand:"
    try:
        stream = session.generate(
            prompt, max_new_tokens=64, schema=SCHEMA, deadline_s=DEADLINE_S
        )
        for _ in stream:
            pass
        command: Dict[str, Any] = json.loads(stream.text)
    except (DraftwireError, ValueError) as exc:
        print(f"no plan: {exc}", file=sys.stderr)
        return STAND
    if any(token.kind in ("unverified", "completed") for token in stream.tokens):
        command["forward"] = min(command["forward"], 1)
    return command


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:8765"
    with draftwire.connect(url, draft="models/reference.draft", offline="draft") as session:
        for seen in SEEN:
            began = time.monotonic()
            command = plan(session, seen)
            took_s = time.monotonic() - began
            print(f"{seen}: {json.dumps(command)}", flush=True)
            print(f"{took_s:.3f} s, link {session.link.state}", file=sys.stderr)


if __name__ == "__main__":
    main()
