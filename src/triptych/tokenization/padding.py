"""Rows of ids brought to one length."""

from collections.abc import Mapping, Sequence
from typing import Any

from triptych.tokenization.options import Lengths, PaddingStrategy


def target_length(row_lengths: Sequence[int], lengths: Lengths) -> int:
    """The length that rows are padded to: of the longest, or `max_length`; rounded up to the multiple asked for."""
    if lengths.padding is PaddingStrategy.MAX_LENGTH and lengths.max_length is not None:
        length = lengths.max_length
    else:
        length = max(row_lengths, default=0)
    multiple = lengths.pad_to_multiple_of or 1
    return -(-length // multiple) * multiple


def pad_columns(columns: dict[str, Any], length: int, fill: Mapping[str, int], side: str) -> None:
    """Pad, in place, each row of the columns that `fill` names with that column's filler; longer rows stay.

    columns: name → rows, each a list of ints.
    """
    for name, filler in fill.items():
        if name in columns:
            columns[name] = [pad_row(row, length, filler, side) for row in columns[name]]


def pad_row(row: list[int], length: int, filler: int, side: str) -> list[int]:
    """The row with `filler` at its right or left end up to `length`."""
    if side not in ("left", "right"):
        raise ValueError(f"padding_side must be 'left' or 'right'; got {side!r}.")
    missing = [filler] * (length - len(row))
    return missing + row if side == "left" else row + missing
