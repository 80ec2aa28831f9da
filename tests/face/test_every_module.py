"""Every module that a board has loads on its Python; what it lacks are extras."""

import subprocess
import sys

SCRIPT = """
import importlib, pkgutil, draftwire
rooms = "runtime transport sampling energy boards verifier bench packages cli"
for room in rooms.split():
    whole = importlib.import_module("draftwire." + room)
    for found in pkgutil.walk_packages(whole.__path__, whole.__name__ + "."):
        if not found.name.endswith("__main__"):
            try:
                importlib.import_module(found.name)
            except ImportError as error:
                assert not (error.name or "").startswith("draftwire"), error
            print(found.name)
"""


def test_every_module_loads():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120
    )
    assert not done.returncode, done.stderr
    assert len(done.stdout.splitlines()) > 200
