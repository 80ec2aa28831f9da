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


# Of each option: values whose text means the same on a command line, and others.
WRONG = {
    "max_new_tokens": ([2.5, 0, 10**30], [True, "9", None]),
    "seed": ([1.5, -1, 2**64, "one"], []),
    "sample": ([-1], []),
    "noise": (["white"], []),
    "temperature": (["hot", math.nan, math.inf, -0.5], [10**400, [0.5]]),
    "top_k": ([1.0], []),
    "top_p": ([0.0, 1.5], []),
    "min_p": ([-0.1], []),
    "repetition_penalty": ([0.0], []),
    "presence_penalty": ([2.5], []),
    "frequency_penalty": ([math.nan], []),
    "logit_bias": (["7=200", "7"], [7, [1], {"1.5": 1}, {"3": True}, None]),
    "bad_words": ([], [["x" * 65], [""]]),
    "ignore_eos": ([], [1]),
    "schema": ([], [5, "no JSON"]),
    "regex": ([], [7]),
    "choice": ([], [["a", ""]]),
    "grammar": ([], [1.5]),
    "force": ([], ["yes"]),
    "logprobs": ([21], []),
    "deadline_s": ([math.inf, 0.0], [False]),
    "patience_s": ([-1.0, "long"], [None]),
    "stop": (
        [],
        [5, None, [1], ["a", ""], {"a": 1}, ["x" * 257], ["\ud800"], ["a"] * 17],
    ),
    "block": ([256], []),
    "controller": (["magic", "fixed:0", "fixed:four"], []),
    "objective": (["speed"], []),
    "max_forwards_per_token": ([1.5], []),
    "qs": (["support=many"], []),
    "pipeline": ([0], []),
    "preempt": (["guess,luck", ""], []),
    "cut": ([], [1, "yes"]),
    "batch": ([-1], []),
    "scheme": (["\udcff"], [7]),
    "offline": (["maybe"], []),
    "max_joules": ([0.0, math.nan], []),
    "max_watts": (["5 W"], []),
    "max_joules_per_token": ([-2.0], []),
}
# What a request of OpenAI's form says by the same name.
AS_OPENAI = "temperature top_p top_k stop min_p bad_words ignore_eos".split()
AS_OPENAI += ["presence_penalty", "frequency_penalty", "repetition_penalty"]
CASES = [
    (name, value, str(value) if said else None)
    for name, lists in WRONG.items()
    for said, values in zip((True, False), lists)
    for value in values
]


def test_a_controller_that_is_none(session):
    with pytest.raises(ConfigError, match="controller is <object"):
        session.generate(PROMPT, controller=object())


def refused(kind, body):
    """Return why the service does not take a request."""
    with pytest.raises(HttpError) as caught:
        read_ask(kind, json.dumps(body).encode())
    assert caught.value.status == 400
    return caught.value


def name_of(case):
    return f"{case[0]}={case[1]!r}"[:40].encode("ascii", "replace").decode()


@pytest.mark.parametrize(("name", "value", "text"), CASES, ids=map(name_of, CASES))
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
        if name in AS_OPENAI:
            found = refused("text", {"prompt": PROMPT, name: value})
            assert (found.param, str(found), found.hint) == (name, *wanted[1:])
    if text is not None:
        words = ["generate", "x", "--verifier", "ws://x:1", f"{option.flag}={text}"]
        assert main(words) == 2
        message, hint = capsys.readouterr().err.splitlines()
        said = str(api.value).replace(name, option.flag, 1)
        assert message == f"draftwire: error: {said}" and hint == f"hint: {api.value.hint}"


SESSION = {
    "target": [5, "\udcff"],
    "token": ["two words", "line\nfeed", ""],
    "insecure": ["no"],
    "tls_ca": [b"file", "nul\0"],
    "proxy": [None],
    "timeout_s": [0, math.inf],
    "silence_s": ["short"],
    "offline": ["maybe", 1],
    "precision": [8],
    "engine": ["torch"],
    "provider": ["tpu"],
    "threads": [0, 1.5, True, "many"],
    "capture": [1],
    "radio": [1],
    "suffix_cache": ["", 1, None],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n in SESSION for v in SESSION[n]])
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
    assert api.value.hint
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
    assert set(WRONG) == STREAM
