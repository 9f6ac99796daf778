"""Padding and truncation as functions, and the options that choose them."""

import pytest
from hypothesis import given, strategies as st

from triptych.tokenization.options import (
    VERY_LARGE_INTEGER,
    Lengths,
    PaddingStrategy,
    TruncationStrategy,
    settle_lengths,
)
from triptych.tokenization.padding import pad_columns, pad_row, target_length
from triptych.tokenization.truncation import cut, longest_first


def ignore(message):
    """Take a note and do nothing with it."""


def settle(
    padding=False, truncation=None, max_length=None, stride=0, multiple=None, known=VERY_LARGE_INTEGER, tell=None
):
    return settle_lengths(padding, truncation, max_length, stride, multiple, known, tell or ignore, {})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, Lengths()),
        ({"padding": True}, Lengths(PaddingStrategy.LONGEST)),
        ({"padding": "do_not_pad"}, Lengths()),
        ({"truncation": True, "known": 7}, Lengths(truncation=TruncationStrategy.LONGEST_FIRST, max_length=7)),
        (
            {"truncation": "only_first", "max_length": 3},
            Lengths(truncation=TruncationStrategy.ONLY_FIRST, max_length=3),
        ),
        ({"padding": "max_length", "known": 9}, Lengths(PaddingStrategy.MAX_LENGTH, max_length=9)),
        ({"truncation": True}, Lengths()),
        ({"padding": "max_length"}, Lengths()),
        ({"max_length": 5}, Lengths(truncation=TruncationStrategy.LONGEST_FIRST, max_length=5)),
        ({"max_length": 5, "padding": True}, Lengths(PaddingStrategy.LONGEST, max_length=5)),
        ({"max_length": 5, "truncation": False}, Lengths(max_length=5)),
    ],
)
def test_the_documented_options_mean_what_they_say(options, expected):
    assert settle(**options) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "weird"}, r"padding must be one of \['longest', 'max_length', 'do_not_pad'\], not 'weird'"),
        ({"truncation": "weird"}, r"truncation must be one of .*'only_first'.*, not 'weird'"),
        ({"max_length": -1}, "max_length must be at least 0, not -1"),
        ({"stride": -1}, "stride must be at least 0, not -1"),
        ({"padding": True, "multiple": 0}, "pad_to_multiple_of must be at least 1, not 0"),
        (
            {"padding": True, "truncation": True, "max_length": 10, "multiple": 4},
            "max_length must be a multiple of pad_to_multiple_of=4, not 10. Pass max_length=8",
        ),
    ],
)
def test_an_option_that_makes_no_sense_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        settle(**options)


def test_options_that_are_not_taken_at_their_word_are_told():
    told = []
    settle(truncation=True, tell=told.append)
    settle(max_length=3, tell=told.append)
    settle(padding=True, max_length=3, tell=told.append)
    assert [message.partition(",")[0] for message in told] == [
        "No maximum length is known for this model",
        "max_length was given without truncation",
        "max_length has no effect with padding=True. Use padding='max_length' to pad up to it.",
    ]


def test_the_old_names_of_the_options_still_work():
    options = {"truncation_strategy": "only_first"}
    with pytest.warns(FutureWarning, match="truncation_strategy is now called truncation"):
        lengths = settle_lengths(False, None, 4, 0, None, 10**30, ignore, options)
    assert (lengths, options) == (Lengths(truncation=TruncationStrategy.ONLY_FIRST, max_length=4), {})
    with pytest.warns(FutureWarning, match="pad_to_max_length"):
        lengths = settle_lengths(False, None, 4, 0, None, 10**30, ignore, {"pad_to_max_length": True})
    assert lengths == Lengths(PaddingStrategy.MAX_LENGTH, TruncationStrategy.LONGEST_FIRST, 4)


def one_by_one(first, second, count):
    """The definition: take one off the longer, off the second on a tie."""
    taken = [0, 0]
    for _ in range(min(count, first + second)):
        longer = 0 if first - taken[0] > second - taken[1] else 1
        taken[longer] += 1
    return tuple(taken)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 60))
def test_longest_first_takes_one_at_a_time_from_the_longer(first, second, count):
    assert longest_first(first, second, count) == one_by_one(first, second, count)


@given(st.lists(st.integers()), st.data(), st.integers(0, 9), st.sampled_from(["left", "right"]))
def test_a_cut_sequence_and_its_overflow_share_stride_ids_and_lose_none(ids, data, stride, side):
    count = data.draw(st.integers(0, len(ids)))
    result = cut(ids, count, stride, side)
    shared = min(stride, len(ids) - count)
    if side == "right":
        assert result.kept + result.overflow[shared:] == ids
    else:
        assert result.overflow[: len(result.overflow) - shared] + result.kept == ids
    assert len(result.overflow) == count + shared


@given(st.lists(st.lists(st.integers(), max_size=9), min_size=1), st.integers(1, 8))
def test_padded_rows_have_the_length_of_the_longest_rounded_up(rows, multiple):
    length = target_length([len(row) for row in rows], Lengths(PaddingStrategy.LONGEST, pad_to_multiple_of=multiple))
    assert length % multiple == 0
    assert 0 <= length - max(map(len, rows)) < multiple
    columns = {"input_ids": rows, "labels": rows}
    pad_columns(columns, length, {"input_ids": -1}, "right")
    assert [len(row) for row in columns["input_ids"]] == [length] * len(rows)
    assert [row[: len(old)] for row, old in zip(columns["input_ids"], rows, strict=True)] == rows
    assert columns["labels"] is rows


def test_the_side_says_where_the_padding_goes():
    assert pad_row([1, 2], 4, 0, "right") == [1, 2, 0, 0]
    assert pad_row([1, 2], 4, 0, "left") == [0, 0, 1, 2]
    assert pad_row([1, 2, 3], 2, 0, "left") == [1, 2, 3]
