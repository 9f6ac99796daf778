"""Weights and inputs that every library makes for itself, so that large models need no files."""

import zlib
from typing import Any

import torch
from torch import Tensor

PERIOD = 1_048_573  # prime, so that rows of a matrix do not repeat each other
PATCH, NEWLINE, WORD = 3, 4, 5  # ids in a prompt with a picture; a patch's is looked at by nobody


def noise(count: int, at: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Normal numbers (count,), drawn on the CPU and repeated; `at` says where they begin."""
    drawn = torch.randn(PERIOD, generator=torch.Generator().manual_seed(0))
    return drawn.roll(-(at % PERIOD)).to(device, dtype).repeat(-(-count // PERIOD))[:count]


@torch.no_grad()
def fill(model: torch.nn.Module) -> None:
    """Give each parameter values that its name decides.

    Matrices and embeddings get a deviation of 0.5 / sqrt(inputs): then layers, and not the last token alone, decide
    what comes next, and unscaled attention does not settle on a single key.
    """
    for name, weight in model.named_parameters():
        values = noise(weight.numel(), zlib.crc32(name.encode()), weight.device, weight.dtype).view_as(weight)
        if weight.dim() > 1:
            weight.copy_(values.mul_(0.5 / weight.shape[-1] ** 0.5))
        else:
            weight.copy_(values.mul_(0.02).add_(1.0 if name.endswith("weight") else 0.0))  # norms scale by about one


def picture_inputs(
    rows: int, columns: int, words: int, config: Any, device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """A prompt of Fuyu's: rows of patches, each with a newline behind it, then words; one text (1, T)."""
    line = [PATCH] * columns + [NEWLINE]
    ids = torch.tensor([line * rows + [WORD + number for number in range(words)]], device=device)
    is_patch = ids == PATCH
    size = config.patch_size**2 * config.num_channels
    patches = noise(rows * columns * size, 0, device, dtype).view(1, rows * columns, size)
    indices = torch.where(is_patch, is_patch.cumsum(1) - 1, -1)
    return {"input_ids": ids, "image_patches": patches, "image_patches_indices": indices}
