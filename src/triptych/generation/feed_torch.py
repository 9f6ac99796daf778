"""`Feed`: the model's side of decoding. It turns the ids so far into the next token's logits.

Everything that grows with the text (mask, positions, token types, cache) has its full size from the start, and a step
takes views. Shapes: B rows, N ids of the prompt, W its width in positions, T ids so far.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from triptych.generation.configuration import GenerationConfig
from triptych.generation.prompt_torch import Prompt

if TYPE_CHECKING:
    from triptych.modeling_torch import NextToken, PreTrainedModel


class Feed:
    """Feeds a model the prompt once and then each new token; without a cache, everything every time.

    With several sequences per prompt the prompt is still fed once, and what it left is repeated.
    """

    def __init__(self, model: "PreTrainedModel", prompt: Prompt, room: int, options: GenerationConfig) -> None:
        self.model = model
        self.cached = bool(options.use_cache) and model.decodes_with_cache
        self.copies = options.num_return_sequences if self.cached else 1  # still to be made
        self.prompt = prompt if self.cached else prompt.repeated(options.num_return_sequences)
        self.mask = _extended_mask(self.prompt.mask, room)
        self.positions = _extended_positions(self.prompt.positions, self.mask, room)
        self.token_types = _extended(self.prompt.token_types, room)
        self.always: dict[str, Any] = {}  # inputs of every step
        self.once = dict(self.prompt.extras)  # inputs of the step that sees the prompt
        if "head_mask" in self.once:
            self.always["head_mask"] = self.once.pop("head_mask")
        if options.return_dict_in_generate:
            self.always |= {name: True for name in _TRACES if getattr(options, name)}
        self.seen = 0
        self.cache: Any = None
        if self.cached:
            capacity = prompt.width + room - 1
            # A cache that is handed out, or shown to a forward of the user's own, is the documented one.
            windowed = model.forward_is_published and not options.return_dict_in_generate
            fresh = prompt.past is None
            self.cache = model.new_cache(len(prompt.ids), capacity, windowed) if fresh else prompt.past
            self.seen = 0 if prompt.past is None else prompt.past[0][0].shape[2]

    def step(self, ids: Tensor) -> "NextToken":
        """The next token's logits (B, V) after `ids` (B, T), which continue those of the step before."""
        prompt = self.prompt
        if self.copies > 1:
            ids = prompt.ids  # once; the copies come after
        total = prompt.width + ids.shape[1] - prompt.ids.shape[1]
        new = slice(self.seen, total)
        inputs = self.always | (self.once if self.seen < prompt.width else {})
        if self.mask is not None:
            inputs["attention_mask"] = self.mask[:, :total]
        if self.positions is not None:
            inputs["position_ids"] = self.positions[:, new]
        if self.token_types is not None:
            inputs["token_type_ids"] = self.token_types[:, new]
        if prompt.embeds is not None and self.seen == 0:
            inputs["inputs_embeds"] = self._embedded(ids[:, prompt.ids.shape[1] :])
            out = self.model.next_token_logits(None, cache=self.cache, **inputs)
        else:
            out = self.model.next_token_logits(ids[:, ids.shape[1] - total + self.seen :], cache=self.cache, **inputs)
        if self.cached:
            self.cache, self.seen = out.cache, total
        return self._copied(out) if self.copies > 1 else out

    def _embedded(self, new_ids: Tensor) -> Tensor:
        embeds = self.prompt.embeds
        if new_ids.shape[1] == 0 or embeds is None:
            return embeds  # type: ignore[return-value]  # asked for only with embeddings
        return torch.cat((embeds, self.model.get_input_embeddings()(new_ids).to(embeds.dtype)), dim=1)

    def _copied(self, out: "NextToken") -> "NextToken":
        """Repeat what the prompt left for each of its sequences."""
        rows = torch.arange(len(out.logits), device=out.logits.device).repeat_interleave(self.copies)
        self.copies = 1

        def pick(value: Tensor) -> Tensor:
            return value.index_select(0, rows)

        self.mask, self.positions, self.token_types = (
            value if value is None else pick(value) for value in (self.mask, self.positions, self.token_types)
        )
        self.cache = out.cache.reorder(rows) if out.cache is not None else None
        return out._replace(
            logits=pick(out.logits),
            cache=self.cache,
            hidden_states=None if out.hidden_states is None else tuple(map(pick, out.hidden_states)),
            attentions=None if out.attentions is None else tuple(map(pick, out.attentions)),
        )


_TRACES = ("output_attentions", "output_hidden_states")


def _extended_mask(mask: Tensor | None, room: int) -> Tensor | None:
    return None if mask is None else torch.nn.functional.pad(mask, (0, room), value=1)


def _extended_positions(given: Tensor | None, mask: Tensor | None, room: int) -> Tensor | None:
    """Positions (B, W + room): the user's, counted on, or those that the mask tells; padding gets any, here 1."""
    if given is not None:
        return torch.cat((given, given[:, -1:] + torch.arange(1, room + 1, device=given.device)), dim=1)
    if mask is None:
        return None
    return (mask.cumsum(dim=-1) - 1).masked_fill(mask == 0, 1)


def _extended(values: Tensor | None, room: int) -> Tensor | None:
    """Values (B, W + room): the last column goes on."""
    return None if values is None else torch.cat((values, values[:, -1:].expand(-1, room)), dim=1)
