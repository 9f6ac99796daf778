"""One token of each row through a GPT Neo that is prepared for decoding; see `triptych.runtime.preparing`.

Shapes: B batch, S cached + new tokens, H heads, D head_dim, C hidden_size, V vocabulary.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from triptych.runtime.attention import AttentionMask, attend
from triptych.runtime.cache import LayerCache
from triptych.runtime.packing import normalised, packed
from triptych.runtime.preparing import row_heads

if TYPE_CHECKING:
    from triptych.models.gpt_neo.modeling_torch import GPTNeoBlock, GPTNeoForCausalLM


class GPTNeoBlockStep:
    """A block: attention and feed-forward network, each behind its norm."""

    def __init__(self, block: "GPTNeoBlock") -> None:
        attention = block.attn.attention
        self.heads, self.head_dim, self.window = attention.num_heads, attention.head_dim, attention.window
        self.impl = attention.config._attn_implementation or "eager"
        self.norm_1 = normalised(block.ln_1)
        self.qkv = packed(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = packed(attention.out_proj)
        self.norm_2 = normalised(block.ln_2)
        self.widen = packed(block.mlp.c_fc, activation=block.mlp.act.function)
        self.narrow = packed(block.mlp.c_proj)

    def __call__(self, x: Tensor, mask: AttentionMask, cache: LayerCache) -> Tensor:  # (B, C) -> (B, C)
        q, k, v = row_heads(self.qkv(self.norm_1(x)), self.heads, self.head_dim)  # (B, H, 1, D)
        k, v = cache.append(k, v)  # (B, H, S, D)
        attended, _ = attend(q, k, v, mask, impl=self.impl, scale=1.0, window=self.window)  # (B, H, 1, D)
        x = x + self.out(attended.reshape(len(x), -1))
        return x + self.narrow(self.widen(self.norm_2(x)))


class GPTNeoStep:
    """The blocks, the final norm and the head."""

    def __init__(self, model: "GPTNeoForCausalLM") -> None:
        self.blocks = [GPTNeoBlockStep(block) for block in model.transformer.h]  # type: ignore[arg-type]
        self.norm = normalised(model.transformer.ln_f)
        self.head = packed(model.lm_head)

    def __call__(self, x: Tensor, mask: AttentionMask, layers: Sequence[LayerCache]) -> Tensor:  # (B, C) -> (B, V)
        for block, cache in zip(self.blocks, layers, strict=True):
            x = block(x, mask, cache)
        return self.head(self.norm(x))
