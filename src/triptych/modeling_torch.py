"""The base of the PyTorch models: how they are made, initialised, tied, resized, pruned, loaded and saved."""

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import torch
import torch.utils._pytree
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from triptych import outputs
from triptych.checkpoints import pretrained_torch
from triptych.configuration import PretrainedConfig, positive_int
from triptych.generation import decoding_torch
from triptych.generation.configuration import GenerationConfig
from triptych.generation.transitions_torch import transition_scores
from triptych.runtime import devices
from triptych.runtime.attention import check_implementation
from triptych.runtime.cache import KeyValueCache
from triptych.runtime.quantization import (
    Int8Linear,
    check_quantization,
    dequantize_layers,
    quantize_layers,
    quantized_layers,
)

_OutputClass = TypeVar("_OutputClass", bound=type[outputs.ModelOutput])


class NextToken(NamedTuple):
    """What a decoding step needs of a model: `logits` (B, V) of the last position, in float32, and the cache.

    Of several positions, where `last` asked for them: (B, last, V).
    """

    logits: Tensor
    cache: KeyValueCache | None
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class PreTrainedModel(nn.Module):
    """A model with a configuration, weights on disk and the methods that every family shares.

    A family sets the class attributes, calls `post_init` at the end of its constructors, and gives
    `get_input_embeddings` / `set_input_embeddings` on its base model.
    """

    config_class: ClassVar[type[PretrainedConfig]] = PretrainedConfig
    base_model_prefix: ClassVar[str] = ""
    main_input_name: ClassVar[str] = "input_ids"
    framework: ClassVar[str] = "pt"
    supports_gradient_checkpointing: ClassVar[bool] = True
    _tied_weights_keys: ClassVar[list[str]] = []
    _no_split_modules: ClassVar[list[str]] = []
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = []

    generation_config: GenerationConfig | None

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            raise TypeError(
                f"{type(self).__name__} is made from a {self.config_class.__name__}; got {type(config).__name__}. "
                f"To load weights by name, use {type(self).__name__}.from_pretrained(...)."
            )
        self.config = config
        config._attn_implementation = check_implementation(config._attn_implementation)
        self.name_or_path = config.name_or_path
        self.generation_config = GenerationConfig.from_model_config(config) if self.can_generate() else None
        self.warnings_issued: dict[str, bool] = {}

    # -- making ----------------------------------------------------------------------------------------------

    def post_init(self) -> None:
        """Initialise the weights, take away pruned heads and tie what is tied. Called at the end of constructors."""
        if next(self.parameters()).device.type != "meta":
            inner = [child for child in self.children() if isinstance(child, PreTrainedModel)]
            done = {module for child in inner for module in child.modules()}  # by its own constructor
            for module in self.modules():
                if module not in done:
                    self._init_weights(module)
        if vars(self.config).get("gradient_checkpointing"):  # how older scripts ask for it
            del self.config.gradient_checkpointing
            self.gradient_checkpointing_enable()
        if self.config.pruned_heads:
            self._check_heads(self.config.pruned_heads)
            self._prune(self.config.pruned_heads)
        self.tie_weights()

    def init_weights(self) -> None:
        """Initialise every module's own parameters."""
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module's own parameters: N(0, initializer_range) for matrices, 0 for biases, 1 for norms."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])
        if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @classmethod
    def _from_config(
        cls, config: PretrainedConfig, torch_dtype: torch.dtype | str | None = None, **kwargs: Any
    ) -> Self:
        config = copy.deepcopy(config)  # a model of one's own has a configuration of one's own
        if kwargs.pop("use_flash_attention_2", False):  # how older scripts ask for it
            kwargs.setdefault("attn_implementation", "flash_attention_2")
        if "attn_implementation" in kwargs:
            config._attn_implementation = kwargs.pop("attn_implementation")
        model = cls(config, **kwargs)
        return model.to(pretrained_torch.named_dtype(torch_dtype)) if torch_dtype is not None else model

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None,
        *model_args: Any,
        config: PretrainedConfig | str | Path | None = None,
        cache_dir: str | Path | None = None,
        ignore_mismatched_sizes: bool = False,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str = "main",
        use_safetensors: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a model from a folder, from a hub name or from those that ship inside the package; in eval mode.

        See `triptych.checkpoints.pretrained_torch.load_pretrained` for every option. A local folder never touches
        the network, and nothing in a checkpoint is ever run.

        Returns: the model; with `output_loading_info=True` (model, what was missing, unexpected or mismatched).
        Raises: CheckpointError, WeightMismatchError, TypeError for an unknown option.
        """
        return pretrained_torch.load_pretrained(
            cls,
            pretrained_model_name_or_path,
            *model_args,
            config=config,
            cache_dir=cache_dir,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            revision=revision,
            use_safetensors=use_safetensors,
            **kwargs,
        )

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        save_function: Callable[..., None] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        variant: str | None = None,
        token: str | bool | None = None,
        save_peft_format: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write configuration and weights into a folder, all of them or nothing.

        See `triptych.checkpoints.pretrained_torch.save_pretrained` for every option.

        Raises: OSError when the folder cannot be written; what was there before is then unchanged.
        """
        pretrained_torch.save_pretrained(
            self,
            save_directory,
            is_main_process=is_main_process,
            state_dict=state_dict,
            save_function=save_function,
            push_to_hub=push_to_hub,
            max_shard_size=max_shard_size,
            safe_serialization=safe_serialization,
            variant=variant,
            token=token,
            save_peft_format=save_peft_format,
            **kwargs,
        )

    # -- facts -----------------------------------------------------------------------------------------------

    @property
    def base_model(self) -> "PreTrainedModel":
        """The model without a head; itself when it has none."""
        base: PreTrainedModel = getattr(self, self.base_model_prefix, self)
        return base

    @property
    def device(self) -> torch.device:
        """Where the first parameter lives."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating parameter."""
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """A small batch to try the model on."""
        return {"input_ids": torch.arange(6).remainder(self.config.vocab_size).view(2, 3)}

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the parameters hold, tied ones once."""
        excluded = (
            {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)} if exclude_embeddings else set()
        )
        tied: nn.Module | None = self.get_output_embeddings() if self.config.tie_word_embeddings else None
        of_8_bits = [layer for layer in quantized_layers(self) if layer is not tied and not only_trainable]
        quantized = sum(layer.numel for layer in of_8_bits)
        return int(quantized) + sum(
            p.numel() for p in self.parameters() if id(p) not in excluded and (p.requires_grad or not only_trainable)
        )

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the parameters, and of the buffers."""
        tensors = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        size: int = sum(t.nbytes for t in tensors) + sum(layer.nbytes for layer in quantized_layers(self))
        return size

    def _wants_dict(self, return_dict: bool | None) -> bool:
        return self.config.use_return_dict if return_dict is None else return_dict

    # -- embeddings ------------------------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding, weight (V, C)."""
        return self.base_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding."""
        self.base_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Linear | None:
        """The layer from hidden states to vocabulary logits; None where there is none."""
        return None

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the layer from hidden states to vocabulary logits."""
        raise TypeError(f"{type(self).__name__} has no output embeddings to replace.")

    def tie_weights(self) -> None:
        """Let the output embedding be the input embedding, where the configuration ties them."""
        head = self.get_output_embeddings()
        if head is not None and self.config.tie_word_embeddings and not isinstance(head, Int8Linear):
            head.weight = self.get_input_embeddings().weight
            head.out_features = head.weight.shape[0]

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> nn.Embedding:
        """Grow or shrink the vocabulary; the head follows.

        New rows start at the mean of the old ones, so the loss does not jump. With `pad_to_multiple_of` the size is
        rounded up. Without any argument nothing changes.

        Returns: the input embedding, weight (new_num_tokens, C).
        Raises: ValueError unless both arguments are positive ints where given.
        """
        self._refuse_quantized("be resized")
        if new_num_tokens is not None:
            new_num_tokens = positive_int("new_num_tokens", new_num_tokens)
        if pad_to_multiple_of is not None:
            pad_to_multiple_of = positive_int("pad_to_multiple_of", pad_to_multiple_of)
        embedding = self.get_input_embeddings()
        if new_num_tokens is None and pad_to_multiple_of is None:
            return embedding
        size = embedding.num_embeddings if new_num_tokens is None else new_num_tokens
        size += -size % (pad_to_multiple_of or 1)
        if size != embedding.num_embeddings:
            _resize(embedding, size)
            head = self.get_output_embeddings()
            if head is not None and not self.config.tie_word_embeddings:
                _resize(head, size)
        self.config.vocab_size = size
        self.tie_weights()
        return self.get_input_embeddings()

    # -- heads -----------------------------------------------------------------------------------------------

    def prune_heads(self, heads_to_prune: dict[int, Iterable[int]]) -> None:
        """Take attention heads away for good: {layer: [heads]}, numbered as they were before any pruning.

        The configuration remembers them, so the saved model loads in its pruned form.

        Raises: ValueError when a layer or head does not exist, or a layer would be left without heads.
        """
        self._refuse_quantized("lose heads")
        pruned = {layer: set(heads) for layer, heads in self.config.pruned_heads.items()}
        for layer, heads in heads_to_prune.items():
            pruned[int(layer)] = pruned.get(int(layer), set()) | set(heads)
        self._check_heads(pruned)
        self._prune(pruned)
        self.config.pruned_heads = {layer: sorted(heads) for layer, heads in sorted(pruned.items())}

    def _check_heads(self, pruned: Mapping[int, Iterable[int]]) -> None:
        num_layers, num_heads = self.config.num_hidden_layers, self.config.num_attention_heads
        for layer, heads in pruned.items():
            if not 0 <= layer < num_layers or not set(heads) < set(range(num_heads)):
                raise ValueError(
                    f"Pruned heads must be of layers 0 to {num_layers - 1} and heads 0 to {num_heads - 1}, and leave "
                    f"each layer a head; got heads {sorted(heads)} of layer {layer}."
                )

    def _prune(self, heads: Mapping[int, Iterable[int]]) -> None:
        if self.base_model is self:
            raise TypeError(f"{type(self).__name__} does not support head pruning.")
        self.base_model._prune(heads)

    # -- training --------------------------------------------------------------------------------------------

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether the backward pass recomputes blocks instead of keeping their activations."""
        return any(getattr(module, "gradient_checkpointing", None) for module in self.modules())

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Recompute blocks in the backward pass: less memory, about a third more time.

        The keyword arguments go to `torch.utils.checkpoint.checkpoint`; `use_reentrant` is False by default.
        """
        self.base_model.gradient_checkpointing = partial(
            checkpoint, **({"use_reentrant": False} | (gradient_checkpointing_kwargs or {}))
        )

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations for the backward pass again."""
        self.base_model.gradient_checkpointing = None

    gradient_checkpointing: Callable[..., Any] | None = None
    _input_grad_hook: RemovableHandle | None = None

    def enable_input_require_grads(self) -> None:
        """Make the embeddings' output require gradients, as adapters on a frozen model need."""
        self.disable_input_require_grads()
        self._input_grad_hook = self.get_input_embeddings().register_forward_hook(_require_grad)

    def disable_input_require_grads(self) -> None:
        """Undo `enable_input_require_grads`."""
        if self._input_grad_hook is not None:
            self._input_grad_hook.remove()
            self._input_grad_hook = None

    # -- quantisation ----------------------------------------------------------------------------------------

    @property
    def quantization(self) -> str | None:
        """How the weights are held: "int8", or None for floats."""
        return "int8" if quantized_layers(self) else None

    def quantize(self, kind: str = "int8") -> Self:
        """Hold the matrices of the blocks and of the head in 8 bits: less memory, faster decoding, on a CPU.

        The float matrices are let go of. Embeddings, norms and biases stay as they are, and nothing is trained any
        more. `state_dict` and `save_pretrained` give float weights, those that the 8 bits stand for.

        Raises: ValueError for another `kind`, a model that is not on the CPU, or a processor without such kernels.
        """
        check_quantization(kind)
        places = {value.device.type for value in self.parameters()}
        if places != {"cpu"}:
            raise ValueError(f"quantization='int8' is for models on the CPU; this one is on {', '.join(places)}.")
        self._prepared = None
        quantize_layers(self, self._no_split_modules, self.get_output_embeddings())
        return self.requires_grad_(False)

    def dequantize(self) -> Self:
        """Hold all matrices as float32 again, with the values that their 8 bits stand for. Training works again.

        A tied head is the token embedding again, which was never rounded.
        """
        dequantize_layers(self)
        self.tie_weights()
        return self.requires_grad_(True)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        try:
            for layer in quantized_layers(self)[:1]:
                layer.check_place(fn)  # before anything is moved
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]
        except devices.NOT_THERE:
            devices.check_move(fn)
            raise

    def _refuse_quantized(self, what: str) -> None:
        if self.quantization:
            raise ValueError(f"A model with weights of 8 bits cannot {what}. Call model.dequantize() first.")

    # -- generation ------------------------------------------------------------------------------------------

    @classmethod
    def can_generate(cls) -> bool:
        """Whether `generate` works: the class has a language model head."""
        return cls.next_token_logits is not PreTrainedModel.next_token_logits

    @property
    def trained_positions(self) -> int | None:
        """How many tokens the model was trained to read; past them it still runs, if `max_positions` allows it."""
        return self.max_positions

    @property
    def max_positions(self) -> int | None:
        """How many tokens fit; None when there is no limit."""
        return self.config.max_position_embeddings  # type: ignore[no-any-return]

    @property
    def layer_windows(self) -> list[int | None]:
        """How many tokens each layer sees; None for all of them."""
        return [None] * self.config.num_hidden_layers

    def new_cache(self, batch_size: int, capacity: int, windowed: bool = False) -> KeyValueCache:
        """An empty cache with room for `capacity` tokens of each row.

        A `windowed` one costs the memory of the layers' windows, and holds no more than their tokens for them; else
        it always reads as the documented tuple.
        """
        windows = self.layer_windows
        return KeyValueCache.reserved(len(windows), capacity, windows if windowed else None)

    @property
    def forward_is_published(self) -> bool:
        """Whether a call does what this package's `forward` does and nothing else, so that `generate` may shorten it.

        False for a `forward` of the user's own and for one that is wrapped or watched by hooks.
        """
        watched = self._forward_hooks or self._forward_pre_hooks or "forward" in vars(self)
        return not watched and type(self).forward.__module__.startswith("triptych.")

    @property
    def decodes_with_cache(self) -> bool:
        """Whether `generate` may feed new tokens alone, behind a cache."""
        return True

    prepares_decoding: bool | None = None
    _prepared: Any = None

    def prepare_decoding(self, enabled: bool = True) -> None:
        """Fuse and pack the weights anew at the next decoding step, or never (`enabled=False`).

        Without this call `generate` does so by itself where it helps: for float32 or int8 weights on a CPU, if a copy
        of the matrices takes at most a quarter of the free memory. The copy lasts until the weights change, the model
        is put in train mode, or this is called; it is in no state dict, pickle or copy of the model.
        """
        for model in self.modules():
            if isinstance(model, PreTrainedModel):
                model._prepared = None
                model.prepares_decoding = enabled

    def train(self, mode: bool = True) -> Self:
        """Put the model in train mode, which ends its preparation for decoding, or in eval mode."""
        if mode:
            self._prepared = None
        return super().train(mode)

    def next_token_logits(self, input_ids: Tensor | None, **model_inputs: Any) -> NextToken:
        """One decoding step, for `generate`: the last position's logits and the cache that now holds the input."""
        raise TypeError(f"{type(self).__name__} has no language model head, so it cannot generate.")

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]] | None = None,
        synced_gpus: bool | None = None,
        assistant_model: "PreTrainedModel | None" = None,
        streamer: Any = None,
        negative_prompt_ids: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Continue the prompts `inputs` (B, T); see `triptych.generation.decoding_torch.generate`.

        Returns: ids (B * num_return_sequences, T'), prompt included; or an output object when
            `return_dict_in_generate`.
        """
        return decoding_torch.generate(
            self,
            inputs,
            generation_config=generation_config,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            synced_gpus=synced_gpus,
            assistant_model=assistant_model,
            streamer=streamer,
            negative_prompt_ids=negative_prompt_ids,
            negative_prompt_attention_mask=negative_prompt_attention_mask,
            **kwargs,
        )

    compute_transition_scores = staticmethod(transition_scores)


def _require_grad(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.requires_grad_(True)


def kept_after_pruning(heads: list[int], gone: Iterable[int], head_dim: int) -> tuple[list[int], Tensor]:
    """Those of `heads` that are not gone, and where their features are among the features of `heads`."""
    gone = set(gone)
    places = [place for place, head in enumerate(heads) if head not in gone]
    features = torch.tensor([place * head_dim + d for place in places for d in range(head_dim)])
    return [heads[place] for place in places], features


def selected(weight: Tensor, dim: int, index: Tensor) -> nn.Parameter:
    """Some rows or columns of a parameter, as a parameter that is trained or not as it was."""
    kept = weight.detach().index_select(dim, index.to(weight.device)).contiguous()
    return nn.Parameter(kept, requires_grad=weight.requires_grad)


def _resize(layer: nn.Embedding | nn.Linear, size: int) -> None:
    """Give an Embedding or a bias-free Linear `size` rows: the old ones, then their mean. Its hooks stay."""
    old = layer.weight.data
    rows = min(size, old.shape[0])
    weight = torch.empty((size, old.shape[1]), dtype=old.dtype, device=old.device)
    weight[:rows] = old[:rows]
    weight[rows:] = old.mean(dim=0, dtype=torch.float32).to(old.dtype)
    layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    if isinstance(layer, nn.Linear):
        layer.out_features = size
    else:
        layer.num_embeddings = size
        if layer.padding_idx is not None and layer.padding_idx >= size:
            layer.padding_idx = None


def register_output(output_class: _OutputClass) -> _OutputClass:
    """Let torch look inside an output object, as data parallelism and export do. Usable as a decorator."""
    torch.utils._pytree.register_pytree_node(
        output_class,
        lambda output: (list(output.values()), list(output.keys())),
        lambda values, names: output_class(**dict(zip(names, values, strict=True))),
        serialized_type_name=f"{output_class.__module__}.{output_class.__name__}",
    )
    return output_class


for _class in outputs.ModelOutput.__subclasses__():
    register_output(_class)
