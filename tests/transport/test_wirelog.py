"""Wire logs: every message says itself, a file that is bounded, and never in the way."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import shutil
from pathlib import Path
from typing import get_args

import pytest
from places import full_disk

from draftwire.errors import ConfigError, OutputError
from draftwire.transport import wirelog
from draftwire.transport.messages import Block, Commit, Finish, Message, Opened, Resume
from draftwire.transport.wirelog import WireLog, plain, read_wire_log, rotated

BLOCK = Block(3, 17, (5, 6, 7))


def written(path: Path, **options: object) -> WireLog:
    return WireLog(path, "device", **options)


def filled(path: Path, events: int, **options: object) -> None:
    log = written(path, **options)
    connection = log.connection("ws://x")
    for _ in range(events):
        connection.message("up", BLOCK, 9, 0)
    log.close()


@pytest.mark.parametrize("kind", get_args(Message), ids=lambda kind: kind.__name__)
def test_every_message_says_its_fields_without_being_known(kind: type) -> None:
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    made = {
        "int": 7, "str": "word", "bytes": b"\x01\xff", "float": 0.5, "bool": True,
        "tuple[int, ...]": (3, 4), "tuple[str, ...]": ("a",), "int | None": 5,
        "Finish": Finish.STOP, "tuple[tuple[int, float], ...]": ((3, 0.5),),
        "tuple[tuple[int, ...], ...]": ((3, 4),),
    }  # fmt: skip
    said = plain(kind(**{name: made[str(of)] for name, of in fields.items()}))
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    rest = {f.name for f in dataclasses.fields(kind) if made[str(f.type)] == f.default}
    assert set(said) == set(fields) - rest


def test_what_is_at_rest_or_secret_or_long_is_not_told() -> None:
    assert plain(BLOCK) == {"epoch": 3, "base": 17, "tokens": [5, 6, 7]}
    assert plain(Opened(b"\1", b"key")) == {"id": "01", "secret": "(not shown)"}
    assert "6b6579" not in json.dumps(plain(Resume(b"\1", b"key", 3)))
    commit = Commit(0, 2, None, Finish.LENGTH, evidence=b"\xaa" * 5000)
    assert plain(commit)["finish"] == "length"
    assert plain(commit)["evidence"] == "aa" * 64 + "... (5000 bytes)"
    assert plain({"x": math.nan, 1: (b"", {2})}) == {"x": "nan", "1": ["", [2]]}


def test_a_log_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "wire.jsonl"
    for _ in range(2):
        filled(path, 2)
    events = list(read_wire_log(path))
    assert [(e.run, e.kind, e.direction, e.bytes) for e in events] == [
        (run, kind, way, size)
        for run in (1, 2)
        for kind, way, size in (("connect", None, None), *[("block", "up", 9)] * 2)
    ]
    assert events[1].fields == plain(BLOCK) and events[1].role == "device"
    assert [e.t_s for e in events[:3]] == sorted(e.t_s for e in events[:3])
    assert path.stat().st_mode & 0o777 == 0o600


def test_every_message_tells_its_stream(tmp_path: Path) -> None:
    log = written(tmp_path / "wire")
    connection = log.connection("ws://x")
    for stream in (None, 4, 16383):
        connection.message("up", BLOCK, 1, stream)
    log.close()
    events = list(read_wire_log(tmp_path / "wire"))
    assert [event.stream for event in events] == [None, None, 4, 16383]


def test_two_files_of_a_size_are_kept_and_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "wire"
    filled(path, 400, max_bytes=4096)
    for part in (path, rotated(path)):
        assert part.stat().st_size < 4096 + 500
    times = [event.t_s for event in read_wire_log(path)]
    assert times == sorted(times) and 20 < len(times) < 400
    assert {event.run for event in read_wire_log(path)} == {1}


def test_what_cannot_be_kept_up_with_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wirelog, "_WAITING", 8)
    filled(tmp_path / "wire", 20_000)
    events = list(read_wire_log(tmp_path / "wire"))
    lost = sum(e.fields["events"] for e in events if e.kind == "lost")
    kept = sum(e.kind in ("block", "connect") for e in events)
    assert kept + lost == 20_001


@pytest.mark.parametrize("fault", ["folder", "disk"])
def test_a_log_that_cannot_go_on_warns_and_says_so_when_it_is_closed(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    log = written(folder / "wire", max_bytes=1000)
    room = full_disk(600) if fault == "disk" else contextlib.nullcontext()
    if fault == "folder":
        shutil.rmtree(folder)
    connection = log.connection("ws://x")
    why = "File too large" if fault == "disk" else "No such file"
    with caplog.at_level(logging.WARNING), room:
        for _ in range(100):
            connection.message("up", BLOCK, 9, 0)
        with pytest.raises(OutputError, match=f"is not whole: {why}"):
            log.close()
        connection.message("up", BLOCK, 9, 0)
    assert len([r for r in caplog.records if "ends here" in r.getMessage()]) == 1


def test_who_cannot_write_is_told_so_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "no" / "x", tmp_path / "file" / "x", tmp_path):
        with pytest.raises(ConfigError, match="cannot write the wire log"):
            written(path)
    with pytest.raises(ConfigError, match="it is no file"):  # it would wait for a reader
        written(tmp_path / "pipe")
    log = written(tmp_path / "x")
    with pytest.raises(ConfigError, match="it is being written already"):
        written(tmp_path / "x")
    log.close()
    written(tmp_path / "x").close()


def test_a_torn_line_is_passed_over_and_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wire"
    filled(path, 3)
    path.write_bytes(path.read_bytes()[:-20])
    assert len(list(read_wire_log(path))) == 3
    filled(path, 1)  # a killed process, and the next one
    assert len(list(read_wire_log(path))) == 5
    for text in ("", "\n"):
        path.write_text(text)
        assert list(read_wire_log(path)) == []
    bad = {"t_s": 1, "connection": -1, "direction": None, "stream": None, "kind": "x"}
    for line in ("{}", "[1]", "7", "x", json.dumps({**bad, "bytes": None, "fields": {}})):
        path.write_text(line + "\n")
        with pytest.raises(ConfigError, match="line 1 is not of a wire log"):
            list(read_wire_log(path))
    path.unlink()
    filled(path, 1)
    late = {**bad, "t_s": 10**400, "connection": 1, "bytes": None, "fields": {}}
    path.write_bytes(path.read_bytes() + json.dumps(late).encode() + b"\n")
    with pytest.raises(ConfigError, match="is not of a wire log"):
        list(read_wire_log(path))
    with pytest.raises(ConfigError, match="cannot read"):
        list(read_wire_log(tmp_path / "none"))
