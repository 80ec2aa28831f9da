"""Safetensors without the library: what is read, what is refused, what is merged."""

import json
import struct

import numpy as np
import pytest

from draftwire.errors import PackageError
from draftwire.tensors import TensorFile, merge_lora, read_tensors, write_tensors


def build(header, data=b"", *, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(2,), span=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(span)}


def test_what_is_written_comes_back(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "b": rng.standard_normal((3, 4)).astype(np.float32),
        "a": rng.standard_normal((2, 2, 2)).astype(np.float16),
        "one": np.array(7.0, np.float32),
        "none": np.zeros((0, 4), np.float32),
    }
    file = tmp_path / "x.safetensors"
    write_tensors(file, tensors, metadata={"scale": "2.0"})
    found = read_tensors(file)
    assert TensorFile(file).metadata == {"scale": "2.0"}
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == np.float32
        assert found[name].shape == value.shape
        np.testing.assert_array_equal(found[name], value.astype(np.float32))
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_bfloat16_is_the_upper_half_of_a_float32(tmp_path):
    values = np.array([1.0, -2.5, 3.0e38, 1e-30, 0.0], np.float32)
    upper = (values.view(np.uint32) >> 16).astype("<u2")
    file = tmp_path / "x.safetensors"
    file.write_bytes(build({"w": entry("BF16", (5,), (0, 10))}, upper.tobytes()))
    expected = (upper.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(read_tensors(file)["w"], expected)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        build(b"", length=1 << 62),
        build(b"{}", length=3),
        build(b"{" * 1000),
        build(b"[" * 100_000),
        build(b"\xff\xff"),
        build([]),
        build(b'{"w":1,"w":2}'),
        build({"w": 7}),
        build({"w": entry(dtype="F8_E4M3")}, bytes(8)),
        build({"w": entry(dtype=["F32"])}, bytes(8)),
        build({"w": entry(shape=(3,))}, bytes(8)),
        build({"w": entry(shape=(-2,))}, bytes(8)),
        build({"w": entry(shape=(2.0,))}, bytes(8)),
        build({"w": entry(shape=(1,) * 9)}, bytes(8)),
        build({"w": entry(shape=(1 << 62, 1 << 62))}, bytes(8)),
        build({"w": entry(shape=(0, 1 << 62, 1 << 62), span=(0, 0))}),
        build({"w": entry(span=(0, 9))}, bytes(8)),
        build({"w": entry(span=(8, 0))}, bytes(8)),
        build({"w": entry(span=(-8, 0))}, bytes(8)),
        build({"w": entry(span=(0,))}, bytes(8)),
        build({"w": entry()}, bytes(7)),
        build({"w": entry()}, bytes(9)),
        build({"w": entry(span=(8, 16))}, bytes(16)),
        build({"w": entry(), "v": entry()}, bytes(8)),
        build({"w": entry(), "v": entry(span=(4, 12))}, bytes(12)),
        build({"__metadata__": {"a": 1}}),
        build({"__metadata__": []}),
    ],
)
def test_a_broken_file_is_refused(tmp_path, content):
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(PackageError, match="x.safetensors"):
        TensorFile(file)


def test_a_pointer_of_git_lfs_names_the_remedy(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (tmp_path / "x.safetensors").write_text(pointer)
    with pytest.raises(PackageError, match="Git LFS") as caught:
        TensorFile(tmp_path / "x.safetensors")
    assert caught.value.hint == "git lfs pull"


def test_a_header_of_hundreds_of_thousands_of_tensors_is_not_read(tmp_path, monkeypatch):
    empty = ",".join(
        f'"{i}":{json.dumps(entry(shape=(0,), span=(0, 0)))}' for i in range(800_000)
    )
    (tmp_path / "x.safetensors").write_bytes(build(b"{" + empty.encode() + b"}"))
    monkeypatch.setattr(json, "loads", lambda *a, **k: pytest.fail("was read"))
    with pytest.raises(PackageError, match="claims a header of 5"):
        TensorFile(tmp_path / "x.safetensors")


def test_a_missing_file_and_whole_numbers_are_refused(tmp_path):
    with pytest.raises(PackageError, match="there is no"):
        TensorFile(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(build({"w": entry("I64", (1,))}, bytes(8)))
    with pytest.raises(PackageError, match="no float"):
        TensorFile(tmp_path / "x.safetensors").read("w")


def test_an_adapter_is_added(tmp_path):
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((6, 4)).astype(np.float32)
    first = rng.standard_normal((2, 4)).astype(np.float16)
    second = rng.standard_normal((6, 2)).astype(np.float16)
    weights = {"w": weight.copy(), "other": np.ones(3, np.float32)}
    merge_lora(weights, {"w.lora_a": first, "w.lora_b": second}, 0.5)
    change = 0.5 * second.astype(np.float64) @ first.astype(np.float64)
    np.testing.assert_allclose(weights["w"], weight + change, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(weights["other"], 1)


@pytest.mark.parametrize(
    ("names", "shapes", "scale"),
    [
        (("w.lora_a",), ((2, 4),), 1.0),
        (("w.lora_b",), ((6, 2),), 1.0),
        (("v.lora_a", "v.lora_b"), ((2, 4), (6, 2)), 1.0),
        (("w.lora_a", "w.lora_b"), ((3, 4), (6, 2)), 1.0),
        (("w.lora_a", "w.lora_b"), ((2, 5), (6, 2)), 1.0),
        (("w.lora_a", "w.lora_b"), ((2,), (2,)), 1.0),
        (("w",), ((6, 4),), 1.0),
        (("w.lora_a", "w.lora_b"), ((2, 4), (6, 2)), float("nan")),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(names, shapes, scale):
    weights = {"w": np.zeros((6, 4), np.float32)}
    adapter = {n: np.ones(s, np.float32) for n, s in zip(names, shapes)}
    with pytest.raises(PackageError):
        merge_lora(weights, adapter, scale)
    assert not weights["w"].any()
