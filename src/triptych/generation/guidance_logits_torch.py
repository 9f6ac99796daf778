"""Classifier-free guidance as a logits transform, for lists of transforms of one's own.

`generate(guidance_scale=...)` guides without it, in its feed, where both prompts share forward passes.

Shapes: B rows, T tokens so far, U unconditional prompts, M their length, V vocabulary.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from triptych.generation.checks import require_number
from triptych.generation.logits_torch import LogitsProcessor

if TYPE_CHECKING:
    from triptych.modeling_torch import PreTrainedModel


class UnbatchedClassifierFreeGuidanceLogitsProcessor(LogitsProcessor):
    """Lead away from what the model would write after `unconditional_ids` (Sanchez et al., 2023).

    Scores become log-probabilities u + guidance_scale * (c - u), where u follow the new tokens behind
    `unconditional_ids` (U, M), by default the last token of each prompt; U divides the number of rows. The model is run
    once more for each token; with `use_cache` on that token alone, also where rows change their places, as beams do.

    Raises: ValueError unless `guidance_scale` is a number above 0.
    """

    __slots__ = ("_cache", "_seen", "_start", "guidance_scale", "model", "prompts", "use_cache")

    def __init__(
        self,
        guidance_scale: float,
        model: "PreTrainedModel",
        unconditional_ids: Tensor | None = None,
        unconditional_attention_mask: Tensor | None = None,
        use_cache: bool | None = True,
    ) -> None:
        require_number("guidance_scale", guidance_scale, above=0.0)
        self.guidance_scale, self.model, self.use_cache = guidance_scale, model, use_cache
        self.prompts = (unconditional_ids, unconditional_attention_mask)
        self._seen: Tensor | None = None  # the rows (B, T) of the call before
        self._start = 0  # T at the first call of a text
        self._cache: Any = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The guided log-probabilities (B, V)."""
        conditional = scores.log_softmax(dim=-1)
        if self.guidance_scale == 1:
            return conditional
        unconditional = self._next_scores(input_ids).log_softmax(dim=-1)
        return self.guidance_scale * (conditional - unconditional) + unconditional

    def _next_scores(self, ids: Tensor) -> Tensor:
        rows = self._followed(ids)
        if rows is None:
            self._start, self._cache = ids.shape[1], None
        elif self._cache is not None and not torch.equal(rows, torch.arange(len(ids), device=ids.device)):
            self._cache = self._cache.reorder(rows)
        self._seen = ids.clone()
        prompts, mask = self._unconditional(ids)
        behind = torch.cat((prompts, ids[:, self._start :]), dim=1)
        mask = torch.cat((mask, mask.new_ones(len(ids), ids.shape[1] - self._start)), dim=1)
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        new = slice(None) if self._cache is None else slice(-1, None)
        with torch.no_grad():
            cache = self._cache
            if cache is None and self.use_cache and self.model.decodes_with_cache:
                cache = self.model.new_cache(len(ids), behind.shape[1])
            out = self.model.next_token_logits(
                behind[:, new], cache=cache, attention_mask=mask, position_ids=positions[:, new]
            )
        self._cache = out.cache
        return out.logits

    def _unconditional(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        prompts, mask = self.prompts
        if prompts is None:
            prompts = ids[:, self._start - 1 : self._start]
        mask = torch.ones_like(prompts) if mask is None else mask.long()
        if len(ids) % len(prompts):
            raise ValueError(
                f"Each of the {len(ids)} rows needs an unconditional prompt; got {len(prompts)}. "
                "Pass as many unconditional_ids as prompts, or one for all."
            )
        times = len(ids) // len(prompts)
        return prompts.repeat_interleave(times, dim=0), mask.repeat_interleave(times, dim=0)

    def _followed(self, ids: Tensor) -> Tensor | None:
        """Which row of the call before each row continues, (B,); None where a text begins."""
        seen = self._seen
        if seen is None or len(seen) != len(ids) or seen.shape[1] + 1 != ids.shape[1]:
            return None
        same = (ids[:, None, :-1] == seen).all(dim=-1)  # (B, B)
        if self.prompts[0] is not None:  # rows behind other unconditional prompts are others, whatever they hold
            prompt = torch.arange(len(ids), device=ids.device) * len(self.prompts[0]) // len(ids)
            same &= prompt[:, None] == prompt
        if not bool(same.any(dim=1).all()):
            return None
        # itself where it can be, so that nothing moves that need not
        return (same.long() + torch.eye(len(ids), dtype=torch.long, device=ids.device) * same).argmax(dim=1)
