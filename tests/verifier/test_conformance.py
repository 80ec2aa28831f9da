"""The conformance kit passes our verifier, and finds each fault in the right rows."""

from __future__ import annotations

import dataclasses
import http

import pytest
from verifier_lab import VOCAB, ArithmeticBackend, run, serving

from draftwire.errors import ProtocolError, RefusedError
from draftwire.transport.codec import Codec
from draftwire.transport.messages import (
    Block,
    Commit,
    Error,
    Finish,
    Hello,
    Opened,
    Resumed,
)
from draftwire.verifier import connection as connection_module
from draftwire.verifier.accounts import Accounts
from draftwire.verifier.checks import CHECKS
from draftwire.verifier.conformance import Kit, run_checks
from draftwire.verifier.connection import Connection
from draftwire.verifier.dialogue import Dialogue
from draftwire.verifier.greeting import error_of
from draftwire.verifier.service import VerifierService
from draftwire.verifier.target_session import TargetSession

HELLO = Hello("kit", "", b"\xaa" * 32, b"\xbb" * 32, VOCAB, family="arithmetic")
TOKEN = "t" * 20


def failed_rows(kind=VerifierService, **options):
    results = []

    async def test():
        async with serving(
            ArithmeticBackend(slots=6), kind=kind, accounts=Accounts.of(TOKEN), **options
        ) as service:
            kit = Kit(service.url, HELLO, TOKEN, patience_s=3.0)
            results.extend(await run_checks(kit, CHECKS))

    run(test)
    return {r.name for r in results if r.result == "fail"}, results


def service_with(session=None, send=None, **methods):
    """Return a service whose dialogues have other methods or another session."""
    wrong = {"dialogue_class": type("FaultyDialogue", (Dialogue,), methods)}
    if send is not None:
        wrong["send"] = send

    class Faulty(VerifierService):
        connection_class = type("FaultyConnection", (Connection,), wrong)

        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.kept.session_class = session or TargetSession

    return Faulty


def session_with(**methods):
    return service_with(type("FaultySession", (TargetSession,), methods))


def sends(change):
    """Return a ``send`` that sends ``change(message)``; None sends nothing."""

    def send(self, message):
        message = change(message)
        if message is not None:
            Connection.send(self, message)

    return {"send": send}


def test_the_reference_verifier_conforms():
    failed, results = failed_rows()
    assert failed == set()
    assert {r.name for r in results if r.result == "skip"} == {
        "error busy",
        "error draining",
        "error internal",
    }
    assert len({r.name for r in results}) == len(results) > 40
    assert all(r.detail for r in results if r.result != "pass")


# ---- faults of the session

RESUMES = {
    "resume: the text goes on",
    "resume: a lost commit",
    "resume: a lost finish",
    "resume: half-open connection",
    "resume: wrong secret",
}


def one_more(self, work, decision, **times):
    """Accept a draft more than is right."""
    answers = TargetSession.settle(self, work, decision, **times)
    return [
        dataclasses.replace(a, accepted=a.accepted + 1) if a.accepted < work.drafted else a
        for a in answers
    ]


def judges_the_dead(self, block):
    return TargetSession.receive(self, dataclasses.replace(block, epoch=self.epoch))


def forgives_gaps(self, block):
    try:
        return TargetSession.receive(self, block)
    except ProtocolError:
        return [Error("request", "never mind", fatal=False)]


def never_stops(self, tokens):
    return len(tokens)


def keeps_the_epoch(self, position):
    return dataclasses.replace(TargetSession.resume(self, position), position=0)


def repeats(self, position):
    return TargetSession.resume(self, max(0, position - 1))


def ignores_more(self, block):
    return TargetSession.receive(self, dataclasses.replace(block, more=False))


SESSION_FAULTS = {
    "accepts one draft too many": (
        {"settle": one_more},
        {"wrong drafts", "coupled: drafts change nothing"},
    ),
    "judges blocks of dead branches": (
        {"receive": judges_the_dead},
        {"late blocks of a dead branch", "epochs ahead and around"},
    ),
    "takes protocol errors lightly": (
        {"receive": forgives_gaps},
        {"a gap is an error", "a correction nobody asked for", "drafts above max_block"},
    ),
    "does not know stop ids": ({"_first_stop": never_stops}, {"stop ids"}),
    "judges half a block": (
        {"receive": ignores_more},
        {"a block in two frames"},
    ),
    "resumes at another place": (
        {"resume": repeats},
        {"resume: the text goes on", "resume: a lost commit", "resume: a lost finish"},
    ),
    "names another position": (
        {"resume": keeps_the_epoch},
        {"resume: the text goes on"},
    ),
}


@pytest.mark.parametrize("fault", SESSION_FAULTS)
def test_a_fault_of_the_session_shows_in_its_rows(fault):
    methods, rows = SESSION_FAULTS[fault]
    assert failed_rows(session_with(**methods))[0] == rows


# ---- faults of the connection


def other_code(code, wrong):
    def change(message):
        if isinstance(message, Error) and message.code == code:
            return dataclasses.replace(message, code=wrong)
        return message

    return sends(change)


def no_length(message):
    if isinstance(message, Commit) and message.finish is Finish.LENGTH:
        return dataclasses.replace(message, finish=Finish.NOT_YET)
    return message


def one_secret(message):
    if isinstance(message, Opened) and message.secret:
        return dataclasses.replace(message, secret=b"s" * 16)
    return message


def forgets_the_rest(message):
    if isinstance(message, Resumed):
        return dataclasses.replace(message, tokens=())
    return message


def ends_nothing(self, message):
    if type(message).__name__ != "Bye" or self.terms is None:
        Dialogue._take(self, message)


def swallows_resumes(self, request, terms):
    self._peer.send(error_of(RefusedError("not now")))


CONNECTION_FAULTS = {
    "says request for session": (
        other_code("session", "request"),
        {"resume: wrong secret", "resume: not after a bye"},
    ),
    "says busy for request": (other_code("request", "busy"), {"error request"}),
    "says target for tokenizer": (other_code("tokenizer", "target"), {"error tokenizer"}),
    "says internal for version": (other_code("version", "internal"), {"error version"}),
    "forgets to say length": (sends(no_length), {"length"}),
    "uses one secret for all": (sends(one_secret), {*RESUMES, "resume: ids and secrets"}),
    "resumes without the rest": (
        sends(forgets_the_rest),
        {"resume: a lost commit", "resume: a lost finish"},
    ),
    "ignores bye": (
        {"_take": ends_nothing},
        {"bye, then the next stream", "resume: not after a bye"},
    ),
    "never resumes": (
        {"_resume": swallows_resumes},
        {*RESUMES, "resume: not after a bye"},
    ),
}


@pytest.mark.parametrize("fault", CONNECTION_FAULTS)
def test_a_fault_of_the_connection_shows_in_its_rows(fault):
    methods, rows = CONNECTION_FAULTS[fault]
    assert failed_rows(service_with(**methods))[0] == rows


# ---- faults of the service, the greeting and the codec


def test_a_door_that_stands_open():
    class Open(VerifierService):
        def _before_upgrade(self, socket, request):
            answer = super()._before_upgrade(socket, request)
            if answer is not None and answer.status_code == http.HTTPStatus.UNAUTHORIZED:
                socket.account_usage = self.accounts.all[0]
                return None
            return answer

    assert failed_rows(Open)[0] == {"token"}


def test_a_secret_that_is_not_compared():
    class Trusting(VerifierService):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            find = self.kept._find

            def trusting(request, *more):
                stream = self.kept._known.get(request.session)
                secret = stream.secret if stream else request.secret
                return find(dataclasses.replace(request, secret=secret), *more)

            self.kept._find = trusting

    assert failed_rows(Trusting)[0] == {"resume: wrong secret"}


GREETING_FAULTS = {
    "has capabilities nobody offered": (
        {"capabilities": ("teleport", "resume")},
        {"capabilities", "resume: ids and secrets"},
    ),
    "keeps its own vocabulary": ({"vocab_size": VOCAB}, {"smaller vocabulary"}),
    "is always family": ({"compatibility": "family"}, {"other backbone"}),
    "cannot say greedy": ({"schemes": ("coupled",)}, {"welcome"}),
}


@pytest.mark.parametrize("fault", GREETING_FAULTS)
def test_a_fault_of_the_greeting_shows_in_its_rows(fault, monkeypatch):
    changes, rows = GREETING_FAULTS[fault]
    right = connection_module.welcome_to

    def wrong(*terms):
        return dataclasses.replace(right(*terms), **changes)

    monkeypatch.setattr(connection_module, "welcome_to", wrong)
    assert failed_rows()[0] == rows


class Sloppy(Codec):
    """Takes what is not valid for an empty block."""

    def decode(self, data):
        try:
            return super().decode(data)
        except ProtocolError:
            return Block(0, 0, ())


def test_a_codec_that_takes_anything(monkeypatch):
    monkeypatch.setattr(connection_module, "Codec", Sloppy)
    assert (
        failed_rows()[0]
        == {
            "longer varint than needed",
            "varint above 2^64",
            "id outside the vocabulary",
            "spare bits",
            "frames of no kind",
            "frames cut short",
        }
        | {"unknown field"} & failed_rows()[0]
    )
