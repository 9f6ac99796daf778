"""Classifier-free guidance in PyTorch (Sanchez et al., 2023, "Stay on topic with Classifier-Free Guidance").

The same new tokens follow the prompt and a negative prompt; scores move from the second's towards the first's, and
beyond. Once both prompts are read, their rows go through the model together.

Shapes: B rows, N ids of the prompt, T ids so far, V vocabulary, K alternatives.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from triptych.errors import SequenceTooLongError
from triptych.generation.configuration import GenerationConfig
from triptych.generation.feed_torch import Feed
from triptych.generation.prompt_torch import Prompt
from triptych.runtime.cache import KeyValueCache

if TYPE_CHECKING:
    from triptych.modeling_torch import PreTrainedModel
    from triptych.runtime.preparing import NextToken


class GuidedFeed(Feed):
    """A `Feed` whose logits are guided: log-probabilities u + guidance_scale * (c - u).

    c are those after the prompt and u those after the negative prompt. What else it gives out is the prompt's.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        prompt: Prompt,
        negative: Prompt,
        room: int,
        options: GenerationConfig,
        **how: Any,
    ) -> None:
        super().__init__(model, prompt, room, options, **how | {"whole": True})
        self.scale: float = options.guidance_scale  # type: ignore[assignment]  # asked for only with one
        self.negative: Feed | None = Feed(model, negative, room, options, **how | {"whole": True})
        self.negative_ids = negative.ids
        self.padded = 0  # positions of padding before the prompt, where the negative one is longer

    def step(self, ids: Tensor, last: int | None = None) -> "NextToken":
        """The next token's guided logits; see `Feed.step`."""
        if self.negative is None:
            return self._halves(super().step(ids.repeat(2, 1), last))
        times = len(ids) // len(self.negative_ids)
        behind = torch.cat((self.negative_ids.repeat_interleave(times, dim=0), ids[:, self._length :]), dim=1)
        out = self._guided(super().step(ids, last), self.negative.step(behind, last).logits)
        if self.cached and self.token_types is None:  # the negative prompt's tokens have no types
            self._join(self.negative)
        return out

    def follow(self, parents: list[int]) -> None:
        """Let each row continue another of its prompt; see `Feed.follow`."""
        if self.negative is not None:
            super().follow(parents)
            self.negative.follow(parents)
        else:
            super().follow([*parents, *(len(parents) + parent for parent in parents)])

    def rewind(self, length: int) -> None:
        """Take back what was fed behind the first `length` ids."""
        super().rewind(length)
        if self.negative is not None:
            self.negative.rewind(length - self._length + self.negative_ids.shape[1])

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Guided logits are log-probabilities already, and as documented are not normalised again."""
        return logits

    def branch(self, candidates: Tensor, *, one_by_one: bool = False) -> "NextToken":
        """What would follow each of `candidates` (B, K), guided; see `Feed.branch`."""
        if self.negative is None:
            return self._halves(super().branch(candidates.repeat(2, 1), one_by_one=one_by_one))
        out = super().branch(candidates, one_by_one=one_by_one)
        return self._guided(out, self.negative.branch(candidates, one_by_one=one_by_one).logits)

    def in_order(self) -> Any:
        """The cache of the prompt's rows."""
        cache = super().in_order()
        if cache is None or self.negative is not None:
            return cache
        half = len(cache[0][0]) // 2
        return KeyValueCache([(key[:half, :, self.padded :], value[:half, :, self.padded :]) for key, value in cache])

    def _keep(self, chosen: Tensor) -> None:
        if self.negative is None:
            super()._keep(chosen.repeat(2))
        else:
            super()._keep(chosen)
            self.negative._keep(chosen)

    @property
    def _length(self) -> int:
        return self.prompt.ids.shape[1]

    def _halves(self, out: "NextToken") -> "NextToken":
        rows = len(out.logits) // 2
        hidden, weights = out.hidden_states, out.attentions
        own = out._replace(
            logits=out.logits[:rows],
            hidden_states=None if hidden is None else tuple(x[:rows] for x in hidden),
            attentions=None if weights is None else tuple(x[:rows, ..., self.padded :] for x in weights),
        )
        return self._guided(own, out.logits[rows:])

    def _guided(self, out: "NextToken", unguided: Tensor) -> "NextToken":
        u = unguided.log_softmax(dim=-1)
        return out._replace(logits=self.scale * (out.logits.log_softmax(dim=-1) - u) + u)

    def _join(self, other: Feed) -> None:
        """Put the negative prompt's rows behind the prompt's: from now on one forward pass serves both."""
        self.negative = None
        widths = [feed.seen for feed in (self, other)]
        seen = max(widths)
        pads = [seen - width for width in widths]
        masks = [_filled(feed, pad) for feed, pad in zip((self, other), pads, strict=True)]
        places = [_places(feed, pad) for feed, pad in zip((self, other), pads, strict=True)]
        if any(pads) or self.mask is not None or other.mask is not None:
            self.mask = torch.cat(masks)
        if any(pads) or self.positions is not None or other.positions is not None:
            self.positions = torch.cat(places)
        room = masks[0].shape[1] - seen
        self.cache = self.cache.beside(other.cache, seen + room + self.ahead)
        self.padded = pads[0]
        self.seen, self.offset = seen, self.offset + pads[0]


def _filled(feed: Feed, pad: int) -> Tensor:
    """The mask of a feed whose first `pad` positions are padding."""
    mask = feed.mask if feed.mask is not None else feed.prompt.ids.new_ones((len(feed.cache[0][0]), feed.full))
    return F.pad(mask, (pad, 0))


def _places(feed: Feed, pad: int) -> Tensor:
    """The positions of a feed behind `pad` of padding."""
    rows, device = len(feed.cache[0][0]), feed.prompt.ids.device
    places = feed.positions if feed.positions is not None else torch.arange(feed.full, device=device).expand(rows, -1)
    return F.pad(places, (pad, 0), value=1)


def guided_feed(
    model: "PreTrainedModel",
    prompt: Prompt,
    negative: Prompt | None,
    room: int,
    options: GenerationConfig,
    **how: Any,
) -> Feed:
    """The feed of a call: guided where there is a negative prompt.

    Raises: SequenceTooLongError when the new tokens do not fit behind that.
    """
    if negative is None:
        return Feed(model, prompt, room, options, **how)
    positions = model.max_positions
    if positions is not None and negative.width + room - 1 > positions:
        raise SequenceTooLongError(
            f"The model has {positions} positions but the negative prompt of {negative.width} tokens and {room} new "
            f"ones need {negative.width + room - 1}. Shorten negative_prompt_ids or lower max_new_tokens."
        )
    return GuidedFeed(model, prompt, negative, room, options, **how)
