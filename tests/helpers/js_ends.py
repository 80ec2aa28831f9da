"""The ends of examples/js as processes, and what the toy target of theirs says.

The toy target is the kit's, whose texts are computed with our own sampling.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

import pytest
from pieces import plain_text
from tools.faults import FaultProxy

from draftwire.sampling import SamplingParams
from draftwire.verifier.kit.target import logits_after

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "examples" / "js"
COPY = ROOT / "out" / "js"  # the checkout stays as it is: npm writes beside the programs
HERE = COPY / "examples" / "js"
WAIT_S = 60


@lru_cache(maxsize=1)
def _prepare():
    """Return why the programs cannot run, or nothing."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        return "node and npm are not on the path"
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=True)
    if int(re.findall(r"\d+", said.stdout)[0]) < 20:
        return f"node is {said.stdout.strip()}, 20 is the oldest that will do"
    lock = (SOURCE / "package-lock.json").read_text("utf-8")
    kept = HERE / "package-lock.json"
    if not (HERE / "node_modules" / "ws").is_dir() or kept.read_text("utf-8") != lock:
        HERE.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SOURCE / name, HERE / name)
        command = [npm, "ci", "--no-audit", "--no-fund", "--loglevel=error"]
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
        if done.returncode:
            return f"npm has no package ws: {done.stderr.strip()[:200]}"
    (COPY / "transport").mkdir(exist_ok=True)
    shutil.copy(ROOT / "transport" / "protocol.json", COPY / "transport")
    for path in SOURCE.glob("*.mjs"):
        shutil.copy(path, HERE / path.name)
    return ""


def programs():
    """Return the folder with the programs, or skip the test."""
    reason = _prepare()
    if reason:
        pytest.skip(reason)
    return HERE


def _words(name, options):
    words = ["node", str(programs() / name)]
    for key, value in options.items():
        values = value if isinstance(value, tuple) else (value,)
        for each in values:
            words += [
                f"--{key}",
                ",".join(map(str, each)) if isinstance(each, list) else str(each),
            ]
    return words


def check(what, vectors):
    """Return in what ``check.mjs`` differs from a file of vectors."""
    words = ["node", str(programs() / "check.mjs"), what, str(vectors)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@contextlib.contextmanager
def verifier(**options):
    """Run ``verifier.mjs``; yield its address."""
    process = subprocess.Popen(
        _words("verifier.mjs", options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = process.stdout.readline().strip()
        assert url, process.stderr.read()
        yield url
        assert process.poll() is None, process.stderr.read()
    finally:
        process.kill()
        process.communicate()


def start_device(url, **options):
    """Start ``device.mjs``; prompts are a tuple of lists."""
    words = _words("device.mjs", options)
    words.insert(2, url)
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process):
    """Return what a device printed, and what it said of an error."""
    try:
        out, err = process.communicate(timeout=WAIT_S)
    finally:
        process.kill()
    return (json.loads(out) if out else None), err.strip()


def device(url, **options):
    """Run ``device.mjs``; return a dict for each stream."""
    streams, error = ended(start_device(url, **options))
    assert not error
    return streams


def cutter(url, every, times):
    """A relay that ends all connections after each ``every`` bytes, ``times`` times."""
    proxy = FaultProxy(int(url.rsplit(":", 1)[1]))
    resets = itertools.cycle((True, False))
    proxy.after([every] * times, lambda: proxy.cut(reset=next(resets)))
    return proxy


def toy_draft(ids, vocab):
    """Return the logits of a draft that is somewhat like the toy target."""
    return logits_after(ids, vocab) + logits_after([*ids, 1], vocab) / 16


def toy_text(prompt, count, *, vocab=256, stops=(), **law):
    """Return what the toy target alone writes, which is the kit's."""
    params = SamplingParams(**{"scheme": "greedy", "temperature": 0.0, **law})

    def row_after(ids):
        return logits_after(ids, vocab)

    return plain_text(row_after, prompt, params, count, vocab, 1 << 20, stops=stops)
