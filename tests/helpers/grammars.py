"""Grammars for tests, over a vocabulary of 23 ids.

Without llguidance (no wheel for Python 3.8) there are none.
"""

import functools
import json
from importlib.util import find_spec
from pathlib import Path

from draftwire.sampling.grammar import Grammar, Rules, Vocabulary

HAVE = find_spec("llguidance") is not None
TOKENIZER = Path(__file__).resolve().parents[1] / "fixtures" / "words.json"
WORDS = list(json.loads(TOKENIZER.read_text(encoding="utf-8"))["model"]["vocab"])
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


@functools.lru_cache
def vocabulary():
    return Vocabulary(TOKENIZER.read_text(encoding="utf-8"))


@functools.lru_cache
def compiled(name):
    return vocabulary().compile(NAMES[name])


def rules_of(name, stops=(), *, forcing=True):
    """Return the rules of a stream, or None without a name."""
    return Rules(compiled(name), len(WORDS), tuple(stops), forcing) if name else None
