"""A package is hashed once; a change, however well hidden, is found."""

import os

import pytest

from draftwire.errors import PackageError
from draftwire.packages import seals
from draftwire.packages.manifest import check_files
from draftwire.packages.seals import Seals, file_hash


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return a folder with one file, and its table; the cache is the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CACHE_DIRECTORY", raising=False)
    folder = tmp_path / "a.draft"
    folder.mkdir()
    (folder / "weights").write_bytes(b"right" * 1000)
    table = {"weights": {"sha256": file_hash(folder / "weights"), "bytes": 5000}}
    return folder, table


def hashed(monkeypatch):
    """Return a list that grows by every file that is hashed."""
    seen, real = [], seals.file_hash
    monkeypatch.setattr(seals, "file_hash", lambda f: (seen.append(f.name), real(f))[1])
    return seen


def test_a_settled_file_is_hashed_once(package, monkeypatch):
    folder, table = package
    seen = hashed(monkeypatch)
    check_files(folder, table)
    check_files(folder, table)
    assert seen == ["weights"] * 2  # it may still change without moving its times
    monkeypatch.setattr(seals, "_SETTLED_S", -1.0)
    for _ in range(3):
        check_files(folder, table)
    assert seen == ["weights"] * 3
    monkeypatch.setenv("DRAFTWIRE_VERIFY", "1")
    check_files(folder, table)
    assert seen == ["weights"] * 4


def test_a_change_is_found_whatever_it_hides(package, monkeypatch):
    folder, table = package
    monkeypatch.setattr(seals, "_SETTLED_S", -1.0)
    check_files(folder, table)
    file = folder / "weights"
    before = file.stat()
    file.write_bytes(b"wrong" * 1000)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(PackageError, match="does not match its hash"):
        check_files(folder, table)
    other = folder.parent / "other"
    other.write_bytes(b"wrong" * 1000)
    os.replace(other, file)
    with pytest.raises(PackageError, match="does not match its hash"):
        check_files(folder, table)
    file.write_bytes(b"right" * 1000)
    check_files(folder, table)
    table["weights"]["sha256"] = "0" * 64  # another hash is another question
    with pytest.raises(PackageError, match="does not match its hash"):
        check_files(folder, table)


def test_a_cache_that_is_damaged_or_cannot_be_written_changes_nothing(
    package, monkeypatch, tmp_path
):
    folder, table = package
    monkeypatch.setattr(seals, "_SETTLED_S", -1.0)
    check_files(folder, table)
    (record,) = (tmp_path / "cache" / "draftwire" / "verified").iterdir()
    for content in ("", "[]", '{"weights": 5}'):
        record.write_text(content)
        check_files(folder, table)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "weights"))  # no folder
    check_files(folder, table)
    assert Seals(folder).holds(folder / "weights", table["weights"]["sha256"])


def wrapped(number, content):
    """Return a field of a protobuf message that is bytes, its length badly packed."""
    size = len(content)
    return bytes([number << 3 | 2, size & 0x7F | 0x80, size >> 7 | 0x80, 0]) + content


KEY, PLACE = wrapped(1, b"location"), b"hidden.data"


def location(content):
    return wrapped(7, wrapped(5, b"\x10\x01" + wrapped(13, content)))


@pytest.mark.parametrize(
    "graph",
    [
        location(KEY + wrapped(2, PLACE)),
        location(wrapped(2, PLACE) + KEY),
        location(wrapped(2, b"weights") + KEY + wrapped(2, PLACE)),
        wrapped(7, b"") + location(KEY + wrapped(2, PLACE)),
        b"\x9b\x06" + location(KEY + wrapped(2, PLACE)) + b"\x9c\x06",
        wrapped(
            7, wrapped(1, wrapped(5, wrapped(5, wrapped(13, KEY + wrapped(2, PLACE)))))
        ),
    ],
    ids=["key first", "value first", "twice", "two graphs", "a group", "a constant"],
)
def test_a_graph_may_not_read_what_no_hash_covers(package, graph):
    folder, table = package
    (folder / "model.onnx").write_bytes(b"\x08\x08" + graph)
    size = (folder / "model.onnx").stat().st_size
    digest = file_hash(folder / "model.onnx")
    table["model.onnx"] = {"sha256": digest, "bytes": size}
    with pytest.raises(PackageError, match="reads 'hidden.data', which the package"):
        check_files(folder, table)


def listed(folder, *names):
    return {
        name: {"sha256": file_hash(folder / name), "bytes": (folder / name).stat().st_size}
        for name in names
    }


def test_what_a_verifier_supplies_is_not_to_be_found(package):
    """A target's graph names its weights, which are read and hashed by us, not by it."""
    folder, _ = package
    graph = location(KEY + wrapped(2, b"weights.safetensors"))
    (folder / "model.onnx").write_bytes(graph)
    table = listed(folder, "model.onnx")
    check_files(folder, table)
    (folder / "weights.safetensors").write_bytes(b"others")
    with pytest.raises(PackageError, match=r"reads 'weights.safetensors', which"):
        check_files(folder, table)
    check_files(folder, table, ["weights.safetensors"])
    check_files(folder, listed(folder, "model.onnx", "weights.safetensors"))
