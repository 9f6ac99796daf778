"""A folder or hub name → the weight files to read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from triptych.checkpoints.index import read_index
from triptych.checkpoints.names import FORMATS, NOT_READABLE_YET, SAFETENSORS, WeightFormat
from triptych.errors import CheckpointError, MissingFileError
from triptych.hub import HubOptions, StrPath, listing, local_folder, resolve_file


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """Where a checkpoint's tensors are: one file, or several with the index that says which holds what."""

    format: WeightFormat
    files: tuple[Path, ...]
    index: Path | None = None
    weight_map: Mapping[str, Path] | None = None


def find_weights(
    name_or_folder: StrPath,
    options: HubOptions,
    *,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    known: tuple[WeightFormat, ...] = FORMATS,
) -> WeightFiles:
    """The first that is there of model.safetensors, its index, and those of the other `known` formats.

    `use_safetensors` True looks for safetensors only, False for the others.

    Raises: MissingFileError naming what was looked for and what is there; CheckpointError for a damaged index.
    """
    if Path(name_or_folder).is_file():
        raise CheckpointError(
            f"A checkpoint is a folder or a hub name, but {name_or_folder} is a file. Give its folder."
        )
    formats = tuple(form for form in known if use_safetensors in (None, form is SAFETENSORS))
    for form in formats:
        whole = resolve_file(name_or_folder, form.file_name(variant), **options, required=False)
        if whole is not None:
            return WeightFiles(form, (whole,))
        index = resolve_file(name_or_folder, form.index_name(variant), **options, required=False)
        if index is not None:
            return _sharded(form, index, name_or_folder, options)
    raise MissingFileError(_not_found(name_or_folder, options, formats, variant, use_safetensors))


def _sharded(form: WeightFormat, index: Path, name_or_folder: StrPath, options: HubOptions) -> WeightFiles:
    shard_of = read_index(index)
    path_of: dict[str, Path] = {}
    absent: list[str] = []
    for shard in dict.fromkeys(shard_of.values()):
        path = resolve_file(name_or_folder, shard, **options, required=False)
        if path is None:
            absent.append(shard)
        else:
            _check_inside(path, index)
            path_of[shard] = path
    if absent:
        names = ", ".join(sorted(absent)[:10])
        raise MissingFileError(
            f"{index} names {len(set(shard_of.values()))} shards, but {len(absent)} of them cannot be found: {names}. "
            "Fetch or copy them again."
        )
    weight_map = {name: path_of[shard] for name, shard in shard_of.items()}
    return WeightFiles(form, tuple(path_of.values()), index, weight_map)


def _check_inside(shard: Path, index: Path) -> None:
    """Refuse a shard that is a symbolic link to a file elsewhere; the hub's cache links to its own blobs."""
    folder = index.parent
    homes = [folder.resolve()]
    homes += [above.parent.resolve() / "blobs" for above in (folder, *folder.parents) if above.name == "snapshots"]
    homes += [above.parent.resolve() / "blobs" for above in folder.resolve().parents if above.name == "snapshots"]
    if not any(shard.resolve().is_relative_to(home) for home in homes):
        raise CheckpointError(
            f"Shards must lie in the folder of their index, but {shard} is a link to {shard.resolve()}. "
            "Copy the file into the folder."
        )


def _not_found(
    name_or_folder: StrPath,
    options: HubOptions,
    formats: tuple[WeightFormat, ...],
    variant: str | None,
    use_safetensors: bool | None,
) -> str:
    wanted = ", ".join(name for form in formats for name in (form.file_name(variant), form.index_name(variant)))
    folder = local_folder(name_or_folder, options["subfolder"])
    place = str(folder if folder is not None else name_or_folder)
    message = f"No weights found in {place}: looked for {wanted}."
    if folder is not None:
        message += f" The folder holds {listing(folder)}."
    own = {name for form in formats for name in (form.file_name(), form.index_name())}
    others = [name for name in NOT_READABLE_YET if name not in own]
    unreadable = [name for name in others if resolve_file(name_or_folder, name, **options, required=False)]
    if unreadable:
        return f"{message} {unreadable[0]} cannot be read here yet; convert it to model.safetensors first."
    if use_safetensors is True:
        return f"{message} With use_safetensors=True no .bin file is read; leave it out to allow pytorch_model.bin."
    if use_safetensors is False:
        return f"{message} With use_safetensors=False only .bin files are read; leave it out to allow safetensors."
    if variant:
        return f"{message} Check variant={variant!r}, or leave it out."
    return f"{message} Check the name, the subfolder and that the download was complete."
