"""The base of the Flax models: their parameters, how they are made, cast, sharded, loaded and saved."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from triptych import inputs_flax, outputs, sharding_flax
from triptych.checkpoints import pretrained_flax
from triptych.checkpoints.matching import quote
from triptych.configuration import PretrainedConfig
from triptych.generation import decoding_flax
from triptych.generation.configuration import GenerationConfig
from triptych.generation.outputs import FlaxBeamSearchOutput, FlaxGreedySearchOutput, FlaxSampleOutput
from triptych.trees import Leaf, leaves_of, plain, tree_of

Params = dict[str, Any]


class FlaxPreTrainedModel:
    """A Linen module with a configuration, parameters, weights on disk and the methods that every family shares.

    `params` are nested dicts of arrays; every method that uses them takes others in their place, so that a model is as
    well a bundle of pure functions. A family sets the class attributes and gives `init_cache` and `__call__`.
    """

    config_class: ClassVar[type[PretrainedConfig]] = PretrainedConfig
    module_class: ClassVar[type[nn.Module]] = nn.Module
    base_model_prefix: ClassVar[str] = ""
    main_input_name: ClassVar[str] = "input_ids"
    framework: ClassVar[str] = "flax"
    partition_rules: ClassVar[tuple[tuple[str, tuple[str | None, ...]], ...]] = ()
    _published_order: ClassVar[tuple[str, ...]] = ()  # the parts of published names, as PyTorch's model has them
    _tied_weights: ClassVar[dict[str, str]] = {}  # published name that may be in a file → the one that stands for it
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = []

    generation_config: GenerationConfig | None

    def __init__(
        self,
        config: PretrainedConfig,
        input_shape: tuple[int, int] = (1, 1),
        seed: int = 0,
        dtype: Any = jnp.float32,
        _do_init: bool = True,
        **kwargs: Any,
    ) -> None:
        if not isinstance(config, self.config_class):
            raise TypeError(
                f"{type(self).__name__} is made from a {self.config_class.__name__}; got {type(config).__name__}. "
                f"To load weights by name, use {type(self).__name__}.from_pretrained(...)."
            )
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"dtype must be a floating dtype, as jnp.float32 or jnp.bfloat16; got {dtype!r}.")
        self.config = config
        # The module is compiled, so what it was made with stays as it is.
        self._module = self.module_class(config=copy.deepcopy(config), dtype=dtype, **kwargs)
        self.dtype = jnp.dtype(dtype)
        self.key = jax.random.PRNGKey(seed)
        self.input_shape = input_shape
        self.name_or_path = config.name_or_path
        self.generation_config = GenerationConfig.from_model_config(config) if self.can_generate() else None
        self._is_initialized = _do_init
        self._params: Params | None = self.init_weights(self.key, input_shape) if _do_init else None

    # -- parameters --------------------------------------------------------------------------------------------

    @property
    def module(self) -> nn.Module:
        """The Linen module: `model.module.apply({"params": params}, input_ids)`."""
        return self._module

    @property
    def params(self) -> Params:
        """The parameters, as nested dicts.

        Raises: ValueError when the model was made with `_do_init=False`, which leaves them to the user.
        """
        if self._params is None:
            raise ValueError(
                "The model was made with _do_init=False, so it holds no parameters. Pass params=… to each call; "
                "init_weights(rng, input_shape) makes new ones."
            )
        return self._params

    @params.setter
    def params(self, params: Mapping[str, Any]) -> None:
        if not self._is_initialized:
            raise ValueError(
                "The model was made with _do_init=False, so it holds no parameters. Keep them beside it, and pass "
                "params=… to each call."
            )
        self._params = self.checked_params(params)

    @cached_property
    def params_shape_tree(self) -> Params:
        """Shape and dtype of each parameter, as `jax.ShapeDtypeStruct`s; nothing is computed."""
        shapes: Params = plain(jax.eval_shape(partial(self._new_params, input_shape=(1, 1)), self.key))
        return shapes

    @cached_property
    def required_params(self) -> set[Leaf]:
        """The place of each parameter in the tree."""
        return set(leaves_of(self.params_shape_tree))

    def num_params(self, params: Mapping[str, Any] | None = None) -> int:
        """How many numbers the parameters hold."""
        return sum(leaf.size for leaf in jax.tree_util.tree_leaves(params or self.params_shape_tree))

    def checked_params(self, params: Mapping[str, Any]) -> Params:
        """The parameters as nested dicts.

        Raises: ValueError naming the leaves that are missing, that the model does not have or that have another shape.
        """
        own: Params = plain(params) if isinstance(params, Mapping) else {}
        given, wanted = leaves_of(own), leaves_of(self.params_shape_tree)
        for problem, leaves in (("lack", wanted.keys() - given.keys()), ("also have", given.keys() - wanted.keys())):
            if leaves:
                raise ValueError(
                    f"params must have the leaves of {type(self).__name__}, but they {problem} "
                    f"{quote(sorted('/'.join(leaf) for leaf in leaves), 5)}. Make them with init_weights or "
                    "from_pretrained of this class."
                )
        for leaf, value in given.items():
            if value.shape != wanted[leaf].shape:
                raise ValueError(
                    f"params/{'/'.join(leaf)} must have the shape {wanted[leaf].shape}; got {value.shape}. Use the "
                    "configuration that they were made with."
                )
        return own

    def init_weights(self, rng: Any, input_shape: tuple[int, int], params: Mapping[str, Any] | None = None) -> Params:
        """New parameters in float32, drawn with the key `rng`; leaves of `params` are kept where they are given.

        `input_shape` is (B, T) of an input; the parameters do not depend on it.
        """
        new: Params = self._compiled_init(rng, input_shape=tuple(input_shape))
        if params is None:
            return new
        known = leaves_of(params)
        return tree_of({leaf: known.get(leaf, value) for leaf, value in leaves_of(new).items()})

    def _new_params(self, rng: Any, input_shape: tuple[int, int]) -> Params:
        params: Params = plain(self._module.init(rng, jnp.zeros(input_shape, jnp.int32))["params"])
        return params

    @cached_property
    def _compiled_init(self) -> Any:
        return jax.jit(self._new_params, static_argnames="input_shape")

    def to_bf16(self, params: Mapping[str, Any], mask: Any = None) -> Params:
        """The parameters in bfloat16, where `mask`, a tree of booleans like them, is True; all without one.

        To compute in it too, make the model with `dtype=jnp.bfloat16`.
        """
        return _cast(params, jnp.bfloat16, mask)

    def to_fp16(self, params: Mapping[str, Any], mask: Any = None) -> Params:
        """The parameters in float16, where `mask`, a tree of booleans like them, is True; all without one."""
        return _cast(params, jnp.float16, mask)

    def to_fp32(self, params: Mapping[str, Any], mask: Any = None) -> Params:
        """The parameters in float32, where `mask`, a tree of booleans like them, is True; all without one."""
        return _cast(params, jnp.float32, mask)

    # -- many devices ------------------------------------------------------------------------------------------

    def partition_specs(self, mesh: Mesh, axis: str = "model") -> Params:
        """How each parameter lies on a mesh, by the model's `partition_rules`: split over `axis`, or whole.

        Raises: ValueError when the mesh has no such axis, or it does not divide the heads or the inner layer.
        """
        return sharding_flax.partition_specs(self, mesh, axis)

    def shard_params(self, mesh: Mesh, params: Mapping[str, Any] | None = None, axis: str = "model") -> Params:
        """The parameters on the devices of a mesh, as `partition_specs` says; without such an axis whole on each.

        Batches go beside them with `jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))`.
        """
        return sharding_flax.shard_params(self, mesh, self.params if params is None else params, axis)

    # -- calling -----------------------------------------------------------------------------------------------

    def enable_gradient_checkpointing(self) -> None:
        """Recompute blocks in the backward pass: less memory, about a third more time."""
        self._module = self._module.clone(gradient_checkpointing=True)
        for compiled in ("_forward", "_programs"):
            vars(self).pop(compiled, None)

    def init_cache(self, batch_size: int, max_length: int) -> Params:
        """An empty cache of `max_length` tokens for each row."""
        raise NotImplementedError(f"{type(self).__name__} must define init_cache(batch_size, max_length).")

    def _call(
        self,
        input_ids: Any,
        attention_mask: Any,
        position_ids: Any,
        *,
        params: Mapping[str, Any] | None,
        past_key_values: Mapping[str, Any] | None,
        dropout_rng: Any,
        train: bool,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        return_dict: bool | None,
    ) -> Any:
        config = self.config
        ids = inputs_flax.checked_ids(input_ids, config.vocab_size)
        batch, length = ids.shape
        positions = config.max_position_embeddings
        capacity = None
        variables: dict[str, Any] = {"params": self.params if params is None else self.checked_params(params)}
        if past_key_values is not None:
            variables["cache"] = plain(past_key_values)
            capacity = _room(variables["cache"], batch, length)
        mask = inputs_flax.checked_mask(attention_mask, batch, length, capacity)
        if position_ids is None:
            inputs_flax.check_length(length, positions)
            inputs_flax.warn_of_left_padding(attention_mask)
        else:
            position_ids = inputs_flax.checked_positions(position_ids, batch, length, positions)
        if train and dropout_rng is None:
            raise ValueError("train=True drops at random, so dropout_rng is needed. Pass jax.random.PRNGKey(seed).")
        output = self._forward(
            variables,
            ids,
            mask,
            position_ids,
            dropout_rng if train else None,
            output_attentions=config.output_attentions if output_attentions is None else output_attentions,
            output_hidden_states=config.output_hidden_states if output_hidden_states is None else output_hidden_states,
        )
        return output if (config.use_return_dict if return_dict is None else return_dict) else output.to_tuple()

    @cached_property
    def _forward(self) -> Any:
        """The module's forward pass, compiled once for each shape."""
        module = self._module

        def forward(
            variables: dict[str, Any],
            ids: jax.Array,
            mask: jax.Array | None,
            positions: jax.Array | None,
            rng: Any,
            *,
            output_attentions: bool,
            output_hidden_states: bool,
        ) -> Any:
            has_cache = "cache" in variables
            if positions is None:
                start = _cache_leaf(variables["cache"], "cache_index") if has_cache else 0
                positions = (start + jnp.arange(ids.shape[1]))[None, :]
            output, changed = module.apply(
                variables,
                ids,
                mask,
                positions,
                deterministic=rng is None,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
                rngs=None if rng is None else {"dropout": rng},
                mutable=["cache"],
            )
            if has_cache:
                output = replace(output, past_key_values=changed["cache"])
            return output

        return jax.jit(forward, static_argnames=("output_attentions", "output_hidden_states"))

    # -- files -------------------------------------------------------------------------------------------------

    @classmethod
    def _from_config(cls, config: PretrainedConfig, **kwargs: Any) -> Self:
        return cls(copy.deepcopy(config), **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        dtype: Any = jnp.float32,
        *model_args: Any,
        config: PretrainedConfig | str | Path | None = None,
        cache_dir: str | Path | None = None,
        ignore_mismatched_sizes: bool = False,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str = "main",
        **kwargs: Any,
    ) -> Any:
        """Load a model from a folder, from a hub name or from those that ship inside the package.

        See `triptych.checkpoints.pretrained_flax.load_pretrained` for every option.

        Returns: the model; with `_do_init=False` (model, params).
        Raises: CheckpointError, WeightMismatchError, TypeError for an unknown option.
        """
        return pretrained_flax.load_pretrained(
            cls,
            pretrained_model_name_or_path,
            dtype,
            *model_args,
            config=config,
            cache_dir=cache_dir,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            revision=revision,
            **kwargs,
        )

    def save_pretrained(
        self,
        save_directory: str | Path,
        params: Mapping[str, Any] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "10GB",
        token: str | bool | None = None,
        safe_serialization: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write configuration and weights into a folder, all of them or nothing.

        The weights go into model.safetensors, as PyTorch would write them, or, with `safe_serialization=False`, into
        flax_model.msgpack; in shards of at most `max_shard_size`.

        Raises: OSError when the folder cannot be written; what was there before is then unchanged.
        """
        pretrained_flax.save_pretrained(
            self,
            save_directory,
            self.params if params is None else params,
            push_to_hub=push_to_hub,
            max_shard_size=max_shard_size,
            safe_serialization=safe_serialization,
            **kwargs,
        )

    # -- generation --------------------------------------------------------------------------------------------

    @classmethod
    def can_generate(cls) -> bool:
        """Whether `generate` works: the class has a language model head."""
        return "CausalLM" in cls.__name__

    @property
    def max_positions(self) -> int | None:
        """How many tokens fit; None when there is no limit."""
        return self.config.max_position_embeddings  # type: ignore[no-any-return]

    def generate(
        self,
        input_ids: Any,
        generation_config: GenerationConfig | None = None,
        prng_key: Any = None,
        trace: bool = True,
        params: Mapping[str, Any] | None = None,
        logits_processor: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Continue the prompts `input_ids` (B, T); see `triptych.generation.decoding_flax.generate`.

        Returns: an output object whose `sequences` (B, T') hold the prompts too.
        """
        return decoding_flax.generate(
            self,
            input_ids,
            generation_config=generation_config,
            prng_key=prng_key,
            trace=trace,
            params=params,
            logits_processor=logits_processor,
            **kwargs,
        )


def _cast(params: Mapping[str, Any], dtype: Any, mask: Any) -> Params:
    own: Params = plain(params)

    def cast(leaf: Any, wanted: Any = True) -> Any:
        return leaf.astype(dtype) if wanted and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    try:
        cast_params: Params = (
            jax.tree_util.tree_map(cast, own)
            if mask is None
            else jax.tree_util.tree_map(cast, own, plain(mask) if isinstance(mask, Mapping) else mask)
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            "mask must be a tree of booleans with the leaves of params, as flax.traverse_util makes them; "
            f"it differs: {error}"
        ) from error
    return cast_params


def _cache_leaf(cache: Mapping[str, Any], name: str) -> Any:
    """That leaf of the cache's first layer."""
    found = (value for leaf, value in leaves_of(cache).items() if leaf[-1] == name)
    try:
        return next(found)
    except StopIteration:
        raise ValueError(
            "past_key_values must be a cache that init_cache or an earlier call gave. Use "
            "model.init_cache(batch_size, max_length)."
        ) from None


def _room(cache: Mapping[str, Any], batch: int, length: int) -> int:
    """The capacity of the cache.

    Raises: ValueError when it is of another batch, or lacks room for the new tokens.
    """
    keys, used = _cache_leaf(cache, "cached_key"), _cache_leaf(cache, "cache_index")
    capacity: int = keys.shape[1]
    if keys.shape[0] != batch:
        raise ValueError(f"past_key_values is of {keys.shape[0]} rows, but input_ids has {batch}. Make one for them.")
    held = int(used) if inputs_flax.is_near(used) else 0
    if held + length > capacity:
        raise ValueError(
            f"The cache has room for {capacity} tokens and holds {held}; {length} more do not fit. Make a longer one "
            "with init_cache(batch_size, max_length)."
        )
    return capacity


def _register(output_class: type[outputs.ModelOutput]) -> None:
    """Let JAX look inside an output object: its fields are the children, and None has none."""
    names = tuple(output_class.__dataclass_fields__)  # type: ignore[attr-defined]

    def parts(output: Any) -> tuple[tuple[tuple[jax.tree_util.GetAttrKey, Any], ...], None]:
        return tuple((jax.tree_util.GetAttrKey(name), getattr(output, name)) for name in names), None

    jax.tree_util.register_pytree_with_keys(
        output_class, parts, lambda _, values: output_class(**dict(zip(names, values, strict=True)))
    )


for _class in (
    outputs.FlaxBaseModelOutput,
    outputs.FlaxMaskedLMOutput,
    FlaxBeamSearchOutput,
    FlaxGreedySearchOutput,
    FlaxSampleOutput,
):
    _register(_class)
