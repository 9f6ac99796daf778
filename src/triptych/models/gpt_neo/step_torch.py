"""A token of each row, or some, through a GPT Neo that is prepared for decoding; see `triptych.runtime.preparing`.

Shapes: B batch, T new tokens, S cached + new tokens, H heads, D head_dim, C hidden_size, V vocabulary.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from triptych.runtime.attention import AttentionMask, attend, merge_heads
from triptych.runtime.cache import LayerCache
from triptych.runtime.packing import normalised, packed
from triptych.runtime.preparing import last_positions, row_heads

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

    def __call__(self, x: Tensor, mask: AttentionMask, cache: LayerCache) -> Tensor:  # (B, T, C) -> (B, T, C)
        q, k, v = row_heads(self.qkv(self.norm_1(x)), self.heads, self.head_dim)  # (B, H, T, D)
        k, v = cache.append(k, v)  # (B, H, S, D)
        attended, _ = attend(q, k, v, mask, impl=self.impl, scale=1.0, window=self.window)  # (B, H, T, D)
        x = x + self.out(merge_heads(attended))
        return x + self.narrow(self.widen(self.norm_2(x)))


class GPTNeoStep:
    """The blocks, the final norm and the head."""

    def __init__(self, model: "GPTNeoForCausalLM") -> None:
        self.blocks = [GPTNeoBlockStep(block) for block in model.transformer.h]  # type: ignore[arg-type]
        self.norm = normalised(model.transformer.ln_f)
        self.head = packed(model.lm_head)

    def __call__(
        self, x: Tensor, mask: AttentionMask, layers: Sequence[LayerCache], last: int | None
    ) -> tuple[Tensor, Tensor]:
        """The last position's logits (B, V), or of the last `last` (B, last, V), and the hidden states (B, T, C)."""
        for block, cache in zip(self.blocks, layers, strict=True):
            x = block(x, mask, cache)
        x = self.norm(x)
        return self.head(last_positions(x, last)), x
