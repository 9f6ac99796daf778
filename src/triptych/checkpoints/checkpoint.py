"""A lazy view of all tensors of a checkpoint, over one file or many shards."""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from triptych.checkpoints.locate import WeightFiles
from triptych.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Shape and dtype ("float32", "bfloat16", "int64", …) of a stored tensor, known without reading it."""

    shape: tuple[int, ...]
    dtype: str


class TensorFile(Protocol):
    """One open weight file; each format has a class of this kind, which its module's `open_file` returns."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor of the file, in the file's order."""

    def read(self, name: str, *, mapped: bool, dtype: Any = None) -> Any:
        """One tensor: a view of the memory-mapped file if `mapped` (and the format can), else in its own memory.

        `dtype` is the framework's, None to keep that of the file; what is cast always has its own memory.
        """

    def close(self) -> None:
        """Let go of the file; tensors that were read stay valid."""


class Checkpoint:
    """The tensors of all weight files, by published name."""

    def __init__(self, files: WeightFiles, opened: Mapping[Path, TensorFile]) -> None:
        self.source = str(files.index or files.files[0])
        if files.weight_map is None:
            (only,) = opened.values()
            self._file_of = dict.fromkeys(only.tensors, only)
        else:
            self._file_of = {name: opened[path] for name, path in files.weight_map.items()}
            for name, path in files.weight_map.items():
                if name not in opened[path].tensors:
                    raise CheckpointError(
                        f"{files.index} says that {name} is in {path.name}, but it is not there. "
                        "The index and the shards belong to different versions; fetch them again."
                    )
        self.tensors: Mapping[str, TensorInfo] = {name: file.tensors[name] for name, file in self._file_of.items()}

    def read(self, name: str, *, mapped: bool = False, dtype: Any = None) -> Any:
        """One tensor of the framework the checkpoint was opened for; see `TensorFile.read`."""
        return self._file_of[name].read(name, mapped=mapped, dtype=dtype)


@contextmanager
def open_checkpoint(files: WeightFiles, framework: str = "pt") -> Iterator[Checkpoint]:
    """Open weight files; nothing but their headers is read until a tensor is asked for.

    `framework` is safetensors' name of it: "pt", "np", "tf" or "flax".

    Raises: CheckpointError naming the file that is damaged; UnsafeFileError for one that holds code.
    """
    module = importlib.import_module(files.format.module)
    with ExitStack() as stack:
        opened: dict[Path, TensorFile] = {}
        for path in files.files:
            opened[path] = module.open_file(path, framework)
            stack.callback(opened[path].close)
        yield Checkpoint(files, opened)
