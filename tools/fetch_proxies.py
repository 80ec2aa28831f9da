"""Fetches nginx, Caddy and HAProxy for ``make test-proxies``, where they are not installed.

Debian's packages, unpacked into out/proxies and never installed: nothing is started, no
root is needed.  What cannot be had is said, and its tests are skipped.
"""

import os
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HOME = os.path.join(ROOT, "out", "proxies")
# Program -> its packages, and the libraries that a small system may lack.
PROXIES = {
    "nginx": ["nginx"],
    "caddy": ["caddy"],
    "haproxy": ["haproxy", "liblua5.3-0"],
}
PATH = os.pathsep.join(
    [os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]
    + [os.path.join(HOME, "usr", name) for name in ("sbin", "bin")]
)


def runs(program):
    """Tell whether a program is there, with what it needs."""
    found = shutil.which(program, path=PATH)
    word = {"caddy": "version"}.get(program, "-v")
    return (
        found
        and subprocess.call(
            [found, word],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        == 0
    )


def fetch(packages):
    """Unpack Debian packages into HOME."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # apt downloads as a user of its own
        subprocess.check_call(
            ["apt-get", "download", "-qq", *packages], cwd=folder, stderr=subprocess.DEVNULL
        )
        for name in sorted(os.listdir(folder)):
            subprocess.check_call(["dpkg-deb", "-x", os.path.join(folder, name), HOME])


def main():
    """Fetch what is missing; never fails."""
    os.makedirs(HOME, exist_ok=True)
    for program, packages in PROXIES.items():
        if runs(program):
            continue
        try:
            fetch(packages)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{program} cannot be fetched ({error}): its tests are skipped")
            continue
        found = "fetched" if runs(program) else "does not run here, its tests are skipped"
        print(f"{program}: {found}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
