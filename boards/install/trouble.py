"""The one error of the installer."""

from __future__ import annotations

# The exit codes of draftwire: usage, board, package.
USAGE, BOARD, BUNDLE = 2, 3, 5


class InstallError(Exception):
    """An installation that stopped with nothing changed that was in use; ``code``: of
    exit."""

    def __init__(self, message: str, code: int, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint
