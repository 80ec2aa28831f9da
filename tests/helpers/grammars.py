"""Grammars for tests: a vocabulary of 23 ids, and what plain decoding makes of them.

Without llguidance (no wheel for Python 3.8) there are none.
"""

import functools
import json
import tempfile
from importlib.util import find_spec
from pathlib import Path

from draftwire.sampling import make_decider, shape_for
from draftwire.sampling.grammar import Grammar, Rules, Vocabulary

_FOLDER = tempfile.TemporaryDirectory(prefix="draftwire-grammars-")  # goes at the end
HAVE = find_spec("llguidance") is not None
_LETTERS = ["a", "b", "c", "z", "d", "{", "}", '"', ":", ",", "[", "]", "0", "1", "2"]
_MERGES = ['{ "', '" }', '" :', "a b", "ab c", '" ,', "c d", "1 2"]
WORDS = [*_LETTERS, *(m.replace(" ", "") for m in _MERGES)]
NAMES = {
    "object": Grammar(
        "json",
        json.dumps(
            {
                "type": "object",
                "properties": {
                    "abc": {"type": "string", "maxLength": 6},
                    "cd": {"enum": ["abcd", "abcabc", "0", "cdcd"]},
                    "a": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
                },
                "required": ["abc", "cd", "a"],
                "additionalProperties": False,
            }
        ),
    ),
    "any": Grammar("json", '{"type":"object"}'),
    "choice": Grammar.of_choices(["abcabcab", "abcabd", "cd", "abcabcdcdcdcd12"]),
    "one": Grammar.of_choices(["abcabcdcdcdcd12{}[]"]),
    "pieces": Grammar("regex", r"((ab|cd)\[abcabc\]:){1,12}"),
    "free": Grammar("regex", "[a-d0-2]*"),
    "long": Grammar("regex", "[ab](" + "abc" * 40 + "|" + "cd" * 50 + ")[01]{2}"),
}


def tokenizer_json():
    """Return the ``tokenizer.json`` of :data:`WORDS`."""
    model = {
        "type": "BPE",
        "vocab": {word: i for i, word in enumerate(WORDS)},
        "merges": _MERGES,
    }
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    level["use_regex"] = False
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": level,
            "post_processor": None,
            "decoder": level,
            "model": model,
        }
    )


@functools.lru_cache
def tokenizer_path():
    """Return where that file lies."""
    path = Path(_FOLDER.name) / "tokenizer.json"
    path.write_text(tokenizer_json(), encoding="utf-8")
    return path


@functools.lru_cache
def vocabulary():
    return Vocabulary(tokenizer_json())


@functools.lru_cache
def compiled(name):
    return vocabulary().compile(NAMES[name])


def rules_of(name, stops=(), *, forcing=True):
    """Return the rules of a stream, or None without a name."""
    return Rules(compiled(name), len(WORDS), tuple(stops), forcing) if name else None


def plain_text(row_after, prompt, params, count, rules, *, context, written=0):
    """Return target-only decoding under a grammar, and whether the grammar ended it.

    Forced spans are put in as they are; every other token costs one row of logits.

    Args:
        row_after: Returns ``(vocab,)`` logits after ids.
        prompt: Ids; the last ``written`` of them are text.
        params: Sampling.
        count: Tokens after the prompt.
        rules: Of the stream.
        context: Tokens of the target.
        written: See above.
    """
    decider = make_decider(params, rules.vocab_size)
    first = len(prompt) - written
    sequence, end = list(prompt), min(context, len(prompt) + count)
    while True:
        guide = rules.guide(first)  # anew each time: nothing is remembered
        guide.follow(sequence)
        path = guide.path()
        sequence += path.ids[: end - len(sequence)]
        guide.follow(sequence)
        ended = guide.path().ended
        if ended or len(sequence) >= end:
            break
        shape = shape_for(params, rules.vocab_size, first, guide)
        shape.follow(sequence)
        row = shape.rows(row_after(sequence)[None])
        sequence.append(decider.decide([], b"", row, len(sequence)).token)
        if sequence[-1] in rules.stop_ids:
            break
    return sequence[len(prompt) :], ended
