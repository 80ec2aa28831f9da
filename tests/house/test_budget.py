"""What the command and the core may cost."""

from __future__ import annotations

import re
import resource
import subprocess
import sys

from verifier_process import ENVIRONMENT, ROOT

HELP_CPU_S = 0.060
MAX_DEPENDENCIES = 3


def child_cpu_s(words: list[str]) -> float:
    """Return the user and system time of one Python process, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *words],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_costs_little_above_bare_python():
    """Of pairs of runs, the best: a busy machine makes each of them dearer."""
    extra = []
    for _ in range(12):
        bare = child_cpu_s(["-c", "pass"])
        extra.append(child_cpu_s(["-m", "draftwire", "--help"]) - bare)
        if extra[-1] <= HELP_CPU_S:
            return
    raise AssertionError(f"draftwire --help costs {min(extra) * 1e3:.0f} ms")


def test_help_and_config_import_nothing_heavy():
    for words in (["--help"], ["demo", "--help"], ["config", "show"]):
        script = (
            "import sys\n"
            "from draftwire.cli import main\n"
            "try:\n"
            f"    main({words!r})\n"
            "except SystemExit:\n"
            "    pass\n"
            "loaded = {name.split('.')[0] for name in sys.modules}\n"
            "heavy = {'numpy', 'websockets', 'asyncio', 'onnxruntime', 'tokenizers'}\n"
            "sys.exit(' '.join(sorted(loaded & heavy)) or 0)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        assert done.returncode == 0, (words, done.stderr.decode())


def test_the_core_depends_on_three_packages_at_most():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.S | re.M)
    assert block is not None
    names = re.findall(r'^\s*"([A-Za-z0-9_-]+)', block.group(1), re.M)
    assert 1 <= len(names) <= MAX_DEPENDENCIES, names
    assert set(names) == {"numpy", "websockets", "tomli"}


def test_the_version_is_said_once_in_two_places():
    import draftwire

    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{draftwire.__version__}"\n' in text
