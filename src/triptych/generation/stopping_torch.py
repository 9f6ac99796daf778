"""Stopping criteria in PyTorch: when a generation, or one of its rows, is over.

A criterion maps the ids so far (B, T) and the scores of all steps (a tuple, or None unless `output_scores`) to a bool
for the whole batch, as documented, or to a bool tensor (B,) that ends rows one by one.
"""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from triptych.generation.checks import require_int, require_number


class StoppingCriteria:
    """Base of the criteria; write your own by overriding `__call__`."""

    __slots__ = ()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> bool | Tensor:  # (B, T), … -> bool or (B,)
        """Whether to stop."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(input_ids, scores).")


@dataclass(frozen=True, slots=True)
class MaxLengthCriteria(StoppingCriteria):
    """Stop once the rows, prompt included, hold `max_length` tokens.

    `max_position_embeddings` only serves a warning, when the text grows past it.
    """

    max_length: int
    max_position_embeddings: int | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> bool:
        """Whether the rows are full."""
        length = input_ids.shape[-1]
        if self.max_position_embeddings is not None and self.max_position_embeddings < length < self.max_length:
            warnings.warn(
                f"The text has {length} tokens, more than the model's {self.max_position_embeddings} positions.",
                stacklevel=2,
            )
        return length >= self.max_length


@dataclass(frozen=True, slots=True)
class MaxTimeCriteria(StoppingCriteria):
    """Stop `max_time` seconds after `initial_timestamp`, a `time.time()`; None is the moment the criterion is made."""

    max_time: float
    initial_timestamp: float | None = None

    def __post_init__(self) -> None:
        """Check the arguments and start the clock."""
        require_number("max_time", self.max_time, least=0.0)
        if self.initial_timestamp is None:
            object.__setattr__(self, "initial_timestamp", time.time())

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> bool:
        """Whether the time is up."""
        return time.time() - (self.initial_timestamp or 0.0) > self.max_time


@dataclass(frozen=True, slots=True)
class StopStringCriteria(StoppingCriteria):
    """End a row once the text after its first `prompt_length` tokens holds one of `stop_strings`.

    The text is decoded, so a stop string is found however it was cut into tokens; the row keeps the whole token that
    completed it. Only the end of the text is looked at, so the work per token does not grow.

    Raises: ValueError unless `stop_strings` is a text or a list of texts, none empty.
    """

    tokenizer: Any
    stop_strings: str | Sequence[str]
    prompt_length: int = 0
    _texts: tuple[str, ...] = field(init=False, repr=False)
    _window: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the arguments."""
        texts = (self.stop_strings,) if isinstance(self.stop_strings, str) else tuple(self.stop_strings)
        if not texts or not all(isinstance(text, str) and text for text in texts):
            raise ValueError(f"stop_strings must be a text or a list of texts, none empty; got {self.stop_strings!r}.")
        require_int("prompt_length", self.prompt_length, 0)
        object.__setattr__(self, "_texts", texts)
        # A token may be as little as one byte of UTF-8. Eight more are context for what joins neighbouring tokens.
        object.__setattr__(self, "_window", 8 + max(len(text.encode()) for text in texts))

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which rows hold a stop string, (B,)."""
        start = max(self.prompt_length, input_ids.shape[1] - self._window)
        texts = [self.tokenizer.decode(ids) for ids in input_ids[:, start:].tolist()]
        return torch.tensor([any(stop in text for stop in self._texts) for text in texts], device=input_ids.device)


class StoppingCriteriaList(list[Any]):
    """Criteria of which any one is enough; also a criterion."""

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> bool | Tensor:
        """True when a criterion stops the batch; else the rows to end, (B,), where a criterion tells; else False."""
        rows: Tensor | None = None
        for criterion in self:
            verdict = criterion(input_ids, scores, **kwargs)
            if isinstance(verdict, Tensor) and verdict.dim() > 0:
                rows = verdict if rows is None else rows | verdict
            elif verdict:
                return True
        return False if rows is None else rows

    @property
    def max_length(self) -> int | None:
        """The limit of the `MaxLengthCriteria` among them."""
        return next((c.max_length for c in self if isinstance(c, MaxLengthCriteria)), None)
