"""Does this Python import what a draft needs? Each import is a process of its own."""

from __future__ import annotations

import os
import sys
from typing import Mapping, Sequence

from draftwire.boards.checks.findings import FAIL, OK, WARN, Finding, pip_install
from draftwire.boards.child import Child, run_python
from draftwire.boards.engines import ONNXRUNTIME, TFLITE, packages

# OpenBLAS asks the processor for its kind; 0.3.13 in numpy 1.19.5 answers wrongly on
# Cortex-A57 and Carmel. Source: numpy issues 18131, 18175, 18468.
CORETYPE = "OPENBLAS_CORETYPE"
_ARMV8 = {CORETYPE: "ARMV8"}

_NUMPY = (
    "import numpy; a = numpy.ones((64, 64), numpy.float32); "
    "assert (a @ a)[0, 0] == 64; print(numpy.__version__)"
)
_ENGINES = (
    ("onnxruntime", "import onnxruntime; print(onnxruntime.__version__)"),
    *((package, f"import {module}") for package, module in TFLITE),
)
_OLDEST = (3, 8)


def check_python() -> Finding:
    """Tell whether this Python is new enough."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _OLDEST:
        fix = "sudo apt-get install python3.8 python3.8-venv"
        return Finding("python", FAIL, f"{version} is older than 3.8", fix)
    return Finding("python", OK, f"{version}, {sys.executable}")


def check_imports(
    wanted: Sequence[str], *, python: str | None = None
) -> tuple[list[Finding], Mapping[str, str]]:
    """Import what a draft needs, in processes of their own; return findings, and variables
    that mend what failed."""
    environ: Mapping[str, str] = {}
    findings = []
    child = run_python(["-c", _NUMPY], python=python)
    if child.illegal and CORETYPE not in os.environ:
        again = run_python(["-c", _NUMPY], python=python, extra=_ARMV8)
        if again.ok:
            environ = _ARMV8
            detail = (
                "its OpenBLAS uses an instruction that this processor does not have; "
                f"with {CORETYPE}=ARMV8 it works"
            )
            fix = f"echo 'export {CORETYPE}=ARMV8' >> ~/.profile && . ~/.profile"
            findings.append(Finding("numpy", FAIL, detail, fix))
    if not findings:
        findings.append(_imported("numpy", child, "numpy"))
    findings += _engines(environ, wanted, python)
    for name in ("websockets", "tokenizers"):
        code = f"import {name}; print({name}.__version__)"
        child = run_python(["-c", code], python=python, extra=environ)
        findings.append(_imported(name, child, name))
    return findings, environ


def _engines(
    environ: Mapping[str, str], wanted: Sequence[str], python: str | None
) -> list[Finding]:
    found: list[Finding] = []
    brought = packages(ONNXRUNTIME)
    for package, code in _ENGINES:
        child = run_python(["-c", code], python=python, extra=environ)
        if child.ok:
            version = child.out.strip() or "".join(packages((package,)))[len(package) :]
            found.append(Finding(package, OK, version.strip() or "imports"))
        elif not _absent(child):
            found.append(_imported(package, child, package))
    if not any(finding.status == OK for finding in found):
        first = wanted[0] if wanted else "onnxruntime"
        fix = pip_install(first)
        if found:  # there and broken: told with its own fix
            return found
        return [Finding("engine", FAIL, "no engine for drafts is installed", fix)]
    # One engine that works is enough.
    found = [f if f.status == OK else Finding(f.name, WARN, f.detail, f.fix) for f in found]
    if len(brought) > 1:
        others = " ".join(name.split()[0] for name in brought[:-1])
        both = f" -m pip uninstall -y {others} && {sys.executable} -m pip install"
        fix = pip_install(brought[-1].split()[0], options="--force-reinstall --no-deps")
        fix = fix.replace(" -m pip install", both, 1)
        names = " and ".join(brought)
        found.append(Finding("onnxruntime", WARN, f"{names} overwrite each other", fix))
    return found


def _absent(child: Child) -> bool:
    return "ModuleNotFoundError" in child.err or "No module named" in child.err


def _imported(name: str, child: Child, package: str) -> Finding:
    if child.ok:
        return Finding(name, OK, child.out.strip())
    if _absent(child) and f"'{name.replace('-', '_')}" in child.err:
        return Finding(name, FAIL, "is not installed", pip_install(package))
    anew, text = "--force-reinstall --no-cache-dir", child.err
    if child.illegal:
        detail = "the import ends with an illegal instruction (SIGILL): it was built for "
        detail += "another processor"
        return Finding(name, FAIL, detail, pip_install(package, options=anew))
    if "compiled using NumPy 1" in text or "_ARRAY_API not found" in text:
        detail = "it was built for numpy 1, and numpy 2 is installed"
        return Finding(name, FAIL, detail, pip_install("numpy<2"))
    if "GLIBC" in text and "not found" in text:
        detail = f"it wants a newer system: {child.how()}"
        return Finding(name, FAIL, detail, pip_install(package, options="--upgrade"))
    detail = f"the import fails: {child.how()}"
    return Finding(name, FAIL, detail, pip_install(package, options=anew))
