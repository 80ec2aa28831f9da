"""The tokenizer wrapper, streaming text, and what a fingerprint tells apart."""

import json

import pytest

tokenizers = pytest.importorskip("tokenizers")

from draftwire.errors import PackageError  # noqa: E402
from draftwire.packages import load_tokenizer, tokenizer_fingerprint  # noqa: E402


@pytest.fixture
def copy(tokenizer_file, tmp_path):
    """Return a function that writes a changed copy."""

    def make(change, **form):
        raw = json.loads(tokenizer_file.read_text(encoding="utf-8"))
        change(raw)
        file = tmp_path / "tokenizer.json"
        file.write_text(json.dumps(raw, **form), encoding="utf-8")
        return file

    return make


def test_text_comes_back(tokenizer_file):
    tokenizer = load_tokenizer(tokenizer_file)
    ids = tokenizer.encode("the red cup, Zoë 😀", bos_id=0)
    assert ids[0] == 0
    assert tokenizer.decode(ids) == "the red cup, Zoë 😀"
    assert tokenizer.token_id("<|endoftext|>") == 0
    assert tokenizer.token_id("no such token") is None
    assert load_tokenizer(tokenizer_file.parent).encode("cup") == tokenizer.encode("cup")


def test_formatting_and_padding_do_not_change_the_fingerprint(tokenizer_file, copy):
    expected = tokenizer_fingerprint(tokenizer_file)
    assert len(expected) == 64
    padding = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_id": 0}
    padding.update(pad_to_multiple_of=None, pad_type_id=0, pad_token="<|endoftext|>")
    truncation = {"direction": "Right", "max_length": 4, "stride": 0}
    truncation.update(strategy="LongestFirst")
    changes = [
        (lambda raw: None, {"indent": 4}),
        (lambda raw: None, {"sort_keys": True, "ensure_ascii": True}),
        (lambda raw: raw.update(padding=padding, truncation=truncation), {}),
    ]
    for change, form in changes:
        assert tokenizer_fingerprint(copy(change, **form)) == expected


def test_a_pad_token_at_the_end_does_not_change_the_fingerprint(tokenizer_file, tmp_path):
    engine = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    engine.add_special_tokens(["[PAD]"])
    engine.save(str(tmp_path / "padded.json"))
    assert tokenizer_fingerprint(tmp_path / "padded.json") == tokenizer_fingerprint(
        tokenizer_file
    )


def test_another_vocabulary_or_special_token_changes_it(tokenizer_file, copy, tmp_path):
    expected = tokenizer_fingerprint(tokenizer_file)

    def swap(raw):
        # Two ids that no probe text contains: only the vocabulary tells.
        vocab = raw["model"]["vocab"]
        vocab["Ġtakes"], vocab["Ġtabl"] = vocab["Ġtabl"], vocab["Ġtakes"]

    def drop_pre_tokenizer(raw):
        raw["pre_tokenizer"]["add_prefix_space"] = True

    def not_special(raw):
        raw["added_tokens"][0]["special"] = False

    for change in (swap, drop_pre_tokenizer, not_special):
        assert tokenizer_fingerprint(copy(change)) != expected
    engine = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    engine.add_special_tokens(["<|tool|>"])
    engine.save(str(tmp_path / "more.json"))
    assert tokenizer_fingerprint(tmp_path / "more.json") != expected


def test_what_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(PackageError, match=r"there is no tokenizer\.json"):
        load_tokenizer(tmp_path)
    for content in (b"", b"{}", b"[]", b"\xff\xfe"):
        file = tmp_path / "tokenizer.json"
        file.write_bytes(content)
        with pytest.raises(PackageError):
            load_tokenizer(file)
        with pytest.raises(PackageError):
            tokenizer_fingerprint(file)
