"""Execution providers of onnxruntime: which of them really run a model.

onnxruntime falls back to the CPU without an error: a provider can be listed and fail to
load, or load and take no node. Only a run tells, so a provider counts as working when
nodes of a model ran on it, as onnxruntime's own profile says.

Source:
    onnxruntime issues 7484, 17801, 21354, 23372 (silent fall-back), 31708 of openpilot
    (listed on a machine without the device).
"""

from __future__ import annotations

import json
import os
import re
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

CPU = "CPUExecutionProvider"
# Providers that compute in the memory of the CPU: arrays bound there need no copy.
CPU_MEMORY = (
    CPU,
    "XnnpackExecutionProvider",
    "ACLExecutionProvider",
    "ArmNNExecutionProvider",
    "DnnlExecutionProvider",
)
# Hands work to a server on the network and never runs a node of a local model.
_REMOTE = ("AzureExecutionProvider",)
_SIDE = 64

Feeds = Callable[[Any], Mapping[str, Any]]


@dataclass(frozen=True)
class Trial:
    """What came of running one model on one provider.

    Attributes:
        nodes: How many nodes ran, by provider.
        engine: E.g. ``"onnxruntime 1.23.2"``.
    """

    provider: str  # its name in onnxruntime
    listed: bool  # whether this onnxruntime was built with it
    ran: bool  # whether nodes of the model ran on it
    nodes: Mapping[str, int] = field(default_factory=dict)
    step_ms: float | None = None  # median of a run in milliseconds, or None
    why_not: str = ""  # why it did not run, or ""
    engine: str = ""
    note: str = ""  # what else is worth knowing, or ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {**asdict(self), "nodes": dict(self.nodes)}


def short_name(provider: str) -> str:
    """Return ``"CUDA"`` for ``"CUDAExecutionProvider"``."""
    end = "ExecutionProvider"
    return provider[: -len(end)] if provider.endswith(end) else provider


def check_session(session: Any, asked: str) -> str:
    """Return why ``session`` does not use the provider that was asked for, or "".

    Args:
        session: An ``onnxruntime.InferenceSession``.
        asked: Name of the provider.

    It is the cheap half of the truth, for every start: a provider may be in the session
    and still run no node, which ``try_provider`` finds out.
    """
    used = list(session.get_providers())
    if asked in used:
        return ""
    names = ", ".join(short_name(name) for name in used)
    return f"onnxruntime fell back from {short_name(asked)} to {names} without an error"


def try_provider(
    model: bytes | Path,
    provider: str,
    feeds: Feeds,
    *,
    threads: int = 1,
    steps: int = 8,
) -> Trial:
    """Run a model on one provider, with the CPU behind it, and look where nodes ran.

    Args:
        model: The model's bytes, or its file.
        provider: Name of the provider.
        feeds: Makes the inputs for a session.
        threads: Threads inside one operator.
        steps: Runs to time.
    """
    try:
        import tempfile

        import onnxruntime
    except ImportError as exc:
        return Trial(provider, False, False, why_not=f"onnxruntime: {_first_line(exc)}")
    engine = f"onnxruntime {onnxruntime.__version__}"
    if provider not in onnxruntime.get_available_providers():
        why = f"{engine} was built without it"
        return Trial(provider, False, False, why_not=why, engine=engine)
    source = model if isinstance(model, bytes) else str(model)
    chosen = [provider] if provider == CPU else [provider, CPU]
    try:
        with tempfile.TemporaryDirectory(prefix="draftwire-trial-") as folder:
            nodes = _profiled(onnxruntime, source, chosen, feeds, folder, threads)
        step_ms, fell = _timed(onnxruntime, source, chosen, feeds, threads, steps)
    except engine_errors(onnxruntime) as exc:
        why = explain(str(exc)) or _first_line(exc)
        return Trial(provider, True, False, why_not=why, engine=engine)
    ran = nodes.get(provider, 0) > 0
    why, note = "", ""
    if provider in _REMOTE:
        why = "it sends work to a server; it runs no node here"
    elif fell:
        why = fell
    elif not ran:
        why = "it is in the session, but every node ran on the CPU"
    elif provider != CPU and nodes.get(CPU, 0):
        note = f"{nodes[CPU]} of {sum(nodes.values())} nodes ran on the CPU"
    return Trial(provider, True, ran, nodes, step_ms, why, engine, note)


def _session(ort: Any, source: Any, chosen: Sequence[str], options: Any) -> Any:
    with warnings.catch_warnings():  # what it warns of is what we find out
        warnings.simplefilter("ignore")
        return ort.InferenceSession(source, options, providers=list(chosen))


def _options(ort: Any, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 2  # a provider that fails to load says so on stderr
    return options


def _profiled(
    ort: Any, source: Any, chosen: Sequence[str], feeds: Feeds, folder: str, threads: int
) -> dict[str, int]:
    options = _options(ort, threads)
    options.enable_profiling = True
    options.profile_file_prefix = os.path.join(folder, "trial")
    session = _session(ort, source, chosen, options)
    try:
        session.run(None, dict(feeds(session)))
    finally:
        path = session.end_profiling()
    return _nodes(Path(path))


def _nodes(path: Path) -> dict[str, int]:
    """Count the nodes of a profile by provider; each node once."""
    try:
        events = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):
        return {}
    seen = set()
    for event in events if isinstance(events, list) else []:
        args = event.get("args") if isinstance(event, dict) else None
        if event.get("cat") == "Node" and isinstance(args, dict) and args.get("provider"):
            seen.add((args["provider"], args.get("node_index"), event.get("name")))
    counts: dict[str, int] = {}
    for provider, _, _ in seen:
        counts[str(provider)] = counts.get(str(provider), 0) + 1
    return counts


def _timed(
    ort: Any, source: Any, chosen: Sequence[str], feeds: Feeds, threads: int, steps: int
) -> tuple[float, str]:
    session = _session(ort, source, chosen, _options(ort, threads))
    values = dict(feeds(session))
    times = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        session.run(None, values)
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[steps // 2] * 1e3, check_session(session, chosen[0])


def engine_errors(ort: Any) -> tuple[type[Exception], ...]:
    """Return every error class of onnxruntime; they have no common base."""
    state = ort.capi.onnxruntime_pybind11_state
    found = [
        value
        for value in vars(state).values()
        if isinstance(value, type) and issubclass(value, Exception)
    ]
    return (*found, RuntimeError, ValueError)


_REASONS = (
    re.compile(r"(\S+\.so[.\d]*: cannot open shared object file)"),
    re.compile(r"(no kernel image is available[^\n]*)"),
    re.compile(r"(CUDA (?:failure|error) ?\d*:[^;\n]*)"),
    re.compile(r"(version `?[A-Z]+_[\d.]+'? not found)"),
    re.compile(r"(undefined symbol: \S+)"),
    re.compile(r"(Require cuDNN[^.\n]*\.[^.\n]*)"),
    re.compile(r"(Failed to (?:load|create) [^\n]*)"),
)


def explain(text: str) -> str:
    """Return the part of onnxruntime's messages that says what is missing, or ""."""
    for reason in _REASONS:
        match = reason.search(text)
        if match:
            return match.group(1).strip()[:200]
    return ""


def _first_line(exc: BaseException) -> str:
    lines = str(exc).strip().splitlines()
    return lines[0][:200] if lines else type(exc).__name__


def tiny_model() -> bytes:
    """Return an ONNX model of two nodes, y = x W + x, written here byte by byte.

    A device has no onnx package, and a wheel has no model.

    Source:
        onnx.proto: the field numbers of ModelProto, GraphProto, NodeProto,
        TensorProto and ValueInfoProto.
    """
    weight = b"\x00\x00\x80\x3c" * (_SIDE * _SIDE)  # float32 1/64, little-endian
    tensor = _int(1, _SIDE) + _int(1, _SIDE) + _int(2, 1) + _part(8, b"w")
    graph = (
        _part(1, _node("MatMul", b"x", b"w", b"m"))
        + _part(1, _node("Add", b"m", b"x", b"y"))
        + _part(2, b"trial")
        + _part(5, tensor + _part(9, weight))
        + _part(11, _value(b"x"))
        + _part(12, _value(b"y"))
    )
    return _int(1, 7) + _part(7, graph) + _part(8, _int(2, 12))


def tiny_feeds(session: Any) -> Mapping[str, Any]:
    """Return the input of ``tiny_model``."""
    import numpy as np

    return {"x": np.ones((1, _SIDE), np.float32)}


def _node(operator: str, first: bytes, second: bytes, out: bytes) -> bytes:
    names = _part(1, first) + _part(1, second) + _part(2, out)
    return names + _part(3, out) + _part(4, operator.encode())


def _value(name: bytes) -> bytes:
    shape = _part(1, _int(1, 1)) + _part(1, _int(1, _SIDE))
    return _part(1, name) + _part(2, _part(1, _int(1, 1) + _part(2, shape)))


def _int(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _part(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
