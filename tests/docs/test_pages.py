"""What pages show runs: Python blocks, the notebook, commands, and whole tutorials.

Every Python block of every page runs as it stands, with a verifier and a service behind
the ports that it names. Commands run too, but for those of ``NOT_RUN``, which says why;
whether these exist and have their flags is tested in ``tests/face``. A tutorial's blocks
that are marked ``sh`` and ``python`` run in order as one script, in an empty folder; what
stands in plain fences needs a board, or minutes of export.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
from places import MODELS, ROOT, environment, free_port
from service_lab import service, verifier

pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")

NOTEBOOK = ROOT / "docs" / "tutorials" / "energy-notebook.ipynb"
PAGES = [
    ROOT / "README.md",
    ROOT / "ros" / "README.md",
    *(p for p in sorted((ROOT / "docs").rglob("*.md")) if p.parent.name != "tutorials"),
]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.M | re.S)
NEEDS = {"from openai": "openai", "schema=": "llguidance"}
NOT_RUN = {  # what a command begins with, or has in it: why it is not run here
    r"sudo |boards bundle.*(installer|board )|install\.sh": "tests/arm and make test-arm",
    r"pip install|make |python -m studies|python -m tools": "sets up, or takes hours",
    r"serve run |--backend|verifier gateway|verifier serve": "tests/verifier: no end",
    r"service (run|status|top)|generate --service|draftwire chat": "tests/runtime",
    r"curl ": "tests/runtime/test_clients.py",
    r"verifier top|energy watch": "a live screen",
    r"export |_MODEL|MODEL_DIR|BASE_DIR|pull |demo --draft": "minutes: tests/export",
    r"boards (detect|doctor) --root|--verifier wss": "files and machines of somebody else",
    r"energy (record|sweep|compare)|\.jsonl|tegrastats\.log|--calibrate": "wants a sensor",
    r"bench compare|bench verifier|--hours|--record|--text|--real|--k best": "minutes",
    r"report FILE|--replay FILE|bench device": "a file of one's own",
    r"--explain": "the text is shown under it",
}
LINE = re.compile(
    r"^(?:\$ )?((?:draftwire|python -m|make|pip|sudo|curl|serve) .*?)(?: {2,}.*| +#.*)?$",
    re.M,
)


def fenced(page, *kinds):
    """Return the blocks of a page that are of these kinds, each with its own."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(kind, text) for kind, text in found if kind in kinds]


def commands():
    lines = []
    for page in PAGES:
        for _, text in fenced(page, "", "sh"):
            lines += LINE.findall(text.replace("\\\n", " "))
    return list(dict.fromkeys(" ".join(line.split()) for line in lines))


def run(words, folder, **more):
    environ = environment(MPLBACKEND="Agg", HOME=str(folder), **more)
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(words, cwd=folder, env=environ, timeout=280, **both)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """Give the verifier's port and the service's address."""
    folder = tmp_path_factory.mktemp("board")
    words = ["--http", "127.0.0.1:0", "--draft", str(MODELS / "reference.draft")]
    with verifier(target=MODELS / "v1.target") as (_, port):
        with service(folder, port, *words) as running:
            yield port, running.up()["http"]


def has(name):
    """Return a Python that has a package, or nothing."""
    for python in (sys.executable, str(ROOT / ".venvs" / "clients" / "bin" / "python")):
        asked = [python, "-c", f"import {name}"]
        if os.path.exists(python) and not subprocess.call(asked, stderr=subprocess.DEVNULL):
            return python
    return ""


BLOCKS = [
    pytest.param(text, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, (_, text) in enumerate(fenced(page, "python"))
]


@pytest.mark.parametrize("text", BLOCKS)
def test_a_python_block_runs_as_it_stands(text, board, tmp_path):
    port, http = board
    python = sys.executable
    for words, name in NEEDS.items():
        if words in text:
            python = has(name) or pytest.skip(f"no {name} here")
    (tmp_path / "models").symlink_to(MODELS)
    script = text.replace("8765", str(port)).replace("http://127.0.0.1:8080/v1", http)
    run([python, "-c", script], tmp_path)


def test_the_notebook_runs_and_holds_no_output(tmp_path):
    pytest.importorskip("matplotlib")
    document = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert document["nbformat"] == 4 and len(document["cells"]) > 8
    code = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    assert all(not c["outputs"] and c["execution_count"] is None for c in code)
    script = "\n\n".join("".join(cell["source"]) for cell in code)
    script += "\nassert found.real and found.difference_j < 0 and 0 < b[0].coverage < 1\n"
    run([sys.executable, "-c", script], tmp_path)


def test_each_reason_is_one_of_a_command():
    for pattern in NOT_RUN:
        assert any(re.search(pattern, line) for line in commands()), pattern


@pytest.mark.slow  # `make docs` runs them
@pytest.mark.parametrize(
    "line",
    [line for line in commands() if not any(re.search(p, line) for p in NOT_RUN)],
)
def test_a_command_runs_as_it_stands(line, board, tmp_path):
    (tmp_path / "models").symlink_to(MODELS)
    words = f"exec {sys.executable} -m {line.replace('8765', str(board[0]))}"
    words = re.sub(r" \[.*?\]", "", words)  # what may be left out
    bash = shutil.which("bash") or "sh"
    url = f"ws://127.0.0.1:{board[0]}"
    # These say with 3 that a machine lacks something.
    known = " || test $? = 3" if re.search("doctor|sources", line) else ""
    run([bash, "-c", f"({words}){known}"], tmp_path, DRAFTWIRE_VERIFIER=url)


def script_of(page):
    lines = ["set -e", "trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT"]
    for kind, text in fenced(page, "sh", "python"):
        lines.append(text if kind == "sh" else f"python - <<'PAGE'\n{text}PAGE")
    return "\n".join(lines)


@pytest.mark.slow  # `make docs` runs them
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs(page, tmp_path):
    script = script_of(page)
    for port in set(re.findall(r"\b(876\d|9100)\b", script)):
        script = script.replace(port, str(free_port()))
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name, words in (("python", ""), ("draftwire", " -m draftwire")):
        file = bin_ / name
        file.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{words} "$@"\n')
        file.chmod(0o755)
    path = f"{bin_}:{os.environ['PATH']}"
    environ = environment(PATH=path, MODELS=str(MODELS), HOME=str(tmp_path))
    (tmp_path / "work").mkdir()
    with open(tmp_path / "said", "wb") as said:
        process = subprocess.Popen(
            ["bash", "-c", script],
            cwd=tmp_path / "work",
            env=environ,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        process.wait(280)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, (tmp_path / "said").read_text()
