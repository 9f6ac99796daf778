"""One pytorch_model.bin file as NumPy arrays, read without PyTorch and without running anything."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from triptych.checkpoints.arrays import numpy_dtype
from triptych.checkpoints.checkpoint import TensorInfo
from triptych.checkpoints.matching import quote
from triptych.checkpoints.torch_archive import FilePart, StoredTensor, TorchArchive
from triptych.errors import UnsafeFileError


class PickleArrays:
    """An open file; a tensor is read, and its bytes checked, when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._archive = TorchArchive(FilePart.whole(path))
        try:
            self._stored = _only_tensors(path, self._archive.value)
            for name, stored in self._stored.items():
                self._archive.check(name, stored)
        except BaseException:
            self.close()
            raise
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(stored.shape, stored.dtype) for name, stored in self._stored.items()
        }

    def read(self, name: str, *, mapped: bool, dtype: Any = None) -> Any:
        """One array, in its own memory; see `TensorFile.read`."""
        stored = self._stored[name]
        array = np.empty(stored.nbytes, np.uint8)
        done = 0
        for piece in self._archive.pieces(name, stored):
            array[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
            done += len(piece)
        whole = array.view(numpy_dtype(stored.dtype)).reshape(stored.shape)
        return whole if dtype is None else whole.astype(dtype)

    def close(self) -> None:
        """Let go of the file; arrays that were read stay valid."""
        self._archive.close()


def open_file(path: Path, framework: str) -> PickleArrays:
    """Open a file of `torch.save` (PyTorch 1.6 or newer); `framework` is "np".

    Raises: UnsafeFileError for one that holds anything but tensors; CheckpointError for one that is damaged.
    """
    return PickleArrays(path)


def _only_tensors(path: Path, value: Any) -> dict[str, StoredTensor]:
    strange = ["its top"]
    if isinstance(value, dict):
        strange = [str(name) for name, item in value.items() if not isinstance(item, StoredTensor)]
    if strange or not all(isinstance(name, str) for name in value):
        raise UnsafeFileError(
            f"{path} must hold a dict of tensors and nothing else, but {quote(strange)} is something else; nothing was "
            "run. Ask the author for model.safetensors."
        )
    return dict(value)
