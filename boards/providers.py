"""Execution providers of onnxruntime: which of them really run a model.

onnxruntime falls back to the CPU without an error: a provider can be listed and fail to
load, or load and take no node. Only a run tells, so a provider counts as working when
nodes of a model ran on it, as onnxruntime's own profile says.

Source:
    onnxruntime issues 7484, 17801, 21354, 23372 (silent fall-back), 31708 of openpilot
    (listed on a machine without the device).
"""

from __future__ import annotations

import base64
import os
import re
import time
import warnings
import zlib
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from draftwire.io import parse_json

CPU = "CPUExecutionProvider"
# Providers that compute in the memory of the CPU: arrays bound there need no copy.
_OTHERS = ("Xnnpack", "ACL", "ArmNN", "Dnnl")
CPU_MEMORY = (CPU, *(f"{name}ExecutionProvider" for name in _OTHERS))
# Hands work to a server on the network and never runs a node of a local model.
_REMOTE = ("AzureExecutionProvider",)
_SIDE = 64

Feeds = Callable[[Any], Mapping[str, Any]]


@dataclass(frozen=True)
class Trial:
    """What came of running one model on one provider."""

    provider: str  # its name in onnxruntime
    listed: bool  # whether this onnxruntime was built with it
    ran: bool  # whether nodes of the model ran on it
    nodes: Mapping[str, int] = field(default_factory=dict)
    step_ms: float | None = None  # median of a run in milliseconds, or None
    why_not: str = ""  # why it did not run, or ""
    engine: str = ""
    note: str = ""  # what else is worth knowing, or ""

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "nodes": dict(self.nodes)}


def short_name(provider: str) -> str:
    """Return ``"CUDA"`` for ``"CUDAExecutionProvider"``."""
    return provider.replace("ExecutionProvider", "")


def check_session(session: Any, asked: str) -> str:
    """Return why a session does not use the provider that was asked for, or "": the cheap
    half of the truth; one in the session may still run no node, which ``try_provider``
    finds out."""
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
    """Run a model (bytes or file) on one provider, the CPU behind it, and look where nodes
    ran; ``feeds`` makes the inputs for a session."""
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
    why, note = fell, ""
    if provider in _REMOTE:
        why = "it sends work to a server; it runs no node here"
    elif not fell and not ran:
        why = "it is in the session, but every node ran on the CPU"
    elif not fell and provider != CPU and nodes.get(CPU, 0):
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
    return nodes_of(Path(path))


def nodes_of(path: Path) -> dict[str, int]:
    """Count the nodes of a profile by provider; each node once."""
    try:
        events = parse_json(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):
        return {}
    seen = set()
    for event in events if isinstance(events, list) else []:
        args = event.get("args") if isinstance(event, dict) else None
        if event.get("cat") == "Node" and isinstance(args, dict) and args.get("provider"):
            seen.add((args["provider"], args.get("node_index"), event.get("name")))
    return dict(Counter(str(provider) for provider, _, _ in seen))


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
    kinds = (value for value in vars(state).values() if isinstance(value, type))
    return (*(k for k in kinds if issubclass(k, Exception)), RuntimeError, ValueError)


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
    found = (reason.search(text) for reason in _REASONS)
    return next((match.group(1).strip()[:200] for match in found if match), "")


def _first_line(exc: BaseException) -> str:
    lines = str(exc).strip().splitlines()
    return lines[0][:200] if lines else type(exc).__name__


# y = x W + x for x of (1, 64): ONNX IR 7, opset 12; a device has no onnx package.
_TINY = (
    "c-rmUv2DUo7==-OP?D!76cLBYB_$)E6b@x1FObfN2FY$BB5?N>U{aQd(`JD*r#Q`bcev?kcQ29GIj%"
    "V_RSb0uo5!|0x8Hq!$uUer6=NOaX7PSJRuAW|Q`c{AB~p``RqW&PQA*5a<qZG;0000000000000000"
    "Qg^@ufIP5&v}`mN_n1Q(j2BZ{*C+jYWV~Df7Cz"
)


def tiny_model() -> bytes:
    """Return an ONNX model of two nodes, to try a provider with."""
    return zlib.decompress(base64.b85decode(_TINY))


def tiny_feeds(session: Any) -> Mapping[str, Any]:
    """Return the input of ``tiny_model``."""
    import numpy as np

    return {"x": np.ones((1, _SIDE), np.float32)}
