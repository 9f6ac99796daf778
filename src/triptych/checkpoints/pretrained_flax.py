"""`from_pretrained` and `save_pretrained` of the Flax models."""

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from triptych.checkpoints import msgpack_file, safetensors_file
from triptych.checkpoints.arrays import is_floating
from triptych.checkpoints.checkpoint import Checkpoint, open_checkpoint
from triptych.checkpoints.index import StoredTensor, parse_size
from triptych.checkpoints.locate import find_weights
from triptych.checkpoints.matching import describe, refuse_mismatched
from triptych.checkpoints.names import FLAX_FORMATS, MSGPACK, SAFETENSORS
from triptych.checkpoints.pretrained import (
    check_constructor_takes,
    match,
    remember_origin,
    write_configuration,
    write_weights,
)
from triptych.configuration import PretrainedConfig
from triptych.errors import LoadingWarning
from triptych.files import staged_folder
from triptych.hub import StrPath, pop_options
from triptych.trees import Leaf, leaves_of, tree_of

if TYPE_CHECKING:
    from triptych.modeling_flax import FlaxPreTrainedModel

_INDEX_SEPARATOR = "/"  # in the names that an index of msgpack shards has, as in transformer/wte/embedding


@dataclass(slots=True)
class LoadOptions:
    """The keyword arguments of `from_pretrained` that are neither the hub's nor the configuration's."""

    ignore_mismatched_sizes: bool = False
    use_safetensors: bool | None = None
    variant: str | None = None
    output_loading_info: bool = False
    from_pt: bool = False
    _do_init: bool = True

    @classmethod
    def pop(cls, kwargs: dict[str, Any]) -> "LoadOptions":
        """Take the options out of `kwargs`."""
        return cls(**{option.name: kwargs.pop(option.name) for option in fields(cls) if option.name in kwargs})


class Slot(NamedTuple):
    """A parameter as it is in files: its place in the tree, whether its axes are turned there, and its shape there."""

    leaf: Leaf
    is_turned: bool
    shape: tuple[int, ...]


def slots_of(tree: Mapping[str, Any]) -> dict[str, Slot]:
    """Published name → the parameter of nested dicts of arrays (or of their shapes)."""
    slots = {}
    for leaf, value in leaves_of(tree).items():
        name, is_turned = msgpack_file.published_name(leaf)
        slots[name] = Slot(leaf, is_turned, tuple(value.shape[::-1] if is_turned else value.shape))
    return slots


def load_pretrained(
    cls: "type[FlaxPreTrainedModel]",
    name_or_folder: StrPath,
    dtype: Any = jnp.float32,
    *model_args: Any,
    config: PretrainedConfig | StrPath | None = None,
    **kwargs: Any,
) -> Any:
    """Load a model of class `cls` from a folder, a hub name or a model of the package.

    `dtype` is what the model computes in; parameters are in float32 whatever the file has, so that they can be trained
    (`to_bf16` and `to_fp16` make them smaller).
    Where files come from: `cache_dir`, `force_download`, `local_files_only`, `token`, `revision`, `subfolder`,
    `variant`, `use_safetensors` (None: model.safetensors, then flax_model.msgpack, then pytorch_model.bin). PyTorch's
    files are read with or without `from_pt`, and no PyTorch is needed.
    What is made of them: `config` (an object, or where to read it), `ignore_mismatched_sizes`, `seed` (for parameters
    that the files lack), `output_loading_info`. Other keyword arguments replace fields of the configuration.

    Returns: the model; with `_do_init=False` (model, params), where parameters that the files lack stay missing; with
        `output_loading_info=True` also {"missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"}.
    Raises: CheckpointError naming the file that is missing or damaged; WeightMismatchError; TypeError for an argument
        that is neither an option nor a field of the configuration.
    """
    hub = pop_options(kwargs)
    options = LoadOptions.pop(kwargs)
    if isinstance(config, PretrainedConfig):
        config = copy.deepcopy(config)  # a model of one's own has a configuration of one's own
        model_kwargs = kwargs
    else:
        where = os.fspath(name_or_folder if config is None else config)
        config, model_kwargs = cls.config_class.from_pretrained(where, return_unused_kwargs=True, **hub, **kwargs)
    check_constructor_takes(cls, model_kwargs)
    make: Any = cls
    model: FlaxPreTrainedModel = make(config, *model_args, dtype=dtype, _do_init=False, **model_kwargs)
    files = find_weights(
        name_or_folder,
        hub,
        variant=options.variant,
        use_safetensors=options.use_safetensors,
        known=FLAX_FORMATS,
    )
    with open_checkpoint(_with_published_names(files), "np") as checkpoint:
        slots = slots_of(model.params_shape_tree)
        found = match(model, {name: slot.shape for name, slot in slots.items()}, checkpoint)
        if not options.ignore_mismatched_sizes:
            refuse_mismatched(found.mismatched, checkpoint.source)
        params = {
            slots[name].leaf: _read(checkpoint, stored, slots[name]) for name, stored in found.stored_name.items()
        }
        message = describe(cls, found, checkpoint.source)
    if message:
        warnings.warn(message, LoadingWarning, stacklevel=3)
    remember_origin(model, name_or_folder, hub)
    result: tuple[Any, ...]
    if options._do_init:
        model._is_initialized = True
        tree = tree_of(params)
        model.params = model.init_weights(model.key, model.input_shape, tree) if found.to_initialise else tree
        result = (model,)
    else:
        result = (model, tree_of(params))
    if options.output_loading_info:
        result += (found.loading_info(),)
    return result if len(result) > 1 else model


def save_pretrained(
    model: "FlaxPreTrainedModel",
    save_directory: StrPath,
    params: Mapping[str, Any],
    *,
    push_to_hub: bool,
    max_shard_size: int | str,
    safe_serialization: bool,
    variant: str | None = None,
    is_main_process: bool = True,
    **kwargs: Any,
) -> None:
    """Write weights, config.json and (for models that generate) generation_config.json: all of them or nothing.

    Weights go into model.safetensors, byte for byte as PyTorch's model would write them, or into flax_model.msgpack
    with `safe_serialization=False`, in shards of at most `max_shard_size` ("5GB", "200MB", or bytes). Processes that
    are not the main one write nothing.

    Raises: SaveError if something cannot be written, and then the folder is as it was; ValueError for params that are
        not the model's and for `push_to_hub`, which is not supported; TypeError for an unknown argument.
    """
    kwargs.pop("use_auth_token", None)
    if kwargs:
        raise TypeError(f"save_pretrained() got an unexpected keyword argument {next(iter(kwargs))!r}. Leave it out.")
    if push_to_hub:
        raise ValueError("push_to_hub is not supported. Upload the saved folder with `hf upload`.")
    if not is_main_process:
        return
    parse_size(max_shard_size)  # a size that is none is refused before any work
    folder = Path(save_directory)
    slots, leaves = slots_of(model.params_shape_tree), leaves_of(model.checked_params(params))
    form = SAFETENSORS if safe_serialization else MSGPACK
    in_order = sorted(slots, key=partial(_place, model._published_order))
    stored = [StoredTensor(name, leaves[slots[name].leaf].nbytes, name) for name in in_order]
    in_index: Callable[[str], str] = str if safe_serialization else lambda name: "/".join(slots[name].leaf)
    dtype = next((jnp.dtype(value.dtype).name for value in leaves.values() if is_floating(value.dtype)), None)

    def write(path: Path, names: Iterable[str]) -> None:
        _write(path, {name: slots[name] for name in names}, leaves, safe_serialization)

    with staged_folder(folder, replaces=lambda name: form.owns(name, variant)) as stage:
        write_weights(stage, stored, form, variant, max_shard_size, write, in_index)
        write_configuration(model, dtype, type(model).__name__.removeprefix("Flax"), stage)
    if form is not SAFETENSORS and any(SAFETENSORS.owns(path.name, variant) for path in folder.iterdir()):
        warnings.warn(
            f"{folder} also holds {SAFETENSORS.file_name(variant)} or its shards, which is what from_pretrained reads. "
            "Remove them, or load with use_safetensors=False, if they are older.",
            LoadingWarning,
            stacklevel=3,
        )


def _place(order: tuple[str, ...], name: str) -> list[int]:
    """Sorts published names as PyTorch's model has them, so that shards hold the same tensors."""
    return [int(part) if part.isdigit() else order.index(part) for part in name.split(".")]


def _with_published_names(files: Any) -> Any:
    """Weight files whose index speaks of published names: that of msgpack shards speaks of places in the tree."""
    if files.weight_map is None or files.format is not MSGPACK:
        return files
    published = {
        msgpack_file.published_name(tuple(name.split(_INDEX_SEPARATOR)))[0]: path
        for name, path in files.weight_map.items()
    }
    return type(files)(files.format, files.files, files.index, published)


def _read(checkpoint: Checkpoint, name: str, slot: Slot) -> jax.Array:
    array = checkpoint.read(name, mapped=True)
    array = array.T if slot.is_turned else array
    return jnp.asarray(np.asarray(array, np.float32, order="C"))


def _write(path: Path, slots: Mapping[str, Slot], leaves: Mapping[Leaf, Any], safe_serialization: bool) -> None:
    if safe_serialization:
        values = {name: np.asarray(leaves[slot.leaf]) for name, slot in slots.items()}
        safetensors_file.write_as_pytorch(
            {name: value.T if slots[name].is_turned else value for name, value in values.items()}, path
        )
    else:
        msgpack_file.write_file(tree_of({slot.leaf: leaves[slot.leaf] for slot in slots.values()}), path)
