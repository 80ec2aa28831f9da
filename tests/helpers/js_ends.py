"""The ends of examples/js as processes, and what the toy target of theirs says.

The texts are computed by ``plain_sampling``, which shares no line with either side.
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

import plain_sampling
import pytest
from plain_sampling import G, mix
from tools.faults import FaultProxy

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


def _byte(word, token):
    return mix(word + (token + 1) * G) >> 56


def _state(ids):
    return mix(((ids[-2] if len(ids) > 1 else 0) << 32) + ids[-1])


@lru_cache(maxsize=4096)
def _row(a, b, vocab):
    word = _state([a, b])
    return [_byte(word, i) / 32 for i in range(vocab)]


def toy_target(ids, vocab):
    """Return the logits of the toy target after ``ids``."""
    return _row(*[0, *ids][-2:], vocab)


def toy_draft(ids, vocab):
    """Return the logits of the toy draft after ``ids``."""
    other = _state(ids) + 1
    return [x + _byte(other, i) / 512 for i, x in enumerate(toy_target(ids, vocab))]


def toy_text(prompt, count, *, vocab=256, stops=(), **law):
    """Return what the toy target alone writes: greedy, or coupled with ``law``."""
    sequence = list(prompt)
    while len(sequence) < len(prompt) + count:
        sequence.append(_draw(toy_target(sequence, vocab), len(sequence), **law))
        if sequence[-1] in stops:
            break
    return sequence[len(prompt) :]


def _draw(
    logits,
    t,
    scheme="greedy",
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    seed=0,
    noise="philox",
    sample=0,
):
    if scheme == "greedy":
        return logits.index(max(logits))
    ids, probs = plain_sampling.distribution(logits, temperature, top_k, top_p)
    times = getattr(plain_sampling, noise + "_noise")(seed, t, len(logits), sample)
    return plain_sampling.coupled(ids, probs, times)
