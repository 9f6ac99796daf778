"""GPT Neo in PyTorch.

Decoder-only transformer whose layers are of two kinds: global attention, and local attention over a sliding
window. Scores are not scaled by 1/sqrt(head_dim). Black et al., 2021, doi:10.5281/zenodo.5297715.

Shapes: B batch, T new tokens, S cached + new tokens, H heads, D head_dim, C hidden_size, V vocabulary,
N num_labels.
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
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
from triptych.losses_torch import last_token, logits_and_loss, sequence_loss, span_loss, token_loss
from triptych.modeling_torch import PreTrainedModel
from triptych.models.gpt_neo.configuration import GPTNeoConfig
from triptych.models.gpt_neo.step_torch import GPTNeoStep
from triptych.outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from triptych.reshaping_torch import kept_after_pruning, selected
from triptych.runtime.attention import AttentionMask, attend, merge_heads, split_heads
from triptych.runtime.cache import KeyValueCache, LayerCache, open_layers
from triptych.runtime.preparing import NextToken, last_positions, prepared_step

PastKeyValues = Sequence[tuple[Tensor, Tensor]] | None


class GPTNeoSelfAttention(nn.Module):
    """Causal attention over all tokens ("global") or the last `window_size` of them ("local")."""

    def __init__(self, config: GPTNeoConfig, kind: str) -> None:
        super().__init__()
        hidden = config.hidden_size
        if hidden % config.num_heads:
            raise ValueError(f"hidden_size must be a multiple of num_heads; got {hidden} and {config.num_heads}.")
        self.config = config
        self.num_heads = config.num_heads
        self.head_dim = hidden // config.num_heads
        self.window = config.window_size if kind == "local" else None
        self.kept_heads = list(range(config.num_heads))
        self.k_proj = nn.Linear(hidden, hidden, bias=False)
        self.v_proj = nn.Linear(hidden, hidden, bias=False)
        self.q_proj = nn.Linear(hidden, hidden, bias=False)
        self.out_proj = nn.Linear(hidden, hidden, bias=True)
        self.attn_dropout = nn.Dropout(config.attention_dropout)
        self.resid_dropout = nn.Dropout(config.resid_dropout)

    def forward(
        self,
        x: Tensor,  # (B, T, C)
        mask: AttentionMask,
        cache: LayerCache | None,
        head_mask: Tensor | None,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = (split_heads(p(x), self.head_dim) for p in (self.q_proj, self.k_proj, self.v_proj))  # (B, H, T, D)
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
            scale=1.0,
            window=self.window,
            dropout=self.attn_dropout.p if self.training else 0.0,
            head_mask=head_mask,
            need_weights=need_weights,
        )  # (B, H, T, D)
        return self.resid_dropout(self.out_proj(merge_heads(out))), weights  # (B, T, C)

    def prune(self, heads: Iterable[int]) -> None:
        """Take away heads, numbered as they were before any pruning."""
        self.kept_heads, features = kept_after_pruning(self.kept_heads, heads, self.head_dim)
        self.num_heads = len(self.kept_heads)
        for layer in (self.q_proj, self.k_proj, self.v_proj):
            layer.weight = selected(layer.weight, 0, features)
            layer.out_features = len(features)
        self.out_proj.weight = selected(self.out_proj.weight, 1, features)
        self.out_proj.in_features = len(features)


class GPTNeoAttention(nn.Module):
    """Holds the attention under the name it has in the published files (`attn.attention`)."""

    def __init__(self, config: GPTNeoConfig, layer: int) -> None:
        super().__init__()
        self.attention = GPTNeoSelfAttention(config, config.attention_layers[layer])

    def forward(
        self,
        x: Tensor,
        mask: AttentionMask,
        cache: LayerCache | None,
        head_mask: Tensor | None,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        attended: tuple[Tensor, Tensor | None] = self.attention(x, mask, cache, head_mask, need_weights)
        return attended


class GPTNeoMLP(nn.Module):
    """Position-wise feed-forward network, `intermediate_size` wide."""

    def __init__(self, config: GPTNeoConfig) -> None:
        super().__init__()
        inner = config.intermediate_size or 4 * config.hidden_size
        self.c_fc = nn.Linear(config.hidden_size, inner)
        self.c_proj = nn.Linear(inner, config.hidden_size)
        self.act = Activation(config.activation_function)
        self.dropout = nn.Dropout(config.resid_dropout)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        out: Tensor = self.dropout(self.c_proj(self.act(self.c_fc(x))))
        return out


class GPTNeoBlock(nn.Module):
    """Pre-norm residual block: attention, then the feed-forward network."""

    def __init__(self, config: GPTNeoConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.attn = GPTNeoAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = GPTNeoMLP(config)

    def forward(
        self,
        x: Tensor,  # (B, T, C)
        mask: AttentionMask,
        cache: LayerCache | None,
        head_mask: Tensor | None,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        attended, weights = self.attn(self.ln_1(x), mask, cache, head_mask, need_weights)
        x = x + attended
        return x + self.mlp(self.ln_2(x)), weights  # (B, T, C), (B, H, T, S)


class GPTNeoPreTrainedModel(PreTrainedModel):
    """What all GPT Neo classes share: their configuration and the names in the published files."""

    config: GPTNeoConfig
    config_class: ClassVar[type[PretrainedConfig]] = GPTNeoConfig
    base_model_prefix: ClassVar[str] = "transformer"
    _no_split_modules: ClassVar[list[str]] = ["GPTNeoBlock"]
    # causal masks, which old checkpoints hold as buffers
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"h\.\d+\.attn\.(attention\.)?(masked_)?bias"]

    @property
    def layer_windows(self) -> list[int | None]:
        """How many tokens each layer sees: `config.window_size` in local ones, else None for all."""
        config = self.config
        return [config.window_size if kind == "local" else None for kind in config.attention_layers]


class GPTNeoModel(GPTNeoPreTrainedModel):
    """The bare decoder: token and position embeddings, blocks, final norm (specification page GPTNeoModel)."""

    def __init__(self, config: GPTNeoConfig) -> None:
        super().__init__(config)
        self.embed_dim = config.hidden_size
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.wpe = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.drop = nn.Dropout(config.embed_dropout)
        self.h = nn.ModuleList(GPTNeoBlock(config, layer) for layer in range(config.num_layers))
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding `wte`, weight (V, C)."""
        return self.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace `wte`."""
        self.wte = value

    def _prune(self, heads: Mapping[int, Iterable[int]]) -> None:
        for layer, gone in heads.items():
            block: GPTNeoBlock = self.h[layer]  # type: ignore[assignment]
            block.attn.attention.prune(gone)

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: PastKeyValues = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPastAndCrossAttentions | tuple[Any, ...]:
        """Hidden states of the new tokens.

        Takes `input_ids` (B, T) or `inputs_embeds` (B, T, C); `past_key_values`, a (key, value) pair of
        (B, H, S - T, D) per layer; `attention_mask` (B, S), 1 at tokens and 0 at padding; `token_type_ids` (B, T),
        whose embeddings (rows of the token embedding) are added; `position_ids` (B, T), counted from the past's
        length when not given; `head_mask` (H,) or (layers, H), 1 to keep a head and 0 to silence it.
        Weights are returned, and head masks applied, by the eager implementation whichever is chosen.

        Returns: last_hidden_state (B, T, C), past_key_values, hidden_states (layers + 1 of (B, T, C)),
            attentions (a (B, H, T, S) per layer); as a tuple when `return_dict` is False.
        Raises: ValueError for both or neither of the inputs and for wrong shapes; TokenIdError;
            SequenceTooLongError.
        """
        config = self.config
        recompute = self.gradient_checkpointing if self.training and torch.is_grad_enabled() else None
        if recompute and use_cache:
            warnings.warn("use_cache=True has no effect while gradient checkpointing trains.", stacklevel=2)
        use_cache = not recompute and (config.use_cache if use_cache is None else use_cache)
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states

        layers = open_layers(past_key_values, config.num_layers) if use_cache or past_key_values is not None else None
        past = layers[0].length if layers else 0
        head_masks = per_layer_head_mask(head_mask, config.num_layers, config.num_heads)
        shape, _ = shape_of_inputs(input_ids, inputs_embeds)
        x, mask = self.enter(past, input_ids, inputs_embeds, attention_mask, token_type_ids, position_ids)
        x = self.drop(x)  # (B, T, C)

        hidden_states, attentions = [], []
        for index, block in enumerate(self.h):
            if output_hidden_states:
                hidden_states.append(x)
            inputs = (x, mask, layers[index] if layers else None, head_masks[index], output_attentions)
            if recompute:
                x, weights = recompute(_run_again, block, *inputs)
            else:
                x, weights = block(*inputs)
            attentions.append(weights)
        x = self.ln_f(x)
        x = x.view(*shape, -1)
        hidden_states.append(x)

        output = BaseModelOutputWithPastAndCrossAttentions(
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
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> tuple[Tensor, AttentionMask]:
        """What the first block is given: vectors (B, T, C) of the new tokens behind `past` others, and the mask."""
        shape, device = shape_of_inputs(input_ids, inputs_embeds)
        batch, length = math.prod(shape[:-1]), shape[-1]
        mask = AttentionMask.of(attention_mask, batch, length, past, device)
        if position_ids is None:
            check_length(past + length, self.config.max_position_embeddings, past)
            position_ids = counted_positions(attention_mask, past, length, device)
        x = sum_of_embeddings(
            self.wte,
            self.wpe,
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            batch=batch,
            length=length,
        )
        return x, mask


def _run_again(
    block: GPTNeoBlock,
    x: Tensor,
    mask: AttentionMask,
    cache: LayerCache | None,
    head_mask: Tensor | None,
    need_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    """A block as gradient checkpointing runs it, twice: each time from the same past."""
    out: tuple[Tensor, Tensor | None] = block(x, mask, cache.fork() if cache else None, head_mask, need_weights)
    return out


class GPTNeoForCausalLM(GPTNeoPreTrainedModel):
    """GPT Neo with a language model head, tied to the token embedding (specification page GPTNeoForCausalLM)."""

    _tied_weights_keys: ClassVar[list[str]] = ["lm_head.weight"]
    step_class: ClassVar[type[Any] | None] = GPTNeoStep

    def __init__(self, config: GPTNeoConfig) -> None:
        super().__init__(config)
        self.transformer = GPTNeoModel(config)
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
        past_key_values: PastKeyValues = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithCrossAttentions | tuple[Any, ...]:
        """Logits of the next token after each new token.

        Takes what `GPTNeoModel.forward` takes, and `labels` (B, T): usually the input_ids themselves, as they are
        shifted inside; -100 does not count.

        Returns: loss () when labels are given, logits (B, T, V), and the rest as from `GPTNeoModel`.
        """
        base = self.transformer(
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits, loss = logits_and_loss(self.lm_head, base.last_hidden_state, labels)  # (B, T, V), ()
        output = CausalLMOutputWithCrossAttentions(
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
        (True for the last hidden state, as the last of hidden_states), and what `GPTNeoModel.forward` takes.
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
            out = self.transformer(input_ids, **model_inputs)
            logits = self.lm_head(last_positions(out.last_hidden_state, last))
        else:
            out = self(input_ids, **model_inputs)
            logits = last_positions(out.logits, last)
        return NextToken(logits.float(), out.past_key_values, out.hidden_states, out.attentions)


class GPTNeoForSequenceClassification(GPTNeoPreTrainedModel):
    """GPT Neo with a linear head on each row's last token (specification page GPTNeoForSequenceClassification).

    The last token is the last one that is not padding, on whichever side the padding is: told by
    `attention_mask`, else by `config.pad_token_id`, else simply the last.
    """

    def __init__(self, config: GPTNeoConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.transformer = GPTNeoModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: PastKeyValues = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutputWithPast | tuple[Any, ...]:
        """Scores of each row's classes.

        Takes what `GPTNeoModel.forward` takes, and `labels` (B,) of classes or values, or (B, N) of 0.0 and 1.0
        for several labels a row; see `triptych.losses_torch.sequence_loss`.

        Returns: loss () when labels are given, logits (B, N), and the rest as from `GPTNeoModel`.
        """
        base = self.transformer(
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        x = base.last_hidden_state.flatten(0, -3)
        batch, length = x.shape[:2]
        last = last_token(input_ids, attention_mask, self.config.pad_token_id, batch, length).to(x.device)
        logits = self.score(x[torch.arange(batch, device=x.device), last])  # (B, N)
        output = SequenceClassifierOutputWithPast(
            loss=sequence_loss(logits, labels, self.config) if labels is not None else None,
            logits=logits,
            past_key_values=base.past_key_values,
            hidden_states=base.hidden_states,
            attentions=base.attentions,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()


class GPTNeoForTokenClassification(GPTNeoPreTrainedModel):
    """GPT Neo with a linear head on every token (specification page GPTNeoForTokenClassification)."""

    def __init__(self, config: GPTNeoConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.transformer = GPTNeoModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: PastKeyValues = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> TokenClassifierOutput | tuple[Any, ...]:
        """Scores of each token's classes.

        Takes what `GPTNeoModel.forward` takes, and `labels` (B, T) of classes; -100 does not count. The cache is
        read but, as documented, not returned.

        Returns: loss () when labels are given, logits (B, T, N), hidden_states, attentions.
        """
        base = self.transformer(
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            use_cache=False,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.classifier(self.dropout(base.last_hidden_state))  # (B, T, N)
        output = TokenClassifierOutput(
            loss=token_loss(logits, labels) if labels is not None else None,
            logits=logits,
            hidden_states=base.hidden_states,
            attentions=base.attentions,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()


class GPTNeoForQuestionAnswering(GPTNeoPreTrainedModel):
    """GPT Neo with a head for where an answer starts and ends (specification page GPTNeoForQuestionAnswering)."""

    def __init__(self, config: GPTNeoConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.transformer = GPTNeoModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> QuestionAnsweringModelOutput | tuple[Any, ...]:
        """Scores of each token for being the answer's first and its last.

        Takes what `GPTNeoModel.forward` takes, without a cache, and `start_positions` and `end_positions` (B,);
        positions outside the sequence do not count.

        Returns: loss () when both positions are given, start_logits and end_logits (B, T), hidden_states,
            attentions.
        """
        base = self.transformer(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            use_cache=False,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        start_logits, end_logits = (x.contiguous() for x in self.qa_outputs(base.last_hidden_state).unbind(-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = span_loss(start_logits, end_logits, start_positions, end_positions)
        output = QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,  # (B, T)
            end_logits=end_logits,  # (B, T)
            hidden_states=base.hidden_states,
            attentions=base.attentions,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()
