"""Early exits: backend in parts, delivery in time, provisionals before their verdict."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from verifier_lab import VOCAB, ArithmeticBackend, ask, continuation, device, live, serving

from draftwire.errors import ModelError, PackageError, RefusedError
from draftwire.packages import Exit, load_target
from draftwire.transport.messages import Block, Commit, Open, Provisional
from draftwire.verifier.backends.base import SlotInput

TINY = Path(__file__).resolve().parents[1] / "fixtures" / "tiny.target"


# ---- the package


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(TINY, tmp_path / "tiny.target"))


def edit(package, change):
    manifest = package / "target.json"
    raw = json.loads(manifest.read_text())
    change(raw)
    manifest.write_text(json.dumps(raw))


def test_a_package_tells_its_exits_and_keeps_its_id_without_them(copy):
    with_exits = load_target(copy)
    (found,) = with_exits.exits.exits
    assert found.layer == 1 and 0 < found.threshold < 1 and found.agreement == 0.36
    assert abs(found.measured - found.agreement) <= 0.03
    assert [(p.first, p.last) for p in with_exits.exits.parts] == [(0, 1), (1, 2)]
    edit(copy, lambda raw: raw.pop("exits"))
    for name in ("exits.safetensors", "part0.onnx", "part1.onnx"):
        (copy / name).unlink()
    without = load_target(copy)
    assert without.exits is None and without.id == with_exits.id


def test_exits_of_a_later_format_are_skipped(copy):
    edit(copy, lambda raw: raw["exits"].update(format="draftwire.exits/9"))
    assert load_target(copy).exits is None


@pytest.mark.parametrize("name", ["exits.safetensors", "part0.onnx", "part1.onnx"])
def test_a_changed_or_missing_file_is_refused(copy, name):
    file = copy / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(PackageError, match="does not match its hash"):
        load_target(copy)
    file.unlink()
    with pytest.raises(PackageError, match=f"lacks its file {name}"):
        load_target(copy)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda e: e.update(target="0" * 64), "made for another target"),
        (lambda e: e["exits"][0].update(layer=2), "a whole number from 1 to 1"),
        (lambda e: e["exits"][0].update(threshold=2), "threshold must be"),
        (lambda e: e["exits"][0].update(threshold=float("nan")), "threshold must be"),
        (lambda e: e.update(exits=[]), "a list of 1 to"),
        (lambda e: e["parts"].pop(), "one part more"),
        (lambda e: e["parts"][0].update(file="other.onnx"), "files with names"),
        (lambda e: e.update(rank="8"), "rank must be"),
        (lambda e: e["files"].update({"../x": {}}), "unfit name"),
    ],
)
def test_a_damaged_section_is_refused(copy, change, sentence):
    edit(copy, lambda raw: change(raw["exits"]))
    with pytest.raises(PackageError, match=sentence):
        load_target(copy)


# ---- the onnxruntime backend


@pytest.fixture(scope="module")
def target():
    pytest.importorskip("onnxruntime")
    from draftwire.verifier.backends.onnx_target import OnnxTarget

    return OnnxTarget(TINY, slots=6, threads=1)


def texts(target, slots, lengths):
    rng = np.random.default_rng(0)
    batch = []
    for slot, (start, n, rows) in zip(slots, lengths):
        ids = rng.integers(0, target.vocab_size, start + n)
        if start:
            target.forward([SlotInput(slot, 0, ids[:start], 0)])
        batch.append(SlotInput(slot, start, ids[start:], rows))
    return batch


RAGGED = [(0, 5, 2), (40, 1, 1), (100, 9, 9), (33, 4, 0), (150, 8, 3)]


def test_in_parts_it_says_what_the_whole_says(target, slots):
    batch = texts(target, slots, RAGGED)
    heard = []
    parts = target.forward(batch, on_exit=lambda k, rows: heard.append((k, rows)))
    whole = target.forward(batch)
    for a, b, item in zip(parts, whole, batch):
        assert a.shape == (item.rows, target.vocab_size)
        assert a == pytest.approx(b, abs=1e-5)
    # what the caches hold is the same too: go on from them
    more = [SlotInput(i.slot, i.start + len(i), np.array([3]), 1) for i in batch[:4]]
    kept = [row.copy() for row in target.forward(more)]
    target.forward(batch[:4])
    for a, b in zip(kept, target.forward(more)):
        assert a == pytest.approx(b, abs=1e-5)
    assert {k for k, _ in heard} == {0}
    # whatever share a forward of the engine: each one's rows come once
    told = [sum(len(rows[i]) for _, rows in heard) for i in range(len(batch))]
    assert told == [item.rows for item in batch]


def test_an_exit_is_what_its_tensors_say(target, slots):
    """Norm, low-rank residual and head in numpy, on the hidden state of the first layer."""
    from draftwire.tensors import read_tensors, target_weights

    package = load_target(TINY)
    ids = np.arange(12) % target.vocab_size
    heard = []
    item = SlotInput(slots[0], 0, ids, 12)
    target.forward([item], on_exit=lambda k, rows: heard.append(rows[0].copy()))
    weights = target_weights(package)
    own = read_tensors(package.exits.tensors.path)
    engine = target._in_parts()[0]
    feeds = {
        "input_ids": ids[None],
        "past_lens": np.array([0]),
        "rows": np.arange(12),
        "past.0.key": np.zeros((1, 1, 0, 16), np.float32),
        "past.0.value": np.zeros((1, 1, 0, 16), np.float32),
    }
    (hidden,) = engine.run(["l0.out"], feeds)
    x = hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + 1e-5)
    x = x * own["exit.0.norm.weight"]
    low = x @ own["exit.0.down.weight"].T
    x = x + (low / (1 + np.exp(-low))) @ own["exit.0.up.weight"].T
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    assert heard[0] == pytest.approx((x @ head.T)[:, : target.vocab_size], abs=1e-3)


def test_what_a_listener_breaks_off_is_forgotten(target, slots):
    batch = texts(target, slots, [(20, 4, 4)])
    (wanted,) = target.forward(batch)
    (item,) = batch
    junk = SlotInput(item.slot, 20, (item.tokens + 1) % target.vocab_size, 4)

    def stop(k, rows):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        target.forward([junk], on_exit=stop)
    with pytest.raises(ModelError, match="the slot holds 20"):
        target.forward([SlotInput(junk.slot, 24, np.array([5]), 1)])
    assert wanted == pytest.approx(target.forward(batch)[0], abs=1e-6)


def test_exits_that_do_not_load_are_done_without(copy, caplog):
    pytest.importorskip("onnxruntime")
    from draftwire.verifier.backends.onnx_target import OnnxTarget

    edit(copy, lambda raw: raw["exits"]["parts"][0]["weights"].append("no.such.tensor"))
    target = OnnxTarget(copy, slots=1, threads=1)
    assert target.exits
    slot = target.allocate()
    item = SlotInput(slot, 0, np.arange(4), 2)
    (rows,) = target.forward([item], on_exit=lambda k, rows: pytest.fail("spoke"))
    assert rows.shape == (2, target.vocab_size)
    assert target.exits == () and "without its exits" in caplog.text


# ---- the scheduler


class Halves:
    """A backend of two halves; `gate` holds the second one back."""

    name, version = "halves", "v1"
    exits = (Exit(1, 0.5, 0.9),)

    def __init__(self):
        self.start = threading.Event()
        self.gate = threading.Event()
        self.start.set()
        self.gate.set()
        self.entered = threading.Event()
        self.plain = 0
        self.finished = 0

    def release(self, slot):
        pass

    def forward(self, batch, on_exit=None):
        rows = [np.full((i.rows, 4), i.slot, np.float32) for i in batch]
        if on_exit is None:
            self.plain += 1
            return rows
        self.entered.set()
        assert self.start.wait(10)
        on_exit(0, [r + 0.5 for r in rows])
        assert self.gate.wait(10)
        on_exit(1, [r + 0.7 for r in rows])
        self.finished += 1
        return rows


def block(slot, n=2):
    return SlotInput(slot, 0, np.arange(n), n)


async def test_an_exit_is_heard_while_the_forward_goes_on():
    backend = Halves()
    scheduler = live(backend)
    backend.gate.clear()
    heard = asyncio.Queue()
    task = ask(scheduler, block(3), on_exit=lambda k, rows: heard.put_nowait((k, rows)))
    k, rows = await heard.get()
    assert k == 0 and (rows == 3.5).all() and rows.shape == (2, 4)
    assert not task.done() and backend.finished == 0
    backend.gate.set()
    assert ((await task).rows == 3).all()
    scheduler.close()


async def test_what_comes_after_the_forward_is_dropped():
    backend = Halves()
    scheduler = live(backend)
    heard = []

    def listen(k, rows):
        heard.append(k)

    backend.start.clear()
    task = ask(scheduler, block(0), on_exit=listen)
    await asyncio.sleep(0)
    while not backend.entered.is_set():
        await asyncio.sleep(0.001)
    backend.start.set()  # the forward goes on, and the loop is held up till its end
    scheduler.executor._worker.submit(lambda: None).result(10)
    await task
    assert heard == []
    scheduler.close()


async def test_without_a_listener_the_forward_is_plain():
    backend = Halves()
    scheduler = live(backend)
    await ask(scheduler, block(0))
    backend.exits = ()
    await ask(scheduler, block(0), on_exit=lambda k, rows: pytest.fail("spoke"))
    assert backend.plain == 2
    scheduler.close()


async def test_only_those_that_listen_hear():
    backend = Halves()
    scheduler = live(backend)
    heard = []
    both = asyncio.gather(
        ask(scheduler, block(1)),
        ask(scheduler, block(2), on_exit=lambda k, rows: heard.append(rows[0, 0])),
    )
    answers = await both
    assert [a.rows[0, 0] for a in answers] == [1, 2]
    assert backend.finished == 1 and set(heard) <= {2.5, np.float32(2.7)}
    scheduler.close()


async def test_a_forward_that_nobody_waits_for_is_broken_off():
    backend = Halves()
    scheduler = live(backend)
    backend.gate.clear()
    heard = asyncio.Event()
    task = ask(scheduler, block(0), on_exit=lambda k, rows: heard.set())
    await heard.wait()
    task.request.withdraw()
    backend.gate.set()
    await ask(scheduler, block(1))  # the scheduler goes on
    assert backend.finished == 0
    scheduler.close()


async def test_a_release_in_the_middle_is_an_answer():
    backend = Halves()
    scheduler = live(backend)
    backend.gate.clear()
    heard = asyncio.Event()
    task = ask(scheduler, block(0), on_exit=lambda k, rows: heard.set())
    await heard.wait()
    scheduler.release(0)
    backend.gate.set()
    with pytest.raises(RefusedError, match="the stream has ended"):
        await task
    scheduler.close()


# ---- from the exit to the wire


class Guessing(ArithmeticBackend):
    """Its exit foresees the whole verdict, with a stated certainty."""

    def __init__(self, sure=0.99, **options):
        super().__init__(**options)
        self.exits = (Exit(1, 0.9, 0.9),)
        self.sure = sure
        self.told = threading.Event()
        self.hold = threading.Event()
        self.hold.set()

    def forward(self, batch, on_exit=None):
        answers = super().forward(batch)
        for rows in answers:
            rows *= 40.0
        if on_exit is not None:
            other = np.log((1 - self.sure) / (VOCAB - 1) / self.sure)
            on_exit(
                0, [np.where(rows > 0, 0, other).astype(np.float32) for rows in answers]
            )
            self.told.set()
            assert self.hold.wait(10)
        return answers


PROMPT = (3, 1, 4)


async def opened(dev, *, exits=True, capabilities=("exits",)):
    welcome = await dev.greet(capabilities=capabilities)
    await dev.say(Open(PROMPT, "greedy", 0.0, 0, 1.0, 0, 12, exits=exits))
    await dev.hear()
    return welcome


async def test_a_provisional_comes_before_its_verdict_and_in_the_middle_of_the_forward():
    backend = Guessing()
    backend.hold.clear()
    text = continuation(PROMPT, 12)
    async with serving(backend) as service, device(service) as dev:
        assert (await opened(dev)).capabilities == ("exits",)
        await dev.say(Block(0, 0, (*text[:2], (text[2] + 1) % VOCAB)))
        assert await dev.hear() == Provisional(0, 2, text[2])
        assert not backend.hold.is_set()  # the forward has not ended
        backend.hold.set()
        commit = await dev.hear()
        assert isinstance(commit, Commit)
        assert (commit.epoch, commit.accepted, commit.token) == (0, 2, text[2])
        assert service.kept.provisionals == 1


@pytest.mark.parametrize(
    ("sure", "how", "in_parts"),
    [
        (0.8, {}, True),  # below the threshold
        (0.99, {"exits": False}, False),  # not asked for in the open
        (0.99, {"capabilities": ("resume",)}, False),  # not negotiated
    ],
)
async def test_without_certainty_or_consent_there_is_no_provisional(sure, how, in_parts):
    backend = Guessing(sure)
    text = continuation(PROMPT, 12)
    async with serving(backend) as service, device(service) as dev:
        await opened(dev, **how)
        await dev.say(Block(0, 0, tuple(text[:2])))
        assert isinstance(await dev.hear(), Commit)
        assert service.kept.provisionals == 0
        assert backend.told.is_set() == in_parts


async def test_a_target_without_exits_does_not_offer_them():
    async with serving(ArithmeticBackend()) as service, device(service) as dev:
        assert (await dev.greet(capabilities=("exits", "resume"))).capabilities == (
            "resume",
        )


async def test_a_link_lost_in_the_middle_of_a_forward_harms_nobody():
    backend = Guessing()
    backend.hold.clear()
    text = continuation(PROMPT, 12)
    async with serving(backend) as service:
        async with device(service) as dev:
            await opened(dev)
            await dev.say(Block(0, 0, tuple(text[:2])))
            assert isinstance(await dev.hear(), Provisional)
            dev.socket.transport.abort()
        backend.hold.set()
        async with device(service) as dev:
            await opened(dev)
            backend.hold.clear()
            await dev.say(Block(0, 0, tuple(text[:2])))
            assert isinstance(await dev.hear(), Provisional)
            backend.hold.set()
            assert (await dev.hear()).accepted == 2
