"""Where an installation keeps what, and which files outside its folder it may write."""

from __future__ import annotations

import re

from draftwire.boards.install.trouble import USAGE, InstallError

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


class Layout:
    """Paths below the prefix, which is absolute and has no characters to stumble over."""

    def __init__(self, prefix: str) -> None:
        cleaned = prefix.rstrip("/")
        taken = ("/usr", "/etc", "/var", "/opt", "/home")
        if not _PREFIX.match(cleaned) or cleaned in taken:
            raise InstallError(
                f"--prefix {prefix} is unfit",
                USAGE,
                f"an absolute path of a folder of its own, such as {DEFAULT_PREFIX}",
            )
        self.prefix = cleaned
        self.versions = cleaned + "/versions"  # one folder for each installed version
        self.current = cleaned + "/current"  # link to the version in use
        self.previous = cleaned + "/previous"  # link to the version before it
        self.key = cleaned + "/key.pub"  # the public key that this board trusts
        self.script = cleaned + "/install.sh"  # of the version in use, for updates
        # The owner's configuration (written once, never overwritten) and bearer token.
        self.config, self.token = cleaned + "/etc/draftwire.toml", cleaned + "/etc/token"
        self.record = cleaned + "/installed.json"  # what was written outside the prefix
        self.lock = cleaned + "/.lock"  # held while the installation is changed

    def version(self, name: str) -> str:
        """Folder of one version."""
        return f"{self.versions}/{name}"

    def staging(self, name: str) -> str:
        """Folder where a version is put together; a leftover is swept."""
        return f"{self.versions}/.{name}.staging"
