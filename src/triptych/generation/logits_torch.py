"""Logits transforms in PyTorch: small frozen objects that change the next token's scores, and a list of them.

Names and arguments are those of the documented version. `…LogitsProcessor` states rules and applies to greedy decoding
too; `…LogitsWarper` (see `warpers_torch.py`) reshapes the distribution for sampling. None changes its input.

Shapes: B rows, T tokens so far (prompt and left padding included), V vocabulary. A transform maps
`input_ids` (B, T) and `scores` (B, V) to scores (B, V).
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from triptych.errors import TokenIdError
from triptych.generation.checks import (
    INF,
    TokenIds,
    as_ids,
    bias_pairs,
    require_ids,
    require_int,
    require_number,
)


class LogitsProcessor:
    """Base of the transforms; write your own by overriding `__call__`."""

    __slots__ = ()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # (B, T), (B, V) -> (B, V)
        """The changed scores."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(input_ids, scores).")


class LogitsWarper(LogitsProcessor):
    """Base of the transforms that only sampling uses."""

    __slots__ = ()


class LogitsProcessorList(list[Any]):
    """Transforms applied in order; also a transform."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Apply each transform; keyword arguments go to those that take more than ids and scores.

        Raises: ValueError when one of them needs a keyword argument that was not given.
        """
        for transform in self:
            names, needed = _extra_arguments(type(transform).__call__)
            missing = [name for name in needed if name not in kwargs]
            if missing:
                raise ValueError(f"{type(transform).__name__} needs {', '.join(missing)}. Pass them by name.")
            scores = transform(input_ids, scores, **{name: kwargs[name] for name in names if name in kwargs})
        return scores


@lru_cache(maxsize=256)
def _extra_arguments(call: Callable[..., Any]) -> tuple[list[str], list[str]]:
    """Named arguments after self, ids and scores: all, and those without a default."""
    more = [
        each
        for each in list(inspect.signature(call).parameters.values())[3:]
        if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    return [each.name for each in more], [each.name for each in more if each.default is each.empty]


# -- helpers -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _index(ids: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it is kept, and autograd may need it later
        return torch.tensor(ids, dtype=torch.long, device=device)


def _without(scores: Tensor, ids: tuple[int, ...]) -> Tensor:
    return scores.index_fill(1, _index(ids, scores.device), -INF)


def _only(scores: Tensor, ids: tuple[int, ...]) -> Tensor:
    """-inf everywhere, 0 at `ids`."""
    return torch.full_like(scores, -INF).index_fill_(1, _index(ids, scores.device), 0.0)


# -- repetition ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RepetitionPenaltyLogitsProcessor(LogitsProcessor):
    """Make tokens that already stand in the row less likely, by the factor `penalty` (Keskar et al., 2019, CTRL)."""

    penalty: float

    def __post_init__(self) -> None:
        """Check the argument."""
        require_number("repetition_penalty", self.penalty, above=0.0)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Positive scores are divided by `penalty`, negative ones multiplied."""
        return _penalised(scores, input_ids, self.penalty)


@dataclass(frozen=True, slots=True)
class EncoderRepetitionPenaltyLogitsProcessor(LogitsProcessor):
    """Make tokens of the prompt `encoder_input_ids` (B, P) more likely, by the factor `penalty`."""

    penalty: float
    encoder_input_ids: Tensor

    def __post_init__(self) -> None:
        """Check the argument."""
        require_number("encoder_repetition_penalty", self.penalty, above=0.0)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Positive scores are multiplied by `penalty`, negative ones divided."""
        return _penalised(scores, _for_rows(self.encoder_input_ids, len(scores)), 1 / self.penalty)


def _penalised(scores: Tensor, ids: Tensor, penalty: float) -> Tensor:
    seen = scores.gather(1, ids)
    return scores.scatter(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))


@dataclass(frozen=True, slots=True)
class NoRepeatNGramLogitsProcessor(LogitsProcessor):
    """Forbid the token that would complete a run of `ngram_size` tokens the row already holds (Paulus et al., 2017)."""

    ngram_size: int

    def __post_init__(self) -> None:
        """Check the argument."""
        require_int("no_repeat_ngram_size", self.ngram_size, 1)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """-inf at the forbidden tokens."""
        return _without_repeats(scores, input_ids, input_ids, self.ngram_size)


@dataclass(frozen=True, slots=True)
class EncoderNoRepeatNGramLogitsProcessor(LogitsProcessor):
    """Forbid the token that would complete a run of `encoder_ngram_size` tokens of `encoder_input_ids` (B, P)."""

    encoder_ngram_size: int
    encoder_input_ids: Tensor

    def __post_init__(self) -> None:
        """Check the argument."""
        require_int("encoder_no_repeat_ngram_size", self.encoder_ngram_size, 1)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """-inf at the forbidden tokens."""
        source = _for_rows(self.encoder_input_ids, len(scores))
        return _without_repeats(scores, input_ids, source, self.encoder_ngram_size)


def _without_repeats(scores: Tensor, ids: Tensor, source: Tensor, n: int) -> Tensor:
    if source.shape[1] < n or ids.shape[1] < n - 1:
        return scores
    runs = source.unfold(1, n, 1)  # (B, P - n + 1, n)
    same_start = (runs[..., :-1] == ids[:, None, ids.shape[1] - n + 1 :]).all(dim=-1)  # (B, P - n + 1)
    # One column more than the vocabulary takes the runs that do not match, so that no step waits for the device.
    forbidden = torch.zeros(scores.shape[0], scores.shape[1] + 1, dtype=torch.bool, device=scores.device)
    forbidden.scatter_(1, torch.where(same_start, runs[..., -1], scores.shape[1]), True)
    return scores.masked_fill(forbidden[:, :-1], -INF)


def _for_rows(ids: Tensor, rows: int) -> Tensor:
    """What belongs to prompts, (B, …), for `rows` rows of scores; the rows of a prompt follow each other."""
    return ids if len(ids) == rows else ids[torch.arange(rows, device=ids.device) * len(ids) // rows]


@dataclass(frozen=True, slots=True)
class HammingDiversityLogitsProcessor(LogitsProcessor):
    """Make a token that earlier groups of beams chose at this step less likely (Vijayakumar et al., 2016).

    Each prompt has `num_beams` beams in `num_beam_groups` groups of equal size; groups choose one after the other.

    Raises: ValueError unless `diversity_penalty` is above 0 and there are at least two groups that divide the beams.
    """

    diversity_penalty: float
    num_beams: int
    num_beam_groups: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_number("diversity_penalty", self.diversity_penalty, above=0.0)
        require_int("num_beams", self.num_beams, 2)
        require_int("num_beam_groups", self.num_beam_groups, 2)
        if self.num_beams % self.num_beam_groups:
            raise ValueError(
                f"num_beam_groups must divide num_beams ({self.num_beams}); got {self.num_beam_groups}. "
                "Make num_beams a multiple of it."
            )

    def __call__(  # type: ignore[override]  # LogitsProcessorList passes on what more it takes
        self, input_ids: Tensor, scores: Tensor, current_tokens: Tensor, beam_group_idx: int
    ) -> Tensor:
        """The scores (B * G, V) of a group of G beams, less `diversity_penalty` for each earlier choice of a token.

        `current_tokens` (B * num_beams,) are this step's tokens; those of the groups before `beam_group_idx` count.
        """
        earlier = beam_group_idx * (self.num_beams // self.num_beam_groups)
        chosen = current_tokens.view(-1, self.num_beams)[:, :earlier]  # (B, E)
        counts = scores.new_zeros(len(chosen), scores.shape[1]).scatter_add_(
            1, chosen, torch.ones_like(chosen, dtype=scores.dtype)
        )
        return scores - self.diversity_penalty * _for_rows(counts, len(scores))


# -- sequences of tokens -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SequenceBiasLogitsProcessor(LogitsProcessor):
    """Add a bias to the last token of each sequence whose other tokens end the row.

    `sequence_bias` maps tuples of ids to biases; a list of [ids, bias] pairs, as files have it, does as well. A
    sequence longer than the row so far has no effect.
    """

    sequence_bias: Mapping[tuple[int, ...], float] | Sequence[Any]
    _pairs: tuple[tuple[tuple[int, ...], float], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the argument."""
        object.__setattr__(self, "_pairs", bias_pairs(self.sequence_bias))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The biased scores."""
        return _biased(input_ids, scores, self._pairs)


@dataclass(frozen=True, slots=True)
class NoBadWordsLogitsProcessor(LogitsProcessor):
    """Forbid the token that would complete one of the words `bad_words_ids`; a word that is only the end is let be."""

    bad_words_ids: list[list[int]]
    eos_token_id: TokenIds | None = None
    _pairs: tuple[tuple[tuple[int, ...], float], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not isinstance(self.bad_words_ids, Sequence) or not self.bad_words_ids:
            raise ValueError(f"bad_words_ids must be a non-empty list of lists of ids; got {self.bad_words_ids!r}.")
        for word in self.bad_words_ids:
            if isinstance(word, int):
                raise ValueError(f"bad_words_ids must be a list of lists of ids; got {self.bad_words_ids!r}.")
            require_ids("each word of bad_words_ids", word)
        ends = [[eos] for eos in as_ids(self.eos_token_id)]
        pairs = tuple((tuple(word), -INF) for word in self.bad_words_ids if list(word) not in ends)
        object.__setattr__(self, "_pairs", pairs)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """-inf at the forbidden tokens."""
        return _biased(input_ids, scores, self._pairs)


@lru_cache(maxsize=32)
def _bias_table(
    pairs: tuple[tuple[tuple[int, ...], float], ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Starts (N, L) filled with -1 on the left, lengths (N,), last tokens (N,) and biases (N,)."""
    longest = max((len(ids) - 1 for ids, _ in pairs), default=0)
    starts = [[-1] * (longest - len(ids) + 1) + list(ids[:-1]) for ids, _ in pairs]
    return (
        torch.tensor(starts, dtype=torch.long, device=device).view(len(pairs), longest),
        torch.tensor([len(ids) for ids, _ in pairs], device=device),
        torch.tensor([ids[-1] for ids, _ in pairs], dtype=torch.long, device=device),
        torch.tensor([bias for _, bias in pairs], dtype=torch.float32, device=device),
    )


def _biased(ids: Tensor, scores: Tensor, pairs: tuple[tuple[tuple[int, ...], float], ...]) -> Tensor:
    if not pairs:
        return scores
    starts, lengths, last, bias = _bias_table(pairs, scores.device)
    width = starts.shape[1]
    tail = torch.nn.functional.pad(ids, (width, 0), value=-1)[:, ids.shape[1] :]  # (B, L), the row's end
    fits = ((starts == -1) | (starts == tail[:, None])).all(dim=-1) & (lengths <= ids.shape[1])  # (B, N)
    added = torch.where(fits, bias, 0.0).to(scores.dtype)
    return scores + torch.zeros_like(scores).scatter_add_(1, last.expand(len(ids), -1), added)


@dataclass(frozen=True, slots=True)
class PrefixConstrainedLogitsProcessor(LogitsProcessor):
    """Allow only the tokens that `prefix_allowed_tokens_fn(row, ids)` names (De Cao et al., 2020).

    The function gets the prompt's number and the row's ids (T,).

    Raises: ValueError when it names no token; TokenIdError when it names one outside the vocabulary.
    """

    prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]]
    num_beams: int = 1

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """-inf at all other tokens."""
        mask = torch.full_like(scores, -INF)
        for row, ids in enumerate(input_ids):
            prompt = row // self.num_beams
            allowed = self.prefix_allowed_tokens_fn(prompt, ids)
            if len(allowed) == 0:
                raise ValueError(
                    f"prefix_allowed_tokens_fn must name at least one token, but named none for row {prompt} after "
                    f"{len(ids)} tokens. Let it name an eos_token_id where a text may end."
                )
            places = torch.as_tensor(allowed)
            if not 0 <= int(places.min()) <= int(places.max()) < scores.shape[1]:
                raise TokenIdError(
                    f"prefix_allowed_tokens_fn must name token ids from 0 to {scores.shape[1] - 1}; got "
                    f"{places.tolist()} for row {prompt}. Use the tokenizer that belongs to the model."
                )
            mask[row, places.to(scores.device)] = 0
        return scores + mask


# -- the end and the beginning -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MinLengthLogitsProcessor(LogitsProcessor):
    """Forbid the end until the row, prompt included, holds `min_length` tokens."""

    min_length: int
    eos_token_id: TokenIds

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_int("min_length", self.min_length, 0)
        require_ids("eos_token_id", self.eos_token_id)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """-inf at the end tokens while the row is short."""
        return _without(scores, as_ids(self.eos_token_id)) if input_ids.shape[1] < self.min_length else scores


@dataclass(frozen=True, slots=True)
class MinNewTokensLengthLogitsProcessor(LogitsProcessor):
    """Forbid the end until `min_new_tokens` tokens follow the prompt of `prompt_length_to_skip` tokens."""

    prompt_length_to_skip: int
    min_new_tokens: int
    eos_token_id: TokenIds

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_int("prompt_length_to_skip", self.prompt_length_to_skip, 0)
        require_int("min_new_tokens", self.min_new_tokens, 0)
        require_ids("eos_token_id", self.eos_token_id)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """-inf at the end tokens while too few tokens are new."""
        new = input_ids.shape[1] - self.prompt_length_to_skip
        return _without(scores, as_ids(self.eos_token_id)) if new < self.min_new_tokens else scores


@dataclass(frozen=True, slots=True)
class ForcedBOSTokenLogitsProcessor(LogitsProcessor):
    """Make `bos_token_id` the second token of rows that hold one."""

    bos_token_id: int

    def __post_init__(self) -> None:
        """Check the argument."""
        require_ids("forced_bos_token_id", self.bos_token_id)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """0 at the token and -inf elsewhere, at that one step."""
        return _only(scores, as_ids(self.bos_token_id)) if input_ids.shape[1] == 1 else scores


@dataclass(frozen=True, slots=True)
class ForcedEOSTokenLogitsProcessor(LogitsProcessor):
    """Make `eos_token_id` the last token of rows that reach `max_length`."""

    max_length: int
    eos_token_id: TokenIds

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_ids("forced_eos_token_id", self.eos_token_id)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """0 at the tokens and -inf elsewhere, at the last step."""
        return _only(scores, as_ids(self.eos_token_id)) if input_ids.shape[1] == self.max_length - 1 else scores


@dataclass(frozen=True, slots=True)
class ForceTokensLogitsProcessor(LogitsProcessor):
    """Force tokens at places: `force_token_map` holds [place in the row, token id] pairs; an id of None forces none."""

    force_token_map: Sequence[Sequence[int | None]]

    def __post_init__(self) -> None:
        """Check the argument."""
        pairs = self.force_token_map
        if not isinstance(pairs, Sequence) or any(not isinstance(p, Sequence) or len(p) != 2 for p in pairs):
            raise ValueError(f"forced_decoder_ids must be a list of [place, token id] pairs; got {pairs!r}.")

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """0 at the token and -inf elsewhere, at its step."""
        token = next((token for place, token in self.force_token_map if place == input_ids.shape[1]), None)
        return scores if token is None else _only(scores, (token,))


@dataclass(frozen=True, slots=True)
class ExponentialDecayLengthPenalty(LogitsProcessor):
    """Raise the end's score ever more, by `factor`**n, once the row is n tokens past `start` new ones.

    `exponential_decay_length_penalty` is (start, factor); `input_ids_seq_length` is the prompt's length.
    """

    exponential_decay_length_penalty: tuple[int, float]
    eos_token_id: TokenIds
    input_ids_seq_length: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        pair = self.exponential_decay_length_penalty
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise ValueError(f"exponential_decay_length_penalty must be (start, factor); got {pair!r}.")
        require_ids("eos_token_id", self.eos_token_id)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The end's scores, raised by |score| * (factor**n - 1)."""
        start, factor = self.exponential_decay_length_penalty
        past = input_ids.shape[1] - self.input_ids_seq_length - start
        if past <= 0:
            return scores
        index = _index(as_ids(self.eos_token_id), scores.device)
        ends = scores.index_select(1, index)
        raised = ends + ends.abs() * (factor**past - 1)
        return scores.index_copy(1, index, raised.where(ends.isfinite(), ends))  # a forbidden end stays so


@dataclass(frozen=True, slots=True)
class SuppressTokensLogitsProcessor(LogitsProcessor):
    """Forbid `suppress_tokens` at every step."""

    suppress_tokens: Sequence[int]

    def __post_init__(self) -> None:
        """Check the argument."""
        require_ids("suppress_tokens", self.suppress_tokens)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """-inf at the tokens."""
        return _without(scores, as_ids(self.suppress_tokens))


@dataclass(frozen=True, slots=True)
class SuppressTokensAtBeginLogitsProcessor(LogitsProcessor):
    """Forbid `begin_suppress_tokens` where the row holds `begin_index` tokens: at the first new one."""

    begin_suppress_tokens: Sequence[int]
    begin_index: int

    def __post_init__(self) -> None:
        """Check the argument."""
        require_ids("begin_suppress_tokens", self.begin_suppress_tokens)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """-inf at the tokens, at that one step."""
        return (
            _without(scores, as_ids(self.begin_suppress_tokens)) if input_ids.shape[1] == self.begin_index else scores
        )


# -- the numbers themselves ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InfNanRemoveLogitsProcessor(LogitsProcessor):
    """Replace NaN by 0 and infinities by the largest finite numbers, so that sampling cannot fail."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Finite scores."""
        return scores.nan_to_num(nan=0.0)


@dataclass(frozen=True, slots=True)
class LogitNormalization(LogitsWarper):
    """Turn scores into log probabilities."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Their log softmax."""
        return scores.log_softmax(dim=-1)
