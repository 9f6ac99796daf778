"""What a tokenizer returns: columns by name, and the way from tokens back to words and characters."""

import logging
from collections import UserDict
from collections.abc import ItemsView, KeysView, Sequence, ValuesView
from typing import Any, NamedTuple

from tokenizers import Encoding

from triptych.tokenization import tensors
from triptych.tokenization.options import TensorType, choose

logger = logging.getLogger(__name__)


class CharSpan(NamedTuple):
    """Characters `start` up to, not including, `end` of the text."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens `start` up to, not including, `end` of the row."""

    start: int
    end: int


class BatchEncoding(UserDict[str, Any]):
    """Columns (`input_ids`, `attention_mask`, …) by key or attribute: a list per text, or tensors (B, T).

    From a fast tokenizer it also holds one `tokenizers.Encoding` per row, which the methods below read; with
    them `encoding[0]` is that object. The row may be left out of their arguments where there is only one:
    `char_to_token(5)` means row 0, character 5.
    """

    def __init__(
        self,
        data: dict[str, Any] | None = None,
        encoding: Encoding | Sequence[Encoding] | None = None,
        tensor_type: str | TensorType | None = None,
        prepend_batch_axis: bool = False,
        n_sequences: int | None = None,
    ) -> None:
        # Not through UserDict.__init__, which copies key by key.
        self.data: dict[str, Any] = {} if data is None else dict(data)
        self._encodings: list[Encoding] | None = (
            [encoding] if isinstance(encoding, Encoding) else None if encoding is None else list(encoding)
        )
        self._n_sequences = n_sequences
        if n_sequences is None and self._encodings:
            self._n_sequences = self._encodings[0].n_sequences
        self.convert_to_tensors(tensor_type, prepend_batch_axis)

    @property
    def n_sequences(self) -> int | None:
        """1 for single texts, 2 for pairs; None if it is not known."""
        return self._n_sequences

    @property
    def is_fast(self) -> bool:
        """Whether a fast tokenizer made this, so that words and characters can be looked up."""
        return self._encodings is not None

    @property
    def encodings(self) -> list[Encoding] | None:
        """One `tokenizers.Encoding` per row; None from a slow tokenizer."""
        return self._encodings

    def __getitem__(self, item: int | str | slice) -> Any:
        """A column by its name, a row's `Encoding` by its number, or a slice of every column."""
        if isinstance(item, str):
            return self.data[item]
        if self._encodings is not None:
            return self._encodings[item]
        if isinstance(item, slice):
            return {name: column[item] for name, column in self.data.items()}
        raise KeyError(
            f"Rows by number are the Encodings of a fast tokenizer, which a slow one has not: {item!r}. "
            "Use a column name or a slice."
        )

    def __getattr__(self, item: str) -> Any:
        """A column as an attribute."""
        if item != "data" and item in self.data:
            return self.data[item]
        raise AttributeError(f"{type(self).__name__} has no attribute or column {item!r}.")

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: columns and encodings."""
        return {"data": self.data, "encodings": self._encodings, "n_sequences": self._n_sequences}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take back what was pickled."""
        self.data = state["data"]
        self._encodings = state["encodings"]
        self._n_sequences = state.get("n_sequences")

    def keys(self) -> KeysView[str]:
        """The names of the columns."""
        return self.data.keys()

    def values(self) -> ValuesView[Any]:
        """The columns."""
        return self.data.values()

    def items(self) -> ItemsView[str, Any]:
        """The columns with their names."""
        return self.data.items()

    # To tensors.

    def convert_to_tensors(
        self, tensor_type: str | TensorType | None = None, prepend_batch_axis: bool = False
    ) -> "BatchEncoding":
        """Turn every column into a tensor, in place; columns that are tensors already stay.

        Raises: ValueError if rows differ in length; ImportError if the framework is not installed.
        """
        if tensor_type is None:
            return self
        make = tensors.maker(choose(TensorType, tensor_type, "return_tensors"))
        for name, column in self.data.items():
            if tensors.is_tensor(column):
                continue
            try:
                self.data[name] = make([column] if prepend_batch_axis else column)
            except (ValueError, TypeError) as error:
                raise ValueError(_why_not_a_tensor(name, column)) from error
        return self

    def to(self, device: Any) -> "BatchEncoding":
        """Move every column to a device of PyTorch, in place.

        Raises: TypeError if a column is no tensor: call the tokenizer with return_tensors="pt".
        """
        if not isinstance(device, str | int) and type(device).__module__.partition(".")[0] != "torch":
            logger.warning("A BatchEncoding moves to a device, not to %r. Nothing was changed.", device)
            return self
        for name, column in self.data.items():
            if not hasattr(column, "to"):
                raise TypeError(
                    f"Only tensors of PyTorch move to a device, and {name} is a {type(column).__name__}. "
                    'Call the tokenizer with return_tensors="pt".'
                )
            self.data[name] = column.to(device=device)
        return self

    # From tokens to words and characters, and back.

    def _encoding(self, row: int, method: str) -> Encoding:
        if self._encodings is None:
            raise ValueError(f"{method}() needs the encodings of a fast tokenizer; this comes from a slow one.")
        return self._encodings[row]

    def _at(self, first: int, second: int | None, method: str) -> tuple[Encoding, int]:
        row, index = (0, first) if second is None else (first, second)
        return self._encoding(row, method), index

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of a row as text."""
        return list(self._encoding(batch_index, "tokens").tokens)

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row: 0 or 1 for the first or second text, None for special tokens."""
        return list(self._encoding(batch_index, "sequence_ids").sequence_ids)

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row: the number of its word, None for special tokens."""
        return list(self._encoding(batch_index, "word_ids").word_ids)

    def words(self, batch_index: int = 0) -> list[int | None]:
        """The old name of `word_ids`."""
        return list(self._encoding(batch_index, "words").word_ids)

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Which text (0 or 1) a token is from; a negative token counts from the end."""
        encoding, token = self._token(batch_or_token_index, token_index, "token_to_sequence")
        sequence: int | None = encoding.token_to_sequence(token)
        return sequence

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """The number of the word that a token is in; a negative token counts from the end."""
        encoding, token = self._token(batch_or_token_index, token_index, "token_to_word")
        word: int | None = encoding.token_to_word(token)
        return word

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> CharSpan | None:
        """The characters of the original text that a token stands for; None for special tokens."""
        encoding, token = self._token(batch_or_token_index, token_index, "token_to_chars")
        span = encoding.token_to_chars(token)
        return CharSpan(*span) if span is not None else None

    def _token(self, first: int, second: int | None, method: str) -> tuple[Encoding, int]:
        encoding, token = self._at(first, second, method)
        return encoding, token + len(encoding) if token < 0 else token

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """The tokens that a word was split into; None if truncation cut them off."""
        encoding, word = self._at(batch_or_word_index, word_index, "word_to_tokens")
        span = encoding.word_to_tokens(word, sequence_index)
        return TokenSpan(*span) if span is not None else None

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """The characters that a word spans."""
        encoding, word = self._at(batch_or_word_index, word_index, "word_to_chars")
        span = encoding.word_to_chars(word, sequence_index)
        return CharSpan(*span) if span is not None else None

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The token that a character is in; None if there is none."""
        encoding, char = self._at(batch_or_char_index, char_index, "char_to_token")
        token: int | None = encoding.char_to_token(char, sequence_index)
        return token

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The number of the word that a character is in; None if there is none."""
        encoding, char = self._at(batch_or_char_index, char_index, "char_to_word")
        word: int | None = encoding.char_to_word(char, sequence_index)
        return word


def _why_not_a_tensor(name: str, column: Any) -> str:
    if name == "overflowing_tokens":
        return (
            "Tensors need rows of one length, and overflowing_tokens differ from text to text. "
            "Use a fast tokenizer, which returns them as further rows."
        )
    lengths = sorted({len(row) for row in column if isinstance(row, list | tuple)}) if isinstance(column, list) else []
    got = f"{name} has rows of {lengths[0]} to {lengths[-1]}" if lengths else f"{name} is {type(column).__name__}"
    return f"Tensors need rows of one length, and {got}. Pass padding=True and, to cut long texts, truncation=True."
