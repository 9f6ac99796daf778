"""A PyTorch model → the files of a checkpoint, all of them or nothing."""

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from triptych.checkpoints import pickle_torch, safetensors_file
from triptych.checkpoints.index import StoredTensor, make_index, parse_size, plan_shards, shard_names
from triptych.checkpoints.matching import is_any_of
from triptych.checkpoints.names import FORMATS, PICKLE, SAFETENSORS
from triptych.errors import LoadingWarning, SaveError
from triptych.files import staged_folder, write_json
from triptych.generation.configuration import GENERATION_CONFIG_NAME

if TYPE_CHECKING:
    from triptych.modeling_torch import PreTrainedModel


def save(
    model: "PreTrainedModel",
    folder: Path,
    state: Mapping[str, Tensor],
    *,
    max_shard_size: int | str,
    safe_serialization: bool,
    variant: str | None,
    save_function: Callable[..., object] | None,
) -> None:
    """Write weights and configuration into `folder`; see `save_pretrained`."""
    limit = parse_size(max_shard_size)
    _check_in_memory(state)
    if safe_serialization:
        state = _each_storage_once(state, model._tied_weights_keys)
    form = SAFETENSORS if safe_serialization else PICKLE
    write = (
        safetensors_file.write_file
        if safe_serialization
        else partial(pickle_torch.write_file, save=save_function or torch.save)
    )
    stored = [StoredTensor(name, value.nbytes, _storage(value)) for name, value in state.items()]
    shards = plan_shards(stored, limit)
    files = shard_names(form, variant, len(shards))

    def is_old(name: str) -> bool:
        return form.owns(name, variant)

    with staged_folder(folder, replaces=is_old) as stage:
        for file, names in _with_progress(list(zip(files, shards, strict=True))):
            try:
                write({name: state[name] for name in names}, stage / file)
            except (OSError, RuntimeError, SafetensorError) as error:
                raise SaveError(
                    f"{file} cannot be written in {folder}: {error}. What the folder held before is unchanged; "
                    "free some space or choose another folder."
                ) from error
        if len(files) > 1:
            weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
            total = sum({tensor.storage: tensor.nbytes for tensor in stored}.values())
            write_json(stage / form.index_name(variant), make_index(weight_map, total))
        _write_configuration(model, state, stage)
    first = FORMATS[0]
    if form is not first and any(first.owns(path.name, variant) for path in folder.iterdir()):
        warnings.warn(
            f"{folder} also holds {first.file_name(variant)} or its shards, which is what from_pretrained reads. "
            "Remove them, or load with use_safetensors=False, if they are older.",
            LoadingWarning,
            stacklevel=4,
        )


def _write_configuration(model: "PreTrainedModel", state: Mapping[str, Tensor], stage: Path) -> None:
    dtype = next((value.dtype for value in state.values() if value.is_floating_point()), None)
    if dtype is not None:
        model.config.torch_dtype = dtype
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(stage)
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.to_json_file(stage / GENERATION_CONFIG_NAME)


def _check_in_memory(state: Mapping[str, Tensor]) -> None:
    absent = [name for name, value in state.items() if value.device.type == "meta"]
    if absent:
        raise ValueError(
            f"Only weights that are in memory can be saved, but {len(absent)} are not (offloaded, or on the meta "
            f"device): {', '.join(absent[:5])}. Pass their values as state_dict=…."
        )


def _storage(value: Tensor) -> Any:
    """Equal for tensors that share their bytes."""
    return (value.device, value.untyped_storage().data_ptr()) if value.nbytes else object()


def _each_storage_once(state: Mapping[str, Tensor], tied: Iterable[str] | None) -> dict[str, Tensor]:
    """What a safetensors file needs: contiguous tensors, none of which shares memory.

    Of tensors that are one and the same, those declared as tied are left out as long as another name stays; any
    other that shares memory is written as a copy.
    """
    names_of: dict[Any, list[str]] = {}
    for name, value in state.items():
        names_of.setdefault((_storage(value), value.data_ptr(), value.shape, value.stride()), []).append(name)
    left_out: set[str] = set()
    for names in names_of.values():
        droppable = [name for name in names if is_any_of(name, tied)]
        left_out.update(droppable[1:] if len(droppable) == len(names) else droppable)
    written: dict[str, Tensor] = {}
    seen: set[Any] = set()
    for name, value in state.items():
        if name in left_out:
            continue
        is_shared = _storage(value) in seen or value.untyped_storage().nbytes() != value.nbytes
        seen.add(_storage(value))
        written[name] = value.detach().clone(memory_format=torch.contiguous_format) if is_shared else value.contiguous()
    return written


def _with_progress(items: list[tuple[str, list[str]]]) -> Iterable[tuple[str, list[str]]]:
    if len(items) == 1 or not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, description="Saving shards", console=Console(stderr=True), transient=True)
