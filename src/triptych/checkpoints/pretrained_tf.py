"""`from_pretrained` and `save_pretrained` of the TensorFlow models."""

import copy
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from triptych.checkpoints import h5_file, keras_names, safetensors_file
from triptych.checkpoints.arrays import is_floating
from triptych.checkpoints.checkpoint import open_checkpoint
from triptych.checkpoints.index import StoredTensor, parse_size
from triptych.checkpoints.locate import find_weights
from triptych.checkpoints.matching import describe, refuse_mismatched
from triptych.checkpoints.names import H5, SAFETENSORS, TF_FORMATS
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

if TYPE_CHECKING:
    from triptych.modeling_tf import TFPreTrainedModel


@dataclass(slots=True)
class LoadOptions:
    """The keyword arguments of `from_pretrained` that are neither the hub's nor the configuration's."""

    ignore_mismatched_sizes: bool = False
    use_safetensors: bool | None = None
    variant: str | None = None
    output_loading_info: bool = False
    from_pt: bool = False

    @classmethod
    def pop(cls, kwargs: dict[str, Any]) -> "LoadOptions":
        """Take the options out of `kwargs`."""
        return cls(**{option.name: kwargs.pop(option.name) for option in fields(cls) if option.name in kwargs})


def load_pretrained(
    cls: "type[TFPreTrainedModel]",
    name_or_folder: StrPath,
    *model_args: Any,
    config: PretrainedConfig | StrPath | None = None,
    **kwargs: Any,
) -> Any:
    """Load a model of class `cls` from a folder, a hub name or a model of the package.

    `dtype` is a policy of Keras, the global one if it is not given: "mixed_float16" computes in float16 and keeps
    weights in float32, "bfloat16" does both in bfloat16. The file's own dtype plays no part.
    Where files come from: `cache_dir`, `force_download`, `local_files_only`, `token`, `revision`, `subfolder`,
    `variant`, `use_safetensors` (None: model.safetensors, then tf_model.h5, then pytorch_model.bin). PyTorch's files
    are read with or without `from_pt`, and no PyTorch is needed.
    What is made of them: `config` (an object, or where to read it), `ignore_mismatched_sizes`, `output_loading_info`.
    Other keyword arguments replace fields of the configuration.

    Returns: the model; with `output_loading_info=True` (model, {"missing_keys", "unexpected_keys", "mismatched_keys",
        "error_msgs"}).
    Raises: CheckpointError naming the file that is missing or damaged; WeightMismatchError; TypeError for an argument
        that is neither an option nor a field of the configuration.
    """
    hub = pop_options(kwargs)
    options = LoadOptions.pop(kwargs)
    keras_kwargs = {name: kwargs.pop(name) for name in ("dtype", "name") if name in kwargs}
    if isinstance(config, PretrainedConfig):
        config = copy.deepcopy(config)  # a model of one's own has a configuration of one's own
        left = kwargs
    else:
        where = os.fspath(name_or_folder if config is None else config)
        config, left = cls.config_class.from_pretrained(where, return_unused_kwargs=True, **hub, **kwargs)
    check_constructor_takes(cls, left)
    files = find_weights(
        name_or_folder, hub, variant=options.variant, use_safetensors=options.use_safetensors, known=TF_FORMATS
    )
    with open_checkpoint(_with_published_names(files), "np") as opened:
        checkpoint = keras_names.published(opened)
        make: Any = cls
        model: TFPreTrainedModel = make(config, *model_args, **keras_kwargs)
        variables = dict(model.named_weights())
        found = match(model, {name: tuple(v.shape) for name, v in variables.items()}, checkpoint)
        if not options.ignore_mismatched_sizes:
            refuse_mismatched(found.mismatched, checkpoint.source)
        for name, stored in found.stored_name.items():
            variables[name].assign(np.asarray(checkpoint.read(stored, mapped=True), np.float32))
        message = describe(cls, found, checkpoint.source)
    if message:
        warnings.warn(message, LoadingWarning, stacklevel=3)
    remember_origin(model, name_or_folder, hub)
    return (model, found.loading_info()) if options.output_loading_info else model


def save_pretrained(
    model: "TFPreTrainedModel",
    save_directory: StrPath,
    *,
    push_to_hub: bool,
    max_shard_size: int | str,
    safe_serialization: bool,
    variant: str | None = None,
    is_main_process: bool = True,
    **kwargs: Any,
) -> None:
    """Write weights, config.json and (for models that generate) generation_config.json: all of them or nothing.

    Weights go into model.safetensors, byte for byte as PyTorch's model would write them, or into tf_model.h5, as the
    reference reads it, with `safe_serialization=False`; in shards of at most `max_shard_size` ("5GB", "200MB", or
    bytes). Processes that are not the main one write nothing.

    Raises: SaveError if something cannot be written, and then the folder is as it was; ValueError for `push_to_hub`,
        which is not supported; TypeError for an unknown argument.
    """
    kwargs.pop("use_auth_token", None)
    if kwargs:
        raise TypeError(f"save_pretrained() got an unexpected keyword argument {next(iter(kwargs))!r}. Leave it out.")
    if push_to_hub:
        raise ValueError("push_to_hub is not supported. Upload the saved folder with `hf upload`.")
    if not is_main_process:
        return
    limit, folder = parse_size(max_shard_size), Path(save_directory)
    arrays = {name: variable.numpy() for name, variable in model.named_weights()}
    form = SAFETENSORS if safe_serialization else H5
    stored = [StoredTensor(name, array.nbytes, name) for name, array in arrays.items()]
    is_sharded = sum(item.nbytes for item in stored) > limit
    origin = (type(model).__name__, model.base_model_prefix)
    in_index: Callable[[str], str] = (
        str if safe_serialization else lambda name: keras_names.name_in_index(name, *origin)
    )

    def write(path: Path, names: Iterable[str]) -> None:
        part = {name: arrays[name] for name in names}
        if safe_serialization:
            safetensors_file.write_as_pytorch(part, path)
        else:
            h5_file.write_file(part, *origin, path, is_sharded)

    dtype = next((array.dtype.name for array in arrays.values() if is_floating(array.dtype)), None)
    with staged_folder(folder, replaces=lambda name: form.owns(name, variant)) as stage:
        write_weights(stage, stored, form, variant, max_shard_size, write, in_index)
        write_configuration(model, dtype, type(model).__name__.removeprefix("TF"), stage)
    if form is not SAFETENSORS and any(SAFETENSORS.owns(path.name, variant) for path in folder.iterdir()):
        warnings.warn(
            f"{folder} also holds {SAFETENSORS.file_name(variant)} or its shards, which is what from_pretrained reads. "
            "Remove them, or load with use_safetensors=False, if they are older.",
            LoadingWarning,
            stacklevel=3,
        )


def _with_published_names(files: Any) -> Any:
    """Weight files whose index speaks of published names: that of h5 shards speaks of places in Keras."""
    if files.weight_map is None or files.format is not H5:
        return files
    published = {keras_names.published_name(tuple(name.split("/")))[0]: path for name, path in files.weight_map.items()}
    return type(files)(files.format, files.files, files.index, published)
