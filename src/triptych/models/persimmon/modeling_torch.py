"""Persimmon in PyTorch: the decoder of Fuyu.

Decoder-only transformer with layer norms on queries and keys, rotary positions on part of each head's features (Su et
al., 2021, arXiv:2104.09864) and squared ReLU. Elsen et al., 2023, www.adept.ai/blog/persimmon-8b.

Shapes: B batch, T new tokens, S cached + new tokens, H heads, D head_dim, R rotated features of a head, C hidden_size,
V vocabulary.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from triptych.activations_torch import Activation
from triptych.configuration import PretrainedConfig
from triptych.inputs_torch import check_positions_shape, check_token_ids, counted_positions, shape_of_inputs
from triptych.losses_torch import logits_and_loss
from triptych.modeling_torch import PreTrainedModel
from triptych.models.persimmon.configuration import PersimmonConfig
from triptych.models.persimmon.step_torch import PersimmonStep
from triptych.outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from triptych.runtime.attention import AttentionMask, attend, merge_heads
from triptych.runtime.cache import KeyValueCache, LayerCache, open_layers
from triptych.runtime.preparing import NextToken, last_positions, prepared_step

PastKeyValues = Sequence[tuple[Tensor, Tensor]] | None


class Rotation(NamedTuple):
    """Cosines and sines (1 or B, 1, T, R/2) of the angles by which features are rotated."""

    cos: Tensor
    sin: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate the first R features of x (B, H, T, D), feature i together with feature R/2 + i."""
        cos, sin = self.cos.to(x), self.sin.to(x)  # layers may live on several devices
        half = cos.shape[-1]
        left, right, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat((left * cos - right * sin, right * cos + left * sin, rest), dim=-1)


def rotation(config: PersimmonConfig, position_ids: Tensor, is_token: Tensor | None, dtype: torch.dtype) -> Rotation:
    """The angles of tokens at `position_ids` (1 or B, T), computed in float32 and given in `dtype`.

    Linear scaling divides positions by the factor. Dynamic scaling (the NTK-aware form, by the length so far) raises
    the base once a row is longer than max_position_embeddings; a row's length is the last position of its tokens plus
    one, so that padding, where `is_token` (B, T) is False, does not count.
    """
    features, scaling = rotated_features(config), config.rope_scaling
    positions = position_ids.float()
    theta = positions.new_full((1, 1, 1), config.rope_theta)
    if scaling is not None and scaling["type"] == "linear":
        positions = positions / scaling["factor"]
    elif scaling is not None:
        of_tokens = positions if is_token is None else positions.where(is_token, 0.0)
        length = of_tokens.amax(dim=1)[:, None, None] + 1
        growth = scaling["factor"] * length / config.max_position_embeddings - (scaling["factor"] - 1)
        theta = theta * growth.clamp(min=1) ** (features / (features - 2))
    exponents = torch.arange(0, features, 2, device=positions.device) / max(features, 1)
    angles = (positions[..., None] / theta**exponents)[:, None]  # (1 or B, 1, T, R/2)
    return Rotation(angles.cos().to(dtype), angles.sin().to(dtype))


def rotated_features(config: PersimmonConfig) -> int:
    """R, how many features of a head are rotated.

    Raises: ValueError when they are odd or more than the head has, or too few for dynamic scaling.
    """
    head_dim = config.hidden_size // config.num_attention_heads
    features = int(config.partial_rotary_factor * head_dim)
    least = 4 if config.rope_scaling and config.rope_scaling["type"] == "dynamic" else 0
    if features % 2 or not least <= features <= head_dim:
        raise ValueError(
            f"partial_rotary_factor must leave an even number of rotated features from {least} to head_dim={head_dim}; "
            f"{config.partial_rotary_factor} gives {features}."
        )
    return features


class PersimmonAttention(nn.Module):
    """Causal attention; queries and keys are normalised per head and then rotated."""

    def __init__(self, config: PersimmonConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        if hidden % config.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads; got {hidden} and {config.num_attention_heads}."
            )
        rotated_features(config)  # refused here, not at the first forward pass
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = hidden // config.num_attention_heads
        self.query_key_value = nn.Linear(hidden, 3 * hidden)  # rows are (H, 3, D)
        self.dense = nn.Linear(hidden, hidden)
        if config.qk_layernorm:
            self.q_layernorm = nn.LayerNorm(self.head_dim, eps=config.layer_norm_eps)
            self.k_layernorm = nn.LayerNorm(self.head_dim, eps=config.layer_norm_eps)
        self.attention_dropout = nn.Dropout(config.attention_dropout)

    def forward(
        self, x: Tensor, mask: AttentionMask, rotate: Rotation, cache: LayerCache | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        fused = self.query_key_value(x).view(*x.shape[:-1], self.num_heads, 3, self.head_dim)  # (B, T, H, 3, D)
        q, k, v = (part.transpose(1, 2) for part in fused.unbind(-2))  # (B, H, T, D)
        if self.config.qk_layernorm:
            q, k = self.q_layernorm(q), self.k_layernorm(k)
        q, k = rotate(q), rotate(k)
        if cache is not None:
            # v is a view: the cache would keep all of the fused projection alive
            k, v = cache.append(k, v.contiguous())  # (B, H, S, D)
        out, weights = attend(
            q,
            k,
            v,
            mask,
            impl=self.config._attn_implementation or "eager",
            scale=1 / math.sqrt(self.head_dim),
            dropout=self.attention_dropout.p if self.training else 0.0,
            need_weights=need_weights,
        )  # (B, H, T, D)
        return self.dense(merge_heads(out)), weights  # (B, T, C)


class PersimmonMLP(nn.Module):
    """Position-wise feed-forward network, `intermediate_size` wide."""

    def __init__(self, config: PersimmonConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.intermediate_size)
        self.dense_4h_to_h = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act = Activation(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        out: Tensor = self.dense_4h_to_h(self.act(self.dense_h_to_4h(x)))
        return out


class PersimmonDecoderLayer(nn.Module):
    """Pre-norm residual block: attention, then the feed-forward network."""

    def __init__(self, config: PersimmonConfig) -> None:
        super().__init__()
        self.self_attn = PersimmonAttention(config)
        self.mlp = PersimmonMLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self, x: Tensor, mask: AttentionMask, rotate: Rotation, cache: LayerCache | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        attended, weights = self.self_attn(self.input_layernorm(x), mask, rotate, cache, need_weights)
        x = x + attended
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x))), weights  # (B, T, C), (B, H, T, S)


class PersimmonPreTrainedModel(PreTrainedModel):
    """What the Persimmon classes share: their configuration and the names in the published files."""

    config: PersimmonConfig
    config_class: ClassVar[type[PretrainedConfig]] = PersimmonConfig
    base_model_prefix: ClassVar[str] = "model"
    _no_split_modules: ClassVar[list[str]] = ["PersimmonDecoderLayer"]
    # frequencies, which old checkpoints hold as buffers
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"rotary_emb\.inv_freq$"]

    @property
    def max_positions(self) -> int | None:
        """None: rotary positions have no last one, though models do worse past max_position_embeddings."""
        return None

    @property
    def trained_positions(self) -> int | None:
        """max_position_embeddings, or as many times that as `rope_scaling` stretches them."""
        scaling = self.config.rope_scaling
        return int(self.config.max_position_embeddings * (scaling["factor"] if scaling else 1))


class PersimmonModel(PersimmonPreTrainedModel):
    """The bare decoder: token embeddings, layers, final norm."""

    def __init__(self, config: PersimmonConfig) -> None:
        super().__init__(config)
        padding = config.pad_token_id
        if padding is not None and not -config.vocab_size <= padding < config.vocab_size:
            raise ValueError(
                f"pad_token_id must be a token of the vocabulary, below {config.vocab_size}; got {padding}. "
                "Raise vocab_size, or leave pad_token_id unset."
            )
        self.padding_idx = padding
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=padding)
        self.layers = nn.ModuleList(PersimmonDecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding `embed_tokens`, weight (V, C)."""
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace `embed_tokens`."""
        self.embed_tokens = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: PastKeyValues = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Hidden states of the new tokens.

        Takes `input_ids` (B, T) or `inputs_embeds` (B, T, C); `attention_mask` (B, S), 1 at tokens and 0 at padding;
        `position_ids` (B, T), counted from the past's length when not given; `past_key_values`, a (key, value) pair
        of (B, H, S - T, D) per layer. Positions are not limited, and without dynamic scaling only their differences
        count, so left padding needs no `position_ids`. With dynamic scaling a cached key keeps its rotation. Weights
        are returned by the eager implementation whichever is chosen.

        Returns: last_hidden_state (B, T, C), past_key_values, hidden_states (layers + 1 of (B, T, C)),
            attentions (a (B, H, T, S) per layer); as a tuple when `return_dict` is False.
        Raises: ValueError for both or neither of the inputs and for wrong shapes; TokenIdError.
        """
        config = self.config
        recompute = self.gradient_checkpointing if self.training and torch.is_grad_enabled() else None
        if recompute and use_cache:
            warnings.warn("use_cache=True has no effect while gradient checkpointing trains.", stacklevel=2)
        use_cache = not recompute and (config.use_cache if use_cache is None else use_cache)
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states

        many = config.num_hidden_layers
        layers = open_layers(past_key_values, many) if use_cache or past_key_values is not None else None
        past = layers[0].length if layers else 0
        x, mask, rotate = self.enter(past, input_ids, inputs_embeds, attention_mask, position_ids)

        hidden_states, attentions = [], []
        for index, layer in enumerate(self.layers):
            if output_hidden_states:
                hidden_states.append(x)
            inputs = (x, mask, rotate, layers[index] if layers else None, output_attentions)
            if recompute:
                x, weights = recompute(_run_again, layer, *inputs)
            else:
                x, weights = layer(*inputs)
            attentions.append(weights)
        x = self.final_layernorm(x)
        hidden_states.append(x)

        output = BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=KeyValueCache.of_layers(layers) if layers and use_cache else None,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def enter(
        self,
        past: int,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> tuple[Tensor, AttentionMask, Rotation]:
        """What the first layer is given: vectors (B, T, C) of the new tokens behind `past` others, mask and angles."""
        config = self.config
        shape, device = shape_of_inputs(input_ids, inputs_embeds)
        if len(shape) != 2:
            raise ValueError(f"The input must have shape (batch, length); got {tuple(shape)}. Add the batch axis.")
        batch, length = shape
        mask = AttentionMask.of(attention_mask, batch, length, past, device)
        if inputs_embeds is None and input_ids is not None:
            check_token_ids(input_ids, self.embed_tokens.num_embeddings)
            inputs_embeds = self.embed_tokens(input_ids)
        x: Tensor = inputs_embeds  # type: ignore[assignment]  # (B, T, C)
        if x.shape[-1] != config.hidden_size:
            raise ValueError(f"inputs_embeds must be {config.hidden_size} wide, as the model is; got {x.shape[-1]}.")
        position_ids = self._positions(position_ids, attention_mask, batch, length, past, x)
        is_token = None if mask.padding is None else mask.padding[:, past:].to(x.device)
        return x, mask, rotation(config, position_ids, is_token, x.dtype)

    def _positions(
        self, given: Tensor | None, attention_mask: Tensor | None, batch: int, length: int, past: int, x: Tensor
    ) -> Tensor:
        """Positions (B or 1, T), on the device of the tokens' vectors."""
        if given is not None:
            check_positions_shape(given, batch, length)
            return given.reshape(-1, length).to(x.device)
        scaling = self.config.rope_scaling
        counts = scaling is not None and scaling["type"] == "dynamic"  # where padding stands matters
        longer = past + length > self.config.max_position_embeddings
        return counted_positions(attention_mask if counts and longer else None, past, length, x.device)[None]


def _run_again(
    layer: PersimmonDecoderLayer,
    x: Tensor,
    mask: AttentionMask,
    rotate: Rotation,
    cache: LayerCache | None,
    need_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    """A layer as gradient checkpointing runs it, twice: each time from the same past."""
    out: tuple[Tensor, Tensor | None] = layer(x, mask, rotate, cache.fork() if cache else None, need_weights)
    return out


class PersimmonForCausalLM(PersimmonPreTrainedModel):
    """Persimmon with a language model head, tied to the token embedding only with `config.tie_word_embeddings`."""

    _tied_weights_keys: ClassVar[list[str]] = ["lm_head.weight"]
    step_class: ClassVar[type[Any] | None] = PersimmonStep

    def __init__(self, config: PersimmonConfig) -> None:
        super().__init__(config)
        self.model = PersimmonModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """The head `lm_head`, weight (V, C)."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace `lm_head`."""
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: PastKeyValues = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits of the next token after each new token.

        Takes what `PersimmonModel.forward` takes, and `labels` (B, T): usually the input_ids themselves, as they are
        shifted inside; -100 does not count.

        Returns: loss () when labels are given, logits (B, T, V), and the rest as from `PersimmonModel`.
        """
        base = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits, loss = logits_and_loss(self.lm_head, base.last_hidden_state, labels)  # (B, T, V), ()
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=base.past_key_values,
            hidden_states=base.hidden_states,
            attentions=base.attentions,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def next_token_logits(self, input_ids: Tensor | None, **model_inputs: Any) -> NextToken:
        """One decoding step, for `generate`: logits (B, V) of the last position only, and the cache.

        Takes `cache` (None to go without), `last` (for the logits (B, last, V) of so many positions), `last_hidden`
        (True for the last hidden state, as the last of hidden_states), and what `PersimmonModel.forward` takes.
        """
        cache = model_inputs.pop("cache", None)
        last, last_hidden = model_inputs.pop("last", None), model_inputs.pop("last_hidden", False)
        step = prepared_step(self, input_ids, cache, model_inputs, last=last, last_hidden=last_hidden)
        if step is not None:
            return step
        if last_hidden:
            model_inputs["output_hidden_states"] = True
        model_inputs |= {"past_key_values": cache, "use_cache": cache is not None, "return_dict": True}
        if self.forward_is_published:
            out = self.model(input_ids, **model_inputs)
            logits = self.lm_head(last_positions(out.last_hidden_state, last))
        else:
            out = self(input_ids, **model_inputs)
            logits = last_positions(out.logits, last)
        return NextToken(logits.float(), out.past_key_values, out.hidden_states, out.attentions)
