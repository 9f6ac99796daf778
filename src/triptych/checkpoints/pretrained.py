"""What `from_pretrained` and `save_pretrained` do alike in the frameworks that read checkpoints as NumPy arrays."""

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from triptych.checkpoints.checkpoint import Checkpoint
from triptych.checkpoints.index import StoredTensor, make_index, parse_size, plan_shards, shard_names
from triptych.checkpoints.matching import Matching, is_any_of, quote, targets
from triptych.checkpoints.names import WeightFormat
from triptych.errors import CheckpointError, SaveError
from triptych.files import read_json, write_json
from triptych.generation.configuration import GENERATION_CONFIG_NAME, GenerationConfig
from triptych.hub import HubOptions, StrPath, resolve_file


def check_constructor_takes(cls: type, kwargs: Mapping[str, Any]) -> None:
    """Refuse keyword arguments that nobody wants, before anything is read or fetched.

    Raises: TypeError naming the first.
    """
    own = inspect.signature(cls).parameters
    for name in kwargs:
        if name not in own or name == "kwargs":
            raise TypeError(
                f"{cls.__name__}.from_pretrained() got an unexpected keyword argument {name!r}. It is neither an "
                "option nor a field of the configuration (fields of a config object are set on the object)."
            )


def match(model: Any, shapes: Mapping[str, tuple[int, ...]], checkpoint: Checkpoint) -> Matching:
    """Compare published names and shapes of a model's weights with a checkpoint's; nothing is read.

    The prefix of the base model may be there or not on either side. Of tied tensors one is enough.

    Raises: CheckpointError if not one of the checkpoint's names belongs to the model.
    """
    tied = {name: own for name, own in model._tied_weights.items() if name not in shapes}
    target_of = targets(checkpoint.tensors, {**shapes, **tied}, model.base_model_prefix)
    if checkpoint.tensors and not target_of:
        raise CheckpointError(
            f"The weights must belong to {type(model).__name__}, which has {quote(shapes, 2)}, but none of the "
            f"{len(checkpoint.tensors)} tensors of {checkpoint.source} fits; it has {quote(checkpoint.tensors, 2)}. "
            "Load it with the class it was saved from."
        )
    stored = {target: name for name, target in target_of.items()}
    for other, own in tied.items():
        if other in stored:
            stored.setdefault(own, stored[other])
    left = [name for name in checkpoint.tensors if name not in target_of]
    ignored = model._keys_to_ignore_on_load_unexpected
    found = Matching(unexpected=sorted(name for name in left if not is_any_of(name, ignored)))
    for name, shape in shapes.items():
        if name not in stored:
            found.missing.append(name)
            found.to_initialise.append(name)
        elif checkpoint.tensors[stored[name]].shape != shape:
            found.mismatched.append((stored[name], checkpoint.tensors[stored[name]].shape, shape))
            found.to_initialise.append(name)
        else:
            found.stored_name[name] = stored[name]
    found.missing.sort()
    return found


def remember_origin(model: Any, name_or_folder: StrPath, hub: HubOptions) -> None:
    """Note where a model came from, and take the generation options that lie there."""
    model.name_or_path = model.config._name_or_path = os.fspath(name_or_folder)
    if not model.can_generate():
        return
    path = resolve_file(name_or_folder, GENERATION_CONFIG_NAME, **hub, required=False)
    model.generation_config = (
        GenerationConfig.from_dict(read_json(path)) if path else GenerationConfig.from_model_config(model.config)
    )


def write_weights(
    stage: Path,
    stored: list[StoredTensor],
    form: WeightFormat,
    variant: str | None,
    max_shard_size: int | str,
    write: Callable[[Path, Iterable[str]], None],
    in_index: Callable[[str], str] = str,
) -> None:
    """Write tensors into as many files as `max_shard_size` asks for, and their index, all of them in `stage`.

    `write` is given a file and the published names that go into it; `in_index` makes the name that an index has.

    Raises: SaveError naming the file that cannot be written; ValueError for a size that is none.
    """
    shards = plan_shards(stored, parse_size(max_shard_size))
    names = shard_names(form, variant, len(shards))
    for file, shard in zip(names, shards, strict=True):
        try:
            write(stage / file, shard)
        except (OSError, SafetensorError) as error:
            raise SaveError(
                f"{file} cannot be written: {error}. What the folder held before is unchanged; free some space or "
                "choose another folder."
            ) from error
    if len(names) > 1:
        weight_map = {in_index(name): file for file, shard in zip(names, shards, strict=True) for name in shard}
        write_json(stage / form.index_name(variant), make_index(weight_map, sum(item.nbytes for item in stored)))


def write_configuration(model: Any, dtype: str | None, architecture: str, stage: Path) -> None:
    """Write config.json, and generation_config.json of a model that generates."""
    if dtype is not None:
        model.config.torch_dtype = dtype
    model.config.architectures = [architecture]
    model.config.save_pretrained(stage)
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.to_json_file(stage / GENERATION_CONFIG_NAME)
