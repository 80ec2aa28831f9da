"""A control loop at 50 Hz that has its plans written, and never waits for one.

A plan is a stream: it is written in the background, the loop looks at it once a tick, and
a new command cancels the plan of the old one at once. At the deadline there is an answer,
whatever the link does; without a link the draft goes on alone, and the robot moves slowly
on words that the target has not verified. It starts without a verifier, too.

    draftwire verifier serve --target models/v2.target --port 8765
    python examples/robot_deadline.py ws://127.0.0.1:8765
"""

import sys
import time
from typing import Optional

import draftwire

TICK_S = 0.02
DEADLINE_S = 0.8
COMMANDS = {  # at which tick which command comes; the third overtakes the second
    0: "walk left twice and jump",
    50: "look around right",
    52: "run thrice after turn left",
}
TICKS = 110


class Robot:
    """Acts on the best plan there is: verified, guessed, or none."""

    def __init__(self, session: draftwire.Session) -> None:
        self.session = session
        self.plan: Optional[draftwire.Stream] = None
        self.said = ""

    def command(self, words: str) -> None:
        """Have a plan written; the one before is of no more use."""
        if self.plan is not None:
            self.plan.cancel()
        self.plan = self.session.generate(
            f"Command: {words}\nPlan:",
            max_new_tokens=40,
            stop=["\n"],
            deadline_s=DEADLINE_S,
        )

    def tick(self) -> None:
        """Do one step of the control loop; nothing here waits."""
        plan = self.plan
        if plan is None or (plan.finish is None and not plan.tokens):
            self.act("stand", "no word yet")
        elif plan.finish == "error":
            self.act("stand", f"no plan: {plan.error}")
        else:
            guessed = sum(token.kind == "unverified" for token in plan.tokens)
            speed = "slowly" if guessed else "at full speed"
            more = "" if plan.finish else " ..."
            self.act(speed, plan.text.strip() + more)

    def act(self, how: str, what: str) -> None:
        """Move; here: say so when something is new."""
        said = f"{how}: {what}"
        if said != self.said:
            print(said, flush=True)
            self.said = said


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:8765"
    with draftwire.connect(
        url, draft="models/reference.draft", target="v2", offline="draft"
    ) as session:
        robot, worst_s = Robot(session), 0.0
        due = time.monotonic()
        for number in range(TICKS):
            began = time.monotonic()
            if number in COMMANDS:
                robot.command(COMMANDS[number])
            robot.tick()
            worst_s = max(worst_s, time.monotonic() - began)
            due += TICK_S
            time.sleep(max(0.0, due - time.monotonic()))
        link = session.link
        print(f"link {link.state}, longest tick {1e3 * worst_s:.1f} ms", file=sys.stderr)


if __name__ == "__main__":
    main()
