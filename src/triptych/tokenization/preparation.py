"""Ids of texts → what a model takes: cut, joined with special tokens, padded."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from triptych.tokenization import tensors
from triptych.tokenization.batch_encoding import BatchEncoding
from triptych.tokenization.options import (
    Columns,
    Lengths,
    Request,
    TensorType,
    TruncationStrategy,
    choose,
    logger,
    settle_lengths,
)
from triptych.tokenization.padding import pad_columns, target_length
from triptych.tokenization.special_tokens import SpecialTokensMixin
from triptych.tokenization.truncation import cut, longest_first

Ids = list[int]


class Preparation(SpecialTokensMixin):
    """The part of a tokenizer that knows ids only."""

    model_input_names: list[str] = ["input_ids", "token_type_ids", "attention_mask"]  # noqa: RUF012 (may be set)
    padding_side: str = "right"
    truncation_side: str = "right"
    model_max_length: int
    _told: set[str]

    @abstractmethod
    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens a single text, or a pair, gets."""

    # Rows as the model expects them; a subclass says which special tokens go where.

    def build_inputs_with_special_tokens(self, token_ids_0: Ids, token_ids_1: Ids | None = None) -> Ids:
        """Join one or two sequences of ids with the special tokens that the model expects: here none."""
        return token_ids_0 if token_ids_1 is None else token_ids_0 + token_ids_1

    def create_token_type_ids_from_sequences(self, token_ids_0: Ids, token_ids_1: Ids | None = None) -> Ids:
        """0 for each token of the first sequence, 1 for each of the second, special tokens with the one they open."""
        first = len(self.build_inputs_with_special_tokens(token_ids_0))
        if token_ids_1 is None:
            return [0] * first
        return [0] * first + [1] * (len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1)) - first)

    def get_special_tokens_mask(
        self, token_ids_0: Ids, token_ids_1: Ids | None = None, already_has_special_tokens: bool = False
    ) -> Ids:
        """1 at special tokens, 0 elsewhere, in a sequence that has its special tokens already.

        Raises: ValueError if `already_has_special_tokens` is False, or a second sequence is given with True.
        """
        if not already_has_special_tokens:
            raise ValueError(
                "This tokenizer cannot tell which special tokens it would add. Pass already_has_special_tokens=True, "
                "or call the tokenizer with return_special_tokens_mask=True."
            )
        if token_ids_1 is not None:
            raise ValueError(
                "With already_has_special_tokens=True, both sequences are in token_ids_0; drop token_ids_1."
            )
        special = set(self.all_special_ids)
        return [int(token_id in special) for token_id in token_ids_0]

    @property
    def max_len_single_sentence(self) -> int:
        """How many tokens of one text fit beside its special tokens."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=False)

    @property
    def max_len_sentences_pair(self) -> int:
        """How many tokens of two texts fit beside their special tokens."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)

    # What a call asks for.

    def _lengths(
        self,
        padding: Any,
        truncation: Any,
        max_length: int | None,
        stride: int,
        pad_to_multiple_of: int | None,
        verbose: bool,
        old_options: dict[str, Any],
    ) -> Lengths:
        lengths = settle_lengths(
            padding,
            truncation,
            max_length,
            stride,
            pad_to_multiple_of,
            self.model_max_length,
            self._tell if verbose else _say_nothing,
            old_options,
        )
        if lengths.pads and self.pad_token_id is None:
            if (token := self._special_tokens.get("pad_token")) is not None:
                raise ValueError(
                    f"The pad token {str(token)!r} is not in the vocabulary. "
                    "Add it with tokenizer.add_special_tokens({'pad_token': …}) and resize the model's embeddings."
                )
            known = next((name for name in ("eos_token", "unk_token") if name in self._special_tokens), "eos_token")
            raise ValueError(
                "Padding needs a pad token, and this tokenizer has none. Set one that the model knows, such as "
                f"tokenizer.pad_token = tokenizer.{known}, or add one with "
                "tokenizer.add_special_tokens({'pad_token': '[PAD]'}) and resize the model's embeddings."
            )
        return lengths

    def _request(
        self,
        *,
        add_special_tokens: bool,
        lengths: Lengths,
        is_split_into_words: bool,
        return_tensors: str | TensorType | None,
        return_token_type_ids: bool | None,
        return_attention_mask: bool | None,
        return_overflowing_tokens: bool,
        return_special_tokens_mask: bool,
        return_offsets_mapping: bool,
        return_length: bool,
        verbose: bool,
    ) -> Request:
        named = self.model_input_names
        columns = Columns(
            token_type_ids="token_type_ids" in named if return_token_type_ids is None else return_token_type_ids,
            attention_mask="attention_mask" in named if return_attention_mask is None else return_attention_mask,
            overflowing_tokens=return_overflowing_tokens,
            special_tokens_mask=return_special_tokens_mask,
            offset_mapping=return_offsets_mapping,
            length=return_length,
            tensors=None if return_tensors is None else choose(TensorType, return_tensors, "return_tensors"),
        )
        return Request(lengths, columns, add_special_tokens, is_split_into_words, verbose)

    def _tell(self, message: str, *values: Any) -> None:
        """Log what a user should know, once for each tokenizer."""
        if message not in self._told:
            self._told.add(message)
            logger.warning(message, *values)

    def _warn_if_too_long(self, length: int, request: Request) -> None:
        if length > self.model_max_length and request.lengths.max_length is None and request.verbose:
            self._tell(
                "A text has %d tokens, more than the %d that the model was made for. Pass truncation=True to cut it.",
                length,
                self.model_max_length,
            )

    # Cutting, joining, padding.

    def truncate_sequences(
        self,
        ids: Ids,
        pair_ids: Ids | None = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: str | TruncationStrategy = "longest_first",
        stride: int = 0,
    ) -> tuple[Ids, Ids | None, Ids]:
        """Cut one or two sequences on the tokenizer's `truncation_side`.

        Returns: both sequences, and the ids cut off with `stride` kept ones beside them (empty for a pair under
            longest_first). A sequence too short to be cut as asked is logged as an error and left whole.
        """
        strategy = choose(TruncationStrategy, truncation_strategy, "truncation_strategy")
        if num_tokens_to_remove <= 0 or strategy is TruncationStrategy.DO_NOT_TRUNCATE:
            return ids, pair_ids, []
        side = self.truncation_side
        if strategy is TruncationStrategy.LONGEST_FIRST and pair_ids is not None:
            first, second = longest_first(len(ids), len(pair_ids), num_tokens_to_remove)
            return cut(ids, first, 0, side).kept, cut(pair_ids, second, 0, side).kept, []
        target = pair_ids if strategy is TruncationStrategy.ONLY_SECOND else ids
        if target is None:
            return ids, pair_ids, []
        if len(target) <= num_tokens_to_remove:
            logger.error(
                "%d tokens are to be removed by %s, but that sequence has only %d. Choose another truncation strategy.",
                num_tokens_to_remove,
                strategy,
                len(target),
            )
            return ids, pair_ids, []
        result = cut(target, num_tokens_to_remove, stride, side)
        if strategy is TruncationStrategy.ONLY_SECOND:
            return ids, result.kept, result.overflow
        return result.kept, pair_ids, result.overflow

    def prepare_for_model(
        self,
        ids: Ids,
        pair_ids: Ids | None = None,
        add_special_tokens: bool = True,
        padding: Any = False,
        truncation: Any = None,
        max_length: int | None = None,
        stride: int = 0,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | TensorType | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        prepend_batch_axis: bool = False,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Cut, join with special tokens and pad one or two sequences of ids.

        Raises: ValueError if overflow is asked for a pair under longest_first: choose only_first or only_second.
        """
        request = self._request(
            add_special_tokens=add_special_tokens,
            lengths=self._lengths(padding, truncation, max_length, stride, pad_to_multiple_of, verbose, kwargs),
            is_split_into_words=False,
            return_tensors=return_tensors,
            return_token_type_ids=return_token_type_ids,
            return_attention_mask=return_attention_mask,
            return_overflowing_tokens=return_overflowing_tokens,
            return_special_tokens_mask=return_special_tokens_mask,
            return_offsets_mapping=return_offsets_mapping,
            return_length=return_length,
            verbose=verbose,
        )
        row = self._finished_row(ids, pair_ids, request)
        return BatchEncoding(row, tensor_type=request.columns.tensors, prepend_batch_axis=prepend_batch_axis)

    def _finished_row(self, ids: Ids, pair_ids: Ids | None, request: Request) -> dict[str, Any]:
        """One row, padded: its columns by name."""
        row = self._row(ids, pair_ids, request)
        columns = self._padded({name: [value] for name, value in row.items()}, request)
        row = {name: values[0] for name, values in columns.items()}
        if request.columns.length:
            row["length"] = len(row["input_ids"])
        return row

    def _row(self, ids: Ids, pair_ids: Ids | None, request: Request) -> dict[str, Any]:
        """One row before padding: cut, joined with special tokens."""
        lengths, columns, row = request.lengths, request.columns, dict[str, Any]()
        pair = pair_ids is not None
        if columns.overflowing_tokens and pair and lengths.truncation is TruncationStrategy.LONGEST_FIRST:
            raise ValueError(
                "The tokens that longest_first cuts off a pair cannot be returned. "
                "Pass truncation='only_first' or 'only_second'."
            )
        total = len(ids) + len(pair_ids or ())
        if request.add_special_tokens:
            total += self.num_special_tokens_to_add(pair=pair)
        excess = total - lengths.max_length if lengths.max_length is not None else 0
        overflow: Ids = []
        if lengths.limit is not None and excess > 0:
            ids, pair_ids, overflow = self.truncate_sequences(ids, pair_ids, excess, lengths.truncation, lengths.stride)
        if columns.overflowing_tokens:
            row |= {"overflowing_tokens": overflow, "num_truncated_tokens": excess}
        if request.add_special_tokens:
            row["input_ids"] = self.build_inputs_with_special_tokens(ids, pair_ids)
            if columns.token_type_ids:
                row["token_type_ids"] = self.create_token_type_ids_from_sequences(ids, pair_ids)
            if columns.special_tokens_mask:
                row["special_tokens_mask"] = self.get_special_tokens_mask(ids, pair_ids)
        else:
            row["input_ids"] = ids + pair_ids if pair_ids else ids
            if columns.token_type_ids:
                row["token_type_ids"] = [0] * len(ids) + [1] * len(pair_ids or ())
            if columns.special_tokens_mask:
                row["special_tokens_mask"] = [0] * len(row["input_ids"])
        self._warn_if_too_long(len(row["input_ids"]), request)
        return row

    def _padded(self, columns: dict[str, Any], request: Request) -> dict[str, Any]:
        """Rows brought to length, with an attention mask if one is wanted."""
        main = self.model_input_names[0]
        row_lengths = [len(row) for row in columns[main]]
        if request.columns.attention_mask and "attention_mask" not in columns:
            columns["attention_mask"] = [[1] * length for length in row_lengths]
        if request.lengths.pads:
            fill = {
                main: self.pad_token_id,
                "attention_mask": 0,
                "token_type_ids": self.pad_token_type_id,
                "special_tokens_mask": 1,
            }
            pad_columns(columns, target_length(row_lengths, request.lengths), fill, self.padding_side)
        return columns

    def pad(
        self,
        encoded_inputs: Any,
        padding: Any = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | TensorType | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pad encoded texts: one, a batch by columns, or a list of them (as a collate function gets).

        Columns that are not of the tokenizer, such as `labels`, stay as they are. Tensors come back as tensors.

        Raises: ValueError if there are no `input_ids`, or columns have different numbers of rows.
        """
        if isinstance(encoded_inputs, list | tuple) and encoded_inputs and isinstance(encoded_inputs[0], Mapping):
            encoded_inputs = {name: [row[name] for row in encoded_inputs] for name in encoded_inputs[0]}
        main = self.model_input_names[0]
        if not isinstance(encoded_inputs, Mapping) or main not in encoded_inputs:
            got = list(encoded_inputs) if isinstance(encoded_inputs, Mapping) else encoded_inputs
            raise ValueError(f"Rows to pad need {main}, and there is only {got!r}. Pass what the tokenizer returned.")
        if return_tensors is None:
            rows = encoded_inputs[main]
            return_tensors = tensors.kind_of(rows[0] if isinstance(rows, list | tuple) and len(rows) else rows)
        columns = {name: tensors.to_lists(values) for name, values in encoded_inputs.items()}
        request = Request(
            self._lengths(padding, None, max_length, 0, pad_to_multiple_of, verbose, {}),
            Columns(
                attention_mask="attention_mask" in self.model_input_names
                if return_attention_mask is None
                else return_attention_mask
            ),
        )
        if len(columns[main]) == 0:
            return BatchEncoding(columns | ({"attention_mask": []} if request.columns.attention_mask else {}))
        if not isinstance(columns[main][0], list):
            padded = self._padded({name: [row] for name, row in columns.items()}, request)
            return BatchEncoding({name: rows[0] for name, rows in padded.items()}, tensor_type=return_tensors)
        counts = {name: len(rows) for name, rows in columns.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"Every column must have as many rows as {main}, but they have {counts}.")
        return BatchEncoding(self._padded(columns, request), tensor_type=return_tensors)


def _say_nothing(message: str) -> None:
    """For verbose=False."""
