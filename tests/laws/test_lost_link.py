"""Law 2 with real processes and sockets: the link dies, the text does not change."""

from __future__ import annotations

import random
import threading

import pytest
from live import connect, ids_of

from draftwire.errors import TransportError

PROMPT = [5, 17, 3, 99, 41]
IN_A_TEXT = (680,)  # bytes down when some ten blocks have been answered


def ask(session, count, **options):
    return session.generate(PROMPT, max_new_tokens=count, seed=3, **options)


def cuts(verifier, proxy):
    rng = random.Random(1)
    proxy.after(rng.randrange(590, 640) for _ in range(8))


def a_restart(verifier, proxy):
    proxy.after(IN_A_TEXT, lambda: (verifier.kill(), verifier.start()))


def a_freeze(verifier, proxy):
    def freeze():
        verifier.freeze()
        threading.Timer(2.0, verifier.thaw).start()

    proxy.after(IN_A_TEXT, freeze)


@pytest.mark.parametrize(
    ("trouble", "least", "temperature", "patience"),
    [
        (cuts, 3, 0.0, {}),
        (cuts, 3, 0.8, {}),
        (a_restart, 1, 0.0, {}),
        (a_freeze, 1, 0.0, {"silence_s": 0.5, "timeout_s": 1.0}),
    ],
)
def test_the_text_goes_on(verifier, proxy, trouble, least, temperature, patience):
    with connect(verifier) as session:
        expected = ids_of(ask(session, 100, temperature=temperature))
    trouble(verifier, proxy)
    with connect(proxy, **{"silence_s": None, **patience}) as session:
        assert ids_of(ask(session, 100, temperature=temperature)) == expected
        assert session.report["token_ids"] == expected
        assert session.link.reconnects >= least and proxy.acts
        assert session.report["link"]["reconnects"] == session.link.reconnects


def test_error_mode_says_so_at_once(proxy):
    proxy.after(IN_A_TEXT, proxy.shut)
    with connect(proxy) as session:
        with pytest.raises(TransportError, match="gone|closed"):
            list(ask(session, 80, offline="error"))
        assert session.report["finish"] == "error"
        assert session.link.state == "reconnecting"
        proxy.after(())
        proxy.open = True  # the session is still good
        assert len(ids_of(ask(session, 5))) == 5


def test_guesses_are_shown_as_guesses_and_put_right(verifier, proxy):
    with connect(verifier) as session:
        expected = ids_of(ask(session, 90))
    proxy.after(IN_A_TEXT, proxy.shut)
    text, guessed = "", 0
    with connect(proxy) as session:
        for chunk in ask(session, 90, offline="draft"):
            if chunk.revision is not None:
                text = chunk.kept_text
            text += chunk.text
            guessed += 0 if chunk.verified else len(chunk.tokens)
            if guessed > 20:
                proxy.open = True
        assert session.report["token_ids"] == expected
        assert guessed > 20 and chunk.unverified == 0
        assert text == session.report["text"]
