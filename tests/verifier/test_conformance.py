"""The kit for verifiers passes ours, and finds every planted fault in the right row."""

from __future__ import annotations

import dataclasses
import http
import random
import threading
from pathlib import Path

import pytest
from verifier_lab import run, serving

from draftwire.errors import DraftwireError, ProtocolError
from draftwire.sampling import NOISES, Decision, SamplingParams, law_of
from draftwire.sampling.grammar import Rules
from draftwire.sampling.grammar.engine import vocabulary
from draftwire.transport.codec import Codec
from draftwire.transport.messages import (
    Block,
    Commit,
    Error,
    Finish,
    Frame,
    Open,
    Opened,
    Progress,
    Provisional,
)
from draftwire.verifier.dialogue import Dialogue
from draftwire.verifier.kit.checks import CHECKS, prepare
from draftwire.verifier.kit.device_rows import EXERCISES, RULES
from draftwire.verifier.kit.grammar_rows import GRAMMARS
from draftwire.verifier.kit.peer import Kit
from draftwire.verifier.kit.rows import run_rows
from draftwire.verifier.kit.target import (
    KIT_HELLO,
    TOKENIZER,
    KitTarget,
    logits_after,
    text_of,
)
from draftwire.verifier.kit.wire_rows import _INVALID
from draftwire.verifier.serving import connection as connection_module
from draftwire.verifier.serving.accounts import Accounts
from draftwire.verifier.serving.connection import Connection
from draftwire.verifier.serving.limits import Limits
from draftwire.verifier.serving.service import VerifierService
from draftwire.verifier.target_session import TargetSession

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "t" * 20
NAMES = [row.name for row in CHECKS]
NEVER = {"error busy", "errors draining, internal and version", "progress while it works"}
# Rows that every fault is shown, beside its own.
SOME = {
    "text without drafts",
    "right drafts are accepted, wrong ones corrected",
    "length, context and stop ids",
    "error request",
    "idle answers",
    "forwards are counted",
    "resume while it waits",
    *NAMES[-7:],
}


def results_of(
    kind=VerifierService, *, only=NAMES, target=None, long=130, patience_s=1.5, **options
):
    results = []

    async def test():
        backend = target or KitTarget(context=600 if long < 1000 else None)
        accounts = Accounts.of(TOKEN)
        options.setdefault("limits", Limits(progress_s=0.2))
        async with serving(backend, kind=kind, accounts=accounts, **options) as service:
            hello = dataclasses.replace(KIT_HELLO, noise=NOISES, target="")
            kit = Kit(service.url, hello, TOKEN, patience_s=patience_s, long=long)
            await prepare(kit)
            rows = [row for row in CHECKS if row.name in only]
            results.extend(await run_rows(kit, rows))

    run(test)
    return {
        kind: {r.name for r in results if r.result == kind}
        for kind in ("conforms", "fails", "not tested")
    }, results


def test_our_verifier_conforms():
    found, results = results_of(patience_s=60.0)  # a busy machine is no fault of its
    assert found["fails"] == set(), [r for r in results if r.result == "fails"]
    assert found["not tested"] == NEVER
    assert len(set(NAMES)) == len(NAMES) > 60
    assert all(r.detail for r in results if r.result != "conforms")


def test_one_token_a_block_conforms():
    limits = Limits(block=1, progress_s=0.2)
    found, results = results_of(limits=limits, long=40, patience_s=60.0)
    assert found["fails"] == set(), [r for r in results if r.result == "fails"]


def test_a_target_that_is_slow_shows_its_progress():
    gate = threading.Event()

    class Slow(KitTarget):
        def forward(self, batch, on_exit=None):
            gate.wait(0.06)
            return super().forward(batch, on_exit)

    only = {"progress while it works"}
    limits = Limits(progress_s=0.3)
    assert (
        results_of(only=only, target=Slow(context=512), limits=limits)[0]["conforms"]
        == only
    )


# ---- faults: our verifier with one thing changed


def service_with(session=None, connection=None, dialogue=None, **wrong):
    """Return our service, some classes of which have other methods."""
    talk = type("FaultyDialogue", (Dialogue,), dialogue or {})
    methods = {**(connection or {}), "dialogue_class": talk}

    class Faulty(VerifierService):
        connection_class = type("FaultyConnection", (Connection,), methods)

        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.kept.session_class = type("FaultySession", (TargetSession,), session or {})

    for name, method in wrong.items():
        setattr(Faulty, name, method)
    return Faulty


def logits(winner):
    """A session whose target says ``winner(session, row, place, draft)``, if any."""

    def judge(self, work, rows):
        if work.prefill:
            return Decision(0, -1)
        rows, drafts = rows.copy(), [*work.drafts, None]
        at = work.start + len(work.tokens) - work.drafted - self._prompt
        for i, (row, draft) in enumerate(zip(rows, drafts)):
            token = winner(self, row, at + i, draft)
            if token is not None:
                row[token] = 99
        return TargetSession.judge(self, work, rows)

    return {"session": {"judge": judge}}


def near(self, row, place, draft):
    return draft if draft is not None and row[draft] >= row.max() - 0.25 else None


def altered(message, changes):
    """Return a message with other fields, each a value or made of the message."""
    found = {k: v(message) if callable(v) else v for k, v in changes.items()}
    return dataclasses.replace(message, **found)


def opens(_promised=None, **changes):
    """A session that takes an open for another one, or other limits for agreed on."""

    def init(self, request, welcome, **options):
        request = altered(request, changes)
        TargetSession.__init__(self, request, altered(welcome, _promised or {}), **options)

    return {"session": {"__init__": init}}


def blocks(change):
    """A session that takes blocks for others."""
    return {
        "session": {"receive": lambda self, b: TargetSession.receive(self, change(self, b))}
    }


def says(change):
    """A connection that says something else; None is nothing."""

    def send(self, message, stream=0):
        message = change(message)
        if message is not None:
            Connection.send(self, message, stream)

    return {"connection": {"send": send}}


def if_(kind, **changes):
    """Return a change of one kind of message."""

    def change(m):
        if not isinstance(m, kind):
            return m
        return altered(m, changes)

    return change


def without_grammar(self, request, welcome, **options):
    TargetSession.__init__(self, request, welcome, **{**options, "grammar": None})


def forgives(self, block):
    try:
        return TargetSession.receive(self, block)
    except ProtocolError:
        return [Error("request", "never mind", fatal=False)]


def resumes(change):
    """A session that resumes otherwise: ``change(session, position)``."""
    return {
        "session": {"resume": lambda self, position, digest=b"": change(self, position)}
    }


def loses_a_token(self, position):
    found = TargetSession.resume(self, position)
    return dataclasses.replace(found, tokens=found.tokens[:-1])


def mixes(self, message, stream=0):
    Connection.send(
        self, message, 1 if stream == 2 and isinstance(message, Commit) else stream
    )


def draws_it(self, **more):
    TargetSession.detach(self, **more)
    self._tokens.append(1)
    self._hash.extend((1,))


def revives(self, block):
    return dataclasses.replace(block, epoch=self.epoch)


def one_branch(self, block):
    """Put the drafts of a branch that was given up in front of the next one."""
    self.branch.epoch = block.epoch
    return block


def hints(self, work, decision, **more):
    found = TargetSession.settle(self, work, decision, **more)
    return [*found[:0], Provisional(work.epoch, 0, 1), *found] if found else found


def decides(scheme, change):
    """A session that decides otherwise in one scheme, given draws from each row."""

    def judge(self, work, rows):
        found = TargetSession.judge(self, work, rows)
        if self._scheme != scheme or not work.drafted:
            return found
        laws = [
            law_of(row[: self._vocab_size], SamplingParams("qs", 1.0, 6)) for row in rows
        ]
        return change(found, [law.draw(1 - RNG.random()) for law in laws], work.drafted)

    return {"session": {"judge": judge}}


def unmasked(self, work, logits):
    rows = TargetSession._shaped(self, work, logits).copy()
    rows[1:] = logits[1:, : self._vocab_size]
    return rows


def takes_any(self, request):
    try:
        return Dialogue._compiled(self, request)
    except DraftwireError:
        return any_grammar()


def any_grammar():
    words = vocabulary(TOKENIZER, KIT_HELLO.tokenizer.hex())
    return words.compile(GRAMMARS["choices"])


def beside(change):
    """A session that does otherwise with drafts beside a branch; None drops them."""

    def receive(self, block):
        block = change(self, block) if block.instead else block
        return [] if block is None else TargetSession.receive(self, block)

    return {"session": {"receive": receive}}


def of_the_next(self, block):
    """Take what comes late for the next branch, whatever id it stands behind."""
    if not self.branch.behind(block.epoch):
        return block
    return dataclasses.replace(block, epoch=self.epoch, instead=())


RNG = random.Random(3)
BEGIN, LATE = (
    "drafts beside a branch begin the next one",
    "drafts beside a branch that has ended",
)
GIVEN_UP = "a branch that is given up with drafts beside it"
CANNOT = "drafts beside a branch that cannot stand there"
KEPT = "a grammar: drafts change nothing"
FORCED = "a grammar: forced ids are text at once"
INSIDE = "a budget that ends inside a structure says length"
GREEDY, COUPLED = "greedy: drafts change nothing", "coupled, philox: drafts change nothing"
SPARSE = "coupled, sparse: drafts change nothing"
SEED = "seed, sample, temperature, top_k and top_p matter"
RIGHT = "right drafts are accepted, wrong ones corrected"
ENDS = "length, context and stop ids"
BRANCHES = "branches given up, epochs around"
RACE = "a race: decoding on without blocks"
RESUMES = "resume while it waits"
DEAD = "blocks of dead branches"
STREAMS = "several streams at once"
REQUEST = "error request"
OFTEN = "a text hash at least every 256 tokens"
# What is changed, and the rows that fail of those that it is shown: SOME and these.
FAULTS = {
    "accepts any draft at every 11th place": (
        logits(lambda s, row, at, draft: draft if at % 11 == 10 else None),
        {GREEDY, RIGHT},
    ),
    "accepts tokens near the argmax": (logits(near), {GREEDY}),
    "goes wrong after 60": (logits(lambda s, _, at, d: 3 if at > 60 else None), {GREEDY}),
    "goes wrong in races": (
        logits(lambda s, row, at, d: 3 if s.racing and at % 8 == 3 else None),
        {RACE, "a race: drafts change nothing"},
    ),
    "ignores the seed": (opens(seed=0), {COUPLED, SEED}),
    "ignores half of the seed": (opens(seed=lambda r: r.seed % 2**32), {COUPLED, SEED}),
    "ignores the sample": (opens(sample=0), {SEED, "qs: verdicts"}),
    "ignores the noise profile": (opens(noise="philox"), {SPARSE, REQUEST}),
    "ignores top_p": (opens(top_p=1.0), {SEED, COUPLED, REQUEST}),
    "ignores bonus=0": (opens(bonus=True), {"no bonus when it is not wanted"}),
    "does not decode in a race": (opens(objective="cost"), {RACE, "credit"}),
    "races for ever": (
        blocks(lambda self, b: dataclasses.replace(b, race=b.race or self.racing)),
        {"a race: the last block says whether it goes on"},
    ),
    "ignores credit": (opens(credit=0), {"credit"}),
    "ignores stop ids": (opens(stop_ids=()), {ENDS}),
    "does not cut at the context": (
        opens({"context": lambda m: m.context + 1}),
        {ENDS, REQUEST},
    ),
    "says length for stop": (
        says(if_(Commit, finish=lambda m: m.finish and Finish.LENGTH)),
        {ENDS},
    ),
    "judges dead branches": (blocks(revives), {DEAD, BRANCHES}),
    "forgets that a branch ended": (blocks(one_branch), {DEAD, BRANCHES, "idle answers"}),
    "judges half a block": (
        blocks(lambda self, b: dataclasses.replace(b, more=False)),
        {"a block in pieces"},
    ),
    "takes gaps lightly": (
        {"session": {"receive": forgives}},
        {"gaps, repetitions and corrections that nobody wants"},
    ),
    "does not count waiting drafts": (
        opens({"max_waiting": 9999}),
        {"more waiting drafts than max_waiting"},
    ),
    "does not measure blocks": (opens({"max_block": 255}), {"blocks above max_block"}),
    "mixes streams up": ({"connection": {"send": mixes}}, {STREAMS, RESUMES}),
    "leaves a bye unanswered": (
        {"dialogue": {"_goodbye": lambda self, n: self._end(n, park=False)}},
        {"bye is answered, and frees the number", "forwards are counted"},
    ),
    "is never idle": (
        says(lambda m: None if isinstance(m, Progress) else m),
        {"idle answers"},
    ),
    "says that it works while it rests": (
        says(if_(Progress, activity="judging", position=9)),
        {"idle answers", "words of progress are true"},
    ),
    "hashes another text": (
        says(if_(Commit, text_hash=lambda m: m.text_hash and b"\1" * 8)),
        {"text hashes are right"},
    ),
    "ends without a hash": (
        says(if_(Commit, text_hash=lambda m: b"" if m.finish else m.text_hash)),
        {"a text hash at the end"},
    ),
    "hashes the end alone": (
        says(if_(Commit, text_hash=lambda m: m.text_hash if m.finish else b"")),
        {OFTEN},
    ),
    "counts one forward more": (
        says(if_(Commit, forwards=lambda m: 9)),
        {"forwards are counted"},
    ),
    "repeats a token on resume": (
        resumes(lambda s, p: TargetSession.resume(s, max(0, p - 1))),
        {RESUMES, "resume after lost commits"},
    ),
    "loses a token on resume": (
        resumes(loses_a_token),
        {"resume after lost commits", "text hashes are right"},
    ),
    "draws what the device owes": (
        {"session": {"detach": draws_it}},
        {"resume where a correction is owed", RESUMES},
    ),
    "resumes whatever the device holds": (
        resumes(TargetSession.resume),
        {"no resume for a wrong secret, id, place or text"},
    ),
    "sends hints that nobody wants": (
        {"session": {"settle": hints}},
        {"provisional verdicts where they are wanted"},
    ),
    "ends connections for streams": (
        says(if_(Error, fatal=True)),
        {REQUEST, "an error of a stream ends that stream alone"},
    ),
    "accepts every draft of residual": (
        decides("residual", lambda found, p, n: Decision(n, p[n])),
        {"residual: verdicts"},
    ),
    "accepts no draft of qs": (
        decides("qs", lambda found, p, n: Decision(0, p[0])),
        {"qs: verdicts"},
    ),
    "corrects from the target's own distribution": (
        decides("qs", lambda found, p, n: Decision(found[0], p[found[0]])),
        {"qs: verdicts"},
    ),
    "ignores the grammar": (
        {"session": {"__init__": without_grammar}},
        {KEPT, FORCED, INSIDE},
    ),
    "forces nothing": (opens(forced=False), {FORCED, INSIDE}),
    "masks nothing behind a draft": ({"session": {"_shaped": unmasked}}, {KEPT, FORCED}),
    "says that a structure is whole": (
        says(if_(Commit, finish=lambda m: m.finish and Finish.STOP)),
        {INSIDE, ENDS},
    ),
    "has a grammar for everything": (
        {"dialogue": {"_compiled": takes_any}},
        {"grammars that are not known, cannot be used, or of another engine"},
    ),
    "keeps nothing beside a branch": (
        beside(lambda self, b: None),
        {BEGIN, LATE, CANNOT},
    ),
    "keeps drafts behind another id": (
        beside(lambda self, b: altered(b, {"instead": (b.instead[0], 0)})),
        {BEGIN, LATE, CANNOT},
    ),
    "drops what comes late": (
        beside(lambda self, b: None if self.branch.behind(b.epoch) else b),
        {LATE},
    ),
    "judges all that comes late": (beside(of_the_next), {LATE}),
    "holds to the branch that it began": (
        blocks(
            lambda self, b: altered(b, {"epoch": b.epoch - (b.epoch == self.epoch + 1)})
        ),
        {GIVEN_UP, BRANCHES},
    ),
    "uses one secret for all": (
        says(if_(Opened, secret=lambda m: m.secret and b"s" * 16)),
        {"ids and secrets", RESUMES},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_shows_in_its_rows(fault):
    changes, rows = FAULTS[fault]
    long = 300 if rows == {OFTEN} else 130
    shown = SOME | rows | ({GREEDY} if rows == {OFTEN} else set())
    found, results = results_of(service_with(**changes), only=shown, long=long)
    assert found["fails"] == rows, [r for r in results if r.result == "fails"]


def test_one_token_in_a_thousand_is_enough():
    wrong = service_with(**logits(lambda s, row, at, d: 3 if at == 777 else None))
    assert results_of(wrong, only={GREEDY}, long=2000)[0]["fails"] == {GREEDY}


def test_the_document_has_every_row_and_the_vectors():
    document = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    lines = [line for line in document.splitlines() if line.startswith("| ")]
    cells = [line.strip("| ").partition(" | ")[2] for line in lines]
    found = {name for cell in cells for name in cell.split(" · ")}
    assert {row.name for row in (*CHECKS, *EXERCISES, *RULES)} <= found
    plain = Open((1, 0, 1, 1), "greedy", 0.0, 0, 1.0, 0, 12)
    coupled = dataclasses.replace(plain, scheme="coupled", temperature=0.9, seed=7)
    sparse = dataclasses.replace(coupled, noise="sparse", sample=1)
    stock = [dataclasses.replace(coupled, noise=noise) for noise in NOISES[2:]]
    vectors = [text_of(request, 12, 512) for request in (plain, coupled, sparse, *stock)]
    words = vocabulary(TOKENIZER, KIT_HELLO.tokenizer.hex())
    pairs = [(a + b).encode() for a in '"{}:,[]0123abcde' for b in '"{}:,[]0123abcde']
    every = [*(bytes([i]) for i in range(256)), *pairs]
    said = [words.bytes_of(i) for i in range(words.size)]
    assert said[:255] + said[256:] == every[:255] + every[256:]  # 0xff is no text to it
    rules = Rules(words.compile(GRAMMARS["a schema"]), 512)
    plain, coupled = (dataclasses.replace(r, max_new_tokens=99) for r in (plain, coupled))
    vectors += [text_of(request, 99, 512, rules) for request in (plain, coupled)]
    vectors += [rules.guide(0).path().ids]
    vectors += [(logits_after(ids)[:8] * 32).astype(int) for ids in ([1, 0, 1, 1], [7])]
    assert {" ".join(map(str, vector)) for vector in vectors} <= found


# ---- faults of the door, the greeting and the codec

DOOR, TERMS = "token", "capabilities and noise are negotiated"
SMALLER = "smaller vocabulary, other backbone"
SECRET = "no resume for a wrong secret, id, place or text"
GREETINGS = {
    "has capabilities nobody offered": ({"capabilities": ("teleport",)}, {TERMS}),
    "has noise nobody offered": ({"noise": ("philox", "sparse")}, {TERMS}),
    "keeps its own vocabulary": ({"vocab_size": 512}, {SMALLER}),
    "is always family": ({"compatibility": "family"}, {SMALLER}),
    "cannot say greedy": ({"schemes": ("coupled",)}, {"welcome"}),
}


@pytest.mark.parametrize("fault", GREETINGS)
def test_a_fault_of_the_greeting_shows_in_its_rows(fault, monkeypatch):
    changes, rows = GREETINGS[fault]
    right = connection_module.welcome_to

    def wrong(*terms, **more):
        return dataclasses.replace(right(*terms, **more), **changes)

    monkeypatch.setattr(connection_module, "welcome_to", wrong)
    assert results_of(only={TERMS, SMALLER, "welcome", DOOR})[0]["fails"] == rows


def test_a_door_that_stands_open_and_a_secret_that_is_not_compared():
    class Open(VerifierService):
        def _before_upgrade(self, socket, request):
            answer = super()._before_upgrade(socket, request)
            if answer is not None and answer.status_code == http.HTTPStatus.UNAUTHORIZED:
                socket.account_usage = self.accounts.all[0]
                return None
            return answer

    class Trusting(VerifierService):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            find = self.kept._find

            def trusting(request, *more):
                stream = self.kept._known.get(request.id)
                secret = stream.secret if stream else request.secret
                return find(dataclasses.replace(request, secret=secret), *more)

            self.kept._find = trusting

    for kind, row in ((Open, DOOR), (Trusting, SECRET)):
        assert results_of(kind, only={DOOR, SECRET, "welcome"})[0]["fails"] == {row}


def test_a_codec_that_takes_anything(monkeypatch):
    class Sloppy(Codec):
        def decode(self, data, note=None):
            try:
                return super().decode(data, note)
            except ProtocolError:
                return Frame(0, Block(0, 0, ()), len(data))

    monkeypatch.setattr(connection_module, "Codec", Sloppy)
    rows = {name for _, name, _ in _INVALID} - {"messages of the other way"}
    found = results_of(only=rows | {"welcome"}, patience_s=0.5)[0]
    assert found["fails"] == rows
