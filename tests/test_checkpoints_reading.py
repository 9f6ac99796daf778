"""Tensors of any size and place in a file are read whole into memory of their own, on systems of every kind."""

import threading

import pytest
import torch
from safetensors.torch import save_file

from triptych.checkpoints import fresh_memory, safetensors_file
from triptych.errors import CheckpointError

PIECE = fresh_memory._PIECE // 4  # numbers of four bytes
SHARE = 2 * fresh_memory._PIECE + 999


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """Sizes around those of pieces, shares and pages; one of odd length, behind which nothing is aligned."""
    sizes = (1, 3, 1000, 1024, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE + 7, 9 * PIECE)
    draw = torch.Generator().manual_seed(0)
    drawn = {f"float.{size}": torch.randn(size, generator=draw) for size in sizes}
    return drawn | {"bytes": torch.arange(999).to(torch.uint8), "none": torch.empty(0, 3)}


@pytest.fixture(scope="module")
def path(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("reading") / "model.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    "machine",
    [
        pytest.param([(safetensors_file, "READERS", 3), (safetensors_file, "SHARE_BYTES", SHARE)], id="threads"),
        pytest.param([(safetensors_file, "READERS", 1)], id="without preadv"),
        pytest.param([(fresh_memory, "_madvise", None)], id="without madvise"),
        pytest.param([(fresh_memory, "_POPULATE_WRITE", 9999)], id="an old kernel"),
    ],
)
@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_tensors_are_read_exactly_on_every_kind_of_machine(monkeypatch, path, tensors, machine, dtype):
    for module, name, value in machine:
        monkeypatch.setattr(module, name, value)
    file = safetensors_file.open_file(path, "pt")
    for name, expected in tensors.items():
        got = file.read(name, mapped=False, dtype=dtype)
        assert got.dtype == (dtype or expected.dtype)
        assert torch.equal(got, expected.to(got.dtype))
    file.close()


def test_no_reading_thread_outlives_the_file(path):
    before = set(threading.enumerate())
    file = safetensors_file.open_file(path, "pt")
    file.read(f"float.{9 * PIECE}", mapped=False)
    file.close()
    assert set(threading.enumerate()) == before


def test_a_file_that_is_cut_while_it_is_read_is_named(path, tmp_path):
    copy = tmp_path / "model.safetensors"
    copy.write_bytes(path.read_bytes())
    file = safetensors_file.open_file(copy, "pt")
    with copy.open("r+b") as writer:
        writer.truncate(copy.stat().st_size // 4)
    with pytest.raises(CheckpointError, match=r"model\.safetensors became shorter while"):
        file.read(f"float.{9 * PIECE}", mapped=False)
    file.close()
