"""One picture: shrunk to fit, made floats, padded. What `FuyuImageProcessor` does to each, by its settings.

Sizes are (height, width) in pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from triptych.image_transforms import (
    Array,
    ChannelDimension,
    Floats,
    holds_fractions,
    pad,
    resize,
    size_of,
    size_to_fit,
    to_image,
)
from triptych.tokenization.options import choose

Size = tuple[int, int]
ROWS_AT_A_TIME = 16  # of pixels: with 1920 × 3 floats each, a block stays in the processor's cache
# Pixels; a damaged file could otherwise ask for all of the memory.
MAX_SIDE = 100_000
MAX_AREAS = {"size": 2**28, "patch_size": 2**20}


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that is done to an image, checked.

    A level x becomes `(x * factor - mean) / std`; without `rescales` and `normalizes` it stays as it is.
    """

    resizes: bool
    size: Size
    resample: int
    pads: bool
    padding_value: float
    padding_mode: str
    patch: Size
    rescales: bool
    factor: float
    normalizes: bool
    mean: Floats
    std: Floats

    @property
    def scale(self) -> Floats:
        """What a value is multiplied with: one number, or one for each channel."""
        factor = np.full(1, self.factor if self.rescales else 1, np.float32)
        return factor / self.std if self.normalizes else factor

    @property
    def shift(self) -> Floats:
        """What is added then."""
        return -self.mean / self.std if self.normalizes else np.zeros(1, np.float32)

    @property
    def fill(self) -> Floats:
        """What the padding becomes: its value is set before rescaling and normalising, as in the released model."""
        return np.float32(self.padding_value) * self.scale + self.shift


@dataclass(frozen=True, slots=True)
class Fitted:
    """An image brought to size: (H, W, 3) levels or fractions, what they are multiplied with, and how far it shrank."""

    pixels: Array
    scale: Floats
    original: Size
    factor: float

    @property
    def size(self) -> Size:
        """Height and width."""
        return size_of(self.pixels)


def fit(image: Any, settings: Settings, input_data_format: str | ChannelDimension | None) -> Fitted:
    picture = to_image(image, input_data_format)
    original = size_of(picture)
    size, factor = size_to_fit(original, settings.size) if settings.resizes else (original, 1.0)
    pixels = resize(picture, size, settings.resample)
    # Fractions are the same picture as levels, unless the user says that nothing is to be rescaled.
    fractions = settings.rescales and holds_fractions(pixels)
    return Fitted(pixels, settings.scale * np.float32(255 if fractions else 1), original, factor)


def canvas(fitted: Fitted, settings: Settings, axes: str | ChannelDimension) -> Array:
    """The padded image with its values, (3, H, W) or (H, W, 3)."""
    first = choose(ChannelDimension, axes, "data_format") is ChannelDimension.FIRST
    pixels, (height, width) = fitted.pixels, fitted.size
    high, wide = (max(have, want) for have, want in zip(fitted.size, settings.size, strict=True))
    if not settings.pads:
        high, wide = height, width
    elif settings.padding_mode != "constant":
        pixels, height, width = pad(pixels, (high, wide), settings.padding_mode), high, wide
    plain = not (settings.rescales or settings.normalizes)
    floats = np.empty((3, high, wide) if first else (high, wide, 3), pixels.dtype if plain else np.float32)
    view = floats.transpose(1, 2, 0) if first else floats  # (H, W, 3)
    view[height:] = settings.fill
    view[:height, width:] = settings.fill
    if plain:
        view[:height, :width] = pixels
        return floats
    scale, shift = fitted.scale, settings.shift
    for top in range(0, height, ROWS_AT_A_TIME):
        lines = pixels[top : top + ROWS_AT_A_TIME]
        block = view[top : top + len(lines), :width]
        if first:  # channel by channel, each in long rows
            lines, block = lines.transpose(2, 0, 1), block.transpose(2, 0, 1)
            scale, shift = scale.reshape(-1, 1, 1), shift.reshape(-1, 1, 1)
        np.copyto(block, lines, casting="same_kind")
        block *= scale
        block += shift
    return floats


def sides(value: Any, name: str) -> Size:
    """(height, width) of {"height": …, "width": …}.

    Raises: ValueError naming the option if it is no such dict.
    """
    both: Any = (value.get("height"), value.get("width")) if isinstance(value, Mapping) else (None, None)
    for side in both:
        if not isinstance(side, int) or isinstance(side, bool) or not 0 < side <= MAX_SIDE:
            raise ValueError(
                f'{name} must be like {{"height": 30, "width": 30}}, in pixels from 1 to {MAX_SIDE:,}; got {value!r}.'
            )
    if both[0] * both[1] > MAX_AREAS[name]:
        raise ValueError(f"{name} must have at most {MAX_AREAS[name]:,} pixels; got {value!r}.")
    return both[0], both[1]


def numbers(value: Any, name: str, several: bool = True) -> Floats:
    """A finite number, or three for the channels, as an array (1,) or (3,).

    Raises: ValueError naming the option if it is none of these.
    """
    values = list(value) if isinstance(value, Sequence) and several and not isinstance(value, str) else [value]
    if len(values) not in (1, 3) or not all(
        isinstance(each, int | float) and not isinstance(each, bool) and np.isfinite(each) for each in values
    ):
        form = "a number, or three for red, green and blue" if several else "a number"
        raise ValueError(f"{name} must be {form}; got {value!r}.")
    return np.array(values, np.float32)
