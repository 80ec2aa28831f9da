"""Laws 1 and 2 over random histories of every mechanism.

``make test`` runs 10,000 over all of them; ``make slow`` 10,000 for each.
"""

import dataclasses
import os

import pytest
import world

from draftwire.errors import ProtocolError
from draftwire.transport.messages import Commit, Provisional

HISTORIES = int(os.environ.get("DRAFTWIRE_HISTORIES", "10000"))
PARTS = 5
MECHANISMS = sorted(world.MECHANISMS)


def run(mechanism, part, count):
    for seed in range(part, count, PARTS):
        world.check_history(seed, mechanism)


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_histories(mechanism, part):
    run(mechanism, part, HISTORIES // len(MECHANISMS))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_10000_histories_of_each_mechanism(mechanism, part):
    run(mechanism, part, max(HISTORIES, 10000))


def test_a_verifier_that_loses_a_token_on_resume_is_caught(monkeypatch):
    """The histories can fail: a planted mistake breaks some of them."""
    honest = world.TargetSession.resume

    def forgetful(self, position):
        answer = honest(self, position)
        return dataclasses.replace(answer, tokens=answer.tokens[1:])

    monkeypatch.setattr(world.TargetSession, "resume", forgetful)
    with pytest.raises((AssertionError, ProtocolError)):
        for seed in range(1000):
            world.check_history(seed)


def test_an_early_exit_that_is_taken_for_a_verdict_is_caught(monkeypatch):
    """Nor may provisional tokens become text: this mistake must show."""
    honest = world.EdgeSession.message

    def hasty(self, message):
        if isinstance(message, Provisional):
            message = Commit(message.epoch, message.accepted, message.token)
        return honest(self, message)

    monkeypatch.setattr(world.EdgeSession, "message", hasty)
    with pytest.raises((AssertionError, ProtocolError)):
        for seed in range(300):
            world.check_history(seed, "preempt")
