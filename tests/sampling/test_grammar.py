"""Grammars: what may come, what must, and what cannot be used."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from draftwire.errors import ConfigError
from draftwire.sampling.grammar import MAX_GRAMMAR, Grammar

pytest.importorskip("llguidance")
import grammars  # noqa: E402
from grammars import NAMES, WORDS, compiled, rules_of, vocabulary  # noqa: E402

MARK = "d419be97e41cd1d2"


def text_of(ids):
    return "".join(WORDS[i] for i in ids)


def walk(name, seed, *, forcing=True, length=60):
    """Return a text of the grammar, drawn at random among what may come."""
    rng = random.Random(seed)
    guide = rules_of(name, forcing=forcing).guide(0)
    text = []
    for _ in range(length):
        path = guide.path()
        text += path.ids
        guide.follow(text)
        if path.ended or guide.path().ended:
            break
        (mask,) = guide.masks(())
        text.append(int(rng.choice(np.flatnonzero(mask))))
        guide.follow(text)
    return text


@pytest.mark.parametrize("name", ["object", "any"])
def test_a_text_that_ends_is_json_of_its_schema(name):
    ended = 0
    for seed in range(30):
        text = walk(name, seed, length=400)
        guide = rules_of(name).guide(0)
        guide.follow(text)
        if guide.path().ended:
            found = json.loads(text_of(text))
            ended += 1
            if name == "object":
                assert list(found) == ["abc", "cd", "a"] and len(found["a"]) <= 3
    assert ended > 5


def test_choices_are_the_texts():
    said = {text_of(walk("choice", seed)) for seed in range(200)}
    assert said == {"abcabcab", "abcabd", "cd", "abcabcdcdcdcd12"}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_what_is_forced_does_not_depend_on_the_way_there(name):
    """Both ends come to a text in their own ways: in pieces, back and forth, at once."""
    rng = random.Random(7)
    for seed in range(40):
        text = walk(name, seed, forcing=rng.random() < 0.5)
        here = rules_of(name).guide(2)
        for _ in range(6):
            n = rng.randint(0, len(text))
            here.follow([0, 0, *text[:n]])
            if rng.random() < 0.5:
                here.masks(text[n : n + 3])
                here.path(text[n : n + 2], text[n + 2 : n + 4])
            there = rules_of(name).guide(0)
            there.follow(text[:n])
            assert here.path() == there.path()
            assert (here.masks(()) == there.masks(())).all()


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_forced_id_is_the_only_one_and_masks_follow_drafts(name):
    for seed in range(20):
        text = walk(name, seed, length=12)
        guide = rules_of(name).guide(0)
        rows = guide.masks(text)
        for n in range(len(text)):
            one = rules_of(name).guide(0)
            one.follow(text[:n])
            forced = one.path().ids
            expected = one.masks(())[0]
            assert (rows[n] == expected).all() and rows[n][text[n]]
            assert not forced or np.flatnonzero(expected).tolist() == [forced[0]]
        assert guide.length == 0, "a look changes nothing"


def test_a_path_has_what_is_forced_behind_each_choice():
    guide = rules_of("pieces").guide(0)
    ab, cd = WORDS.index("ab"), WORDS.index("cd")
    path = guide.path((), (cd, ab))
    assert text_of(path.ids) == "cd[abcabc]:ab[abcabc]:"
    assert [path.ids[i] for i in path.free] == [cd, ab] and path.valid == 2
    wrong = guide.path((), (cd, WORDS.index("{"), ab))
    assert wrong.valid == 1 and wrong.ids[-2:] == (WORDS.index("{"), ab)
    plain = rules_of("pieces", forcing=False).guide(0)
    assert plain.path((), (cd, ab)).valid == 1, "what is forced must be drawn then"
    assert plain.path((), (cd,)).ids == (cd,)


def test_ids_that_end_a_text_come_where_it_may_end():
    stop = WORDS.index("z")
    guide = rules_of("free", (stop,)).guide(0)
    assert guide.masks(())[0][stop] and guide.path((), (stop,)).ended
    guide = rules_of("object", (stop,)).guide(0)
    guide.follow(guide.path().ids)
    assert not guide.masks(())[0][stop] and not guide.path((), (stop,)).valid


def test_the_end_is_where_nothing_can_follow():
    guide = rules_of("one").guide(0)
    path = guide.path()
    assert path.ended and text_of(path.ids) == "abcabcdcdcdcd12{}[]"
    assert not rules_of("free").guide(0).path().ended


def test_ends_that_agree_have_one_mark():
    """Pinned: what llguidance 1.3.0, 1.6.1 and 1.9.1 make of the probes."""
    assert vocabulary().mark.hex() == MARK
    assert grammars.vocabulary.__wrapped__().mark == vocabulary().mark


@pytest.mark.parametrize(
    ("grammar", "complaint"),
    [
        (Grammar("json", '{"$ref":"#"}'), "no text that ends"),
        (
            Grammar("json", '{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/a"}}}'),
            "no text that ends",
        ),
        (Grammar("json", '{"type":"strng"}'), "strng"),
        (Grammar("json", '{"not":{}}'), "not"),
        (Grammar("json", "[]"), "JSON schema cannot be used"),
        (Grammar("json", "{"), "JSON schema cannot be used"),
        (Grammar("json", '{"$ref":"http://x.org/a.json"}'), "x.org"),
        (Grammar("json", '{"type":"integer","minimum":5,"maximum":3}'), "greater"),
        (Grammar("json", '{"a":' * 4000 + "1" + "}" * 4000), "recursion"),
        (Grammar("regex", "(a"), "unclosed group"),
        (Grammar("regex", "(?=a)b"), "look-around"),
        (Grammar("lark", "start: nothing"), "nothing"),
        (
            Grammar("lark", "start: A\nA: /.*a.{200}/ & /.*b.{200}/ & ~/c.{300}/"),
            "fuel|lex",
        ),
    ],
)
def test_a_grammar_that_cannot_be_used_is_a_sentence(grammar, complaint):
    with pytest.raises(ConfigError, match=complaint) as caught:
        vocabulary().compile(grammar)
    assert "\n" not in str(caught.value) and caught.value.hint


def test_a_grammar_that_costs_too_much_ends_in_a_sentence():
    """Ambiguous beyond all bounds: within its limits or an error, never for ever."""
    made = vocabulary().compile(
        Grammar("lark", 'start: e\ne: e e | e e e | "a" | "ab" | ""\n')
    )
    guide = made.guide(len(WORDS), patience_s=0.2)
    with pytest.raises(ConfigError, match="the grammar"):
        for n in range(4000):
            guide.follow([0] * n)
            guide.masks((0, 0, 0))


def test_what_is_no_grammar_is_a_sentence():
    for make in (
        lambda: Grammar("json", "x" * (MAX_GRAMMAR + 1)),
        lambda: Grammar("bnf", "x"),
        lambda: Grammar("regex", "\ud800"),
        lambda: Grammar.of_choices([]),
        lambda: Grammar.of_choices(["a", ""]),
        lambda: Grammar.of_choices("abc"),
        lambda: Grammar.of_schema("{"),
        lambda: Grammar.of_schema({"enum": [object()]}),
        lambda: Grammar.of_schema({"enum": [float("nan")]}),
    ):
        with pytest.raises(ConfigError):
            make()
    loop = {}
    loop["properties"] = {"a": loop}
    with pytest.raises(ConfigError, match=r"cannot be written as JSON|nested"):
        Grammar.of_schema(loop)


def test_the_name_of_a_grammar_is_that_of_the_document():
    import hashlib

    grammar = Grammar.of_schema({"type": "object", "é": 1})
    assert grammar.text == '{"type":"object","é":1}'
    said = b"json\n" + grammar.text.encode()
    assert grammar.digest == hashlib.sha256(said).digest()
    assert Grammar("regex", grammar.text).digest != grammar.digest


def test_a_grammar_is_compiled_for_any_number_of_threads():
    from concurrent.futures import ThreadPoolExecutor

    def one(seed):
        guide = compiled("object").guide(len(WORDS))
        text = walk("object", seed)
        guide.follow(text)
        return guide.length == len(text)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(40)))


ROBOT = {
    "type": "object",
    "properties": {
        "abc": {"enum": ["abcd", "0", "cdcd"]},
        "a": {"type": "array", "items": {"type": "integer"}, "minItems": 2},
        "cd": {"type": "string", "minLength": 3},
        "b": {"type": "object", "properties": {"c": {"type": "string"}}},
    },
    "required": ["abc", "a", "cd"],
}


@pytest.mark.parametrize(
    ("grammar", "begun", "rest"),
    [
        (NAMES["object"], "", '{"abc":"","cd":"0","a":[]}'),
        (NAMES["object"], '{"abc":"ab', '","cd":"0","a":[]}'),
        (NAMES["any"], "", "{}"),
        (NAMES["any"], '{"a":[1', "]}"),
        (NAMES["choice"], "", "cd"),
        (NAMES["choice"], "abcabcd", "cdcdcd12"),
        (NAMES["free"], "", ""),
        (NAMES["long"], "", "a" + "cd" * 50 + "00"),
        (Grammar.of_schema(ROBOT), "", '{"abc":"0","a":[0,0],"cd":"%s"}'),
    ],
)
def test_the_shortest_way_to_a_whole_text(grammar, begun, rest):
    made = vocabulary().compile(grammar)
    guide = made.guide(len(WORDS))
    ids = [WORDS.index(char) for char in begun]
    guide.follow(ids)
    assert guide.length == len(ids)
    found = text_of(made.shortest(guide))
    if "%s" in rest:
        assert len(found) == len(rest) + 1
        assert list(json.loads(found)) == ["abc", "a", "cd"]
    else:
        assert found == rest
    guide.follow([*ids, *made.shortest(guide)])
    assert guide.content
