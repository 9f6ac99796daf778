"""Small OpenAI GPT models with large weights, for the tests: attention in them is far from uniform."""

import math
from typing import Any

import torch

from triptych.models.openai_gpt.configuration import OpenAIGPTConfig
from triptych.models.openai_gpt.modeling_torch import OpenAIGPTLMHeadModel, OpenAIGPTPreTrainedModel

SMALL: dict[str, Any] = {"vocab_size": 31, "n_positions": 40, "n_embd": 12, "n_layer": 2, "n_head": 3}


def make(model_class: type[OpenAIGPTPreTrainedModel] = OpenAIGPTLMHeadModel, seed: int = 0, **fields: Any) -> Any:
    """A model in eval mode; fields replace those of SMALL."""
    torch.manual_seed(seed)
    model = model_class(OpenAIGPTConfig(**(SMALL | fields))).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            std = 0.2 if weight.dim() == 1 else 0.4 if "_embed" in name else 1.5 / math.sqrt(model.config.n_embd)
            weight.copy_(torch.randn(weight.shape) * std + (weight.dim() == 1 and "ln_" in name and "weight" in name))
    return model


def padded(rows: list[torch.Tensor], side: str, pad: int = 0) -> dict[str, torch.Tensor]:
    """A batch of rows of several lengths, with the mask and the positions that make each row what it is alone."""
    longest = max(map(len, rows))
    ids, mask = torch.full((len(rows), longest), pad), torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        where = slice(longest - len(row), None) if side == "left" else slice(len(row))
        ids[index, where], mask[index, where] = row, 1
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
