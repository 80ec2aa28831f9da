"""A wrong argument: the same sentence from the API, the command line and the service.

And before anything is sent, so that no number passes for another and nothing half-done
stays.
"""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
from live import DRAFT, connect, serving

import draftwire
from draftwire.cli import main
from draftwire.errors import ConfigError
from draftwire.options import OPTIONS, STREAM_GROUPS, options_of
from draftwire.runtime.service.http import HttpError
from draftwire.runtime.service.openai import read_ask

PROMPT = [5, 17, 3]
STREAM = {option.name for option in options_of(*STREAM_GROUPS)}


@pytest.fixture(scope="module")
def session():
    with serving() as verifier, connect(verifier) as found:
        yield found


# Option, value, and the text that means it on a command line; None where none does.
WRONG = [
    ("max_new_tokens", 2.5, "2.5"),
    ("max_new_tokens", 0, "0"),
    ("max_new_tokens", True, None),
    ("max_new_tokens", "9", None),
    ("max_new_tokens", None, None),
    ("max_new_tokens", 10**30, "1" + "0" * 30),
    ("seed", 1.5, "1.5"),
    ("seed", -1, "-1"),
    ("seed", 2**64, str(2**64)),
    ("seed", "one", "one"),
    ("sample", -1, "-1"),
    ("noise", "white", "white"),
    ("temperature", "hot", "hot"),
    ("temperature", math.nan, "nan"),
    ("temperature", math.inf, "inf"),
    ("temperature", -0.5, "-0.5"),
    ("temperature", 10**400, None),
    ("temperature", [0.5], None),
    ("top_k", 1.0, "1.0"),
    ("top_p", 0.0, "0.0"),
    ("top_p", 1.5, "1.5"),
    ("min_p", -0.1, "-0.1"),
    ("repetition_penalty", 0.0, "0.0"),
    ("presence_penalty", 2.5, "2.5"),
    ("frequency_penalty", math.nan, "nan"),
    ("logit_bias", "7=200", "7=200"),
    ("logit_bias", "7", "7"),
    ("logit_bias", 7, None),
    ("logit_bias", [1], None),
    ("logit_bias", {"1.5": 1}, None),
    ("logit_bias", {"3": True}, None),
    ("logit_bias", None, None),
    ("bad_words", ["x" * 65], None),
    ("bad_words", [""], None),
    ("ignore_eos", 1, None),
    ("schema", 5, None),
    ("schema", "no JSON", None),
    ("regex", 7, None),
    ("choice", ["a", ""], None),
    ("grammar", 1.5, None),
    ("force", "yes", None),
    ("logprobs", 21, "21"),
    ("deadline_s", math.inf, "inf"),
    ("deadline_s", 0.0, "0"),
    ("deadline_s", False, None),
    ("patience_s", -1.0, "-1"),
    ("patience_s", "long", "long"),
    ("patience_s", None, None),
    ("stop", 5, None),
    ("stop", None, None),
    ("stop", [1], None),
    ("stop", ["a", ""], None),
    ("stop", {"a": 1}, None),
    ("stop", ["x" * 257], None),
    ("stop", ["\ud800"], None),
    ("stop", ["a"] * 17, None),
    ("block", 256, "256"),
    ("controller", "magic", "magic"),
    ("controller", "fixed:0", "fixed:0"),
    ("controller", "fixed:four", "fixed:four"),
    ("objective", "speed", "speed"),
    ("max_forwards_per_token", 1.5, "1.5"),
    ("qs", "support=many", "support=many"),
    ("pipeline", 0, "0"),
    ("preempt", "guess,luck", "guess,luck"),
    ("preempt", "", ""),
    ("cut", 1, None),
    ("cut", "yes", None),
    ("batch", -1, "-1"),
    ("scheme", "\udcff", "\udcff"),
    ("scheme", 7, None),
    ("offline", "maybe", "maybe"),
    ("max_joules", 0.0, "0"),
    ("max_joules", math.nan, "nan"),
    ("max_watts", "5 W", "5 W"),
    ("max_joules_per_token", -2.0, "-2"),
]


def refused(kind, body):
    """Return why the service does not take a request."""
    with pytest.raises(HttpError) as caught:
        read_ask(kind, json.dumps(body).encode())
    assert caught.value.status == 400
    return caught.value


def name_of(case):
    return f"{case[0]}={case[1]!r}"[:40].encode("ascii", "replace").decode()


@pytest.mark.parametrize(("name", "value", "text"), WRONG, ids=map(name_of, WRONG))
def test_a_wrong_option_of_a_stream(session, name, value, text, capsys):
    option = OPTIONS[name]
    with pytest.raises(ConfigError) as api:
        session.generate(PROMPT, **{name: value})
    assert str(api.value) == f"{name} is {value!r}"[: len(name) + 4 + 80]
    assert api.value.hint == f"it must be {option.rule.wants}"
    if value is not None:  # null stands for what was not given
        extra = {"prompt": PROMPT, "draftwire": {name: value}}
        found = refused("text", extra)
        wanted = (f"draftwire.{name}", str(api.value), api.value.hint)
        assert (found.param, str(found), found.hint) == wanted
        if name in ("temperature", "top_p", "top_k", "stop"):
            found = refused("text", {"prompt": PROMPT, name: value})
            assert (found.param, str(found), found.hint) == (name, *wanted[1:])
    if text is not None:
        words = ["generate", "x", "--verifier", "ws://x:1", f"{option.flag}={text}"]
        assert main(words) == 2
        message, hint = capsys.readouterr().err.splitlines()
        said = str(api.value).replace(name, option.flag, 1)
        assert message == f"draftwire: error: {said}" and hint == f"hint: {api.value.hint}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target", 5),
        ("target", "\udcff"),
        ("token", "two words"),
        ("token", "line\nfeed"),
        ("token", ""),
        ("insecure", "no"),
        ("tls_ca", b"file"),
        ("tls_ca", "nul\0"),
        ("proxy", None),
        ("timeout_s", 0),
        ("timeout_s", math.inf),
        ("silence_s", "short"),
        ("offline", "maybe"),
        ("offline", 1),
        ("precision", 8),
        ("engine", "torch"),
        ("provider", "tpu"),
        ("threads", 0),
        ("threads", 1.5),
        ("threads", True),
        ("threads", "many"),
        ("capture", 1),
        ("radio", 1),
        ("suffix_cache", ""),
        ("suffix_cache", 1),
        ("suffix_cache", None),
    ],
)
def test_a_wrong_option_of_a_session(name, value):
    with pytest.raises(ConfigError) as caught:
        draftwire.connect("ws://127.0.0.1:9", draft=DRAFT, **{name: value})
    shown = "(not shown)" if name == "token" else repr(value)
    assert str(caught.value) == f"{name} is {shown}"
    assert caught.value.hint == f"it must be {OPTIONS[name].rule.wants}"


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        (None, "neither text nor a list of token ids"),
        (7, "neither text nor a list of token ids"),
        (b"bytes", "neither text nor a list of token ids"),
        ({"a": 1}, "neither text nor a list of token ids"),
        ([1, "a"], "neither text nor a list of token ids"),
        ([1.5], "neither text nor a list of token ids"),
        ([True], "neither text nor a list of token ids"),
        ("", "is empty"),
        ([], "is empty"),
        ("\ud800", "not Unicode text"),
        ([10**30], "outside 0"),
        ([-1], "outside 0"),
    ],
)
def test_a_wrong_prompt(session, prompt, complaint, capsys):
    with pytest.raises(ConfigError, match=complaint) as api:
        session.generate(prompt)
    if complaint != "outside 0" and prompt is not None and not isinstance(prompt, bytes):
        assert str(refused("text", {"prompt": prompt})) == str(api.value)
    if isinstance(prompt, str):
        assert main(["generate", prompt, "--verifier", "ws://x:1"]) == 2
        said = capsys.readouterr().err.splitlines()[0]
        assert said == f"draftwire: error: {api.value}"


def test_bytes_that_are_no_text_reach_no_model(capsys):
    words = os.fsdecode(b"\xff\xfe")  # as a shell hands $'\xff\xfe' over
    assert main(["generate", words, "--verifier", "ws://x:1"]) == 2
    assert "not Unicode text" in capsys.readouterr().err
    assert main(["service", "ask", words]) == 2
    assert "not Unicode text" in capsys.readouterr().err


def test_what_is_nearly_a_number_or_a_list_is_one(session):
    """numpy's scalars, integers for floats, and single texts and tuples for lists."""
    stream = session.generate(
        np.array(PROMPT),
        max_new_tokens=np.int64(4),
        temperature=np.float32(0.5),
        top_p=1,
        seed=np.uint64(3),
        stop=("never", "seen"),
    )
    assert sum(len(chunk.tokens) for chunk in stream) == 4
    list(session.generate(tuple(PROMPT), max_new_tokens=3, stop="never"))


def test_every_option_of_a_stream_is_tried():
    assert {name for name, _, _ in WRONG} == STREAM
