"""Grammars: what a text may be, for both halves of a stream alike.

A :class:`Grammar` is a text that can cross the network; a :class:`Vocabulary` compiles it
for a tokenizer (with llguidance, an extra); a :class:`Guide` follows one sequence in it and
says what may come next, and what must.
"""

from __future__ import annotations

from draftwire.sampling.grammar.engine import Compiled, Rules, Vocabulary
from draftwire.sampling.grammar.guide import Guide, Path
from draftwire.sampling.grammar.text import MAX_GRAMMAR, Grammar

__all__ = ["MAX_GRAMMAR", "Compiled", "Grammar", "Guide", "Path", "Rules", "Vocabulary"]
