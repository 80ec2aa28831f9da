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

from draftwire.errors import ConfigError, ModelError, PackageError
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


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "exits.safetensors", "part0.onnx", "part1.onnx"]
)
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


# ---- the backends

WORDS = 61
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.3,
}


@pytest.fixture(scope="module")
def onnx():
    pytest.importorskip("onnxruntime")
    from draftwire.verifier.backends.onnx_target import OnnxTarget

    return OnnxTarget(TINY, slots=6, threads=1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return a function: the folder of a random model whose exits the command has made."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    pytest.importorskip("onnx")
    import torch

    from draftwire.export.exits.make import Text, export_exits
    from draftwire.export.settings import ExitSettings

    ids = np.random.default_rng(0).integers(0, WORDS, 2400)
    made = {}

    def get(name):
        if name not in made:
            folder = made[name] = tmp_path_factory.mktemp("hf") / name
            torch.manual_seed(0)
            config = getattr(transformers, name + "Config")(**SHAPE)
            transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
            model = tokenizers.models.WordLevel({f"w{i}": i for i in range(WORDS)}, "w2")
            tokenizers.Tokenizer(model).save(str(folder / "tokenizer.json"))
            export_exits(
                folder,
                texts=[Text("noise", ids[:1600], ids)],
                settings=ExitSettings(rank=4, agreement=0.05, tokens=4096),
                say=lambda line: None,
            )
        return made[name]

    return get


def hf(folder, **options):
    from draftwire.verifier.backends.hf_target import HFTarget

    return HFTarget(folder, **options)


MADE = [pytest.param(name, marks=pytest.mark.workstation) for name in ("Llama", "GPTNeoX")]


@pytest.fixture(scope="module", params=["onnx", *MADE])
def target(request):
    if request.param == "onnx":
        return request.getfixturevalue("onnx")
    folder = request.getfixturevalue("checkpoint")(request.param)
    return hf(folder, slots=6, threads=1)


def texts(target, slots, lengths):
    rng = np.random.default_rng(0)
    batch = []
    for slot, (start, n, rows) in zip(slots, lengths):
        ids = rng.integers(0, target.vocab_size, start + n)
        if start:
            target.forward([SlotInput(slot, 0, ids[:start], 0)])
        batch.append(SlotInput(slot, start, ids[start:], rows))
    return batch


RAGGED = [(0, 5, 2), (40, 1, 1), (60, 9, 9), (33, 4, 0), (84, 8, 3)]


def test_in_parts_it_says_what_the_whole_says(target, slots):
    batch = texts(target, slots, RAGGED)
    heard, numbers = [], range(len(target.exits))

    def said(exit, number):  # whatever share a forward of the engine
        return np.concatenate([rows[number] for k, rows in heard if k == exit])

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
    assert {k for k, _ in heard} == set(numbers)
    for exit in numbers:  # each one's rows come once
        shapes = [said(exit, i).shape for i in range(len(batch))]
        assert shapes == [(item.rows, target.vocab_size) for item in batch]
    # block invariant too: the same position alone
    slot, start, ids = batch[2].slot, batch[2].start, batch[2].tokens
    wanted = [said(exit, 2)[-1].copy() for exit in numbers]
    heard.clear()
    last = SlotInput(slot, start + 8, ids[8:], 1)
    target.forward([last], on_exit=lambda k, rows: heard.append((k, rows)))
    alone = [said(exit, 0)[0] for exit in numbers]
    assert np.allclose(alone, wanted, rtol=0, atol=1e-4)


def test_what_a_listener_breaks_off_is_forgotten(target, slots):
    (item,) = batch = texts(target, slots, [(20, 4, 4)])
    (wanted,) = target.forward(batch)
    junk = SlotInput(item.slot, 20, (item.tokens + 1) % target.vocab_size, 4)

    def stop(k, rows):
        if k == len(target.exits) - 1:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        target.forward([junk], on_exit=stop)
    with pytest.raises(ModelError, match="the slot holds 20"):
        target.forward([SlotInput(junk.slot, 24, np.array([5]), 1)])
    assert wanted == pytest.approx(target.forward(batch)[0], abs=1e-4)


@pytest.mark.workstation
def test_files_of_exits_beside_a_checkpoint_are_checked(checkpoint, tmp_path):
    from draftwire.export.exits.make import export_exits

    assert [e.layer for e in hf(checkpoint("Llama"), slots=1).exits] == [1, 2]
    with pytest.raises(ConfigError, match="has exits already"):
        export_exits(checkpoint("Llama"))
    with pytest.raises(ConfigError, match="no --out"):
        export_exits(checkpoint("Llama"), out=tmp_path / "x.target")
    copy = shutil.copytree(checkpoint("Llama"), tmp_path / "copy")
    file = copy / "exits.safetensors"
    content = file.read_bytes()
    for changed, words in (
        (content[:-8], "cut short|holds"),
        (content.replace(b"draftwire.exits/1", b"draftwire.exits/7"), "has format"),
        (content.replace(b"exit.1.up.weight", b"exit.1.to.weight"), "does not belong"),
    ):
        file.write_bytes(changed)
        with pytest.raises(PackageError, match=words):
            hf(copy, slots=1)
    file.unlink()
    assert hf(copy, slots=1).exits == ()


def test_an_exit_is_what_its_tensors_say(onnx):
    """Norm, low-rank residual and head in numpy, on the hidden state of the first layer."""
    from draftwire.tensors import read_tensors, target_weights

    package = load_target(TINY)
    ids, slot, heard = np.arange(12), onnx.allocate(), []
    item = SlotInput(slot, 0, ids, 12)
    onnx.forward([item], on_exit=lambda k, rows: heard.append(rows[0].copy()))
    onnx.release(slot)
    weights = target_weights(package)
    own = read_tensors(package.exits.tensors.path)
    engine = onnx._in_parts()[0]
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
    assert heard[0] == pytest.approx((x @ head.T)[:, : onnx.vocab_size], abs=1e-3)


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


# ---- the scheduler on a thread: test_scheduler.py has the rest


class Halves:
    """A backend of two halves; ``gate`` holds each back."""

    name, version = "halves", "v1"
    exits = (Exit(1, 0.5, 0.9),)

    def __init__(self):
        self.entered, self.gate, self.finished = threading.Event(), threading.Event(), 0

    def forward(self, batch, on_exit=None):
        rows = [np.full((i.rows, 4), i.slot, np.float32) for i in batch]
        if on_exit is not None:
            on_exit(0, rows)
            self.entered.set()
            assert self.gate.wait(10)
            on_exit(1, rows)
        self.finished += 1
        return rows


def block(slot, n=2):
    return SlotInput(slot, 0, np.arange(n), n)


async def test_what_comes_after_the_forward_is_dropped():
    backend, heard = Halves(), []
    scheduler = live(backend)
    task = ask(scheduler, block(0), on_exit=lambda k, rows: heard.append(k))
    await asyncio.sleep(0)
    assert backend.entered.wait(10)  # the loop is held up till the forward's end
    backend.gate.set()
    scheduler.executor._worker.submit(lambda: None).result(10)
    await task
    assert heard == []
    scheduler.close()


async def test_a_forward_that_nobody_waits_for_is_broken_off():
    backend, heard = Halves(), asyncio.Event()
    scheduler = live(backend)
    task = ask(scheduler, block(0), on_exit=lambda k, rows: heard.set())
    await heard.wait()
    task.request.withdraw()
    backend.gate.set()
    await ask(scheduler, block(1))  # the scheduler goes on
    assert backend.finished == 1
    scheduler.close()


# ---- from the exit to the wire


class Guessing(ArithmeticBackend):
    """Its exit foresees the whole verdict, with a stated certainty; of some rows it says
    nothing."""

    def __init__(self, sure=0.99, flat=(), **options):
        super().__init__(**options)
        self.exits = (Exit(1, 0.9, 0.9),)
        self.sure, self.flat = sure, list(flat)
        self.told = threading.Event()
        self.hold = threading.Event()
        self.hold.set()

    def forward(self, batch, on_exit=None):
        answers = super().forward(batch)
        for rows in answers:
            rows *= 40.0
        if on_exit is not None:
            other = np.log((1 - self.sure) / (VOCAB - 1) / self.sure)
            said = [np.where(rows > 0, 0, other).astype(np.float32) for rows in answers]
            for rows in said if len(said[0]) > 1 else ():
                rows[self.flat] = 0
            on_exit(0, said)
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


async def test_drafts_of_which_an_exit_says_nothing_are_taken_to_be_right():
    """So it speaks of what is wrong behind them."""
    backend = Guessing(flat=[0, 1])
    backend.hold.clear()
    text = continuation(PROMPT, 12)
    async with serving(backend) as service, device(service) as dev:
        await opened(dev)
        await dev.say(Block(0, 0, (*text[:2], (text[2] + 1) % VOCAB)))
        assert await dev.hear() == Provisional(0, 2, text[2])
        backend.hold.set()
        commit = await dev.hear()
        assert (commit.accepted, commit.token) == (2, text[2])


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
