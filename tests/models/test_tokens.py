"""Ids as ``AutoTokenizer`` gives them, for the tokenizers of twelve families."""

import json

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from draftwire.errors import ConfigError, ModelError, PackageError
from draftwire.export.sources.tokens import check_tokens, copy_tokenizer
from draftwire.tokenizer import first_token, load_tokenizer

TEXT = [
    "The robot takes the red cup to the table, 12 times.",
    "def area(w, h):\n    return w * h\n",
    "Straße, naïve café, 你好 世界",
] * 3
SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>"]
BYTES = [f"<0x{i:02X}>" for i in range(256)]
QWEN = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"


def byte_level(*before, normalizer=None, added=(), prefix=False):
    """A byte-level BPE; ``before`` are steps in front of the byte alphabet."""
    engine = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=not before)
    engine.pre_tokenizer = pre_tokenizers.Sequence([*before, last])
    if normalizer:
        engine.normalizer = normalizer
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(TEXT, trainer)
    engine.add_tokens(list(added))
    return engine


def sentence_piece(normalizer, pre_tokenizer=None):
    """A BPE over "▁" with byte fallback, as converted from sentencepiece."""
    engine = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    engine.normalizer = normalizer
    engine.pre_tokenizer = pre_tokenizer or pre_tokenizers.Split("▁", "merged_with_next")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    engine.decoder = decoders.Sequence(steps)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL + BYTES, show_progress=False
    )
    engine.train_from_iterator(TEXT[:2], trainer)
    raw = json.loads(engine.to_str())
    if pre_tokenizer is None:
        raw["pre_tokenizer"] = None
    # The bytes are plain tokens of the vocabulary, not special ones.
    raw["added_tokens"] = [t for t in raw["added_tokens"] if t["content"] in SPECIAL]
    return Tokenizer.from_str(json.dumps(raw))


def unigram():
    engine = Tokenizer(models.Unigram())
    engine.normalizer = normalizers.Sequence([normalizers.NFKC()])
    engine.pre_tokenizer = pre_tokenizers.Metaspace()
    engine.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    engine.train_from_iterator(TEXT, trainer)
    return engine


def template(engine, single):
    pairs = [(t, engine.token_to_id(t)) for t in SPECIAL]
    engine.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=pairs
    )
    return engine


def gpt2():
    engine = byte_level()
    engine.post_processor = processors.ByteLevel(trim_offsets=False)
    return engine


def llama3():
    engine = byte_level(pre_tokenizers.Split(Regex(QWEN), "isolated"))
    bos = template(engine, "<s> $A").post_processor
    engine.post_processor = processors.Sequence([processors.ByteLevel(), bos])
    return engine


def prepended():
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def qwen2():
    split = pre_tokenizers.Split(Regex(QWEN), "isolated")
    tool = AddedToken("<tool>", special=False, normalized=False)
    return byte_level(split, normalizer=normalizers.NFC(), added=[tool])


SPACES = [AddedToken(" " * n, normalized=True) for n in (8, 4, 2)]
METASPACE = {"replacement": "▁", "prepend_scheme": "first", "split": False}
# Name: how it is made, what tokenizer_config.json says, what stands in front.
FAMILIES = {
    "gpt2": (gpt2, {}, None),
    "llama3": (llama3, {}, "<s>"),
    "qwen2": (qwen2, {}, None),
    "smollm2": (lambda: byte_level(pre_tokenizers.Digits(True)), {}, None),
    "llama2": (lambda: template(sentence_piece(prepended()), "<s> $A"), {}, "<s>"),
    "phi3": (
        lambda: template(sentence_piece(prepended()), "$A"),
        {"add_bos_token": False}, None),
    "gemma": (
        lambda: template(sentence_piece(normalizers.Replace(" ", "▁")), "<s> $A"),
        {}, "<s>"),
    "mistral": (
        lambda: template(
            sentence_piece(normalizers.NFC(), pre_tokenizers.Metaspace(**METASPACE)),
            "<s> $A"),
        {}, "<s>"),
    "unigram": (lambda: template(unigram(), "$A </s>"), {}, None),
    "gpt_neox": (
        lambda: byte_level(normalizer=normalizers.NFC(), added=SPACES), {}, None),
    "opt": (lambda: template(byte_level(prefix=True), "$A"), {}, None),
    "stablelm": (
        lambda: byte_level(pre_tokenizers.Digits(True), normalizer=normalizers.NFC()),
        {}, None),
}  # fmt: skip


def save(folder, name):
    make, settings, _ = FAMILIES[name]
    make().save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "additional_special_tokens": ["<|user|>"],
        **settings,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_are_those_of_transformers(name, tmp_path):
    folder, front = save(tmp_path, name), FAMILIES[name][2]
    tokenizer = load_tokenizer(folder)
    bos_id = first_token(folder)
    assert bos_id == (None if front is None else tokenizer.token_id(front))
    assert check_tokens(folder, bos_id) == bos_id
    # Nobody ends a turn by writing how turns end, unless that was asked for.
    text = "go</s><|user|>stop"
    asked = tokenizer.encode(text, parse_special=True)
    ends = {tokenizer.token_id("</s>"), tokenizer.token_id("<|user|>")}
    assert ends <= set(asked)
    if name == "unigram":  # whose vocabulary holds them as plain pieces
        with pytest.raises(ConfigError, match="cannot keep as text"):
            tokenizer.encode(text)
        return
    assert not ends & set(tokenizer.encode(text))
    assert "</s><|user|>" in tokenizer.decode(tokenizer.encode(text))


def test_a_text_that_is_read_differently_is_refused(tmp_path):
    save(tmp_path, "gpt2")
    # transformers adds this token to the vocabulary, tokenizer.json lacks it.
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["additional_special_tokens"] = ["brown"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="differently"):
        check_tokens(tmp_path, None)


def test_a_checkpoint_made_of_a_package_keeps_its_first_token(tmp_path):
    save(tmp_path, "gpt2")
    (tmp_path / "new").mkdir()
    for bos_id in (1, None, 3):
        copy_tokenizer(tmp_path / "tokenizer.json", tmp_path / "new/tokenizer.json", bos_id)
        assert first_token(tmp_path / "new") == bos_id


def test_what_stands_in_front_of_a_text_is_one_token(tmp_path):
    save(tmp_path, "gpt2")
    engine = template(gpt2(), "<s> <|user|> $A")
    engine.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(PackageError, match="puts 2 tokens in front"):
        first_token(tmp_path)


@pytest.mark.parametrize("text", ["\ud800", None, b"bytes", 5])
def test_what_is_no_text_is_refused_in_a_sentence(text, tmp_path):
    tokenizer = load_tokenizer(save(tmp_path, "gpt2"))
    with pytest.raises(ConfigError, match="text"):
        tokenizer.encode(text)
