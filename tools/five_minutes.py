"""The first five minutes of somebody who has no checkout, timed.

    python tools/five_minutes.py [--own] [--keep FOLDER]

Builds the two wheels as they would be published, makes an empty home and a fresh virtual
environment in it, and runs there what README says: `pip install 'draftwire[board]'`,
`draftwire demo`, and with ``--own`` also `pip install 'draftwire[export,gguf]'`,
`draftwire pull smollm2-135m` and a demo with that model. Nothing of the checkout can be
seen from there: the working folder, HOME and PATH are the new ones.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", "out", "build", "*.egg-info", "tests")


def main():
    """Run the steps; the exit code of the first that fails is ours."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--own", action="store_true", help="with a model of one's own")
    parser.add_argument("--keep", metavar="FOLDER", help="run here, and leave it")
    args = parser.parse_args()
    if args.keep:
        os.makedirs(args.keep)
        return steps(os.path.abspath(args.keep), own=args.own)
    with tempfile.TemporaryDirectory(prefix="five-minutes-") as root:
        return steps(root, own=args.own)


def steps(root, own):
    """Build, install and run below ``root``; print a table of seconds."""
    home = os.path.join(root, "home")
    os.mkdir(home)
    wheels = build(root)
    kept = {k: v for k, v in os.environ.items() if k.startswith("PIP_") or "proxy" in k}
    bin_ = os.path.join(home, "env", "bin")
    path = os.pathsep.join([bin_, "/usr/bin", "/bin"])
    environ = dict(kept, HOME=home, PATH=path, LANG="C.UTF-8")
    pip = [os.path.join(bin_, "pip"), "install", "-q", "--disable-pip-version-check"]
    pip += ["--find-links", wheels]
    draftwire = os.path.join(bin_, "draftwire")
    plan = [
        ("venv", [sys.executable, "-m", "venv", os.path.join(home, "env")]),
        ("install", [*pip, "draftwire[board]"]),
        ("demo", [draftwire, "demo"]),
    ]
    if own:
        mine = ["--draft", "smollm2-135m.draft", "--target", "smollm2-135m.hf"]
        plan += [
            ("install export", [*pip, "torch==2.13.0", "draftwire[export,gguf]"]),
            ("pull", [draftwire, "pull", "smollm2-135m", "--role", "both"]),
            ("own model", [draftwire, "demo", *mine]),
        ]
    table = []
    for name, command in plan:
        print(f"$ {' '.join(command)}".replace(home, "~"), flush=True)
        started = time.monotonic()
        code = subprocess.call(command, cwd=home, env=environ)
        table.append((name, time.monotonic() - started))
        if code:
            print(f"{name} failed with exit code {code}", file=sys.stderr)
            return code
    print("\nstep               s")
    for name, seconds in [*table, ("all", sum(s for _, s in table))]:
        print(f"{name:<14}{seconds:6.1f}")
    return 0


def build(root):
    """Return a folder with the wheels of draftwire and of its models."""
    source = os.path.join(root, "source")
    shutil.copytree(ROOT, source, ignore=_LEFT_OUT)  # a build leaves files behind
    wheels = os.path.join(root, "wheels")
    for what in (source, os.path.join(source, "models")):
        command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps"]
        command += ["--disable-pip-version-check", "--wheel-dir", wheels, what]
        subprocess.run(command, check=True)
    shutil.rmtree(source)
    return wheels


if __name__ == "__main__":
    sys.exit(main())
