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
    # what a failure ends the command with: 3 this machine, 4 the verifier, 5 the draft
    exit_code: int = 3

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        found = asdict(self)
        del found["exit_code"]
        return found


def failures(findings: Iterable[Finding]) -> list[Finding]:
    """Return those that keep a draft from running."""
    return [finding for finding in findings if finding.status == FAIL]


def pip_install(*wanted: str, options: str = "") -> str:
    """Return the command that installs ``wanted`` for the Python that runs this.

    Where the system's Python must not be touched (PEP 668), it makes a virtual
    environment that still sees the vendor's own packages.
    """
    specs = " ".join(shlex.quote(spec) for spec in wanted)
    more = f"{options} " if options else ""
    if sys.prefix == sys.base_prefix and _managed():
        return (
            "python3 -m venv --system-site-packages ~/draftwire && "
            f"~/draftwire/bin/python -m pip install {more}{specs}"
        )
    python = shlex.quote(sys.executable or "python3")
    if importlib.util.find_spec("pip") is None:
        return f"{python} -m ensurepip && {python} -m pip install {more}{specs}"
    return f"{python} -m pip install {more}{specs}"


def _managed() -> bool:
    stdlib = sysconfig.get_path("stdlib")
    return bool(stdlib) and (Path(stdlib) / "EXTERNALLY-MANAGED").exists()
