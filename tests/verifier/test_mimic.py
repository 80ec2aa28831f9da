"""The kit for devices passes ours, and finds every planted fault in the right row."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest

import draftwire
from draftwire.cli import main
from draftwire.errors import BusyError, ProtocolError
from draftwire.io import environment
from draftwire.runtime import driver as driver_module
from draftwire.runtime.driver import Driver
from draftwire.runtime.edge.actions import Token
from draftwire.runtime.edge.in_flight import InFlight, _Branch
from draftwire.runtime.edge.machine import EdgeSession
from draftwire.transport.codec import Codec
from draftwire.transport.messages import Block, Commit, Grammar, Open, Resume
from draftwire.transport.wire import WebsocketWire
from draftwire.verifier.kit.device_rows import EXERCISES, RULES
from draftwire.verifier.kit.mimic import Mimic
from draftwire.verifier.kit.rows import Failed, run_rows

pytest.importorskip("onnxruntime")
DRAFT = "tests/fixtures/tiny.draft"
GRAMMAR = {
    "a grammar that the verifier has forgotten",
    "grammars are sent before the opens that name them, once",
}
TEXT, END = "a text from open to end", "nothing is sent after the end"


# A race that sends them; a busy machine is no reason to give the text up.
RACE_BESIDE = {
    "objective": "latency",
    "preempt": "guess,exits,outcomes",
    "max_new_tokens": 40,
    "patience_s": 20.0,
}


class Patient(Mimic):
    """A busy machine is no fault: a device that is at work may take its time to come."""

    working = None  # the device, while it is at work

    def _patience(self):
        return self.asked_s if self.upgrades else 60.0

    patience_s = property(_patience, lambda self, s: setattr(self, "asked_s", s))

    def text(self):
        self.working = None
        return super().text()

    async def raw_connection(self):
        while self.working is None:
            await asyncio.sleep(0.001)
        comes = asyncio.ensure_future(self._links.get())
        ends = asyncio.FIRST_COMPLETED
        await asyncio.wait([comes, self.working], timeout=60, return_when=ends)
        if not comes.done():
            comes.cancel()
            raise Failed("no device came")
        return comes.result()


def results_of(only=None, wait_s=2.0, linger_s=0.0, **options):
    results = []
    options = {"max_new_tokens": 20, "patience_s": 0.8, "pipeline": 3, **options}
    options = {"objective": "cost", "preempt": "guess,exits", **options}

    def ask(url):
        try:
            with draftwire.connect(url, draft=DRAFT, silence_s=15) as session:
                for _ in session.generate([1, 2, 3], **options):
                    pass
                time.sleep(linger_s)
        except draftwire.DraftwireError:
            pass  # what it sent is judged

    async def test():
        async def device(url):
            mimic.working = asyncio.get_running_loop().run_in_executor(None, ask, url)
            await mimic.working

        mimic = Patient(device, patience_s=wait_s, grace_s=20.0)
        async with mimic.listening():
            rows = [row for row in EXERCISES if only is None or row.name in only]
            results.extend(await run_rows(mimic, rows, around=mimic.text))
            results.extend(await run_rows(mimic, RULES))

    asyncio.run(test())
    kinds = ("conforms", "fails", "not tested")
    return {k: {r.name for r in results if r.result == k} for k in kinds}, results


def test_our_device_conforms():
    found, results = results_of()
    assert found["fails"] == set(), [r for r in results if r.result == "fails"]
    # It gives a first connection up, and hangs up when its text is over: as it may.
    # Only in a race it drafts beside its branch.
    mays = {"link lost before the welcome", END, *GRAMMAR, BESIDE, STAND}
    assert found["not tested"] <= mays
    assert len(found["conforms"]) > 40


@pytest.mark.parametrize(
    "options",
    [
        {"scheme": "separate", "temperature": 0.8, "seed": 4, "top_k": 8},
        {"objective": "latency", "temperature": 0.8, "seed": 4},
    ],
)
def test_our_device_conforms_with_evidence_and_in_races(options):
    only = {TEXT, "blocks of one token", "link lost while a verdict is owed", COMMIT}
    found, results = results_of(only, preempt="guess", **options)
    assert found["fails"] == set(), [r for r in results if r.result == "fails"]


def test_our_device_conforms_with_drafts_beside_a_branch():
    found, results = results_of({BESIDE}, **RACE_BESIDE)
    assert found["fails"] == set() and found["conforms"] >= {BESIDE, STAND}, results


def test_our_device_sends_a_grammar_before_it_names_it(monkeypatch):
    pytest.importorskip("llguidance")
    found, results = results_of(GRAMMAR, choice=["ab", "cd"])
    assert found["fails"] == set() and found["conforms"] >= GRAMMAR, results
    owner, name, method = sends(lambda _, m: None if isinstance(m, Grammar) else m)
    monkeypatch.setattr(owner, name, method)
    found, results = results_of(GRAMMAR, choice=["ab", "cd"])
    assert found["fails"] == GRAMMAR - {"a grammar that the verifier has forgotten"}


# ---- faults: our device with one method changed


def sends(change):
    """A wire that sends something else, given the wire and the message."""

    def put(self, message, stream):
        message = change(self, message)
        return 0 if message is None else WIRE_PUT(self, message, stream)

    return WebsocketWire, "_put", put


WIRE_PUT, WIRE_MESSAGE = WebsocketWire._put, WebsocketWire._message
NEXT, TURN, ADVANCE = InFlight._next, InFlight.turn, _Branch.advance
LINK_UP, LIMITS, RESUMED = EdgeSession.link_up, EdgeSession.limits, EdgeSession._resumed
DECODE, FIELD, HOLD = Codec.decode, Codec._field, Driver._hold


def of(kind, **changes):
    def change(_, m):
        if not isinstance(m, kind):
            return m
        return dataclasses.replace(
            m, **{k: v(m) if callable(v) else v for k, v in changes.items()}
        )

    return sends(change)


def keeps_its_epoch(self, branch):
    self._branch, self.adopted = branch, 0


def two_epochs(self, branch):
    NEXT(self, branch)
    self.epoch = (self.epoch + 1) & 0xFF


def begins_with_nothing(self, kept, committed, most):
    heir = ADVANCE(self, kept, committed, most)
    return heir and type(self)()


def turns_by_one(self):
    before = self.epoch
    given_up = TURN(self)
    self.epoch = (before + (self.epoch != before)) & 0xFF
    return given_up


def held(**changes):
    """A machine that opens another stream where it should go on with an old one."""

    def link_up(self, *, resume):
        actions = LINK_UP(self, resume=resume)
        for action in actions:
            message = getattr(action, "message", None)
            if isinstance(message, Open):
                more = {k: v(self, message) for k, v in changes.items()}
                object.__setattr__(action, "message", dataclasses.replace(message, **more))
        return actions

    return EdgeSession, "link_up", link_up


def believes(self, hint):
    return self._keep([Token(hint.token, "hint")])


def here(self, message):
    """Return a resumed that begins where the machine is, and is not too long."""
    position = len(self._committed) - self._origin
    tokens = message.tokens[: self._limit - len(self._committed) - 1]
    return dataclasses.replace(message, position=position, tokens=tokens)


def after_the_end(self, data):
    WIRE_MESSAGE(self, data)
    stream, message, _ = self._codec.decode(data)
    if isinstance(message, Commit) and message.finish:
        later = self._network.loop.call_later
        later(0.25, WIRE_PUT, self, Block(0, 0, ()), stream)


def lenient(self, data, note=None):
    for end in (b"", *(b"\0" * n for n in range(1, 12))):
        try:
            return DECODE(self, data + end, note)
        except ProtocolError as error:
            last = error
    raise last


def skips_all(self, reader, layout, found, note):
    at = reader.at
    try:
        FIELD(self, reader, layout, found, note)
    except ProtocolError:
        reader.at = at
        reader.varint(2**16, "tag")
        reader.take(reader.varint(2**23, "length"))


BRANCHES, PLACES = (
    "each branch has the next number",
    "blocks begin where the last one ended",
)
BESIDE, STAND = (
    "drafts beside a branch",
    "drafts beside a branch stand where they may",
)
SMALL = "blocks of at most 3, of which 5 may wait"
COMMIT = "link lost after a commit"
BUSY = "busy: not before retry_after_ms"
ANEW = "a resume that is not granted: the stream is opened anew"
PROGRESS = "words of progress while nothing is judged"
LIES = "provisional verdicts that lie"
WRONG_HASH, WRONG_TEXT = "a wrong text hash", "resumed with another text"
ELSEWHERE, TOO_MANY = "resumed at another place", "resumed with too many tokens"


def limits(block=None, waiting=None):
    def wrong(self, most, wait, *more):
        return LIMITS(self, block or most, waiting or wait, *more)

    return EdgeSession, "limits", wrong


# What is changed, and the rows that fail. It is shown those, one text, and SMALL where it
# minds sizes.
FAULTS = {
    "keeps its epoch": ((InFlight, "_next", keeps_its_epoch), {BRANCHES}),
    "counts branches twice": ((InFlight, "_next", two_epochs), {BRANCHES}),
    "leaves gaps": (of(Block, base=lambda m: m.base + 2 * (m.base > 9)), {PLACES}),
    # it contradicts the text, and ends its branch without knowing
    "begins early": (of(Block, base=lambda m: m.base - (m.base > 9)), {BRANCHES}),
    "does not measure blocks": (limits(block=255), {"no block above max_block"}),
    "does not count what waits": (limits(waiting=255), {"no more waits than max_waiting"}),
    "sends half of the evidence": (
        of(Block, evidence=lambda m: m.evidence[:-1]),
        {"its evidence can be read"},
    ),
    "sends what verifiers say": (
        sends(lambda _, m: Commit(0, 0, 1) if isinstance(m, Block) else m),
        {"its messages come where they belong"},
    ),
    "goes on after the end": ((WebsocketWire, "_message", after_the_end), {END}),
    "resumes with another secret": (of(Resume, secret=bytes(16)), {COMMIT}),
    "resumes elsewhere": (of(Resume, position=lambda m: m.position - 1), {COMMIT}),
    "resumes without a hash": (of(Resume, text_hash=b""), {COMMIT}),
    "opens anew without its text": (held(prompt=lambda self, m: self._prompt), {ANEW}),
    "opens anew for all": (held(max_new_tokens=lambda self, m: self._limit), {ANEW}),
    "asks again at once": (
        (Driver, "_hold", lambda self, run, e: HOLD(self, run, BusyError(str(e)))),
        {BUSY},
    ),
    "does not hear progress": ((driver_module, "Progress", type("No", (), {})), {PROGRESS}),
    "believes hints": ((EdgeSession, "_provisional", believes), {LIES}),
    "compares no hashes": (
        (EdgeSession, "_compare", lambda self, text_hash: None),
        {WRONG_HASH, WRONG_TEXT},
    ),
    "clips what was accepted": (
        (InFlight, "reach", lambda self, e, n: min(n, len(self.marked(e)[1]))),
        {"more accepted than was sent"},
    ),
    "goes on from anywhere": (
        (EdgeSession, "_resumed", lambda self, m: RESUMED(self, here(self, m))),
        {ELSEWHERE, TOO_MANY},
    ),
    "skips what it must understand": (
        (Codec, "_field", skips_all),
        {"a field that must be understood"},
    ),
    "begins with nothing of what is beside": (
        (_Branch, "advance", begins_with_nothing),
        {PLACES},
    ),
    "gives one number up beside drafts": ((InFlight, "turn", turns_by_one), {BRANCHES}),
    "leaves gaps beside": (
        of(
            Block,
            base=lambda m: m.base + bool(m.instead),
            instead=lambda m: m.instead and (m.instead[0] + 1, m.instead[1]),
        ),
        {STAND},
    ),
    "fills up what is cut": ((Codec, "decode", lenient), {"a frame cut short"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_shows_in_its_rows(fault, monkeypatch):
    change, rows = FAULTS[fault]
    only = {TEXT} | rows | ({SMALL} if "limits" in change else set())
    monkeypatch.setattr(*change)
    scheme = {"scheme": "qs", "temperature": 0.8, "seed": 4} if "evidence" in fault else {}
    if "beside" in fault:
        only, scheme = {BESIDE}, RACE_BESIDE
    found, results = results_of(only, 1.2, 0.5 * (END in rows), **scheme)
    # Of two texts in one stream the places of blocks tell as well, sooner or later.
    assert rows <= found["fails"] <= rows | {PLACES}, results


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_who_ends_the_kit_ends_its_device_and_blames_it_for_nothing(number, tmp_path):
    """A terminal sends Ctrl-C to all that runs in it; the device is not one of them."""
    note = tmp_path / "pid"
    device = f"echo $$ > {note}.new; mv {note}.new {note}; exec sleep 600"
    words = ["verifier", "check", "--device", "--", "sh", "-c", device]
    process = subprocess.Popen(
        [sys.executable, "-m", "draftwire", *words],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # As nohup starts it: SIGHUP is not ours then.
        preexec_fn=lambda: (
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            if number == signal.SIGTERM
            else None
        ),
    )
    while not note.exists():
        assert process.poll() is None
        time.sleep(0.01)
    if number == signal.SIGTERM:
        os.killpg(process.pid, signal.SIGHUP)
        time.sleep(0.2)
        assert process.poll() is None
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, "")
    if number == signal.SIGINT:
        assert "may conform" in out and "0 fail" in out and "then interrupted" in out
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


@pytest.mark.parametrize(
    "command", ["/no/such", "nosuchcommand", "tests", DRAFT + "/draft.json"]
)
def test_a_device_that_cannot_be_run_is_no_row_that_waits(command, capsys):
    assert main(["verifier", "check", "--device", "--", command, "{url}"]) == 2
    assert f"cannot run {command}" in capsys.readouterr().err
