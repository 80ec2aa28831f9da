"""Engines of this Python: which are installed, and which providers really run a model."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any, Mapping, Sequence

from draftwire.boards.child import Child, run_python
from draftwire.boards.providers import CPU, Trial, explain

ONNXRUNTIME = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-qnn", "onnxruntime-openvino")
TFLITE = (
    ("ai-edge-litert", "ai_edge_litert.interpreter"),
    ("tflite-runtime", "tflite_runtime.interpreter"),
)
_TRIAL_S = 120.0  # TensorRT builds its plan at the first run

_WHY_UNLISTED = {
    "CUDAExecutionProvider": "PyPI's wheels for aarch64 have none that fits a Jetson up to "
    "Thor; NVIDIA's wheels have",
    "TensorrtExecutionProvider": "it comes with NVIDIA's wheels",
    "XnnpackExecutionProvider": "PyPI's wheels for Linux have none; it takes an own build",
    "ACLExecutionProvider": "PyPI's wheels for Linux have none; it takes an own build",
}


@dataclass(frozen=True)
class Installed:
    """One engine; more than one of onnxruntime's packages overwrite each other's files."""

    name: str
    packages: tuple[str, ...]
    usable: bool  # whether it could be imported
    why_not: str = ""  # why not, or ""
    version: str = ""  # what it says of itself, or ""
    providers: tuple[Trial, ...] = ()  # for onnxruntime, what came of each provider

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "version": self.version or None,
            "packages": list(self.packages),
            "usable": self.usable,
            "why_not": self.why_not,
            "providers": [trial.to_dict() for trial in self.providers],
        }


def packages(names: Sequence[str]) -> tuple[str, ...]:
    """Return the installed ones of ``names`` as ``"name version"``."""
    from importlib import metadata

    found = []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return tuple(found)


def find_engines(
    prefer: Sequence[str] = (CPU,), *, environ: Mapping[str, str] | None = None
) -> list[Installed]:
    """Return the engines of this Python, each imported in a process of its own."""
    return [_onnxruntime(prefer, environ), *_tflite(environ)]


def _onnxruntime(prefer: Sequence[str], environ: Mapping[str, str] | None) -> Installed:
    brought = packages(ONNXRUNTIME)
    child = run_python(["-m", "draftwire.boards.trial"], extra=environ)
    found = child.document() if child.ok else None
    if found is None:
        why = child.how() if brought else "not installed"
        return Installed("onnxruntime", brought, False, why)
    names = [str(name) for name in found.get("providers", [])]
    trials = tuple(try_providers([*names, *prefer], environ=environ))
    version = str(found.get("version", ""))
    return Installed("onnxruntime", brought, True, "", version, trials)


def list_providers(environ: Mapping[str, str] | None = None) -> list[str]:
    """Return what onnxruntime says it was built with; empty without onnxruntime."""
    found = run_python(["-m", "draftwire.boards.trial"], extra=environ).document() or {}
    return [str(name) for name in found.get("providers", ())]


def try_providers(
    names: Sequence[str], *, environ: Mapping[str, str] | None = None
) -> list[Trial]:
    """Run a model of two nodes on each provider, each in a process of its own."""
    found = []
    for name in dict.fromkeys(names):
        words = ["-m", "draftwire.boards.trial", name]
        child = run_python(words, timeout_s=_TRIAL_S, extra=environ)
        found.append(trial_of(name, child))
    return found


def trial_of(provider: str, child: Child) -> Trial:
    """Return what a process that tried ``provider`` found, or how it ended."""
    document = child.document() if child.ok else None
    try:
        trial = Trial(**(document or {}))
    except TypeError:
        return Trial(provider, True, False, why_not=explain(child.err) or child.how())
    if not trial.listed and provider in _WHY_UNLISTED:
        why = f"{trial.why_not}: {_WHY_UNLISTED[provider]}"
        return replace(trial, why_not=why)
    if trial.listed and not trial.ran:
        said = explain(child.err)  # onnxruntime tells the reason to stderr alone
        if said and said not in trial.why_not:
            return replace(trial, why_not=f"{trial.why_not}: {said}")
    return trial


def _tflite(environ: Mapping[str, str] | None) -> list[Installed]:
    found = []
    for name, module in TFLITE:
        brought = packages((name,))
        if not brought:
            continue
        child = run_python(["-c", f"import {module}"], extra=environ)
        why = "" if child.ok else child.how()
        version = brought[0].split()[-1]
        found.append(Installed(name, brought, child.ok, why, version if child.ok else ""))
    return found


def python_version() -> str:
    """Return e.g. ``"3.10.12"``."""
    return ".".join(str(part) for part in sys.version_info[:3])
