"""Calls of tools: what a model may write, and what is read of it."""

import itertools
import json
import re

import pytest
from places import FIXTURES, MODELS

from draftwire.errors import ConfigError
from draftwire.runtime.tools import FORMS, Call, Calls, read_tools

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
        assert said == re.split("[<{]", text)[0]
        names = [name for name in ("go_to", "stop") if f'"{name}"' in text]
        assert [(c.name, c.arguments) for c in found] == [
            (name, "{}" if name == "stop" else ARGUMENTS) for name in names
        ]
    for text in wrong:
        if text == ONE + "x{":  # text, where calls have no tags
            continue
        assert not allows(calls, text), text


LISTED = f'[{{"name":"go_to","arguments":{ARGUMENTS}}},{{"name":"stop","arguments":{{}}}}]'
BEGIN, CALL, SEP, END, OVER = (
    f"<｜tool▁{word}｜>" for word in "calls▁begin call▁begin sep call▁end calls▁end".split()
)
DEEPSEEK = " ".join((BEGIN, CALL, SEP, END, OVER))
# What a template says of calls, its special tokens, and two calls as the family writes
# them.
FAMILIES = {
    "mistral v3": ("{{ '[TOOL_CALLS] [' }}", "[TOOL_CALLS]", f"[TOOL_CALLS] {LISTED}"),
    "mistral nemo": ("{{ '[TOOL_CALLS][' }}", "[TOOL_CALLS]", f"[TOOL_CALLS]{LISTED}"),
    "mistral v11": (
        "{{ '[TOOL_CALLS]' + name + '[ARGS]' }}",
        "[TOOL_CALLS] [ARGS]",
        f"[TOOL_CALLS]go_to[ARGS]{ARGUMENTS}[TOOL_CALLS]stop[ARGS]{{}}",
    ),
    "granite 3": (
        "respond with <|tool_call|> and a list",
        "<|tool_call|>",
        f"<|tool_call|>{LISTED}",
    ),
    "phi 4": (
        "{{ '<|tool|>' + tools + '<|/tool|>' }}",
        "<|tool_call|> <|/tool_call|>",
        f"<|tool_call|>{LISTED}<|/tool_call|>",
    ),
    "deepseek v3": (
        "{{ '" + BEGIN + "' }} ```json",
        DEEPSEEK,
        f"{BEGIN}{CALL}function{SEP}go_to\n```json\n{ARGUMENTS}\n```{END}\n"
        f"{CALL}function{SEP}stop\n```json\n{{}}\n```{END}{OVER}",
    ),
    "deepseek v3.1": (
        "{{ '" + BEGIN + "' }}",
        DEEPSEEK,
        f"{BEGIN}{CALL}go_to{SEP}{ARGUMENTS}{END}{CALL}stop{SEP}{{}}{END}{OVER}",
    ),
    "hermes": ("<tool_call>", "", TWO),
    "llama 3": (LLAMA + "<|python_tag|>", "<|python_tag|>", "<|python_tag|>" + BARE),
    "llama 3 without a tag": (LLAMA, "", BARE),
}


@pytest.mark.parametrize("spelt", [True, False], ids=["special tokens", "letters"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_writes_calls_in_its_form(family, spelt):
    """With special tokens where the tokenizer has them, which no plain text can hold."""
    pytest.importorskip("llguidance")
    from tokenizers import AddedToken

    from draftwire.sampling.grammar import Grammar
    from draftwire.sampling.grammar.engine import Vocabulary
    from draftwire.tokenizer import Tokenizer, load_tokenizer

    template, words, text = FAMILIES[family]
    assert set(FAMILIES) == set(FORMS)
    engine = load_tokenizer(FIXTURES / "tiny.draft").engine
    if spelt:
        engine.add_special_tokens([AddedToken(word) for word in words.split()])
    tokenizer = Tokenizer(engine)
    vocabulary = Vocabulary(engine.to_str())
    for choice in ("auto", "required"):
        calls = Calls.of(
            TOOLS, choice, template=template, special=tokenizer.special,
            spell=lambda ids: tokenizer.decode(ids, skip_special=False),
        )  # fmt: skip
        assert calls.form is FORMS[family]
        guide = vocabulary.compile(Grammar("lark", calls.grammar())).guide(vocabulary.size)
        forced = guide.path().ids
        if calls.form.mark in tokenizer.special and choice == "required" and forced:
            assert forced[0] == tokenizer.special[calls.form.mark]
        for said in ("", "I go. ")[: 2 if choice == "auto" and calls.form.needed else 1]:
            ids = tokenizer.encode(said + text, parse_special=True)
            guide.follow(ids)
            assert guide.length == len(ids) and guide.content, said + text
            spoken, found = calls.read(calls.spell(ids))
            assert spoken.strip() == said.strip()
            want = [Call("go_to", ARGUMENTS), Call("stop", "{}")]
            assert found == (want if calls.parallel else want[:1])
            for n in (1, 4, len(ids) // 2):  # cut short: the calls that are whole
                assert calls.read(calls.spell(ids[:-n]))[1] in ([], want[:1], want)
        wrong = text.replace("go_to", "fly")
        ids = tokenizer.encode(wrong, parse_special=True)
        guide.follow(ids)
        plain = choice == "auto" and not spelt and not calls.form.needed
        assert plain or guide.length < len(ids)
        must_text = tokenizer.encode("Hello.")
        guide.follow(must_text)
        assert (guide.length == len(must_text)) is (choice == "auto")


def test_arguments_that_go_deeper_and_deeper_are_no_call():
    deep = ONE.replace(ARGUMENTS, f'{{"x":{"[" * 100_000}')
    assert Calls.of(TOOLS, choice="auto").read(deep)[1] == []


def test_no_tools_or_none_of_them_is_no_grammar():
    assert Calls.of([], "auto") is None and Calls.of(TOOLS, "none") is None


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        (5, "a list"),
        ("go", "a list"),
        ([{}], "has no name"),
        ([{"name": "a b"}], "name is 'a b'"),
        ([{"name": "a"}] * 2, "two tools"),
        ([{"name": "a", "parameters": 3}], "JSON schema"),
    ],
)
def test_tools_that_are_none_are_a_sentence(tools, words):
    with pytest.raises(ConfigError, match=words):
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
    from draftwire.bench.child import local_verifier

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
