"""Byte-level byte-pair encoding, written to be read.

A word's UTF-8 bytes are spelled in 256 printable characters. Then the neighbouring pair that stands first in the list
of merges becomes one piece, again and again, until no pair of the list is left. Sennrich et al., 2016,
arXiv:1508.07909; on bytes: Radford et al., 2019, "Language models are unsupervised multitask learners".
"""

from collections.abc import Mapping, Sequence
from functools import cache
from heapq import heapify, heappop, heappush
from itertools import pairwise

import regex

# How GPT-2 splits a text into words before the merges: contractions, then runs of letters, numbers or anything else,
# each with the one space before it, and the white space that is left (Radford et al., 2019).
WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

# Bounds of the cache of merged words: most words of a text come again, but not all of a long run fit in memory.
CACHED_WORDS = 2**16
CACHED_WORD_LENGTH = 64


@cache
def byte_alphabet() -> dict[int, str]:
    """Byte → the printable character that spells it in a vocabulary.

    Visible Latin-1 characters stand for themselves; the other bytes take the characters from U+0100 on, in order.
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


@cache
def alphabet_bytes() -> dict[str, int]:
    """The other way round: character of the vocabulary → byte."""
    return {char: byte for byte, char in byte_alphabet().items()}


def spell(text: str) -> str:
    """The text's UTF-8 bytes, each as its character of the byte alphabet.

    Raises: ValueError if the text holds half of a surrogate pair, which no byte sequence stands for.
    """
    try:
        # Latin-1 gives every byte the code point of the same number, which `translate` then looks up.
        return text.encode("utf-8").decode("latin-1").translate(byte_alphabet())
    except UnicodeEncodeError as error:
        raise ValueError(
            f"Text must be valid Unicode, and its character {error.start} is the lone surrogate "
            f"{text[error.start]!r}. Decode the input again, for example with errors='replace'."
        ) from error


def merge(symbols: Sequence[str], ranks: Mapping[tuple[str, str], int]) -> tuple[str, ...]:
    """Join neighbours, lowest rank first and then from the left, until no pair has a rank.

    A heap holds the candidate pairs and a linked list the symbols that are left, so a word of n symbols takes
    O(n log n). A pair on the heap may be out of date: one of its symbols has grown or gone since.
    """
    pieces = list(symbols)
    after = list(range(1, len(pieces) + 1))
    before = list(range(-1, len(pieces) - 1))
    heap = [(ranks[pair], at, pair) for at, pair in enumerate(pairwise(pieces)) if pair in ranks]
    heapify(heap)
    while heap:
        _, left, pair = heappop(heap)
        right = after[left]
        if right == len(pieces) or (pieces[left], pieces[right]) != pair:
            continue
        pieces[left], pieces[right] = pair[0] + pair[1], ""
        after[left] = following = after[right]
        if following < len(pieces):
            before[following] = left
            _offer(heap, ranks, left, (pieces[left], pieces[following]))
        if (preceding := before[left]) >= 0:
            _offer(heap, ranks, preceding, (pieces[preceding], pieces[left]))
    return tuple(piece for piece in pieces if piece)


def _offer(
    heap: list[tuple[int, int, tuple[str, str]]],
    ranks: Mapping[tuple[str, str], int],
    at: int,
    pair: tuple[str, str],
) -> None:
    if (rank := ranks.get(pair)) is not None:
        heappush(heap, (rank, at, pair))


class ByteLevelBPE:
    """A list of merges, applied to texts. Words that came before are remembered."""

    def __init__(self, merges: Sequence[tuple[str, str]]) -> None:
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._known: dict[str, tuple[str, ...]] = {}

    def tokens(self, text: str) -> list[str]:
        """The text as tokens of the vocabulary, spelled in the byte alphabet."""
        known = self._known
        tokens: list[str] = []
        for word in WORDS.findall(text):
            tokens += known.get(word) or self._learn(word)
        return tokens

    def _learn(self, word: str) -> tuple[str, ...]:
        merged = merge(spell(word), self.ranks)
        if len(word) <= CACHED_WORD_LENGTH:
            if len(self._known) >= CACHED_WORDS:
                self._known.clear()
            self._known[word] = merged
        return merged

    def __getstate__(self) -> dict[str, object]:
        """Pickle the merges, not the words seen."""
        return {"ranks": self.ranks, "_known": {}}
