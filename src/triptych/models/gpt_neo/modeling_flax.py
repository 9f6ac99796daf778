"""GPT Neo in Flax.

Decoder-only transformer whose layers are of two kinds: global attention, and local attention over a sliding
window. Scores are not scaled by 1/sqrt(head_dim). Black et al., 2021, doi:10.5281/zenodo.5297715.

The modules (`…Module` and smaller) are plain Linen; the classes that users make hold parameters and load and save them.

Shapes: B batch, T new tokens, L capacity of the cache, S keys (T, or L with a cache), H heads, D head_dim,
C hidden_size, V vocabulary.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from triptych.activations_flax import activation
from triptych.configuration import PretrainedConfig
from triptych.modeling_flax import FlaxPreTrainedModel
from triptych.models.gpt_neo.configuration import GPTNeoConfig
from triptych.outputs import FlaxBaseModelOutput, FlaxMaskedLMOutput

Array = jax.Array


class FlaxGPTNeoSelfAttention(nn.Module):
    """Causal attention over all tokens ("global") or the last `window_size` of them ("local")."""

    config: GPTNeoConfig
    kind: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,  # (B, T, C)
        mask: Array | None,  # (B, S), True at tokens
        deterministic: bool,
    ) -> tuple[Array, Array]:
        config = self.config
        q, k, v = (
            dense(config, config.hidden_size, self.dtype, use_bias=False, name=name)(x).reshape(
                *x.shape[:-1], config.num_heads, -1
            )
            for name in ("q_proj", "k_proj", "v_proj")
        )  # (B, T, H, D)
        start: Array | int = 0
        if self.has_variable("cache", "cached_key"):
            k, v, start = self.append(k, v)  # (B, L, H, D)
        window = config.window_size if self.kind == "local" else None
        visible = may_see(x.shape[1], k.shape[1], start, window, mask)  # (1 or B, 1, T, S)
        # Scores and softmax in float32, whatever the rest is in.
        scores = jnp.einsum("bthd,bshd->bhts", q.astype(jnp.float32), k.astype(jnp.float32))
        weights = jax.nn.softmax(jnp.where(visible, scores, np.finfo(np.float32).min), axis=-1)
        weights = jnp.where(visible, weights, 0.0).astype(v.dtype)  # a query that may see nothing gives zeros
        weights = nn.Dropout(config.attention_dropout)(weights, deterministic=deterministic)  # (B, H, T, S)
        out = jnp.einsum("bhts,bshd->bthd", weights, v).reshape(x.shape)  # (B, T, C)
        out = dense(config, config.hidden_size, self.dtype, name="out_proj")(out)
        return nn.Dropout(config.resid_dropout)(out, deterministic=deterministic), weights

    def append(self, key: Array, value: Array) -> tuple[Array, Array, Array]:
        """Put new keys and values (B, T, H, D) behind those in the cache; all (B, L, H, D), and where the new start."""
        start: Array = self.get_variable("cache", "cache_index")
        held = []
        for name, new in (("cached_key", key), ("cached_value", value)):
            old: Array = self.get_variable("cache", name)
            held.append(lax.dynamic_update_slice(old, new.astype(old.dtype), (0, start, 0, 0)))
            self.put_variable("cache", name, held[-1])
        self.put_variable("cache", "cache_index", start + key.shape[1])
        return held[0], held[1], start


def may_see(queries: int, keys: int, start: Array | int, window: int | None, mask: Array | None) -> Array:
    """True where a query may see a key: one not after it, not padding and, with a window, one of the last `window`.

    The queries are at the places `start`, `start + 1`, … of the keys.

    Returns: (1, 1, T, S), or (B, 1, T, S) with a `mask` (B, S).
    """
    key, query = jnp.arange(keys), start + jnp.arange(queries)[:, None]
    visible = key <= query
    if window is not None:
        visible &= key > query - window
    return visible[None, None] if mask is None else visible & mask[:, None, None, :]


def dense(config: GPTNeoConfig, features: int, dtype: Any, use_bias: bool = True, name: str | None = None) -> nn.Dense:
    """A linear layer that starts as N(0, initializer_range), and its bias as 0."""
    init = nn.initializers.normal(config.initializer_range)
    return nn.Dense(features, use_bias=use_bias, dtype=dtype, kernel_init=init, name=name)


def norm(config: GPTNeoConfig, dtype: Any, name: str | None = None) -> nn.LayerNorm:
    """A layer norm that computes the variance as PyTorch does."""
    return nn.LayerNorm(epsilon=config.layer_norm_epsilon, dtype=dtype, use_fast_variance=False, name=name)


class FlaxGPTNeoAttention(nn.Module):
    """Holds the attention under the name it has in the published files (`attn.attention`)."""

    config: GPTNeoConfig
    kind: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array | None, deterministic: bool) -> tuple[Array, Array]:
        attention = FlaxGPTNeoSelfAttention(self.config, self.kind, self.dtype, name="attention")
        attended: tuple[Array, Array] = attention(x, mask, deterministic)
        return attended


class FlaxGPTNeoMLP(nn.Module):
    """Position-wise feed-forward network, `intermediate_size` wide."""

    config: GPTNeoConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, deterministic: bool) -> Array:  # (B, T, C) -> (B, T, C)
        config = self.config
        x = dense(config, config.intermediate_size or 4 * config.hidden_size, self.dtype, name="c_fc")(x)
        x = activation(config.activation_function)(x)
        x = dense(config, config.hidden_size, self.dtype, name="c_proj")(x)
        return nn.Dropout(config.resid_dropout)(x, deterministic=deterministic)  # type: ignore[no-any-return]


class FlaxGPTNeoBlock(nn.Module):
    """Pre-norm residual block: attention, then the feed-forward network."""

    config: GPTNeoConfig
    kind: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, mask: Array | None, deterministic: bool
    ) -> tuple[Array, Array]:  # (B, T, C), (B, H, T, S)
        attention = FlaxGPTNeoAttention(self.config, self.kind, self.dtype, name="attn")
        attended, weights = attention(norm(self.config, self.dtype, "ln_1")(x), mask, deterministic)
        x = x + attended
        mlp = FlaxGPTNeoMLP(self.config, self.dtype, name="mlp")
        return x + mlp(norm(self.config, self.dtype, "ln_2")(x), deterministic), weights


class FlaxGPTNeoBlocks(nn.Module):
    """The blocks, by their numbers. With `gradient_checkpointing` the backward pass recomputes them."""

    config: GPTNeoConfig
    dtype: Any = jnp.float32
    gradient_checkpointing: bool = False

    @nn.compact
    def __call__(
        self, x: Array, mask: Array | None, deterministic: bool
    ) -> tuple[Array, tuple[Array, ...], tuple[Array, ...]]:
        block_class = nn.remat(FlaxGPTNeoBlock, static_argnums=(3,)) if self.gradient_checkpointing else FlaxGPTNeoBlock
        inputs, attentions = [], []
        for number, kind in enumerate(self.config.attention_layers):
            inputs.append(x)
            x, weights = block_class(self.config, kind, self.dtype, name=str(number))(x, mask, deterministic)
            attentions.append(weights)
        return x, tuple(inputs), tuple(attentions)


class FlaxGPTNeoModule(nn.Module):
    """The bare decoder as a Linen module: token and position embeddings, blocks, final norm."""

    config: GPTNeoConfig
    dtype: Any = jnp.float32
    gradient_checkpointing: bool = False

    def setup(self) -> None:
        """The layers, under their published names."""
        config = self.config
        init = nn.initializers.normal(config.initializer_range)
        self.wte = nn.Embed(config.vocab_size, config.hidden_size, dtype=self.dtype, embedding_init=init)
        self.wpe = nn.Embed(config.max_position_embeddings, config.hidden_size, dtype=self.dtype, embedding_init=init)
        self.drop = nn.Dropout(config.embed_dropout)
        self.h = FlaxGPTNeoBlocks(config, self.dtype, self.gradient_checkpointing)
        self.ln_f = norm(config, self.dtype)

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        deterministic: bool = True,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> FlaxBaseModelOutput | tuple[Any, ...]:
        """Hidden states (B, T, C) after `input_ids` (B, T); `attention_mask` is (B, S), 0 at padding.

        A cache is read and written where the variables hold one.
        """
        if position_ids is None:
            position_ids = jnp.arange(input_ids.shape[-1])[None, :]
        mask = None if attention_mask is None else attention_mask != 0
        x = self.drop(self.wte(input_ids) + self.wpe(position_ids), deterministic=deterministic)  # (B, T, C)
        x, hidden_states, attentions = self.h(x, mask, deterministic)
        x = self.ln_f(x)
        output = FlaxBaseModelOutput(
            last_hidden_state=x,
            hidden_states=(*hidden_states, x) if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
        )
        return output if return_dict else output.to_tuple()


class FlaxGPTNeoForCausalLMModule(nn.Module):
    """The decoder with a language model head as a Linen module; the head is the token embedding where they are tied."""

    config: GPTNeoConfig
    dtype: Any = jnp.float32
    gradient_checkpointing: bool = False

    def setup(self) -> None:
        """The decoder, and the head where it is not tied."""
        self.transformer = FlaxGPTNeoModule(self.config, self.dtype, self.gradient_checkpointing)
        if not self.config.tie_word_embeddings:
            self.lm_head = dense(self.config, self.config.vocab_size, self.dtype, use_bias=False)

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        deterministic: bool = True,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> FlaxMaskedLMOutput | tuple[Any, ...]:
        """Logits (B, T, V); takes what `FlaxGPTNeoModule` takes."""
        base: Any = self.transformer(
            input_ids, attention_mask, position_ids, deterministic, output_attentions, output_hidden_states
        )
        logits = self.logits(base.last_hidden_state)
        output = FlaxMaskedLMOutput(logits=logits, hidden_states=base.hidden_states, attentions=base.attentions)
        return output if return_dict else output.to_tuple()

    def next_token_logits(self, input_ids: Array, attention_mask: Array, position_ids: Array) -> Array:
        """One decoding step, for `generate`: logits (B, V) of the last position only."""
        base: Any = self.transformer(input_ids, attention_mask, position_ids)
        return self.logits(base.last_hidden_state[:, -1])

    def logits(self, x: Array) -> Array:
        """The head: (B, …, C) -> (B, …, V)."""
        logits: Array = self.transformer.wte.attend(x) if self.config.tie_word_embeddings else self.lm_head(x)
        return logits


class FlaxGPTNeoPreTrainedModel(FlaxPreTrainedModel):
    """What both GPT Neo classes share: how they are made and called, their cache, and how they lie on a mesh."""

    config: GPTNeoConfig
    config_class: ClassVar[type[PretrainedConfig]] = GPTNeoConfig
    base_model_prefix: ClassVar[str] = "transformer"
    # causal masks, which old checkpoints hold as buffers
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"h\.\d+\.attn\.(attention\.)?(masked_)?bias"]
    _published_order: ClassVar[tuple[str, ...]] = (
        *("transformer", "wte", "wpe", "h", "ln_1", "attn", "attention", "k_proj", "v_proj", "q_proj", "out_proj"),
        *("ln_2", "mlp", "c_fc", "c_proj", "ln_f", "lm_head", "weight", "bias"),
    )
    # Heads and the inner layer are split, so that a block sums twice over the mesh; the vocabulary is split where it
    # divides. Patterns are searched in "h/0/attn/attention/q_proj/kernel"; what none of them finds is everywhere whole.
    partition_rules: ClassVar[tuple[tuple[str, tuple[str | None, ...]], ...]] = (
        (r"(wte/embedding)$", ("model", None)),
        (r"(q_proj|k_proj|v_proj|c_fc|lm_head)/kernel$", (None, "model")),
        (r"(out_proj|c_proj)/kernel$", ("model", None)),
        (r"c_fc/bias$", ("model",)),
    )

    def __init__(
        self,
        config: GPTNeoConfig,
        input_shape: tuple[int, int] = (1, 1),
        seed: int = 0,
        dtype: Any = jnp.float32,
        _do_init: bool = True,
        **kwargs: Any,
    ) -> None:
        if isinstance(config, GPTNeoConfig):  # else the base says what is needed
            activation(config.activation_function)
            if config.hidden_size % config.num_heads:
                raise ValueError(
                    f"hidden_size must be a multiple of num_heads; got {config.hidden_size} and {config.num_heads}."
                )
        super().__init__(config, input_shape=input_shape, seed=seed, dtype=dtype, _do_init=_do_init, **kwargs)

    def init_cache(self, batch_size: int, max_length: int) -> dict[str, Any]:
        """An empty cache of `max_length` tokens for each row, as nested dicts; pass it as `past_key_values`.

        Per layer: cached_key and cached_value (B, L, H, D) in the model's dtype, and cache_index (), how many tokens
        they hold.
        """
        config = self.config
        shape = (batch_size, max_length, config.num_heads, config.hidden_size // config.num_heads)

        def layer() -> dict[str, Any]:
            return {
                "cached_key": jnp.zeros(shape, self.dtype),
                "cached_value": jnp.zeros(shape, self.dtype),
                "cache_index": jnp.zeros((), jnp.int32),
            }

        base = {"h": {str(number): {"attn": {"attention": layer()}} for number in range(config.num_layers)}}
        return base if self.module_class is FlaxGPTNeoModule else {self.base_model_prefix: base}

    def __call__(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        position_ids: Any = None,
        params: dict[str, Any] | None = None,
        past_key_values: dict[str, Any] | None = None,
        dropout_rng: Any = None,
        train: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """One forward pass, compiled for the shapes that it is given.

        Takes `input_ids` (B, T); `attention_mask` (B, T), 1 at tokens and 0 at padding; `position_ids` (B, T), counted
        from the cache's length when not given; `params`, in place of the model's own; `past_key_values`, a cache that
        `init_cache` or an earlier call gave, and then `attention_mask` may be as long as it; with `train`, dropout by
        `dropout_rng`.

        Returns: last_hidden_state (B, T, C) or logits (B, T, V); past_key_values, the cache with the new tokens, where
            one was given; hidden_states (layers + 1 of (B, T, C)); attentions (a (B, H, T, S) per layer, S the cache's
            capacity where there is one); as a tuple when `return_dict` is False.
        Raises: ValueError for wrong shapes, params that lack a leaf, and training without a dropout_rng; TypeError for
            ids that are not ints; TokenIdError; SequenceTooLongError.
        """
        return self._call(
            input_ids,
            attention_mask,
            position_ids,
            params=params,
            past_key_values=past_key_values,
            dropout_rng=dropout_rng,
            train=train,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
        )


class FlaxGPTNeoModel(FlaxGPTNeoPreTrainedModel):
    """The bare decoder in Flax (specification page FlaxGPTNeoModel).

    `dtype` is what is computed in; parameters keep their own (see `to_bf16` and `to_fp16`). `seed` and `input_shape`
    are for new parameters, which `_do_init=False` leaves out.
    """

    module_class = FlaxGPTNeoModule


class FlaxGPTNeoForCausalLM(FlaxGPTNeoPreTrainedModel):
    """GPT Neo with a language model head in Flax, tied to the token embedding (page FlaxGPTNeoForCausalLM).

    `dtype` is what is computed in; parameters keep their own (see `to_bf16` and `to_fp16`). `seed` and `input_shape`
    are for new parameters, which `_do_init=False` leaves out.
    """

    module_class = FlaxGPTNeoForCausalLMModule
    _tied_weights: ClassVar[dict[str, str]] = {"lm_head.weight": "transformer.wte.weight"}
