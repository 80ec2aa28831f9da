"""``draftwire report --frame``: every golden vector, and frames that are wrong."""

import json
from pathlib import Path

import pytest

from draftwire.cli import main
from draftwire.transport.codec import Codec, explain
from draftwire.transport.messages import Block

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "wire_v2.json").read_text())
VECTORS = GOLDEN["frames"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["name"])
def test_the_pieces_of_a_vector_are_the_frame(vector):
    frame = bytes.fromhex(vector["hex"].replace("|", ""))
    found = explain(frame, 2048)
    assert found.error == "" and found.kind == vector["kind"].lower()
    assert b"".join(piece.data for piece in found.pieces) == frame
    at = 0
    for piece in found.pieces:
        assert piece.offset == at and piece.meaning
        at += len(piece.data)
    named = " ".join(piece.name for piece in found.pieces)
    for field in vector["fields"]:
        at_the_default = vector["fields"][field] in (
            0,
            False,
            None,
            [],
            {"hex": ""},
            "cost",
        )
        if field in ("queue_s", "compute_s", "more", "race", "fatal") or at_the_default:
            continue
        assert field in named, (field, named)
    for n in range(len(frame)):  # cut short it is explained as far as it goes
        part = explain(frame[:n], 2048)
        assert b"".join(piece.data for piece in part.pieces) == frame[:n]


def test_a_frame_in_words(capsys):
    assert (
        main(["protocol", "decode", "05 03 c801 03 | 0110c00000", "--vocab", "2048"]) == 0
    )
    text = capsys.readouterr().out
    for words in ("block (stream 0)", "epoch", "200", "1 2 3", "block of 10 bytes"):
        assert words in text
    assert main(["protocol", "decode", "7500010107000302abcd", "--vocab", "2048"]) == 0
    said = capsys.readouterr().out
    assert "block (more, race, stream 1)" in said and "abcd" in said


def test_a_brief_block_in_words(capsys):
    """Its place is from the end of the block before: of a stream's first, from 0."""
    codec = Codec(2048, brief=True)
    block = Block(epoch=0, base=9, tokens=(5, 6, 7))
    words = ["report", "--frame", codec.encode(block).hex(), "--vocab", "2048"]
    assert main([*words, "--brief"]) == 0
    said = capsys.readouterr().out
    assert "epoch 0, base 9, 3 ids" in said and "5 6 7" in said
    main(words)
    assert "epoch 0, base 9, 3 ids" not in capsys.readouterr().out


def test_ids_need_the_vocabulary(capsys):
    assert main(["protocol", "decode", "0503c801030110c00000"]) == 4
    said = capsys.readouterr()
    assert "--vocab N" in said.err and "200" in said.out


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (["zz"], 2, "hex digits"),
        (["0"], 2, "hex digits"),
        ([""], 4, "cut short"),
        (["0f"], 4, "unknown message kind 15"),
        (["0503c80103", "--vocab", "2048"], 4, "cut short"),
        (["05", "--vocab", "1"], 2, "--vocab"),
    ],
)
def test_what_is_wrong_is_said(words, code, complaint, capsys):
    assert main(["protocol", "decode", *words]) == code
    assert complaint in capsys.readouterr().err


def test_json(capsys):
    assert main(["protocol", "decode", "0b", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "bye" and document["error"] is None
    assert document["pieces"][0] == {
        "offset": 0,
        "hex": "0b",
        "name": "kind",
        "meaning": "bye (stream 0)",
    }
