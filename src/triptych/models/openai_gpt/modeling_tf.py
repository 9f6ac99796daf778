"""OpenAI GPT in TensorFlow, on Keras 3.

Decoder-only transformer whose blocks normalise after each residual sum, and which has no norm at the end. Radford et
al., 2018, "Improving Language Understanding by Generative Pre-Training".

The documented `call` takes no past. Decoding goes through `TFOpenAIGPTModel.continue_from`, which does.

Shapes: B batch, T new tokens, S the cache's capacity (T without a cache), H heads, D head_dim, C n_embd, V vocabulary,
N num_labels.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import keras
import tensorflow as tf

from triptych.activations_tf import activation
from triptych.configuration import PretrainedConfig
from triptych.generation import cache_tf
from triptych.inputs_tf import as_rows, checked_ids, checked_mask, checked_positions, is_known, per_layer_head_mask
from triptych.layers_tf import Conv1D, Embedding, LayerNorm, Linear, Module, Tensor, cast, times
from triptych.losses_tf import last_token, next_token_loss, sequence_loss
from triptych.modeling_tf import TFPreTrainedModel, register_output
from triptych.models.openai_gpt.configuration import OpenAIGPTConfig
from triptych.outputs import ModelOutput, TFBaseModelOutput, TFCausalLMOutput, TFSequenceClassifierOutput


class TFOpenAIGPTAttention(Module):
    """Causal attention over all tokens; queries, keys and values come from one product."""

    def __init__(self, config: OpenAIGPTConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if config.n_embd % config.n_head:
            raise ValueError(f"n_embd must be a multiple of n_head; got {config.n_embd} and {config.n_head}.")
        self.heads, self.head_dim = config.n_head, config.n_embd // config.n_head
        self.c_attn = Conv1D(3 * config.n_embd, config.n_embd, config.initializer_range, dtype=self.dtype_policy)
        self.c_proj = Conv1D(config.n_embd, config.n_embd, config.initializer_range, dtype=self.dtype_policy)
        self.attn_dropout = keras.layers.Dropout(config.attn_pdrop, dtype=self.dtype_policy)
        self.resid_dropout = keras.layers.Dropout(config.resid_pdrop, dtype=self.dtype_policy)

    def __call__(
        self,
        x: Tensor,  # (B, T, C)
        visible: Tensor,  # (B or 1, 1, T, S)
        layer_cache: cache_tf.LayerCache | None,
        past: Tensor,  # (), how many tokens the cache holds
        head_mask: Tensor | None,
        training: bool,
    ) -> tuple[Tensor, Tensor, cache_tf.LayerCache | None]:
        q, k, v = (self._split(part) for part in tf.split(self.c_attn(x), 3, axis=-1))  # (B, H, T, D)
        if layer_cache is not None:
            layer_cache = cache_tf.append(layer_cache, k, v, past)
            k, v = layer_cache  # (B, H, S, D)
        scores = tf.matmul(tf.cast(q, tf.float32), tf.cast(k, tf.float32), transpose_b=True) / math.sqrt(self.head_dim)
        scores = tf.where(visible, scores, scores.dtype.min)  # (B, H, T, S)
        # a query that may see nothing gives zeros
        weights = tf.where(visible, tf.nn.softmax(scores, axis=-1), 0.0)
        weights = tf.cast(weights, v.dtype)
        if training:
            weights = self.attn_dropout(weights, training=True)
        if head_mask is not None:
            weights = weights * tf.cast(head_mask, weights.dtype)[:, None, None]
        out = self.c_proj(self._merge(tf.matmul(weights, v)))  # (B, T, C)
        return (self.resid_dropout(out, training=True) if training else out), weights, layer_cache

    def _split(self, x: Tensor) -> Tensor:
        shape = tf.shape(x)
        return tf.transpose(tf.reshape(x, [shape[0], shape[1], self.heads, self.head_dim]), [0, 2, 1, 3])

    def _merge(self, x: Tensor) -> Tensor:
        shape = tf.shape(x)
        return tf.reshape(tf.transpose(x, [0, 2, 1, 3]), [shape[0], shape[2], self.heads * self.head_dim])


class TFOpenAIGPTMLP(Module):
    """Position-wise feed-forward network, 4 * C wide."""

    def __init__(self, config: OpenAIGPTConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.c_fc = Conv1D(4 * config.n_embd, config.n_embd, config.initializer_range, dtype=self.dtype_policy)
        self.c_proj = Conv1D(config.n_embd, 4 * config.n_embd, config.initializer_range, dtype=self.dtype_policy)
        # In this family's files "gelu" has always meant the tanh approximation.
        self.act = activation("gelu_new" if config.afn == "gelu" else config.afn)
        self.dropout = keras.layers.Dropout(config.resid_pdrop, dtype=self.dtype_policy)

    def __call__(self, x: Tensor, training: bool) -> Tensor:  # (B, T, C) -> (B, T, C)
        out = self.c_proj(self.act(self.c_fc(x)))
        return self.dropout(out, training=True) if training else out


class TFOpenAIGPTBlock(Module):
    """Post-norm residual block: attention, norm, then the feed-forward network, norm."""

    def __init__(self, config: OpenAIGPTConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.attn = TFOpenAIGPTAttention(config, dtype=self.dtype_policy)
        self.ln_1 = LayerNorm(config.n_embd, config.layer_norm_epsilon, dtype=self.dtype_policy)
        self.mlp = TFOpenAIGPTMLP(config, dtype=self.dtype_policy)
        self.ln_2 = LayerNorm(config.n_embd, config.layer_norm_epsilon, dtype=self.dtype_policy)

    def __call__(
        self,
        x: Tensor,  # (B, T, C)
        visible: Tensor,
        layer_cache: cache_tf.LayerCache | None,
        past: Tensor,
        head_mask: Tensor | None,
        training: bool,
    ) -> tuple[Tensor, Tensor, cache_tf.LayerCache | None]:
        attended, weights, layer_cache = self.attn(x, visible, layer_cache, past, head_mask, training)
        x = self.ln_1(x + attended)
        return self.ln_2(x + self.mlp(x, training)), weights, layer_cache  # (B, T, C), (B, H, T, S)


class TFOpenAIGPTPreTrainedModel(TFPreTrainedModel):
    """What all OpenAI GPT classes share: their configuration and the names in the published files."""

    config: OpenAIGPTConfig
    config_class: ClassVar[type[PretrainedConfig]] = OpenAIGPTConfig
    base_model_prefix: ClassVar[str] = "transformer"
    # causal masks and positions, which old checkpoints hold as buffers
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [
        r"h\.\d+\.attn\.(masked_)?bias$",
        r"(^|\.)position_ids$",
    ]


@keras.saving.register_keras_serializable(package="triptych")
class TFOpenAIGPTModel(TFOpenAIGPTPreTrainedModel):
    """The bare decoder: token and position embeddings, blocks (specification page TFOpenAIGPTModel)."""

    def __init__(self, config: OpenAIGPTConfig, *inputs: Any, **kwargs: Any) -> None:
        super().__init__(config, *inputs, **kwargs)
        width, spread = config.n_embd, config.initializer_range
        self.tokens_embed = Embedding(config.vocab_size, width, spread, dtype=self.dtype_policy)
        self.positions_embed = Embedding(config.n_positions, width, spread, dtype=self.dtype_policy)
        self.drop = keras.layers.Dropout(config.embd_pdrop, dtype=self.dtype_policy)
        self.h = [TFOpenAIGPTBlock(config, dtype=self.dtype_policy) for _ in range(config.n_layer)]

    def get_input_embeddings(self) -> Embedding:
        """The token embedding `tokens_embed`, weight (V, C)."""
        return self.tokens_embed

    def call(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = False,
    ) -> TFBaseModelOutput | tuple[Any, ...]:
        """Hidden states of the tokens.

        Takes `input_ids` (B, T) or `inputs_embeds` (B, T, C); `attention_mask` (B, T), 1 at tokens and 0 at padding;
        `token_type_ids` (B, T), whose embeddings (rows of the token embedding) are added; `position_ids` (B, T),
        counted from 0 when not given; `head_mask` (H,) or (layers, H), 1 to keep a head and 0 to silence it. The batch
        may have two axes (B, choices), which last_hidden_state then has too; hidden_states before the last and
        attentions have them as one. All inputs may be given by name, in one list or tuple in this order, or in one
        dict. `training` lets dropout work.

        Returns: last_hidden_state (B, T, C), hidden_states (layers + 1 of (B, T, C)), attentions (a (B, H, T, T) per
            layer); as a tuple when `return_dict` is False.
        Raises: ValueError for both or neither of the inputs and for wrong shapes; TypeError for wrong dtypes and
            unknown names; TokenIdError; SequenceTooLongError.
        """
        output, _ = self.continue_from(
            None,
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            training=bool(training),
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def continue_from(
        self,
        cache: cache_tf.Cache | None,
        input_ids: Any = None,
        *,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        training: bool = False,
    ) -> tuple[TFBaseModelOutput, cache_tf.Cache | None]:
        """What `call` returns, for tokens that follow those in `cache`, and the cache that holds them too.

        None for `cache` begins anew and keeps nothing. With one, `attention_mask` is (B, S) and must be given, and so
        must `position_ids`.
        """
        config = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        x, shape = self._embedded(input_ids, inputs_embeds, token_type_ids)  # (B, T, C)
        length = x.shape[1] if x.shape[1] is not None else tf.shape(x)[1]
        positions = checked_positions(position_ids, attention_mask, x, length, config.n_positions)
        x += self.positions_embed(positions)
        if training:
            x = self.drop(x, training=True)
        past = tf.constant(0) if cache is None else cache.length
        if cache is None:
            visible = _causal(length, checked_mask(attention_mask, x))  # (B or 1, 1, T, T)
        else:
            visible = cache_tf.visible(attention_mask, past, length)  # (B, 1, T, S)

        head_masks = per_layer_head_mask(head_mask, config.n_layer, config.n_head)
        hidden_states, attentions = [], []
        layers: list[Any] = []
        for index, block in enumerate(self.h):
            hidden_states.append(x)
            layer = None if cache is None else cache.layers[index]
            x, weights, layer = block(x, visible, layer, past, head_masks[index], training)
            attentions.append(weights)
            layers.append(layer)
        x = x if shape is None else tf.reshape(x, tf.concat([shape, tf.shape(x)[1:]], axis=0))
        hidden_states.append(x)
        output = TFBaseModelOutput(
            last_hidden_state=x,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )
        return output, None if cache is None else cache_tf.advanced(cache, tuple(layers), length)

    def _embedded(self, input_ids: Any, inputs_embeds: Any, token_type_ids: Any) -> tuple[Tensor, Tensor | None]:
        """Vectors of the tokens and their types (B, T, C), and the batch's axes where those are not one."""
        if (input_ids is None) == (inputs_embeds is None):
            got = "neither" if input_ids is None else "both"
            raise ValueError(f"The input is input_ids or inputs_embeds, one of the two; got {got}. Pass one of them.")
        if input_ids is not None:
            given = checked_ids("input_ids", input_ids, self.config.vocab_size)
            axes = None if given.shape.rank == 2 else tf.shape(given)[:-1]
            x = self.tokens_embed(as_rows(given))
        else:
            given = tf.convert_to_tensor(inputs_embeds)
            if given.shape.rank is not None and (
                given.shape.rank < 3 or given.shape[-1] not in (None, self.config.n_embd)
            ):
                raise ValueError(
                    f"inputs_embeds must have shape (batch, length, {self.config.n_embd}); got {tuple(given.shape)}."
                )
            if not given.dtype.is_floating:
                raise TypeError(f"inputs_embeds must be vectors of real numbers; got {given.dtype.name}.")
            axes = None if given.shape.rank == 3 else tf.shape(given)[:-2]
            x = tf.cast(tf.reshape(given, [-1, tf.shape(given)[-2], self.config.n_embd]), self.compute_dtype)
        if token_type_ids is not None:
            types = as_rows(checked_ids("token_type_ids", token_type_ids, self.config.vocab_size))
            if not types.shape.is_compatible_with(x.shape[:2]):
                raise ValueError(
                    f"token_type_ids must have the tokens' shape {tuple(x.shape[:2])}; got {tuple(types.shape)}."
                )
            x += self.tokens_embed(types)
        return x, axes


def _causal(length: Any, mask: Tensor | None) -> Tensor:
    """Which of T tokens each may see: those up to its own that `mask` (B, T) leaves; (B or 1, 1, T, T)."""
    places = tf.range(length)
    visible = (places[None, :] <= places[:, None])[None, None]
    return visible if mask is None else visible & mask[:, None, None, :]


class _WithHead(TFOpenAIGPTPreTrainedModel):
    """A model with the decoder inside."""

    def __init__(self, config: OpenAIGPTConfig, *inputs: Any, **kwargs: Any) -> None:
        super().__init__(config, *inputs, **kwargs)
        self.transformer = TFOpenAIGPTModel(config, name="transformer", dtype=self.dtype_policy)


class _WithLMHead(_WithHead):
    """A model with a language model head, which is the token embedding unless the configuration unties them."""

    _tied_weights: ClassVar[dict[str, str]] = {"lm_head.weight": "transformer.tokens_embed.weight"}

    def __init__(self, config: OpenAIGPTConfig, *inputs: Any, **kwargs: Any) -> None:
        super().__init__(config, *inputs, **kwargs)
        if not config.tie_word_embeddings:
            width, spread = config.n_embd, config.initializer_range
            self.lm_head = Linear(width, config.vocab_size, spread, bias=False, dtype=self.dtype_policy)

    def get_output_embeddings(self) -> Any:
        """The layer whose weight (V, C) is the head's: `lm_head`, or the token embedding where they are tied."""
        return self.transformer.tokens_embed if self.config.tie_word_embeddings else self.lm_head

    def _logits(self, x: Tensor) -> Tensor:  # (..., C) -> (..., V)
        return times(x, cast(self.get_output_embeddings().weight, x.dtype), transposed=True)


@keras.saving.register_keras_serializable(package="triptych")
class TFOpenAIGPTLMHeadModel(_WithLMHead):
    """OpenAI GPT with a language model head, tied to the token embedding (page TFOpenAIGPTLMHeadModel)."""

    def call(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labels: Any = None,
        training: bool | None = False,
    ) -> TFCausalLMOutput | tuple[Any, ...]:
        """Logits of the next token after each token.

        Takes what `TFOpenAIGPTModel.call` takes, and `labels` (B, T): usually the input_ids themselves, as they are
        shifted inside; -100 does not count.

        Returns: loss (1,) when labels are given, logits (B, T, V), and the rest as from `TFOpenAIGPTModel`.
        """
        base, _ = self.transformer.continue_from(
            None,
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            training=bool(training),
        )
        logits = self._logits(base.last_hidden_state)  # (B, T, V)
        output = TFCausalLMOutput(
            loss=self.loss_of(logits, labels) if labels is not None else None,
            logits=logits,
            hidden_states=base.hidden_states,
            attentions=base.attentions,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def loss_of(self, logits: Tensor, labels: Any) -> Tensor:
        """The model's own loss (1,), which `fit` uses where `compile` was given none."""
        return next_token_loss(logits, labels)

    def next_token_logits(
        self, input_ids: Tensor, cache: cache_tf.Cache, attention_mask: Tensor, position_ids: Tensor
    ) -> tuple[Tensor, cache_tf.Cache]:
        """One decoding step, for `generate`: float32 logits (B, V) of the last position, and the cache after it."""
        base, seen = self.transformer.continue_from(
            cache, input_ids, attention_mask=attention_mask, position_ids=position_ids
        )
        assert seen is not None  # as there was a cache
        return tf.cast(self._logits(base.last_hidden_state[:, -1]), tf.float32), seen

    def new_cache(self, batch: Any, capacity: int) -> cache_tf.Cache:
        """An empty cache for `batch` rows and `capacity` tokens."""
        config = self.config
        head_dim = config.n_embd // config.n_head
        return cache_tf.new_cache(config.n_layer, batch, config.n_head, capacity, head_dim, self.compute_dtype)


@register_output
@dataclass
class TFOpenAIGPTDoubleHeadsModelOutput(ModelOutput):
    """`logits` (B, choices, T, V); `mc_logits` (B, choices); the rest as in the base model's output."""

    logits: Any = None
    mc_logits: Any = None
    hidden_states: Any = None
    attentions: Any = None


class TFOpenAIGPTSummary(Module):
    """One vector for each text: a pooled hidden state, projected and activated as the configuration says.

    Padding is not pooled: the first and the last token, and the mean, are those of the tokens.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("last", "first", "mean", "cls_index")

    def __init__(self, config: OpenAIGPTConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if config.summary_type not in self.KINDS:
            raise ValueError(
                f"summary_type must be one of {', '.join(self.KINDS)}; got {config.summary_type!r}. "
                "('attn' was announced in the documentation and never existed.)"
            )
        self.kind = config.summary_type
        width = config.num_labels if config.summary_proj_to_labels else config.n_embd
        self.first_dropout = keras.layers.Dropout(config.summary_first_dropout, dtype=self.dtype_policy)
        if config.summary_use_proj:
            self.summary = Linear(config.n_embd, width, config.initializer_range, dtype=self.dtype_policy)
        self.uses_projection = config.summary_use_proj
        self.activation = activation(config.summary_activation or "linear")

    def __call__(self, x: Tensor, mask: Tensor | None, cls_index: Tensor | None, training: bool) -> Tensor:
        """(B, T, C), a mask (B, T) and places of "cls_index" (B,), by default the last token, to (B, N) or (B, C)."""
        pooled = self._pooled(x, mask, cls_index)
        if training:
            pooled = self.first_dropout(pooled, training=True)
        return self.activation(self.summary(pooled) if self.uses_projection else pooled)

    def _pooled(self, x: Tensor, mask: Tensor | None, cls_index: Tensor | None) -> Tensor:
        if self.kind == "mean":
            shares = tf.ones(tf.shape(x)[:2], x.dtype) if mask is None else tf.cast(mask, x.dtype)
            return tf.einsum("bt,btc->bc", shares, x) / tf.maximum(tf.reduce_sum(shares, axis=1, keepdims=True), 1)
        if self.kind == "first":
            first = tf.zeros(tf.shape(x)[:1], tf.int32)
            place = first if mask is None else tf.argmax(tf.cast(mask, tf.int32), axis=1, output_type=tf.int32)
        elif self.kind == "cls_index" and cls_index is not None:
            place = cls_index
        else:
            place = last_token(None, mask, None, x)
        return tf.gather(x, place, axis=1, batch_dims=1)


@keras.saving.register_keras_serializable(package="triptych")
class TFOpenAIGPTDoubleHeadsModel(_WithLMHead):
    """OpenAI GPT with a language model head and one that scores each text as a choice.

    The choices' head has one label: `config.num_labels` becomes 1 (specification page TFOpenAIGPTDoubleHeadsModel).
    """

    def __init__(self, config: OpenAIGPTConfig, *inputs: Any, **kwargs: Any) -> None:
        config.num_labels = 1
        super().__init__(config, *inputs, **kwargs)
        self.multiple_choice_head = TFOpenAIGPTSummary(config, dtype=self.dtype_policy)

    def call(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        mc_token_ids: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = False,
    ) -> TFOpenAIGPTDoubleHeadsModelOutput | tuple[Any, ...]:
        """Logits of the next token after each token, and a score of each choice.

        Takes what `TFOpenAIGPTModel.call` takes, with `input_ids` (B, choices, T) and all that goes with them of that
        shape; a batch of one axis is taken as the choices of one example. `mc_token_ids` (B, choices) are the places of
        the classification tokens, by default each text's last token that `attention_mask` does not hide.

        Returns: logits (B, choices, T, V), mc_logits (B, choices) (or (B, choices, C) without the projection to
            labels), and the rest as from `TFOpenAIGPTModel`.
        Raises: ValueError for mc_token_ids of another shape or outside the text.
        """
        base, _ = self.transformer.continue_from(
            None,
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            training=bool(training),
        )
        x = base.last_hidden_state  # (B, choices, T, C)
        texts = tf.reshape(x, [-1, tf.shape(x)[-2], self.config.n_embd])  # (B * choices, T, C)
        places = None if mc_token_ids is None else tf.reshape(_checked_places(mc_token_ids, x), [-1])
        mask = checked_mask(attention_mask, texts)
        scores = self.multiple_choice_head(texts, mask, places, bool(training))  # (B * choices, 1 or C)
        scores = tf.reshape(scores, tf.concat([tf.shape(x)[:-2], [scores.shape[-1]]], axis=0))
        output = TFOpenAIGPTDoubleHeadsModelOutput(
            logits=self._logits(x),  # (B, choices, T, V)
            mc_logits=tf.squeeze(scores, axis=-1) if scores.shape[-1] == 1 else scores,
            hidden_states=base.hidden_states,
            attentions=base.attentions,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()


def _checked_places(mc_token_ids: Any, x: Tensor) -> Tensor:
    """Classification tokens as int32: one for each text of `x` (..., T, C), and in it."""
    places = tf.convert_to_tensor(mc_token_ids)
    if not places.dtype.is_integer:
        raise TypeError(f"mc_token_ids must be ints; got {places.dtype.name}.")
    if not places.shape.is_compatible_with(x.shape[:-2]):
        raise ValueError(
            f"mc_token_ids must have shape {tuple(x.shape[:-2])}, one place for each text; got {tuple(places.shape)}."
        )
    length = x.shape[-2]
    if is_known(places) and length is not None:
        outside = (places.numpy() < 0) | (places.numpy() >= length)
        if outside.any():
            where = tuple(int(index) for index in outside.nonzero()[0][:1])
            raise ValueError(
                f"mc_token_ids must be from 0 to {length - 1}, as the texts have {length} tokens; got "
                f"{places.numpy()[outside][0]} in row {where[0]}. Count places from the first token, padding included."
            )
    return tf.cast(places, tf.int32)


@keras.saving.register_keras_serializable(package="triptych")
class TFOpenAIGPTForSequenceClassification(_WithHead):
    """OpenAI GPT with a linear head on each row's last token (specification page TFOpenAIGPTForSequenceClassification).

    The last token is the last one that is not padding, on whichever side the padding is: told by `attention_mask`, else
    by `config.pad_token_id`, else simply the last.
    """

    def __init__(self, config: OpenAIGPTConfig, *inputs: Any, **kwargs: Any) -> None:
        super().__init__(config, *inputs, **kwargs)
        self.num_labels = config.num_labels
        width, spread = config.n_embd, config.initializer_range
        self.score = Linear(width, config.num_labels, spread, bias=False, dtype=self.dtype_policy)

    def call(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labels: Any = None,
        training: bool | None = False,
    ) -> TFSequenceClassifierOutput | tuple[Any, ...]:
        """Scores of each row's classes.

        Takes what `TFOpenAIGPTModel.call` takes, and `labels` (B,) of classes or values, or (B, N) of 0.0 and 1.0 for
        several labels a row; see `triptych.losses_tf.sequence_loss`.

        Returns: loss (B,) when labels are given, logits (B, N), and the rest as from `TFOpenAIGPTModel`.
        """
        base, _ = self.transformer.continue_from(
            None,
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            training=bool(training),
        )
        x = base.last_hidden_state
        x = tf.reshape(x, [-1, tf.shape(x)[-2], self.config.n_embd])  # (B, T, C)
        ids = None if input_ids is None else as_rows(tf.convert_to_tensor(input_ids))
        last = last_token(ids, checked_mask(attention_mask, x), self.config.pad_token_id, x)
        logits = self.score(tf.gather(x, last, axis=1, batch_dims=1))  # (B, N)
        output = TFSequenceClassifierOutput(
            loss=self.loss_of(logits, labels) if labels is not None else None,
            logits=logits,
            hidden_states=base.hidden_states,
            attentions=base.attentions,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def loss_of(self, logits: Tensor, labels: Any) -> Tensor:
        """The model's own loss (B,), which `fit` uses where `compile` was given none."""
        return sequence_loss(logits, labels, self.config)
