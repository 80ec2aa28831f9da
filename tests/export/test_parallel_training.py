"""``export draft --parallel``: masks learn, the text's own rows stay, what is refused."""

import copy
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from draftwire.errors import ConfigError
from draftwire.export.settings import DraftSettings
from draftwire.export.sources.checkpoint import load_model
from draftwire.export.training.base import read_base, start_from
from draftwire.export.training.distil import make_draft
from draftwire.export.training.draft import build_draft
from draftwire.export.training.loop import Plan, Stream
from draftwire.export.training.measure import accepted_per_block
from draftwire.export.training.parallel import (
    ParallelTrainer,
    chances,
    foretells,
    masks_behind,
    ways,
)
from draftwire.packages import load_draft, load_target

SMALL = DraftSettings(
    anchor_layers=1, layers=1, tokens=2048, batch=128, length=32, prompts=2, looks=1,
    arithmetic="float32", save_every=0.0,
)  # fmt: skip
PARALLEL = {**vars(SMALL), "parallel": 4, "lr": 0.02}


def quiet(line):
    """Say nothing."""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of robot sentences that repeat themselves."""
    rng = random.Random(3)
    words = "the robot takes the red cup to the table and then goes to the door".split()
    file = tmp_path_factory.mktemp("text") / "robot.txt"
    paragraphs = [" ".join(words * 3 + rng.choices(words, k=20)) for _ in range(160)]
    file.write_text("\n\n".join(paragraphs) + "\n")
    return file


@pytest.fixture(scope="module")
def family(targets, tmp_path_factory, text):
    """A target package, and the Hugging Face directory of a draft of it."""
    place, target = tmp_path_factory.mktemp("family"), targets("llama")
    made = build_draft(
        target, place / "d.draft", [text], settings=SMALL, precision="fp32", say=quiet,
        min_agreement=0,
    )  # fmt: skip
    return target, place / "d.work" / "d.hf", made


def make(family, out, text, say=quiet, **changes):
    settings = DraftSettings(**{**PARALLEL, **changes})
    package = build_draft(
        family[0], out, [text], settings=settings, precision="fp32", name="p", say=say,
        start=family[1], min_agreement=0,
    )  # fmt: skip
    work = out.with_name(f"{out.stem}.work")
    return package, work / f"{out.stem}.hf", json.loads((work / "report.json").read_text())


def test_a_mask_is_kept_with_all_before_it():
    behind, number = (t.numpy() for t in masks_behind(64, 7, np.random.default_rng(5)))
    kept = set(zip(behind.tolist(), number.tolist(), strict=True))
    assert len(kept) == len(behind)
    assert all((at, n - 1) in kept for at, n in kept if n)
    assert (behind + 1 + number).max() < 64, "what it foretells is in the text"
    counts = np.bincount(number)
    assert counts[0] > 2 * counts[-1] > 0 and (np.diff(counts) <= 0).all()


@pytest.mark.parametrize("shape", ["llama", "qwen2", "gpt_neox", "gemma3", "gpt2"])
@pytest.mark.parametrize("shared", [False, True])
def test_masks_behind_each_token_say_what_one_causal_model_says(models, shape, shared):
    """All masks of a row in one forward, and each text with its masks alone."""
    base = read_base(models(shape))
    draft = make_draft(base.model, anchor_layers=1, trained_layers=1)
    trainer = ParallelTrainer(base.model, draft, 4, shared=shared)
    ids = torch.randint(0, base.architecture.vocab_size, (2, 12))
    behind, number = masks_behind(12, 3, np.random.default_rng(2))
    with torch.no_grad():
        real, marks = trainer(ids, behind, number)
        size = base.architecture.vocab_size
        plain = copy.deepcopy(trainer).finished()
        assert torch.equal(real, draft(ids).logits)
        rows = [size] * 3 if shared else [size, size + 1, size + 2]
        for at, (end, n) in enumerate(zip(behind.tolist(), number.tolist(), strict=True)):
            one = torch.cat([ids[:, : end + 1], torch.tensor([rows[: n + 1]] * 2)], 1)
            alone = plain(one).logits[:, -1, :size]
            torch.testing.assert_close(marks[:, at], alone, atol=2e-4, rtol=1e-4)


def test_masks_only_leave_the_text_rows_as_they_were(family, tmp_path, text):
    """The masks learn; every weight of the draft, and so every logit, stays to the bit."""
    how = {"masks_only": True, "tokens": 8192}
    package, folder, report = make(family, tmp_path / "p.draft", text, **how)
    losses = [row["loss"] for row in report["log"]]
    assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[:4])
    before, after = (load_file(f / "model.safetensors") for f in (family[1], folder))
    size = len(before["model.embed_tokens.weight"])
    for name, values in before.items():
        np.testing.assert_array_equal(after[name][: len(values)], values)
    masks = after["model.embed_tokens.weight"][size:]
    assert len(masks) == 3 and len(np.unique(masks, axis=0)) == 3
    assert np.abs(masks).max() <= np.abs(before["model.embed_tokens.weight"]).max()
    ids = torch.arange(1, 20)[None]
    first, second = (load_model(f)(ids).logits for f in (family[1], folder))
    assert torch.equal(first, second[..., :size])
    table = json.loads((folder / "config.json").read_text())["parallel"]
    assert table["mask_ids"] == [size, size + 1, size + 2] and table["block"] == 4
    assert len(table["acceptance_by_position"]) == 4
    assert all(0 <= chance <= 1 for chance in table["acceptance_by_position"])
    made, target = load_draft(package), load_target(family[0])
    assert made.raw["parallel"] == table
    assert made.parallel.masks(2) == (size, size + 1)
    assert made.parallel.acceptance == tuple(table["acceptance_by_position"])
    assert made.family.backbone == target.family.backbone, "masks are none of the anchor"


def test_all_layers_learn_and_again_from_there(family, tmp_path, text):
    """Same seed, same weights; the anchor stays; the base writes some of the rows."""
    said = []
    found = [
        make(family, tmp_path / f"{n}.draft", text, written=0.5, say=said.append)
        for n in ("a", "b")
    ]
    first, second = (load_file(folder / "model.safetensors") for _, folder, _ in found)
    for name, values in first.items():
        np.testing.assert_array_equal(second[name], values)
    start = load_file(family[1] / "model.safetensors")
    size = len(start["model.embed_tokens.weight"])
    changed = {n for n, w in start.items() if not np.array_equal(first[n][: len(w)], w)}
    assert changed and all(".layers.1." in n or n == "model.norm.weight" for n in changed)
    losses = [row["loss"] for row in found[0][2]["log"]]
    assert np.mean(losses[-4:]) < 0.8 * losses[0]
    row = found[0][2]["held_out"]["robot"]["parallel"]
    for kind in ("greedy", "sampled"):
        assert len(row[kind]["right"]) == 4
        assert set(row[kind]["accepted"]) == {"parallel", "hybrid", "autoregressive"}
    assert "the base writes 64 rows of 32 tokens itself" in said
    assert any("autoregressive at T = 1" in line for line in said)
    base = read_base(family[0])
    for source in (found[0][1], found[0][0]):  # the directory, and the package
        draft = make_draft(base.model, anchor_layers=1, trained_layers=1)
        masks = start_from(draft, source, base)
        rows = first["model.embed_tokens.weight"][size:]
        np.testing.assert_allclose(masks, rows, atol=1e-6)
        again = ParallelTrainer(base.model, draft, 4, masks=masks)
        torch.testing.assert_close(again.masks(), masks, atol=1e-3, rtol=1e-2)
        for name, values in draft.named_parameters():
            wanted = first[name][: len(values)]
            np.testing.assert_allclose(values.detach(), wanted, atol=1e-6)


def test_what_does_not_fit_is_refused(family, models, tmp_path, text):
    def refused(sentence, source=None, start=None, **changes):
        with pytest.raises(ConfigError, match=sentence):
            settings = DraftSettings(**{**PARALLEL, **changes})
            build_draft(
                source or family[0], tmp_path / "x.draft", [text], settings=settings,
                start=start, say=quiet,
            )  # fmt: skip

    refused("parallel is 1", parallel=1)
    refused("--masks-only is of parallel drafts", parallel=None, masks_only=True)
    refused("--shared-mask is of parallel drafts", parallel=None, shared_mask=True)
    refused("masks alone make no draft", masks_only=True)
    refused("too short to learn blocks of 20 from", parallel=20)
    refused("written is 1.5", written=1.5)
    refused("one token a forward alone", passes=2)
    refused("no draft of v1 with these layers", start=models("qwen2"))
    refused("is neither a draft package nor", start=family[1].parent)
    refused("no draft of llama", anchor_layers=0, source=models("llama"), start=family[1])
    assert not (tmp_path / "x.draft").exists()


def test_ways_to_draft_a_block():
    """Of one row: five places, blocks of three."""
    right = np.array([[1, 0, 1], [1, 1, 0], [0, 1, 1], [1, 1, 1], [1, 0, 0]], bool)[None]
    found = ways(right)
    assert found["hybrid"][0].tolist() == [
        [True, True, True], [True, False, True], [False, True, True], [True, True, False]
    ]  # fmt: skip
    assert found["autoregressive"][0].tolist() == [
        [True, True, False], [True, False, True], [False, True, True]
    ]  # fmt: skip
    # Blocks begin at 0 (one is right), at 2 (none) and at 3 (all).
    assert accepted_per_block(right, 3) == (1 + 0 + 3) / 3
    assert accepted_per_block(right, 1) == (1 + 0 + 1) / 3
    row = {"greedy": {"reached": [0.8, 0.4, 0.0, 0.0]}}
    assert chances([row, row]) == [0.8, 0.5, 0.0, 0.0]


def test_texts_of_one_length_are_read_from_their_beginnings(tmp_path):
    np.save(tmp_path / "rows.npy", np.arange(40).reshape(8, 5))
    stream = Stream((Path(tmp_path / "rows.npy"),), (1.0,))
    plan = Plan(1, batch=8, micro=8, lengths=((1.0, 4),))
    (ids,) = stream.micro(plan, 0, 0)
    assert all(
        row[0] % 5 == 0 and row == [*range(row[0], row[0] + 5)] for row in ids.tolist()
    )


def test_a_perfect_draft_foretells_everything(models):
    """The base as its own draft: one by one all is right, greedy and sampled."""
    base = read_base(models("llama"))
    draft = make_draft(base.model, anchor_layers=1, trained_layers=1)
    trainer = ParallelTrainer(base.model, draft, 4)
    stream = np.random.default_rng(1).integers(0, base.architecture.vocab_size, 300)
    found = foretells(trainer, stream, prompts=3, prompt_tokens=10, count=20)
    for kind in ("greedy", "sampled"):
        assert found[kind]["accepted"]["autoregressive"] == 4.0
        assert found[kind]["right"][0] == found[kind]["reached"][0] == 1.0
