"""A token of each row, or some, through an OpenAI GPT that is prepared for decoding; see `triptych.runtime.preparing`.

Shapes: B batch, T new tokens, S cached + new tokens, H heads, D head_dim, C n_embd, V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from triptych.runtime.attention import AttentionMask, attend, merge_heads
from triptych.runtime.cache import LayerCache
from triptych.runtime.packing import normalised, packed
from triptych.runtime.preparing import last_positions, row_heads

if TYPE_CHECKING:
    from triptych.models.openai_gpt.modeling_torch import OpenAIGPTBlock, OpenAIGPTLMHeadModel


class OpenAIGPTBlockStep:
    """A block: attention, norm, feed-forward network, norm."""

    def __init__(self, block: "OpenAIGPTBlock") -> None:
        attention = block.attn
        self.heads, self.head_dim = len(attention.kept_heads), attention.head_dim
        self.impl = attention.config._attn_implementation or "eager"
        self.scale = 1 / math.sqrt(attention.head_dim)
        self.qkv = packed(attention.c_attn)
        self.out = packed(attention.c_proj)
        self.norm_1 = normalised(block.ln_1)
        self.widen = packed(block.mlp.c_fc, activation=block.mlp.act.function)
        self.narrow = packed(block.mlp.c_proj)
        self.norm_2 = normalised(block.ln_2)

    def __call__(self, x: Tensor, mask: AttentionMask, cache: LayerCache) -> Tensor:  # (B, T, C) -> (B, T, C)
        q, k, v = row_heads(self.qkv(x), self.heads, self.head_dim)  # (B, H, T, D)
        k, v = cache.append(k, v)  # (B, H, S, D)
        attended, _ = attend(q, k, v, mask, impl=self.impl, scale=self.scale)  # (B, H, T, D)
        x = self.norm_1(x + self.out(merge_heads(attended)))
        return self.norm_2(x + self.narrow(self.widen(x)))


class OpenAIGPTStep:
    """The blocks and the head."""

    def __init__(self, model: "OpenAIGPTLMHeadModel") -> None:
        self.blocks = [OpenAIGPTBlockStep(block) for block in model.transformer.h]  # type: ignore[arg-type]
        self.head = packed(model.lm_head)

    def __call__(
        self, x: Tensor, mask: AttentionMask, layers: Sequence[LayerCache], last: int | None
    ) -> tuple[Tensor, Tensor]:
        """The last position's logits (B, V), or of the last `last` (B, last, V), and the hidden states (B, T, C)."""
        for block, cache in zip(self.blocks, layers, strict=True):
            x = block(x, mask, cache)
        return self.head(last_positions(x, last)), x
