"""Grammars on a connection: sent once, compiled aside, refused in a sentence."""

from __future__ import annotations

import pytest

pytest.importorskip("llguidance")
import grammars  # noqa: E402
from cached_target import CachedTarget  # noqa: E402
from opens import asked

from draftwire.clock import VirtualClock  # noqa: E402
from draftwire.sampling import SCHEMES  # noqa: E402
from draftwire.sampling.grammar import Grammar as Text  # noqa: E402
from draftwire.transport.messages import (  # noqa: E402
    Block,
    Bye,
    Error,
    Grammar,
    Hello,
    Welcome,
)
from draftwire.verifier.dialogue import Dialogue  # noqa: E402
from draftwire.verifier.executor import VirtualExecutor  # noqa: E402
from draftwire.verifier.registry import Served  # noqa: E402
from draftwire.verifier.scheduler import Scheduler  # noqa: E402
from draftwire.verifier.serving.accounts import Account, Usage  # noqa: E402
from draftwire.verifier.serving.limits import Limits  # noqa: E402
from draftwire.verifier.streams import KeptStreams, Terms  # noqa: E402

V = len(grammars.WORDS)
BEGUN = len(grammars.rules_of("object").guide(0).path().ids)  # forced at once


class Slow(VirtualExecutor):
    """Compiles when it is told to."""

    def __init__(self, *args):
        super().__init__(*args)
        self.jobs = None

    def aside(self, job, done):
        if self.jobs is None:
            super().aside(job, done)
        else:
            self.jobs.append(lambda: super(Slow, self).aside(job, done))


class Lab:
    """A dialogue with a verifier in virtual time."""

    def __init__(self, capabilities=("grammar",)):
        self.clock, self.said, self.closed = VirtualClock(), [], None
        self.target = CachedTarget(V, slots=4, context=256)
        self.executor = Slow(self.target, self.clock, lambda parts, prefill: 0.01)
        served = Served(
            self.target, Scheduler(self.target, self.executor, self.clock), frozenset()
        )
        welcome = Welcome(
            *("lab", "hash", "1", "", bytes(32), b"", V, 256, 64),
            capabilities=capabilities,
            schemes=tuple(SCHEMES),
            streams=4,
        )
        terms = Terms(served, Usage(Account("", "everyone")), welcome)
        kept = KeptStreams(Limits(streams=4), self.clock.now)
        self.dialogue = Dialogue(kept, lambda hello: terms, self)
        self.take(Hello("lab", "", bytes(32), b"", V))
        self.said.clear()

    def send(self, message, stream=0):
        self.said.append((stream, message))

    def close(self, error):
        self.closed = error

    def abort(self):
        self.closed = "aborted"

    def take(self, message, number=None):
        self.dialogue.take(message, number)
        self.clock.run(lambda: False)

    def grammar(self, name_or_text, engine=None):
        text = grammars.NAMES.get(name_or_text, name_or_text)
        mark = grammars.vocabulary().mark if engine is None else engine
        self.take(Grammar(text.format, text.text.encode(), mark))
        return text.digest

    def open(self, digest, number=0, **changes):
        base = dict(prompt=(1, 2), max_new_tokens=40, grammar=digest)
        self.take(asked(**{**base, **changes}), number)

    def kinds(self):
        return [type(message).__name__ for _, message in self.said]


def test_an_open_names_what_was_sent():
    lab = Lab()
    digest = lab.grammar("object")
    assert lab.said == []
    lab.open(digest)
    lab.take(Block(0, BEGUN, ()), 0)  # a free choice behind the forced beginning
    assert lab.kinds() == ["Opened", "Commit"]
    lab.grammar("object")
    lab.open(digest, 1)
    assert lab.kinds()[-1] == "Opened"


def test_an_open_waits_until_its_grammar_is_compiled():
    lab = Lab()
    lab.executor.jobs = []
    digest = lab.grammar("object")
    lab.open(digest)
    lab.take(Block(0, BEGUN, ()), 0)
    lab.open(b"", 1)  # nobody else waits
    assert lab.kinds() == ["Opened"] and lab.said[0][0] == 1
    lab.open(digest, 2)
    lab.take(Bye("cancelled"), 2)
    assert lab.said[-1] == (2, Bye("ended", 0))
    lab.executor.jobs.pop()()
    lab.clock.run(lambda: False)
    assert [type(m).__name__ for n, m in lab.said if n == 0] == ["Opened", "Commit"]
    assert not [m for n, m in lab.said if n == 2 and not isinstance(m, Bye)]


def test_a_flood_of_grammars_ends_the_connection():
    lab = Lab()
    lab.executor.jobs = []
    for n in range(6):
        lab.grammar(Text.of_choices([f"a{'b' * n}"]))
    assert isinstance(lab.closed, Error) and lab.closed.code == "limit"


def test_blocks_that_wait_for_a_grammar_are_bounded():
    lab = Lab()
    lab.executor.jobs = []
    lab.open(lab.grammar("object"))
    for _ in range(70):
        lab.take(Block(0, BEGUN, ()), 0)
    assert isinstance(lab.closed, Error) and lab.closed.code == "limit"


def test_what_is_no_text_or_of_no_format_is_refused():
    lab = Lab()
    mark = grammars.vocabulary().mark
    for form, text in (("regex", b"\xff"), ("other", b"a")):
        lab.take(Grammar(form, text, mark))
        lab.open(Text.name(form, text))
        assert lab.said[-1][1].code == "request"
    assert lab.closed is None


def test_without_the_capability_there_are_none():
    lab = Lab(capabilities=())
    lab.open(bytes(32))
    assert lab.said[-1][1].code == "request"
    lab.grammar("object")
    assert lab.closed.code == "protocol"


def test_text_that_does_not_keep_to_its_grammar_is_refused():
    lab = Lab()
    digest = lab.grammar("object")
    lab.open(digest, text_before=2)
    assert (
        lab.said[-1][1].code == "request"
        and "keep to its grammar" in lab.said[-1][1].message
    )
