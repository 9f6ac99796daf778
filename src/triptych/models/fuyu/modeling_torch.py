"""Fuyu in PyTorch: Persimmon, whose text may hold patches of images.

There is no vision encoder: a patch's pixels go through one linear layer and stand where a placeholder token stood.
Bavishi et al., 2023, www.adept.ai/blog/fuyu-8b.

Shapes: B batch, T new tokens, C hidden_size, V vocabulary, N patches of a row, P values of a patch
(patch_size * patch_size * num_channels).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.configuration import PretrainedConfig
from triptych.inputs_torch import check_token_ids, shape_of_inputs
from triptych.modeling_torch import PreTrainedModel
from triptych.models.fuyu.configuration import FuyuConfig
from triptych.models.persimmon.modeling_torch import PastKeyValues, PersimmonForCausalLM
from triptych.outputs import CausalLMOutputWithPast
from triptych.runtime.cache import KeyValueCache
from triptych.runtime.preparing import NextToken, last_positions

Patches = Tensor | Sequence[Tensor | Sequence[Tensor] | None] | None


class FuyuPreTrainedModel(PreTrainedModel):
    """What the Fuyu classes share: their configuration and the names in the published files."""

    config: FuyuConfig
    config_class: ClassVar[type[PretrainedConfig]] = FuyuConfig
    base_model_prefix: ClassVar[str] = "fuyu"
    _no_split_modules: ClassVar[list[str]] = ["PersimmonDecoderLayer"]
    # frequencies, which old checkpoints hold as buffers
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"rotary_emb\.inv_freq$"]


class FuyuForCausalLM(FuyuPreTrainedModel):
    """Fuyu with its language model head (specification page FuyuForCausalLM)."""

    _tied_weights_keys: ClassVar[list[str]] = ["language_model.lm_head.weight"]

    def __init__(self, config: FuyuConfig) -> None:
        super().__init__(config)
        text_config = config.text_config
        text_config._attn_implementation = config._attn_implementation
        self.padding_idx = config.pad_token_id
        self.vocab_size = text_config.vocab_size
        self.patch_dim = config.patch_size * config.patch_size * config.num_channels
        self.language_model = PersimmonForCausalLM(text_config)
        self.vision_embed_tokens = nn.Linear(self.patch_dim, text_config.hidden_size)
        self.post_init()

    # -- the decoder's ---------------------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding of the decoder, weight (V, C)."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding of the decoder."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Linear:
        """The head of the decoder, weight (V, C)."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the head of the decoder."""
        self.language_model.set_output_embeddings(new_embeddings)

    def tie_weights(self) -> None:
        """Let the head be the token embedding, where the configuration or that of the decoder ties them."""
        super().tie_weights()
        self.language_model.tie_weights()

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> nn.Embedding:
        """Grow or shrink the vocabulary; the head and both configurations follow. See `PreTrainedModel`."""
        embedding = self.language_model.resize_token_embeddings(new_num_tokens, pad_to_multiple_of)
        self.vocab_size = self.config.vocab_size = embedding.num_embeddings
        self.tie_weights()
        return embedding

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Recompute the decoder's layers in the backward pass. See `PreTrainedModel`."""
        self.language_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations for the backward pass again."""
        self.language_model.gradient_checkpointing_disable()

    def new_cache(self, batch_size: int, capacity: int, windowed: bool = False) -> KeyValueCache:
        """An empty cache of the decoder's, with room for `capacity` tokens of each row. See `PreTrainedModel`."""
        return self.language_model.new_cache(batch_size, capacity, windowed)

    @property
    def decoder(self) -> PreTrainedModel:
        """Its language model."""
        return self.language_model

    @property
    def max_positions(self) -> int | None:
        """None: rotary positions have no last one, though models do worse past max_position_embeddings."""
        return self.language_model.max_positions

    @property
    def trained_positions(self) -> int | None:
        """Those of the decoder."""
        return self.language_model.trained_positions

    # -- forward ---------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        image_patches: Patches = None,
        image_patches_indices: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: PastKeyValues = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits of the next token after each new token.

        Takes `input_ids` (B, T) or `inputs_embeds` (B, T, C), in which images already are, so that patches given with
        them are not looked at, as in the documented release; `image_patches`, a tensor
        (B, N, P), or for each row a tensor (N, P), a list of such (several images), or None; `image_patches_indices`
        (B, T), k where patch k of the row stands and -1 elsewhere; and what `PersimmonModel.forward` takes. Patches
        are for the first step: with a past they are in the cache already, and are not looked at. `labels` (B, T) are
        usually the input_ids themselves, as they are shifted inside; -100 does not count.

        Returns: loss () when labels are given, logits (B, T, V), and the rest as from `PersimmonModel`.
        Raises: ValueError for wrong shapes, patches without places or places without patches; TokenIdError.
        """
        config = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output: CausalLMOutputWithPast = self.language_model(
            inputs_embeds=self._embedded(
                input_ids, inputs_embeds, past_key_values, image_patches, image_patches_indices
            ),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            use_cache=False if use_cache is None and not config.use_cache else use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def next_token_logits(self, input_ids: Tensor | None, **model_inputs: Any) -> NextToken:
        """One decoding step, for `generate`: logits (B, V) of the last position only, and the cache.

        Takes `cache` (None to go without), `last` (for the logits (B, last, V) of so many positions), and what
        `forward` takes.
        """
        if not self.forward_is_published:
            cache, last = model_inputs.pop("cache", None), model_inputs.pop("last", None)
            if model_inputs.pop("last_hidden", False):
                model_inputs["output_hidden_states"] = True
            model_inputs |= {"past_key_values": cache, "use_cache": cache is not None, "return_dict": True}
            out = self(input_ids, **model_inputs)
            logits = last_positions(out.logits, last)
            return NextToken(logits.float(), out.past_key_values, out.hidden_states, out.attentions)
        embeds = self._embedded(
            input_ids,
            model_inputs.pop("inputs_embeds", None),
            model_inputs.get("cache"),
            model_inputs.pop("image_patches", None),
            model_inputs.pop("image_patches_indices", None),
        )
        return self.language_model.next_token_logits(None, inputs_embeds=embeds, **model_inputs)

    def embedded(self, input_ids: Tensor, image_patches: Patches, image_patches_indices: Tensor | None) -> Tensor:
        """Vectors (B, T, C) of a prompt's words and patches, which `generate` may then feed in parts."""
        return self._embedded(input_ids, None, None, image_patches, image_patches_indices)

    def _embedded(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        past_key_values: PastKeyValues,
        image_patches: Patches,
        image_patches_indices: Tensor | None,
    ) -> Tensor:
        """Vectors (B, T, C) of words and, at the first step, of patches."""
        shape_of_inputs(input_ids, inputs_embeds)
        if inputs_embeds is not None or input_ids is None:
            return inputs_embeds  # type: ignore[return-value]  # one of the two is given
        words = self.get_input_embeddings()
        check_token_ids(input_ids, words.num_embeddings)
        embeds: Tensor = words(input_ids)
        if past_key_values or (image_patches is None and image_patches_indices is None):
            return embeds
        return self._with_patches(embeds, image_patches, image_patches_indices)

    def _with_patches(self, embeds: Tensor, image_patches: Patches, indices: Tensor | None) -> Tensor:
        """`embeds` (B, T, C) with the patches' vectors where `indices` say so."""
        batch, length = embeds.shape[:2]
        if indices is None:
            raise ValueError("image_patches need image_patches_indices, which say where they stand. Pass both.")
        if not isinstance(indices, Tensor) or indices.is_floating_point() or indices.dtype == torch.bool:
            got_type = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
            raise TypeError(f"image_patches_indices must be a tensor of ints; got {got_type}.")
        if indices.dim() != 2 or len(indices) != batch:
            got = tuple(indices.shape)
            raise ValueError(f"image_patches_indices must have shape (batch, length) = {(batch, length)}; got {got}.")
        rows = _patches_of_rows(image_patches, batch, self.patch_dim)
        counts = [sum(map(len, images)) for images in rows]
        _check_places(indices, counts, length, isinstance(image_patches, Tensor))
        if not sum(counts):
            return embeds
        weight = self.vision_embed_tokens.weight
        # weights kept elsewhere bring what they need to them
        device = embeds.device if weight.device.type == "meta" else weight.device
        patches = torch.cat([patches.to(device, weight.dtype) for images in rows for patches in images])
        vectors = self.vision_embed_tokens(patches).to(embeds)  # (all rows' N, C)
        starts = torch.tensor([0, *counts[:-1]], device=indices.device).cumsum(0)
        row, place = (indices >= 0).nonzero(as_tuple=True)
        chosen = indices[row, place] + starts[row]
        return embeds.index_put((row.to(embeds.device), place.to(embeds.device)), vectors[chosen.to(embeds.device)])


def _patches_of_rows(image_patches: Patches, batch: int, patch_dim: int) -> list[list[Tensor]]:
    """The patches of each row, (n, P) for each of its images.

    Raises: ValueError for another number of rows or another P; TypeError for what is no tensor.
    """
    if image_patches is None:
        return [[] for _ in range(batch)]
    if len(image_patches) != batch:
        raise ValueError(f"image_patches must have an entry for each of the {batch} rows; got {len(image_patches)}.")
    rows = []
    for number, entry in enumerate(image_patches):
        images = [] if entry is None else [entry] if isinstance(entry, Tensor) else list(entry)
        for patches in images:
            if not isinstance(patches, Tensor):
                raise TypeError(
                    "image_patches must be a tensor (batch, patches, patch_dim), or a list of a tensor "
                    f"(patches, patch_dim) for each row; row {number} has {type(patches).__name__}."
                )
            if patches.dim() < 2 or patches.shape[-1] != patch_dim:
                raise ValueError(
                    f"A patch must have patch_size * patch_size * num_channels = {patch_dim} values; row {number} has "
                    f"image_patches of shape {tuple(patches.shape)}. Use an image processor of the model's patch_size."
                )
        rows.append([patches.flatten(0, -2) for patches in images])
    return rows


def _check_places(indices: Tensor, counts: list[int], length: int, padded: bool) -> None:
    """Refuse places without a patch and patches without a place; the patches of a `padded` tensor need no place.

    Columns behind the input's `length` may be there, if they place nothing.

    Raises: ValueError naming the row.
    """
    if torch.compiler.is_compiling():
        return
    if indices.shape[1] > length and bool((indices[:, length:] >= 0).any()):
        raise ValueError(
            f"image_patches_indices must place patches within the input's {length} tokens, and place some behind them. "
            "Truncate both alike."
        )
    in_order = F.pad(indices, (1, 0), value=-1).sort(dim=1).values
    distinct = (in_order.diff(dim=1) > 0).sum(dim=1).tolist()  # -1 comes first and is not counted
    for row, (count, high, used) in enumerate(zip(counts, in_order[:, -1].tolist(), distinct, strict=True)):
        if high >= count:
            raise ValueError(
                f"image_patches_indices must be below the row's number of patches, or -1; row {row} has {count} "
                f"patches and the index {high}."
            )
        if used < count and not padded:
            raise ValueError(
                f"Each patch needs a place in image_patches_indices; row {row} has {count} patches and {used} places. "
                "Was the text cut within an image? Make the image smaller, or allow more tokens."
            )
