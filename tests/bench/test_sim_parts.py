"""Parts of the simulator: drafter, verifier, recordings, traces, the command."""

import json
import os
import random
import threading
from pathlib import Path

import numpy as np
import pytest

from draftwire.bench.link import LinkSpec
from draftwire.bench.sim.cloud import ForwardCost, SimStream, SimVerifier
from draftwire.bench.sim.device import SimDrafter, StepCost
from draftwire.bench.sim.events import Loop
from draftwire.bench.sim.facts import find
from draftwire.bench.sim.recording import SCHEMA, read_recording, record
from draftwire.bench.sim.schemes import scheme_named
from draftwire.bench.sim.simulate import Plan, simulate
from draftwire.bench.sim.texts import Synthetic, TextDraft, TextTarget, parse_luck
from draftwire.cli import main
from draftwire.errors import ConfigError
from draftwire.runtime.actions import Draft
from draftwire.runtime.drafter import Drafter
from draftwire.sampling import SamplingParams, make_proposer
from draftwire.transport.messages import Block, Open
from draftwire.verifier.target_session import TargetSession

ROOT = Path(__file__).resolve().parents[2]
CHANNEL = Path(os.environ.get("DRAFTWIRE_SHARED", ROOT.parent / "shared")) / "data/channel"
GREEDY = SamplingParams("greedy", 0.0)


def a_text(tokens=60, luck="1.0", prompt=5):
    return Synthetic(parse_luck(luck), prompt_tokens=prompt).text(0, tokens)


# ---- the clock


def test_what_is_asked_for_first_happens_first():
    loop, seen = Loop(), []
    loop.after(2.0, seen.append, "late")
    loop.after(1.0, seen.append, "b")
    loop.at(1.0, seen.append, "c")
    loop.at(-5.0, seen.append, "now, not before")
    loop.run()
    assert seen == ["now, not before", "b", "c", "late"]
    assert loop.now_s == 2.0 and loop.now_ns() == 2_000_000_000
    assert loop.run(lambda: True) is False


# ---- the drafter


def drafter(text, cost):
    loop, found = Loop(), []
    made = SimDrafter(
        loop, cost, text.width, lambda b, p: found.append((loop.now_s, b, p.token))
    )
    made.begin(TextDraft(text), make_proposer(GREEDY, text.width))
    return loop, made, found


def test_a_draft_takes_a_step_a_token_and_reading_takes_what_it_takes():
    text = a_text(prompt=600)
    loop, made, found = drafter(text, StepCost(0.010, few=16, read_s=0.001))
    made.submit(Draft(1, 0, text.prompt, 3))
    loop.run()
    # 600 tokens in pieces of 256, 256 and 88; all but 16 of each are paid for.
    first = 3 * 0.010 + (240 + 240 + 72) * 0.001
    times = [t for t, _, _ in found]
    assert times == pytest.approx([first, first + 0.010, first + 0.020])
    assert [token for _, _, token in found] == list(text.tokens[:3])
    assert made.prefill_s == pytest.approx(first) and made.steps == 3
    assert made.draft_s == pytest.approx(0.020)
    # A few tokens at once cost one step.
    made.submit(Draft(2, len(text.prompt) + 1, text.tokens[1:5], 1))
    loop.run()
    assert found[-1][0] == pytest.approx(first + 0.030)
    assert found[-1][2] == text.tokens[5]


def test_an_order_waits_for_the_forward_at_work_and_no_longer():
    text = a_text()
    loop, made, found = drafter(text, StepCost(0.010))
    made.submit(Draft(1, 0, text.prompt, 10))
    other = (text.tokens[0] + 1) % text.width
    loop.at(0.025, made.submit, Draft(2, len(text.prompt), (other,), 2))
    loop.run()
    branches = [(round(t, 6), b) for t, b, _ in found]
    assert branches == [(0.01, 1), (0.02, 1), (0.03, 1), (0.04, 2), (0.05, 2)]
    # Every order edits the sequence, even one that is overtaken at once.
    loop.at(loop.now_s, made.submit, Draft(3, len(text.prompt), (), 5))
    loop.at(loop.now_s, made.submit, Draft(4, len(text.prompt), text.tokens[:2], 1))
    loop.run()
    assert found[-1][1:] == (4, text.tokens[2])


def test_a_stream_that_is_over_says_nothing_more():
    text = a_text()
    loop, made, found = drafter(text, StepCost(0.010))
    made.submit(Draft(1, 0, text.prompt, 10))
    loop.at(0.015, lambda: made.begin(TextDraft(text), make_proposer(GREEDY, text.width)))
    loop.run()
    assert len(found) == 1


class Gated(TextDraft):
    """A draft whose forwards end when they are told to."""

    def __init__(self, text):
        super().__init__(text)
        self.began, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def forward(self, tokens):
        self.began.release()
        assert self.go.acquire(timeout=30)
        return super().forward(tokens)


@pytest.mark.parametrize("seed", range(4))
def test_it_does_what_the_drafting_thread_does(seed):
    """The same orders at the same moments: the same proposals with the same tags."""
    rng = random.Random(seed)
    text = a_text(60, "0.7", prompt=300)
    loop, made, found = drafter(text, StepCost(0.010))
    model, real = Gated(text), []
    thread = Drafter(
        model,
        vocab_size=text.width,
        on_proposal=lambda branch, p: real.append((branch, p.token)),
        on_error=lambda error: real.append(error),
    )
    thread.begin(make_proposer(GREEDY, text.width))
    try:
        length = 0
        for branch in range(1, 40):
            valid = rng.randint(max(0, length - 6), length) if length else 0
            known = text.prompt + text.tokens
            tokens = known[valid : max(300, valid) + rng.randint(0, 3)]
            order = Draft(branch, valid, tuple(tokens), rng.randint(0, 4))
            idle = not made.busy
            made.submit(order)
            thread.submit(order)
            if idle and made.busy:
                assert model.began.acquire(timeout=30)
            for _ in range(rng.randint(0, 5)):
                if not made.busy:
                    break
                loop.run(lambda: True)  # the forward ends ...
                model.go.release()  # ... here and there
                if made.busy:
                    assert model.began.acquire(timeout=30)
            length = len(made._sequence)
            if made._orders:
                length = min(length, made._orders[0].valid)
        while made.busy:
            loop.run(lambda: True)
            model.go.release()
            if made.busy:
                assert model.began.acquire(timeout=30)
    finally:
        for _ in range(5):
            model.go.release()
        thread.close()
    assert len(real) > 20
    assert real == [(branch, token) for _, branch, token in found]
    assert thread.steps == made.steps


# ---- the verifier


def stream_of(text, sent):
    request = Open(1, text.prompt, "greedy", 0.0, 0, 1.0, 0, len(text.tokens))
    session = TargetSession(request, vocab_size=text.width, context=4096, max_block=255)
    return SimStream(session, TextTarget(text), sent.extend)


def test_blocks_of_sessions_share_a_forward_and_prompts_take_turns():
    loop = Loop()
    cost = ForwardCost(0.020, free=4, token_s=0.001, session_s=0.002, read_s=0.0001)
    verifier = SimVerifier(loop, cost)
    text, long = a_text(), a_text(prompt=300)
    sent, late = [], []
    streams = [stream_of(text, sent) for _ in range(3)]
    slow = stream_of(long, late)
    for stream in streams:
        verifier.wake(stream)
    loop.run()
    # Four prompt tokens each, read together; the fifth waits for a block.
    assert loop.now_s == pytest.approx(0.020 + 12 * 0.0001)
    assert verifier.forwards == 0
    start = loop.now_s
    for stream in streams:
        stream.session.receive(Block(0, 0, text.tokens[:5]))
        verifier.wake(stream)
    verifier.wake(slow)
    loop.run()
    assert [(m.accepted, m.token) for m in sent] == [(5, text.tokens[5])] * 3
    # One forward of three blocks, 18 tokens, 12 of them free; three pieces of a prompt.
    judging = 0.020 + 6 * 0.001 + 2 * 0.002
    assert verifier.forwards == 1 and verifier.tokens == 18
    reading = 3 * 0.020 + 299 * 0.0001
    assert loop.now_s - start == pytest.approx(judging + reading)
    assert [m.compute_s for m in sent] == [pytest.approx(judging)] * 3
    assert max(m.queue_s for m in sent) <= 0.020 + 128 * 0.0001 + 1e-9


def test_costs_of_forwards():
    cost = ForwardCost(1.0, free=3, token_s=0.1, session_s=0.5, read_s=0.01)
    assert cost(3) == 1.0 and cost(5) == pytest.approx(1.2)
    assert cost(8, 2) == pytest.approx(1.0 + 0.2 + 0.5)
    assert cost.reading(100) == pytest.approx(2.0)
    with pytest.raises(ConfigError):
        SimVerifier(Loop(), cost, max_batch=0)


# ---- recordings

PROFILE = find("nano-a100")


def document(**changes):
    text = {
        "prompt": [7, 900],
        "tokens": [5, 7, 900, 5, 31],
        "proposals": [5, 7, 901, 5, 31],
        "second": [6, 6, 900, 6, 6],
        "confidence": [0.9, 0.8, 0.3, 0.99, 1.0],
    }
    return {
        "schema": SCHEMA,
        "vocabulary": 1000,
        "texts": [{**text, **changes.pop("text", {})}],
        **changes,
    }


def test_a_recording_is_played_back(tmp_path):
    path = tmp_path / "text.json"
    path.write_text(json.dumps(document()))
    found = read_recording(path)
    assert found.acceptance == pytest.approx(0.8) and found.vocabulary == 1000
    text = found.text(3, 100)
    assert text.right == [True, True, False, True, True]
    assert text.tokens[0] == text.tokens[3] and text.second[2] == text.tokens[2]
    assert max(text.prompt + text.tokens + text.proposals) < text.width <= 8
    outcome = simulate(
        Plan(
            PROFILE,
            scheme_named("await"),
            source=found,
            tokens=5,
            streams=2,
            vocabulary=1000,
        )
    )
    assert [tuple(s.ids) for s in outcome.streams] == [text.tokens] * 2
    assert outcome.streams[0].edge.counts.accepted >= 2


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "cannot read"),
        ("[]", "no recording"),
        (json.dumps(document(schema="draftwire.simtext/9")), "no recording"),
        (json.dumps(document(vocabulary=0)), "vocabulary"),
        (json.dumps(document(texts=[])), "no text"),
        (json.dumps(document(texts=[3])), "no object"),
        (json.dumps(document(text={"tokens": []})), "no list 'tokens'"),
        (json.dumps(document(text={"tokens": [1]})), "differ in length"),
        (json.dumps(document(text={"second": [6, 6, 1000, 6, 6]})), "no such number"),
        (json.dumps(document(text={"second": [6, 6, True, 6, 6]})), "no such number"),
        (json.dumps(document(text={"confidence": [2, 0, 0, 0, 0]})), "no such number"),
    ],
)
def test_a_damaged_recording_is_refused(tmp_path, content, complaint):
    path = tmp_path / "text.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=complaint):
        read_recording(path)


def test_recording_asks_both_models_for_the_same_places():
    text = a_text(40, "0.7", prompt=130)

    class Target:
        vocab_size, context, eos_ids = text.width, 4096, ()

        def __init__(self):
            self.model, self.length = TextTarget(text), 0

        def allocate(self):
            return 0

        def release(self, slot):
            pass

        def forward(self, batch):
            (item,) = batch
            assert item.start <= self.length
            self.length = item.start + len(item)
            return [self.model.run(item.start, item.tokens, item.rows)]

    class Draft(TextDraft):
        vocab_size = text.width

    made = record(Draft(text), Target(), [text.prompt], tokens=30, about={"draft": "x"})
    one = made["texts"][0]
    assert one["tokens"] == list(text.tokens[:30])
    assert one["proposals"] == list(text.proposals[:30])
    assert np.allclose(one["confidence"], text.confidence[:30], atol=0.05)
    assert made["draft"] == "x" and made["vocabulary"] == text.width


# ---- traces


def trace_plan(up, down, tokens=100):
    link = LinkSpec.parse(f"40ms,trace-up:{up},trace-down:{down}")
    return Plan(PROFILE, scheme_named("await"), link=link, tokens=tokens, streams=1)


def test_a_trace_with_a_hole_stalls_the_stream_and_changes_no_token(tmp_path):
    up, down = tmp_path / "up.csv", tmp_path / "down.csv"
    up.write_text("t_s,mbit_s\n0,5\n1,0\n3,5\n600,5\n")
    down.write_text("t_s,mbit_s\n0,20\n600,20\n")
    held = simulate(trace_plan(up, down)).streams[0]
    up.write_text("t_s,mbit_s\n0,5\n600,5\n")
    free = simulate(trace_plan(up, down)).streams[0]
    assert held.ids == free.ids
    assert 1.7 < held.last_s - free.last_s < 2.1


@pytest.mark.skipif(not CHANNEL.is_dir(), reason="the recorded channel traces are absent")
def test_real_traces_are_played():
    for name in ("nyc_lte_subway_down", "wifi_office_beijing", "norway_3g_ferry"):
        path = CHANNEL / f"{name}.csv"
        outcome = simulate(trace_plan(path, path))
        assert len(outcome.streams[0].ids) == 100
        assert 20 < outcome.ms_per_token < 2000, name


# ---- the command


def run(capsys, *words):
    code = main(["bench", "simulate", *words])
    return code, capsys.readouterr()


def test_the_command_prints_tables(capsys):
    code, said = run(capsys, "--scheme", "cloud,await", "--tokens", "60", "--k", "6")
    assert code == 0
    for word in ("simulated", "fixed:6", "clairvoyant bound", "assumed", "ms/token"):
        assert word in said.out
    code, said = run(capsys, "--profiles")
    assert code == 0 and "picospec-llama-humaneval" in said.out


def test_the_command_writes_json(capsys, tmp_path):
    path = tmp_path / "out.json"
    words = ["--scheme", "await", "--tokens", "40", "--streams", "2", "--runs"]
    code, said = run(capsys, *words, "--link", "30ms/2mbit", "--json", str(path))
    assert code == 0
    found = json.loads(path.read_text())
    assert found["schema"] == "draftwire.bench/1" and found["simulated"] is True
    assert found["rows"][0]["scheme"] == "await" and len(found["runs"]) == 2
    assert all(run["simulated"] for run in found["runs"])
    assert all(fact["source"] for fact in found["facts"])
    assert found["link"]["name"] == "30ms/2mbit"


def test_the_command_draws(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "out.png"
    words = ["--scheme", "await,cloud", "--tokens", "40", "--streams", "1"]
    code, said = run(capsys, *words, "--plot", str(picture))
    assert code == 0 and picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "words",
    [
        ("--profile", "nano"),
        ("--scheme", "magic"),
        ("--link", "fast"),
        ("--k", "0"),
        ("--k", "some"),
        ("--objective", "beauty"),
        ("--acceptance", "2"),
        ("--confidence", "loud"),
        ("--tokens", "0"),
        ("--hours", "-1"),
        ("--text", "nowhere.json"),
    ],
)
def test_a_bad_flag_is_a_configuration_error(capsys, words):
    code, said = run(capsys, *words)
    assert code == 2 and said.err


@pytest.mark.slow
def test_the_reference_models_write_their_own_text_in_virtual_time(capsys, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tokenizers")
    path = tmp_path / "text.json"
    code, _ = run(capsys, "--record", str(path), "--tokens", "12", "-q")
    assert code == 0
    text = json.loads(path.read_text())["texts"][0]
    found = tmp_path / "out.json"
    words = ["--scheme", "await,picospec,ours-latency", "--streams", "1", "--runs", "-q"]
    words += ["--tokens", "12", "--json", str(found)]
    assert run(capsys, *words, "--real", "v1")[0] == 0
    real = json.loads(found.read_text())["runs"]
    assert [one["token_ids"] for one in real] == [text["tokens"]] * 3
    assert run(capsys, *words, "--text", str(path))[0] == 0
    played = json.loads(found.read_text())["runs"]
    for a, b in zip(real, played):
        assert a["accepted"] == b["accepted"] or a["mode"]["pipeline"] > 1
