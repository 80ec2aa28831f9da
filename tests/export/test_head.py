"""Drafts whose head says the frequent tokens alone: what they say, and what they cost."""

import json

import numpy as np
import pytest
import torch
from live import connect, ids_of, serving

from draftwire.cli import main
from draftwire.errors import ConfigError, ModelError
from draftwire.export.onnx import export_onnx
from draftwire.export.settings import DraftSettings
from draftwire.export.sources.checkpoint import load_model
from draftwire.export.sources.head import UNSAID, head_ids, packed, read_head
from draftwire.export.tflite import export_tflite
from draftwire.export.training.draft import build_draft
from draftwire.export.training.measure import continuations
from draftwire.packages import load_draft
from draftwire.runtime.engines.draft_model import DraftModel
from draftwire.tokenizer import load_tokenizer

IDS = [int(i) for i in np.random.default_rng(0).integers(0, 300, 40)]
SAID = 100
FP32 = {"precision": "fp32", "against": "numpy"}


def logits_of(package, engine="onnxruntime", precision="fp32"):
    """Return what a package's own engine says after the last of some ids."""
    return np.array(
        DraftModel.load(package, engine=engine, precision=precision).forward(IDS)
    )


def test_which_tokens_are_said(tokenizer_file):
    engine = load_tokenizer(tokenizer_file).engine
    added = {i for i in engine.get_added_tokens_decoder() if i < 300}
    ids = head_ids(SAID, 300, tokenizer=engine, keep=(299,))
    assert len(ids) == SAID and {299, *added} <= set(ids.tolist())
    assert set(range(90)) <= set(ids.tolist())  # the first of the vocabulary
    seen = np.zeros(300, np.int64)
    seen[200:290] = 3
    ids = head_ids(SAID, 300, tokenizer=engine, keep=(299,), seen=seen)
    assert {*range(200, 290), 299} <= set(ids.tolist())
    assert read_head("here", {"draft_head": packed(ids, 300)}, 300) == (*ids.tolist(),)
    assert read_head("here", {}, 300) == ()


@pytest.mark.parametrize("count", [0, 63, 320, 1000])
def test_a_head_of_a_wrong_size_is_refused(count, models, tmp_path, capsys):
    words = ["export", "package", str(models("llama")), "--head", str(count)]
    assert main([*words, "--out", str(tmp_path / "a.draft")]) == 2
    assert "hint: choose 64 to 319" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("table", [3, "!", "AAAA", "", packed(np.array([320]), 321)])
def test_a_table_of_another_vocabulary_is_refused(table, model_copy, tmp_path):
    folder = model_copy("llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "draft_head": table}))
    with pytest.raises(ModelError, match="draft_head is no table of its 320 tokens"):
        export_onnx(folder, tmp_path / "a.draft", against="numpy")


def test_text_tells_which_tokens_are_frequent(models, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("take the red cup to the table\n" * 9)
    words = ["export", "package", str(models("llama")), "--data", str(text)]
    out = ["--out", str(tmp_path / "a.draft"), "--precision", "fp32"]
    assert main([*words, "--head", "80", *out]) == 0
    said = np.flatnonzero(logits_of(load_draft(tmp_path / "a.draft")) != UNSAID)
    read = load_tokenizer(models("llama")).encode(text.read_text())
    assert max(read) > 80 and {*read} <= {*said.tolist()}
    assert main([*words, "--out", str(tmp_path / "b.draft")]) == 2
    assert "add --head" in capsys.readouterr().err


def test_a_target_says_every_token(models, tmp_path):
    with pytest.raises(ConfigError, match="every token"):
        export_onnx(models("llama"), tmp_path / "a.target", role="target", head=SAID)


def require_few(found, whole, near):
    """Hold logits to those of a whole head, where they are said."""
    said = np.flatnonzero(found != UNSAID)
    assert len(said) == SAID
    np.testing.assert_allclose(found[said], whole[said], atol=near * np.abs(whole).max())


@pytest.mark.parametrize("shape", ["llama", "llama_tied_biased", "gemma2", "gpt_neox"])
def test_what_it_says_is_what_the_whole_head_says(shape, models, tmp_path):
    """Of the tokens it says; no other one can be drafted. LiteRT, too, from the package."""
    near = {"fp32": 1e-5, "int8": 0.05, "int8-split": 0.05, "int4": 0.5}
    how = {"precision": [*near], "min_agreement": 0.0}
    whole, small = (
        load_draft(export_onnx(models(shape), tmp_path / f"{head}.draft", head=head, **how))
        for head in (None, SAID)
    )
    assert small.raw["made"]["head_tokens"] == SAID
    for precision, within in near.items():
        right, found = (logits_of(p, precision=precision) for p in (whole, small))
        require_few(found, right, within)
    parity = small.model_file("fp32").details["parity"]
    assert parity["max_logit"] < 100  # of what is said
    lite = load_draft(
        export_tflite(
            small.path,
            tmp_path / "l.draft",
            precision=["fp32", "int8"],
            **{"min_agreement": 0.0},
        )
    )
    right = logits_of(whole, precision="fp32")
    for precision in ("fp32", "int8"):
        found = logits_of(lite, engine="litert", precision=precision)
        require_few(found, right, 1e-4 if precision == "fp32" else 0.1)


@pytest.mark.parametrize("scheme", ["greedy", "coupled", "residual", "separate", "qs"])
def test_the_text_is_the_targets_own(scheme, models, targets, tmp_path):
    """Tokens that the draft cannot say come from the target, at once."""
    drafts = {
        head: export_onnx(models("llama"), tmp_path / f"{head}.draft", head=head, **FP32)
        for head in (None, SAID)
    }
    how = {"temperature": 0.0 if scheme == "greedy" else 0.9, "top_k": 0, "seed": 3}
    if scheme == "separate":
        how["top_k"] = 40
    texts = {}
    with serving(targets("llama")) as verifier:
        for head, draft in drafts.items():
            with connect(verifier, draft=draft) as session:
                stream = session.generate(
                    "the robot", max_new_tokens=48, scheme=scheme, **how
                )
                texts[head] = ids_of(stream), stream.report
    for _, report in texts.values():
        assert (report["tokens"], report["finish"]) == (48, "length")
    if scheme in ("greedy", "coupled"):
        assert texts[None][0] == texts[SAID][0]
    assert any(token >= SAID for token in texts[SAID][0])


def test_a_trained_drafts_head_says_what_it_read(model_copy, tmp_path):
    """Another size of it needs no other training."""
    folder = model_copy("llama")
    (folder / "chat_template.jinja").write_text("<{{ messages[0].content }}>")
    text = tmp_path / "text.jsonl"
    lines = [f"take cup {n} to the table" for n in range(400)]
    asked = [{"messages": [{"role": "user", "content": line}]} for line in lines]
    text.write_text("".join(json.dumps(line) + "\n" for line in asked))
    said, settings = [], {
        "anchor_layers": 1, "layers": 1, "tokens": 2048, "batch": 256, "length": 32,
        "prompts": 2, "looks": 1, "arithmetic": "float32", "written": 1.0,
    }  # fmt: skip
    heads = {}
    for head in (SAID, 80, None):
        made = build_draft(
            folder, tmp_path / f"{head}.draft", [text], work=tmp_path / "work",
            settings=DraftSettings(**settings, head=head), precision="fp32",
            min_agreement=0, say=said.append,
        )  # fmt: skip
        heads[head] = np.flatnonzero(logits_of(load_draft(made)) != UNSAID)
    assert [len(ids) for ids in heads.values()] == [SAID, 80, 320]
    assert said.count("resumed at step 8 of 8") == 2
    with pytest.raises(ConfigError, match="a head of 400 tokens"):
        build_draft(
            folder, tmp_path / "a.draft", [text], work=tmp_path / "other",
            settings=DraftSettings(**settings, head=400), say=said.append,
        )  # fmt: skip
    assert not (tmp_path / "other").exists()
    whole = load_tokenizer(folder)
    read = {*whole.encode("<take cup 12 to the table>")}
    assert {*heads[80].tolist()} > read and max(read) > 80
    # Its rows answer the prompts, as the base does.
    rows, model = np.load(tmp_path / "work/text/written.npy"), load_model(folder)
    asked = whole.encode(f"<{lines[0]}>")[:8]
    assert (rows[:, : len(asked) - 4] == asked[: len(asked) - 4]).all()
    first = next(row for row in rows[1:4] if row[0] == asked[0])
    prompt = next(
        ids for line in lines if (ids := whole.encode(f"<{line}>"))
        and first[: len(ids)].tolist() == ids[: len(first)]
    )  # fmt: skip
    start = min(len(prompt), 16)
    right = continuations(
        model, torch.from_numpy(first[None, :start].astype("i8")), count=8
    )
    assert right[0, start:].tolist() == first[start : start + 8].tolist()
