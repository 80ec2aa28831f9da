"""Where an installation keeps what, and which files outside its folder it may write."""

from __future__ import annotations

import re
from typing import NamedTuple

from draftwire.boards.install.trouble import USAGE, InstallError

__all__ = ["DEFAULT_PREFIX", "STATE_FOLDERS", "SYSTEM_FILES", "WANTED_BY", "Layout"]

DEFAULT_PREFIX = "/opt/draftwire"
UNIT = "/etc/systemd/system/draftwire.service"
# In the bundle -> on the board. Nothing else outside the prefix is ever written.
SYSTEM_FILES: dict[str, str] = {
    "system/draftwire.service": UNIT,
    "system/journald@draftwire.conf": "/etc/systemd/journald@draftwire.conf",
    "system/60-draftwire.rules": "/etc/udev/rules.d/60-draftwire.rules",
}
# The link that starts the service at boot.
WANTED_BY = "/etc/systemd/system/multi-user.target.wants/draftwire.service"
# Made by systemd for the service; `uninstall` removes them.
STATE_FOLDERS = ("/var/lib/draftwire", "/var/lib/private/draftwire")
_PREFIX = re.compile(r"(/[A-Za-z0-9][A-Za-z0-9._-]*)+\Z")


class Layout(NamedTuple):
    """Paths below the prefix.

    Attributes:
        prefix: Absolute path on the board.
    """

    prefix: str

    @classmethod
    def at(cls, prefix: str) -> Layout:
        """Return the layout at ``prefix``.

        Raises:
            InstallError: It is not absolute, or holds characters that a unit file,
                a shell or a person would stumble over.
        """
        cleaned = prefix.rstrip("/")
        if not _PREFIX.match(cleaned) or cleaned in (
            "/usr",
            "/etc",
            "/var",
            "/opt",
            "/home",
        ):
            raise InstallError(
                f"--prefix {prefix} is unfit",
                USAGE,
                f"an absolute path of a folder of its own, such as {DEFAULT_PREFIX}",
            )
        return cls(cleaned)

    @property
    def versions(self) -> str:
        """Folder with one folder for each installed version."""
        return self.prefix + "/versions"

    @property
    def current(self) -> str:
        """Link to the version in use."""
        return self.prefix + "/current"

    @property
    def previous(self) -> str:
        """Link to the version before it."""
        return self.prefix + "/previous"

    @property
    def key(self) -> str:
        """The public key that this board trusts."""
        return self.prefix + "/key.pub"

    @property
    def script(self) -> str:
        """The installer of the version in use, for updates."""
        return self.prefix + "/install.sh"

    @property
    def config(self) -> str:
        """The owner's configuration: written once, never overwritten."""
        return self.prefix + "/etc/draftwire.toml"

    @property
    def token(self) -> str:
        """The verifier's bearer token, put there by the owner."""
        return self.prefix + "/etc/token"

    @property
    def record(self) -> str:
        """What was written outside the prefix."""
        return self.prefix + "/installed.json"

    @property
    def lock(self) -> str:
        """Held while the installation is changed."""
        return self.prefix + "/.lock"

    def version(self, name: str) -> str:
        """Folder of one version."""
        return f"{self.versions}/{name}"

    def staging(self, name: str) -> str:
        """Folder where a version is put together; a leftover is swept."""
        return f"{self.versions}/.{name}.staging"
