"""A small stand-in for what the ROS 2 node uses of rclpy, and for its interfaces.

Messages are made of the very ``.msg`` and ``.action`` files, as strict as rosidl's: a name
that is not there, or a value of another type, raises. The executor is a single thread, as
``rclpy.spin`` has it: callbacks and coroutines run one at a time, a future wakes what
awaits it, and how long each callback held the thread is kept (``held_s``).

Names and behaviour follow rclpy's documentation (Humble to Kilted); what this cannot show
is written down in ros/README.md.
"""

from __future__ import annotations

import concurrent.futures
import queue
import sys
import threading
import time
import types
import uuid
from pathlib import Path

ROS = Path(__file__).resolve().parents[2] / "ros"
ZERO = {f"{sign}int{bits}": 0 for sign in ("", "u") for bits in (8, 16, 32, 64)}
ZERO.update(float32=0.0, float64=0.0, string="", bool=False)


# ---- messages


def message_class(name, text, known):
    """Return a class for one message, whose fields are ``text`` of an interface file."""
    lines = (line.split("#")[0].split(None, 2) for line in text.splitlines())
    fields = {words[1]: (words[0], *words[2:]) for words in lines if words}

    class Message:
        __slots__ = ["_" + field for field in fields]

        def __init__(self, **values):
            for field, kind in fields.items():
                setattr(self, field, values.pop(field, first(known, *kind)))
            assert not values, f"{name} has no {sorted(values)}"

        def __eq__(self, other):
            return all(getattr(self, f) == getattr(other, f) for f in fields)

        @classmethod
        def get_fields_and_field_types(cls):
            return {field: kind for field, (kind, *_) in fields.items()}

    for field, (kind, *_) in fields.items():
        setattr(Message, field, checked(name, kind, field, known))
    Message.__name__ = Message.__qualname__ = name
    return Message


def first(known, kind, default=None):
    """Return what a field holds before it is set."""
    if kind.endswith("[]"):
        return []
    if default is None:
        return ZERO[kind] if kind in ZERO else known[kind]()
    if kind in ("string", "bool"):
        return default.strip().strip('"') if kind == "string" else default == "true"
    return type(ZERO[kind])(float(default))


def checked(name, kind, field, known):
    """Return a property that takes values of its kind alone."""
    one = kind.rstrip("[]")
    wanted = type(ZERO[one]) if one in ZERO else known[one]

    def put(self, value):
        many = kind.endswith("[]")
        assert not many or isinstance(value, list), f"{name}.{field} is a {kind}"
        for each in value if many else [value]:
            # Not isinstance: a bool is no integer, and an integer is no float.
            assert type(each) is wanted, f"{name}.{field} is a {kind}, not {each!r}"
        setattr(self, "_" + field, value)

    return property(lambda self: getattr(self, "_" + field), put)


def interfaces():
    """Return draftwire_interfaces' messages and actions by name."""
    folder, known, actions = ROS / "draftwire_interfaces", {}, {}
    for path in sorted((folder / "msg").glob("*.msg")):
        known[path.stem] = message_class(path.stem, path.read_text(), known)
    for path in sorted((folder / "action").glob("*.action")):
        parts = path.read_text().split("\n---\n")
        named = zip(("Goal", "Result", "Feedback"), parts)
        made = {part: message_class(path.stem + part, text, known) for part, text in named}
        actions[path.stem] = type(path.stem, (), made)
    return known, actions


# ---- the executor and its futures


class Future(concurrent.futures.Future):
    """rclpy.task.Future: may be awaited, and ended from any thread."""

    def __init__(self, *, executor=None):
        super().__init__()
        self.executor = executor

    def __await__(self):
        while not self.done():
            yield self
        return self.result()


class Executor:
    """One thread that runs what is ready."""

    def __init__(self):
        self._ready, self.held_s, self._open = queue.Queue(), 0.0, True
        self.timers = []
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def call(self, function, *args):
        """Run a callback or coroutine in the thread; return its Future."""
        future = Future(executor=self)

        def begin():
            try:
                found = function(*args)
                if hasattr(found, "send"):
                    self._step(found, future)
                else:
                    future.set_result(found)
            except BaseException as exc:  # noqa: BLE001  the future has it
                future.set_exception(exc)

        self._ready.put(begin)
        return future

    def _step(self, coroutine, future):
        try:
            awaited = coroutine.send(None)
        except StopIteration as exc:
            future.set_result(exc.value)
        except BaseException as exc:  # noqa: BLE001  the future has it
            future.set_exception(exc)
        else:
            again = lambda _: self._ready.put(lambda: self._step(coroutine, future))  # noqa: E731
            awaited.add_done_callback(again)

    def _spin(self):
        while self._open:
            try:
                work = self._ready.get(timeout=0.05)
            except queue.Empty:
                for timer in self.timers:
                    timer()
                continue
            began = time.thread_time()
            work()
            self.held_s = max(self.held_s, time.thread_time() - began)

    def close(self):
        self._open = False
        self._thread.join(5)


def wait(future, seconds=60.0):
    """Return a future's result, for tests outside of the executor."""
    return future.result(seconds)


# ---- nodes, actions


class LifecycleNode:
    executor: Executor

    def __init__(self, name, parameter_overrides=None):
        self.name, self._values, self.logged = name, {}, []
        self._given = parameter_overrides or {}
        self.published, self.servers = [], {}

    def declare_parameter(self, name, value):
        self._values[name] = self._given.get(name, value)
        assert type(self._values[name]) is type(value), name

    def get_parameter(self, name):
        return types.SimpleNamespace(value=self._values[name])

    def get_logger(self):
        note = self.logged.append
        return types.SimpleNamespace(info=note, warning=note, error=note)

    def get_clock(self):
        stamp = types.SimpleNamespace(to_msg=lambda: "now")
        return types.SimpleNamespace(now=lambda: stamp)

    def create_publisher(self, kind, topic, depth):
        return types.SimpleNamespace(publish=lambda m: self.published.append((topic, m)))

    def create_timer(self, period, callback, callback_group=None):
        self.executor.timers.append(callback)
        return callback

    def destroy_timer(self, timer):
        self.executor.timers.remove(timer)

    def destroy_publisher(self, publisher):
        pass

    def on_activate(self, state):
        return "success"

    def on_deactivate(self, state):
        return "success"


class Handle:
    def __init__(self, goal):
        self.request, self.state, self.feedback = goal, "executing", []
        self.goal_id = types.SimpleNamespace(uuid=list(uuid.uuid4().bytes))
        self.is_cancel_requested = False

    def publish_feedback(self, message):
        assert self.state == "executing"
        self.feedback.append(message)

    def succeed(self):
        self.state = "succeeded"

    def abort(self):
        self.state = "aborted"

    def canceled(self):
        assert self.is_cancel_requested
        self.state = "canceled"


class ActionServer:
    def __init__(self, node, kind, name, **callbacks):
        self.node, self.kind, self.on = node, kind, callbacks
        node.servers[name] = self

    def send(self, **goal):
        """As a client does: return the handle and a future of the result, or None."""
        request = self.kind.Goal(**goal)
        executor = self.node.executor
        if wait(executor.call(self.on["goal_callback"], request)) != "accept":
            return None
        handle = Handle(request)
        return handle, executor.call(self.on["execute_callback"], handle)

    def cancel(self, handle):
        def ask():
            if self.on["cancel_callback"](handle) == "accept":
                handle.is_cancel_requested = True

        wait(self.node.executor.call(ask))

    def destroy(self):
        self.node.servers = {n: s for n, s in self.node.servers.items() if s is not self}


def install(monkeypatch):
    """Put the stand-ins where imports find them; return the interfaces."""
    known, actions = interfaces()
    strings = {
        "KeyValue": "string key\nstring value",
        "DiagnosticStatus": "uint8 level\nstring name\nstring message\nstring hardware_id\n"
        "KeyValue[] values",
    }
    other: dict = {}
    for name, text in strings.items():
        other[name] = message_class(name, text, other)
    for number, level in enumerate(("OK", "WARN", "ERROR", "STALE")):
        setattr(other["DiagnosticStatus"], level, number)

    class DiagnosticArray:
        def __init__(self, status):
            self.header, self.status = types.SimpleNamespace(stamp=None), status

    def enum(*names):
        return type("Enum", (), {name: name.lower() for name in names})

    modules = {
        "rclpy": {},
        "rclpy.action": {
            "ActionServer": ActionServer,
            "CancelResponse": enum("ACCEPT", "REJECT"),
            "GoalResponse": enum("ACCEPT", "REJECT"),
        },
        "rclpy.callback_groups": {"ReentrantCallbackGroup": object},
        "rclpy.executors": {"ExternalShutdownException": type("Shut", (Exception,), {})},
        "rclpy.lifecycle": {
            "LifecycleNode": LifecycleNode,
            "LifecycleState": object,
            "TransitionCallbackReturn": enum("SUCCESS", "FAILURE"),
        },
        "rclpy.task": {"Future": Future},
        "diagnostic_msgs": {},
        "diagnostic_msgs.msg": {**other, "DiagnosticArray": DiagnosticArray},
        "draftwire_interfaces": {},
        "draftwire_interfaces.msg": known,
        "draftwire_interfaces.action": actions,
    }
    for name, members in modules.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(str(ROS / "draftwire_ros"))
    for name in [n for n in sys.modules if n.split(".")[0] == "draftwire_ros"]:
        monkeypatch.delitem(sys.modules, name)
    return known, actions
