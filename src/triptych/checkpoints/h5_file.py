"""One tf_model.h5 file of the reference's Keras 2 models, read and written as plain tensors.

Here, as everywhere, tensors go by their published names and shapes. Nothing is followed out of the file: external and
soft links, external storage and virtual data are refused, and so is everything that is not a tensor of numbers.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from triptych import frameworks
from triptych.checkpoints.checkpoint import TensorInfo
from triptych.checkpoints.keras_names import keras_place, published_array, published_name, published_shape
from triptych.errors import CheckpointError, UnsafeFileError

_LAYERS, _WEIGHTS = "layer_names", "weight_names"  # the attributes that Keras finds its way by


class _Place(NamedTuple):
    dataset: Any
    change: str


class H5File:
    """An open file; a tensor is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        h5py = frameworks.load("h5py")
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise CheckpointError(
                f"{path} is not a whole HDF5 file: {error}. It is damaged or was not downloaded to its end; fetch it "
                "again."
            ) from error
        try:
            self._places: dict[str, _Place] = {}
            for where, dataset in _datasets(h5py, self._file, path):
                name, change = published_name(where)
                if name in self._places:
                    raise CheckpointError(
                        f"A tensor must be in a file once, but {path} has {name} in {self._places[name].dataset.name} "
                        f"and {dataset.name}. Ask the author for model.safetensors."
                    )
                self._places[name] = _Place(dataset, change)
            if not self._places:
                raise CheckpointError(f"{path} holds no tensor of a model. Is it the file of another program?")
        except BaseException:
            self.close()
            raise
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(published_shape(tuple(place.dataset.shape), place.change), place.dataset.dtype.name)
            for name, place in self._places.items()
        }

    def read(self, name: str, *, mapped: bool, dtype: Any = None) -> Any:
        """One array as it is published, in its own memory; see `TensorFile.read`."""
        dataset, change = self._places[name]
        try:
            array = dataset[()]
        except OSError as error:
            raise CheckpointError(
                f"{name} in {self._file.filename} cannot be read: {error}. Fetch it again."
            ) from error
        array = published_array(array, change)
        return array if dtype is None else array.astype(dtype)

    def close(self) -> None:
        """Let go of the file; arrays that were read stay valid."""
        self._file.close()


def open_file(path: Path, framework: str) -> H5File:
    """Open a file; `framework` is "np".

    Raises: CheckpointError for one that is damaged; UnsafeFileError for one that leads out of itself.
    """
    return H5File(path)


def _datasets(
    h5py: Any, group: Any, path: Path, where: tuple[str, ...] = (), met: set[Any] | None = None
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every dataset below a group, with its place.

    `met` are the groups on all ways so far: a group that is in several places would be walked again in each, and groups
    of such groups without end.

    Raises: UnsafeFileError for a link or data outside the file; CheckpointError for what is no tensor.
    """
    met = set() if met is None else met
    if len(where) > 32 or group.id in met:
        raise CheckpointError(
            f"Each group of a file of weights lies in one place, but {'/'.join(where)} in {path} is an endless or a "
            "second one. Ask the author for model.safetensors."
        )
    met.add(group.id)
    for name in group:
        here = (*where, name)
        at = "/".join(here)
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise UnsafeFileError(
                f"Weights must lie in the file itself, but {at} in {path} is a {type(link).__name__}; it was not "
                "followed. Ask the author for model.safetensors."
            )
        item = group[name]
        if isinstance(item, h5py.Group):
            yield from _datasets(h5py, item, path, here, met)
            continue
        if not isinstance(item, h5py.Dataset):
            raise CheckpointError(f"{at} in {path} must be a tensor; got a {type(item).__name__}.")
        if item.external or item.is_virtual:
            raise UnsafeFileError(
                f"Weights must lie in the file itself, but the data of {at} in {path} are elsewhere; nothing was read. "
                "Ask the author for model.safetensors."
            )
        if item.dtype.kind not in "fiu":
            raise CheckpointError(f"{at} in {path} must be a tensor of numbers; got {item.dtype}.")
        yield here, item


def write_file(
    arrays: Mapping[str, np.ndarray[Any, Any]], class_name: str, prefix: str, path: Path, is_shard: bool
) -> None:
    """Write arrays, by published name, where the reference finds them; a shard has no groups of layers.

    Raises: OSError if they cannot be written.
    """
    h5py = frameworks.load("h5py")
    with h5py.File(path, "w") as file:
        layers: dict[str, list[str]] = {}
        for name, array in arrays.items():
            place, change = keras_place(name, class_name, prefix)
            here = "/".join(place[2:] if is_shard else place)
            file[here] = array.T if change == "turn" else array[None] if change == "add leading axis" else array
            layers.setdefault(here if is_shard else place[0], []).append("/".join(place[1:]))
        _set_names(file, _LAYERS, layers)
        if is_shard:
            return
        file.attrs["backend"], file.attrs["keras_version"] = "tensorflow", "2.15.0"
        for layer, weights in layers.items():
            _set_names(file[layer], _WEIGHTS, weights)


def _set_names(group: Any, attribute: str, names: Iterable[str]) -> None:
    group.attrs[attribute] = np.array([name.encode() for name in names])
