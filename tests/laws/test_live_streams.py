"""Streams as their users hold them: many at once, cancelled, broken, without a verifier.

Real processes and sockets, the tiny family of the fixtures.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from tools.faults import FaultProxy

import draftwire
from draftwire.bench.child import VerifierProcess
from draftwire.errors import DraftwireError, ModelError, TransportError

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
DRAFT = FIXTURES / "tiny.draft"
PROMPTS = [[5, 17, 3, 99, 41], [7, 8, 9], [120, 4], [33, 2, 61, 10]]
TOKENS = 60
SHARED = "the draft model was at work for another stream"


@pytest.fixture(scope="module")
def verifier():
    found = VerifierProcess([FIXTURES / "tiny.target"])
    found.start()
    yield found
    found.kill()


@pytest.fixture
def url(verifier):
    return f"ws://127.0.0.1:{verifier.port}"


@pytest.fixture
def session(url):
    with draftwire.connect(url, draft=DRAFT, silence_s=15.0) as found:
        yield found


@pytest.fixture(scope="module")
def expected(verifier):
    with draftwire.connect(f"ws://127.0.0.1:{verifier.port}", draft=DRAFT) as session:
        return [ids(session.generate(p, **how(n))) for n, p in enumerate(PROMPTS)]


def how(number):
    return {"max_new_tokens": TOKENS, "temperature": 0.8 * (number % 2), "seed": number}


def ids(stream):
    return [token.id for chunk in stream for token in chunk.tokens]


class Slow:
    """The draft model, slow enough that streams overlap; or broken, as a test wants."""

    def __init__(self, model, wait_s=0.002):
        self._model, self._wait_s = model, wait_s
        self.trouble = []  # what the next steps do in place of a forward

    @property
    def length(self):
        return self._model.length

    def rewind(self, length):
        self._model.rewind(length)

    def forward(self, tokens):
        time.sleep(self._wait_s)
        logits = self._model.forward(tokens)
        return self.trouble.pop(0)(logits) if self.trouble else logits


def slowly(session):
    slow = Slow(session._drafter._model)
    session._drafter._model = slow
    return slow


def check_shared(streams, found, expected):
    assert found == expected
    assert [s.finish for s in streams] == ["length"] * 4
    for stream, wanted in zip(streams, expected):
        assert stream.report["token_ids"] == wanted == [t.id for t in stream.tokens]
        assert stream.report["text"] == stream.text
        assert stream.report["link"]["reconnects"] == 0
    shared = [s for s in streams if any(SHARED in w for w in s.report["warnings"])]
    assert len(shared) == 3  # all but the one that began first


def test_four_streams_from_threads(session, expected):
    slowly(session)
    streams, found = [None] * 4, [None] * 4
    begun = threading.Barrier(4)

    def one(number):
        streams[number] = session.generate(PROMPTS[number], **how(number))
        begun.wait(60)
        found[number] = ids(streams[number])

    threads = [threading.Thread(target=one, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    check_shared(streams, found, expected)


async def test_four_streams_from_coroutines(url, expected):
    async with draftwire.aio.connect(url, draft=DRAFT) as session:
        slowly(session)
        streams = [session.generate(p, **how(n)) for n, p in enumerate(PROMPTS)]

        async def one(stream):
            return [token.id async for chunk in stream for token in chunk.tokens]

        found = await asyncio.gather(*map(one, streams))
        check_shared(streams, found, expected)


def test_cancelling_one_touches_no_other(session, expected):
    slowly(session)
    streams = [session.generate(p, **how(n)) for n, p in enumerate(PROMPTS)]
    streams[0].cancel()  # the one that the draft model works for
    streams[2].cancel()
    assert ids(streams[1]) == expected[1] and ids(streams[3]) == expected[3]
    for number in (0, 2):
        found = ids(streams[number])
        assert streams[number].finish == "cancelled"
        assert found == expected[number][: len(found)] and len(found) < TOKENS
    assert ids(session.generate(PROMPTS[0], **how(0))) == expected[0]


def test_a_cancel_before_the_first_token_counts(session, expected):
    for _ in range(5):
        stream = session.generate(PROMPTS[0], **how(0))
        stream.cancel()
        assert len(ids(stream)) < TOKENS
        assert stream.finish == stream.report["finish"] == "cancelled"
        stream.cancel()  # as often as you like
    assert ids(session.generate(PROMPTS[0], **how(0))) == expected[0]


async def test_leaving_an_iterator_cancels(session, url, expected):
    slowly(session)
    stream = session.generate(PROMPTS[0], **how(0))
    for _ in stream:
        break
    assert stream.finish == stream.report["finish"] == "cancelled"
    with pytest.raises(ZeroDivisionError):
        for _ in (stream := session.generate(PROMPTS[0], **how(0))):
            raise ZeroDivisionError
    assert stream.finish == "cancelled"
    assert ids(session.generate(PROMPTS[1], **how(1))) == expected[1]

    async with draftwire.aio.connect(url, draft=DRAFT) as twin:
        slowly(twin)
        stream = twin.generate(PROMPTS[0], **how(0))
        async for _ in stream:
            break
        while stream.finish is None:
            await asyncio.sleep(0.01)
        assert stream.finish == "cancelled"


def test_tokens_end_where_the_text_does(session, expected):
    """A stop string: text, tokens, ids of the report and its count are of one length."""
    whole = session.generate(PROMPTS[0], **how(0))
    assert ids(whole) == expected[0]
    text = whole.text
    for begin in range(4, len(text) - 4, 7):
        stop = text[begin : begin + 4]
        stream = session.generate(PROMPTS[0], **how(0), stop=[stop])
        seen = ids(stream)
        kept = text[: text.index(stop)]
        assert stream.text == stream.report["text"] == kept
        # Chunks may have had tokens whose text was held back: a stop string might begin.
        found = stream.report["token_ids"]
        assert found == [t.id for t in stream.tokens] == seen[: len(found)]
        seen = found
        assert seen == expected[0][: len(seen)] and stream.report["tokens"] == len(seen)
        decoded = [session._tokenizer.decode(seen[: len(seen) - less]) for less in (0, 1)]
        assert decoded[0].startswith(kept) and len(decoded[1]) <= len(kept)


def resident():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1])


def test_closed_sessions_leave_nothing(url):
    """Nothing waits for the collector: what a session held is gone when it is closed."""
    models, sizes = [], []
    gc.collect()
    gc.disable()
    try:
        for _ in range(50):
            with draftwire.connect(url, draft=DRAFT) as session:
                models.append(weakref.ref(session._drafter._model))
                stream = session.generate(PROMPTS[0], max_new_tokens=8)
                assert ids(stream) and stream.report
            del session, stream
            sizes.append(resident())
        alive = sum(model() is not None for model in models)
    finally:
        gc.enable()
    assert alive == 0
    assert sizes[-1] <= 1.1 * sizes[9]


# ---- faults of our own side: each ends its stream with its name, and no other


def test_a_callback_that_raises(session, expected):
    def broken(line):
        raise KeyError("a callback of the user")

    stream = session.generate(PROMPTS[0], **how(0), explain=broken)
    with pytest.raises(KeyError, match="a callback of the user"):
        ids(stream)
    assert ids(session.generate(PROMPTS[0], **how(0))) == expected[0]


def raising(logits):
    raise RuntimeError("boom")


def not_numbers(logits):
    return np.full_like(logits, np.nan)


@pytest.mark.parametrize(
    ("trouble", "kind", "name"),
    [
        (raising, DraftwireError, "the draft model failed: RuntimeError: boom"),
        (not_numbers, ModelError, "logits that are not numbers"),
    ],
)
def test_a_draft_model_that_fails_once(session, expected, trouble, kind, name):
    slow = slowly(session)
    ids(session.generate(PROMPTS[0], max_new_tokens=4))
    slow.trouble = [trouble]
    stream = session.generate(PROMPTS[0], objective="cost", **how(0))
    with pytest.raises(kind, match=name):
        ids(stream)
    assert stream.finish == stream.report["finish"] == "error"
    assert name in str(stream.error) and not isinstance(stream.error, TransportError)
    assert ids(session.generate(PROMPTS[0], **how(0))) == expected[0]
    assert session.link.reconnects == 0


class Panic(BaseException):
    """As ``pyo3_runtime.PanicException``."""


class Panicking:
    """A tokenizer that panics; as its engine, too."""

    def __init__(self, tokenizer, name):
        self._found, self._name = tokenizer, name

    @property
    def engine(self):
        return Panicking(self._found.engine, self._name)

    def __getattr__(self, name):
        if name == self._name:
            raise Panic("index out of bounds")
        return getattr(self._found, name)

    def id_to_token(self, token):
        if self._name == "all tokens" or (
            self._name == "new tokens" and token not in PROMPTS[0]
        ):
            raise Panic("index out of bounds")
        return self._found.id_to_token(token)


def test_a_tokenizer_that_panics(session, expected):
    good = session._tokenizer
    message = "the tokenizer failed: Panic: index out of bounds"
    session._tokenizer = Panicking(good, "new tokens")
    stream = session.generate(PROMPTS[0], **how(0))
    with pytest.raises(DraftwireError, match=message):
        ids(stream)
    assert stream.finish == "error"
    for where, prompt in (("encode", "text"), ("all tokens", PROMPTS[0])):
        session._tokenizer = Panicking(good, where)
        with pytest.raises(DraftwireError, match=message):
            session.generate(prompt)
    session._tokenizer = good
    assert ids(session.generate(PROMPTS[0], **how(0))) == expected[0]
    assert session.link.reconnects == 0


# ---- links


def test_a_deadline_does_not_wait_for_who_does_not_read(verifier, expected):
    proxy = FaultProxy(verifier.port)
    try:
        with draftwire.connect(proxy.url, draft=DRAFT) as session:
            slowly(session)
            stream = session.generate(PROMPTS[0], **how(0), deadline_s=0.5)
            for chunk in stream:
                if chunk.tokens:
                    verifier.freeze()  # reads nothing and says nothing, for ever
            total_s = stream.report["seconds"]["total"]
            assert stream.finish == "deadline" and 0.4 < total_s < 5
            stream = session.generate(PROMPTS[0], **how(0))
            stream.cancel()
            assert not ids(stream) and stream.finish == "cancelled"
            verifier.thaw()
            assert ids(session.generate(PROMPTS[0], **how(0))) == expected[0]
    finally:
        verifier.thaw()
        proxy.close()


def test_a_session_without_a_verifier_and_then_with_one(expected):
    verifier = VerifierProcess([FIXTURES / "tiny.target"])  # a port; nobody is there
    url = f"ws://127.0.0.1:{verifier.port}"
    with pytest.raises(TransportError, match="cannot reach"):
        draftwire.connect(url, draft=DRAFT)
    try:
        with draftwire.connect(url, draft=DRAFT, offline="draft") as session:
            stream = session.generate(PROMPTS[0], **how(0), patience_s=0.0)
            chunks = list(stream)
            assert len(stream.tokens) >= TOKENS - 1 and stream.finish == "length"
            assert {t.kind for c in chunks for t in c.tokens} == {"unverified"}
            assert not any(c.verified for c in chunks if c.tokens)
            assert any("draft's alone" in w for w in stream.report["warnings"])
            stream = session.generate(PROMPTS[0], **how(0), deadline_s=0.3)
            assert ids(stream) and stream.finish == "deadline"
            assert any("draft's alone" in w for w in stream.report["warnings"])
            four = [session.generate(p, **how(0), patience_s=0.1) for p in PROMPTS]
            assert all(len(ids(s)) >= TOKENS - 1 for s in four)  # one after another
            with pytest.raises(TransportError, match="cannot reach"):
                ids(session.generate(PROMPTS[0], offline="error"))
            # One that began alone ends with the target's own text.
            stream = session.generate(PROMPTS[1], **how(1))
            chunks = iter(stream)
            first = next(c for c in chunks if c.tokens)
            assert not first.verified
            verifier.start()
            seen = [t.id for t in first.tokens]
            for chunk in chunks:  # who adds up what is new has it once
                if chunk.revision is not None:
                    seen = seen[: chunk.revision]
                seen += [t.id for t in chunk.tokens]
            assert seen == stream.report["token_ids"] == expected[1]
            assert {t.kind for t in stream.tokens} & {"accepted", "correction", "resumed"}
            assert ids(session.generate(PROMPTS[2], **how(2))) == expected[2]
            assert session.welcome.target == "tiny"
        verifier.kill()
        # The next session knows the verifier, though it has never met it.
        with draftwire.connect(url, draft=DRAFT, offline="draft") as session:
            assert session.welcome.target == "tiny" and session.link.state != "up"
            with pytest.raises(DraftwireError, match="scheme"):
                session.generate(PROMPTS[0], scheme="no-such-scheme")
    finally:
        verifier.kill()


def test_the_next_question_on_a_full_verifier_waits_for_the_slot_of_the_last(expected):
    """A robot that cancels a plan and asks for the next one is not turned away."""
    verifier = VerifierProcess([FIXTURES / "tiny.target"], flags=["--slots", "1"])
    verifier.start()
    url = f"ws://127.0.0.1:{verifier.port}"
    try:
        with draftwire.connect(url, draft=DRAFT, silence_s=15.0) as session:
            for n in (0, 1, 2, 3) * 3:
                stream = session.generate(PROMPTS[n], max_new_tokens=200)
                next(c for c in stream if c.tokens)
                stream.cancel()
                stream = session.generate(PROMPTS[n], **how(n), offline="error")
                assert ids(stream) == expected[n]
    finally:
        verifier.kill()
