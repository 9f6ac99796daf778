"""One token of each row through a Persimmon that is prepared for decoding; see `triptych.runtime.preparing`.

Shapes: B batch, S cached + new tokens, H heads, D head_dim, C hidden_size, V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from triptych.runtime.attention import AttentionMask, attend
from triptych.runtime.cache import LayerCache
from triptych.runtime.packing import normalised, packed

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
        # (B, C) -> (B, C)
        fused = self.qkv(self.norm_1(x)).view(len(x), self.heads, 3, 1, self.head_dim)
        q, k, v = fused.unbind(2)  # (B, H, 1, D)
        if self.qk_norms:
            q, k = self.qk_norms[0](q), self.qk_norms[1](k)
        k, v = cache.append(rotate(k), v)  # (B, H, S, D)
        attended, _ = attend(rotate(q), k, v, mask, impl=self.impl, scale=self.scale)  # (B, H, 1, D)
        x = x + self.out(attended.reshape(len(x), -1))
        return x + self.narrow(self.widen(self.norm_2(x)))


class PersimmonStep:
    """The layers, the final norm and the head."""

    def __init__(self, model: "PersimmonForCausalLM") -> None:
        self.layers = [PersimmonLayerStep(layer) for layer in model.model.layers]  # type: ignore[arg-type]
        self.norm = normalised(model.model.final_layernorm)
        self.head = packed(model.lm_head)

    def __call__(self, x: Tensor, mask: AttentionMask, rotate: "Rotation", layers: Sequence[LayerCache]) -> Tensor:
        # (B, C) -> (B, V)
        for layer, cache in zip(self.layers, layers, strict=True):
            x = layer(x, mask, rotate, cache)
        return self.head(self.norm(x))
