"""Checks of the options of `generate` that every framework's transforms share."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsFloat

INF = float("inf")
TokenIds = int | Sequence[int]


def as_ids(value: TokenIds | None) -> tuple[int, ...]:
    """One id or several, as a tuple."""
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def require_number(name: str, value: Any, *, above: float | None = None, least: float | None = None) -> None:
    """Refuse what is no number above `above`, or at least `least`.

    Raises: ValueError naming the option.
    """
    bound = f"above {above}" if above is not None else f"at least {least}"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or (above is not None and not value > above) or (least is not None and not value >= least):
        raise ValueError(f"{name} must be a number {bound}; got {value!r}.")


def require_share(name: str, value: Any) -> None:
    """Refuse what is no number from 0 to 1.

    Raises: ValueError naming the option.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"{name} is a probability, from 0 to 1; got {value!r}.")


def require_open_share(name: str, value: Any) -> None:
    """Refuse what is no number between 0 and 1, both excluded.

    Raises: ValueError naming the option.
    """
    if not isinstance(value, int | float) or not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1, both excluded; got {value!r}.")


def require_temperature(value: Any) -> None:
    """Refuse what is no number above 0.

    Raises: ValueError naming the remedy for 0.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise ValueError(
            f"temperature must be a number above 0; got {value!r}. For the most likely token at each step, "
            "pass do_sample=False."
        )


def require_int(name: str, value: Any, least: int) -> None:
    """Refuse what is no int of at least `least`.

    Raises: ValueError naming the option.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an int of at least {least}; got {value!r}.")


def require_ids(name: str, value: Any) -> None:
    """Refuse what is neither a token id nor a sequence of them.

    Raises: ValueError naming the option.
    """
    ids = (value,) if isinstance(value, int) else value
    if not isinstance(ids, Sequence) or not ids or not all(type(i) is int and i >= 0 for i in ids):
        raise ValueError(f"{name} must be a token id or a non-empty list of token ids, none negative; got {value!r}.")


def bias_pairs(value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    """A `sequence_bias`, in either form, as ((ids, bias), …).

    Raises: ValueError when it has neither form, or is empty.
    """
    items = value.items() if isinstance(value, Mapping) else value
    rule = "sequence_bias must be a non-empty {(id, …): bias} or [[[id, …], bias], …]"
    if not isinstance(items, Iterable) or isinstance(items, str):
        raise ValueError(f"{rule}; got {value!r}.")
    pairs = []
    for item in items:
        if not isinstance(item, Sequence) or len(item) != 2 or isinstance(item[0], int):
            raise ValueError(f"{rule}; got {item!r} in it.")
        require_ids("each sequence of sequence_bias", item[0])
        if not isinstance(item[1], SupportsFloat) or float(item[1]) != float(item[1]):
            raise ValueError(f"{rule}, and a bias is a number; got {item[1]!r}.")
        pairs.append((tuple(item[0]), float(item[1])))
    if not pairs:
        raise ValueError(f"{rule}; got {value!r}.")
    return tuple(pairs)
