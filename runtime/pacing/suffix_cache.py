"""Continuations from text that was seen before: drafts that cost no forward.

A frozen draft never learns; this does. It holds a log of tokens (the prompt, accepted
text, and earlier sessions if it is kept in a file) and finds in it the longest recent
repetition of what was written last. What followed there is proposed here. A proposal
needs a long enough repetition, or one of a kind that has been right before: the cache
watches all text as it is committed, and records how often it would have been right.

Verified like any draft, so the text is untouched. Only for schemes whose drafts may come
from anywhere (``Card.any_draft``).
"""

from __future__ import annotations

import bisect
import json
import os
import tempfile
import threading
from array import array
from pathlib import Path
from typing import Any, NamedTuple, Sequence

from draftwire.errors import ConfigError, OutputError
from draftwire.io import parse_json, replacing

__all__ = ["Recall", "SuffixCache"]

_ORDERS = (8, 5, 3)  # lengths of the indexed suffixes, longest first
_LONGEST = 20  # a repetition is not measured beyond this
_KINDS = (3, 4, 5, 7, 10, 16)  # least length of each kind of repetition
_PRIOR = (0.30, 0.40, 0.50, 0.60, 0.75, 0.85)
_WEIGHT = 6.0  # observations that the prior counts for
_KEPT = 0.98
_BREAK = 0xFFFFFFFF  # between sessions: nothing repeats across it
_SCHEMA = "draftwire.suffixes/2"
_TOKEN_BYTES = 64  # of a file, at most


class Recall(NamedTuple):
    """What the cache would write next."""

    token: int  # its id
    confidence: float  # how often repetitions of this length were right, of late
    matched: int  # length of the repetition
    at: int = -1  # where in the log the token stands


class SuffixCache:
    """A bounded log of tokens and an index of its suffixes.

    May be used by several threads.

    Args:
        vocab_size: Ids are below this.
        max_tokens: Of the log; the older half goes when it is full. Each costs about
            300 bytes with its index.
        least: Least confidence of a proposal.

    Attributes:
        proposed: Tokens that :meth:`propose` has given.
        foreseen: Committed tokens that it had an opinion on.
        right: Of these, those that it had right.
    """

    def __init__(
        self, vocab_size: int, *, max_tokens: int = 32768, least: float = 0.7
    ) -> None:
        if max_tokens < 64:
            raise ConfigError(f"a suffix cache of {max_tokens} tokens is too small")
        self.vocab_size = vocab_size
        self.max_tokens = max_tokens
        self.least = least
        self.proposed = self.foreseen = self.right = 0
        self._log = array("I")
        self._index: dict[tuple[int, ...], int] = {}
        self._good = [p * _WEIGHT for p in _PRIOR]
        self._all = [_WEIGHT] * len(_KINDS)
        self._lock = threading.Lock()
        self._text: list[int] = []  # end of the present text
        self._opinion: Recall | None = None
        self._next = -1  # where in the log the last proposal's successor stands
        self._next_length = -1

    def __len__(self) -> int:
        return len(self._log)

    # ---- text comes in

    def begin(self, prompt: Sequence[int]) -> None:
        """A new text begins with ``prompt``."""
        with self._lock:
            if self._log:
                self._append(_BREAK)
            self._text = []
            for token in prompt:
                self._append(token)
            self._opinion = self._find(self._text)

    def commit(self, tokens: Sequence[int]) -> None:
        """The text goes on with ``tokens``, which are final."""
        with self._lock:
            for token in tokens:
                opinion = self._opinion
                if opinion is not None:
                    self._record(opinion, token)
                self._append(token)
                self._opinion = self._following(opinion, token)

    def _following(self, opinion: Recall | None, token: int) -> Recall | None:
        """Go on with a repetition that was right, or look for another one."""
        if opinion is not None and opinion.token == token:
            at = opinion.at + 1
            if at < len(self._log) - 1 and self._log[at] != _BREAK:
                return self._proposal(at, opinion.matched + 1)
        return self._find(self._text)

    def _proposal(self, at: int, matched: int) -> Recall:
        kind = _kind(matched)
        return Recall(self._log[at], self._good[kind] / self._all[kind], matched, at)

    def _record(self, opinion: Recall, token: int) -> None:
        kind = _kind(opinion.matched)
        right = opinion.token == token
        self._good[kind] = self._good[kind] * _KEPT + right
        self._all[kind] = self._all[kind] * _KEPT + 1.0
        self.foreseen += 1
        self.right += right

    def _append(self, token: int) -> None:
        log, text = self._log, self._text
        if len(log) >= self.max_tokens:
            self._forget()
        if token != _BREAK:
            # A suffix is indexed once something follows it.
            at, index, length = len(log), self._index, len(text)
            for order in _ORDERS:
                if length >= order:
                    index[tuple(text[-order:])] = at
            text.append(token)
            if length >= 2 * _LONGEST:
                del text[:-_LONGEST]
        log.append(token)

    def _forget(self) -> None:
        """Drop the older half of the log."""
        cut = len(self._log) // 2
        self._log = self._log[cut:]
        self._opinion = None
        self._index = {key: at - cut for key, at in self._index.items() if at >= cut}
        self._next_length = -1

    # ---- proposals go out

    def propose(self, sequence: Sequence[int]) -> Recall | None:
        """Return what would follow all tokens so far, drafts included.

        None: it had better be drafted.
        """
        with self._lock:
            log, at, tail = self._log, self._next, sequence[-_LONGEST:]
            follows = self._next_length == len(sequence) and 0 < at < len(log)
            if follows and log[at] != _BREAK and log[at - 1] == tail[-1]:
                recall: Recall | None = self._recall(at, tail)  # where the last one was
            else:
                recall = self._find(tail)
            if recall is None or recall.confidence < self.least:
                return None
            self.proposed += 1
            self._next_length = len(sequence) + 1
            return recall

    def _find(self, tail: Sequence[int]) -> Recall | None:
        for order in _ORDERS:
            if len(tail) < order:
                continue
            at = self._index.get(tuple(tail[-order:]))
            if at is not None:
                return self._recall(at, tail)
        return None

    def _recall(self, at: int, tail: Sequence[int]) -> Recall:
        log = self._log
        matched, most = 0, min(len(tail), at, _LONGEST)
        while matched < most and log[at - 1 - matched] == tail[-1 - matched]:
            matched += 1
        self._next = at + 1
        return self._proposal(at, matched)

    def report(self) -> dict[str, Any]:
        """Return its counts for the run report."""
        return {
            "tokens": len(self._log),
            "proposed": self.proposed,
            "foreseen": self.foreseen,
            "right": self.right,
        }

    # ---- the file

    def save(self, path: str | os.PathLike[str], tokenizer: str = "") -> None:
        """Write the log to ``path``, whole or not at all; readable by the owner only.

        Raises:
            OutputError: It cannot be written.
        """
        with self._lock:
            record = [[round(g, 4), round(n, 4)] for g, n in zip(self._good, self._all)]
            document = {
                "schema": _SCHEMA,
                "vocab_size": self.vocab_size,
                "tokenizer": tokenizer,
                "record": record,
                "tokens": self._log.tolist(),
            }
        try:
            with replacing(Path(path)) as fresh:
                descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT, 0o600)
                with os.fdopen(descriptor, "w", encoding="ascii") as handle:
                    json.dump(document, handle)
        except OSError as exc:
            raise OutputError(
                f"cannot write the suffix cache {path}: {exc.strerror}"
            ) from exc

    def load(self, path: str | os.PathLike[str], tokenizer: str = "") -> None:
        """Take in what :meth:`save` wrote; a file that is not there is an empty one.

        Raises:
            ConfigError: The file is damaged, too large, or of another tokenizer; or it
                could not be written afterwards.
        """
        target, limit = Path(path), _TOKEN_BYTES * self.max_tokens
        try:
            with tempfile.TemporaryFile(dir=target.parent):
                pass  # what is learned shall not be lost at the end for a bad folder
            if not target.exists():
                return
            with target.open("rb") as handle:
                data = handle.read(limit + 1)
        except OSError as exc:
            what = f"cannot use the suffix cache {target}: {exc.strerror}"
            raise ConfigError(what, hint="name another file") from exc
        try:
            found = parse_json(data if len(data) <= limit else b"")
            whose = found["tokenizer"], found["vocab_size"]
            sound = found["schema"] == _SCHEMA and _sound(found["record"])
            ids = (t for t in found["tokens"] if t != _BREAK)
            sound = sound and all(type(t) is int and 0 <= t < whose[1] for t in ids)
        except (ValueError, KeyError, TypeError):
            sound = False
        if not sound:
            raise ConfigError(
                f"the suffix cache {target} is damaged, or no such file",
                hint="delete it; it fills again",
            )
        if whose != (tokenizer, self.vocab_size):
            raise ConfigError(
                f"the suffix cache {target} belongs to another tokenizer",
                hint="name another file for this draft",
            )
        with self._lock:
            for token in found["tokens"][-self.max_tokens // 2 :]:
                if token == _BREAK:
                    self._text = []
                self._append(token)
            for kind, (good, count) in enumerate(found["record"]):
                self._good[kind], self._all[kind] = good, count
            self._text = []


def _kind(matched: int) -> int:
    return max(bisect.bisect_right(_KINDS, matched) - 1, 0)


def _sound(record: list[list[float]]) -> bool:
    """Whether this is a record of how often each kind of repetition was right."""
    return len(record) == len(_KINDS) and all(
        0 <= good <= count <= 1000 and count > 0 for good, count in record
    )
