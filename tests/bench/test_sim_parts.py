"""Parts of the simulator: drafter, verifier, recordings, traces, the command."""

import json
import random
import threading
from dataclasses import replace

import numpy as np
import pytest

from draftwire.bench.link import LinkSpec
from draftwire.bench.link.spec import Outages
from draftwire.bench.sim.cloud import ForwardCost, SimVerifier, TextBackend
from draftwire.bench.sim.device import VirtualEngine
from draftwire.bench.sim.facts import find
from draftwire.bench.sim.recording import SCHEMA, read_recording, record
from draftwire.bench.sim.schemes import scheme_named
from draftwire.bench.sim.simulate import Plan, simulate
from draftwire.bench.sim.texts import Synthetic, TextDraft, TextTarget, parse_luck
from draftwire.cli import main
from draftwire.clock import VirtualClock
from draftwire.errors import ConfigError
from draftwire.runtime.drafter import Drafter
from draftwire.runtime.edge.actions import Draft
from draftwire.runtime.edge.mode import Mode
from draftwire.runtime.live import EngineThread
from draftwire.runtime.pacing.controller import FixedLength
from draftwire.sampling import SamplingParams, make_proposer
from draftwire.transport.messages import Block, Hello, Open

GREEDY = SamplingParams("greedy", 0.0)


def a_text(tokens=60, luck="1.0", prompt=5):
    return Synthetic(parse_luck(luck), prompt_tokens=prompt).text(0, tokens)


# ---- the board


class Heard:
    """A driver that only notes what the engine says."""

    def __init__(self, clock):
        self.clock, self.found, self.failed = clock, [], []

    def stepped(self, step, seconds):
        if step.proposal is not None:
            self.found.append(
                (self.clock.now_s, step.drafts[0].branch, step.proposal.token)
            )

    def engine_failed(self, stream, error):
        self.failed.append(error)


class Board:
    """An engine on a clock, with orders of stream 1."""

    def __init__(self, text, cost):
        self.clock = VirtualClock()
        self.drafter = Drafter(None, text.width)
        self.engine = VirtualEngine(self.clock, self.drafter, cost)
        self.heard = self.engine.driver = Heard(self.clock)
        self.begin(1, text)

    def begin(self, stream, text):
        proposer = make_proposer(GREEDY, text.width)
        self.drafter.begin(stream, proposer, None, TextDraft(text))

    def order(self, *order):
        self.drafter.submit(1, Draft(*order))
        self.engine.wake()


def test_a_draft_takes_a_step_a_token_and_reading_takes_what_it_takes():
    text = a_text(prompt=600)
    board = Board(text, ForwardCost(0.010, free=16, token_s=0.001))
    board.order(1, 0, text.prompt, 3)
    board.clock.run()
    # 600 tokens in pieces of 256, 256 and 88; all but 16 of each are paid for.
    first = 3 * 0.010 + (240 + 240 + 72) * 0.001
    found = board.heard.found
    times = [t for t, _, _ in found]
    assert times == pytest.approx([first, first + 0.010, first + 0.020])
    assert [token for _, _, token in found] == list(text.tokens[:3])
    # A few tokens at once cost one step.
    board.order(2, len(text.prompt) + 1, text.tokens[1:5], 1)
    board.clock.run()
    assert found[-1] == (pytest.approx(first + 0.030), 2, text.tokens[5])


def test_blocks_that_end_early_cost_no_step():
    """Every block is cut after two drafts of eight; what is at work goes on."""

    class Hasty(FixedLength):
        def enough(self, block):
            return len(block) >= 2

    controller = Hasty(8)
    one = Plan(
        find("agx-a100-qwen"),
        replace(scheme_named("picospec"), mode=Mode(pipeline=32, preempt={"guess"})),
        link=LinkSpec.parse("10ms"),
        source=Synthetic(parse_luck("1.0"), prompt_tokens=5),
        controller=controller,
        streams=1,
        tokens=120,
    )
    (stream,) = simulate(one).streams
    step_s = one.profile.seconds("draft.step_ms")
    assert stream.counts.proposed >= 119
    assert stream.over.draft_s + stream.over.prefill_s == pytest.approx(
        stream.counts.proposed * step_s, abs=2.1 * step_s
    )


def test_an_engine_that_fails_says_so_and_goes_on():
    class Broken(TextDraft):
        def forward(self, tokens):
            raise RuntimeError("no memory")

    text = a_text()
    board = Board(text, ForwardCost(0.010))
    board.drafter.begin(1, make_proposer(GREEDY, text.width), None, Broken(text))
    board.order(1, 0, text.prompt, 1)
    board.clock.run()
    assert [str(error) for error in board.heard.failed] == ["no memory"]
    board.begin(1, text)
    board.order(2, 0, text.prompt, 1)
    board.clock.run()
    assert [token for _, _, token in board.heard.found] == list(text.tokens[:1])


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
def test_it_does_what_the_engine_thread_does(seed):
    """The same orders at the same moments: the same proposals with the same tags."""
    rng = random.Random(seed)
    text = a_text(60, "0.7", prompt=300)
    board = Board(text, ForwardCost(0.010))
    model, real = Gated(text), []
    drafter = Drafter(model, text.width)
    drafter.begin(1, make_proposer(GREEDY, text.width))
    thread = EngineThread(drafter)
    noting = Heard(board.clock)
    heard = threading.Semaphore(0)

    def post(what, *args):
        what(*args)
        heard.release()

    thread.start(noting, post)

    def busy():
        return board.engine._accelerator._busy

    def end_step():
        board.clock.run(lambda: True)  # the forward ends ...
        model.go.release()  # ... here and there
        assert heard.acquire(timeout=30)
        if busy():
            assert model.began.acquire(timeout=30)

    try:
        length = 0
        for branch in range(1, 40):
            valid = rng.randint(max(0, length - 6), length) if length else 0
            known = text.prompt + text.tokens
            tokens = known[valid : max(300, valid) + rng.randint(0, 3)]
            order = (branch, valid, tuple(tokens), rng.randint(0, 4))
            idle = not busy()
            board.order(*order)
            drafter.submit(1, Draft(*order))
            thread.wake()
            if idle and busy():
                assert model.began.acquire(timeout=30)
            for _ in range(rng.randint(0, 5)):
                if busy():
                    end_step()
            length = len(board.drafter._lanes[0].sequence)
            if board.drafter._inbox:
                length = min(length, board.drafter._inbox[0].draft.valid)
        while busy():
            end_step()
    finally:
        for _ in range(5):
            model.go.release()
        thread.close()
        thread.join()
    real = [found[1:] for found in noting.found]
    assert len(real) > 20
    assert real == [found[1:] for found in board.heard.found]


# ---- the verifier


class Way:
    """The way to a device that keeps what it is sent."""

    def __init__(self, sent):
        self.send = lambda message, stream=0: sent.append(message)


def connection(verifier, text, sent):
    verifier.backend.targets.append(TextTarget(text))
    made = verifier.attach(Way(sent))
    made.take(Hello("", "", bytes(32), b"", text.width, capabilities=("resume",)))
    made.take(Open(text.prompt, "greedy", 0.0, 0, 1.0, 0, len(text.tokens)))
    assert [type(m).__name__ for m in sent[-2:]] == ["Welcome", "Opened"]
    del sent[-2:]
    return made


def test_blocks_of_sessions_share_a_forward_and_prompts_take_turns():
    clock = VirtualClock()
    cost = ForwardCost(0.020, free=4, token_s=0.001, session_s=0.002, read_s=0.0001)
    text, long = a_text(), a_text(prompt=300)
    verifier = SimVerifier(clock, TextBackend("a test", text.width), cost)
    sent, late = [], []
    devices = [connection(verifier, text, sent) for _ in range(3)]
    clock.run()
    # Four prompt tokens each, read together; the fifth waits for a block.
    assert verifier.busy_s == pytest.approx(0.020 + 12 * 0.0001)
    assert verifier.forwards == 0
    start = verifier.busy_s
    for device in devices:
        device.take(Block(0, 0, text.tokens[:5]))
    connection(verifier, long, late)
    clock.run()
    assert [(m.accepted, m.token) for m in sent] == [(5, text.tokens[5])] * 3
    # One forward of three blocks, 18 tokens, 12 of them free; three pieces of a prompt.
    judging = 0.020 + 6 * 0.001 + 2 * 0.002
    assert verifier.forwards == 1
    reading = 3 * 0.020 + 299 * 0.0001
    assert verifier.busy_s - start == pytest.approx(judging + reading)
    assert [m.compute_s for m in sent] == [pytest.approx(judging)] * 3
    assert max(m.queue_s for m in sent) <= 0.020 + 128 * 0.0001 + 1e-9


# ---- the network


def test_a_link_that_is_gone_for_long_is_given_up_and_the_stream_goes_on():
    """As live: no word for a second, a new connection, and the stream is resumed."""
    source = Synthetic(parse_luck("0.8"), seed=3)
    one = Plan(
        find("nano-a100"), scheme_named("await"), source=source, streams=1, tokens=200
    )
    holes = replace(LinkSpec.parse("40ms"), outages=Outages(fixed=((2.0, 3.0),)))
    free = simulate(replace(one, link=LinkSpec.parse("40ms"))).streams[0]
    held = simulate(replace(one, link=holes)).streams[0]
    assert tuple(held.ids) == source.text(0, 200).tokens == tuple(free.ids)
    assert free.over.reconnects == 0 and held.over.reconnects >= 1
    # Three seconds without a link, and what it takes to notice that it is back.
    assert 2.5 < held.last_s - free.last_s < 5.0
    # Greetings, pings and tries are bytes, and the report has them.
    assert held.bytes["up_wire"] > free.bytes["up_wire"] + 500
    report = held.report({}, ())
    assert report["link"]["reconnects"] == held.over.reconnects
    assert report["link"]["outages"] >= 1
    assert report["target_forwards"] >= free.counts.forwards


def test_bytes_on_the_wire_are_those_of_frames_and_headers():
    one = Plan(find("nano-a100"), scheme_named("await"), link=LinkSpec.parse("40ms"))
    (stream,) = simulate(replace(one, streams=1, tokens=60)).streams
    traffic, found = stream.over.traffic, stream.bytes
    assert traffic.up_frames >= stream.counts.rounds + 1
    least = found["up_payload"] + traffic.up_frames * (52 + 2 + 4)
    # Beside the frames: acknowledgements of what came down.
    assert least <= found["up_wire"] <= least + 52 * traffic.down_frames + 200


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
    assert outcome.streams[0].counts.accepted >= 2


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


def test_a_recording_holds_what_the_draft_says_at_every_place():
    text = a_text(40, "0.7", prompt=130)
    made = record(TextDraft(text), text.width, [text.prompt], [text.tokens[:30]], {"a": 1})
    one = made["texts"][0]
    assert one["tokens"] == list(text.tokens[:30])
    assert one["proposals"] == list(text.proposals[:30])
    assert np.allclose(one["confidence"], text.confidence[:30], atol=0.05)
    assert made["a"] == 1 and made["vocabulary"] == text.width


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
    # The hole, and a new connection, for nobody says a word for a second.
    assert held.over.reconnects and not free.over.reconnects
    assert 1.7 < held.last_s - free.last_s < 2.3


# ---- the command


def run(capsys, *words):
    code = main(["bench", "simulate", *words])
    return code, capsys.readouterr()


def test_the_command_prints_tables(capsys):
    code, said = run(capsys, "--scheme", "cloud,await", "--tokens", "60", "--k", "6")
    assert code == 0
    for word in ("simulated", "fixed:6", "assumed", "ms/token"):
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
        ("--seed", "-1"),
        ("--scheme", ""),
        ("--scheme", "cloud", "--link", "10ms/100bit"),
        ("--real", "v1", "--acceptance", "0.5"),
        ("--plot", "picture.bmp"),
        ("--record", "/nowhere/text.json"),
        ("--hours", "-1"),
        ("--text", "nowhere.json"),
    ],
)
def test_a_bad_flag_is_a_configuration_error(capsys, words):
    code, said = run(capsys, *words)
    assert code == 2 and said.err and not said.out


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
