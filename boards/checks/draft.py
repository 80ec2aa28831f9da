"""Does a draft run here? Asked of processes that open it, one for each engine.

This package knows no engine of ours: the command line says which command opens a draft.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Mapping, Sequence

from draftwire.boards.checks.findings import FAIL, OK, WARN, Finding, pip_install
from draftwire.boards.child import Child, run_python
from draftwire.boards.engines import trial_of
from draftwire.boards.providers import CPU, Trial, short_name

_OPEN_S = 180.0  # a large draft from an SD card
_MODEL_ERROR = 5
_REMOTE = "AzureExecutionProvider"
_LOOK = "draftwire boards detect"


@dataclass(frozen=True)
class DraftResult:
    """What came of opening the draft."""

    findings: tuple[Finding, ...]  # for people
    best: Mapping[str, Any] | None = None
    runs: tuple[Mapping[str, Any], ...] = ()  # one document for each engine
    trials: tuple[Trial, ...] = field(default_factory=tuple)


def check_draft(
    command: Sequence[str],
    providers: Sequence[str],
    *,
    environ: Mapping[str, str] | None = None,
    threads: int = 1,
) -> DraftResult:
    """Open a draft on the engine that a session would take, then on the others.
    ``command``: the words after ``python`` that describe it; with ``--engine NAME``
    they open it, with ``--provider NAME`` they run one token of it there."""

    def ask(*words: str) -> Child:
        return run_python([*command, *words], timeout_s=_OPEN_S, extra=environ)

    child = ask()
    about = child.document()
    if about is None or "error" in about:
        return DraftResult((_failed("draft", child, about),))
    opened = ["--engine", "auto", "--threads", str(threads)]
    child = ask(*opened)
    best = child.document()
    if not child.ok or best is None:
        return DraftResult((_failed("draft", child, best),))
    count = best.get("threads")
    text = (
        f"{about.get('name')} {best.get('precision')} runs on {best.get('engine')}, "
        f"{count} thread{'' if count == 1 else 's'}: {_ms(best.get('step_ms'))} a token, "
        f"loaded in {_ms(best.get('load_s'), 1000)}"
    )
    findings = [Finding("draft", OK, text)]
    warnings = [str(warning) for warning in best.get("warnings", ())]
    findings += [Finding("draft", WARN, text, _LOOK) for text in warnings]
    runs = [best]
    for engine in about.get("engines", ()):
        if str(best.get("engine", "")).startswith(str(engine)):
            continue
        child = ask("--engine", str(engine), "--threads", str(threads))
        other = child.document()
        if child.ok and other is not None:
            runs.append(other)
            ms = _ms(other.get("step_ms"))
            findings.append(Finding("draft", OK, f"{other.get('engine')}: {ms} a token"))
        else:
            failed = _failed(str(engine), child, other)
            findings.append(Finding(failed.name, WARN, failed.detail, failed.fix))
    trials = []
    if "onnxruntime" in about.get("engines", ()):
        for provider in providers:
            if provider in (CPU, _REMOTE):
                continue
            words = ("--engine", "onnxruntime", "--provider", provider)
            trial = trial_of(provider, ask(*words, "--threads", str(threads)))
            trials.append(trial)
            findings.append(provider_finding(trial))
    return DraftResult(tuple(findings), best, tuple(runs), tuple(trials))


def provider_finding(trial: Trial) -> Finding:
    """Return what a provider's trial means to a user."""
    name = short_name(trial.provider)
    if trial.ran:
        note = f"; {trial.note}" if trial.note else ""
        text = f"the draft runs there: {_ms(trial.step_ms)} a token{note}"
        mixed = trial.nodes.get(CPU, 0) > 0
        return Finding(name, WARN if mixed else OK, text, _LOOK if mixed else "")
    return Finding(name, WARN, f"listed, and of no use: {trial.why_not}", _mend(trial))


def _mend(trial: Trial) -> str:
    why = trial.why_not
    if "no kernel image" in why:
        return pip_install("onnxruntime", options="--force-reinstall")
    if ".so" in why:
        return (
            "echo 'export LD_LIBRARY_PATH=/usr/local/cuda/lib64:$LD_LIBRARY_PATH' "
            ">> ~/.profile && . ~/.profile"
        )
    return _LOOK


def _failed(name: str, child: Child, document: Mapping[str, Any] | None) -> Finding:
    error = (document or {}).get("error")
    if isinstance(error, dict):
        hint = str(error.get("hint") or "")
        message = str(error.get("message"))
        code = int(error.get("exit_code") or 0)
        fix = _command(message, hint)
        detail = message if fix or not hint else f"{message} ({hint})"
        wrong = _MODEL_ERROR if code == _MODEL_ERROR else 3
        return Finding(name, FAIL, detail, fix or "draftwire boards doctor", wrong)
    fix = "draftwire boards detect --no-run"
    if child.code in (-9, 137):
        fix = "sudo sh -c 'sync; echo 3 > /proc/sys/vm/drop_caches'"
    elif child.illegal:
        fix = pip_install("onnxruntime", options="--force-reinstall --no-cache-dir")
    return Finding(name, FAIL, f"opening it ends with: {child.how()}", fix)


def _command(message: str, hint: str) -> str:
    """Return the command that a hint of ours amounts to, or ""."""
    if "tokenizers" in message:
        return pip_install("tokenizers")
    if "onnxruntime" in message and "not installed" in message:
        return pip_install("onnxruntime")
    if "needs onnxruntime" in message:
        return pip_install("onnxruntime", options="--upgrade")
    return hint if hint.startswith(("draftwire ", "pip ", "python")) else ""


def _ms(value: Any, times: int = 1) -> str:
    if not isinstance(value, (int, float)):
        return "? ms"
    ms = value * times
    return f"{ms:.2f} ms" if ms < 100 else f"{ms / 1000:.1f} s"
