"""``draftwire.v2`` against vectors written by hand from PROTOCOL.md, and its limits."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftwire.cli import main
from draftwire.errors import ProtocolError
from draftwire.transport import codec as codec_module
from draftwire.transport import messages
from draftwire.transport.bits import pack_time, unpack_time
from draftwire.transport.codec import Codec, check_of, explain
from draftwire.transport.messages import Block, Commit, Finish, Open

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "wire_v2.json").read_text())
VECTORS = GOLDEN["frames"]
CODEC = Codec(GOLDEN["vocab_size"])
KINDS = {cls.__name__.lower(): cls for cls in messages.Message.__args__}


def unhex(text):
    return bytes.fromhex(text.replace("|", ""))


def message_of(vector):
    fields = {}
    for name, value in vector["fields"].items():
        if isinstance(value, list):
            value = tuple([tuple(v) if isinstance(v, list) else v for v in value])
        elif isinstance(value, dict):
            value = unhex(value["hex"])
        elif name == "finish":
            value = Finish(value)
        fields[name] = value
    return KINDS[vector["kind"]](**fields)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["name"])
def test_vector_both_ways(vector):
    frame, stream = unhex(vector["hex"]), vector["stream"]
    assert CODEC.encode(message_of(vector), stream or 0) == frame
    found = CODEC.decode(frame)
    assert (found.stream, found.size) == (stream, len(frame))
    decoded = found.message
    if isinstance(decoded, Commit):  # durations are rounded to twelve bits
        assert decoded.queue_s == pytest.approx(vector["fields"].get("queue_s", 0))
        assert decoded.compute_s == pytest.approx(vector["fields"].get("compute_s", 0))
        assert CODEC.encode(decoded, stream) == frame
    else:
        assert decoded == message_of(vector)


def test_brief_vectors_both_ways_in_their_order():
    device, verifier = (Codec(GOLDEN["vocab_size"], brief=True) for _ in range(2))
    for vector in GOLDEN["brief"]:
        frame, message = unhex(vector["hex"]), message_of(vector)
        assert device.encode(message, vector["stream"]) == frame, vector["name"]
        found, check = verifier.decode(frame).message, vector.get("check")
        if check is not None:
            assert check_of(message).hex() == check
            message = dataclasses.replace(message, prefix=unhex(check))
        assert found == message, vector["name"]


@pytest.mark.parametrize("vector", GOLDEN["brief_refused"], ids=lambda v: v["why"])
def test_brief_frames_that_the_document_does_not_allow_are_refused(vector):
    with pytest.raises(ProtocolError):
        Codec(GOLDEN["vocab_size"], brief=True).decode(unhex(vector["hex"]))


def opens():
    reals, few = st.sampled_from((0.0, 0.5, 1.0)), st.integers(0, 2)
    return st.builds(
        Open,
        prompt=st.lists(st.integers(0, 2047), max_size=40).map(tuple),
        scheme=st.sampled_from(("greedy", "coupled")),
        temperature=reals,
        top_k=few,
        top_p=reals,
        seed=st.sampled_from((0, 7, 2**64 - 1)),
        max_new_tokens=few,
        stop_ids=st.lists(few, max_size=2).map(tuple),
        bonus=st.booleans(),
        min_p=reals,
        logit_bias=st.sampled_from(((), ((5, 0.5),))),
        grammar=st.sampled_from((b"", bytes(32))),
        prefix=st.sampled_from((b"", bytes(16))),
        prefix_length=few,
        text_before=few,
        brief=st.booleans(),
    )


def blocks():
    return st.builds(
        Block,
        st.integers(0, 255) | st.integers(0, 2),
        st.integers(0, 300) | st.integers(0, 12),
        st.lists(st.integers(0, 2047), max_size=20).map(tuple),
        evidence=st.sampled_from((b"", b"abc")),
        more=st.booleans(),
        race=st.booleans(),
        instead=st.sampled_from(((), (1, 9), (300, 2047))),
    )


RESUME = messages.Resume(bytes(8), bytes(16), 5)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 4), opens() | blocks() | st.just(RESUME))))
def test_brief_frames_mean_what_whole_ones_say_and_are_no_longer(said):
    device, verifier = Codec(2048, brief=True), Codec(2048, brief=True)
    for stream, message in said:
        frame = device.encode(message, stream)
        plain = CODEC.encode(message, stream)
        # Fifteen ids and more are counted in a byte of their own.
        assert len(frame) <= len(plain) + (len(getattr(message, "tokens", ())) >= 15)
        found = verifier.decode(frame).message
        if isinstance(message, Open):
            assert not (found.brief and not message.brief)
            check = check_of(message) if found.brief else message.prefix
            message = dataclasses.replace(message, prefix=check, brief=found.brief)
        assert found == message


@pytest.mark.parametrize("turn", [0, 1, 2])
def test_brief_blocks_may_begin_anywhere(turn):
    for base in range(60):
        device, verifier = Codec(2048, brief=True), Codec(2048, brief=True)
        for block in (Block(255, 20, (1, 2, 3)), Block((255 + turn) & 0xFF, base, (4,))):
            assert verifier.decode(device.encode(block)).message == block


def test_every_message_kind_has_a_vector():
    assert {v["kind"] for v in VECTORS} == set(KINDS)


def test_every_field_has_a_vector_that_says_something_else_than_its_default():
    vectors = [*VECTORS, *GOLDEN["brief"]]
    said = {(v["kind"], name) for v in vectors for name in v["fields"]}
    for kind, cls in KINDS.items():
        for field in dataclasses.fields(cls):
            assert (kind, field.name) in said


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["name"])
def test_every_strict_prefix_is_refused_or_means_something_else(vector):
    frame = unhex(vector["hex"])
    for n in range(len(frame)):
        try:
            assert CODEC.decode(frame[:n])[:2] != CODEC.decode(frame)[:2]
        except ProtocolError:
            continue


@pytest.mark.parametrize("vector", GOLDEN["refused"], ids=lambda v: v["why"])
def test_what_the_document_does_not_allow_is_refused(vector):
    with pytest.raises(ProtocolError):
        CODEC.decode(unhex(vector["hex"]))


@pytest.mark.parametrize(
    ("frame", "complaint"),
    [
        ("", "cut short"),
        ("00", "unknown message kind 0"),
        ("0e", "unknown message kind 14"),
        ("11", "unknown flags 0x10 on HELLO"),
        ("41", "a stream number on HELLO"),
        ("05 00 00 02 ff07", "3 bytes announced, 2 left"),
        ("05 00 00 01 ff0f", "spare bits"),
        ("05 00 00 01 ff07 00", "cut short"),
        ("05 00 00 8002", "BLOCK tokens count is 256, the limit is 255"),
        ("05 00 8000 00", "longer than it needs"),
        ("c5 02 00 00 00", "stream number 2 longer than it needs"),
        ("07 03 02 e803 64c041 06 02 8000", "longer than it needs"),
        ("07 03 02 e803 64c041 06 05 ffffffff1f", "forwards is"),
        ("07 03 02 e803 64c041 03 01 04", "COMMIT finish is 4, the limit is 3"),
        ("05 00 ffffffffffffffffffff7f 00", "more than ten bytes"),
        ("05 00 00 00 03 ffffffff0f", "field length"),
        ("0b 02 04 7374", "4 bytes announced, 2 left"),
        ("0a 03 01 01 04 01 ff", "not UTF-8"),
        ("0b 02 01 01 02 01 01", "reason twice"),
        ("0b 7f 00", "must be understood"),
        ("0a 04 01 61", "lacks code"),
        ("08 03 07 01020304050607", "7 bytes, not 8"),
    ],
)
def test_bad_frame_is_refused(frame, complaint):
    with pytest.raises(ProtocolError, match=complaint):
        CODEC.decode(unhex(frame))


def test_what_a_newer_peer_says_beside_the_known_is_skipped():
    newer = CODEC.decode(unhex("0b fe01 03 aabbcc 02 01 01")).message
    assert newer == messages.Bye("cancelled")
    assert CODEC.decode(unhex("0b 02 02 e807")).message == messages.Bye("other")


def test_token_ids_before_the_welcome_are_refused():
    with pytest.raises(ProtocolError, match="before the welcome"):
        Codec().decode(unhex("05 00 00 01 ff07"))


def test_ids_outside_an_odd_vocabulary_are_refused():
    with pytest.raises(ProtocolError, match="2047 is outside the vocabulary of 2000"):
        Codec(2000).decode(unhex("05 00 00 01 ff07"))


def test_an_oversized_frame_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr(codec_module, "MAX_FRAME", 10)
    with pytest.raises(ProtocolError, match="limit 10"):
        CODEC.decode(bytes(11))


def test_budgets_of_the_wire():
    codec = Codec(32000)
    block = codec.encode(Block(200, 16383, (31999,) * 5))
    commit = codec.encode(Commit(200, 5, 31999, queue_s=3.0, compute_s=0.2))
    assert len(block) <= 16 and len(commit) <= 8
    told = codec.encode(Commit(200, 5, 31999, forwards=16383))
    assert len(told) <= 12
    assert len(codec.encode(Block(200, 16383, (31999,) * 5), 2)) == len(block)
    assert len(codec.encode(Block(200, 16383, (31999,) * 5), 127)) == 16


def test_a_field_too_wide_is_our_bug_not_the_peers():
    with pytest.raises(ValueError, match="does not fit 11 bits"):
        CODEC.encode(Block(0, 0, (2048,)))
    with pytest.raises(ValueError, match="limit 255"):
        CODEC.encode(Block(0, 0, (1,) * 256))


@settings(deadline=None)
@given(st.floats(0, 200_000))
def test_times_keep_two_and_a_half_digits(seconds):
    code = pack_time(seconds)
    assert 0 <= code < 4096
    # Half a step of the code, and half a microsecond before it.
    assert abs(unpack_time(code) - seconds) <= 0.004 * seconds + 6e-7
    assert pack_time(unpack_time(code)) == code


# ---- a frame in words


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["name"])
def test_the_pieces_of_a_vector_are_the_frame(vector):
    frame = unhex(vector["hex"])
    found = explain(frame, 2048)
    assert found.error == "" and found.kind == vector["kind"].lower()
    assert b"".join(piece.data for piece in found.pieces) == frame
    at = 0
    for piece in found.pieces:
        assert piece.offset == at and piece.meaning
        at += len(piece.data)
    named = " ".join(piece.name for piece in found.pieces)
    for field, value in vector["fields"].items():
        at_the_default = value in (0, False, None, [], {"hex": ""}, "cost")
        if field not in ("queue_s", "compute_s", "more", "race", "fatal"):
            assert at_the_default or field in named, (field, named)
    for n in range(len(frame)):  # cut short it is explained as far as it goes
        part = explain(frame[:n], 2048)
        assert b"".join(piece.data for piece in part.pieces) == frame[:n]


def test_a_frame_in_words(capsys):
    words = ["protocol", "decode", "05 03 c801 03 | 0110c00000", "--vocab", "2048"]
    assert main(words) == 0
    text = capsys.readouterr().out
    for words in ("block (stream 0)", "epoch", "200", "1 2 3", "block of 10 bytes"):
        assert words in text
    assert main(["protocol", "decode", "7500010107000302abcd", "--vocab", "2048"]) == 0
    said = capsys.readouterr().out
    assert "block (more, race, stream 1)" in said and "abcd" in said


def test_drafts_beside_a_branch_in_words(capsys):
    beside = Block(3, 200, (1, 2, 3), instead=(2, 1000))
    words = ["protocol", "decode", CODEC.encode(beside).hex(), "--vocab", "2048"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "instead" in said and "behind id 1000, 2 before base" in said


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
