"""One pytorch_model.bin file: a pickle, read only by torch's restricted unpickler, which never runs code."""

import io
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from triptych.checkpoints.checkpoint import TensorInfo
from triptych.errors import CheckpointError, UnsafeFileError


class PickleFile:
    """An open file: its tensors are views of a memory map (zip format), or in memory (the format before 1.6)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_mapped = zipfile.is_zipfile(path)
        self._values = _check_tensors(path, _load(path, mapped=self._is_mapped))
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(tuple(value.shape), str(value.dtype).removeprefix("torch."))
            for name, value in self._values.items()
        }

    def read(self, name: str, *, mapped: bool, dtype: torch.dtype | None = None) -> torch.Tensor:
        """One tensor; see `TensorFile.read`."""
        value = self._values[name].detach()
        is_kept = mapped and dtype is None
        return value if is_kept else value.to(dtype or value.dtype, copy=True, memory_format=torch.contiguous_format)

    def close(self) -> None:
        """Let go of the file; tensors that were read stay valid."""
        self._values = {}


def open_file(path: Path, framework: str) -> PickleFile:
    """Open a file through the restricted unpickler.

    Raises: UnsafeFileError naming the global that the file wants to run; CheckpointError for a file that is damaged
        or holds anything but tensors; ValueError for another framework than "pt".
    """
    if framework != "pt":
        raise ValueError(f".bin files are read by PyTorch only, but framework={framework!r} was asked for.")
    return PickleFile(path)


def write_file(
    tensors: Mapping[str, torch.Tensor], path: Path, save: Callable[[Any, str], object] = torch.save
) -> None:
    """Write tensors with torch.save, or a function that is called like it.

    Raises: OSError or RuntimeError if it cannot be written.
    """
    save(dict(tensors), str(path))


def _load(path: Path, *, mapped: bool) -> Any:
    try:
        # A map of the file where the format allows; the old format is read as a stream.
        source = str(path) if mapped else io.BytesIO(path.read_bytes())
        return torch.load(source, map_location="cpu", weights_only=True, mmap=True if mapped else None)
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise CheckpointError(_damage(path, str(error))) from error


def _refusal(path: Path, error: pickle.UnpicklingError) -> CheckpointError:
    text = str(error)
    match = re.search(r"GLOBAL ([\w.]+)", text)
    if match is None and "Unsupported operand" in text:  # an opcode that no file of tensors has
        return CheckpointError(_damage(path, "its bytes are no pickle of tensors"))
    what = match[1] if match else "something that is not a tensor"
    return UnsafeFileError(
        f"{path} may hold tensors only, but its pickle asks for {what}, which could run code; nothing was run. "
        "Ask the author for model.safetensors."
    )


def _damage(path: Path, reason: str) -> str:
    first = reason.strip().splitlines()[0][:200] if reason.strip() else "it ends too early"
    return (
        f"{path} is not a whole PyTorch weight file ({path.stat().st_size:,} bytes): {first}. "
        "It is damaged or was not downloaded to its end; fetch it again."
    )


def _is_plain(value: torch.Tensor) -> bool:
    return value.layout == torch.strided and not (value.is_meta or value.is_quantized or value.is_complex())


def _check_tensors(path: Path, values: Any) -> dict[str, torch.Tensor]:
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{path} must hold a dict of tensors, but holds a {type(values).__name__}. Save model.state_dict() itself."
        )
    strange = [
        f"{name!r} ({type(value).__name__})"
        for name, value in values.items()
        if not (isinstance(name, str) and isinstance(value, torch.Tensor) and _is_plain(value))
    ]
    if strange:
        more = f" and {len(strange) - 10} more" if len(strange) > 10 else ""
        raise CheckpointError(
            f"{path} must map names to dense tensors of real numbers, but these entries are something else: "
            f"{', '.join(strange[:10])}{more}. If the weights lie under one of them, save that dict alone."
        )
    return values
