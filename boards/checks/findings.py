"""What an examination says: findings, and the verdict that they come to."""

from __future__ import annotations

import importlib.util
import shlex
import sys
import sysconfig
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Iterable

OK, WARN, FAIL, SKIP = "ok", "warn", "fail", "skip"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str  # what, in a word or two
    status: str  # ``ok``, ``warn`` (a draft runs all the same), ``fail`` or ``skip``
    detail: str  # what was found, one sentence
    fix: str = ""  # one command that mends it, or ""
    exit_code: int = 3  # of a failure: 3 this machine, 4 the verifier, 5 the draft

    def to_dict(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k != "exit_code"}


def failures(findings: Iterable[Finding]) -> list[Finding]:
    """Return those that keep a draft from running."""
    return [finding for finding in findings if finding.status == FAIL]


def pip_install(*wanted: str, options: str = "") -> str:
    """Return the command that installs ``wanted`` for the Python that runs this, where it
    must not be touched (PEP 668) in a virtual environment that sees its packages."""
    specs = " ".join(shlex.quote(spec) for spec in wanted)
    more = f"{options} " if options else ""
    stdlib = Path(sysconfig.get_path("stdlib") or "/nowhere")
    if sys.prefix == sys.base_prefix and (stdlib / "EXTERNALLY-MANAGED").exists():
        return (
            "python3 -m venv --system-site-packages ~/draftwire && "
            f"~/draftwire/bin/python -m pip install {more}{specs}"
        )
    python = shlex.quote(sys.executable or "python3")
    first = "" if importlib.util.find_spec("pip") else f"{python} -m ensurepip && "
    return f"{first}{python} -m pip install {more}{specs}"
