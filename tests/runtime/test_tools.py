"""Calls of tools: what a model may write, and what is read of it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from draftwire.errors import ConfigError
from draftwire.runtime.tools import Call, Calls, read_tools

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODELS = Path(__file__).parents[2] / "models"
GO = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "how": {"enum": ["slow", "fast"]}},
    "required": ["x", "how"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "go_to", "parameters": GO}},
    {"name": "stop"},
]
LLAMA = 'Respond with {"name": function name, "parameters": dictionary of argument name}'


def tagged(*calls):
    return "\n".join(
        f'<tool_call>\n{{"name":"{name}","arguments":{arguments}}}\n</tool_call>'
        for name, arguments in calls
    )


def allows(calls, text):
    """Tell whether ``text`` keeps to the grammar, and whether it may end there."""
    pytest.importorskip("llguidance")
    from draftwire.sampling.grammar import Grammar
    from draftwire.sampling.grammar.engine import vocabulary
    from draftwire.tokenizer import load_tokenizer

    path = FIXTURES / "tiny.draft" / "tokenizer.json"
    words = vocabulary(path, "tiny")
    guide = words.compile(Grammar("lark", calls.grammar())).guide(words.size)
    ids = load_tokenizer(path).encode(text)
    guide.follow(ids)
    return guide.length == len(ids) and guide.content


ARGUMENTS = '{"x":3,"how":"slow"}'
ONE, TWO = tagged(("go_to", ARGUMENTS)), tagged(("go_to", ARGUMENTS), ("stop", "{}"))
BARE = f'{{"name":"go_to","parameters":{ARGUMENTS}}}'


@pytest.mark.parametrize(
    ("given", "right", "wrong"),
    [
        (
            {"choice": "auto"},
            ["Hello.", ONE, TWO, "I go. " + ONE, ""],
            [tagged(("fly", "{}")), tagged(("go_to", '{"x":"3"}')), ONE + " And more."],
        ),
        ({"choice": "required"}, [ONE, TWO], ["Hello.", "I go. " + ONE, ""]),
        ({"choice": "required", "parallel": False}, [ONE], [TWO, "Hello."]),
        ({"choice": "stop"}, [tagged(("stop", "{}"))], [ONE, TWO, "Hello."]),
        ({"choice": TOOLS[0]}, [ONE], [TWO, tagged(("stop", "{}"))]),
        ({"choice": "auto", "template": LLAMA}, ["Hello.", BARE], [ONE + "x{", BARE + "."]),
        ({"choice": "required", "template": LLAMA}, [BARE], ["Hello.", ONE]),
    ],
)
def test_a_grammar_of_calls_allows_these_and_no_others(given, right, wrong):
    calls = Calls.of(TOOLS, **given)
    for text in right:
        assert allows(calls, text), text
        said, found = calls.read(text)
        assert "tool_call" not in said and all(
            json.loads(c.arguments) is not None for c in found
        )
    for text in wrong:
        if text == ONE + "x{":  # text, where calls have no tags
            continue
        assert not allows(calls, text), text


def test_what_is_said_and_what_is_called():
    calls = Calls.of(TOOLS)
    assert calls.read("Hello.") == ("Hello.", [])
    assert calls.read("I go. " + TWO) == (
        "I go. ",
        [Call("go_to", ARGUMENTS), Call("stop", "{}")],
    )
    assert calls.read(ONE[:-20]) == ("", [])
    assert Calls.of(TOOLS, template=LLAMA).read(BARE) == ("", [Call("go_to", ARGUMENTS)])


def test_what_may_become_a_call_is_held_back():
    calls = Calls.of(TOOLS)
    for n in range(len("I go. " + ONE)):
        said, held = calls.split(("I go. " + ONE)[:n])
        assert said + held == ("I go. " + ONE)[:n] and "<" not in said


def test_no_tools_or_none_of_them_is_no_grammar():
    assert Calls.of([], "auto") is None and Calls.of(TOOLS, "none") is None


@pytest.mark.parametrize(
    "tools",
    [
        5,
        "go",
        [{}],
        [{"name": "a b"}],
        [{"name": "a"}] * 2,
        [{"name": "a", "parameters": 3}],
    ],
)
def test_tools_that_are_none_are_a_sentence(tools):
    with pytest.raises(ConfigError):
        read_tools(tools)


@pytest.mark.parametrize("choice", ["fly", 3, {"function": {"name": "fly"}}, {}])
def test_a_choice_that_is_none_says_which_there_are(choice):
    with pytest.raises(ConfigError, match="tool_choice") as caught:
        Calls.of(TOOLS, choice)
    assert "go_to, stop" in caught.value.hint


def test_live_calls_and_texts_of_a_grammar():
    """Real processes and sockets: whatever the weights are, what comes is a call."""
    pytest.importorskip("llguidance")
    import draftwire
    from draftwire.cli._local_verifier import local_verifier

    with local_verifier([MODELS / "v1.target"]) as (url, token):
        draft = MODELS / "reference.draft"
        with draftwire.connect(url, draft=draft, token=token) as session:
            messages = [{"role": "user", "content": "go"}]
            stream = session.chat(
                messages, tools=TOOLS, tool_choice="stop", max_new_tokens=90
            )
            list(stream)
            assert stream.tool_calls == (Call("stop", "{}"),)
            report = stream.report
            assert report["finish"] == "stop" and report["forced"] == report["tokens"]
            assert report["drafted"] == report["target_forwards"] == 0
            texts = []
            for force, offline in itertools.product((True, False), ("wait", "draft")):
                stream = session.generate(
                    "the robot", schema=GO, max_new_tokens=60, force=force, offline=offline
                )
                text = "".join(chunk.text for chunk in stream)
                if stream.finish == "stop":
                    assert list(json.loads(text)) == ["x", "how"]
                texts.append(text)
                assert bool(stream.report["forced"]) is force
            assert texts[0] == texts[1] and texts[2] == texts[3]
            with pytest.raises(ConfigError, match="no text that ends"):
                session.generate("a", schema={"$ref": "#"})
            with pytest.raises(ConfigError, match="a text keeps to one of them"):
                session.generate("a", schema=GO, regex="a+")
            with pytest.raises(ConfigError, match="bad_words"):
                session.generate("a", schema=GO, bad_words=["a"])
            with pytest.raises(ConfigError, match="their grammar"):
                session.chat(messages, tools=TOOLS, tool_choice="auto", schema=GO)
