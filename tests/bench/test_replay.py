"""A replay is what was recorded: first of runs whose every number is known."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from draftwire.bench.link import LinkSpec
from draftwire.bench.link.spec import Outages
from draftwire.bench.sim import run as simulated
from draftwire.bench.sim.command import Question, answer
from draftwire.bench.sim.facts import find
from draftwire.bench.sim.replay import read_replay
from draftwire.bench.sim.run import Device
from draftwire.bench.sim.schemes import ROWS, scheme_named
from draftwire.bench.sim.simulate import Plan, simulate, synthetic_of
from draftwire.errors import ConfigError
from draftwire.transport.wirelog import WireLog

NANO = find("nano-a100").replaced(
    "assumed", "a test", cloud__forward_ms=25, draft__step_ms=10, link__rtt_ms=40,
    text__acceptance=0.8, cloud__read_ms_per_token=0.0, draft__read_ms_per_token=0.0,
    link__up_mbit_s=1e6, link__down_mbit_s=1e6,
)  # fmt: skip


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Return a function that simulates a plan and logs what crosses its wire."""

    def run(plan):
        path = tmp_path / "wire"
        logs, clocks = {}, []
        log = WireLog(path, "device", clock=lambda: clocks[0].now_s if clocks else 0.0)

        class Logged(simulated.VirtualWire):
            def __init__(self, *given):
                logs[self] = log.connection("ws://simulated")
                super().__init__(*given)

            def send(self, message, stream=0):
                size = len(self._codec.encode(message, stream))
                logs[self].message("up", message, size, stream)
                return super().send(message, stream)

            def _deliver(self, frame, up, down):
                if not self._over:
                    logs[self].message("down", frame.message, frame.size, frame.stream)
                super()._deliver(frame, up, down)

            def close(self):
                logs[self].event("closed")
                super().close()

        monkeypatch.setattr(simulated, "VirtualWire", Logged)
        outcome = simulate(plan, Device, lambda clock, device: clocks.append(clock))
        log.close()
        monkeypatch.undo()
        return path, outcome

    return run


def plan(scheme, **options):
    options.setdefault("streams", 2)
    options.setdefault("tokens", 150)
    options.setdefault("source", synthetic_of(NANO, 7, confidence="none"))
    return Plan(NANO, scheme_named(scheme, ROWS), **options)


@pytest.mark.parametrize("scheme", ["cost", "ahead2", "latency", "cloud"])
@pytest.mark.parametrize("link", ["0ms", "40ms", "120ms/jitter=10ms"])
def test_the_numbers_of_a_simulated_run_come_back(recorded, scheme, link):
    spec = LinkSpec.parse(link)
    path, outcome = recorded(plan(scheme, link=spec))
    replay = read_replay(path)
    texts = [synthetic_of(NANO, 7, confidence="none").text(i, 150) for i in range(2)]
    for text, stream, real in zip(replay.texts, replay.streams, texts):
        assert tuple(stream.tokens) == real.tokens and stream.whole
        for said, right, own in zip(stream.proposals, real.right, real.proposals):
            assert said in (None, own) and (said is None or right or said == own)
        assert len(text.tokens) == 150
    assert replay.profile["cloud.forward_ms"] == pytest.approx(25, rel=0.02)
    if scheme != "cloud":
        known = sum(len(stream.known) for stream in replay.streams)
        assert known > 150
    if scheme in ("cost", "ahead2"):
        assert replay.profile["draft.step_ms"] == pytest.approx(10, rel=0.25)
        assert replay.link.rtt_s == pytest.approx(spec.rtt_s, abs=0.012)
    assert replay.scheme.mode.objective == outcome.plan.scheme.mode.objective
    # And run again they give the run: in virtual time this can be said to the percent.
    document = answer(Question(replay=path, schemes=None))
    was, now = document["rows"]
    assert was["tokens"] == now["tokens"] == 300
    assert was["tokens_per_s"] == pytest.approx(1e3 / outcome.ms_per_token, rel=1e-3)
    assert now["tokens_per_s"] == pytest.approx(was["tokens_per_s"], rel=0.06)
    assert now["forwards_per_token"] == pytest.approx(was["forwards_per_token"], rel=0.06)


def test_a_lost_link_is_an_outage_of_the_replay(recorded):
    link = replace(LinkSpec.parse("40ms"), outages=Outages(fixed=((2.0, 7.0),)))
    path, outcome = recorded(plan("cost", link=link, streams=1))
    replay = read_replay(path)
    (stream,) = replay.streams
    ((began_s, length_s),) = stream.outages
    assert len(stream.tokens) == 150 and 1.5 < began_s < 2.1 and 6 < length_s < 9
    (one,) = replay.plans(replace(outcome.plan, link=replay.link))
    assert one.link.outages.fixed == ((began_s - stream.began_s, length_s),)
    document = answer(Question(replay=path))
    was, now = (row["tokens_per_s"] for row in document["rows"])
    assert now == pytest.approx(was, rel=0.25)


def test_another_link_and_other_schemes_can_be_asked_for(recorded):
    path, _ = recorded(plan("cost", link=LinkSpec.parse("40ms")))
    document = answer(Question(replay=path, schemes="await:2,cloud", link="200ms"))
    names = [row["scheme"] for row in document["rows"]]
    assert names == ["recorded", "as-recorded", "await:2", "cloud"]
    was, now = (row["tokens_per_s"] for row in document["rows"][:2])
    assert now < 0.6 * was
    assert json.dumps(document, allow_nan=False)


def test_what_cannot_be_replayed_is_said(recorded, tmp_path):
    path, _ = recorded(plan("cost"))
    for words in ({"acceptance": "0.5"}, {"real": "v1"}, {"hours": 1.0}):
        with pytest.raises(ConfigError, match="a replay has its own texts"):
            answer(Question(replay=path, **words))
    with pytest.raises(ConfigError, match="the board and the link of one device") as error:
        answer(Question(replay=path, gateway=True, sessions=2))
    assert "--gateway" in error.value.hint
    text = path.read_text()
    other = tmp_path / "other"
    for change, words in (
        (('"role": "device"', '"role": "verifier"'), "it is a verifier's"),
        (('"kind":"open"', '"kind":"opens"'), "no stream of two commits"),
        (('"accepted"', '"excepted"'), "has a commit that is none"),
        (('"epoch":1', '"epoch":9'), None),
    ):
        assert change[0] in text
        other.write_text(text.replace(*change))
        if words is None:
            read_replay(other)
            continue
        with pytest.raises(ConfigError, match=words):
            read_replay(other)


def test_a_damaged_log_is_refused_or_replayed(recorded, tmp_path):
    """Whatever stands in a file, one sentence comes of it and never a bug."""
    path, _ = recorded(plan("cost", streams=1, tokens=30))
    lines = path.read_text().splitlines()
    rng = random.Random(1)
    values = [None, -1, 0, 1, 10**12, 0.5, "x", [], [1], ["a"], {}, True]
    refused = 0
    for number in range(300):
        changed = list(lines)
        at = rng.randrange(len(lines))
        line = json.loads(changed[at])
        where = line if rng.random() < 0.3 else line.get("fields", line)
        if where:
            where[rng.choice(sorted(where))] = rng.choice(values)
        changed[at] = json.dumps(line)
        if rng.random() < 0.2:
            del changed[rng.randrange(len(changed))]
        other = tmp_path / str(number)
        other.write_text("\n".join(changed) + "\n")
        try:
            replay = read_replay(other)
            if number % 10 == 0:
                answer(Question(replay=other))
            assert replay.streams
        except ConfigError:
            refused += 1
    assert 30 < refused < 290
