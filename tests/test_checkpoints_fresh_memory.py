"""Memory filled piece by piece: all of it, in order, whatever the system says."""

import mmap

import pytest
import torch

from triptych.checkpoints import fresh_memory
from triptych.checkpoints.fresh_memory import pieces

SIZES = [
    0,
    1,
    mmap.PAGESIZE - 1,
    mmap.PAGESIZE,
    3 * mmap.PAGESIZE + 5,
    fresh_memory._PIECE,
    2 * fresh_memory._PIECE + 7,
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("offset", [0, 1, 100])
@pytest.mark.parametrize("system", ["its own", "none", "refuses"])
def test_pieces_are_the_whole_buffer(size: int, offset: int, system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if system != "its own":
        monkeypatch.setattr(fresh_memory, "_madvise", None if system == "none" else lambda *_: -1)
    memory = torch.empty(size + offset, dtype=torch.uint8)
    memory[:offset] = 7
    for number, piece in enumerate(pieces(memoryview(memory.numpy())[offset:])):
        piece[:] = bytes([number + 1]) * len(piece)
    wanted = [number // fresh_memory._PIECE + 1 for number in range(size)]
    assert memory[offset:].tolist() == wanted
    assert (memory[:offset] == 7).all()  # what stands before is not touched


def test_only_whole_pages_of_the_piece_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(fresh_memory, "_madvise", lambda start, length, _: asked.append((start, start + length)) or 0)
    memory = torch.empty(5 * fresh_memory._PIECE, dtype=torch.uint8)
    inside = memoryview(memory.numpy())[3:-3]
    for _ in pieces(inside):
        pass
    assert len(asked) == 5
    assert all(start % mmap.PAGESIZE == end % mmap.PAGESIZE == 0 for start, end in asked)
    assert memory.data_ptr() + 3 <= asked[0][0]
    assert asked[-1][1] <= memory.data_ptr() + len(memory) - 3
