"""The Python API against a real verifier process, with the tiny family of the fixtures."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

import draftwire
from draftwire.cli._local_verifier import local_verifier
from draftwire.errors import (
    ConfigError,
    IncompatibleError,
    PackageError,
    RefusedError,
    TransportError,
)

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
DRAFT = FIXTURES / "tiny.draft"
PROMPT = "the robot and"


@pytest.fixture(scope="module")
def verifier():
    with local_verifier([FIXTURES / "tiny.target"]) as found:
        yield found


@pytest.fixture
def session(verifier):
    url, token = verifier
    with draftwire.connect(url, draft=DRAFT, token=token) as found:
        yield found


def test_chunks_join_to_the_text_of_the_report(session):
    chunks = list(session.generate(PROMPT, max_new_tokens=40, temperature=1.0, seed=4))
    report = session.report
    assert "".join(c.text for c in chunks) == report["text"]
    assert [t.id for c in chunks for t in c.tokens] == report["token_ids"]
    assert chunks[-1].finish == report["finish"] == "length"
    assert all(c.text.encode("utf-8").decode("utf-8") == c.text for c in chunks)
    assert all(a.t_s <= b.t_s for a, b in zip(chunks, chunks[1:]))
    assert report["tokens"] == 40 and report["sampling"]["seed"] == 4
    assert report["accepted"] <= report["drafted"] and report["rounds"] >= 8
    assert report["energy"]["joules"] is None and report["energy"]["why_null"]
    json.dumps(report)


def test_a_seed_that_was_not_given_is_in_the_report(session):
    list(session.generate(PROMPT, max_new_tokens=8, temperature=1.0))
    first, seed = session.report["token_ids"], session.report["sampling"]["seed"]
    list(session.generate(PROMPT, max_new_tokens=8, temperature=1.0, seed=seed))
    assert session.report["token_ids"] == first


def test_texts_that_share_their_noise_are_warned_of(session):
    def warnings(prompt=PROMPT, **which):
        list(session.generate(prompt, max_new_tokens=4, seed=7, **which))
        return [w for w in session.report["warnings"] if "noise" in w]

    assert not warnings() and not warnings()  # greedy: there is none
    assert not warnings(temperature=1.0)
    assert not warnings(temperature=1.0, sample=1)
    assert session.report["sampling"]["sample"] == 1
    assert "seed 7 and sample 0" in warnings(temperature=1.0)[0]
    # A text that goes on where an earlier one ended meets none of its positions.
    assert not warnings(PROMPT + " and so it went on for a long time", temperature=1.0)


def test_each_sample_of_a_seed_is_a_text_of_its_own(session):
    def text(**which):
        list(
            session.generate(
                PROMPT,
                max_new_tokens=16,
                temperature=1.0,
                seed=7,
                objective="cost",
                **which,
            )
        )
        assert session.report["accepted"] > 0  # both halves draw with the sample
        return tuple(session.report["token_ids"])

    texts = [text(), *(text(sample=sample) for sample in (1, 2, 2**32 - 1))]
    assert len(set(texts)) == 4
    assert text(sample=2, block=1, pipeline=3) == texts[2]


def test_a_stop_string_ends_the_text_before_it(session):
    list(session.generate(PROMPT, max_new_tokens=40))
    text = session.report["text"]
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    assert len(stop) == 3
    found = "".join(
        c.text for c in session.generate(PROMPT, max_new_tokens=40, stop=[stop])
    )
    assert found == text[: text.index(stop)]
    assert session.report["finish"] == "stop" and session.report["text"] == found


def test_streams_follow_each_other_on_one_connection(session):
    alone = [list(session.generate(PROMPT, max_new_tokens=12)) for _ in range(3)]
    ids = [[t.id for c in chunks for t in c.tokens] for chunks in alone]
    assert ids[0] == ids[1] == ids[2]
    # One that nobody reads goes on, and is in nobody's way.
    lying = session.generate(PROMPT, max_new_tokens=100)
    again = [t.id for c in session.generate(PROMPT, max_new_tokens=12) for t in c.tokens]
    assert again == ids[0]
    assert [t.id for c in lying for t in c.tokens][:12] == ids[0]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1}, "temperature is -1"),
        ({"scheme": "nonsense"}, "nonsense"),
        ({"block": 0}, "block is 0"),
        ({"controller": "magic"}, "controller is .magic."),
        ({"offline": "pray"}, "offline is 'pray'"),
        ({"deadline_s": 0}, "deadline_s"),
    ],
)
def test_bad_options_are_named_before_anything_is_sent(session, options, complaint):
    with pytest.raises(ConfigError, match=complaint):
        session.generate(PROMPT, **options)
    assert sum(len(c.tokens) for c in session.generate(PROMPT, max_new_tokens=3)) == 3


def test_a_prompt_beyond_the_context_gives_both_numbers(session):
    with pytest.raises(ConfigError, match=r"200 tokens, but the target holds 160"):
        session.generate([1] * 200)
    with pytest.raises(ConfigError, match="outside 0"):
        session.generate([10**6])
    with pytest.raises(ConfigError, match="empty"):
        session.generate([])


def test_the_context_ends_a_text(session):
    list(session.generate([1] * 150, max_new_tokens=100))
    assert session.report["tokens"] == 10 and session.report["finish"] == "length"


def test_who_is_not_let_in_is_told_why(verifier, tmp_path):
    url, token = verifier
    with pytest.raises(RefusedError, match="refuses the token"):
        draftwire.connect(url, draft=DRAFT, token="wrong")
    with pytest.raises(ConfigError, match="no target|nowhere"):
        draftwire.connect(url, draft=DRAFT, token=token, target="nowhere")
    with pytest.raises(TransportError, match="cannot reach"):
        draftwire.connect("ws://127.0.0.1:9", draft=DRAFT)
    with pytest.raises(ConfigError, match="in the clear"):
        draftwire.connect("ws://verifier.example:1", draft=DRAFT)
    with pytest.raises(ConfigError, match="not a verifier's address"):
        draftwire.connect("http://127.0.0.1", draft=DRAFT)
    with pytest.raises(PackageError, match="no draft package"):
        draftwire.connect(url, draft=tmp_path / "x.draft", token=token)
    with draftwire.connect(url, draft=DRAFT, token=token) as session:  # it lives on
        assert list(session.generate(PROMPT, max_new_tokens=2))


def test_a_draft_of_another_tokenizer_is_refused(verifier):
    reference = Path(__file__).resolve().parents[2] / "models" / "reference.draft"
    url, token = verifier
    with pytest.raises(IncompatibleError, match="tokenizer"):
        draftwire.connect(url, draft=reference, token=token)


def test_a_closed_session_says_so(verifier):
    url, token = verifier
    session = draftwire.connect(url, draft=DRAFT, token=token)
    session.close()
    session.close()
    with pytest.raises(ConfigError, match="closed"):
        list(session.generate(PROMPT))


def test_the_async_twin_streams_the_same(verifier, session):
    url, token = verifier
    list(session.generate(PROMPT, max_new_tokens=16))
    expected = session.report["token_ids"]

    async def use():
        async with draftwire.aio.connect(url, draft=DRAFT, token=token) as twin:
            ids = [
                t.id
                async for chunk in twin.generate(PROMPT, max_new_tokens=16)
                for t in chunk.tokens
            ]
            assert twin.report["token_ids"] == ids

            async def forever():
                async for _ in twin.generate(PROMPT, max_new_tokens=150):
                    started.set()

            started = asyncio.Event()
            task = asyncio.ensure_future(forever())
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            after = [
                t.id
                async for chunk in twin.generate(PROMPT, max_new_tokens=16)
                for t in chunk.tokens
            ]
            assert after == ids
            return ids

    assert asyncio.run(asyncio.wait_for(use(), 60)) == expected


WATTS = "model:prefill=9,draft=6,transmit=4,verify-wait=3,wait=2,idle=1"


def test_joules_are_accounted_by_phase_and_labelled(verifier):
    url, token = verifier
    with draftwire.connect(url, draft=DRAFT, token=token, energy=WATTS) as session:
        list(session.generate(PROMPT, max_new_tokens=40, objective="cost"))
        energy = session.report["energy"]
        assert energy["source"] == "model:flags" and energy["scope"] == "modelled"
        assert {"prefill", "draft", "transmit", "verify-wait"} <= set(energy["by_phase"])
        assert sum(energy["by_phase"].values()) == pytest.approx(energy["joules"])
        total = session.report["seconds"]["total"]
        assert sum(energy["seconds_by_phase"].values()) == pytest.approx(total, rel=0.2)
        assert energy["joules"] <= 9 * total * 1.2
        # A budget of a third of that ends the text early, and says why.
        third = energy["joules"] / 3
        list(session.generate(PROMPT, max_new_tokens=150, max_joules=third))
        report = session.report
        assert report["finish"] == "budget" and 0 < report["tokens"] < 150


def test_a_budget_without_a_power_source_is_refused(verifier):
    url, token = verifier
    with draftwire.connect(url, draft=DRAFT, token=token, energy="off") as session:
        with pytest.raises(ConfigError, match="needs a power source"):
            list(session.generate(PROMPT, max_joules=1.0))
        list(session.generate(PROMPT, max_new_tokens=3))
        assert "switched off" in session.report["energy"]["why_null"]
    with pytest.raises(ConfigError, match="not a model of watts"):
        draftwire.connect(url, draft=DRAFT, token=token, energy="model:draft")


def test_a_controller_hears_of_verdicts_and_watts(verifier):
    from draftwire.runtime.pacing.controller import FixedLength

    class Curious(FixedLength):
        verdicts, watts = 0, None

        def judged(self, drafted, accepted):
            self.verdicts += 1

        def power(self, watts):
            self.watts = watts

    url, token = verifier
    controller = Curious(3)
    with draftwire.connect(url, draft=DRAFT, token=token, energy=WATTS) as session:
        list(
            session.generate(
                PROMPT, max_new_tokens=12, controller=controller, objective="cost"
            )
        )
        # The last token may be asked for by a block without drafts.
        assert 0 <= session.report["rounds"] - controller.verdicts <= 1
        assert controller.watts["draft"] == 6.0


CAPTURED = {"max_new_tokens": 120, "temperature": 1.0, "seed": 2, "objective": "cost"}


@pytest.mark.skipif(os.geteuid() != 0, reason="counting packets needs root")
def test_computed_wire_bytes_agree_with_a_capture(verifier):
    url, token = verifier
    with draftwire.connect(url, draft=DRAFT, token=token, capture=True) as session:
        list(session.generate(PROMPT, **CAPTURED))
        counted = session.report["bytes"]
        assert session.report["link"]["wire_bytes"] == "captured"
    with draftwire.connect(url, draft=DRAFT, token=token) as session:
        list(session.generate(PROMPT, **CAPTURED))
        computed = session.report["bytes"]
        assert session.report["link"]["wire_bytes"] == "computed"
    assert counted["up_payload"] == computed["up_payload"]
    for way in ("up_wire", "down_wire"):
        # A bare acknowledgement of 52 bytes may come on top of every message; on a busy
        # machine two messages may share a packet.
        frames = session.report["rounds"] + 2
        assert abs(counted[way] - computed[way]) <= 52 * frames


def test_the_radios_signal_is_in_the_report_for_those_who_ask(
    verifier, tmp_path, monkeypatch
):
    url, token = verifier
    program = tmp_path / "iw"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="cannot run iw"):
        draftwire.connect(url, draft=DRAFT, token=token, radio="iw:wlan7")
    program.write_text('#!/bin/sh\necho "$2 $3: signal: -61 dBm"\n')
    program.chmod(0o755)
    with draftwire.connect(url, draft=DRAFT, token=token, radio="iw:wlan7") as session:
        list(session.generate(PROMPT, max_new_tokens=4))
        assert session.report["link"]["radio"]["signal_dbm"] == -61.0
        program.unlink()  # as a modem that is pulled out
        list(session.generate(PROMPT, max_new_tokens=4))
        assert "cannot run iw" in session.report["link"]["radio"]["why_null"]
