"""Streamed text is the whole text, cut anywhere."""

import pytest

tokenizers = pytest.importorskip("tokenizers")
hypothesis = pytest.importorskip("hypothesis")

from hypothesis import example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from draftwire.errors import ConfigError  # noqa: E402
from draftwire.runtime.text import (  # noqa: E402
    StopFilter,
    TextStream,
    _ByteDecoder,
    detokenizer,
)

CORPUS = [
    "The robot picked up the red cube and put it on the table.",
    "the the the robot robot cube, naïve café, Привет мир",
    "你好，世界 😀 👩‍👩‍👧 emoji 😀😀",
]


def byte_level():
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["<tool→>"])  # an added token outside the byte alphabet
    return tokenizer


def llama_like():
    """Sentencepiece's BPE with byte fallback, as Llama 2 has it."""
    words = ["▁", "▁t", "▁th", "▁the", "he", "▁r", "ro", "▁a", "é", "。"]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for char in "abcdefghijklmnopqrstuvwxyz ABC.,!?":
        vocab.setdefault(char, len(vocab))
    for word in words:
        vocab.setdefault(word, len(vocab))
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("h", "e"), ("▁", "r")]
    merges += [("r", "o"), ("▁", "a")]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab=vocab,
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def metaspace():
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=200, show_progress=False, special_tokens=["<unk>", "</s>"]
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


ALL = {"byte-level": byte_level(), "llama": llama_like(), "metaspace": metaspace()}
TEXT = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="the robot 😀👩‍👧é你。 \n�", max_size=40),
)


def cut(items, places):
    """Cut a sequence at the given places."""
    edges = [0, *sorted(p % (len(items) + 1) for p in places), len(items)]
    return [items[a:b] for a, b in zip(edges, edges[1:])]


def stream(decoder, pieces):
    chunks = []
    for piece in pieces:
        chunk = decoder.push(piece)
        chunk.encode("utf-8")  # valid at every step
        chunks.append(chunk)
    chunks.append(decoder.flush())
    return chunks


@pytest.mark.parametrize("name", sorted(ALL))
@settings(deadline=None, max_examples=150)
@given(text=TEXT, places=st.lists(st.integers(0, 99), max_size=12))
@example(text="\ufffd\ufffd\u200d", places=[])
@example(text="\ufffd" * 6 + "\U0001f916", places=[3])
def test_chunks_join_to_the_whole_text(name, text, places):
    tokenizer = ALL[name]
    ids = tokenizer.encode(text).ids
    pieces = cut(ids, places)
    whole = tokenizer.decode(ids)
    assert "".join(stream(detokenizer(tokenizer), pieces)) == whole
    assert "".join(stream(detokenizer(tokenizer), [[i] for i in ids])) == whole


@settings(deadline=None, max_examples=300)
@given(ids=st.lists(st.integers(0, 420), max_size=30), places=st.lists(st.integers(0, 99)))
def test_any_byte_level_ids_join_to_the_whole_text(ids, places):
    tokenizer = ALL["byte-level"]
    known = [i for i in ids if tokenizer.id_to_token(i) is not None]
    whole = tokenizer.decode(known)
    assert "".join(stream(detokenizer(tokenizer), cut(ids, places))) == whole


@pytest.mark.parametrize("name", sorted(ALL))
@settings(deadline=None, max_examples=100)
@given(ids=st.lists(st.integers(0, 500), max_size=30))
def test_nonsense_ids_still_give_valid_text(name, ids):
    stream(detokenizer(ALL[name]), [[i] for i in ids])


def test_a_character_comes_out_whole_and_with_its_last_token():
    tokenizer = ALL["llama"]
    ids = tokenizer.encode("a😀b").ids
    chunks = stream(detokenizer(tokenizer), [[i] for i in ids])
    assert [c for c in chunks if c] == ["a", "😀", "b"]


def byte_ids(name, text):
    """Return one token for each byte."""
    token_id = ALL[name].token_to_id
    if name == "llama":
        return [token_id(f"<0x{byte:02X}>") for byte in text.encode()]
    alphabet = {byte: char for char, byte in _ByteDecoder._ALPHABET.items()}
    return [token_id(alphabet[byte]) for byte in text.encode()]


@pytest.mark.parametrize("name", ["byte-level", "llama"])
def test_a_character_that_the_prompt_began_comes_out_whole(name):
    """Wherever the prompt ends: the answer's text begins with the character it is in."""
    text = "naïve 你好 😀 �!"
    ids = byte_ids(name, text)
    for cut in range(1, len(ids)):
        whole = text.encode()[:cut].decode(errors="ignore")
        decoder = detokenizer(ALL[name], ids[:cut])
        pieces = [decoder.push([i]) for i in ids[cut:]]
        assert "".join(pieces) + decoder.flush() == text[len(whole) :], cut


def test_half_a_character_at_the_end_is_replaced():
    tokenizer = ALL["byte-level"]
    ids = tokenizer.encode("\U0001f9ff").ids  # not in the corpus: four byte tokens
    decoder = detokenizer(tokenizer)
    assert decoder.push(ids[:-1]) == ""
    assert decoder.flush() == "�"


@pytest.mark.parametrize("name", ["llama", "metaspace"])
def test_the_first_word_after_a_prompt_keeps_its_space(name):
    tokenizer = ALL[name]
    prompt = tokenizer.encode("the robot").ids
    ids = tokenizer.encode("the").ids
    assert detokenizer(tokenizer, prompt).push(ids) == " the"
    assert detokenizer(tokenizer).push(ids) == "the"


def test_special_tokens_have_no_text_and_hide_no_space():
    tokenizer = ALL["llama"]
    ids = tokenizer.encode("the robot").ids
    bos = tokenizer.token_to_id("<s>")
    decoder = detokenizer(tokenizer)
    text = decoder.push([bos, *ids, bos])
    assert text + decoder.push(tokenizer.encode("the").ids) == "the robot the"


def test_cost_of_a_token_does_not_grow():
    class Counting:
        """The longest list that was ever decoded."""

        def __init__(self, engine):
            self.engine, self.longest = engine, 0
            self.decoder, self.id_to_token = engine.decoder, engine.id_to_token
            self.get_added_tokens_decoder = engine.get_added_tokens_decoder

        def decode(self, ids):
            self.longest = max(self.longest, len(ids))
            return self.engine.decode(ids)

    engine = ALL["llama"]
    for text in ("the robot " * 300, "😀" * 300):
        counting = Counting(engine)
        ids = engine.encode(text).ids
        stream(detokenizer(counting), [[i] for i in ids])
        assert counting.longest <= 16
    counting = Counting(engine)
    stream(detokenizer(counting), [[3 + 0x80]] * 300)  # continuation bytes only
    assert counting.longest <= 32


def naive_stop(text, stops):
    """Try every end in turn; the longest stop string that ends there wins."""
    for end in range(len(text) + 1):
        met = [s for s in stops if text[:end].endswith(s)]
        if met:
            longest = max(met, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(deadline=None, max_examples=500)
@given(
    text=st.text(alphabet="abc", max_size=30),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
    places=st.lists(st.integers(0, 99), max_size=10),
)
def test_stop_strings_as_a_naive_search_finds_them(text, stops, places):
    stop_filter = StopFilter(stops)
    out = "".join(stop_filter.push(piece) for piece in cut(text, places))
    expected, met = naive_stop(text, stops)
    assert expected.startswith(out)
    assert (out + stop_filter.flush(), stop_filter.stopped) == (expected, met)
    if len(stops) == 1:
        assert expected == text.split(stops[0])[0]


def test_what_may_begin_a_stop_string_is_held_back():
    stop_filter = StopFilter(["\n\nUser:"])
    assert stop_filter.push("Yes.\n") == "Yes."
    assert stop_filter.push("\nUs") == ""
    assert stop_filter.push("a") == "\n\nUsa"
    assert stop_filter.push("\n\nUser: no") == ""
    assert stop_filter.push("more") == ""
    assert stop_filter.flush() == ""


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ConfigError, match="empty"):
        StopFilter(["a", ""])


@settings(deadline=None, max_examples=100)
@given(text=TEXT, stop=st.text(min_size=1, max_size=3), places=st.lists(st.integers(0, 99)))
def test_a_text_stream_stops_as_the_whole_text_would(text, stop, places):
    tokenizer = ALL["byte-level"]
    ids = tokenizer.encode(text).ids
    text_stream = TextStream(tokenizer, stop=[stop])
    out = "".join(text_stream.push(piece) for piece in cut(ids, places))
    expected, met = naive_stop(tokenizer.decode(ids), [stop])
    assert (out + text_stream.flush(), text_stream.stopped) == (expected, met)
