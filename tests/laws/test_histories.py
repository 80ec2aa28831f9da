"""Laws 1 and 2 over 10,000 random histories; ``DRAFTWIRE_HISTORIES`` asks for more."""

import dataclasses
import os

import pytest
import world

from draftwire.errors import ProtocolError

HISTORIES = int(os.environ.get("DRAFTWIRE_HISTORIES", "10000"))
PARTS = 10


@pytest.mark.parametrize("part", range(PARTS))
def test_histories(part):
    for seed in range(part, HISTORIES, PARTS):
        world.check_history(seed)


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
