"""``export draft`` and ``export evolve``: what comes out, what is refused, going on."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tiny_models import SHAPES

from draftwire.cli import main
from draftwire.errors import ConfigError, DraftwireError, ModelError
from draftwire.export.onnx import export_onnx
from draftwire.export.settings import DraftSettings, EvolveSettings
from draftwire.export.sources.documents import read_documents
from draftwire.export.training import begin, evolve, loop
from draftwire.export.training import draft as build
from draftwire.export.training import states as states_module
from draftwire.export.training.base import read_base
from draftwire.export.training.distil import DraftTrainer, make_draft
from draftwire.export.training.draft import build_draft
from draftwire.export.training.evolve import evolve_target
from draftwire.export.training.measure import repeated
from draftwire.export.training.states import States, UpperTrainer, write_states
from draftwire.export.training.text import split_documents
from draftwire.packages import load_draft, load_target
from draftwire.template import Template
from draftwire.tensors import target_weights

SMALL = DraftSettings(
    anchor_layers=1, layers=1, tokens=1024, batch=256, length=32, prompts=2, looks=2,
    arithmetic="float32",
)  # fmt: skip
EVOLVED = EvolveSettings(rank=2, tokens=512, batch=256, length=32, lr=0.05)


def quiet(line):
    """Say nothing."""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of robot sentences."""
    rng = random.Random(3)
    words = "the robot takes red cup to table and then goes door".split()
    file = tmp_path_factory.mktemp("text") / "robot.txt"
    paragraphs = [" ".join(rng.choices(words, k=60)) for _ in range(160)]
    file.write_text("\n\n".join(paragraphs) + "\n")
    return file


def command(what, source, text, out, *more):
    return ["export", what, str(source), "--data", str(text), "--out", str(out), *more]


def make(source, out, text, *, say=quiet, named=None, **changes):
    """Build a float32 draft with these settings in place of the small ones."""
    settings = DraftSettings(**{**vars(SMALL), **changes})
    how = {"precision": "fp32", "min_agreement": 0, "say": say, **(named or {})}
    return build_draft(source, out, [text], settings=settings, **how)


def require_same(folder, names, atol):
    """Hold the weights of two works to each other."""
    works = [folder / f"{name}.work/{name}.hf/model.safetensors" for name in names]
    first, second = map(load_file, works)
    for name, values in first.items():
        np.testing.assert_allclose(second[name], values, atol=atol)


def test_the_command_makes_a_draft_of_the_family(model_copy, tmp_path, text, capsys):
    folder = model_copy("llama")
    (folder / "chat_template.jinja").write_text("<{{ messages[0].content }}>")
    target = export_onnx(
        folder, tmp_path / "v1.target", role="target", anchor_layers=1, against="numpy"
    )
    out = tmp_path / "d.draft"
    words = ["--anchor-layers", "1", "--layers", "1", "--tokens", "1024", "--batch", "256"]
    words += ["--precision", "fp32", "--prompts", "2", "--min-agreement", "0", "--json"]
    assert main(command("draft", folder, text, out, *words)) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["path"] == str(out)
    assert "accepted of 4" in said.err
    draft, v1 = load_draft(out), load_target(target)
    assert draft.family.backbone == v1.family.backbone
    assert draft.family.tokenizer == v1.family.tokenizer
    assert draft.family.name == "llama"
    for package in (draft, v1):
        assert Template.of(package.path).text == "<{{ messages[0].content }}>"
    assert draft.raw["made"]["by"] == "draftwire export draft"
    assert 800 < draft.raw["made"]["tokens"] <= 1024  # whole steps of whole rows
    base = load_file(folder / "model.safetensors")
    made = load_file(tmp_path / "d.work" / "d.hf" / "model.safetensors")
    changed = {n for n in made if not np.array_equal(made[n], base[n])}
    assert changed and all(".layers.1." in n or n == "model.norm.weight" for n in changed)
    report = json.loads((tmp_path / "d.work" / "report.json").read_text())
    assert report["schema"] == "draftwire.training/1"
    assert [row["step"] for row in report["log"]] == list(range(report["steps"]))
    assert 0 <= report["log"][-1]["accepted"] <= 4
    assert 0 <= report["held_out"]["robot"]["overlap"] <= 1
    assert main(command("draft", folder, text, out, *words)) == 2
    assert "already" in capsys.readouterr().err


def test_the_draft_learns(models, tmp_path, text):
    """Without its second layer the base is another model; the draft makes up for it."""
    changes = {"anchor_layers": 0, "tokens": 6 * 1024, "lr": 0.01}
    make(models("llama"), tmp_path / "d.draft", text, **changes)
    report = json.loads((tmp_path / "d.work" / "report.json").read_text())
    losses = [row["loss"] for row in report["log"]]
    assert np.mean(losses[-4:]) < 0.8 * losses[0]
    if "matplotlib" in sys.modules:
        assert (tmp_path / "d.work" / "report.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("shape", ["qwen2", "gpt_neox", "gemma3"])
def test_other_shapes_and_packages_as_base(models, targets, tmp_path, text, shape):
    """From the checkpoint and from its target package: the same draft."""
    made = [
        load_draft(make(source, tmp_path / f"{name}.draft", text))
        for name, source in (("a", models(shape)), ("b", targets(shape)))
    ]
    assert made[0].family == made[1].family == load_target(targets(shape)).family
    require_same(tmp_path, "ab", 5e-3)


@pytest.fixture
def interrupted(monkeypatch):
    """Return a function: make a module's training break off at a micro-batch."""

    def at(module, name, number):
        whole, calls = getattr(module, name), []

        def loss(*args):
            calls.append(1)
            if len(calls) == number:
                raise KeyboardInterrupt
            return whole(*args)

        monkeypatch.setattr(module, name, loss)

    return at


def test_a_budget_decides_the_tokens_and_a_plan_comes_first(
    models, tmp_path, text, monkeypatch
):
    monkeypatch.setattr(begin, "_LEAST", 300)
    monkeypatch.setattr(begin, "_QUICK_S", 0.05)
    monkeypatch.setattr(begin.Pace, "tokens_in", lambda self, s: int(s * 100))
    said, out = [], tmp_path / "d.draft"

    def tokens(budget):
        named = {"replace": True}
        make(models("llama"), out, text, say=said.append, named=named, budget=budget)
        return load_draft(out).raw["made"]["tokens"]

    assert tokens(5.12) == 512
    assert said[0].startswith("plan: 512 tokens at ") and "GB of memory" in said[0]
    assert tokens(99.0) == 512, "a training that was begun keeps its size"
    assert said.count("going on with a training of 512 tokens") == 1
    with pytest.raises(ConfigError, match=r"other settings \(passes, tokens\)"):
        tokens(0.0)


def test_a_budget_that_is_none_says_so():
    assert DraftSettings(budget="2h").budget == 7200
    assert DraftSettings(budget="1h30m").budget == 5400
    for odd in ("", "2", "h", "1 hour", "-2h"):
        with pytest.raises(ConfigError, match="budget is"):
            DraftSettings(budget=odd)
    with pytest.raises(ConfigError, match="too few to learn from"):
        begin.Pace(10.0, 1000).tokens_in(60)


@pytest.mark.parametrize("kind", [{}, {"parallel": 4, "written": 0.5}], ids=["one", "many"])
def test_an_interrupted_draft_is_the_same_draft(models, tmp_path, text, interrupted, kind):
    def run(name, **changes):
        out, how = tmp_path / f"{name}.draft", {**kind, **changes, "save_every": 0.0}
        return make(models("llama"), out, text, named={"name": "d"}, **how)

    whole = run("whole")
    interrupted(build, "_loss", 3)
    with pytest.raises(KeyboardInterrupt):
        run("broken")
    assert not (tmp_path / "broken.draft").exists()
    log = tmp_path / "broken.work/log.jsonl"
    assert len(log.read_text().splitlines()) == 2, "two steps were kept"
    with pytest.raises(ConfigError, match=r"other settings \(tokens\)"):
        run("broken", tokens=2048)
    again = run("broken")
    require_same(tmp_path, ("whole", "broken"), 1e-6)
    assert load_draft(whole).family == load_draft(again).family


@pytest.mark.parametrize("shape", SHAPES)
def test_kept_states_teach_what_the_text_does(models, tmp_path, text, shape):
    """The same loss and gradients, or a refusal where layers need more than states."""
    torch.manual_seed(0)
    base = read_base(models(shape))
    draft = make_draft(base.model, anchor_layers=1, trained_layers=1)
    with torch.no_grad():
        for p in draft.parameters():
            p.add_(0.05 * torch.randn_like(p) if p.requires_grad else 0)
    whole = DraftTrainer(base.model, draft)
    try:
        upper = UpperTrainer(base.model, draft, 1)
    except ModelError:
        assert shape not in ("llama", "qwen2", "mistral", "gemma3", "smollm3")
        return
    ids = torch.randint(draft.config.vocab_size, (2, 9))
    write_states(tmp_path / "s", 1, base.model, 1, lambda part: [ids], quiet)
    states = States(tmp_path / "s", draft.config.vocab_size)
    plan = loop.Plan(steps=1, batch=16, micro=16, lengths=((1.0, 8),))
    batch = states.micro(plan, 0, 0)
    found = []
    for loss in (whole.loss(batch[0]), upper.loss(*batch)):
        draft.zero_grad()
        loss.backward()
        found.append([float(loss.detach()), *(p.grad.norm() for p in draft.parameters()
                                     if p.requires_grad)])  # fmt: skip
    np.testing.assert_allclose(found[1], found[0], rtol=0.02, atol=1e-3)


def test_a_sampled_head_stands_for_the_whole(monkeypatch, tmp_path, models):
    """Over many samples the loss is that of all words, to some percent."""
    base = read_base(models("llama"))
    draft = make_draft(base.model, anchor_layers=0, trained_layers=1)
    size = draft.config.vocab_size
    upper = UpperTrainer(base.model, draft, 0)
    ids = torch.randint(5, 12, (4, 9))
    write_states(tmp_path / "s", 1, base.model, 0, lambda part: [ids], quiet)
    plan = loop.Plan(steps=1, batch=32, micro=32, lengths=((1.0, 8),))
    right = float(upper.loss(*States(tmp_path / "s", size).micro(plan, 0, 0)[:3],
                             torch.arange(size)))  # fmt: skip
    monkeypatch.setattr(states_module, "_WORDS", 7)
    monkeypatch.setattr(states_module, "_OTHERS", size // 3)
    states, losses = States(tmp_path / "s", size), []
    for step in range(60):
        *batch, words = states.micro(plan, step, 0)
        assert len(words) == 7 + size // 3 and len(set(words.tolist())) == len(words)
        losses.append(float(upper.loss(*batch, words)))
    assert np.std(losses) > 0
    assert abs(np.mean(losses) - right) < 0.1 * right


def test_a_text_is_run_through_the_base_once(models, tmp_path, text, interrupted):
    """Four passes over kept states; killed while they are written and while it learns."""
    how = {"passes": 4, "save_every": 0.0, "tokens": 2048}
    make(models("llama"), tmp_path / "whole.draft", text, **how)
    for module, name, number in ((states_module, "reading", 2), (build, "_loss", 3)):
        interrupted(module, name, number)
        with pytest.raises(KeyboardInterrupt):
            make(models("llama"), tmp_path / "cut.draft", text, **how)
        kept = len(list((tmp_path / "cut.work/states").iterdir()))
        assert kept == (1 if name == "reading" else 2)
    make(models("llama"), tmp_path / "cut.draft", text, **how)
    require_same(tmp_path, ("whole", "cut"), 1e-6)


def test_a_draft_no_better_than_nothing_is_not_packaged(models, tmp_path, text, capsys):
    words = ["--anchor-layers", "1", "--layers", "1", "--tokens", "256", "--batch", "256"]
    words += ["--prompts", "2", "--precision", "fp32"]
    out = tmp_path / "d.draft"  # all of its base, untrained: nothing can be better
    assert main(command("draft", models("llama"), text, out, *words)) == 5
    said = capsys.readouterr().err
    assert "not packaged: of 4 drafts" in said and "the same layers untrained" in said
    assert not out.exists() and (tmp_path / "d.work" / "report.json").exists()
    assert main(command("draft", models("llama"), text, out, *words,
                        "--min-agreement", "0")) == 0  # fmt: skip
    made = load_draft(out).raw["made"]
    assert made["accepted"] <= max(made["doing_nothing"].values())


def test_what_repeats_itself_needs_no_model():
    texts = torch.tensor([[1, 2, 3, 1, 2, 3, 1, 2, 4, 2, 4]])
    assert repeated(texts, 3).tolist() == [
        [False, True, True, True, True, False, False, True]
    ]


def test_two_processes_make_the_draft_of_one(models, tmp_path, text):
    for workers in (1, 2):
        make(models("llama"), tmp_path / f"{workers}.draft", text, workers=workers)
    require_same(tmp_path, (1, 2), 1e-5)


@pytest.mark.slow
def test_a_killed_training_goes_on(models, tmp_path, text):
    """kill -9 in the middle, twice; then the result of an undisturbed run."""
    home = Path(build.__file__).resolve().parents[2] / "src"
    script = (
        "import sys\n"
        "from draftwire.export.settings import DraftSettings\n"
        "from draftwire.export.training.draft import build_draft\n"
        "build_draft(sys.argv[1], sys.argv[2], [sys.argv[3]], precision='fp32',\n"
        "  min_agreement=0, name='d', settings=DraftSettings(anchor_layers=1, layers=1,\n"
        "  tokens=150_000, batch=1024, length=64, prompts=2, looks=1, save_every=0.0,\n"
        "  arithmetic='float32'))\n"
    )

    def start(out):
        return subprocess.Popen(
            [sys.executable, "-c", script, models("llama"), out, text],
            env={**os.environ, "PYTHONPATH": str(home), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    assert start(tmp_path / "whole.draft").wait() == 0
    log = tmp_path / "cut.work" / "log.jsonl"
    for steps in (20, 70):
        process = start(tmp_path / "cut.draft")
        while process.poll() is None:
            if log.exists() and len(log.read_text().splitlines()) > steps:
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(0.01)
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "cut.draft").exists()
    last = start(tmp_path / "cut.draft")
    said = last.communicate()[0].decode()
    assert last.returncode == 0 and "resumed at step" in said
    require_same(tmp_path, ("whole", "cut"), 1e-4)


def test_wrong_input_is_refused(models, model_copy, tmp_path, text, tokenizer_file):
    out = tmp_path / "d.draft"

    def refused(kind, sentence, source=None, data=(text,), place=out, **changes):
        with pytest.raises(kind, match=sentence) as found:
            settings = DraftSettings(**{**vars(SMALL), **changes})
            build_draft(
                source or models("llama"), place, data, settings=settings, say=quiet
            )
        assert isinstance(found.value, DraftwireError)
        assert found.value.hint or kind is ModelError

    short = tmp_path / "short.txt"
    short.write_text("the robot goes")
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\x00\x80" * 100)
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": "the robot"}\n{"id": 7}\n')
    said = tmp_path / "said.jsonl"
    said.write_text('{"messages": [{"role": "user"}]}\n')
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "the robot')
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    refused(ConfigError, "no model directory", source=tmp_path / "nowhere")
    refused(ConfigError, r"called NAME\.draft", place=tmp_path / "d.target")
    refused(ConfigError, "base of 2 layers", layers=2)
    refused(ConfigError, "tokens is 0", tokens=0)
    refused(ConfigError, "lr is 0.0", lr=0.0)
    refused(ConfigError, "arithmetic is 'int3'", arithmetic="int3")
    refused(ConfigError, "device is 'tpu'", device="tpu")
    refused(ConfigError, "cannot be read", data=[tmp_path / "missing.txt"])
    for sentence, data in (
        ("no text to train on", []),
        ("text is too small", [short]),
        ("not UTF-8", [binary]),
        ("holds no text", [empty]),
        ("line 2 of .* has no text", [lines]),
        ("line 1 of .* is not JSON", [broken]),
        ("line 1 of .*messages", [said]),
    ):
        refused(ConfigError, sentence, data=data)
    folder = model_copy("llama")
    (folder / "tokenizer.json").unlink()
    refused(ModelError, r"no tokenizer\.json", source=folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    refused(ModelError, "'mamba' model", source=folder)
    assert not [*tmp_path.glob("*.draft"), *tmp_path.glob("*.work")]


def test_documents_are_dealt_once():
    documents = [f"document {i}" for i in range(50)]
    parts = split_documents(documents, {"held": 0.04, "train": 0.96}, seed=1)
    assert sorted(parts["held"] + parts["train"]) == sorted(documents)
    assert len(parts["held"]) == 2
    assert parts == split_documents(documents, {"held": 0.04, "train": 0.96}, seed=1)


def test_jsonl_documents(tmp_path):
    file = tmp_path / "turns.jsonl"
    file.write_text('{"turns": ["a", "b"]}\n\n{"text": "c"}\n')
    assert read_documents(file) == ["a\nb", "c"]


@pytest.fixture(scope="module")
def v1(models, tmp_path_factory):
    out = tmp_path_factory.mktemp("family") / "v1.target"
    return export_onnx(
        models("llama"), out, role="target", anchor_layers=1, against="numpy"
    )


def test_the_command_evolves_a_target(v1, text, capsys):
    words = ["--rank", "2", "--tokens", "512", "--batch", "256", "--lr", "0.05"]
    for version, free in (("v2", []), ("v3", ["--free-anchor"])):
        out = v1.parent / f"{version}.target"
        more = [*words, "--version", version, *free]
        assert main(command("evolve", v1, text, out, *more)) == 0
        said = capsys.readouterr()
        assert "nats per token" in said.err
        assert bool(free) == ("drafts of its tokenizer alone" in said.err)
        package, base = load_target(out), load_target(v1)
        assert package.version == version
        assert package.family.tokenizer == base.family.tokenizer
        assert (package.family.backbone == base.family.backbone) == (not free)
        before, after = target_weights(base), target_weights(package)
        changed = {n for n in after if not np.array_equal(before[n], after[n])}
        assert changed and any(".layers.0." in n for n in changed) == bool(free)
    report = json.loads((v1.parent / "v2.work" / "report.json").read_text())
    row = report["held_out"]["robot"]
    assert row["loss"] < row["base_loss"]


def test_an_interrupted_evolution_goes_on(v1, text, interrupted):
    settings = EvolveSettings(**{**vars(EVOLVED), "save_every": 0.0})
    out = v1.parent / "v7.target"

    def make(place):
        return evolve_target(
            v1, place, [text], version="v7", name="v7", settings=settings, say=quiet
        )

    interrupted(evolve, "text_loss", 2)
    with pytest.raises(KeyboardInterrupt):
        make(out)
    assert not out.exists()
    broken = load_target(make(out))
    whole = load_target(make(v1.parent / "v8.target"))
    first, second = target_weights(broken), target_weights(whole)
    for name in first:
        np.testing.assert_allclose(first[name], second[name], atol=2e-3)


def test_what_does_not_evolve_is_refused(v1, text, tmp_path, models):
    def refused(kind, sentence, source, place, **changes):
        with pytest.raises(kind, match=sentence):
            settings = EvolveSettings(**{**vars(EVOLVED), **changes})
            evolve_target(source, place, [text], version="v2", settings=settings, say=quiet)

    refused(ConfigError, r"called NAME\.target", v1, v1.parent / "x.draft")
    refused(ConfigError, "beside its base", v1, tmp_path / "x.target")
    refused(ConfigError, "already", v1, v1)
    refused(ConfigError, "rank is 0", v1, v1.parent / "x.target", rank=0)
    refused(ConfigError, "anchor of 1 layers", v1, v1.parent / "x.target", anchor_layers=2)
    refused(ConfigError, "adapter directory", models("llama"), tmp_path / "x.target")
    refused(ConfigError, "leaves nothing", models("llama"), tmp_path / "x", anchor_layers=2)
    assert not (v1.parent / "x.target").exists()


def test_an_evolved_target_is_not_evolved_again(v1, text):
    out = v1.parent / "v4.target"
    evolve_target(v1, out, [text], version="v4", settings=EVOLVED, say=quiet)
    with pytest.raises(ConfigError, match="evolved target itself"):
        evolve_target(
            out, v1.parent / "v5.target", [text], version="v5", settings=EVOLVED, say=quiet
        )


@pytest.mark.parametrize(
    ("words", "work"),
    [
        (["package", "--precision", "fp32"], "onnx.load_checkpoint"),
        (["package", "--role", "target"], "onnx.load_checkpoint"),
        (["package", "--engine", "litert"], "tflite.load_checkpoint"),
        (["draft"], "training.base.load_model"),
    ],
)
def test_a_broken_template_is_refused_before_the_work(
    words, work, model_copy, tmp_path, text, capsys, monkeypatch
):
    """The draft of a training would carry it, and be refused after hours."""

    def begun(*args, **named):
        raise AssertionError("the work has begun")

    folder = model_copy("llama")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}")
    monkeypatch.setattr(f"draftwire.export.{work}", begun)
    out = tmp_path / ("a.target" if "target" in words else "a.draft")
    data = ["--data", str(text)] if words == ["draft"] else []
    assert main(["export", *words, str(folder), "--out", str(out), *data]) == 2
    assert "the chat template is no jinja2 template" in capsys.readouterr().err
    assert not list(tmp_path.glob("a.*"))


def test_a_base_that_is_a_package_has_its_template_looked_at_too(
    model_copy, tmp_path, text, capsys, monkeypatch
):
    folder = model_copy("llama")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}")
    monkeypatch.setattr("draftwire.template._has_jinja", lambda: False)  # as it was made
    target = export_onnx(folder, tmp_path / "v1.target", role="target", against="numpy")
    monkeypatch.undo()
    monkeypatch.setattr("draftwire.export.training.base.model_of", None)
    assert main(command("draft", target, text, tmp_path / "d.draft")) == 2
    assert "the chat template is no jinja2 template" in capsys.readouterr().err
