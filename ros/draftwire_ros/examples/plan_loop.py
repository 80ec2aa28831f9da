"""
A control loop that has its plans written, and never waits for one.

A leaf of a behaviour tree, and a loop that ticks it: the newest command wins, the plan of
the one before is cancelled, and words not verified by the target are acted on slowly.

    ros2 launch draftwire_ros draftwire.launch.py
    python plan_loop.py
"""

from __future__ import annotations

import rclpy
from draftwire_interfaces.action import GenerateResponse
from rclpy.action import ActionClient
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node

TICK_S = 0.02
DEADLINE_S = 0.8


class Leaf:
    """``tick`` gives "running", "success" or "failure"; ``halt`` ends it early."""

    def __init__(self, node: Node, command: str) -> None:
        self._client = ActionClient(node, GenerateResponse, "/draftwire/generate_response")
        self._command, self._handle = command, None
        self.status, self.text, self.verified = "idle", "", True

    def tick(self) -> str:
        """Begin, or look how far it is; returns at once."""
        if self.status == "idle":
            if not self._client.server_is_ready():
                return "running"  # nobody there yet; the loop decides how long
            self.status = "running"
            goal = GenerateResponse.Goal(
                prompt=f"Command: {self._command}\nPlan:",
                stop=["\n"],
                max_tokens=40,
                deadline=DEADLINE_S,
                offline="draft",
            )
            sent = self._client.send_goal_async(goal, feedback_callback=self._more)
            sent.add_done_callback(self._accepted)
        return self.status

    def halt(self) -> None:
        """Give the plan up."""
        if self.status == "running":
            self.status = "failure"
            if self._handle is not None:
                self._handle.cancel_goal_async()

    def _accepted(self, future) -> None:
        self._handle = future.result()
        if not self._handle.accepted:
            self.status = "failure"
            return
        if self.status != "running":  # halted meanwhile
            self._handle.cancel_goal_async()
        self._handle.get_result_async().add_done_callback(self._ended)

    def _more(self, message) -> None:
        part = message.feedback.partial_response
        self.text = (part.kept_text if part.revised else self.text) + part.text
        self.verified = part.unverified == 0

    def _ended(self, future) -> None:
        if self.status == "running":
            response = future.result().result.response
            self.text, self.verified = response.text, response.unverified == 0
            self.status = "failure" if response.error or not response.text else "success"


class PlanLoop(Node):
    """50 ticks a second; a command of a topic would come to :meth:`command`."""

    def __init__(self) -> None:
        super().__init__("plan_loop")
        self._leaf: Leaf | None = None
        self.create_timer(TICK_S, self._tick)
        self.command("walk left twice and jump")

    def command(self, words: str) -> None:
        """Have a plan written for ``words`` in place of the one before."""
        if self._leaf is not None:
            self._leaf.halt()
        self._leaf = Leaf(self, words)

    def _tick(self) -> None:
        if self._leaf is None:
            return
        status = self._leaf.tick()
        speed = "at full speed" if self._leaf.verified else "slowly"
        if self._leaf.text:
            self.get_logger().info(f"{speed}: {self._leaf.text.strip()}")
        if status != "running":
            self._leaf = None


def main() -> None:
    """Tick until shut down."""
    rclpy.init()
    try:
        rclpy.spin(PlanLoop())
    except (KeyboardInterrupt, ExternalShutdownException):
        pass


if __name__ == "__main__":
    main()
