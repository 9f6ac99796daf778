"""Prompts in PyTorch: what `generate` continues, read from its arguments and checked before any work.

Shapes: B rows, N ids of the prompt, W its width in positions (N, or the length of `inputs_embeds`), C hidden_size.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from triptych.errors import TokenIdError
from triptych.generation.checks import require_number
from triptych.generation.configuration import GenerationConfig
from triptych.generation.options import Request, flat, notice


@dataclass(frozen=True)
class Prompt:
    """`ids` (B, N); `embeds` (B, W, C) where they stand for the ids; `mask` (B, W), None where nothing is padding.

    `positions` and `token_types` (B, W) are those the user gave; `past` is a cache that holds the first tokens;
    `extras` are the model's other inputs.
    """

    ids: Tensor
    embeds: Tensor | None = None
    mask: Tensor | None = None
    positions: Tensor | None = None
    token_types: Tensor | None = None
    past: Any = None
    extras: dict[str, Any] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """W, how many positions the prompt takes."""
        return self.ids.shape[1] if self.embeds is None else self.embeds.shape[1]

    def repeated(self, times: int) -> "Prompt":
        """Each row `times` times, one after the other."""
        rows = torch.arange(len(self.ids), device=self.ids.device).repeat_interleave(times)
        chosen = {name: value.index_select(0, rows) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(
            self, **chosen, extras={name: _rows_of(value, rows, name) for name, value in self.extras.items()}
        )


def _rows_of(value: Any, rows: Tensor, name: str) -> Any:
    if isinstance(value, Tensor) and name != "head_mask":  # the one input whose first axis is not the batch
        return value.index_select(0, rows.to(value.device))
    return [value[row] for row in rows.tolist()] if isinstance(value, list | tuple) else value


def read_prompt(model: Any, ids: Any, request: Request) -> Prompt:
    """The prompt in the arguments: ids, embeddings, both, or none (then bos).

    Raises: ValueError or TypeError for wrong shapes and empty rows, TokenIdError for ids outside the vocabulary.
    """
    given = dict(request.model_inputs)
    embeds, mask = given.pop("inputs_embeds", None), given.pop("attention_mask", None)
    positions, token_types = given.pop("position_ids", None), given.pop("token_type_ids", None)
    past = given.pop("past_key_values", None) or None
    for name, value in {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions}.items():
        if not isinstance(value, Tensor | None):
            raise TypeError(f"{name} must be a tensor; got {type(value).__name__}. Pass torch.tensor(...).")
    if ids is None:
        ids = _start(request.options.bos_token_id, 1 if embeds is None else len(embeds))
    _check_ids(ids, model.config.vocab_size)
    # a model whose first weights are kept on disk brings inputs to where they are used
    ids = ids.to(device=ids.device if model.device.type == "meta" else model.device, dtype=torch.long)
    rows, width = len(ids), ids.shape[1] if embeds is None else embeds.shape[1]
    size = model.config.hidden_size
    if embeds is not None and (embeds.dim() != 3 or len(embeds) != rows or not width or embeds.shape[2] != size):
        raise ValueError(
            f"inputs_embeds must have shape ({rows}, length, hidden_size={size}); got {tuple(embeds.shape)}."
        )
    if mask is None:
        mask = _default_mask(ids, request) if embeds is None else None
    mask = _checked_mask(mask, rows, width)
    for name, value in (("position_ids", positions), ("token_type_ids", token_types)):
        if value is not None and tuple(value.shape) not in ((rows, width), (1, width)):
            raise ValueError(f"{name} must have the prompt's shape {(rows, width)}; got {tuple(value.shape)}.")
    if past is not None:
        _check_past(model.config, past, rows, width, embeds)
    if model.max_positions is None:  # else what does not fit is refused
        _tell_of_untrained(width, model.trained_positions)
    return Prompt(
        ids=ids,
        embeds=embeds,
        mask=mask,
        positions=None if positions is None else positions.expand(rows, width),
        token_types=None if token_types is None else token_types.expand(rows, width),
        past=past,
        extras=given,
    )


def read_negative_prompt(model: Any, prompt: Prompt, options: GenerationConfig, ids: Any, mask: Any) -> Prompt | None:
    """The prompt that guidance leads away from: a row for each of `prompt`, or one for all; else each row's last token.

    None without guidance. Raises: as `read_prompt`; ValueError for another number of rows.
    """
    if options.guidance_scale in (None, 1):
        return None
    require_number("guidance_scale", options.guidance_scale, above=0.0)
    rows = len(prompt.ids)
    if ids is None:
        if mask is not None:
            raise ValueError("negative_prompt_attention_mask masks negative_prompt_ids, which are missing. Pass both.")
        ids = prompt.ids[:, -1:]
    _check_ids(ids, model.config.vocab_size, "negative_prompt_ids")
    if len(ids) not in (1, rows):
        raise ValueError(
            f"negative_prompt_ids must have a row for each of the prompt's {rows}, or one for all; got {len(ids)}."
        )
    mask = _checked_mask(mask, len(ids), ids.shape[1], "negative_prompt_attention_mask")
    negative = Prompt(ids.to(prompt.ids), mask=mask, extras=_head_mask(prompt.extras))
    return negative if len(ids) == rows else negative.repeated(rows)


def _head_mask(extras: dict[str, Any]) -> dict[str, Any]:
    return {"head_mask": extras["head_mask"]} if "head_mask" in extras else {}


def _start(bos_token_id: int | None, rows: int) -> Tensor:
    if bos_token_id is None:
        raise ValueError(
            "Without a prompt, generation starts from bos_token_id, which is not set. Pass one of the two."
        )
    return torch.full((rows, 1), bos_token_id, dtype=torch.long)


def _check_ids(ids: Any, vocab_size: int, name: str = "The prompt") -> None:
    if not isinstance(ids, Tensor):
        raise TypeError(
            f"{name} must be a tensor of ids of shape (batch, length); got {type(ids).__name__}. Make one with "
            'tokenizer(texts, return_tensors="pt") and pass it as generate(**encoding).'
        )
    if ids.dim() != 2:
        raise ValueError(
            f"{name} must have shape (batch, length); got {tuple(ids.shape)}. For one row, pass input_ids.unsqueeze(0)."
        )
    if ids.numel() == 0:
        raise ValueError(
            f"{name} must hold at least one token; got shape {tuple(ids.shape)}. "
            "To start from nothing, leave it out: generation then starts from bos_token_id."
        )
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"{name} must hold ids, which are ints; got {ids.dtype}. Pass vectors as inputs_embeds.")
    low, high = torch.aminmax(ids)
    if low < 0 or high >= vocab_size:
        row, place = ((ids < 0) | (ids >= vocab_size)).nonzero()[0].tolist()
        raise TokenIdError(
            f"{name} must hold ids from 0 to {vocab_size - 1}, as the vocabulary has {vocab_size} tokens; got "
            f"{int(ids[row, place])} in row {row} at place {place}. Use the tokenizer that belongs to the model, or "
            "call resize_token_embeddings(len(tokenizer))."
        )


def _default_mask(ids: Tensor, request: Request) -> Tensor | None:
    """What is padding, where the ids tell: pad tokens, unless they also end texts."""
    pad, eos = request.options.pad_token_id, request.options.eos_token_id
    if pad is None or pad == eos or (isinstance(eos, list | tuple) and pad in eos):
        return None
    return ids != pad


def _checked_mask(mask: Tensor | None, rows: int, width: int, name: str = "attention_mask") -> Tensor | None:
    if mask is None:
        return None
    if tuple(mask.shape) != (rows, width):
        raise ValueError(f"{name} must have the prompt's shape {(rows, width)}; got {tuple(mask.shape)}.")
    attended = mask != 0
    if bool(attended.all()):
        return None
    if not bool(attended.any(dim=1).all()):
        row = int((~attended.any(dim=1)).nonzero()[0])
        raise ValueError(f"Each row needs a token to continue, but row {row} is all padding. Take it out of the batch.")
    if not bool(attended[:, -1].all()):
        notice(
            "The batch is padded on the right, so texts are continued after their padding. "
            "Pad on the left: tokenizer.padding_side = 'left'."
        )
    return attended.long()


def _check_past(config: Any, past: Any, rows: int, width: int, embeds: Tensor | None) -> None:
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    if not isinstance(past, tuple | list) or not all(isinstance(x, Tensor) for x in flat(past)):
        raise TypeError(
            f"past_key_values must be a (key, value) pair of tensors for each layer; got {type(past).__name__}. "
            "Pass those of an output of this model."
        )
    if len(past) != layers:
        raise ValueError(f"past_key_values needs one pair for each of the model's {layers} layers; got {len(past)}.")
    kinds = {(x.shape[1], x.shape[3]) if x.dim() == 4 else tuple(x.shape) for pair in past for x in pair}
    wanted = (heads, config.hidden_size // heads)
    if kinds != {wanted} and not getattr(config, "pruned_heads", None):
        raise ValueError(
            f"past_key_values must hold tensors of the model's (heads, head_dim), {wanted}; got {sorted(kinds)}. "
            "Pass a cache of this model."
        )
    if embeds is not None:
        raise ValueError("past_key_values continue a prompt of ids; inputs_embeds cannot be given with them.")
    seen, batch = past[0][0].shape[2], past[0][0].shape[0]
    if batch != rows or seen >= width:
        raise ValueError(
            f"The prompt must hold the tokens of past_key_values and at least one more; got ids of shape "
            f"{(rows, width)} and a cache of {batch} rows and {seen} tokens. Pass all ids, the cached ones too."
        )


def _tell_of_untrained(width: int, trained_positions: int | None) -> None:
    """Warn of a prompt of `width` tokens that is longer than the model was trained to read, where it still runs."""
    if trained_positions is not None and width > trained_positions:
        notice(
            f"The prompt has {width} tokens, more than the {trained_positions} that the model was trained on, and what "
            "it writes past them is seldom sense. Shorten the prompt, or set rope_scaling in the configuration."
        )
