"""``studies.evolve``: the measures, the statistics, and a whole tiny study."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for library in ("transformers", "safetensors", "onnx", "onnxruntime"):
    pytest.importorskip(library)
pytestmark = pytest.mark.workstation


from draftwire.errors import ConfigError  # noqa: E402
from draftwire.export.training.base import read_base  # noqa: E402
from draftwire.export.training.distil import make_draft  # noqa: E402
from draftwire.export.training.measure import accepted_per_block  # noqa: E402
from studies.evolve.__main__ import main  # noqa: E402
from studies.evolve.measure import (  # noqa: E402
    Probe,
    distance,
    measure,
    speak,
    suffix_choices,
)
from studies.evolve.models import flops_per_token, merged  # noqa: E402
from studies.evolve.report import render, write_markdown  # noqa: E402
from studies.evolve.sources import (  # noqa: E402
    log_chances,
    make_pairs,
    preference_loss,
)
from studies.evolve.stats import Table  # noqa: E402
from studies.evolve.study import parse_version  # noqa: E402

PROBE = Probe(prompts=4, prompt_tokens=8, count=24)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Two kinds of generated text."""
    folder = tmp_path_factory.mktemp("texts")
    rng = random.Random(3)
    for name, words in (
        ("robot", "the robot takes red cup to table and then goes door"),
        ("song", "la le li lo lu na ne ni no nu"),
    ):
        paragraphs = [" ".join(rng.choices(words.split(), k=90)) for _ in range(150)]
        (folder / f"{name}.txt").write_text("\n\n".join(paragraphs) + "\n")
    return folder


@pytest.fixture(scope="module")
def base(models):
    return read_base(models("llama")).model


@pytest.fixture(scope="module")
def shape(models):
    return read_base(models("llama")).architecture


STREAM = np.array([5, 9, 33, 70, 4] * 40, np.uint16)


def test_a_target_foretells_itself(base):
    spoken = speak(base, STREAM, PROBE)
    found = measure(base, spoken)
    assert found["greedy"] == found["coupled"] == [4.0] * 4
    assert min(found["greedy_first"] + found["coupled_first"]) == 1.0
    assert min(found["overlap"]) > 0.999
    assert distance(base, base, STREAM, length=32)["kl_to_base"] == 0


def test_the_sampled_text_follows_the_targets_law(base):
    """The coupled text is the target's sample: its tokens are as likely as they say."""
    probe = Probe(prompts=200, prompt_tokens=8, count=10)
    spoken = speak(base, STREAM, probe)
    text = spoken.sampled[:, 8:]
    chance = spoken.chances.gather(-1, text[..., None])[..., 0]
    # E[p(y)] over samples is the mean of sum p^2; both are over the same positions.
    expected = (spoken.chances**2).sum(-1)
    error = (chance - expected).mean() / (chance - expected).std() * text.numel() ** 0.5
    assert abs(float(error)) < 4
    assert len(spoken.facts()) == 2


def test_coupled_agreement_is_between_the_published_bounds(base):
    """At least (1 - TV) / (1 + TV) and at most 1 - TV, within noise."""
    draft = make_draft(base, anchor_layers=0, trained_layers=1)
    spoken = speak(base, STREAM, Probe(prompts=160, prompt_tokens=8, count=24, block=1))
    found = measure(draft, spoken)
    assert found["coupled"] == found["coupled_first"], "a block of one is its first"
    agree, overlap = np.mean(found["coupled_first"]), np.mean(found["overlap"])
    low = overlap / (2 - overlap)
    noise = 4 * (0.25 / (160 * 12)) ** 0.5
    assert low - noise < agree < overlap + noise
    assert overlap < 0.99


def test_blocks_are_counted_as_a_session_does():
    row = np.array([[1, 1, 1, 1, 0, 1, 0, 0, 1, 1, 1, 1, 1]], bool)
    # Four, and the bonus token after them; one, none, each with a correction; four.
    assert accepted_per_block(row, 4) == (4 + 1 + 0 + 4) / 4


def test_the_suffix_cache_follows_what_was_said_before():
    song = [1, 2, 3, 4, 5, 6, 7, 8] * 6
    texts = np.array([song, [9, 9, *song[2:]], [*range(10, 58)]])
    found = suffix_choices(texts, 2, 64)
    assert found[0, 0] == -1, "nothing was said before"
    right = found[1] == texts[1, 2:]
    assert right[-24:].all(), "it has been right long enough to be trusted"
    assert (found[2] == -1).all(), "a new text is the draft's"


def test_arithmetic_is_counted(base, shape):
    a = shape
    whole = flops_per_token(a, trained_layers=2, head=True, length=32)
    layers = sum(p.numel() for p in base.model.layers[0].parameters() if p.ndim == 2) * 2
    vocab = a.vocab_size * a.hidden
    assert whole == pytest.approx(6 * layers + 8 * vocab, rel=0.2)
    assert flops_per_token(a, trained_layers=1, head=False, length=32) < whole


def document(**arms):
    """A document with one text a target, made of given means."""
    rng = np.random.default_rng(1)

    def rows(mean):
        return {
            m: np.clip(rng.normal(mean, 0.3, 40), 0, 4).tolist()
            for m in ("greedy", "coupled", "greedy_first", "coupled_first")
        }

    def entry(shift, kl):
        facts = {
            "loss": 1.0, "base_loss": 1.1, "kl_to_base": kl, "distinct_4_greedy": 0.5,
            "distinct_4_sampled": 0.9,
        }  # fmt: skip
        seeds = {a: {str(s): rows(m - shift) for s in (1, 2, 3)} for a, m in arms.items()}
        return {"domains": {"talk": {**facts, "arms": seeds}}, "free": False}

    return {
        "schema": "draftwire.evolve/1",
        "settings": {
            "base": "b",
            "budget": {"seeds": [1, 2, 3], "long": 8.0},
            "probe": {"prompts": 40, "prompt_tokens": 8, "count": 24, "block": 4},
        },
        "machine": {"cores": 1, "processor": "x", "torch": "2", "date": "2026-01-01"},
        "targets": {"base": entry(0, 0.0), "far": entry(0.5, 0.3), "near": entry(0, 0.1)},
        "bytes": {"draft": 3e6, "base_as_draft": 9e6, "trained_part": 1e6},
    }


def test_intervals_and_verdicts():
    found = document(frozen=2.0, suffix=2.0, independent=1.0, long=2.5, retrained=2.6)
    table = Table(found, "greedy")
    assert table.evolved == ["near", "far"]
    cell = table.cell(["near"], "frozen")
    assert cell.low < cell.mean < cell.high
    assert cell.mean == pytest.approx(2.0, abs=0.1)
    assert cell.high - cell.low < 0.4
    assert table.cell(["near"], "stale") is None
    assert table.difference(["near", "far"], "frozen", "independent").sign == 1
    assert table.difference(["near", "far"], "frozen", "long").sign == -1
    assert table.difference(["near"], "frozen", "frozen").sign == 0
    assert table.retention("far", "frozen").high < 1
    text = render(found)
    assert "beats an independent draft: confirmed" in text
    assert "gets more compute: refuted" in text
    assert "as good as one re-trained for each version: refuted" in text
    assert "follow: not established" in text


def test_seeds_count_as_students_t_says():
    """All prompts alike: of seeds 1, 2, 3 the interval is 2 +- t(2) / sqrt(3)."""
    found = document(frozen=2.0, independent=1.0)
    for name in found["targets"]:
        for seed in ("1", "2", "3"):
            arms = found["targets"][name]["domains"]["talk"]["arms"]
            arms["frozen"][seed] = {"greedy": [float(seed)] * 40}
            arms["independent"][seed] = {"greedy": [float(seed) - 0.5] * 40}
    table = Table(found, "greedy")
    cell = table.cell(["near"], "frozen")
    half = 4.303 / 3**0.5
    assert [cell.mean, cell.low, cell.high] == pytest.approx([2, 2 - half, 2 + half])
    cell = table.difference(["near"], "frozen", "independent")
    assert [cell.low, cell.high] == pytest.approx([0.5, 0.5]), "seeds are paired"


def test_all_comparisons_share_one_resampling():
    found = document(frozen=2.0, independent=2.0)
    talk = {n: e["domains"]["talk"]["arms"] for n, e in found["targets"].items()}
    for seed, row in talk["base"]["frozen"].items():
        before = np.array(row["greedy"])
        talk["far"]["frozen"][seed] = {"greedy": (0.8 * before).tolist()}
        talk["far"]["independent"][seed] = {"greedy": (0.8 * before - 0.1).tolist()}
        talk["near"]["frozen"][seed] = {"greedy": (before[::-1]).tolist()}
    table = Table(found, "greedy")
    kept = table.retention("far", "frozen")
    assert [kept.mean, kept.low, kept.high] == pytest.approx([0.8] * 3)
    less = table.difference(["far"], "frozen", "independent")
    assert [less.mean, less.low, less.high] == pytest.approx([0.1] * 3)
    # The same values in another order of prompts: as wide as independent ones are, or more.
    one, other = (table.cell([n], "frozen") for n in ("base", "near"))
    free = np.hypot(one.high - one.mean, other.high - other.mean)
    pair = table.between("base", "far", "frozen")
    assert pair.high - pair.mean < 0.5 * free < table.between("base", "near", "frozen").high


def test_merging_is_arithmetic_of_weights(base):
    one, other = (make_draft(base, anchor_layers=0, trained_layers=2) for _ in "ab")
    for model, step in ((one, 0.25), (other, -0.5)):
        for p in model.parameters():
            p.data += step
    for scale, step in ((0.5, -0.125), (1.0, -0.25)):
        found = merged(base, [one, other], scale=scale).state_dict()
        for name, weight in base.state_dict().items():
            assert torch.allclose(found[name], weight + step, atol=1e-6)


def test_a_preference_raises_what_is_preferred(base):
    pairs = make_pairs(base, STREAM, wanted=6, seed=1)
    different = [[len(set(row[24:])) for row in pair] for pair in pairs.ids.tolist()]
    assert all(best > worst for best, worst in different)
    model = make_draft(base, anchor_layers=0, trained_layers=2)
    start = preference_loss(model, pairs.ids, pairs.base)
    assert start.item() == pytest.approx(np.log(2), abs=1e-3), "no model has moved yet"
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.03)
    start.backward()
    optimiser.step()
    with torch.no_grad():
        gain = log_chances(model, pairs.ids.flatten(0, 1)).view(-1, 2) - pairs.base
    assert float((gain[:, 0] - gain[:, 1]).mean()) > 0
    assert preference_loss(model, pairs.ids, pairs.base).item() < start.item()


def test_markdown_is_put_between_its_marks(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib draws the pictures")
    page = tmp_path / "page.md"
    begin, end = "<!-- tiny: begin -->", "<!-- tiny: end -->"
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    found = document(frozen=2.0, retrained=2.5, stale=3.0)
    _, picture = write_markdown(found, page, "tiny")
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert "old" not in text
    assert picture.read_bytes()[:4] == b"\x89PNG" and picture.name in text
    with pytest.raises(ConfigError, match="no place for a study"):
        write_markdown(found, page, "other")


@pytest.mark.parametrize(
    "word",
    ["tea", "tea:0", "tea:3:loose", "x.target", ":", "tea:mean", "tea:3:taught", "+:3"],
)
def test_what_is_no_version_is_refused(word):
    with pytest.raises(ConfigError, match="is no version of a target"):
        parse_version(word)


@pytest.mark.slow
def test_a_tiny_study(models, texts, tmp_path, capsys):
    work = tmp_path / "work"
    words = [
        "--base", models("qwen2"), "--work", work,
        "--data", f"robot={texts}/robot.txt", "--new", f"song={texts}/song.txt",
        "--version", "robot:2", "--version", "song:2:free", "--version", "robot:2:varied",
        "--version", "robot:2:new", "--version", "robot:2:taught=robot-2-new",
        "--version", "robot-2+song-2-free:mean",
        "--anchor-layers", 1, "--layers", 1, "--draft-tokens", 512, "--pool-tokens", 1024,
        "--batch", 256, "--length", 32, "--rank", 2, "--long", 2, "--seeds", "1,2",
        "--prompts", 3, "--count", 16,
    ]  # fmt: skip
    words = [str(word) for word in words]
    assert main([*words, "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert [(name, entry["kind"]) for name, entry in found["targets"].items()] == [
        ("base", "text"), ("robot-2", "text"), ("song-2-free", "free"),
        ("robot-2-varied", "varied"), ("robot-2-new", "new"),
        ("robot-2-taught", "taught"), ("robot-2+song-2-free-mean", "mean"),
    ]  # fmt: skip
    merged_of = found["targets"]["robot-2+song-2-free-mean"]["domains"]
    assert set(merged_of) == {"robot", "song"}
    arms = found["targets"]["song-2-free"]["domains"]["song"]["arms"]
    assert set(arms) == {
        "frozen", "suffix", "independent", "long", "stale", "retrained",
    }  # fmt: skip
    assert set(arms["frozen"]) == {"1", "2"} and set(arms["stale"]) == {"0"}
    assert len(arms["frozen"]["1"]["greedy"]) == 3
    budget = {n: row["flops"] for n, row in found["trainings"].items() if "flops" in row}
    # Steps are whole: with so few of them equal compute is equal to the step.
    assert 0.3 < budget["independent.1x.1"] / budget["frozen.1"] < 3
    assert found["bytes"]["draft"] <= found["bytes"]["base_as_draft"]

    # A second run trains and measures nothing; its document is the same.
    assert main([*words, "--json"]) == 0
    again = capsys.readouterr()
    assert "tokens" not in again.err
    later = json.loads(again.out)
    assert later["targets"] == found["targets"]
    assert main(["--results", str(work / "results.json")]) == 0
    assert "mean of evolved" in capsys.readouterr().out
    assert main([*words, "--rank", "3"]) == 2
    assert "other settings" in capsys.readouterr().err


def test_wrong_studies_are_refused(models, texts, tmp_path, capsys):
    good = ["--base", str(models("llama")), "--work", str(tmp_path / "w")]
    data = ["--data", f"robot={texts}/robot.txt"]
    one = [*data, "--version", "robot:2"]
    for words, sentence in (
        ([*data], "--work"),
        ([*good], "which targets evolve"),
        ([*good, "--data", "robot.txt", "--version", "robot:2"], "is not NAME=FILE"),
        ([*good, *data, *one], "a name of its own"),
        ([*good, *data, "--version", "opera:2"], "no text of this study"),
        ([*good, *one, "--version", "robot:2"], "each once"),
        ([*good, *data, "--version", "robot-2+x:sum"], "no version before it"),
        ([*good, *one, "--arms", "given"], "--draft"),
        ([*good, *one, "--count", "4"], "too few"),
        ([*good, *one, "--arms", "frozen,magic"], "no arm magic"),
        ([*good, *one, "--seeds", "a"], "no whole numbers"),
        ([*good, *one, "--batch", "0"], "too few"),
        ([*good[:3], str(tmp_path / "v"), *one, "--new", "x=/no"], "cannot be read"),
        (["--results", str(texts / "robot.txt")], "holds no results"),
    ):
        assert main(words) == 2
        assert sentence in capsys.readouterr().err
