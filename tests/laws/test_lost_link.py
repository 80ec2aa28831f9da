"""Law 2 with real processes and sockets: the link dies, the text does not change."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
from tools.faults import FaultProxy

import draftwire
from draftwire.bench.child import VerifierProcess
from draftwire.errors import TransportError

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
PROMPT = [5, 17, 3, 99, 41]
IN_A_TEXT = (680,)  # bytes down when some ten blocks have been answered


@pytest.fixture(scope="module")
def verifier():
    found = VerifierProcess([FIXTURES / "tiny.target"])
    found.start()
    yield found
    found.kill()


@pytest.fixture
def proxy(verifier):
    found = FaultProxy(verifier.port)
    yield found
    found.close()


def connect(url, **options):
    return draftwire.connect(url, draft=FIXTURES / "tiny.draft", **options)


def undisturbed(verifier, **options):
    with connect(f"ws://127.0.0.1:{verifier.port}") as session:
        return [
            t.id
            for chunk in session.generate(PROMPT, seed=3, **options)
            for t in chunk.tokens
        ]


class Reader:
    """What a user who follows every chunk sees in the end."""

    def __init__(self):
        self.ids, self.text, self.guessed, self.revised = [], "", 0, 0

    def take(self, chunk):
        if chunk.revision is not None:
            self.ids = self.ids[: chunk.revision]
            self.text = chunk.kept_text
            self.revised += 1
        self.text += chunk.text
        if not chunk.verified:
            self.guessed += len(chunk.tokens)
        return chunk


@pytest.mark.parametrize("mode", [{"temperature": 0.0}, {"temperature": 0.8}])
def test_cut_again_and_again(verifier, proxy, mode):
    expected = undisturbed(verifier, max_new_tokens=100, **mode)
    rng = random.Random(1)
    proxy.after(rng.randrange(590, 640) for _ in range(8))
    with connect(proxy.url) as session:
        found = []
        for chunk in session.generate(PROMPT, max_new_tokens=100, seed=3, **mode):
            found += [t.id for t in chunk.tokens]
        assert found == expected
        assert session.report["token_ids"] == expected
        assert session.link.reconnects >= 3
        assert session.report["link"]["reconnects"] == session.link.reconnects


def test_a_killed_and_restarted_verifier_goes_on_with_the_same_text(verifier, proxy):
    expected = undisturbed(verifier, max_new_tokens=60)
    killed = []

    def kill():
        killed.append(verifier.kill())
        verifier.start()

    proxy.after(IN_A_TEXT, kill)
    with connect(proxy.url) as session:
        found = []
        for chunk in session.generate(PROMPT, max_new_tokens=60, seed=3):
            found += [t.id for t in chunk.tokens]
        assert found == expected and killed
        assert session.link.reconnects >= 1


def test_a_frozen_verifier_counts_as_lost(verifier, proxy):
    expected = undisturbed(verifier, max_new_tokens=40)

    def freeze():
        verifier.freeze()
        threading.Timer(2.0, verifier.thaw).start()

    proxy.after(IN_A_TEXT, freeze)
    with connect(proxy.url, silence_s=0.5, timeout_s=1.0) as session:
        found = []
        for chunk in session.generate(PROMPT, max_new_tokens=40, seed=3):
            found += [t.id for t in chunk.tokens]
        assert found == expected
        assert session.link.reconnects >= 1


def test_error_mode_says_so_at_once(verifier, proxy):
    proxy.after(IN_A_TEXT, proxy.shut)
    with connect(proxy.url) as session:
        with pytest.raises(TransportError, match="gone|closed"):
            list(session.generate(PROMPT, max_new_tokens=80, offline="error"))
        assert session.report["finish"] == "error"
        assert session.link.state == "reconnecting"


def test_patience_ends(verifier, proxy):
    proxy.after(IN_A_TEXT, proxy.shut)
    with connect(proxy.url) as session:
        with pytest.raises(TransportError):
            list(session.generate(PROMPT, max_new_tokens=80, patience_s=0.3))


def test_guesses_are_shown_as_guesses_and_put_right(verifier, proxy):
    expected = undisturbed(verifier, max_new_tokens=90)
    proxy.after(IN_A_TEXT, proxy.shut)
    with connect(proxy.url) as session:
        reader = Reader()
        stream = session.generate(PROMPT, max_new_tokens=90, seed=3, offline="draft")
        for chunk in stream:
            reader.take(chunk)
            if reader.guessed > 20:
                proxy.open = True
        assert session.report["token_ids"] == expected
        assert reader.guessed > 20 and chunk.unverified == 0
        assert reader.text == session.report["text"]


def test_a_deadline_is_kept_without_a_link(verifier, proxy):
    proxy.after(IN_A_TEXT, proxy.shut)
    with connect(proxy.url) as session:
        chunks = list(session.generate(PROMPT, max_new_tokens=5000, deadline_s=1.5))
        assert chunks[-1].finish == session.report["finish"] == "deadline"
        assert session.report["seconds"]["total"] < 20
        proxy.after(())
        proxy.open = True
        # The session is still good.
        again = [c for c in session.generate(PROMPT, max_new_tokens=5, seed=3)]
        assert sum(len(c.tokens) for c in again) == 5


def test_leaving_the_loop_cancels_and_the_session_goes_on(verifier, proxy):
    with connect(proxy.url) as session:
        for _ in session.generate(PROMPT, max_new_tokens=80):
            break
        assert session.report["finish"] == "cancelled"
        assert sum(1 for _ in session.generate(PROMPT, max_new_tokens=4)) >= 1
