"""Changing the shapes of a PyTorch model: vocabularies that grow and shrink, heads that are pruned."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from triptych.configuration import PretrainedConfig, positive_int


def resize_embeddings(model: Any, new_num_tokens: int | None, pad_to_multiple_of: int | None) -> None:
    """Give a model's vocabulary another size; see `PreTrainedModel.resize_token_embeddings`."""
    if new_num_tokens is not None:
        new_num_tokens = positive_int("new_num_tokens", new_num_tokens)
    if pad_to_multiple_of is not None:
        pad_to_multiple_of = positive_int("pad_to_multiple_of", pad_to_multiple_of)
    if new_num_tokens is None and pad_to_multiple_of is None:
        return
    embedding = model.get_input_embeddings()
    size = embedding.num_embeddings if new_num_tokens is None else new_num_tokens
    size += -size % (pad_to_multiple_of or 1)
    if size != embedding.num_embeddings:
        _resize(embedding, size)
        head = model.get_output_embeddings()
        if head is not None and not model.config.tie_word_embeddings:
            _resize(head, size)
    model.config.vocab_size = size
    model.tie_weights()


def _resize(layer: nn.Embedding | nn.Linear, size: int) -> None:
    """Give an Embedding or a bias-free Linear `size` rows: the old ones, then their mean. Its hooks stay."""
    old = layer.weight.data
    rows = min(size, old.shape[0])
    weight = torch.empty((size, old.shape[1]), dtype=old.dtype, device=old.device)
    weight[:rows] = old[:rows]
    weight[rows:] = old.mean(dim=0, dtype=torch.float32).to(old.dtype)
    layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    if isinstance(layer, nn.Linear):
        layer.out_features = size
    else:
        layer.num_embeddings = size
        if layer.padding_idx is not None and layer.padding_idx >= size:
            layer.padding_idx = None


def check_heads(config: PretrainedConfig, pruned: Mapping[int, Iterable[int]]) -> None:
    """Refuse heads that a model does not have, or all of a layer's.

    Raises: ValueError.
    """
    num_layers, num_heads = config.num_hidden_layers, config.num_attention_heads
    for layer, heads in pruned.items():
        if not 0 <= layer < num_layers or not set(heads) < set(range(num_heads)):
            raise ValueError(
                f"Pruned heads must be of layers 0 to {num_layers - 1} and heads 0 to {num_heads - 1}, and leave "
                f"each layer a head; got heads {sorted(heads)} of layer {layer}."
            )


def kept_after_pruning(heads: list[int], gone: Iterable[int], head_dim: int) -> tuple[list[int], Tensor]:
    """Those of `heads` that are not gone, and where their features are among the features of `heads`."""
    gone = set(gone)
    places = [place for place, head in enumerate(heads) if head not in gone]
    features = torch.tensor([place * head_dim + d for place in places for d in range(head_dim)])
    return [heads[place] for place in places], features


def selected(weight: Tensor, dim: int, index: Tensor) -> nn.Parameter:
    """Some rows or columns of a parameter, as a parameter that is trained or not as it was."""
    kept = weight.detach().index_select(dim, index.to(weight.device)).contiguous()
    return nn.Parameter(kept, requires_grad=weight.requires_grad)
