"""What models of several families are given: shapes, ids, positions and masks, checked before any other work.

Shapes: B batch, T new tokens, C hidden_size, H heads.
"""

import warnings

import torch
from torch import Tensor, nn

from triptych.errors import SequenceTooLongError, TokenIdError


def shape_of_inputs(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> tuple[torch.Size, torch.device]:
    """The shape (…, T) of the tokens, and the input's device (offloaded weights have none).

    Axes before the last are the batch, as documented.

    Raises: ValueError unless one of the two is given.
    """
    if input_ids is not None and inputs_embeds is None:
        return input_ids.shape, input_ids.device
    if inputs_embeds is not None and input_ids is None:
        return inputs_embeds.shape[:-1], inputs_embeds.device
    got = "neither" if input_ids is None else "both"
    raise ValueError(f"The input is input_ids or inputs_embeds, one of the two; got {got}. Pass one of them.")


def counted_positions(attention_mask: Tensor | None, past: int, length: int, device: torch.device) -> Tensor:
    """Positions (T,) where none were given: counted from the past's length, as documented.

    Left padding then counts too, which is seldom meant: it is warned of. On an accelerator a single new token is not
    looked at, as the host would wait for it.
    """
    look = attention_mask is not None and not torch.compiler.is_compiling() and (device.type == "cpu" or length > 1)
    if look and attention_mask is not None and bool((attention_mask[..., 0] == 0).any()):
        warnings.warn(
            "The batch is padded on the left but position_ids were not given, so padding counts as positions. Pass "
            "position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0), or use generate(), which does.",
            stacklevel=3,
        )
    return torch.arange(past, past + length, device=device)


def sum_of_embeddings(
    tokens: nn.Embedding,
    positions: nn.Embedding,
    *,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor,
    batch: int,
    length: int,
) -> Tensor:
    """Vectors (B, T, C) of the tokens, their positions and, where given, their types (rows of `tokens` too).

    Raises: TokenIdError; SequenceTooLongError for a position outside; ValueError for wrong shapes.
    """
    vocabulary = tokens.num_embeddings
    check_positions(position_ids, positions.num_embeddings, batch, length)
    if input_ids is not None:
        check_token_ids(input_ids, vocabulary)
        inputs_embeds = tokens(input_ids.reshape(batch, length))
    elif inputs_embeds is not None:
        inputs_embeds = inputs_embeds.reshape(batch, length, inputs_embeds.shape[-1])
    x: Tensor = inputs_embeds + positions(position_ids.reshape(-1, length))
    if token_type_ids is None:
        return x
    if token_type_ids.numel() != batch * length:
        raise ValueError(
            f"token_type_ids must have the shape of the input, {(batch, length)}; got {tuple(token_type_ids.shape)}."
        )
    check_token_ids(token_type_ids, vocabulary, "token_type_ids")
    types: Tensor = tokens(token_type_ids.reshape(batch, length))
    return x + types


def check_token_ids(ids: Tensor, vocab_size: int, name: str = "input_ids") -> None:
    """Refuse ids outside the vocabulary, before the embedding would.

    On an accelerator a single new token is not checked: looking would make the host wait for every step.

    Raises: TokenIdError naming the first such id and its place.
    """
    if torch.compiler.is_compiling() or ids.numel() == 0 or (ids.device.type != "cpu" and ids.shape[-1] == 1):
        return
    low, high = torch.aminmax(ids)
    if low >= 0 and high < vocab_size:
        return
    place = ((ids < 0) | (ids >= vocab_size)).nonzero()[0].tolist()
    raise TokenIdError(
        f"{name} must be from 0 to {vocab_size - 1}, the vocabulary's size less one; got {ids[tuple(place)].item()} at "
        f"{place}. Use the tokenizer that belongs to the model, or call resize_token_embeddings(len(tokenizer))."
    )


def check_length(needed: int, positions: int, past: int) -> None:
    """Refuse more tokens than the model has positions, before any tensor work.

    Raises: SequenceTooLongError with both numbers.
    """
    if needed > positions:
        seen = f" ({past} of them in past_key_values)" if past else ""
        raise SequenceTooLongError(
            f"The model has {positions} positions but was given {needed} tokens{seen}. Shorten the input, for example "
            f"with tokenizer(..., truncation=True, max_length={positions})."
        )


def check_positions(position_ids: Tensor, positions: int, batch: int, length: int) -> None:
    """Refuse position ids (B, T), (1, T) or (T,) of another shape, or that the model has no embedding for.

    On an accelerator those of a single new token are not looked at, as in `check_token_ids`.

    Raises: ValueError; SequenceTooLongError naming the first position outside.
    """
    check_positions_shape(position_ids, batch, length)
    if torch.compiler.is_compiling() or position_ids.numel() == 0:
        return
    if position_ids.device.type != "cpu" and length == 1:
        return
    low, high = torch.aminmax(position_ids)
    if low < 0 or high >= positions:
        raise SequenceTooLongError(
            f"position_ids must be from 0 to {positions - 1}, the model's positions less one; got "
            f"{int(low if low < 0 else high)}. Shorten the input, or count positions from its first token."
        )


def check_positions_shape(position_ids: Tensor, batch: int, length: int) -> None:
    """Raises: ValueError unless position ids are (B, T), (1, T) or (T,)."""
    if position_ids.shape[-1:] != (length,) or position_ids.numel() not in (length, batch * length):
        raise ValueError(f"position_ids must have shape {(batch, length)}; got {tuple(position_ids.shape)}.")


def per_layer_head_mask(head_mask: Tensor | None, num_layers: int, num_heads: int) -> list[Tensor | None]:
    """The documented `head_mask`, (H,) for every layer or (layers, H), as one (H,) or None per layer.

    Raises: ValueError for any other shape.
    """
    if head_mask is None:
        return [None] * num_layers
    if tuple(head_mask.shape) == (num_heads,):
        return [head_mask] * num_layers
    if tuple(head_mask.shape) == (num_layers, num_heads):
        return list(head_mask)
    raise ValueError(
        f"head_mask must have shape (num_heads,) = {(num_heads,)} or (num_layers, num_heads) = "
        f"{(num_layers, num_heads)}; got {tuple(head_mask.shape)}."
    )
