"""Plants faults in a copy of the project and asks the nearest tests whether they see them.

    python tests/helpers/mutants.py [WORDS ...]   # those whose name has all of the words

Each was a fault that once went unseen. A mutant that survives is a hole in the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    tests: str  # pytest's arguments


MUTANTS = (
    Mutant(
        "epochs do not wrap",
        "runtime/edge/in_flight.py",
        "self.epoch = (self.epoch + 1) & 0xFF",
        "self.epoch = self.epoch + 1",
        "tests/laws/test_histories.py::test_long_histories",
    ),
    Mutant(
        "the verifier's cached length is not held below the text",
        "verifier/target_session.py",
        "        self.cached = min(self.cached, len(self._tokens) - 1)\n",
        "",
        "tests/laws/test_histories.py::test_histories",
    ),
    Mutant(
        "a word that was looked up is text without a verdict",
        "verifier/target_session.py",
        "        kept = drafted[: decision.accepted]\n",
        "        kept = drafted[: decision.accepted]\n"
        "        if work.found and decision.accepted == work.drafted - work.found:\n"
        "            kept = drafted[: decision.accepted + 1]\n",
        "tests/laws/test_histories.py::test_histories",
    ),
    Mutant(
        "an exit is believed whatever the draft says",
        "runtime/edge/preemption.py",
        "doubted = denies and (odds < 1 or self._wire.whole)",
        "doubted = denies and self._wire.whole",
        "tests/runtime/test_trust.py",
    ),
    Mutant(
        "a race fills two forwards with what hardly any text reaches",
        "verifier/target_session.py",
        "most = _SPAN if not self.racing else max(1, self.widest - unread)",
        "most = _SPAN",
        "tests/verifier/test_patience.py -k fits_one_forward",
    ),
    Mutant(
        "what a leaf leaves to be read again does not count",
        "verifier/target_session.py",
        "max(1, self.widest - unread)",
        "max(1, self.widest - 1)",
        "tests/verifier/test_patience.py -k fits_one_forward",
    ),
    Mutant(
        "a board leaves a forward of many tokens for another outcome",
        "runtime/edge/machine.py",
        "heard = self.more > 0 and",
        "heard = self.more < 0 and",
        "tests/runtime/test_rest.py -k heard_out",
    ),
    Mutant(
        "a hush does not know that a forward was held back",
        "runtime/edge/rest.py",
        "self._took_s.get(ready, took_s)",
        "took_s",
        "tests/runtime/test_rest.py -k foreseen",
    ),
    Mutant(
        "a board that gives up a branch takes a number that the verifier may have taken",
        "runtime/edge/in_flight.py",
        "for _ in range(1 + (len(branch.sides) > 0)):",
        "for _ in range(1):",
        "tests/verifier/test_sides.py -k leaves_out",
    ),
    Mutant(
        "drafts behind an id that the text takes elsewhere begin the next branch",
        "verifier/branch.py",
        "self._ended == (block.base - back, token)",
        "self._ended is not None and self._ended[1] == token",
        "tests/verifier/test_sides.py -k it_began",
    ),
    Mutant(
        "news of one token void as much as those of many",
        "runtime/edge/rest.py",
        "right ** min(ahead, self._reach) < _WORTH",
        "right**ahead < _WORTH",
        "tests/runtime/test_rest.py -k one_token",
    ),
    Mutant(
        "a hint does not end a hush",
        "runtime/driver.py",
        "isinstance(message, (Commit, Provisional))",
        "isinstance(message, Commit)",
        "tests/runtime/test_rest.py",
    ),
    Mutant(
        "patience asks nobody for credit",
        "verifier/patience.py",
        "    end_s = min(now_s + forward_s, *(stream.due_s for stream in streams))\n",
        "    end_s = now_s + forward_s\n",
        "tests/verifier/test_patience.py -k credit_alone",
    ),
    Mutant(
        "a forward that is held back is forgotten",
        "verifier/scheduler.py",
        "self.clock.call_at(until_s, partial(self._begin, late=True))",
        "self.clock.call_at(until_s, lambda: None)",
        "tests/laws/test_histories.py::test_histories",
    ),
    Mutant(
        "leaving an iteration cancels nothing",
        "runtime/stream.py",
        "            self.cancel()\n            if self._over.wait",
        "            if self._over.wait",
        "tests/laws/test_live_streams.py",
    ),
    Mutant(
        "a new order waits for the old one's end",
        "runtime/drafter.py",
        "        if self._inbox:\n            self._take_orders()",
        "        if not any(lane.left for lane in self._lanes):\n"
        "            self._take_orders()",
        "tests/runtime/test_link.py -k overtake",
    ),
    Mutant(
        "the governor looks at new blocks only",
        "runtime/pacing/auto.py",
        "if not self.governor.allows(costs.draft_s, costs.draft_w):",
        "if False:",
        "tests/runtime/test_controller_policies.py",
    ),
    Mutant(
        "pauses without jitter",
        "runtime/link.py",
        "self._rng.uniform(0.5, 1.0)",
        "1.0",
        "tests/runtime/test_link.py -k jitter",
    ),
    Mutant(
        "a handshake makes the pauses short again",
        "runtime/link.py",
        "        self._attempts = 0\n        self.reconnects += again",
        "        self._attempts = 0\n        self._pause_s = _FIRST_PAUSE_S\n"
        "        self.reconnects += again",
        "tests/runtime/test_link.py -k handshake",
    ),
    Mutant(
        "the device resumes at any position",
        "runtime/edge/machine.py",
        "if message.position != held:",
        "if False:",
        "tests/runtime/test_sessions.py -k resume",
    ),
    Mutant(
        "patience counts from the connection, not from progress",
        "runtime/driver.py",
        "        run.wire, run.welcome, run.asked = number, welcome, False\n",
        "        run.wire, run.welcome, run.asked = number, welcome, False\n"
        "        run.progress_s = self._clock.now()\n",
        "tests/laws/test_histories.py -k full_verifier",
    ),
    Mutant(
        "an error of this side says no goodbye",
        "runtime/driver.py",
        "                self._send(run, action.message)\n            elif",
        "                pass\n            elif",
        "tests/laws/test_histories.py -k our_own",
    ),
    Mutant(
        "a proposal of the stream before counts",
        "runtime/drafter.py",
        "            elif word.stream == self.stream and self._lanes:",
        "            elif self._lanes:",
        "tests/runtime/test_link.py -k another_stream",
    ),
    Mutant(
        "drafts that died unjudged are never sent again",
        "runtime/edge/machine.py",
        "if hand.start > len(wire.tokens):",
        "if False:",
        "tests/laws/test_histories.py::test_histories",
    ),
    Mutant(
        "forwards whose verdict was lost are not counted",
        "verifier/target_session.py",
        "            self.counts.forwards += forwards\n",
        "            pass\n",
        "tests/laws/test_histories.py -k report",
    ),
)


NOT_COPIED = shutil.ignore_patterns(".*", "out", "build", "dist", "shared", "__pycache__")


def survives(mutant: Mutant) -> str:
    """Return why ``mutant`` is alive; "" when a test fails as it should."""
    with tempfile.TemporaryDirectory(prefix="draftwire-mutant-") as name:
        folder = Path(name) / "project"
        shutil.copytree(ROOT, folder, symlinks=True, ignore=NOT_COPIED)
        path = folder / mutant.file
        text = path.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            return f"its place in {mutant.file} was found {text.count(mutant.old)} times"
        path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        tests, _, words = mutant.tests.partition(" -k ")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        command += [tests, "-m", "not slow", *(["-k", words] if words else ())]
        place = {"PYTHONPATH": str(folder / "src"), "DRAFTWIRE_HISTORIES": "400"}
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **place},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if done.returncode == 1:
            return ""
        tail = done.stdout.decode("utf-8", "replace")[-800:]
        return f"pytest ended with {done.returncode}\n{tail}"


def main(words: list[str]) -> int:
    """Try the mutants; return how many live."""
    alive = 0
    for mutant in MUTANTS:
        if all(word in mutant.name for word in words):
            why = survives(mutant)
            print(f"{'ALIVE' if why else 'dead '}  {mutant.name}  {why}", flush=True)
            alive += bool(why)
    return alive


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
