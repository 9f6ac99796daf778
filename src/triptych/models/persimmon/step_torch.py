"""A token of each row, or some, through a Persimmon that is prepared for decoding; see `triptych.runtime.preparing`.

Shapes: B batch, T new tokens, S cached + new tokens, H heads, D head_dim, C hidden_size, V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from triptych.runtime.attention import AttentionMask, attend, merge_heads
from triptych.runtime.cache import LayerCache
from triptych.runtime.packing import normalised, packed
from triptych.runtime.preparing import last_positions

if TYPE_CHECKING:
    from triptych.models.persimmon.modeling_torch import PersimmonDecoderLayer, PersimmonForCausalLM, Rotation


class PersimmonLayerStep:
    """A layer: attention and feed-forward network, each behind its norm."""

    def __init__(self, layer: "PersimmonDecoderLayer") -> None:
        attention = layer.self_attn
        self.heads, self.head_dim = attention.num_heads, attention.head_dim
        self.impl = attention.config._attn_implementation or "eager"
        self.scale = 1 / math.sqrt(attention.head_dim)
        self.norm_1 = normalised(layer.input_layernorm)
        self.qkv = packed(attention.query_key_value)
        self.qk_norms = (
            (normalised(attention.q_layernorm), normalised(attention.k_layernorm))
            if attention.config.qk_layernorm
            else None
        )
        self.out = packed(attention.dense)
        self.norm_2 = normalised(layer.post_attention_layernorm)
        self.widen = packed(layer.mlp.dense_h_to_4h, activation=layer.mlp.act.function)
        self.narrow = packed(layer.mlp.dense_4h_to_h)

    def __call__(self, x: Tensor, mask: AttentionMask, rotate: "Rotation", cache: LayerCache) -> Tensor:
        # (B, T, C) -> (B, T, C)
        fused = self.qkv(self.norm_1(x)).view(*x.shape[:2], self.heads, 3, self.head_dim)
        q, k, v = fused.permute(3, 0, 2, 1, 4).unbind(0)  # (B, H, T, D)
        if self.qk_norms:
            q, k = self.qk_norms[0](q), self.qk_norms[1](k)
        k, v = cache.append(rotate(k), v)  # (B, H, S, D)
        attended, _ = attend(rotate(q), k, v, mask, impl=self.impl, scale=self.scale)  # (B, H, T, D)
        x = x + self.out(merge_heads(attended))
        return x + self.narrow(self.widen(self.norm_2(x)))


class PersimmonStep:
    """The layers, the final norm and the head."""

    def __init__(self, model: "PersimmonForCausalLM") -> None:
        self.layers = [PersimmonLayerStep(layer) for layer in model.model.layers]  # type: ignore[arg-type]
        self.norm = normalised(model.model.final_layernorm)
        self.head = packed(model.lm_head)

    def __call__(
        self, x: Tensor, mask: AttentionMask, rotate: "Rotation", layers: Sequence[LayerCache], last: int | None
    ) -> tuple[Tensor, Tensor]:
        """The last position's logits (B, V), or of the last `last` (B, last, V), and the hidden states (B, T, C)."""
        for layer, cache in zip(self.layers, layers, strict=True):
            x = layer(x, mask, rotate, cache)
        x = self.norm(x)
        return self.head(last_positions(x, last)), x
