"""Sequences of ids cut to length."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cut:
    """What a sequence keeps, and what was cut off together with the `stride` kept ids next to it."""

    kept: list[int]
    overflow: list[int]


def cut(ids: list[int], count: int, stride: int, side: str) -> Cut:
    """Take `count` ids off the right or left end."""
    window = min(len(ids), stride + count)
    if side == "left":
        return Cut(ids[count:], ids[:window])
    return Cut(ids[: len(ids) - count], ids[len(ids) - window :])


def longest_first(first: int, second: int, count: int) -> tuple[int, int]:
    """How many ids to take off each of two sequences, one at a time from the longer (the second on a tie).

    first, second: the sequences' lengths. At most all ids are taken.
    """
    remaining = max(first + second - count, 0)
    shorter = min(first, second)
    if remaining >= 2 * shorter:  # the shorter one is untouched
        keep = remaining - shorter
        return (first - keep, 0) if first > second else (0, second - keep)
    keep_first = remaining - remaining // 2
    return first - keep_first, second - (remaining - keep_first)
