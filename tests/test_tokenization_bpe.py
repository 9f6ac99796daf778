"""The merges: the algorithm against its definition."""

import pickle
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from triptych.tokenization.bpe import CACHED_WORDS, ByteLevelBPE, alphabet_bytes, byte_alphabet, merge, spell


def by_definition(symbols, ranks):
    """Join the first of the pairs with the lowest rank until there is none: slow, but plainly right."""
    pieces = list(symbols)
    while True:
        ranked = [(ranks[pair], at) for at, pair in enumerate(pairwise(pieces)) if pair in ranks]
        if not ranked:
            return tuple(pieces)
        _, at = min(ranked)
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


@st.composite
def merges_and_word(draw):
    """A list of merges as training makes it, each from pieces that are there already, and a word."""
    pieces, merges = ["a", "b", "c"], []
    for _ in range(draw(st.integers(0, 12))):
        pair = (draw(st.sampled_from(pieces)), draw(st.sampled_from(pieces)))
        if pair not in merges:
            merges.append(pair)
            pieces.append(pair[0] + pair[1])
    return {pair: rank for rank, pair in enumerate(merges)}, draw(st.text("abc", max_size=40))


@given(merges_and_word())
def test_merging_with_a_heap_gives_what_the_definition_gives(case):
    ranks, word = case
    assert merge(word, ranks) == by_definition(word, ranks)


@given(st.text("ab", max_size=60))
def test_overlapping_pairs_are_joined_from_the_left(word):
    ranks = {("a", "a"): 0, ("aa", "aa"): 1, ("aa", "a"): 2, ("b", "aa"): 3}
    assert merge(word, ranks) == by_definition(word, ranks)


def test_the_alphabet_spells_each_byte_with_a_printable_character_of_its_own():
    assert sorted(byte_alphabet()) == list(range(256))
    assert len(set(byte_alphabet().values())) == 256
    assert all(char.isprintable() and not char.isspace() for char in byte_alphabet().values())
    assert {alphabet_bytes()[char] for char in "Ġ"} == {0x20}
    assert spell("a é\n") == "aĠÃ©Ċ"


def test_a_lone_surrogate_is_refused_with_its_place():
    with pytest.raises(ValueError, match=r"character 1 is the lone surrogate '\\ud800'"):
        spell("a\ud800")


def test_the_memory_for_words_is_bounded_and_is_not_pickled():
    bpe = ByteLevelBPE([("a", "b")])
    assert bpe.tokens("ab ab") == ["ab", "Ġ", "ab"]
    bpe.tokens(" ".join(map(str, range(CACHED_WORDS + 10))))
    assert len(bpe._known) <= CACHED_WORDS
    bpe.tokens("x" * 1000)
    assert "x" * 1000 not in bpe._known
    assert pickle.loads(pickle.dumps(bpe))._known == {}
    assert pickle.loads(pickle.dumps(bpe)).tokens("ab") == ["ab"]


def test_a_word_of_a_hundred_thousand_letters_is_merged_whole():
    # With a scan for each merge this would take hours.
    assert merge("ab" * 50_000, {("a", "b"): 0, ("ab", "ab"): 1}) == ("abab",) * 25_000
