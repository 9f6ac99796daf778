"""The index of a sharded checkpoint: reading one safely, and planning the shards of a new one."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.checkpoints.names import WeightFormat
from triptych.errors import CheckpointError
from triptych.files import read_json

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def read_index(path: Path) -> dict[str, str]:
    """Tensor name → shard's file name, as an index says; every shard is a plain name in the index's own folder.

    Raises: CheckpointError naming the file and the entry that is wrong.
    """
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f'{path} must have a "weight_map" of tensor names to shard files. Fetch the file again.')
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            raise CheckpointError(
                f"{path} must name shards that lie beside it, but says that {name} is in {shard!r}. "
                "Don't use this checkpoint unless you know why; a plain file name is needed."
            )
    return weight_map


def _is_plain_name(shard: str) -> bool:
    # Both kinds of separators and drive letters, so that a file is as safe on one system as on another.
    return shard not in ("", ".", "..") and not re.search(r"[/\\:\x00]", shard)


def parse_size(size: int | str) -> int:
    """Bytes of "5GB", "200MB", "10KB" (powers of 1000), "5GiB" … (powers of 1024), or an int as it is.

    Raises: ValueError for anything else.
    """
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    match = re.fullmatch(r"(\d+)\s*([KMG]I?B)", size.strip().upper()) if isinstance(size, str) else None
    if match is None or int(match[1]) == 0:
        raise ValueError(
            f'max_shard_size must be a positive int (bytes) or a whole number with a unit, as "5GB" or "200MiB"; '
            f"got {size!r}."
        )
    return int(match[1]) * UNITS[match[2]]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """What planning needs to know of a tensor: tensors of one `storage` are views of the same bytes."""

    name: str
    nbytes: int
    storage: object


def plan_shards(tensors: Iterable[StoredTensor], limit: int) -> list[list[str]]:
    """Fill shards in order up to `limit` bytes. A tensor that is larger gets a shard of its own.

    Tensors that share their storage go into one shard and count once.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    shard_of: dict[object, int] = {}
    for tensor in tensors:
        if tensor.storage in shard_of:
            shards[shard_of[tensor.storage]].append(tensor.name)
            continue
        if shards[-1] and filled + tensor.nbytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(tensor.name)
        shard_of[tensor.storage] = len(shards) - 1
        filled += tensor.nbytes
    return shards


def make_index(weight_map: Mapping[str, str], total_size: int) -> dict[str, Any]:
    """The JSON of an index; `total_size` is in bytes, shared storage counted once."""
    return {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}


def shard_names(form: WeightFormat, variant: str | None, count: int) -> list[str]:
    """The file names of a checkpoint of `count` files."""
    if count == 1:
        return [form.file_name(variant)]
    return [form.file_name(variant, number, count) for number in range(1, count + 1)]
