"""What `torch.save` wrote (its zip format, PyTorch 1.6 or newer), read without PyTorch and without running anything.

The archive holds a pickle, `data.pkl`, and the bytes of each storage as they are. The unpickler here knows how tensors
are described, and makes an inert placeholder of everything else: nothing is imported, no function of a library called.
So a training checkpoint can be read whose pickle also holds objects of the training program. Tensors are read from the
file piece by piece when they are asked for; their sizes are checked first.
"""

import io
import math
import os
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from triptych.errors import CheckpointError

# Storage class of the pickle → dtype by its name in PyTorch, bytes of a number.
STORAGES = {
    "BFloat16Storage": ("bfloat16", 2),
    "BoolStorage": ("bool", 1),
    "ByteStorage": ("uint8", 1),
    "CharStorage": ("int8", 1),
    "DoubleStorage": ("float64", 8),
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "IntStorage": ("int32", 4),
    "LongStorage": ("int64", 8),
    "ShortStorage": ("int16", 2),
}
MAX_PICKLE_BYTES = 2**24  # that of a checkpoint of thousands of tensors has fewer than a million
MAX_STEPS = 10**6  # of its pickle, forty for each tensor; one of a single byte can take two hundred bytes of memory
MAX_AXES = 64  # of a tensor
MAX_KEY_PARTS = 16  # of a tuple that is the key of a dict
PIECE = 2**24  # bytes of a tensor that are in memory at once
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip entry: signature, length of the name, length of the extra field


@dataclass(frozen=True, slots=True)
class FilePart:
    """Some bytes of a file, such as a member of a .tar."""

    path: Path
    start: int
    size: int
    name: str  # for people

    @classmethod
    def whole(cls, path: Path) -> "FilePart":
        """All of a file."""
        return cls(path, 0, path.stat().st_size, str(path))

    def read_bytes(self) -> bytes:
        """All of it."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)


class _Window(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, part: FilePart) -> None:
        self._part, self._at, self._file = part, 0, part.path.open("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._part.size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        room = memoryview(buffer)[: max(0, self._part.size - self._at)]
        self._file.seek(self._part.start + self._at)
        count = self._file.readinto(room) or 0
        self._at += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor is: `offset` and `strides`, in numbers, within a storage of `dtype`."""

    storage: str
    dtype: str
    itemsize: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __setstate__(self, state: Any) -> None:
        """Refuse: a pickle could write other numbers over those that were checked when the tensor was made."""
        raise ValueError("it writes on a tensor that is made")

    @property
    def is_sound(self) -> bool:
        """Whether it is a tensor of a known dtype that starts and goes on forwards."""
        places = (self.offset, *self.shape, *self.strides)
        return (
            (self.dtype, self.itemsize) in STORAGES.values()
            and len(self.shape) == len(self.strides) <= MAX_AXES
            and all(type(each) is int and 0 <= each < 2**48 for each in places)
        )

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * self.itemsize

    @property
    def extent(self) -> int:
        """Numbers of the storage from its first to its last."""
        if not self.nbytes:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))

    @property
    def is_contiguous(self) -> bool:
        """Whether its numbers stand in the storage in their order."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size > 1 and stride != expected:
                return False
            expected *= size
        return True


class Placeholder:
    """Stands for an object of the program that wrote the file: takes what a pickle does to it, and forgets it."""

    def __new__(cls, *_: Any, **__: Any) -> "Placeholder":
        """Made from any arguments, by the calls and constructors of a pickle."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def _forget(self, *_: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = _forget

    def __call__(self, *_: Any, **__: Any) -> "Placeholder":
        """What it would make stands for something as well."""
        return self


# Which things on the stack become keys, by the steps that make dicts and sets.
_KEYS = {
    pickle.SETITEM: slice(-2, -1),
    pickle.SETITEMS: slice(None, None, 2),
    pickle.DICT: slice(None, None, 2),
    pickle.ADDITEMS: slice(None),
    pickle.FROZENSET: slice(None),
}


def _is_key(value: Any) -> bool:
    """Whether a value is quick to hash; a pair of pairs of pairs … takes twice as long with each level."""
    if isinstance(value, tuple):
        return (
            len(value) <= MAX_KEY_PARTS
            and not any(isinstance(part, tuple) for part in value)
            and all(map(_is_key, value))
        )
    if isinstance(value, int):
        return value.bit_length() <= 64
    return value is None or isinstance(value, str | bytes | float | Placeholder | type)


def _with_checked_keys(load: Callable[[Any], None], keys: slice) -> Callable[[Any], None]:
    def checked(unpickler: Any) -> None:
        if not all(map(_is_key, unpickler.stack[keys])):
            raise ValueError("a key is no text, number or short tuple of those")
        load(unpickler)

    return checked


class _InertUnpickler(pickle._Unpickler):  # the one in Python, whose steps can be looked at
    """Knows how storages and tensors are described, and nothing else.

    What it hands to a pickle is made for that pickle alone, as a pickle may write on it.
    """

    dispatch = pickle._Unpickler.dispatch | {
        step[0]: _with_checked_keys(pickle._Unpickler.dispatch[step[0]], keys) for step, keys in _KEYS.items()
    }

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._known: dict[str, Any] = {
            "collections.OrderedDict": lambda: _Dict(),  # its items follow
            "torch.Size": lambda sizes: _short(sizes),
            "torch._utils._rebuild_tensor": lambda *description: _tensor(*description),
            "torch._utils._rebuild_tensor_v2": lambda *description: _tensor(*description),
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
            "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
            "torch._tensor._rebuild_from_type_v2": lambda _function, _type, description, *_: _tensor(*description),
        } | {f"torch.{name}": storage for name, storage in STORAGES.items()}
        self._unknown = type("Placeholder", (Placeholder,), {})

    def find_class(self, module: str, name: str) -> Any:
        return self._known.get(f"{module}.{name}", self._unknown)

    def persistent_load(self, pid: Any) -> Any:
        kind, storage, key, _location, _count = pid
        if kind != "storage" or storage not in STORAGES.values() or not isinstance(key, str):
            return self._unknown()  # what is built on it is no tensor then
        return _Storage(key, *storage)


class _Dict(dict[Any, Any]):
    """An OrderedDict; its attributes (`_metadata` of a state dict) are forgotten."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Storage(NamedTuple):
    key: str
    dtype: str
    itemsize: int


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Any:
    if isinstance(storage, _Storage):
        tensor = StoredTensor(storage.key, storage.dtype, storage.itemsize, offset, _short(shape), _short(strides))
        if tensor.is_sound:
            return tensor
    return Placeholder()


def _short(sizes: Any) -> tuple[Any, ...]:
    if len(sizes) > MAX_AXES:  # many copies of a long list would take all of the memory
        raise ValueError(f"a tensor has {len(sizes)} axes")
    return tuple(sizes)


class TorchArchive:
    """An open archive: `value` is what was saved, with a StoredTensor for each tensor and placeholders."""

    def __init__(self, part: FilePart) -> None:
        self.name = part.name
        self._window = _Window(part)
        try:
            self._entries = _entries(self._window, part)
            if self._entries.get("byteorder") and self._bytes("byteorder", 16).strip() != b"little":
                raise CheckpointError(f"{self.name} was written on a big-endian machine. Save it again on another.")
            self.value = self._unpickled()
        except BaseException:
            self.close()
            raise

    def _unpickled(self) -> Any:
        data = self._bytes("data.pkl", MAX_PICKLE_BYTES)
        try:
            # Each step is read here before any is taken, so that no length in it leads behind its end.
            for count, _step in enumerate(pickletools.genops(data)):
                if count == MAX_STEPS:
                    raise ValueError(f"it has more than {MAX_STEPS:,} steps")
            return _InertUnpickler(data).load()
        except Exception as error:  # whatever a damaged or hostile pickle does, it is the file's fault
            raise CheckpointError(
                f"The pickle in {self.name} cannot be read ({type(error).__name__}: {error}). Nothing of it was run. "
                "It is damaged, or no checkpoint of PyTorch; fetch it again."
            ) from error

    def _bytes(self, entry: str, limit: int) -> bytes:
        if entry not in self._entries:
            raise CheckpointError(f"{self.name} lacks {entry}, so torch.save did not write it. Check the path.")
        start, info = self._place(entry)
        if info.file_size > limit:
            raise CheckpointError(f"{entry} in {self.name} has {info.file_size:,} bytes, far more than any has.")
        data = self._read(start, info.file_size)
        if zlib.crc32(data) != info.CRC:
            raise CheckpointError(_damaged(self.name, entry))
        return data

    def _place(self, entry: str) -> tuple[int, zipfile.ZipInfo]:
        """Where the bytes of an entry start, and what the archive says of it."""
        info = self._entries[entry]
        signature, name, extra = _LOCAL_HEADER.unpack(self._read(info.header_offset, _LOCAL_HEADER.size))
        if signature != b"PK\3\4" or info.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(_damaged(self.name, entry))
        return info.header_offset + _LOCAL_HEADER.size + name + extra, info

    def _read(self, start: int, size: int) -> bytes:
        self._window.seek(start)
        data: bytes = self._window.read(size) or b""
        while len(data) < size:  # one call reads at most 2 GiB
            more = self._window.read(size - len(data))
            if not more:
                raise CheckpointError(f"{self.name} ends in the middle of its numbers. Fetch it again.")
            data += more
        return data

    def check(self, name: str, tensor: StoredTensor) -> None:
        """See that a tensor lies within its storage; nothing is read.

        Raises: CheckpointError naming it.
        """
        if not tensor.is_sound:
            raise CheckpointError(
                f"In {self.name}, {name} is no tensor: {tensor}. The file is damaged; fetch it again."
            )
        entry = f"data/{tensor.storage}"
        info = self._entries.get(entry)
        needed = max((tensor.offset + tensor.extent) * tensor.itemsize, tensor.nbytes)
        if info is None or info.file_size < needed:
            has = "is not there" if info is None else f"has {info.file_size:,} bytes"
            raise CheckpointError(
                f"In {self.name}, {name} of shape {tensor.shape} needs {needed:,} bytes of {entry}, which {has}. "
                "The file is damaged; fetch it again."
            )

    def pieces(self, name: str, tensor: StoredTensor) -> Iterator[bytes]:
        """The bytes of a tensor's numbers in their order, at most PIECE at once where they stand so in the file.

        Raises: CheckpointError if they are not those that were written.
        """
        self.check(name, tensor)
        if not tensor.nbytes:
            return
        entry = f"data/{tensor.storage}"
        start, info = self._place(entry)
        at, left = start + tensor.offset * tensor.itemsize, tensor.nbytes
        if not tensor.is_contiguous:
            yield self._gathered(at, tensor)
            return
        checksum = 0
        while left:
            piece = self._read(at, min(left, PIECE))
            checksum = zlib.crc32(piece, checksum)
            yield piece
            at, left = at + len(piece), left - len(piece)
        if tensor.nbytes == info.file_size and checksum != info.CRC:
            raise CheckpointError(_damaged(self.name, entry))

    def _gathered(self, at: int, tensor: StoredTensor) -> bytes:
        numbers = np.frombuffer(self._read(at, tensor.extent * tensor.itemsize), f"u{tensor.itemsize}")
        steps = [stride * tensor.itemsize for stride in tensor.strides]
        return np.lib.stride_tricks.as_strided(numbers, tensor.shape, steps, writeable=False).tobytes()

    def close(self) -> None:
        """Let go of the file."""
        self._window.close()

    def __enter__(self) -> "TorchArchive":
        """The archive itself, closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()


def _entries(window: _Window, part: FilePart) -> dict[str, zipfile.ZipInfo]:
    """The entries by their names under the archive's one top folder."""
    try:
        with zipfile.ZipFile(window) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        old = part.size > 2 and window.seek(0) == 0 and window.read(2) in (b"\x80\x02", b"\x80\x03", b"\x80\x04")
        raise CheckpointError(
            f"{part.name} is no whole archive of torch.save: {error}. "
            + ("PyTorch before 1.6 wrote it; load it and save it again." if old else "Fetch the file again.")
        ) from error
    return {info.filename.partition("/")[2]: info for info in infos}


def _damaged(name: str, entry: str) -> str:
    return f"{entry} in {name} does not hold the bytes that were written. The file is damaged; fetch it again."
