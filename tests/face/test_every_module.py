"""Every module that a board has loads on its Python; what it lacks are extras.

Those of the device need none of the workstation's libraries, which are not to be had here.
"""

import subprocess
import sys

SCRIPT = """
import importlib, pkgutil, sys, draftwire
heavy = dict.fromkeys(("torch", "transformers", "onnx"))
sys.modules.update(heavy)  # importing them fails
rooms = "runtime transport sampling energy boards packages cli verifier bench"
names = ["draftwire." + one.name for one in pkgutil.iter_modules(draftwire.__path__)]
for room in rooms.split():
    whole = importlib.import_module("draftwire." + room)
    inside = pkgutil.walk_packages(whole.__path__, whole.__name__ + ".")
    names += [one.name for one in inside]
for name in names:
    if not name.endswith("__main__"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            on_device = name.split(".")[1] not in ("verifier", "bench", "export")
            missing = (error.name or "").split(".")[0]
            assert missing != "draftwire" and not (on_device and missing in heavy), error
        print(name)
"""


def test_every_module_loads():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120
    )
    assert not done.returncode, done.stderr
    assert len(done.stdout.splitlines()) > 200
