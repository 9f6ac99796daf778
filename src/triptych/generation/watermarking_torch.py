"""A watermark in written text, in PyTorch: `WatermarkLogitsProcessor` writes it and `WatermarkDetector` finds it.

A secret seed, made from the tokens before, shuffles the vocabulary in each place; its first part is the green list,
whose scores rise. Text that nobody marked holds as many green tokens as chance gives, so a one-sided test of their
number finds the mark. Kirchenbauer et al., 2023 (arXiv:2301.10226; self-hash: arXiv:2306.04634, algorithm 3). The lists
are those of the later Transformers on a CPU; here they are shuffled on the CPU whatever the model's device.

Shapes: B rows, T tokens, V vocabulary, W context_width, G green tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triptych.generation.logits_torch import LogitsProcessor
from triptych.generation.watermarking import WatermarkingConfig, settings
from triptych.outputs import ModelOutput

_TABLE = 1_000_003  # length of the table of random numbers that self-hash looks tokens up in
_CANDIDATES = 40  # self-hash asks of this many likeliest tokens whether they are green


@dataclass(frozen=True, slots=True)
class WatermarkLogitsProcessor(LogitsProcessor):
    """Add `bias` to the scores of green tokens; see `WatermarkingConfig` for the settings.

    `vocab_size` is that of the scores if not given; where it is less, the scores behind it are left as they are, as are
    rows with fewer than `context_width` tokens. `device` is accepted and plays no part.
    Raises: ValueError for a setting out of its range.
    """

    vocab_size: int | None = None
    device: Any = "cpu"
    greenlist_ratio: float = 0.25
    bias: float = 2.0
    hashing_key: int = 15485863
    seeding_scheme: str = "lefthash"
    context_width: int = 1

    def __post_init__(self) -> None:
        """Check the settings."""
        _config(self)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores, green ones raised."""
        if input_ids.shape[1] < self.context_width:
            return scores
        vocab_size = self.vocab_size or scores.shape[1]
        marks = _Marks(_config(self), vocab_size)
        last = input_ids[:, -self.context_width :].cpu()
        if self.seeding_scheme == "lefthash":
            green = torch.stack([marks.green_list(seed) for seed in marks.seeds(last).tolist()])  # (B, G)
            bias = scores.new_tensor(self.bias)
        else:
            likely = scores[:, :vocab_size].topk(min(_CANDIDATES, vocab_size), dim=1).indices.cpu()  # (B, K)
            known = last[:, None, 1:].expand(-1, likely.shape[1], -1)
            runs = torch.cat([known, likely[..., None]], dim=-1)  # (B, K, W): what would end the text
            green = likely
            bias = self.bias * marks.are_green(runs.flatten(0, 1), likely.flatten()).view_as(likely).to(scores)
        return scores.scatter_add(1, green.to(scores.device), bias.expand(green.shape))


def _config(processor: WatermarkLogitsProcessor) -> WatermarkingConfig:
    names = ("greenlist_ratio", "bias", "hashing_key", "seeding_scheme", "context_width")
    return WatermarkingConfig(**{name: getattr(processor, name) for name in names})


def watermark(given: Any) -> WatermarkLogitsProcessor:
    """The transform that a `watermarking_config`, an object or a dict, asks for.

    Raises: TypeError or ValueError for settings that are none.
    """
    return WatermarkLogitsProcessor(**settings(given).to_dict())


@dataclass(frozen=True)
class _Marks:
    """Seeds and green lists of one set of settings."""

    config: WatermarkingConfig
    vocab_size: int

    @property
    def green_count(self) -> int:
        """How many tokens are green in each place."""
        return int(self.vocab_size * self.config.greenlist_ratio)

    def seeds(self, runs: Tensor) -> Tensor:
        """The seed of each run of tokens (N, W): (N,). Products of self-hash wrap around at 64 bits."""
        key = self.config.hashing_key
        if self.config.seeding_scheme == "lefthash":
            return key * runs[:, -1]
        table = _table(key)
        each, last = table[runs % _TABLE] + 1, table[runs[:, -1:] % _TABLE] + 1
        return (key * each * last).amin(dim=1)

    def green_list(self, seed: int) -> Tensor:
        """The tokens that a seed makes green, (G,)."""
        return _green_list(seed, self.vocab_size, self.green_count)

    def are_green(self, runs: Tensor, tokens: Tensor) -> Tensor:
        """Whether each token (N,) is green where the run of its row (N, W) makes the seed; (N,) bool.

        Each seed's list is shuffled once.
        """
        green = torch.zeros(len(tokens), dtype=torch.bool)
        seeds, which = torch.unique(self.seeds(runs), return_inverse=True)
        order = which.argsort(stable=True)
        for seed, places in zip(seeds.tolist(), order.split(which.bincount().tolist()), strict=True):
            among = torch.zeros(self.vocab_size, dtype=torch.bool).index_fill_(0, self.green_list(seed), True)
            green[places] = among[tokens[places]]
        return green


@lru_cache(maxsize=4)
def _table(key: int) -> Tensor:
    return torch.randperm(_TABLE, generator=torch.Generator().manual_seed(key))


@lru_cache(maxsize=64)
def _green_list(seed: int, vocab_size: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed % (2**64 - 1))
    return torch.randperm(vocab_size, generator=generator)[:count].clone()  # not all of it is kept


# -- finding it ------------------------------------------------------------------------------------------------------


@dataclass
class WatermarkDetectorOutput(ModelOutput):
    """The test of each text, NumPy arrays (B,).

    `z_score` is how many standard deviations the green tokens exceed chance by, `p_value` the chance of that many or
    more in a text that was not marked, `prediction` whether the score is above the threshold, `confidence` 1 - p.
    """

    num_tokens_scored: Any = None
    num_green_tokens: Any = None
    green_fraction: Any = None
    z_score: Any = None
    p_value: Any = None
    prediction: Any = None
    confidence: Any = None


class WatermarkDetector:
    """Tells whether texts were written with a watermark, from their ids and the settings.

    `model_config` gives the vocabulary's size and the bos id. `ignore_repeated_ngrams` counts each run of tokens once,
    so that a text that repeats itself is no false alarm. `device` and `max_cache_size` are accepted and play no part.

    Raises: ValueError or TypeError for settings that are none.
    """

    def __init__(
        self,
        model_config: Any,
        device: Any = "cpu",
        watermarking_config: WatermarkingConfig | Mapping[str, Any] | None = None,
        ignore_repeated_ngrams: bool = False,
        max_cache_size: int = 128,
    ) -> None:
        config = settings({} if watermarking_config is None else watermarking_config)
        self._marks = _Marks(config, model_config.vocab_size)
        self._bos = getattr(model_config, "bos_token_id", None)
        self._count_once = ignore_repeated_ngrams

    def __call__(self, input_ids: Any, z_threshold: float = 3.0, return_dict: bool = False) -> Any:
        """Test each text of `input_ids` (B, T); a bos in front does not count. Leave prompts out where you know them.

        Returns: bools (B,), or with `return_dict` a `WatermarkDetectorOutput`.
        Raises: ValueError for ids of another shape or outside the vocabulary, and for a text too short to score.
        """
        ids = torch.as_tensor(input_ids).cpu()
        if ids.dim() != 2:
            raise ValueError(f"Texts to test must have shape (batch, length); got {tuple(ids.shape)}.")
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self._marks.vocab_size:
            raise ValueError(f"Texts to test must hold ids from 0 to {self._marks.vocab_size - 1}, as the model has.")
        counts = np.array([self._counts(row) for row in ids], dtype=float).reshape(-1, 2)
        scored, green = counts[:, 0], counts[:, 1]
        ratio = self._marks.config.greenlist_ratio
        z = (green - ratio * scored) / np.sqrt(scored * ratio * (1 - ratio))
        prediction = z > z_threshold
        if not return_dict:
            return prediction
        p = np.array([NormalDist().cdf(-value) for value in z])
        return WatermarkDetectorOutput(
            num_tokens_scored=scored,
            num_green_tokens=green,
            green_fraction=green / scored,
            z_score=z,
            p_value=p,
            prediction=prediction,
            confidence=1 - p,
        )

    def _counts(self, row: Tensor) -> tuple[int, int]:
        """How many runs of tokens in a text (T,) count, and how many of these end in a green token."""
        config = self._marks.config
        row = row[1:] if len(row) and int(row[0]) == self._bos else row
        behind = int(config.seeding_scheme == "lefthash")  # left-hash: the run makes the list of the token behind it
        width = config.context_width + behind
        if len(row) < width:
            raise ValueError(
                f"A text needs at least {width} tokens to be tested with these settings; got {len(row)}. "
                "Test a longer one."
            )
        runs = row.unfold(0, width, 1)
        if self._count_once:
            runs = torch.unique(runs, dim=0)
        return len(runs), int(self._marks.are_green(runs[:, : config.context_width], runs[:, -1]).sum())
