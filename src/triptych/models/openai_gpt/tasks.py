"""How GPT is given the tasks of its paper: each question as one row of ids, or several that are answered apart.

A row begins with a start token and ends with an extract token, where the model's last hidden state is the answer; a
delimiter stands between two texts. Radford et al., 2018, section 3.3 and figure 1.

    marks = add_marks(tokenizer)
    model.resize_token_embeddings(len(tokenizer))
    row = entailment(tokenizer(premise).input_ids, tokenizer(hypothesis).input_ids, marks, model.config.n_positions)
    batch = pad([row, …], pad_token_id)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from triptych.errors import SequenceTooLongError
from triptych.tokenization.base import PreTrainedTokenizerBase
from triptych.tokenization.tensors import to_lists

Ids = list[int]

# As the release of the paper's code calls them.
START, DELIMITER, EXTRACT = "_start_", "_delimiter_", "_classify_"


@dataclass(frozen=True, slots=True)
class Marks:
    """The ids of the three tokens that fine-tuning adds to the vocabulary."""

    start: int
    delimiter: int
    extract: int


def add_marks(tokenizer: PreTrainedTokenizerBase) -> Marks:
    """Put the three tokens into a tokenizer that lacks them; then resize the model's embeddings to its length."""
    names = [START, DELIMITER, EXTRACT]
    tokenizer.add_special_tokens({"additional_special_tokens": names}, replace_additional_special_tokens=False)
    return Marks(*tokenizer.convert_tokens_to_ids(names))


def classification(text: Sequence[int], marks: Marks, n_positions: int) -> Ids:
    """[start] text [extract].

    Raises: SequenceTooLongError here and below if `n_positions` has no room for a token beside the marks.
    """
    (text,) = _cut([text], n_positions - 2)
    return [marks.start, *text, marks.extract]


def entailment(premise: Sequence[int], hypothesis: Sequence[int], marks: Marks, n_positions: int) -> Ids:
    """[start] premise [delimiter] hypothesis [extract]."""
    premise, hypothesis = _cut([premise, hypothesis], n_positions - 3)
    return [marks.start, *premise, marks.delimiter, *hypothesis, marks.extract]


def similarity(first: Sequence[int], second: Sequence[int], marks: Marks, n_positions: int) -> tuple[Ids, Ids]:
    """Both orders of two texts, since neither comes first; add the hidden states of both at their extract tokens."""
    return entailment(first, second, marks, n_positions), entailment(second, first, marks, n_positions)


def multiple_choice(
    context: Sequence[int],
    question: Sequence[int],
    answers: Sequence[Sequence[int]],
    marks: Marks,
    n_positions: int,
) -> list[Ids]:
    """[start] context question [delimiter] answer [extract] for each answer; the softmax is over their scores."""
    rows = []
    for answer in answers:
        cut = _cut([context, question, answer], n_positions - 3)
        rows.append([marks.start, *cut[0], *cut[1], marks.delimiter, *cut[2], marks.extract])
    return rows


def pad(rows: Any, pad_token_id: int) -> dict[str, Any]:
    """Rows of several lengths T as a batch, padded on the right.

    rows: lists of ids in lists to any depth, such as (B,) rows, or (B, choices) rows of multiple choice.
    Returns: lists `input_ids` and `attention_mask` (..., T), and `mc_token_ids` (...): where the extract tokens are.
    """
    if not isinstance(pad_token_id, int):
        raise ValueError(
            f"pad_token_id must be an int; got {pad_token_id!r}. A tokenizer without a pad token can be given one with "
            "add_special_tokens({'pad_token': …}) and resize_token_embeddings; or pass any id, as padding is masked."
        )
    rows = to_lists(rows)
    width = max(_leaves(rows), default=0)
    if width == 0:
        raise ValueError(f"rows must hold a token at least; got {rows!r}.")
    return {
        "input_ids": _each(rows, lambda row: [*row, *[pad_token_id] * (width - len(row))]),
        "attention_mask": _each(rows, lambda row: [1] * len(row) + [0] * (width - len(row))),
        "mc_token_ids": _each(rows, lambda row: len(row) - 1),
    }


def _cut(texts: Sequence[Sequence[int]], room: int) -> list[Sequence[int]]:
    """Shorten texts to `room` tokens in all: from the end of whichever is longest, the first of equals last."""
    if room < 1:
        raise SequenceTooLongError(f"A row needs room for a token beside its marks, and {room} positions are left.")
    lengths = [len(text) for text in texts]
    while sum(lengths) > room:
        longest = max(range(len(texts)), key=lambda i: (lengths[i], i))
        lengths[longest] -= 1
    return [text[:length] for text, length in zip(texts, lengths, strict=True)]


def _is_row(value: Any) -> bool:
    return not value or isinstance(value[0], int)


def _leaves(rows: Any) -> list[int]:
    return [len(rows)] if _is_row(rows) else [length for row in rows for length in _leaves(row)]


def _each(rows: Any, change: Callable[[Ids], Any]) -> Any:
    return change(rows) if _is_row(rows) else [_each(row, change) for row in rows]
