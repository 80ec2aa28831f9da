"""Proves bundles and the device rooms on emulated ARM boards: ``make test-arm``.

    python3 tools/test_arm.py [--require] [--within S] [SYSTEM...]

For each system (bookworm and bullseye; bookworm-armhf when asked for): a root file system
of Debian's packages, unpacked and never booted; the bundle of such a board, made by
``draftwire boards bundle``, its signature and hashes checked by the emulated Python,
installed by its own ``install.sh --rootfs`` on this machine; then an emulated process that
imports everything, runs ``boards doctor`` (with the /proc and /sys of a recorded Orin
Nano) and talks to a verifier on this machine.  Its tokens must be this machine's own.

Emulation shows that wheels, glibc, processor baseline and results are right.  It says
nothing of speed.  What is fetched lies in out/arm and is used again.  Without qemu,
mmdebstrap, network or (--within) time it says so and passes; with --require it fails.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from fetch import unpacked

from draftwire.bench.child import VerifierProcess

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HOME = os.path.join(ROOT, "out", "arm")
TOOLS = os.path.join(HOME, "tools")
OURS = {**os.environ, "PYTHONPATH": os.path.join(ROOT, "src")}
PROMPTS = ["Once upon a time", "The prince said", "Take the cup and", "In the forest"]

ARM64 = {"arch": "arm64", "machine": "aarch64", "qemu": "qemu-aarch64-static"}
# System -> how it is made and what its bundle is for.
SYSTEMS = {
    "bookworm": {
        **ARM64,
        "suite": "bookworm",
        "cpu": "cortex-a72",
        "python": "3.11",
        "board": "raspberry-pi-4",
        "packages": "python3-minimal,python3,libssl3,libstdc++6",
    },
    "bullseye": {
        **ARM64,
        "suite": "bullseye",
        "cpu": "cortex-a53",
        "python": "3.9",
        "board": "raspberry-pi-4",
        "packages": "python3-minimal,python3,libssl1.1,libstdc++6",
        # Its security archive is no longer whole; the release itself is.
        "hook": 'sed -i /-security/d "$1"/etc/apt/sources.list',
    },
    "bookworm-armhf": {
        "suite": "bookworm",
        "arch": "armhf",
        "machine": "armv7l",
        "qemu": "qemu-arm-static",
        "cpu": "cortex-a15",
        "python": "3.11",
        "board": "generic-armv7",
        "packages": "python3-minimal,python3,python3-numpy,libssl3,libstdc++6",
    },
}
# A qemu older than 10 shows the host's; onnxruntime 1.31 parses it when it is imported.
CPUINFO = {
    "aarch64": "processor\t: %d\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 "
    "cpuid\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\n"
    "CPU part\t: 0xd08\nCPU revision\t: 3\n\n",
    "armv7l": "processor\t: %d\nmodel name\t: ARMv7 Processor rev 3 (v7l)\n"
    "Features\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32\n"
    "CPU implementer\t: 0x41\nCPU architecture: 7\nCPU variant\t: 0x0\n"
    "CPU part\t: 0xc0f\nCPU revision\t: 3\n\n",
}
CORES = 6  # as the recorded board has: onnxruntime 1.19 aborts when the two differ


class NotHere(Exception):
    """Something from outside that this test needs cannot be had."""


CLOCK = {"end": time.monotonic() + 3600.0}  # of everything; --within sets it


def left():
    """Return the seconds that are left, at least a moment."""
    return max(0.1, CLOCK["end"] - time.monotonic())


def say(text):
    """Print one line of progress."""
    print("test-arm: " + text, flush=True)


def run(words, **options):
    """Run a command; return its exit code and what it said."""
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(words, timeout=left(), check=False, **both, **options)
    return done.returncode, done.stdout.decode("utf-8", "replace")


def call(words, what, **options):
    """Run a command; return its output, or stop with what it said."""
    code, said = run(words, **options)
    if code:
        raise SystemExit(f"test-arm: {what} failed ({code})\n{said[-3000:]}")
    return said


def find_tool(name):
    """Return a program of this machine, or one that was fetched, or None."""
    fetched = os.path.join(TOOLS, "usr", "bin", name)
    return shutil.which(name) or (fetched if os.access(fetched, os.X_OK) else None)


def need_tools(names):
    """Return the programs by name; what is missing is fetched, not installed."""
    missing = [name for name in names if not find_tool(name)]
    if missing:
        if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
            raise NotHere(f"{', '.join(missing)}: not found, and no apt-get to fetch them")
        os.makedirs(TOOLS, exist_ok=True)
        say("fetching qemu-user-static and mmdebstrap")
        with contextlib.suppress(OSError, subprocess.SubprocessError):  # said below
            unpacked(["qemu-user-static", "mmdebstrap"], TOOLS)
    found = {name: find_tool(name) for name in names}
    missing = [name for name in names if not found[name]]
    if missing:
        raise NotHere(
            f"{', '.join(missing)}: not found "
            "(on Debian: apt-get install qemu-user-static mmdebstrap)"
        )
    return found


def make_root(name, tools):
    """Unpack Debian's packages for a system; nothing of them is run."""
    system, folder = SYSTEMS[name], os.path.join(HOME, name, "root")
    stamp = os.path.join(HOME, name, "made")
    wanted = json.dumps(system, sort_keys=True)
    if os.path.isfile(stamp) and open(stamp).read() == wanted:
        return folder
    shutil.rmtree(os.path.join(HOME, name), ignore_errors=True)
    os.makedirs(os.path.join(HOME, name))
    say(f"{name}: unpacking Debian's packages for {system['arch']}")
    mode = "root" if os.geteuid() == 0 else "unshare"
    words = [tools["mmdebstrap"], "--quiet", f"--mode={mode}", "--variant=extract"]
    words += [f"--architectures={system['arch']}", f"--include={system['packages']}"]
    words += [f"--setup-hook={system['hook']}"] if "hook" in system else []
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    code, said = run([*words, system["suite"], folder], env={**os.environ, "PATH": path})
    if code:
        lines = said.strip().splitlines()
        first = [line for line in lines if line.startswith("E: ")] or lines or [""]
        raise NotHere(f"the packages of {name} cannot be had: {first[0]}")
    os.makedirs(os.path.join(folder, "proc"), exist_ok=True)
    with open(os.path.join(folder, "proc", "cpuinfo"), "w") as file:
        for number in range(CORES):
            file.write(CPUINFO[system["machine"]] % number)
    with open(stamp, "w") as file:
        file.write(wanted)
    return folder


def emulator(name, root, tools):
    """Write the command that runs the system's Python; return its path."""
    system = SYSTEMS[name]
    path = os.path.join(HOME, name, "python")
    words = [tools[system["qemu"]], "-cpu", system["cpu"], "-L", root]
    if system["machine"] == "armv7l":
        # The loader looks for libraries by the host's paths.
        folders = ("lib/arm-linux-gnueabihf", "usr/lib/arm-linux-gnueabihf")
        places = ":".join(os.path.join(root, folder) for folder in folders)
        words += ["-E", "LD_LIBRARY_PATH=" + places]
    words.append(os.path.join(root, "usr", "bin", f"python{system['python']}"))
    with open(path, "w") as file:
        file.write("#!/bin/sh\nexec " + " ".join(words) + ' "$@"\n')
    os.chmod(path, 0o755)
    return path


def draftwire(python, *words):
    """Run the host's draftwire; return its output."""
    command = [python, "-m", "draftwire", *words]
    return call(command, f"draftwire {' '.join(words[:2])}", env=OURS)


def bundle(name, python, drafts):
    """Make the signed bundle of a system; return its path and the public key."""
    system = SYSTEMS[name]
    key = os.path.join(HOME, "maker.key")
    if not os.path.isfile(key):
        draftwire(python, "boards", "key", "new", key)
    out = os.path.join(HOME, name, "bundle.tar.gz")
    words = ["boards", "bundle", "--board", system["board"], "--python", system["python"]]
    words += ["--key", key, "--out", out, "--cache", os.path.join(HOME, "wheels")]
    first = "litert" if system["machine"] == "armv7l" else next(iter(drafts))
    words += ["--draft", drafts[first]]
    for engine in drafts:
        words += ["--engine", engine]
    try:
        draftwire(python, *words)
    except SystemExit as exc:
        if "registry" in str(exc):
            raise NotHere(f"no package registry: {str(exc).splitlines()[-1]}") from exc
        raise
    return out, open(key + ".pub").read().strip()


def install(name, root, path, key, board_python, python):
    """Check the bundle with the emulated Python, then install it into the root."""
    script = os.path.join(HOME, name, "install.sh")
    draftwire(python, "boards", "installer", "--out", script)
    words = [board_python, "-I", script, "check", path, "--key", key]
    call(words, "install.sh check, emulated")
    shutil.rmtree(os.path.join(root, "opt", "draftwire"), ignore_errors=True)
    words = ["sh", script, path, "--key", key, "--rootfs", root]
    path = os.path.dirname(python) + os.pathsep + os.environ["PATH"]
    call(words, "install.sh", env={**os.environ, "PATH": path})
    return os.path.join(root, "opt", "draftwire", "current")


def run_job(command, name, job, site):
    """Run tests/arm/on_board.py; return what it found."""
    place = os.path.join(HOME, f"{name}.job.json")
    with open(place, "w") as file:
        json.dump(job, file)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DRAFTWIRE_")}
    environment.update(PYTHONPATH=site, HOME=HOME, OMP_NUM_THREADS="1")
    if not os.path.isdir(os.path.join(site, "numpy", "__pycache__")):
        # No Python of this version here made byte code: the emulated one does, once.
        environment.update(PYTHONPYCACHEPREFIX=os.path.join(HOME, name, "pyc"))
    script = os.path.join(ROOT, "tests", "arm", "on_board.py")
    said = call([command, "-s", script, place], f"{name}: the board", env=environment)
    return json.loads(said.strip().splitlines()[-1])


def fake_orin(python, system_root):
    """Write the recorded tree of an Orin Nano, and put it into the emulated system."""
    root = os.path.join(HOME, "orin")
    shutil.rmtree(root, ignore_errors=True)
    code = (
        "import sys, pathlib; sys.path[:0] = sys.argv[2:]\n"
        "from fake_boards import BOARDS, build\n"
        "build(pathlib.Path(sys.argv[1]), BOARDS['orin-nano-super'])\n"
    )
    places = [os.path.join(ROOT, "tests", "helpers"), os.path.join(ROOT, "src")]
    call([python, "-c", code, root, *places], "the recorded board")
    # The emulator shows these below / to the process; libraries stay the system's own.
    for name in ("proc/device-tree", "sys", "etc/nv_tegra_release", "etc/nvpmodel.conf"):
        source, place = os.path.join(root, name), os.path.join(system_root, name)
        if os.path.isdir(source):
            shutil.copytree(source, place, symlinks=True, dirs_exist_ok=True)
        elif os.path.isfile(source):
            shutil.copyfile(source, place)
    return root


def drafts_of(python, machine):
    """Return the reference draft for each engine that can be tested here."""
    reference = os.path.join(ROOT, "models", "reference.draft")
    found = {} if machine == "armv7l" else {"onnxruntime": reference}
    with open(os.path.join(reference, "draft.json"), "rb") as file:
        made_of = hashlib.sha256(file.read()).hexdigest()[:12]
    lite = os.path.join(HOME, f"reference-litert-{made_of}.draft")
    check = "import ai_edge_litert.interpreter, flatbuffers"
    if subprocess.call([python, "-c", check], stderr=subprocess.DEVNULL) == 0:
        if not os.path.isdir(lite):
            words = ["export", "package", reference, "--engine", "litert", "--out", lite]
            draftwire(python, *words)
            # A package with one engine, so that there is no doubt which one ran.
            drop_engine(lite)
        found["litert"] = lite
    else:
        say("ai-edge-litert is not here: LiteRT is not tested")
    return found


def drop_engine(folder):
    """Take the ONNX file out of a package that is ours, and name it anew."""
    from draftwire.packages.manifest import identity

    manifest = os.path.join(folder, "draft.json")
    with open(manifest, encoding="utf-8") as file:
        raw = json.load(file)
    for name, entry in list(raw["files"].items()):
        if entry.get("engine") == "onnxruntime":
            del raw["files"][name]
            os.unlink(os.path.join(folder, name))
    raw["id"] = identity("draft", raw)
    with open(manifest, "w", encoding="utf-8") as file:
        json.dump(raw, file, indent=2)


def compare(name, board, host):
    """Stop when the board's tokens are not the host's; return a line for people."""
    words = []
    for engine, texts in board["texts"].items():
        for number, (there, here) in enumerate(zip(texts, host["texts"][engine])):
            if there["token_ids"] != here["token_ids"] or not there["token_ids"]:
                raise SystemExit(
                    f"test-arm: {name}, {engine}, prompt {number}: other tokens\n"
                    f"board {there['token_ids']}\nhost  {here['token_ids']}"
                )
        count = sum(len(text["token_ids"]) for text in texts)
        sides = texts, host["texts"][engine]
        accepted = [sum(text["accepted"] for text in side) for side in sides]
        words.append(
            f"{texts[0]['engine']}: {count} tokens equal, "
            f"accepted {accepted[0]} there and {accepted[1]} here"
        )
    return "; ".join(words)


def check_board(name, board):
    """Stop when the board is not what was emulated, or the doctor is wrong about it."""
    if board["machine"] != SYSTEMS[name]["machine"]:
        raise SystemExit(f"test-arm: {name} ran on {board['machine']}")
    for which in ("recorded", "doctor"):
        found = board[which]["report"]
        if found["machine"]["board"]["name"] != "jetson-orin-nano":
            raise SystemExit(f"test-arm: {name}: the doctor knows no Orin Nano: {found}")
    broken = [f for f in found["findings"] if f["status"] == "fail"]
    if found["would_run"] is not True or broken:
        raise SystemExit(f"test-arm: {name}: the doctor says no: {broken}")


def one(name, python):
    """Test one system; return its line of the summary."""
    system = SYSTEMS[name]
    tools = need_tools(["mmdebstrap", system["qemu"]])
    root = make_root(name, tools)
    board_python = emulator(name, root, tools)
    drafts = drafts_of(python, system["machine"])
    if not drafts:
        raise NotHere("no engine to test")
    path, key = bundle(name, python, drafts)
    current = install(name, root, path, key, board_python, python)
    with open(os.path.join(current, "manifest.json")) as file:
        manifest = json.load(file)
    modules = manifest["modules"] + manifest["system_modules"]
    with VerifierProcess([Path(ROOT, "models", "v1.target")]) as verifier:
        job = {"url": verifier.url, "drafts": drafts, "prompts": PROMPTS}
        ours = {**job, "modules": [], "python": None, "fake": None}
        host = run_job(python, "host", ours, os.path.join(ROOT, "src"))
        theirs = {**job, "modules": modules, "python": board_python}
        theirs["fake"] = fake_orin(python, root)
        site = os.path.join(os.path.realpath(current), "site")
        board = run_job(board_python, name, theirs, site)
    check_board(name, board)
    line = compare(name, board, host)
    libc = " ".join(board["libc"])
    return f"{board['machine']}, Python {board['python']}, {libc}: {line}"


def main(words):
    """Test the systems that were named."""
    words = list(words)
    required = "--require" in words
    if "--within" in words:
        at = words.index("--within")
        CLOCK["end"] = time.monotonic() + float(words[at + 1])
        del words[at : at + 2]
    names = [word for word in words if word != "--require"] or ["bookworm", "bullseye"]
    unknown = [name for name in names if name not in SYSTEMS]
    if unknown:
        raise SystemExit(f"test-arm: systems are {', '.join(SYSTEMS)}, not {unknown[0]}")
    os.makedirs(HOME, exist_ok=True)
    code = 0
    for name in names:
        began = time.monotonic()
        try:
            said = one(name, sys.executable)
        except NotHere as exc:
            said = f"NOT TESTED: {exc}"
            code = 1 if required else code
        except subprocess.TimeoutExpired:
            said = "NOT TESTED: it takes longer than the time that there is"
            code = 1 if required else code
        say(f"{name}: {said} ({time.monotonic() - began:.0f} s)")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
