"""Packages: what loads, what is refused, and how they are written."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
from places import FIXTURES

from draftwire.errors import ConfigError, OutputError, PackageError
from draftwire.io import environment, scratch_in
from draftwire.packages import NewFile, load_draft, load_target, write_package

FIELDS = {
    "name": "tiny",
    "family": {"name": "tiny", "backbone": None, "tokenizer": "ab" * 32},
    "vocab_size": 64,
    "context": 128,
    "bos_id": 0,
    "eos_ids": [0],
    "shape": {"layers": 1, "kv_heads": 2, "head_dim": 8, "hidden": 32},
    "made": {"by": "test"},
}
MODEL = {"engine": "onnxruntime", "precision": "int8", "graph": "gqa"}


def draft_files(**more):
    return {
        "tokenizer.json": NewFile(b"{}"),
        "model.int8.onnx": NewFile(b"int8 weights", MODEL),
        "model.fp32.onnx": NewFile(b"fp32 weights, longer", {**MODEL, "precision": "fp32"}),
        **more,
    }


@pytest.fixture
def draft(tmp_path):
    folder = tmp_path / "tiny.draft"
    write_package(folder, "draft", FIELDS, draft_files())
    return folder


@pytest.fixture
def targets(tmp_path):
    """A whole target v1 and a v2 that builds on it."""
    fields = {**FIELDS, "version": "v1", "base": None, "adapter": None}
    files = {n: NewFile(n.encode()) for n in ("tokenizer.json", "model.onnx")}
    base_id = write_package(tmp_path / "v1.target", "target", fields, files)
    write_evolved(tmp_path, "v2", "v1", base_id, b"a and b")
    return tmp_path


def write_evolved(folder, version, base, base_id, content):
    name = "adapter.safetensors"
    fields = {**FIELDS, "version": version, "adapter": name}
    fields["base"] = {"path": f"../{base}.target", "id": base_id}
    files = {name: NewFile(content)}
    write_package(folder / f"{version}.target", "target", fields, files)


def edit(folder, change, name="draft.json"):
    manifest = folder / name
    raw = json.loads(manifest.read_text())
    change(raw)
    manifest.write_text(json.dumps(raw))


def test_a_draft_loads_as_written(draft):
    package = load_draft(str(draft))
    assert package.name == "tiny"
    assert package.family.tokenizer == "ab" * 32
    assert (package.vocab_size, package.context, package.eos_ids) == (64, 128, (0,))
    assert package.shape.head_dim == 8
    assert package.precisions == ("int8", "fp32")
    assert package.model_path() == draft / "model.int8.onnx"
    assert package.model_path("fp32").read_bytes() == b"fp32 weights, longer"
    assert package.model_file().graph == "gqa"
    with pytest.raises(ConfigError, match="no int4"):
        package.model_path("int4")


def test_the_smallest_model_is_the_default_without_int8(tmp_path):
    files = {
        "tokenizer.json": NewFile(b"{}"),
        "model.fp32.onnx": NewFile(b"longer", {**MODEL, "precision": "fp32"}),
        "model.int4.onnx": NewFile(b"short", {**MODEL, "precision": "int4"}),
    }
    write_package(tmp_path / "a.draft", "draft", FIELDS, files)
    assert load_draft(tmp_path / "a.draft").model_file().precision == "int4"


def test_the_id_follows_content_and_not_place_or_name(tmp_path):
    one = write_package(tmp_path / "a.draft", "draft", FIELDS, draft_files())
    two = write_package(
        tmp_path / "b.draft", "draft", {**FIELDS, "name": "other"}, draft_files()
    )
    changed = draft_files(**{"model.int8.onnx": NewFile(b"int8 weightz", MODEL)})
    three = write_package(tmp_path / "c.draft", "draft", FIELDS, changed)
    assert one == two != three


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"int8 weightS", "does not match its hash"),
        (b"int8", "has 4 bytes, not 12"),
        (None, r"lacks its file model\.int8\.onnx"),
    ],
)
def test_a_tampered_or_missing_file_is_refused(draft, content, what):
    (draft / "model.int8.onnx").unlink()
    if content is not None:
        (draft / "model.int8.onnx").write_bytes(content)
    with pytest.raises(PackageError, match=what):
        load_draft(draft)


def test_a_tampered_manifest_is_refused(draft):
    edit(draft, lambda raw: raw.update(context=4096))
    with pytest.raises(PackageError, match="says its id is"):
        load_draft(draft)


@pytest.mark.parametrize("length", [0, 1, 100, 500])
def test_a_truncated_manifest_is_refused(draft, length):
    text = (draft / "draft.json").read_bytes()
    require_no_manifest(draft, text[:length], "not JSON")


NO_OBJECTS = dict.fromkeys((b"\xff\xfe{}", b"[" * 100_000, b"[]", b"7", b"null"), "")
NO_OBJECTS[b" " * (2 << 20)] = "too long"


@pytest.mark.parametrize("text", NO_OBJECTS, ids=lambda text: repr(text[:4]))
def test_a_manifest_that_is_no_object_is_refused(draft, text):
    require_no_manifest(draft, text, NO_OBJECTS[text])


def require_no_manifest(draft, text, what):
    (draft / "draft.json").write_bytes(text)
    with pytest.raises(PackageError, match=what or None):
        load_draft(draft)


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "a/b", "..", ".", "", ".hidden", "a\\b", "a\n", "draft.json"],
)
def test_file_names_cannot_leave_the_folder(draft, name):
    def change(raw):
        raw["files"][name] = raw["files"]["tokenizer.json"]

    edit(draft, change)
    with pytest.raises(PackageError, match="unfit name"):
        load_draft(draft)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "draftwire.draft/2"),
        ("name", 7),
        ("name", "a\nb"),
        ("vocab_size", "64"),
        ("vocab_size", True),
        ("vocab_size", -1),
        ("context", True),
        ("context", None),
        ("context", 1 << 40),
        ("bos_id", 64),
        ("eos_ids", 0),
        ("eos_ids", [64]),
        ("eos_ids", [[0]]),
        ("shape", {"layers": 1}),
        ("shape", []),
        ("family", None),
        ("family", {"name": "x", "backbone": "zz", "tokenizer": "ab" * 32}),
        ("family", {"name": "x", "backbone": None, "tokenizer": "AB" * 32}),
        ("files", {}),
        ("files", []),
        ("files", {"tokenizer.json": None}),
        ("files", {"tokenizer.json": {"sha256": "ab", "bytes": 2}}),
        ("id", None),
        ("id", ["x"]),
    ],
)
def test_each_wrong_field_is_one_sentence(draft, key, value):
    edit(draft, lambda raw: raw.update({key: value}))
    with pytest.raises(PackageError) as caught:
        load_draft(draft)
    assert "tiny.draft" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left"), OutputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_package_that_cannot_take_the_others_place_leaves_it(
    draft, monkeypatch, fault, raised
):
    def rename(source, target, plain=os.rename):
        if ".draftwire-" in str(source):  # the older one is out of the way
            raise fault
        plain(source, target)

    monkeypatch.setattr(os, "rename", rename)
    before = load_draft(draft).id
    with pytest.raises(raised):
        write_package(draft, "draft", {**FIELDS, "name": "b"}, draft_files(), replace=True)
    assert load_draft(draft).id == before
    assert [path.name for path in draft.parent.iterdir()] == [draft.name]


def test_what_a_killed_process_left_goes_and_what_one_writes_stays(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from draftwire.io import scratch_in\n"
        "with scratch_in(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').touch(); print(flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as child:
        child.stdout.readline()
        (left,) = tmp_path.iterdir()
        write_package(tmp_path / "a.draft", "draft", FIELDS, draft_files())
        assert (left / "half").exists()
        child.kill()
    mine = tmp_path / ".draftwire-mine"
    mine.mkdir()
    with scratch_in(tmp_path) as ours:
        assert sorted(tmp_path.iterdir()) == sorted((ours, mine, tmp_path / "a.draft"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [mine.name, "a.draft"]


def test_an_absent_or_foreign_folder_is_refused(tmp_path, draft):
    with pytest.raises(PackageError, match="no draft package at"):
        load_draft(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PackageError, match=r"has no draft\.json"):
        load_draft(tmp_path / "empty")
    with pytest.raises(PackageError, match=r"holds draft\.json, so it is no target"):
        load_target(draft)
    strange = tmp_path / os.fsdecode(b"\xff")
    shutil.copytree(draft, strange)
    with pytest.raises(PackageError, match="no UTF-8"):
        load_draft(strange)


def test_a_target_finds_its_base(targets):
    v1, v2 = load_target(targets / "v1.target"), load_target(targets / "v2.target")
    assert v1.base is None and v1.adapter is None and v1.version == "v1"
    assert v2.base is not None and v2.base.id == v1.id
    assert v2.adapter is not None and v2.adapter.path.read_bytes() == b"a and b"
    assert v2.tokenizer_path == v1.tokenizer_path
    assert v2.id != v1.id


def test_a_missing_base_is_named(targets):
    shutil.rmtree(targets / "v1.target")
    with pytest.raises(PackageError, match=r"v1\.target, which is not beside"):
        load_target(targets / "v2.target")


def test_another_base_is_refused(targets):
    shutil.rmtree(targets / "v1.target")
    fields = {**FIELDS, "version": "v1", "base": None, "adapter": None}
    files = {"tokenizer.json": NewFile(b"other")}
    write_package(targets / "v1.target", "target", fields, files)
    with pytest.raises(PackageError, match="another state of v1"):
        load_target(targets / "v2.target")


@pytest.mark.parametrize(
    "path",
    "../../v1.target /v1.target v1.target .. ../.hid ../a/../v1.target".split(),
)
def test_a_base_is_a_sibling(targets, path):
    edit(targets / "v2.target", lambda r: r["base"].update(path=path), "target.json")
    with pytest.raises(PackageError, match="sibling"):
        load_target(targets / "v2.target")


def test_a_base_cannot_have_a_base(targets):
    v2 = load_target(targets / "v2.target")
    with pytest.raises(PackageError, match="has a base itself"):
        write_evolved(targets, "v3", "v2", v2.id, b"more")


def test_a_package_is_written_whole_or_not_at_all(tmp_path):
    for error, match, files in (
        (PackageError, "no model file", {"tokenizer.json": NewFile(b"{}")}),
        (PackageError, "no tokenizer.json", {"model.int8.onnx": NewFile(b"x", MODEL)}),
        (PackageError, "no fit name", draft_files(**{"../x": NewFile(b"")})),
        (ConfigError, "cannot write", draft_files(x=NewFile(tmp_path / "missing"))),
    ):
        with pytest.raises(error, match=match):
            write_package(tmp_path / "a.draft", "draft", FIELDS, files)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_unasked(tmp_path, draft):
    before = load_draft(draft).id
    changed = draft_files(**{"model.int8.onnx": NewFile(b"new", MODEL)})
    with pytest.raises(ConfigError, match="already"):
        write_package(draft, "draft", FIELDS, changed)
    assert load_draft(draft).id == before
    after = write_package(draft, "draft", FIELDS, changed, replace=True)
    assert load_draft(draft).id == after != before
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.draft"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="already"):
        write_package(tmp_path / "mine", "draft", FIELDS, changed, replace=True)


@pytest.mark.parametrize("said", [None, "true"])
def test_an_engine_keeps_no_books_on_its_user(tmp_path, said):
    """No id and no queue of events in the home folder, and nothing on stderr."""
    code = """if True:
        import sys
        from draftwire.packages import load_draft
        from draftwire.runtime.engines.draft_model import DraftModel
        DraftModel.load(load_draft(sys.argv[1]), engine="onnxruntime")
        import os
        print(os.environ["ORT_DISABLE_TELEMETRY"])
    """
    where = {k: str(tmp_path) for k in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    given = environment(**where, **({"ORT_DISABLE_TELEMETRY": said} if said else {}))
    if said is None:
        given.pop("ORT_DISABLE_TELEMETRY", None)
    done = subprocess.run(
        [sys.executable, "-c", code, str(FIXTURES / "tiny.draft")],
        capture_output=True,
        text=True,
        env=given,
    )
    assert (done.returncode, done.stdout) == (0, f"{said or 1}\n"), done.stderr
    if said is None:
        assert done.stderr == ""
        assert not list(tmp_path.rglob("*onnxruntime*"))
