"""One flax_model.msgpack file: nested dicts whose leaves are arrays, with their shapes and dtypes.

An array is an extension of type 1 that holds [shape, dtype, bytes]; one of more than 1 GiB is a dict of such pieces.
Leaves have Flax's names; here, as everywhere, tensors go by their published names. Every size that the file tells is
checked against the bytes that are there, before anything of that size is made.
"""

import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from triptych import frameworks
from triptych.checkpoints.arrays import numpy_dtype
from triptych.checkpoints.checkpoint import TensorInfo
from triptych.checkpoints.safetensors_file import DTYPES, ITEM_BYTES
from triptych.errors import CheckpointError

# Name of a leaf in Flax → its name as published, and whether its axes are the other way round.
LEAVES = {
    "kernel": ("weight", True),
    "embedding": ("weight", False),
    "scale": ("weight", False),
    "bias": ("bias", False),
}
ARRAY = 1  # the extension's type
CHUNKED = "__msgpack_chunked_array__"
CHUNK_BYTES = 2**30
# No tree of weights comes near these. Lists are only allowed as shapes.
LIMITS = {"max_str_len": 1024, "max_map_len": 100_000, "max_array_len": 32}


class _Array(NamedTuple):
    info: TensorInfo
    pieces: tuple[bytes, ...]


class MsgpackFile:
    """An open file; its bytes are in memory once, and arrays are views of them."""

    def __init__(self, path: Path) -> None:
        self._arrays = {
            published_name(place)[0]: (_published(array, place), place) for place, array in _leaves(_unpacked(path))
        }
        self.tensors: Mapping[str, TensorInfo] = {name: array.info for name, (array, _) in self._arrays.items()}

    def read(self, name: str, *, mapped: bool, dtype: Any = None) -> Any:
        """One array as it is published; see `TensorFile.read`."""
        array, place = self._arrays[name]
        data = array.pieces[0] if len(array.pieces) == 1 else b"".join(array.pieces)
        flat = np.frombuffer(data, numpy_dtype(array.info.dtype))
        is_turned = published_name(place)[1]
        whole = flat.reshape(array.info.shape[::-1]).T if is_turned else flat.reshape(array.info.shape)
        return whole if mapped and dtype is None else whole.astype(dtype or whole.dtype)

    def close(self) -> None:
        """Let go of the bytes; arrays that were read stay valid."""
        self._arrays = {}


def open_file(path: Path, framework: str) -> MsgpackFile:
    """Read a file; `framework` is "np".

    Raises: CheckpointError for a file that is damaged, or tells sizes that it does not have.
    """
    return MsgpackFile(path)


def write_file(tree: Mapping[str, Any], path: Path) -> None:
    """Write nested dicts of arrays, as Flax's own serialisation does.

    Raises: OSError if it cannot be written.
    """
    packer = frameworks.load("msgpack").Packer()

    def parts(node: Any) -> Iterator[bytes]:
        if not isinstance(node, Mapping):
            yield from _packed_array(packer, np.ascontiguousarray(node))
            return
        yield packer.pack_map_header(len(node))
        for name, value in node.items():
            yield packer.pack(name)
            yield from parts(value)

    with path.open("wb") as file:
        for part in parts(tree):
            file.write(part)


def _packed_array(packer: Any, array: np.ndarray[Any, Any]) -> Iterator[bytes]:
    if array.nbytes <= CHUNK_BYTES:
        data = packer.pack((array.shape, array.dtype.name, array.tobytes()))
        yield packer.pack_ext_type(ARRAY, data)
        return
    flat, step = array.reshape(-1), max(1, CHUNK_BYTES // array.itemsize)
    starts = range(0, flat.size, step)
    yield packer.pack_map_header(3)
    yield packer.pack(CHUNKED) + packer.pack(True)
    yield packer.pack("shape") + packer.pack({str(axis): size for axis, size in enumerate(array.shape)})
    yield packer.pack("chunks") + packer.pack_map_header(len(starts))
    for number, start in enumerate(starts):
        yield packer.pack(str(number))
        yield from _packed_array(packer, flat[start : start + step])


def published_name(place: tuple[str, ...]) -> tuple[str, bool]:
    """Place of a leaf in Flax's tree → its published name, and whether its axes are the other way round.

    Raises: CheckpointError for a leaf that no layer has.
    """
    if place[-1] not in LEAVES:
        raise CheckpointError(
            f"Leaves of Flax's weights are called {', '.join(LEAVES)}; got {'/'.join(place)}. Save the params alone."
        )
    leaf, is_turned = LEAVES[place[-1]]
    return ".".join((*place[:-1], leaf)), is_turned


def _published(array: _Array, place: tuple[str, ...]) -> _Array:
    shape, dtype = array.info.shape, array.info.dtype
    return _Array(TensorInfo(shape[::-1] if published_name(place)[1] else shape, dtype), array.pieces)


def _unpacked(path: Path) -> Any:
    msgpack = frameworks.load("msgpack")
    size = path.stat().st_size
    try:
        if not size:
            raise ValueError("it is empty")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return msgpack.unpackb(data, ext_hook=_array, strict_map_key=True, max_bin_len=0, **LIMITS)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a whole file of Flax's weights ({size:,} bytes): {error or type(error).__name__}. "
            "It is damaged or was not downloaded to its end; fetch it again."
        ) from error


def _array(kind: int, data: bytes) -> _Array:
    """Raises: ValueError unless the bytes are those of an array of that shape and dtype."""
    if kind != ARRAY:
        raise ValueError(f"it holds an extension of type {kind}, which is no array")
    shape, dtype, content = frameworks.load("msgpack").unpackb(data, max_str_len=32, max_array_len=32, max_map_len=0)
    if not isinstance(content, bytes) or dtype not in DTYPES.values():
        raise ValueError(f"it holds an array of {dtype!r}")
    return _checked(shape, dtype, (content,))


def _checked(shape: Any, dtype: str, pieces: tuple[bytes, ...]) -> _Array:
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 2**48 for size in shape):
        raise ValueError(f"it tells the shape {shape!r}")
    has, needs = sum(map(len, pieces)), math.prod(shape) * ITEM_BYTES[dtype]
    if has != needs:
        raise ValueError(f"an array of shape {tuple(shape)} and {dtype} needs {needs:,} bytes, and has {has:,}")
    return _Array(TensorInfo(tuple(shape), dtype), pieces)


def _leaves(tree: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], _Array]]:
    """Places and arrays.

    Raises: CheckpointError for a leaf that is no array.
    """
    if isinstance(tree, dict) and tree.get(CHUNKED) is True:
        tree = _joined(tree, place)
    if isinstance(tree, _Array) and place:
        yield place, tree
    elif isinstance(tree, dict):
        for name, value in tree.items():
            yield from _leaves(value, (*place, str(name)))
    else:
        raise CheckpointError(
            f"Flax's weights are nested dicts of arrays, but {'/'.join(place) or 'the top'} is a "
            f"{type(tree).__name__}. Save the params alone."
        )


def _joined(tree: Mapping[str, Any], place: tuple[str, ...]) -> _Array:
    try:
        pieces = [tree["chunks"][str(number)] for number in range(len(tree["chunks"]))]
        shape = [tree["shape"][str(axis)] for axis in range(len(tree["shape"]))]
        (dtype,) = {piece.info.dtype for piece in pieces}
        return _checked(shape, dtype, tuple(data for piece in pieces for data in piece.pieces))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{'/'.join(place)} must be an array in pieces that belong together: {error}. Fetch the file again."
        ) from error
