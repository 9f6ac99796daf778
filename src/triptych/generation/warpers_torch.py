"""Logits warpers in PyTorch: the transforms that reshape the distribution for sampling.

Names and arguments are those of the documented version: `filter_value` replaces the score of a token that is out, and
at least `min_tokens_to_keep` tokens stay in. Shapes as in `logits_torch.py`: (B, T), (B, V) -> (B, V).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.generation.checks import INF, require_int, require_open_share, require_share, require_temperature
from triptych.generation.logits_torch import LogitsWarper


@dataclass(frozen=True, slots=True)
class TemperatureLogitsWarper(LogitsWarper):
    """Divide the scores by `temperature`: below 1 sharpens the distribution, above 1 flattens it."""

    temperature: float

    def __post_init__(self) -> None:
        """Check the argument."""
        require_temperature(self.temperature)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scaled scores."""
        return scores / self.temperature


@dataclass(frozen=True, slots=True)
class TopKLogitsWarper(LogitsWarper):
    """Keep the `top_k` likeliest tokens, and those as likely as the last of them (Fan et al., 2018)."""

    top_k: int
    filter_value: float = -INF
    min_tokens_to_keep: int = 1

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_int("top_k", self.top_k, 1)
        require_int("min_tokens_to_keep", self.min_tokens_to_keep, 1)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores, `filter_value` at tokens that are out."""
        kept = min(max(self.top_k, self.min_tokens_to_keep), scores.shape[-1])
        return scores.masked_fill(scores < _least_of_top(scores, kept), self.filter_value)


def _least_of_top(scores: Tensor, count: int) -> Tensor:
    return scores.topk(count, dim=-1).values[:, -1:]


# Below this share of the vocabulary left in, sorting only what is left is worth counting it.
_FEW = 8


@dataclass(frozen=True, slots=True)
class TopPLogitsWarper(LogitsWarper):
    """Keep the smallest set of tokens whose probability reaches `top_p` (Holtzman et al., 2020)."""

    top_p: float
    filter_value: float = -INF
    min_tokens_to_keep: int = 1

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_share("top_p", self.top_p)
        require_int("min_tokens_to_keep", self.min_tokens_to_keep, 1)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores, `filter_value` at tokens that are out."""
        order, ascending = _ascending(scores, self.min_tokens_to_keep)
        out = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - self.top_p
        out[:, -self.min_tokens_to_keep :] = False
        # Tokens that were not sorted are out already.
        removed = (scores == -INF) if order.shape != scores.shape else torch.zeros_like(scores, dtype=torch.bool)
        return scores.masked_fill(removed.scatter(1, order, out), self.filter_value)


def _ascending(scores: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Places and values of the scores in ascending order; of the finite ones only, where these are few.

    Sorting a vocabulary costs as much as a small layer, and after top-k nearly all of it is -inf. Which of two equal
    scores comes first depends on the whole array, so where there are any, the whole is sorted.
    """
    if scores.device.type == "cpu":  # elsewhere counting would make the host wait
        left = int((scores > -INF).sum(dim=-1).max())
        count = max(left, least)
        if count * _FEW < scores.shape[-1]:
            values, places = (x.flip(-1) for x in scores.topk(count, dim=-1))
            if not bool(((values[:, 1:] == values[:, :-1]) & (values[:, 1:] > -INF)).any()):
                return places, values
    values, places = scores.sort(dim=-1)
    return places, values


@dataclass(frozen=True, slots=True)
class MinPLogitsWarper(LogitsWarper):
    """Keep the tokens at least `min_p` times as likely as the likeliest (Nguyen et al., 2024, arXiv:2407.01082)."""

    min_p: float
    filter_value: float = -INF
    min_tokens_to_keep: int = 1

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_share("min_p", self.min_p)
        require_int("min_tokens_to_keep", self.min_tokens_to_keep, 1)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores, `filter_value` at tokens that are out."""
        p = scores.softmax(dim=-1)
        least = self.min_p * p.amax(dim=-1, keepdim=True)
        return _cut(scores, p < least, self.filter_value, self.min_tokens_to_keep)


@dataclass(frozen=True, slots=True)
class TypicalLogitsWarper(LogitsWarper):
    """Keep the tokens of nearly the expected surprise, up to the probability `mass` (Meister et al., 2022)."""

    mass: float = 0.9
    filter_value: float = -INF
    min_tokens_to_keep: int = 1

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_open_share("typical_p", self.mass)
        require_int("min_tokens_to_keep", self.min_tokens_to_keep, 1)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores, `filter_value` at tokens that are out."""
        log_p = scores.log_softmax(dim=-1)
        entropy = -(log_p * log_p.exp()).nansum(dim=-1, keepdim=True)
        distance, order = (-log_p - entropy).abs().sort(dim=-1)
        reached = scores.gather(1, order).softmax(dim=-1).cumsum(dim=-1)
        last = (reached < self.mass).sum(dim=-1, keepdim=True).clamp(max=scores.shape[-1] - 1)
        out = distance > distance.gather(1, last)
        out[:, : self.min_tokens_to_keep] = False
        return scores.masked_fill(out.scatter(1, order, out), self.filter_value)


@dataclass(frozen=True, slots=True)
class EpsilonLogitsWarper(LogitsWarper):
    """Keep the tokens whose probability is at least `epsilon` (Hewitt et al., 2022)."""

    epsilon: float
    filter_value: float = -INF
    min_tokens_to_keep: int = 1

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_open_share("epsilon_cutoff", self.epsilon)
        require_int("min_tokens_to_keep", self.min_tokens_to_keep, 1)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores, `filter_value` at tokens that are out."""
        return _cut(scores, scores.softmax(dim=-1) < self.epsilon, self.filter_value, self.min_tokens_to_keep)


@dataclass(frozen=True, slots=True)
class EtaLogitsWarper(LogitsWarper):
    """Keep the tokens of probability min(epsilon, sqrt(epsilon) * exp(-entropy)) or more (Hewitt et al., 2022)."""

    epsilon: float
    filter_value: float = -INF
    min_tokens_to_keep: int = 1

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_open_share("eta_cutoff", self.epsilon)
        require_int("min_tokens_to_keep", self.min_tokens_to_keep, 1)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores, `filter_value` at tokens that are out."""
        log_p = scores.log_softmax(dim=-1)
        p = log_p.exp()
        entropy = -(p * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(dim=-1, keepdim=True)
        eta = (self.epsilon**0.5 * (-entropy).exp()).clamp(max=self.epsilon)
        return _cut(scores, p < eta, self.filter_value, self.min_tokens_to_keep)


def _cut(scores: Tensor, out: Tensor, filter_value: float, least: int) -> Tensor:
    kept = min(least, scores.shape[-1])
    return scores.masked_fill(out & (scores < _least_of_top(scores, kept)), filter_value)
