"""Would a draft run on this machine, and what mends it if not?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Mapping, Sequence

from draftwire.boards.checks.draft import DraftResult, check_draft
from draftwire.boards.checks.findings import FAIL, OK, SKIP, WARN, Finding, failures
from draftwire.boards.checks.machine import (
    check_gpu_rights,
    check_machine,
    check_memory,
    check_threads,
)
from draftwire.boards.checks.python import check_imports, check_python
from draftwire.boards.detect import Detection
from draftwire.boards.engines import find_engines, list_providers
from draftwire.boards.providers import CPU, Trial

SCHEMA = "draftwire.doctor/1"
_GPU = ("CUDAExecutionProvider", "TensorrtExecutionProvider")


@dataclass(frozen=True)
class Report:
    """All findings, in their order: machine, its Python, the draft, the command line's
    own."""

    machine: Detection  # what the machine is
    findings: tuple[Finding, ...]
    draft: DraftResult | None = None  # what came of the draft, or None when none was opened

    @property
    def would_run(self) -> bool | None:
        """Whether a draft would run; None when nothing could be run to tell."""
        unknown = None if self.draft is None else True
        return False if failures(self.findings) else unknown

    @property
    def exit_code(self) -> int:
        """0, or the code of the first failure: 3 machine, 4 verifier, 5 draft."""
        bad = failures(self.findings)
        return bad[0].exit_code if bad else 0

    def plus(self, findings: Sequence[Finding]) -> Report:
        """Return the report with more findings."""
        return Report(self.machine, (*self.findings, *findings), self.draft)

    def to_dict(self) -> dict[str, Any]:
        draft: Any = None
        if self.draft is not None:
            draft = {"runs": [dict(run) for run in self.draft.runs]}
            draft["providers"] = [trial.to_dict() for trial in self.draft.trials]
        return {
            "schema": SCHEMA,
            "would_run": self.would_run,
            "findings": [finding.to_dict() for finding in self.findings],
            "draft": draft,
            "machine": self.machine.to_dict(),
        }


def examine(
    found: Detection,
    command: Sequence[str] | None,
    *,
    threads: int = 1,
    secure: bool = False,
    python: str | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Report:
    """Look at a machine (detected without engines), import what a draft needs, and open it
    with ``command`` (None: no draft). ``progress`` is told what takes time, before it
    does."""
    if not found.tree.host:
        findings = check_machine(found)
        findings += [check_threads(found, threads), *check_memory(found)]
        text = f"nothing below {found.tree.root} was run: Python, engines, draft"
        return Report(found, (*findings, Finding("draft", SKIP, text)))
    findings = [*check_machine(found, secure=secure), check_python()]
    wanted = found.profile.raw.get("engines", {}).get("packages", ())
    progress("importing what a draft needs")
    imports, environ = check_imports(wanted, python=python)
    findings += imports
    draft = None
    listed: list[str] = []
    if _broken(imports, environ):
        findings.append(Finding("draft", SKIP, "not opened: what it needs is missing"))
    elif command is None:
        progress("running a model of two nodes")
        trials = find_engines((), environ=environ)[0].providers
        listed = [trial.provider for trial in trials if trial.listed]
        text = "no draft at hand; only a model of two nodes was run"
        fix = "draftwire boards doctor --draft DIR"
        findings += [*_tiny(trials), Finding("draft", WARN, text, fix)]
    else:
        progress("opening the draft")
        listed = list_providers(environ)
        draft = check_draft(command, listed, environ=environ, threads=threads)
        findings += draft.findings
    gpu = any(name in listed for name in _GPU)
    needs = None if draft is None or draft.best is None else draft.best.get("peak_bytes")
    if gpu and found.profile.jetson:
        findings.append(check_gpu_rights())
    findings += [check_threads(found, threads)]
    findings += check_memory(found, needs=needs, gpu=gpu)
    return Report(found, tuple(findings), draft)


def _broken(imports: Sequence[Finding], environ: Mapping[str, str]) -> bool:
    """Tell whether opening the draft can only repeat what an import has said."""
    bad = [f.name for f in failures(imports)]
    return any(name != "websockets" for name in bad if not (environ and name == "numpy"))


def _tiny(trials: Sequence[Trial]) -> list[Finding]:
    for trial in trials:
        if trial.provider == CPU:
            if trial.ran:
                return [Finding("engine", OK, f"{trial.engine} ran a model of two nodes")]
            return [Finding("engine", FAIL, trial.why_not, "draftwire boards detect")]
    return []
