"""The suffix cache: what it proposes, how it learns, and the file it keeps."""

import random

import pytest

from draftwire.errors import ConfigError, OutputError
from draftwire.runtime.pacing.suffix_cache import SuffixCache

VOCAB = 1000


def repeating(cache, text, times):
    cache.begin(text)
    for _ in range(times):
        cache.commit(text)


def test_it_continues_what_was_written_before():
    cache = SuffixCache(VOCAB)
    text = [random.Random(1).randrange(VOCAB) for _ in range(40)]
    repeating(cache, text, 2)
    sequence = text + text[:20]
    for expected in text[20:]:
        recall = cache.propose(sequence)
        assert recall is not None and recall.token == expected
        sequence.append(recall.token)
    assert cache.report()["proposed"] == 20


def test_unknown_and_short_contexts_are_left_to_the_model():
    cache = SuffixCache(VOCAB)
    assert cache.propose([1, 2, 3, 4]) is None
    cache.begin([1, 2])
    assert cache.propose([]) is None and cache.propose([1]) is None
    repeating(cache, list(range(20)), 2)
    assert cache.propose([900, 901, 902, 903]) is None


def test_it_never_proposes_what_is_not_written_yet():
    """The text's own end is no repetition of itself."""
    cache = SuffixCache(VOCAB, least=0.0)
    cache.begin(list(range(100, 130)))
    assert cache.propose(list(range(100, 130))) is None


def test_trust_follows_its_own_record():
    rng = random.Random(2)
    cache = SuffixCache(VOCAB)
    for _ in range(60):  # three tokens repeat, what follows never does
        cache.begin([1, 2, 3])
        cache.commit([rng.randrange(10, VOCAB)])
    assert cache.propose([7, 1, 2, 3]) is None
    assert cache.foreseen > 20 and cache.right < 0.2 * cache.foreseen


def test_nothing_repeats_across_two_texts():
    cache = SuffixCache(VOCAB, least=0.0)
    cache.begin([1, 2, 3, 4, 5, 6])
    cache.begin([9, 8, 7])
    assert cache.propose([1, 2, 3, 4, 5, 6]) is None


def test_memory_is_bounded():
    rng = random.Random(3)
    cache = SuffixCache(VOCAB, max_tokens=256)
    cache.begin([0])
    for _ in range(3000):
        cache.commit([rng.randrange(VOCAB)])
        assert len(cache) <= 256
    assert len(cache._index) <= 3 * 256
    text = [rng.randrange(VOCAB) for _ in range(50)]
    cache.commit(text + text)
    found = cache.propose(text[:30])
    assert found is not None and found.token == text[30]
    with pytest.raises(ConfigError):
        SuffixCache(VOCAB, max_tokens=3)


def test_against_a_plain_search():
    """Whatever it proposes did follow the same tokens somewhere before."""
    rng = random.Random(4)
    cache = SuffixCache(6, least=0.0)
    text = []
    cache.begin([])
    for _ in range(1500):
        recall = cache.propose(text)
        if recall is not None:
            n = recall.matched
            assert any(
                text[i : i + n] == text[len(text) - n :] and text[i + n] == recall.token
                for i in range(len(text) - n)
            )
        elif len(text) > 8:
            tail = text[-3:]
            assert not any(text[i : i + 3] == tail for i in range(len(text) - 3))
        text.append(rng.randrange(6))
        cache.commit(text[-1:])


def test_a_file_brings_it_back(tmp_path):
    path = tmp_path / "cache"
    cache = SuffixCache(VOCAB)
    text = [random.Random(5).randrange(VOCAB) for _ in range(60)]
    repeating(cache, text, 1)
    cache.save(path, "abc")
    assert path.stat().st_mode & 0o77 == 0, "text of others is nobody's business"
    fresh = SuffixCache(VOCAB)
    fresh.load(path, "abc")
    fresh.begin([5])
    found = fresh.propose(text[:30])
    assert found is not None and found.token == text[30]
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]
    fresh.load(tmp_path / "missing")


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "cache"
    cache = SuffixCache(VOCAB)
    cache.begin(list(range(100)))
    cache.save(path, "abc")
    good = path.read_bytes()
    for data in (
        b"",
        b"pickle",
        b"[" * 100_000,
        good[:-1],
        good.replace(b'"record"', b'"recore"'),
        good.replace(b'"record": [[', b'"record": [[-'),
        good.replace(b"suffixes/2", b"suffixes/9"),
        good.replace(b" 7,", b" 7.5,"),
        good.replace(b" 7,", f" {VOCAB},".encode()),
        good + b" " * 40_000_000,
    ):
        assert data != good
        path.write_bytes(data)
        with pytest.raises(ConfigError, match="damaged"):
            SuffixCache(VOCAB).load(path, "abc")
    path.write_bytes(good)
    for other, name in ((VOCAB, "xyz"), (VOCAB + 1, "abc")):
        with pytest.raises(ConfigError, match="another tokenizer"):
            SuffixCache(other).load(path, name)
    with pytest.raises(OutputError, match="cannot write"):
        cache.save(tmp_path / "no" / "such")
    with pytest.raises(ConfigError, match="cannot use"):  # said before there is text
        SuffixCache(VOCAB).load(tmp_path / "no" / "such")
