"""Small GPT Neo models with large weights, for the tests: attention in them is far from uniform."""

import math
from typing import Any

import torch

from triptych.models.gpt_neo.configuration import GPTNeoConfig
from triptych.models.gpt_neo.modeling_torch import GPTNeoForCausalLM, GPTNeoPreTrainedModel

torch.set_num_threads(1)  # these models are too small to share out

SMALL: dict[str, Any] = {
    "vocab_size": 31,
    "max_position_embeddings": 40,
    "hidden_size": 12,
    "num_layers": 2,
    "num_heads": 3,
    "window_size": 3,
    "attention_types": [[["global", "local"], 1]],
}


def make(model_class: type[GPTNeoPreTrainedModel] = GPTNeoForCausalLM, seed: int = 0, **fields: Any) -> Any:
    """A model in eval mode; fields replace those of SMALL."""
    torch.manual_seed(seed)
    model = model_class(GPTNeoConfig(**(SMALL | fields))).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            std = (
                0.2 if weight.dim() == 1 else 0.4 if "wte" in name or "wpe" in name else 1 / math.sqrt(weight.shape[1])
            )
            weight.copy_(torch.randn(weight.shape) * std + (weight.dim() == 1 and "ln_" in name and "weight" in name))
    return model


def tokens(batch: int = 2, length: int = 9, seed: int = 0, vocab: int = 31) -> torch.Tensor:
    return torch.randint(1, vocab, (batch, length), generator=torch.Generator().manual_seed(seed))


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest absolute difference."""
    assert a.shape == b.shape
    return (a - b).abs().max().item()
