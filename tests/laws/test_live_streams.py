"""Streams as their users hold them: many at once, cancelled, broken, without a verifier.

Real processes and sockets, the tiny family of the fixtures.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
import weakref

import numpy as np
import pytest
from live import DRAFT, TARGET, connect, ids_of, serving

import draftwire
from draftwire.bench.child import VerifierProcess
from draftwire.errors import ConfigError, DraftwireError, ModelError, TransportError
from draftwire.packages import load_draft

PROMPTS = [[5, 17, 3, 99, 41], [7, 8, 9], [120, 4], [33, 2, 61, 10]]
TOKENS = 60
SHARED = "the draft model was at work for another stream"


@pytest.fixture(scope="module")
def expected(verifier):
    with connect(verifier) as session:
        return [ids_of(ask(session, n)) for n in range(4)]


def ask(session, number, **options):
    """Return the stream of a number, which says the same every time."""
    how = {"temperature": 0.8 * (number % 2), "seed": number, **options}
    return session.generate(PROMPTS[number], **{"max_new_tokens": TOKENS, **how})


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
    slow = Slow(session._drafter.model)
    session._drafter.use(slow)
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
        streams[number] = ask(session, number)
        begun.wait(60)
        found[number] = ids_of(streams[number])

    threads = [threading.Thread(target=one, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    check_shared(streams, found, expected)


async def test_four_streams_from_coroutines(verifier, expected):
    async with draftwire.aio.connect(verifier.url, draft=DRAFT) as session:
        slowly(session)
        streams = [ask(session, n) for n in range(4)]

        async def one(stream):
            return [token.id async for chunk in stream for token in chunk.tokens]

        found = await asyncio.gather(*map(one, streams))
        check_shared(streams, found, expected)


def test_cancelling_one_touches_no_other(session, expected):
    slowly(session)
    streams = [ask(session, n) for n in range(4)]
    streams[0].cancel()  # the one that the draft model works for
    streams[2].cancel()
    assert ids_of(streams[1]) == expected[1] and ids_of(streams[3]) == expected[3]
    for number in (0, 2):
        found = ids_of(streams[number])
        assert streams[number].finish == "cancelled"
        assert found == expected[number][: len(found)] and len(found) < TOKENS
    assert ids_of(ask(session, 0)) == expected[0]


def test_a_cancel_before_the_first_token_counts(session, expected):
    for _ in range(5):
        stream = ask(session, 0)
        stream.cancel()
        assert len(ids_of(stream)) < TOKENS
        assert stream.finish == stream.report["finish"] == "cancelled"
        stream.cancel()  # as often as you like
    assert ids_of(ask(session, 0)) == expected[0]


async def test_leaving_an_iterator_cancels(session, verifier, expected):
    slowly(session)
    stream = ask(session, 0)
    for _ in stream:
        break
    assert stream.finish == stream.report["finish"] == "cancelled"
    with pytest.raises(ZeroDivisionError):
        for _ in (stream := ask(session, 0)):
            raise ZeroDivisionError
    assert stream.finish == "cancelled"
    assert ids_of(ask(session, 1)) == expected[1]

    async with draftwire.aio.connect(verifier.url, draft=DRAFT) as twin:
        slowly(twin)
        stream = ask(twin, 0)
        async for _ in stream:
            break
        while stream.finish is None:
            await asyncio.sleep(0.01)
        assert stream.finish == "cancelled"


def test_tokens_end_where_the_text_does(session, expected):
    """A stop string: text, tokens, ids of the report and its count are of one length."""
    whole = ask(session, 0)
    assert ids_of(whole) == expected[0]
    text = whole.text
    for begin in range(4, len(text) - 4, 7):
        stop = text[begin : begin + 4]
        stream = ask(session, 0, stop=[stop])
        seen = ids_of(stream)
        kept = text[: text.index(stop)]
        assert stream.text == stream.report["text"] == kept and stream.finish == "stop"
        # Chunks may have had tokens whose text was held back: a stop string might begin.
        found = stream.report["token_ids"]
        assert found == [t.id for t in stream.tokens] == seen[: len(found)]
        seen = found
        assert seen == expected[0][: len(seen)] and stream.report["tokens"] == len(seen)
        decoded = [session._tokenizer.decode(seen[: len(seen) - less]) for less in (0, 1)]
        assert decoded[0].startswith(kept) and len(decoded[1]) <= len(kept)
        ids, decode = expected[0], session._tokenizer.decode
        enough = next(n for n in range(len(ids) + 1) if stop in decode(ids[:n]))
        last = ask(session, 0, stop=[stop], max_new_tokens=enough)
        ids_of(last)
        assert last.report["token_ids"] == seen
        assert (last.text, last.finish) == (kept, "stop"), "no token more is allowed"


def resident():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1])


def test_closed_sessions_leave_nothing(verifier):
    """Nothing waits for the collector: what a session held is gone when it is closed."""
    models, sizes = [], []
    gc.collect()
    gc.disable()
    try:
        for _ in range(24):
            with connect(verifier) as session:
                models.append(weakref.ref(session._drafter.model))
                stream = session.generate(PROMPTS[0], max_new_tokens=8)
                assert ids_of(stream) and stream.report
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

    stream = ask(session, 0, explain=broken)
    with pytest.raises(KeyError, match="a callback of the user"):
        ids_of(stream)
    assert ids_of(ask(session, 0)) == expected[0]


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
    ids_of(session.generate(PROMPTS[0], max_new_tokens=4))
    slow.trouble = [trouble]
    stream = ask(session, 0, objective="cost")
    with pytest.raises(kind, match=name):
        ids_of(stream)
    assert stream.finish == stream.report["finish"] == "error"
    assert name in str(stream.error) and not isinstance(stream.error, TransportError)
    assert ids_of(ask(session, 0)) == expected[0]
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
    stream = ask(session, 0)
    with pytest.raises(DraftwireError, match=message):
        ids_of(stream)
    assert stream.finish == "error"
    for where, prompt in (("encode", "text"), ("all tokens", PROMPTS[0])):
        session._tokenizer = Panicking(good, where)
        with pytest.raises(DraftwireError, match=message):
            session.generate(prompt)
    session._tokenizer = good
    assert ids_of(ask(session, 0)) == expected[0]
    assert session.link.reconnects == 0


# ---- links


def test_a_deadline_does_not_wait_for_who_does_not_read(verifier, proxy, expected):
    try:
        with connect(proxy, silence_s=None) as session:
            slowly(session)
            stream = ask(session, 0, deadline_s=0.5)
            for chunk in stream:
                if chunk.tokens:
                    verifier.freeze()  # reads nothing and says nothing, for ever
            total_s = stream.report["seconds"]["total"]
            assert stream.finish == "deadline" and 0.4 < total_s < 5
            stream = ask(session, 0)
            stream.cancel()
            assert not ids_of(stream) and stream.finish == "cancelled"
            verifier.thaw()
            assert ids_of(ask(session, 0)) == expected[0]
    finally:
        verifier.thaw()


def test_a_session_without_a_verifier_and_then_with_one(expected):
    with VerifierProcess([TARGET]) as verifier:
        pass  # it has a port, and nobody is there
    with pytest.raises(TransportError, match="cannot reach"):
        connect(verifier)
    try:
        with connect(verifier, offline="draft") as session:
            stream = ask(session, 0, patience_s=0.0)
            chunks = list(stream)
            assert len(stream.tokens) >= TOKENS - 1 and stream.finish == "length"
            assert {t.kind for c in chunks for t in c.tokens} == {"unverified"}
            assert not any(c.verified for c in chunks if c.tokens)
            assert any("draft's alone" in w for w in stream.report["warnings"])
            whole = ask(session, 0, patience_s=0.0)  # int8: read in another chunk, other
            ids, text = ids_of(whole), whole.text
            stop = text[len(text) // 2 :][:4]
            stream = ask(session, 0, patience_s=0.0, stop=[stop])
            assert len(ids_of(stream)) < len(ids) and stream.finish == "stop"
            assert stream.text == stream.report["text"] == text[: text.index(stop)]
            assert stream.report["tokens"] == len(stream.tokens) < len(ids) - 20
            stream = ask(session, 0, deadline_s=0.3)
            assert ids_of(stream) and stream.finish == "deadline"
            assert any("draft's alone" in w for w in stream.report["warnings"])
            four = [ask(session, n, patience_s=0.1) for n in range(4)]
            for stream in four:  # one after another; the draft ends some itself
                ids = ids_of(stream)
                ended = ids[-1] in load_draft(DRAFT).eos_ids
                assert stream.finish == ("stop" if ended else "length")
                assert ended or len(ids) >= TOKENS - 1
            with pytest.raises(TransportError, match="cannot reach"):
                ids_of(ask(session, 0, offline="error"))
            # One that began alone ends with the target's own text.
            stream = ask(session, 1)
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
            assert ids_of(ask(session, 2)) == expected[2]
            assert session.welcome.target == "tiny"
        verifier.kill()
        # The next session knows the verifier, though it has never met it.
        with connect(verifier, offline="draft") as session:
            assert session.welcome.target == "tiny" and session.link.state != "up"
            with pytest.raises(DraftwireError, match="scheme"):
                ask(session, 0, scheme="no-such-scheme")
    finally:
        verifier.kill()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_at_a_fork_a_session_stays_with_the_parent(session, expected):
    stream = ask(session, 1, max_new_tokens=1000)
    for begin in (lambda: ask(session, 0), lambda: list(stream)):
        child = os.fork()
        if not child:
            signal.alarm(60)
            try:
                begin()
            except ConfigError as error:
                os._exit(7 if "fork" in error.hint else 1)
            os._exit(2)
        assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 7
    stream.cancel()
    assert ids_of(ask(session, 0)) == expected[0]


def test_two_threads_share_the_chunks_of_one_stream(session, expected):
    stream = ask(session, 0)
    found = []
    threads = [
        threading.Thread(target=lambda: found.extend(stream), daemon=True) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert sum(len(chunk.tokens) for chunk in found) == len(expected[0]) == TOKENS
    assert list(stream) == []


def test_the_next_question_on_a_full_verifier_waits_for_the_slot_of_the_last(expected):
    """A robot that cancels a plan and asks for the next one is not turned away."""
    with serving(flags=["--slots", "1"]) as verifier, connect(verifier) as session:
        for n in (0, 1, 2, 3) * 3:
            stream = ask(session, n, max_new_tokens=200)
            next(c for c in stream if c.tokens)
            stream.cancel()
            assert ids_of(ask(session, n, offline="error")) == expected[n]
