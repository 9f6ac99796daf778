"""Small Fuyu models with large weights, and rows of text and patches, for the tests."""

import math
from typing import Any

import torch
from torch import Tensor

from gpt_neo_models import gap
from triptych.models.fuyu.configuration import FuyuConfig
from triptych.models.fuyu.modeling_torch import FuyuForCausalLM

__all__ = ["DYNAMIC", "SMALL", "alone", "batch", "gap", "make", "patches", "row", "tokens"]

torch.set_num_threads(1)  # these models are too small to share out

SMALL: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 24,
    "patch_size": 2,
}
DYNAMIC = {"rope_scaling": {"type": "dynamic", "factor": 3.0}, "rope_theta": 50.0, "max_position_embeddings": 8}


def make(seed: int = 0, **fields: Any) -> FuyuForCausalLM:
    """A model in eval mode; fields replace those of SMALL."""
    generator = torch.Generator().manual_seed(seed)
    model = FuyuForCausalLM(FuyuConfig(**(SMALL | fields))).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            std = 0.2 if weight.dim() == 1 else 1.0 if "embed_tokens" in name else 1 / math.sqrt(weight.shape[1])
            is_scale = weight.dim() == 1 and "norm" in name and name.endswith("weight")
            weight.copy_(torch.randn(weight.shape, generator=generator) * std + is_scale)
    return model


def tokens(batch: int = 2, length: int = 9, seed: int = 0, vocab: int = 31) -> Tensor:
    return torch.randint(3, vocab, (batch, length), generator=torch.Generator().manual_seed(seed))


def patches(count: int, seed: int = 0, values: int = 12) -> Tensor:
    return torch.randn(count, values, generator=torch.Generator().manual_seed(seed))


def row(count: int, words: int, seed: int = 0) -> dict[str, Tensor]:
    """A row of a beginning, `count` patches and `words` more tokens."""
    places = torch.full((1 + count + words,), -1)
    places[1 : 1 + count] = torch.arange(count)
    return {"ids": tokens(1, len(places), seed)[0], "patches": patches(count, seed), "places": places}


def alone(one: dict[str, Tensor]) -> dict[str, Any]:
    """The inputs of one row without padding."""
    return {
        "input_ids": one["ids"][None],
        "image_patches": [one["patches"]],
        "image_patches_indices": one["places"][None],
    }


def batch(rows: list[dict[str, Tensor]], side: str = "left") -> dict[str, Any]:
    """Rows of several lengths as one padded batch."""
    longest = max(len(one["ids"]) for one in rows)
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    places = torch.full((len(rows), longest), -1)
    for index, one in enumerate(rows):
        length = len(one["ids"])
        where = slice(longest - length, None) if side == "left" else slice(length)
        ids[index, where], mask[index, where], places[index, where] = one["ids"], 1, one["places"]
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "image_patches": [one["patches"] for one in rows],
        "image_patches_indices": places,
    }
