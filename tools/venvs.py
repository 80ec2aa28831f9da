"""Makes the virtual environments that the Makefile's verbs run in, and reuses them.

    python3 tools/venvs.py make device [litert] [test] [workstation] [...]  ->  .venv
    python3 tools/venvs.py test [devices | pytest arguments]         ->  make test
    python3 tools/venvs.py clients | docs                            ->  .venvs/clients
    python3 tools/venvs.py ray [pytest arguments]                    ->  make test-ray
    python3 tools/venvs.py vllm [pytest arguments]                   ->  make test-vllm
    python3 tools/venvs.py jtop [pytest arguments]   ->  jetson-stats of each API shape

Standard library only, and old syntax: it must run under whatever ``python3`` is.
"""

import glob
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Group -> (requirements file, install it without the dependencies it declares), in the
# order in which they are installed.
GROUPS = {
    "device": (("requirements/device.txt", True),),
    "litert": (("requirements/litert.txt", True),),
    "test": (("requirements/test.txt", True),),
    "ship": (("requirements/ship.txt", True),),
    "workstation": tuple(
        (f"requirements/{n}.txt", False) for n in ("torch", "workstation")
    ),
    "lint": (("requirements/lint.txt", False),),
    "fuzz": (("requirements/fuzz.txt", True),),
    "clients": (("requirements/clients.txt", False),),  # never in .venv: they want it all
    "ray": (("requirements/ray.txt", False),),  # likewise
    "docs": (("requirements/docs.txt", False),),
    "vllm": (("requirements/torch.txt", False), ("requirements/vllm.txt", True)),
}

OLDEST, PREFERRED = (3, 9), ((3, 11), (3, 12), (3, 10), (3, 13), (3, 9))
# The Pythons of the boards (JetPack 5, 6 and 7) and the tests that must pass there.
DEVICE_PYTHONS = ((3, 8), (3, 10), (3, 12))
TRITON = "triton==3.8.0"  # for vLLM's V2 runner, beside vLLM: there it would be found
VLLM_ROOM = 8 << 30  # 4.2 of it stay
JETSON_STATS = ("3.1.4", "4.3.2", "7.2.2")  # before 4.2; from 4.2; input rail as total
DEVICE_TESTS = ("sampling", "transport", "runtime", "energy", "boards", "face")

_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_PROBE = (
    "import os, sys, venv, ensurepip, ssl; "
    "path = os.path.realpath(getattr(sys, '_base_executable', '') or sys.executable); "
    "print('%d.%d %s' % (sys.version_info[0], sys.version_info[1], path))"
)


def say(text):
    """Print one line of progress."""
    print(text)
    sys.stdout.flush()


def dotted(version):
    """Return ``"3.8"`` for ``(3, 8)``."""
    return ".".join(str(part) for part in version)


def probe(command):
    """Return ``(version, path)`` of a usable interpreter, or None.

    Of a virtual environment it is the interpreter that it was made with.  A pyenv shim
    of a version that is not selected exists and fails; a Debian Python may lack
    ensurepip.  Both are as good as not there.
    """
    how = {"timeout": 60, "cwd": ROOT, "stderr": subprocess.DEVNULL}
    try:
        out = subprocess.check_output([command, "-c", _PROBE], **how).decode()
        version, path = out.split(None, 1)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return tuple(int(part) for part in version.split(".")), path.strip()


def find_python(version):
    """Return the path of an interpreter of ``version`` on this machine, or None."""
    name = "python" + dotted(version)
    home = os.path.expanduser("~")
    candidates = [os.path.join(d, name) for d in os.get_exec_path()]
    pyenv = os.environ.get("PYENV_ROOT", os.path.join(home, ".pyenv"))
    for pattern in (
        os.path.join(pyenv, "versions", dotted(version) + ".*", "bin"),
        os.path.join(home, ".local/share/uv/python/*", "bin"),
        os.path.join(home, "*conda*", "envs", "*", "bin"),
        "/opt/*/bin",
        "/opt/*/*/bin",
        "/usr/local/bin",
    ):
        candidates += sorted(glob.glob(os.path.join(pattern, name)), reverse=True)
    if sys.version_info[:2] == version:
        candidates.append(sys.executable)
    for candidate in dict.fromkeys(candidates):
        if os.access(candidate, os.X_OK):
            found = probe(candidate)
            if found and found[0] == version:
                return found[1]
    return None


def main_python():
    """Return ``(version, path)`` of the Python that .venv is made with."""
    asked = os.environ.get("PYTHON", "").strip()
    if asked:
        found = probe(shutil.which(asked) or asked)
        if not found or found[0] < OLDEST:
            raise SystemExit(
                f"PYTHON={asked} is not a Python {dotted(OLDEST)} or newer "
                "with venv and ensurepip"
            )
        return found
    # What is there is kept.
    for command in (os.path.join(ROOT, ".venv", "bin", "python"), sys.executable):
        found = probe(command)
        if found and found[0] >= OLDEST:
            return found
    for version in PREFERRED:
        path = find_python(version)
        if path:
            return version, path
    raise SystemExit(
        f"no Python {dotted(OLDEST)} or newer with venv and ensurepip found "
        "(on Debian: apt install python3-venv); PYTHON=/path/to/python3 names one"
    )


def stamp_of(group, python):
    """Return what ``group`` was installed from: it is current while this is equal."""
    digest = hashlib.sha256(repr(python).encode())
    files = [name for name, _ in GROUPS[group]]
    if group == "device":  # this group installs draftwire as well
        files += ["setup.py", "pyproject.toml"]
    for name in files:
        with open(os.path.join(ROOT, name), "rb") as handle:
            digest.update(handle.read())
    return digest.hexdigest()


def run(command, **options):
    """Run ``command`` in the checkout; stop with its exit code when it fails."""
    code = subprocess.call(command, cwd=ROOT, **options)
    if code:
        raise SystemExit(code)


def ensure(folder, python, groups):
    """Bring the environment at ``folder`` up to date and return its interpreter."""
    version, path = python
    inside = os.path.join(folder, "bin", "python")
    relative = os.path.relpath(folder, ROOT)
    made = os.path.join(folder, ".made-with")
    if not _same(made, repr(python)) or probe(inside) is None:
        say(f"{relative}: Python {dotted(version)} ({path})")
        shutil.rmtree(folder, ignore_errors=True)
        run([path, "-m", "venv", folder])
        _write(made, repr(python))
    for group in (name for name in GROUPS if name in groups):
        stamp = os.path.join(folder, ".installed-" + group)
        wanted = stamp_of(group, python)
        if _same(stamp, wanted):
            continue
        started = time.monotonic()
        for name, alone in GROUPS[group]:
            say(f"{relative}: installing {name}")
            _pip(inside, ["--no-deps"] if alone else [], ["-r", name])
        if group == "device":
            alone = ["--no-deps", "--no-build-isolation"]
            _pip(inside, alone, ["-e", "."])
        _write(stamp, wanted)
        say(f"{relative}: {group} in {time.monotonic() - started:.0f} s")
    return inside


def _pip(python, flags, what):
    # Some packages come without their dependencies, on purpose.
    options = ["-qq", "--disable-pip-version-check", "--no-input", "--no-warn-conflicts"]
    run([python, "-m", "pip", "install"] + options + flags + what)


def _same(path, text):
    try:
        with open(path) as handle:
            return handle.read() == text
    except OSError:
        return False


def _write(path, text):
    with open(path, "w") as handle:
        handle.write(text)


def make(groups):
    """Make ``.venv`` with ``groups``."""
    unknown = sorted(set(groups) - set(GROUPS))
    if unknown or not groups:
        raise SystemExit(f"groups are {', '.join(GROUPS)}, not {unknown}")
    return ensure(os.path.join(ROOT, ".venv"), main_python(), groups)


def pytest(python, arguments, out=None):
    """Run pytest, which writes to ``out``; return ``(exit code, its summary line)``."""
    out = out or sys.stdout.buffer
    command = [python, "-m", "pytest", "-q", "--timeout=300"] + arguments
    environment = dict(os.environ, PYTHONPATH=os.path.join(ROOT, "src"))
    # Parts run side by side: threads that spin for each other would slow all of them.
    environment.setdefault("OMP_NUM_THREADS", "1")
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    last = ""
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    ) as process:
        for raw in process.stdout:
            out.write(raw)
            out.flush()
            text = _ESCAPES.sub("", raw.decode("utf-8", "replace")).strip()
            if re.search(r"\d+ (passed|failed|error|skipped|deselected)", text):
                last = text.strip("= ")
    return process.returncode, last or "no tests ran"


_SUITE = ["device", "litert", "test", "ship", "workstation", "lint"]
# What takes long, the longest first; what is not named is a part together.
_LONG = ("laws/test_histories.py", "verifier", "laws", "runtime", "export", "energy")
_LONG += ("boards", "bench", "models")
_SLOWEST = ["-m", "not slow", "--durations=8", "--durations-min=3"]


def apart(group):
    """Make ``.venvs/GROUP``: OpenAI's clients, or what makes the site."""
    ensure(os.path.join(ROOT, ".venvs", group), main_python(), [group])


def ray(arguments):
    """Run the tests of the Ray Serve deployment in ``.venvs/ray``; return the exit code."""
    folder = os.path.join(ROOT, ".venvs", "ray")
    inside = ensure(folder, main_python(), ["device", "test", "ray"])
    return pytest(inside, arguments or ["-rs", "tests/deploy"])[0]


def jtop(arguments):
    """Run the tests of jtop with the real jetson-stats (AGPL: never a dependency).

    One of each shape of its API, each in a folder of its own with what it needs.
    """
    folders = []
    for version in JETSON_STATS:
        folder = os.path.join(ROOT, ".venvs", "jetson-stats-" + version)
        if not os.path.isdir(os.path.join(folder, "jtop")):
            flags = ["--target", folder, "--no-binary", "jetson-stats"]
            _pip(main_python()[1], flags, ["jetson-stats==" + version])
        folders.append(folder)
    os.environ["JETSON_STATS_FOLDERS"] = os.pathsep.join(folders)
    inside = make(["device", "test"])
    return pytest(inside, ["tests/energy/test_energy_jtop.py"] + arguments)[0]


def vllm(arguments):
    """Make ``.venvs/vllm`` and run the tests of that backend there; return their code.

    Where it cannot be made, say why and return 0. With ``--within S`` first, tests that
    would begin later than that are skipped.
    """
    began = time.monotonic()
    within = None
    if arguments[:1] == ["--within"]:
        within, arguments = float(arguments[1]), arguments[2:]
    python = find_python((3, 11))
    there = os.path.isdir(os.path.join(ROOT, ".venvs", "vllm"))
    try:
        if python is None:
            raise SystemExit("no Python 3.11 found")
        if not there and shutil.disk_usage(ROOT).free < VLLM_ROOM:
            raise SystemExit(f"less than {VLLM_ROOM >> 30} GiB of disk are free")
        inside = ensure(os.path.join(ROOT, ".venvs", "vllm"), ((3, 11), python), ["vllm"])
        folder = os.path.join(ROOT, ".venvs", TRITON)
        if not os.path.isdir(os.path.join(folder, "triton")):
            _pip(inside, ["--no-deps", "--target", folder], [TRITON])
        os.environ["TRITON_FOLDER"] = folder
    except SystemExit as failed:
        say(f"NOT TESTED: vLLM cannot be set up here ({failed})")
        return 0
    if within is not None:
        left = within - (time.monotonic() - began)
        os.environ["DRAFTWIRE_TESTS_WITHIN_S"] = str(left)
    code, summary = pytest(inside, ["-rs", *(arguments or ["tests/engine"])])
    say(f"vLLM: {summary}")
    return code


def parts():
    """Return the parts of the suite as pytest's words: every file is in one of them."""
    folder = os.path.join(ROOT, "tests")
    rest = sorted(
        name
        for name in os.listdir(folder)
        if name not in _LONG and glob.glob(os.path.join(folder, name, "test_*.py"))
    )
    found = []
    for name in _LONG:
        inside = [other for other in _LONG if other.startswith(name + "/")]
        ignored = [word for other in inside for word in ("--ignore", "tests/" + other)]
        found.append(["tests/" + name, *ignored])
    found.insert(3, ["tests/" + name for name in rest])  # as long as those before it
    return found


def devices():
    """Return a job for each Python of the boards that is here, and a row for the others."""
    rooms = ["tests/" + name for name in DEVICE_TESTS]
    jobs, missing = [], []
    for version in DEVICE_PYTHONS:
        label, path = "Python " + dotted(version), find_python(version)
        if path is None:
            missing.append((label, None, "not found on this machine, not tested"))
            continue
        folder = os.path.join(ROOT, ".venvs", "py" + dotted(version))
        inside = ensure(folder, (version, path), ["device", "litert", "test"])
        jobs.append((label, inside, ["-m", "not workstation and not slow", *rooms]))
    return jobs, missing


def side_by_side(jobs):
    """Run ``(label, python, arguments)``, one more at a time than there are cores.

    A part waits now and then, for a process or a socket. Each is shown when it has ended.
    """

    def one(job):
        label, python, arguments = job
        with tempfile.TemporaryFile() as out:
            code, summary = pytest(python, arguments, out)
            out.seek(0)
            text = out.read().decode("utf-8", "replace")
        say(f"\n== {label}\n{text.rstrip()}")
        return label, code, summary

    with ThreadPoolExecutor((os.cpu_count() or 1) + 1) as pool:
        futures = [pool.submit(one, job) for job in jobs]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def test(arguments):
    """Run everything, or the tests that ``arguments`` name; return the exit code."""
    started = time.monotonic()
    if arguments and arguments != ["devices"]:
        return pytest(make(_SUITE), arguments)[0]
    jobs, results = devices()
    if not arguments:
        apart("clients")
        inside = make(_SUITE)
        ours = [(" ".join(words), inside, [*_SLOWEST, *words]) for words in parts()]
        jobs = ours[:2] + jobs + ours[2:]
    results += side_by_side(jobs)
    say("\nresult  where: what")
    for label, code, summary in results:
        verdict = "--" if code is None else "FAILED" if code else "ok"
        say("{:<7} {}: {}".format(verdict, label.replace("tests/", ""), summary))
    say(f"{time.monotonic() - started:.0f} s in all")
    return 1 if any(code for _, code, _ in results) else 0


def main(arguments):
    """Run ``make GROUP...``, ``test`` or ``ray [PYTEST ARGUMENT...]``, or make the rest."""
    verb, rest = (arguments or [""])[0], arguments[1:]
    if verb == "make":
        make(rest)
        return 0
    if arguments in (["clients"], ["docs"]):
        apart(verb)
        return 0
    verbs = {"test": test, "ray": ray, "jtop": jtop, "vllm": vllm}
    if verb not in verbs:
        raise SystemExit(__doc__)
    return verbs[verb](rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
