"""
The lifecycle node: two actions, a diagnostics topic, one session.

Nothing here waits in the executor's thread: the session is opened, and each stream is
carried, by a thread of its own; an action's coroutine awaits a future meanwhile.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from draftwire_interfaces.action import GenerateChatCompletions, GenerateResponse
from draftwire_interfaces.msg import PartialResponse, Response, UsageStats
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.task import Future

import draftwire
from draftwire_ros import goals

__all__ = ["DraftwireNode", "main"]

PARAMETERS = {
    "verifier": "ws://127.0.0.1:8765",
    "draft": "",
    "target": "",
    "token_file": "",
    "tls_ca": "",
    "offline": "draft",
    "objective": "",
    "max_tokens": 128,
    "energy": "",
    "diagnostics_period": 1.0,
}
ACTIONS = {
    "generate_response": (GenerateResponse, False),
    "generate_chat_completions": (GenerateChatCompletions, True),
}


class DraftwireNode(LifecycleNode):
    """
    draftwire in a graph.

    Configuring opens the session in the background (with ``offline: draft`` there need be
    no verifier), activating begins to take goals, deactivating cancels what runs,
    cleaning up closes the session. A goal that comes while the session still opens waits
    for it.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("draftwire", **options)
        for name, value in PARAMETERS.items():
            self.declare_parameter(name, value)
        self._group = ReentrantCallbackGroup()
        self._active = False
        self._opening: Future | None = None
        self._session: draftwire.Session | None = None
        self._closing: threading.Thread | None = None
        self._lock = threading.Lock()
        self._running: dict[bytes, draftwire.Stream | None] = {}
        self._cancelled: set[bytes] = set()
        self._servers: list[ActionServer] = []
        self._last: dict[str, Any] = {}

    # ---- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to open the session, and offer the actions."""
        opening = self._opening = Future(executor=self.executor)
        self._in_thread(lambda: self._open(opening), opening)
        for name, (kind, chat) in ACTIONS.items():
            self._servers.append(
                ActionServer(
                    self,
                    kind,
                    f"~/{name}",
                    execute_callback=self._executor_of(kind, chat),
                    goal_callback=self._accept,
                    cancel_callback=self._cancel,
                    callback_group=self._group,
                )
            )
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        period = self.get_parameter("diagnostics_period").value
        self._timer = None
        if period > 0:
            self._timer = self.create_timer(
                period, self._diagnose, callback_group=self._group
            )
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Take goals from now on."""
        opening = self._opening
        if opening is not None and opening.done() and opening.exception():
            self.get_logger().error(_sentence(opening.exception()))
            return TransitionCallbackReturn.FAILURE
        self._active = True
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Take no more goals, and end those that run."""
        self._active = False
        self._cancel_all()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Close the session."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Close everything."""
        self._active = False
        self._cancel_all()
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def _release(self) -> None:
        for server in self._servers:
            server.destroy()
        self._servers.clear()
        if self._opening is not None:
            if self._timer is not None:
                self.destroy_timer(self._timer)
            self.destroy_publisher(self._diagnostics)
        with self._lock:  # what still opens closes itself
            self._opening = None
            session, self._session = self._session, None
        if session is not None:
            self._closing = self._in_thread(session.close, None)

    def wait_closed(self, seconds: float) -> None:
        """Wait until the verifier has been told goodbye; after the executor has ended."""
        if self._closing is not None:
            self._closing.join(seconds)

    def _open(self, opening: Future) -> draftwire.Session:
        value = {name: self.get_parameter(name).value for name in PARAMETERS}
        options = {
            name: value[name] for name in ("target", "tls_ca", "energy") if value[name]
        }
        if value["draft"]:
            options["draft"] = value["draft"]
        else:
            from draftwire.reference import draft_path

            options["draft"] = draft_path()
        if value["token_file"]:
            try:
                with open(value["token_file"], encoding="ascii") as file:
                    options["token"] = file.read().strip()
            except (OSError, ValueError) as exc:
                said = f"cannot read the token file {value['token_file']}: {exc}"
                raise draftwire.ConfigError(said) from exc
        session = draftwire.connect(value["verifier"], offline=value["offline"], **options)
        with self._lock:
            wanted = self._opening is opening
            if wanted:
                self._session = session
        if not wanted:
            session.close()
            raise draftwire.ConfigError("the node was cleaned up")
        return session

    # ---- actions

    def _accept(self, goal: Any) -> GoalResponse:
        if not self._active:
            self.get_logger().warning("a goal came while the node was not active")
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _cancel(self, handle: Any) -> CancelResponse:
        key = bytes(handle.goal_id.uuid)
        with self._lock:
            self._cancelled.add(key)
            stream = self._running.get(key)
        if stream is not None:
            stream.cancel()
        return CancelResponse.ACCEPT

    def _cancel_all(self) -> None:
        with self._lock:
            self._cancelled.update(self._running)
            streams = [s for s in self._running.values() if s is not None]
        for stream in streams:
            stream.cancel()

    def _executor_of(self, kind: Any, chat: bool) -> Any:
        async def execute(handle: Any) -> Any:
            key, accepted = bytes(handle.goal_id.uuid), time.monotonic()
            with self._lock:
                self._running[key] = None
            opening = self._opening
            result, stream, error = kind.Result(), None, "the node was cleaned up"
            try:
                if opening is not None:
                    session = await opening
                    over = Future(executor=self.executor)
                    self._in_thread(
                        lambda: self._carry(session, handle, chat, key, kind, accepted),
                        over,
                    )
                    stream, error = await over
            except Exception as exc:  # noqa: BLE001  of the opening, or a bug: it is said
                error = _sentence(exc)
            with self._lock:
                del self._running[key]
                self._cancelled.discard(key)
            report = stream.report if stream is not None else None
            if report:
                self._last = report
            result.response = goals.fill_response(Response(), stream, error)
            result.usage = goals.fill_usage(UsageStats(), report)
            if error:
                handle.abort()
            elif handle.is_cancel_requested:
                handle.canceled()
            elif result.response.finish == "cancelled":
                handle.abort()  # the node was deactivated
            else:
                handle.succeed()
            return result

        return execute

    def _carry(
        self,
        session: draftwire.Session,
        handle: Any,
        chat: bool,
        key: bytes,
        kind: Any,
        accepted: float,
    ) -> tuple[draftwire.Stream | None, str]:
        """Carry one stream to its end; in a thread of its own."""
        stream = None
        try:
            stream = goals.begin(
                session,
                handle.request,
                chat=chat,
                waited_s=time.monotonic() - accepted,
                defaults={
                    name: self.get_parameter(name).value
                    for name in ("max_tokens", "offline", "objective")
                },
            )
            with self._lock:
                self._running[key] = stream
                if key in self._cancelled:
                    stream.cancel()
            for chunk in stream:
                if key in self._cancelled:
                    break  # what waits in a busy graph is old news
                feedback = kind.Feedback()
                feedback.partial_response = goals.fill_partial(PartialResponse(), chunk)
                handle.publish_feedback(feedback)
        except draftwire.DraftwireError as exc:
            return stream, _sentence(exc)
        return stream, ""

    # ---- beside

    def _in_thread(self, work: Any, future: Future | None) -> threading.Thread:
        def run() -> None:
            try:
                found = work()
            except Exception as exc:  # noqa: BLE001  it is the future's now
                if future is not None:
                    future.set_exception(exc)
                else:
                    self.get_logger().error(_sentence(exc))
            else:
                if future is not None:
                    future.set_result(found)

        thread = threading.Thread(target=run, name="draftwire", daemon=True)
        thread.start()
        return thread

    def _diagnose(self) -> None:
        status = DiagnosticStatus(name="draftwire", hardware_id="draftwire")
        session, opening = self._session, self._opening
        values: dict[str, Any] = {}
        if session is None:
            failed = opening is not None and opening.done() and opening.exception()
            status.level = DiagnosticStatus.ERROR if failed else DiagnosticStatus.STALE
            status.message = _sentence(failed) if failed else "opening"
        else:
            link = session.link
            up = link.state in ("up", "asleep")
            status.level = DiagnosticStatus.OK if up else DiagnosticStatus.WARN
            status.message = f"link {link.state}" + (
                f": {link.error}" if link.error else ""
            )
            values.update(link=link.state, reconnects=link.reconnects)
            values.update(link_down_s=round(link.down_s, 1), streams=len(self._running))
        last = self._last
        if last:
            drafted = last.get("drafted") or 0
            share = last.get("accepted", 0) / drafted if drafted else None
            values.update(
                target=(last.get("target") or {}).get("name"),
                acceptance=None if share is None else round(share, 3),
                tokens_of_last=last.get("tokens"),
                joules_of_last=(last.get("energy") or {}).get("joules"),
            )
        status.values = [
            KeyValue(key=name, value="" if value is None else str(value))
            for name, value in values.items()
        ]
        message = DiagnosticArray(status=[status])
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)


def _sentence(exc: BaseException) -> str:
    hint = getattr(exc, "hint", "")
    return f"{exc} ({hint})" if hint else str(exc) or type(exc).__name__


def main(args: list[str] | None = None) -> None:
    """Run the node until it is shut down."""
    rclpy.init(args=args)
    node = DraftwireNode()
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.on_shutdown(None)
        node.wait_closed(5.0)
        node.destroy_node()
        rclpy.try_shutdown()
