"""Tensors of an original release → published names, through one table for each family."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from triptych.errors import CheckpointError

# How a tensor is stored in the release → what makes the published one of it. Arrays in and out, no copies.
STORED: dict[str, Callable[[Any], Any]] = {
    "as is": lambda array: array,
    "drop leading axis": lambda array: array.reshape(array.shape[1:]),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor, or with "{n}" in its names one of each layer: its names, its shape in the release, how it is stored.

    The shape is in names of the model's sizes, such as "1 C 3C".
    """

    published: str
    original: str
    shape: str
    stored: str = "as is"


def rows_of(table: Iterable[Row], layers: int) -> list[Row]:
    """The table for a number of layers, in its order; neighbouring rows with "{n}" are repeated together."""
    rows: list[Row] = []
    for per_layer, group in groupby(table, lambda row: "{n}" in row.original):
        block = list(group)
        for n in range(layers if per_layer else 1):
            rows += [
                replace(row, published=row.published.format(n=n), original=row.original.format(n=n)) for row in block
            ]
    return rows


def check(shapes: Mapping[str, tuple[int, ...]], rows: Iterable[Row], sizes: Mapping[str, int], source: str) -> None:
    """See that the release has the tensors of the rows and no others, all of the right shape.

    sizes: the model's sizes by the names that the rows use; whole numbers stand for themselves.
    Raises: CheckpointError naming `source` and the tensors that are missing, not in the table, or of another shape.
    """
    expected = {row.original: row.shape for row in rows}
    for problem, names in (
        ("lacks", expected.keys() - shapes.keys()),
        ("holds what no row of the table names:", shapes.keys() - expected.keys()),
    ):
        if names:
            raise CheckpointError(f"{source} {problem} {_some(names)}. It is not a release of this model.")
    for name, form in expected.items():
        shape = tuple(sizes[size] if size in sizes else int(size) for size in form.split())
        if shapes[name] != shape:
            raise CheckpointError(
                f"In {source}, {name} must have the shape ({form.replace(' ', ', ')}) = {shape}, and has "
                f"{shapes[name]}. The file is damaged or of another model."
            )


def rename(arrays: Mapping[str, Any], rows: Iterable[Row], sizes: Mapping[str, int], source: str) -> dict[str, Any]:
    """Published name → array, in the order of the rows.

    Raises: CheckpointError as `check` does.
    """
    rows = list(rows)
    check({name: tuple(array.shape) for name, array in arrays.items()}, rows, sizes, source)
    return {row.published: STORED[row.stored](arrays[row.original]) for row in rows}


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")
