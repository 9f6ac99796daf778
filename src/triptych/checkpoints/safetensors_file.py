"""One .safetensors file (https://huggingface.co/docs/safetensors): a JSON header, then the bytes of each tensor."""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from triptych import frameworks
from triptych.checkpoints.arrays import numpy_dtype
from triptych.checkpoints.checkpoint import TensorInfo
from triptych.checkpoints.fresh_memory import pieces
from triptych.errors import CheckpointError

DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "I32": "int32",
    "U32": "uint32",
    "I64": "int64",
    "U64": "uint64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
}
PYTORCH = {"format": "pt"}  # the metadata that marks a file as PyTorch's
# bool is a byte; of the others the name says the bits
ITEM_BYTES = {name: int(re.findall(r"\d+", name)[0]) // 8 if name != "bool" else 1 for name in DTYPES.values()}

# What is read at once to be cast: it stays in the processor's cache, and is small beside any model.
BUFFER_BYTES = 2**20
# Reading from the page cache is copying, and finding memory for it: work that threads can share, if there is enough.
READERS = min(8, os.cpu_count() or 1) if hasattr(os, "preadv") else 1
SHARE_BYTES = 2**23


class SafetensorsFile:
    """An open file. safe_open checks the header; tensors come from its memory map or are read into own memory."""

    def __init__(self, path: Path, framework: str) -> None:
        self.path = path
        self.framework = framework
        self._buffer: Any = None
        self._readers = ThreadPoolExecutor(READERS)  # starts no thread before there is work
        try:
            self._map: Any = safe_open(str(path), framework=framework)
            self._file = path.open("rb", buffering=0)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(_damage(path, error)) from error
        header_size = int.from_bytes(self._file.read(8), "little")
        header = json.loads(self._file.read(header_size))
        header.pop("__metadata__", None)
        in_order = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        strange = sorted({entry["dtype"] for entry in header.values()} - set(DTYPES))
        if strange:
            raise CheckpointError(
                f"{path} must hold real numbers of a dtype that PyTorch has, but holds {', '.join(strange)}. "
                "Convert the weights to float16 or float32."
            )
        self._start = {name: 8 + header_size + entry["data_offsets"][0] for name, entry in in_order}
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(tuple(entry["shape"]), DTYPES.get(entry["dtype"], entry["dtype"]))
            for name, entry in in_order
        }

    def read(self, name: str, *, mapped: bool, dtype: Any = None) -> Any:
        """One tensor; see `TensorFile.read`."""
        if self.framework == "np":
            return self._array(name, mapped, dtype)
        if self.framework != "pt":
            tensor = self._map.get_tensor(name)
            return tensor if dtype is None else tensor.astype(dtype)
        if mapped and dtype is None:
            return self._map.get_tensor(name)
        return self._read_own(name, dtype)

    def _array(self, name: str, mapped: bool, dtype: Any) -> Any:
        info = self.tensors[name]
        stored = numpy_dtype(info.dtype)
        if not math.prod(info.shape):
            return np.empty(info.shape, dtype or stored)  # no memory to map
        array = np.memmap(self.path, stored, "r", self._start[name], info.shape)
        return array if mapped and dtype is None else np.asarray(array).astype(dtype or stored)

    def _read_own(self, name: str, dtype: Any) -> Any:
        """Copy once, from the page cache into the tensor: half the time and half the peak of cloning the map."""
        torch = frameworks.load("torch")
        info = self.tensors[name]
        stored = getattr(torch, info.dtype)
        tensor = torch.empty(info.shape, dtype=dtype or stored, device="cpu")
        start = self._start[name]
        if tensor.dtype == stored:
            self._read_new(_bytes_of(tensor), start, name)
            return tensor
        # One buffer for the whole file: buffers made and freed between the tensors would leave holes in the heap.
        if self._buffer is None:
            self._buffer = torch.empty(BUFFER_BYTES, dtype=torch.uint8, device="cpu")
        raw = self._buffer.view(stored)
        for part in tensor.reshape(-1).split(len(raw)):
            self._fill(_bytes_of(raw[: part.numel()]), start, name)
            part.copy_(raw[: part.numel()])
            start += part.numel() * stored.itemsize
        return tensor

    def _read_new(self, buffer: memoryview, start: int, name: str) -> None:
        """Fill new memory from the byte `start` of the file on, by several threads if it is large."""
        places = range(0, len(buffer), SHARE_BYTES)
        if len(places) > 1:
            parts = [buffer[place : place + SHARE_BYTES] for place in places]
            starts = [start + place for place in places]
            for _ in self._readers.map(self._fill_new, parts, starts, [name] * len(parts)):
                pass
        else:
            self._fill_new(buffer, start, name)

    def _fill_new(self, buffer: memoryview, start: int, name: str) -> None:
        for piece in pieces(buffer):
            self._fill(piece, start, name)
            start += len(piece)

    def _fill(self, buffer: memoryview, start: int, name: str) -> None:
        done = 0
        while done < len(buffer):  # one call may read less than it is asked for
            if READERS > 1:
                count = os.preadv(self._file.fileno(), [buffer[done:]], start + done)
            else:
                self._file.seek(start + done)
                count = self._file.readinto(buffer[done:])
            if not count:
                raise CheckpointError(f"{self.path} became shorter while {name} was read from it. Try again.")
            done += count

    def close(self) -> None:
        """Let go of the file; tensors that were read stay valid."""
        self._readers.shutdown(cancel_futures=True)  # after a failure some may still read
        self._map.__exit__(None, None, None)
        self._file.close()
        self._buffer = None


def _bytes_of(tensor: Any) -> memoryview:
    """A PyTorch tensor's memory."""
    return memoryview(tensor.reshape(-1).view(frameworks.load("torch").uint8).numpy())


def open_file(path: Path, framework: str) -> SafetensorsFile:
    """Open a file and read its header.

    Raises: CheckpointError for a file that is damaged.
    """
    return SafetensorsFile(path, framework)


def write_file(tensors: Mapping[str, Any], path: Path) -> None:
    """Write PyTorch tensors, with the metadata that marks a file as PyTorch's.

    Raises: OSError, RuntimeError or SafetensorError if it cannot be written.
    """
    frameworks.load("torch")
    from safetensors.torch import save_file

    path.touch()
    usual = path.stat().st_mode
    save_file(dict(tensors), str(path), metadata=PYTORCH)
    path.chmod(usual)  # safetensors leaves the file to its owner alone


def write_as_pytorch(arrays: Mapping[str, Any], path: Path) -> None:
    """Write NumPy arrays into the file that `write_file` makes of such tensors, byte for byte, without PyTorch.

    Raises: OSError or SafetensorError if it cannot be written.
    """
    from safetensors.numpy import save_file

    path.touch()
    usual = path.stat().st_mode
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, str(path), metadata=PYTORCH)
    path.chmod(usual)


def write_arrays(arrays: Mapping[str, Any], path: Path) -> None:
    """Write arrays under PyTorch's names and with its mark, without PyTorch.

    What has a shape and a NumPy dtype and becomes an array when asked is read when its turn comes, and let go of.

    Raises: OSError if they cannot be written.
    """

    def whole(array: Any) -> Iterator[Any]:
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data

    write_pieces(
        {name: (TensorInfo(array.shape, array.dtype.name), whole(array)) for name, array in arrays.items()}, path
    )


def write_pieces(tensors: Mapping[str, tuple[TensorInfo, Iterable[Any]]], path: Path) -> None:
    """Write tensors whose bytes come piece by piece, under PyTorch's names and with its mark, without PyTorch.

    Raises: OSError if they cannot be written; ValueError if the pieces of a tensor are not as long as its shape asks.
    """
    code_of = {name: code for code, name in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": PYTORCH}
    end = 0
    for name, (info, _) in tensors.items():
        start, end = end, end + math.prod(info.shape) * ITEM_BYTES[info.dtype]
        header[name] = {"dtype": code_of[info.dtype], "shape": info.shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers lie where the processor likes them
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (_, pieces) in tensors.items():
            start, end = header[name]["data_offsets"]
            written = sum(file.write(piece) for piece in pieces)
            if written != end - start:
                raise ValueError(f"{name} must have {end - start} bytes; got {written}.")


def _damage(path: Path, error: Exception) -> str:
    if path.is_file():
        with path.open("rb") as file:
            if file.read(24).startswith(b"version https://git-lfs"):
                return f"{path} is a Git LFS pointer, not the weights themselves. Run `git lfs pull` in its folder."
    size = f"{path.stat().st_size:,} bytes" if path.exists() else "no file"
    return (
        f"{path} is not a whole safetensors file ({size}): {error}. "
        "It is damaged or was not downloaded to its end; fetch it again."
    )
