"""OpenAI GPT in PyTorch.

Decoder-only transformer whose blocks normalise after each residual sum, and which has no norm at the end. Radford et
al., 2018, "Improving Language Understanding by Generative Pre-Training".

The documented `forward` takes no past. Decoding goes through `OpenAIGPTModel.continue_from`, which does.

Shapes: B batch, T new tokens, S cached + new tokens, H heads, D head_dim, C n_embd, V vocabulary, N num_labels.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.activations_torch import Activation
from triptych.configuration import PretrainedConfig
from triptych.inputs_torch import (
    check_length,
    counted_positions,
    per_layer_head_mask,
    shape_of_inputs,
    sum_of_embeddings,
)
from triptych.losses_torch import choice_loss, last_token, logits_and_loss, sequence_loss
from triptych.modeling_torch import PreTrainedModel, register_output
from triptych.models.openai_gpt.configuration import OpenAIGPTConfig
from triptych.models.openai_gpt.step_torch import OpenAIGPTStep
from triptych.outputs import BaseModelOutput, CausalLMOutput, ModelOutput, SequenceClassifierOutput
from triptych.reshaping_torch import kept_after_pruning, selected
from triptych.runtime.attention import AttentionMask, attend, merge_heads, split_heads
from triptych.runtime.cache import KeyValueCache, LayerCache, open_layers
from triptych.runtime.preparing import NextToken, last_positions, prepared_step


class Conv1D(nn.Module):
    """A linear layer whose weight is (in, out), as the published files have it."""

    weight_is_transposed: ClassVar[bool] = True

    def __init__(self, out_features: int, in_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_features, out_features))
        self.bias = nn.Parameter(torch.empty(out_features))
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        return F.linear(x, self.weight.t(), self.bias)

    def keep(self, features: Tensor, dim: int) -> None:
        """Take away all inputs (`dim` 0) or all outputs (`dim` 1) but those named."""
        self.weight = selected(self.weight, dim, features)
        if dim == 1:
            self.bias = selected(self.bias, 0, features)


class OpenAIGPTAttention(nn.Module):
    """Causal attention over all tokens; queries, keys and values come from one product."""

    def __init__(self, config: OpenAIGPTConfig) -> None:
        super().__init__()
        if config.n_embd % config.n_head:
            raise ValueError(f"n_embd must be a multiple of n_head; got {config.n_embd} and {config.n_head}.")
        self.config = config
        self.head_dim = config.n_embd // config.n_head
        self.kept_heads = list(range(config.n_head))
        self.c_attn = Conv1D(3 * config.n_embd, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)
        self.attn_dropout = nn.Dropout(config.attn_pdrop)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(
        self,
        x: Tensor,  # (B, T, C)
        mask: AttentionMask,
        cache: LayerCache | None,
        head_mask: Tensor | None,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = (split_heads(part, self.head_dim) for part in self.c_attn(x).chunk(3, dim=-1))  # (B, H, T, D)
        if cache is not None:
            k, v = cache.append(k, v)  # (B, H, S, D)
        if head_mask is not None and len(self.kept_heads) < len(head_mask):
            head_mask = head_mask[self.kept_heads]
        out, weights = attend(
            q,
            k,
            v,
            mask,
            impl=self.config._attn_implementation or "eager",
            scale=1 / math.sqrt(self.head_dim),
            dropout=self.attn_dropout.p if self.training else 0.0,
            head_mask=head_mask,
            need_weights=need_weights,
        )  # (B, H, T, D)
        return self.resid_dropout(self.c_proj(merge_heads(out))), weights  # (B, T, C)

    def prune(self, heads: Iterable[int]) -> None:
        """Take away heads, numbered as they were before any pruning."""
        width = len(self.kept_heads) * self.head_dim
        self.kept_heads, features = kept_after_pruning(self.kept_heads, heads, self.head_dim)
        self.c_attn.keep(torch.cat([features + part * width for part in range(3)]), dim=1)
        self.c_proj.keep(features, dim=0)


class OpenAIGPTMLP(nn.Module):
    """Position-wise feed-forward network, 4 * C wide."""

    def __init__(self, config: OpenAIGPTConfig) -> None:
        super().__init__()
        self.c_fc = Conv1D(4 * config.n_embd, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, 4 * config.n_embd)
        # In this family's files "gelu" has always meant the tanh approximation.
        self.act = Activation("gelu_new" if config.afn == "gelu" else config.afn)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        out: Tensor = self.dropout(self.c_proj(self.act(self.c_fc(x))))
        return out


class OpenAIGPTBlock(nn.Module):
    """Post-norm residual block: attention, norm, then the feed-forward network, norm."""

    def __init__(self, config: OpenAIGPTConfig) -> None:
        super().__init__()
        self.attn = OpenAIGPTAttention(config)
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = OpenAIGPTMLP(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    def forward(
        self,
        x: Tensor,  # (B, T, C)
        mask: AttentionMask,
        cache: LayerCache | None,
        head_mask: Tensor | None,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        attended, weights = self.attn(x, mask, cache, head_mask, need_weights)
        x = self.ln_1(x + attended)
        return self.ln_2(x + self.mlp(x)), weights  # (B, T, C), (B, H, T, S)


class OpenAIGPTPreTrainedModel(PreTrainedModel):
    """What all OpenAI GPT classes share: their configuration and the names in the published files."""

    config: OpenAIGPTConfig
    config_class: ClassVar[type[PretrainedConfig]] = OpenAIGPTConfig
    base_model_prefix: ClassVar[str] = "transformer"
    _no_split_modules: ClassVar[list[str]] = ["OpenAIGPTBlock"]
    # causal masks and positions, which old checkpoints hold as buffers
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [
        r"h\.\d+\.attn\.(masked_)?bias$",
        r"(^|\.)position_ids$",
    ]

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Conv1D):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            nn.init.zeros_(module.bias)


class OpenAIGPTModel(OpenAIGPTPreTrainedModel):
    """The bare decoder: token and position embeddings, blocks (specification page OpenAIGPTModel)."""

    def __init__(self, config: OpenAIGPTConfig) -> None:
        super().__init__(config)
        self.tokens_embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions_embed = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(OpenAIGPTBlock(config) for _ in range(config.n_layer))
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding `tokens_embed`, weight (V, C)."""
        return self.tokens_embed

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace `tokens_embed`."""
        self.tokens_embed = value

    def _prune(self, heads: Mapping[int, Iterable[int]]) -> None:
        for layer, gone in heads.items():
            block: OpenAIGPTBlock = self.h[layer]  # type: ignore[assignment]
            block.attn.prune(gone)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """Hidden states of the tokens.

        Takes `input_ids` (B, T) or `inputs_embeds` (B, T, C); `attention_mask` (B, T), 1 at tokens and 0 at padding;
        `token_type_ids` (B, T), whose embeddings (rows of the token embedding) are added; `position_ids` (B, T),
        counted from 0 when not given; `head_mask` (H,) or (layers, H), 1 to keep a head and 0 to silence it. The
        batch may have two axes (B, choices), which last_hidden_state then has too; hidden_states before the last
        and attentions have them as one. Weights are returned, and head masks applied, by the eager implementation
        whichever is chosen.

        Returns: last_hidden_state (B, T, C), hidden_states (layers + 1 of (B, T, C)), attentions (a (B, H, T, T) per
            layer); as a tuple when `return_dict` is False.
        Raises: ValueError for both or neither of the inputs and for wrong shapes; TokenIdError;
            SequenceTooLongError.
        """
        output = self.continue_from(
            None,
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def continue_from(
        self,
        layers: list[LayerCache] | None,
        input_ids: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutput:
        """What `forward` returns, for tokens that follow those in `layers`, which then hold them too.

        None for `layers` begins anew and keeps nothing. Otherwise as `forward`, with `attention_mask` (B, S).
        """
        config = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        shape, _ = shape_of_inputs(input_ids, inputs_embeds)
        head_masks = per_layer_head_mask(head_mask, config.n_layer, config.n_head)
        past = layers[0].length if layers else 0
        x, mask = self.enter(past, input_ids, inputs_embeds, attention_mask, token_type_ids, position_ids)
        x = self.drop(x)  # (B, T, C)

        recompute = self.gradient_checkpointing if self.training and torch.is_grad_enabled() and not layers else None
        hidden_states, attentions = [], []
        for index, block in enumerate(self.h):
            if output_hidden_states:
                hidden_states.append(x)
            inputs = (x, mask, layers[index] if layers else None, head_masks[index], output_attentions)
            if recompute:
                x, weights = recompute(block, *inputs)
            else:
                x, weights = block(*inputs)
            attentions.append(weights)
        x = x.reshape(*shape, x.shape[-1])
        hidden_states.append(x)
        return BaseModelOutput(
            last_hidden_state=x,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def enter(
        self,
        past: int,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> tuple[Tensor, AttentionMask]:
        """What the first block is given: vectors (B, T, C) of the new tokens behind `past` others, and the mask."""
        shape, device = shape_of_inputs(input_ids, inputs_embeds)
        batch, length = math.prod(shape[:-1]), shape[-1]
        mask = AttentionMask.of(attention_mask, batch, length, past, device)
        check_length(past + length, self.config.n_positions, past)
        if position_ids is None:
            position_ids = counted_positions(attention_mask, past, length, device)
        x = sum_of_embeddings(
            self.tokens_embed,
            self.positions_embed,
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            batch=batch,
            length=length,
        )
        return x, mask


def _as_rows(values: Tensor | None) -> Tensor | None:
    """(..., T) -> (B, T): all axes before the last are the batch."""
    return None if values is None else values.reshape(-1, values.shape[-1])


class OpenAIGPTLMHeadModel(OpenAIGPTPreTrainedModel):
    """OpenAI GPT with a language model head, tied to the token embedding (specification page OpenAIGPTLMHeadModel)."""

    _tied_weights_keys: ClassVar[list[str]] = ["lm_head.weight"]
    step_class: ClassVar[type[Any] | None] = OpenAIGPTStep

    def __init__(self, config: OpenAIGPTConfig) -> None:
        super().__init__(config)
        self.transformer = OpenAIGPTModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
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
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutput | tuple[Any, ...]:
        """Logits of the next token after each token.

        Takes what `OpenAIGPTModel.forward` takes, and `labels` (B, T): usually the input_ids themselves, as they are
        shifted inside; -100 does not count.

        Returns: loss () when labels are given, logits (B, T, V), and the rest as from `OpenAIGPTModel`.
        """
        base = self.transformer(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits, loss = logits_and_loss(self.lm_head, base.last_hidden_state, labels)  # (B, T, V), ()
        output = CausalLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=base.hidden_states,
            attentions=base.attentions,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()

    @property
    def decodes_with_cache(self) -> bool:
        """False for a `forward` of the user's own: the documented one takes no past."""
        return self.forward_is_published

    def next_token_logits(self, input_ids: Tensor | None, **model_inputs: Any) -> NextToken:
        """One decoding step, for `generate`: logits (B, V) of the last position only, and the cache.

        Takes `cache` (None to go without), `last` (for the logits (B, last, V) of so many positions), `last_hidden`
        (True for the last hidden state, as the last of hidden_states), and what `OpenAIGPTModel.forward` takes.
        """
        cache = model_inputs.pop("cache", None)
        last, last_hidden = model_inputs.pop("last", None), model_inputs.pop("last_hidden", False)
        if not self.forward_is_published:
            out = self(input_ids, return_dict=True, **model_inputs)
            return NextToken(last_positions(out.logits, last).float(), None, out.hidden_states, out.attentions)
        step = prepared_step(self, input_ids, cache, model_inputs, last=last, last_hidden=last_hidden)
        if step is not None:
            return step
        layers = open_layers(cache, self.config.n_layer) if cache is not None else None
        if last_hidden:
            model_inputs["output_hidden_states"] = True
        base = self.transformer.continue_from(layers, input_ids, **model_inputs)
        logits = self.lm_head(last_positions(base.last_hidden_state, last))
        seen = KeyValueCache.of_layers(layers) if layers is not None else None
        return NextToken(logits.float(), seen, base.hidden_states, base.attentions)


@register_output
@dataclass
class OpenAIGPTDoubleHeadsModelOutput(ModelOutput):
    """`loss` () of the language model; `mc_loss` () of the choices; `logits` (B, choices, T, V); `mc_logits`
    (B, choices); the rest as in the base model's output.
    """

    loss: Any = None
    mc_loss: Any = None
    logits: Any = None
    mc_logits: Any = None
    hidden_states: Any = None
    attentions: Any = None


class OpenAIGPTSummary(nn.Module):
    """One vector for each text: a pooled hidden state, projected and activated as the configuration says.

    Padding is not pooled: the first and the last token, and the mean, are those of the tokens.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("last", "first", "mean", "cls_index")

    def __init__(self, config: OpenAIGPTConfig) -> None:
        super().__init__()
        if config.summary_type not in self.KINDS:
            raise ValueError(
                f"summary_type must be one of {', '.join(self.KINDS)}; got {config.summary_type!r}. "
                "('attn' was announced in the documentation and never existed.)"
            )
        self.kind = config.summary_type
        width = config.num_labels if config.summary_proj_to_labels else config.n_embd
        self.first_dropout = nn.Dropout(config.summary_first_dropout)
        self.summary = nn.Linear(config.n_embd, width) if config.summary_use_proj else nn.Identity()
        self.activation = Activation(config.summary_activation or "linear")

    def forward(self, x: Tensor, attention_mask: Tensor | None, cls_index: Tensor | None) -> Tensor:
        """(B, T, C), a mask (B, T) and places of "cls_index" (B,), by default the last token, to (B, N) or (B, C)."""
        out: Tensor = self.activation(self.summary(self.first_dropout(self._pooled(x, attention_mask, cls_index))))
        return out

    def _pooled(self, x: Tensor, mask: Tensor | None, cls_index: Tensor | None) -> Tensor:
        batch, length = x.shape[:2]
        if self.kind == "mean":
            shares = x.new_ones(batch, length) if mask is None else (mask != 0).to(x.device, x.dtype)
            return torch.einsum("bt,btc->bc", shares, x) / shares.sum(dim=1, keepdim=True).clamp(min=1)
        if self.kind == "first":
            place = torch.zeros(batch, dtype=torch.long) if mask is None else (mask != 0).int().argmax(dim=1)
        elif self.kind == "cls_index" and cls_index is not None:
            place = cls_index
        else:
            place = last_token(None, mask, None, batch, length)
        return x[torch.arange(batch, device=x.device), place.to(x.device)]


class OpenAIGPTDoubleHeadsModel(OpenAIGPTPreTrainedModel):
    """OpenAI GPT with a language model head and one that scores each text as a choice.

    The choices' head has one label: `config.num_labels` becomes 1 (specification page OpenAIGPTDoubleHeadsModel).
    """

    _tied_weights_keys: ClassVar[list[str]] = ["lm_head.weight"]

    def __init__(self, config: OpenAIGPTConfig) -> None:
        super().__init__(config)
        config.num_labels = 1
        self.transformer = OpenAIGPTModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.multiple_choice_head = OpenAIGPTSummary(config)
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
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        mc_token_ids: Tensor | None = None,
        labels: Tensor | None = None,
        mc_labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> OpenAIGPTDoubleHeadsModelOutput | tuple[Any, ...]:
        """Logits of the next token after each token, and a score of each choice.

        Takes what `OpenAIGPTModel.forward` takes, with `input_ids` (B, choices, T) and all that goes with them of
        that shape; a batch of one axis is taken as the choices of one example. `mc_token_ids` (B, choices) are the
        places of the classification tokens, by default each text's last token that `attention_mask` does not hide.
        `labels` (B, choices, T) are shifted inside and -100 does not count; `mc_labels` (B,) are the right choices.

        Returns: loss () when labels are given, mc_loss () when mc_labels are given, logits (B, choices, T, V),
            mc_logits (B, choices) (or (B, choices, C) without the projection to labels), and the rest as from
            `OpenAIGPTModel`.
        Raises: ValueError for mc_token_ids of another shape or outside the text.
        """
        if mc_token_ids is not None:
            _check_places(mc_token_ids, shape_of_inputs(input_ids, inputs_embeds)[0])
        base = self.transformer(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        x = base.last_hidden_state  # (B, choices, T, C)
        logits, loss = logits_and_loss(self.lm_head, x, labels)  # (B, choices, T, V), ()
        texts = x.reshape(-1, *x.shape[-2:])  # (B * choices, T, C)
        places = mc_token_ids.flatten() if mc_token_ids is not None else None
        scores = self.multiple_choice_head(texts, _as_rows(attention_mask), places)  # (B * choices, 1 or C)
        mc_logits = scores.reshape(*x.shape[:-2], -1).squeeze(-1)  # (B, choices)
        mc_loss = None
        if mc_labels is not None:
            mc_loss = choice_loss(mc_logits.reshape(-1, mc_logits.shape[-1]), mc_labels)
        output = OpenAIGPTDoubleHeadsModelOutput(
            loss=loss,
            mc_loss=mc_loss,
            logits=logits,
            mc_logits=mc_logits,
            hidden_states=base.hidden_states,
            attentions=base.attentions,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()


def _check_places(mc_token_ids: Tensor, shape: torch.Size) -> None:
    """Refuse classification tokens that are not one for each text of `shape` (..., T), or not in it."""
    if mc_token_ids.shape != shape[:-1]:
        raise ValueError(
            f"mc_token_ids must have shape {tuple(shape[:-1])}, one place for each text; "
            f"got {tuple(mc_token_ids.shape)}."
        )
    if torch.compiler.is_compiling():
        return
    outside = (mc_token_ids < 0) | (mc_token_ids >= shape[-1])
    if bool(outside.any()):
        where = outside.nonzero()[0].tolist()
        raise ValueError(
            f"mc_token_ids must be from 0 to {shape[-1] - 1}, as the texts have {shape[-1]} tokens; got "
            f"{mc_token_ids[tuple(where)].item()} at {where}. Count places from the first token, padding included."
        )


class OpenAIGPTForSequenceClassification(OpenAIGPTPreTrainedModel):
    """OpenAI GPT with a linear head on each row's last token (specification page OpenAIGPTForSequenceClassification).

    The last token is the last one that is not padding, on whichever side the padding is: told by
    `attention_mask`, else by `config.pad_token_id`, else simply the last.
    """

    def __init__(self, config: OpenAIGPTConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.transformer = OpenAIGPTModel(config)
        self.score = nn.Linear(config.n_embd, config.num_labels, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Scores of each row's classes.

        Takes what `OpenAIGPTModel.forward` takes, and `labels` (B,) of classes or values, or (B, N) of 0.0 and 1.0
        for several labels a row; see `triptych.losses_torch.sequence_loss`.

        Returns: loss () when labels are given, logits (B, N), and the rest as from `OpenAIGPTModel`.
        """
        base = self.transformer(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        x = base.last_hidden_state
        x = x.reshape(-1, *x.shape[-2:])  # (B, T, C)
        batch, length = x.shape[:2]
        pad = self.config.pad_token_id
        last = last_token(input_ids, attention_mask, pad, batch, length).to(x.device)
        logits = self.score(x[torch.arange(batch, device=x.device), last])  # (B, N)
        output = SequenceClassifierOutput(
            loss=sequence_loss(logits, labels, self.config) if labels is not None else None,
            logits=logits,
            hidden_states=base.hidden_states,
            attentions=base.attentions,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()
