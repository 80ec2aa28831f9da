"""The Python API against a real verifier process, with the tiny family of the fixtures."""

from __future__ import annotations

import asyncio
import json
import os

import pytest
from live import DRAFT, MODELS, WATTS, connect, ids_of, serving

import draftwire
from draftwire.errors import (
    ConfigError,
    IncompatibleError,
    PackageError,
    RefusedError,
    TransportError,
)
from draftwire.runtime.pacing.controller import FixedLength

PROMPT = "the robot and"


def test_chunks_join_to_the_text_of_the_report(session):
    chunks = list(session.generate(PROMPT, max_new_tokens=40, temperature=1.0, seed=4))
    report = session.report
    assert "".join(c.text for c in chunks) == report["text"]
    assert ids_of(chunks) == report["token_ids"]
    assert chunks[-1].finish == report["finish"] == "length"
    assert all(c.text.encode("utf-8").decode("utf-8") == c.text for c in chunks)
    assert all(a.t_s <= b.t_s for a, b in zip(chunks, chunks[1:]))
    assert report["tokens"] == 40 and report["sampling"]["seed"] == 4
    assert report["accepted"] <= report["drafted"] and report["rounds"] >= 8
    assert report["energy"]["joules"] is None and report["energy"]["why_null"]
    json.dumps(report)


def test_a_seed_that_was_not_given_is_in_the_report(session):
    how = {"max_new_tokens": 8, "temperature": 1.0}
    first = ids_of(session.generate(PROMPT, **how))
    seed = session.report["sampling"]["seed"]
    assert ids_of(session.generate(PROMPT, seed=seed, **how)) == first


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


def test_one_that_nobody_reads_is_in_nobodys_way(session):
    lying = session.generate(PROMPT, max_new_tokens=100)
    again = ids_of(session.generate(PROMPT, max_new_tokens=12))
    assert ids_of(lying)[:12] == again


def test_the_context_ends_a_text_and_a_longer_prompt_is_refused(session):
    list(session.generate([1] * 150, max_new_tokens=100))
    assert session.report["tokens"] == 10 and session.report["finish"] == "length"
    with pytest.raises(ConfigError, match=r"200 tokens, but the target holds 160"):
        session.generate([1] * 200)


def test_who_is_not_let_in_is_told_why(tmp_path):
    reference, file = MODELS / "reference.draft", tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text("the-right-token-of-it\n")
    with serving(flags=["--token-file", str(file)]) as verifier:
        for error, words, options in (
            (RefusedError, "refuses the token", {"token": "wrong"}),
            (ConfigError, "no target|nowhere", {"target": "nowhere"}),
            (PackageError, "no draft package", {"draft": tmp_path / "x.draft"}),
            (IncompatibleError, "tokenizer", {"draft": reference}),
        ):
            with pytest.raises(error, match=words):
                connect(verifier, **{"token": "the-right-token-of-it", **options})
        for url, error, words in (
            ("ws://127.0.0.1:9", TransportError, "cannot reach"),
            ("ws://verifier.example:1", ConfigError, "in the clear"),
            ("http://127.0.0.1", ConfigError, "not a verifier's address"),
        ):
            with pytest.raises(error, match=words):
                draftwire.connect(url, draft=DRAFT)
        with connect(verifier, token="the-right-token-of-it") as session:  # it lives on
            assert list(session.generate(PROMPT, max_new_tokens=2))
    session.close()
    with pytest.raises(ConfigError, match="closed"):
        list(session.generate(PROMPT))


async def test_the_async_twin_streams_the_same(verifier, session):
    expected = ids_of(session.generate(PROMPT, max_new_tokens=16))
    async with draftwire.aio.connect(verifier.url, draft=DRAFT) as twin:

        async def read():
            stream = twin.generate(PROMPT, max_new_tokens=16)
            return [token.id async for chunk in stream for token in chunk.tokens]

        async def forever():
            async for _ in twin.generate(PROMPT, max_new_tokens=150):
                started.set()

        assert await read() == twin.report["token_ids"] == expected
        started = asyncio.Event()
        task = asyncio.ensure_future(forever())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await read() == expected


def test_joules_are_accounted_by_phase_and_labelled(verifier):
    with connect(verifier, energy=WATTS) as session:
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
        assert session.report["finish"] == "budget" and 0 < session.report["tokens"] < 150
        how = {"controller": "auto", "max_watts": 1.0, "ignore_eos": True}
        list(session.generate(PROMPT, max_new_tokens=24, **how))
        assert any("budget" in w for w in session.report["warnings"])


def test_a_budget_without_a_power_source_is_refused(verifier):
    with connect(verifier, energy="off") as session:
        for budget in ({"max_joules": 1.0}, {"controller": "auto", "max_watts": 5.0}):
            with pytest.raises(ConfigError, match="needs a power source"):
                list(session.generate(PROMPT, **budget))
        list(session.generate(PROMPT, max_new_tokens=3))
        assert "switched off" in session.report["energy"]["why_null"]
    with pytest.raises(ConfigError, match="not a model of watts"):
        connect(verifier, energy="model:draft")


def test_a_controller_hears_of_verdicts_and_watts(verifier):
    class Curious(FixedLength):
        verdicts, watts = 0, None

        def judged(self, drafted, accepted):
            self.verdicts += 1

        def power(self, watts):
            self.watts = watts

    controller = Curious(3)
    how = {"max_new_tokens": 12, "controller": controller, "objective": "cost"}
    with connect(verifier, energy=WATTS) as session:
        list(session.generate(PROMPT, **how))
        # The last token may be asked for by a block without drafts.
        assert 0 <= session.report["rounds"] - controller.verdicts <= 1
        assert controller.watts["draft"] == 6.0


@pytest.mark.skipif(os.geteuid() != 0, reason="counting packets needs root")
def test_computed_wire_bytes_agree_with_a_capture(verifier):
    # Of one length and in one order: what is learned or prepared follows the clock, and the
    # drafts with it.
    said = {}
    how = {"max_new_tokens": 120, "temperature": 1.0, "seed": 2, "preempt": "off"}
    for capture, word in ((True, "captured"), (False, "computed")):
        with connect(verifier, capture=capture) as session:
            controller = FixedLength(4)
            list(session.generate(PROMPT, controller=controller, objective="cost", **how))
            said[word] = session.report["bytes"]
            assert session.report["link"]["wire_bytes"] == word
    counted, computed = said["captured"], said["computed"]
    assert counted["up_payload"] == computed["up_payload"]
    for way in ("up_wire", "down_wire"):
        # A bare acknowledgement of 52 bytes may come on top of every message; on a busy
        # machine two messages may share a packet.
        frames = session.report["rounds"] + 2
        assert abs(counted[way] - computed[way]) <= 52 * frames


def test_the_radios_signal_is_in_the_report_for_those_who_ask(
    verifier, tmp_path, monkeypatch
):
    program = tmp_path / "iw"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="cannot run iw"):
        connect(verifier, radio="iw:wlan7")
    program.write_text('#!/bin/sh\necho "$2 $3: signal: -61 dBm"\n')
    program.chmod(0o755)
    with connect(verifier, radio="iw:wlan7") as session:
        list(session.generate(PROMPT, max_new_tokens=4))
        assert session.report["link"]["radio"]["signal_dbm"] == -61.0
        program.unlink()  # as a modem that is pulled out
        list(session.generate(PROMPT, max_new_tokens=4))
        assert "cannot run iw" in session.report["link"]["radio"]["why_null"]
