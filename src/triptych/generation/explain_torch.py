"""Why a text reads as it does: how likely the model held each token, and what it would have written instead.

Shapes: T tokens, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from triptych.generation.checks import require_int

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_CONTEXT = 8  # a token's text depends on its neighbours: bytes of one character, spaces between words


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have stood in a place, and the probability that the model gave it."""

    id: int
    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class ExplainedToken:
    """A token in its place.

    `text` is what it adds to the text, "" for the first bytes of a character. `probability` and `rank` (1 for the
    likeliest) are the model's own, None for the very first token, which nothing stands before; `drawn_with` is the
    probability after the options (temperature, top-p, bans …), where these are known. `alternatives` are the model's
    likeliest tokens, likeliest first, this one among them if it is one.
    """

    id: int
    text: str
    is_prompt: bool
    probability: float | None
    rank: int | None
    drawn_with: float | None
    alternatives: tuple[Alternative, ...]

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON holds them."""
        return asdict(self)


def explain(
    model: Any,
    tokenizer: Any,
    ids: Tensor | Sequence[int],
    prompt_length: int = 0,
    top: int = 5,
    scores: Sequence[Tensor] | None = None,
) -> list[ExplainedToken]:
    """Explain a text, its prompt too, with one forward pass.

    `ids` (T,) are one row of what `generate` returned, without padding. `scores`, one (V,) for each token behind the
    first `prompt_length`, are the row of its `output_scores`.

    Returns: an `ExplainedToken` for each id; their texts together are the text.
    Raises: ValueError for ids of another shape, and for scores that do not fit them.
    """
    require_int("top", top, 1)
    row = torch.as_tensor(ids, device=model.device)
    if row.dim() != 1 or not len(row):
        raise ValueError(f"explain() takes the ids of one text, of shape (length,); got {tuple(row.shape)}.")
    if scores is not None and len(scores) < len(row) - prompt_length:
        raise ValueError(
            f"scores must hold one row for each of the {len(row) - prompt_length} new tokens; got {len(scores)}. "
            "Pass prompt_length=... too."
        )
    with torch.no_grad():
        logits = model(input_ids=row[None]).logits[0, :-1].float()  # (T - 1, V)
    chances = logits.softmax(dim=-1)
    own = chances.gather(1, row[1:, None])  # (T - 1, 1)
    ranks = [None, *((chances > own).sum(dim=1) + 1).tolist()]
    best = chances.topk(min(top, chances.shape[1]), dim=1)
    candidates = [[], *best.indices.tolist()]
    likely = [[], *best.values.tolist()]
    new = row.tolist()
    texts, others = _texts(tokenizer, new, candidates)
    own_chances = [None, *own.flatten().tolist()]
    return [
        ExplainedToken(
            id=token,
            text=texts[place],
            is_prompt=place < prompt_length,
            probability=own_chances[place],
            rank=ranks[place],
            drawn_with=_drawn_with(scores, place - prompt_length, token),
            alternatives=tuple(map(Alternative, candidates[place], others[place], likely[place])),
        )
        for place, token in enumerate(new)
    ]


def _drawn_with(scores: Sequence[Tensor] | None, step: int, token: int) -> float | None:
    if scores is None or step < 0:
        return None
    return float(scores[step].float().softmax(dim=-1)[token])


def _texts(tokenizer: Any, ids: list[int], candidates: list[list[int]]) -> tuple[list[str], list[list[str]]]:
    """What each token adds to the text before it, and what each candidate would have added."""
    runs: list[list[int]] = []
    for place in range(len(ids)):
        before = ids[max(0, place - _CONTEXT) : place]
        runs += [before, *([*before, token] for token in (ids[place], *candidates[place]))]
    decoded = iter(tokenizer.batch_decode(runs, clean_up_tokenization_spaces=False))
    texts, others = [], []
    for place, several in enumerate(candidates):
        # A character that is not finished counts for the token that finishes it.
        context = next(decoded).rstrip(_BROKEN)
        whole = next(decoded)
        texts.append((whole if place + 1 == len(ids) else whole.rstrip(_BROKEN))[len(context) :])
        others.append([next(decoded)[len(context) :] for _ in several])
    return texts, others


def perplexity(tokens: Sequence[ExplainedToken]) -> float | None:
    """The exponential of the mean surprise, -log probability, of the tokens behind the prompt; None without any."""
    known = [token.probability for token in tokens if not token.is_prompt and token.probability is not None]
    if not known:
        return None
    return math.exp(-sum(math.log(max(each, 1e-30)) for each in known) / len(known))
