"""The base of the PyTorch models: how they are made, initialised, tied, resized, pruned, loaded and saved."""

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
import torch.utils._pytree
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from triptych import outputs
from triptych.checkpoints import pretrained_torch
from triptych.configuration import PretrainedConfig
from triptych.generation import decoding_torch
from triptych.generation.configuration import GenerationConfig
from triptych.generation.transitions_torch import transition_scores
from triptych.reshaping_torch import check_heads, resize_embeddings
from triptych.runtime import devices, quantization
from triptych.runtime.attention import check_implementation
from triptych.runtime.cache import KeyValueCache
from triptych.runtime.preparing import NextToken
from triptych.runtime.quantized_linear import QuantizedLinear

_OutputClass = TypeVar("_OutputClass", bound=type[outputs.ModelOutput])


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
            check_heads(self.config, self.config.pruned_heads)
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
        skipped = {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)} if exclude_embeddings else set()
        counted = (p for p in self.parameters() if id(p) not in skipped and (p.requires_grad or not only_trainable))
        return sum(p.numel() for p in counted) + (0 if only_trainable else quantization.untied_numel(self))

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the parameters, and of the buffers."""
        tensors = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        size: int = sum(t.nbytes for t in tensors)
        return size + sum(layer.nbytes for layer in quantization.quantized_layers(self))

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
        if head is not None and self.config.tie_word_embeddings and not isinstance(head, QuantizedLinear):
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
        resize_embeddings(self, new_num_tokens, pad_to_multiple_of)
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
        check_heads(self.config, pruned)
        self._prune(pruned)
        self.config.pruned_heads = {layer: sorted(heads) for layer, heads in sorted(pruned.items())}

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
        """How the weights are held: "int8" or "int4", or None for floats."""
        return quantization.quantization_of(self)

    def quantize(self, kind: str = "int8") -> Self:
        """Hold the matrices of the blocks and of the head in 8 or 4 bits: less memory, and on a CPU faster decoding.

        With "int4" the head has 8 bits, and layers with inputs that 32 does not divide stay float. A CPU needs nothing
        for it, a GPU torchao. The float matrices are let go of. Embeddings, norms and biases stay as they are, and
        nothing is trained any more. `state_dict` and `save_pretrained` give float weights, those that the bits stand
        for.

        Raises: ValueError for another `kind`, a model that is quantised to another, weights that are no numbers, or a
            device or processor without such kernels; ImportError naming the extra that is missing. The model is then
            as it was.
        """
        self._prepared = None
        quantization.quantize_model(self, kind)
        return self.requires_grad_(False)

    def dequantize(self) -> Self:
        """Hold all matrices as floats again, with the values that their bits stand for. Training works again.

        A tied head is the token embedding again, which was never rounded. A model of floats stays as it is.
        """
        if self.quantization is None:
            return self
        quantization.dequantize_layers(self)
        self.tie_weights()
        return self.requires_grad_(True)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        try:
            for layer in quantization.quantized_layers(self)[:1]:
                layer.check_place(fn)  # before anything is moved
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]
        except devices.NOT_THERE:
            devices.check_move(fn)
            raise

    def _refuse_quantized(self, what: str) -> None:
        if self.quantization:
            raise ValueError(f"A model with quantised weights cannot {what}. Call model.dequantize() first.")

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
    def decoder(self) -> "PreTrainedModel":
        """The model whose step decodes: itself, or its language model."""
        return self

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

    step_class: ClassVar[type[Any] | None] = None  # what a family's `step_torch` has, for its decoder
    prepares_decoding: bool | None = None
    compiles_decoding: bool = False
    _prepared: Any = None

    def prepare_decoding(self, enabled: bool = True, compile: bool = False) -> None:  # noqa: A002
        """Prepare the model anew at the next decoding step, or never (`enabled=False`).

        Without this call `generate` prepares it by itself where that helps. On a CPU, for float32 or int8 weights,
        their copy is fused and packed, if it takes at most a quarter of the free memory. On a GPU the step is captured
        as a CUDA graph. With `compile` it goes through `torch.compile` before that, which takes up to some minutes at
        the second token of a new batch size or of a text twice as long; on a CPU packed weights are quicker than what
        that makes, so there it has no effect.

        What is prepared lasts until the weights change, the model is put in train mode, or this is called; it is in no
        state dict, pickle or copy of the model.
        """
        for model in self.modules():
            if isinstance(model, PreTrainedModel):
                model._prepared = None
                model.prepares_decoding, model.compiles_decoding = enabled, compile

    def train(self, mode: bool = True) -> Self:
        """Put the model in train mode, which ends its preparation for decoding, or in eval mode.

        Raises: ValueError for quantised weights, of which nothing can be trained.
        """
        if mode:
            self._refuse_quantized("be trained")
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
