"""What runs on the board during an installation: byte code, a first try, systemd."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

from draftwire.boards.install.disk import Disk
from draftwire.boards.install.trouble import BOARD, InstallError

UNIT_NAME = "draftwire.service"
_TRY_S = 120  # a slow board imports numpy and an engine for the first time
_NEVER_IMPORTED = r"/(tests|transformers|quantization|tools)/"
_TRY = """\
import importlib, sys
for name in sys.argv[1].split(","):
    importlib.import_module(name)
from draftwire.packages import load_draft
load_draft(sys.argv[2])
"""


class Service:
    """Starts, stops and tries what is installed."""

    def __init__(self, disk: Disk, *, start: bool, compile_bytecode: bool) -> None:
        self._disk = disk
        self._compile = compile_bytecode
        booted = os.path.isdir("/run/systemd/system")
        self._systemd = start and booted and not disk.foreign and not disk.dry

    def compiler(self, python: str, version: str) -> list[str] | None:
        """Return the command that makes byte code for the board, or None; for an unpacked
        root a Python of the same version serves: byte code knows no processors."""
        if not self._compile:
            return None
        if not self._disk.foreign:
            return [python, "-m", "compileall", "-q"]
        here = shutil.which(f"python{version}")
        # That of 3.8 cannot cut the root off; a shim of pyenv may be there and not run.
        if here is None or version == "3.8" or self._call(here, "-c", "pass"):
            return None
        return [here, "-m", "compileall", "-q", "-s", str(self._disk.root), "-p", "/"]

    def compile(self, command: list[str] | None, folder: str) -> None:
        """Make byte code for the modules in ``folder``; those that fail stay source."""
        if command is None or self._disk.dry:
            return
        # Checked by nobody: the folder is never edited, and the clock may stand in 1970.
        words = [*command, "--invalidation-mode", "unchecked-hash", "-x", _NEVER_IMPORTED]
        subprocess.call(
            [*words, str(self._disk.real(folder))],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def try_out(self, folder: str, python: str, manifest: dict[str, Any]) -> None:
        """Import what the bundle brought and load its draft, before anyone relies on it."""
        if self._disk.foreign:
            return
        real = str(self._disk.real(folder))
        modules = ["draftwire.cli", *manifest["modules"], *manifest["system_modules"]]
        draft = f"{real}/draft/{manifest['draft']}"
        environment = {
            **os.environ,
            "PYTHONPATH": real + "/site",
            "PYTHONNOUSERSITE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        try:
            done = subprocess.run(
                [python, "-s", "-c", _TRY, ",".join(modules), draft],
                env=environment,
                cwd=real,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_TRY_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise InstallError(f"the new version cannot be tried: {exc}", BOARD) from exc
        if done.returncode:
            lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
            said = lines[-1] if lines else f"ended with {done.returncode}"
            hint = "see `draftwire boards doctor`; what ran before still does"
            raise InstallError(f"the new version does not run here: {said}", BOARD, hint)

    def reload(self) -> None:
        """Let systemd and udev read the files again."""
        if self._systemd:
            self._call("systemctl", "daemon-reload")
            self._call("udevadm", "control", "--reload")
            for subsystem in ("hwmon", "iio"):
                self._call("udevadm", "trigger", "--subsystem-match=" + subsystem)

    def restart(self) -> str:
        """Restart the service, its files read again; return why that failed, or ""."""
        self.reload()
        if not self._systemd:
            return ""
        self._call("systemctl", "reset-failed", UNIT_NAME)
        return self._call("systemctl", "restart", UNIT_NAME)

    def stop(self) -> None:
        """Stop the service."""
        if self._systemd:
            self._call("systemctl", "stop", UNIT_NAME)

    @staticmethod
    def _call(*words: str) -> str:
        try:
            done = subprocess.run(
                list(words),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=180,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            return str(exc)
        said = done.stdout.decode("utf-8", "replace").strip().splitlines()
        return (said[0] if said else "failed") if done.returncode else ""
