"""Pictures as arrays: from whatever the user has to red, green and blue, to size, to floats, to patches.

An image here is a picture of Pillow in mode RGB, or an array (H, W, 3) of uint8 levels, or of floats that are levels
(0 to 255) or fractions of the brightest (0 to 1). Pillow is imported only where it is used.
"""

import warnings
from collections.abc import Iterator, Sequence
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from triptych import frameworks
from triptych.errors import ImageError, MissingFileError
from triptych.tokenization.options import choose

if TYPE_CHECKING:
    from PIL import Image as PillowImage

    Picture = PillowImage.Image | NDArray[Any]

Array = NDArray[Any]
Floats = NDArray[np.float32]

SAY_ORIENTATION = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")  # in a picture's info
ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held
WHITE = 255
# What pictures come in. Pillow reads more; for PostScript, whatever the file is called, it starts Ghostscript.
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP", "TGA")
RUN_BY_A_PROGRAM = "EPS"
CHANNELS = {1: "grey", 2: "grey and alpha", 3: "red, green and blue", 4: "red, green, blue and alpha"}
# A shape that could be either way is read by the likelier number of channels, first axis before last.
LIKELIEST = (3, 1, 4, 2)
# As NumPy calls them, by the documented names.
PADDING_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "symmetric": "symmetric"}


class Resampling(IntEnum):
    """The filters of Pillow, under its own numbers."""

    NEAREST = 0
    LANCZOS = 1
    BILINEAR = 2
    BICUBIC = 3
    BOX = 4
    HAMMING = 5


class ChannelDimension(StrEnum):
    """Which axis of an array holds the colours: (C, H, W) or (H, W, C)."""

    FIRST = "channels_first"
    LAST = "channels_last"


def _pillow() -> Any:
    return frameworks.load("PIL.Image")


# From what the user has to an image.


def open_image(path: str | Path | BinaryIO, name: str | None = None) -> "PillowImage.Image":
    """The picture in a file, upright, as RGB; alpha stands on white, of an animation the first frame is taken.

    `name` is how errors call it, the path if not given.

    Raises: MissingFileError (FileNotFoundError); ImageError (ValueError, OSError) if the file is no picture in one of
        FORMATS, is damaged, or has more pixels than PIL.Image.MAX_IMAGE_PIXELS.
    """
    pillow = _pillow()
    name = name or str(path)
    if isinstance(path, str | Path) and not Path(path).exists():
        raise MissingFileError(f"A picture is needed but {name} does not exist. Check the path.")
    if isinstance(path, str | Path) and Path(path).is_dir():
        raise ImageError(f"A picture is needed but {name} is a folder. Give the pictures in it, as in {name}/*.png.")
    try:
        with warnings.catch_warnings():
            # Pillow warns of a picture above its limit and refuses one of twice that; here the limit is the limit.
            warnings.simplefilter("ignore", pillow.DecompressionBombWarning)
            pillow.init()  # makes known what this Pillow reads, and not all read AVIF
            picture = pillow.open(path, formats=[each for each in FORMATS if each in pillow.OPEN])
    except pillow.UnidentifiedImageError as error:
        raise ImageError(f"{name} must be a picture, in one of {', '.join(FORMATS)}. Give another file.") from error
    except pillow.DecompressionBombError as error:
        raise ImageError(f"{name}: {error} Shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it.") from error
    except Exception as error:  # Pillow's readers raise all kinds over damaged files
        raise ImageError(f"{name} must be a picture that Pillow reads: {_said(error)}. Give another file.") from error
    with picture:
        return upright_rgb(picture, name)


def upright_rgb(picture: "PillowImage.Image", name: str = "the picture") -> "PillowImage.Image":
    """A picture of Pillow in any mode as RGB, turned as its EXIF orientation says; transparency stands on white.

    Deeper levels than 8 bits are rounded to them. Files that Pillow opened are read here, but for PostScript, which is
    a program: that is the caller's to run.

    Raises: ImageError (ValueError, OSError) if the pixels cannot be read, are none, or are more than
        PIL.Image.MAX_IMAGE_PIXELS in a file that has not been read yet.
    """
    pillow = _pillow()
    if getattr(picture, "format", None) == RUN_BY_A_PROGRAM and getattr(picture, "tile", None):  # not read yet
        raise ImageError(
            f"A picture must not be PostScript, which Ghostscript would run to read it; {name} is. "
            "Call its load() first if you trust it."
        )
    width, height = picture.size
    if not (width and height):
        raise ImageError(f"A picture must have pixels; {name} is {width} × {height}.")
    limit = pillow.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit and hasattr(picture, "filename"):
        raise ImageError(
            f"A picture from a file may have at most {limit:,} pixels; {name} would have {width:,} × {height:,}. "
            "Shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
        )
    try:
        picture.load()
        picture = _upright(picture)
        if picture.mode == "RGB" and "transparency" not in picture.info:
            return picture
        if picture.mode == "F" or picture.mode.startswith("I"):
            picture = pillow.fromarray(_eight_bits(np.asarray(picture), name))
        if not picture.has_transparency_data:
            return picture.convert("RGB")
        on_white: PillowImage.Image = pillow.new("RGBA", picture.size, "white")
        on_white.alpha_composite(picture.convert("RGBA"))
        return on_white.convert("RGB")
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise all kinds over damaged files
        raise ImageError(
            f"The pixels of {name} cannot be read: {_said(error)}. The file is damaged or cut short."
        ) from error


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _upright(picture: "PillowImage.Image") -> "PillowImage.Image":
    try:
        turned = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow's parsers raise all kinds of errors over damaged EXIF, which says nothing then
        return picture
    method = _pillow().Transpose
    turns = {
        2: method.FLIP_LEFT_RIGHT,
        3: method.ROTATE_180,
        4: method.FLIP_TOP_BOTTOM,
        5: method.TRANSPOSE,
        6: method.ROTATE_270,
        7: method.TRANSVERSE,
        8: method.ROTATE_90,
    }
    if turned not in turns:
        return picture
    upright: PillowImage.Image = picture.transpose(turns[turned])
    # Else the orientation would stay with the picture, and whoever reads it would turn it again.
    upright.info = {name: value for name, value in upright.info.items() if name not in SAY_ORIENTATION}
    return upright


def _eight_bits(values: Array, name: str) -> Array:
    """Grey of 16 or 32 bits, or floats that are levels or fractions, (H, W), as levels of 8 bits.

    Raises: ImageError if they are out of the range.
    """
    lowest, highest = values.min(), values.max()
    brightest = WHITE if values.dtype.kind == "f" else 65535
    if not 0 <= lowest <= highest <= brightest:
        raise ImageError(f"Grey levels must lie in 0 to {brightest}; {name} has {lowest} to {highest}.")
    if values.dtype.kind == "f":
        factor = WHITE if highest <= 1 else 1.0
    else:
        factor = 1 / 257 if values.dtype.itemsize == 2 or highest > WHITE else 1.0
    return np.rint(values * factor).astype(np.uint8)


def to_image(image: Any, input_data_format: str | ChannelDimension | None = None) -> "Picture":
    """What the user has as an image: a picture of Pillow, or an array or tensor of two or three axes.

    Arrays: (H, W), or 1 to 4 channels on the first or the last axis, which `input_data_format` settles if both could
    be; uint8, other ints from 0 to 255, or floats. Alpha stands on white.

    Raises: TypeError for anything else, and bools; ImageError (ValueError, OSError) for shapes and values.
    """
    if hasattr(image, "getexif"):
        return upright_rgb(image)
    return rgb_array(to_array(image), input_data_format)


def to_array(image: Any) -> Array:
    """An array or a tensor of any framework as an array of NumPy: uint8, float32 or float64.

    Raises: TypeError if it is none, or holds anything but numbers; ImageError if ints are out of 0 to 255.
    """
    if not (hasattr(image, "shape") and hasattr(image, "dtype")):
        raise TypeError(
            "An image must be a picture of Pillow, or an array or tensor; got "
            f"{type(image).__name__}. Open files with triptych.image_transforms.open_image(path)."
        )
    if hasattr(image, "detach"):
        image = image.detach().cpu()
        image = image.float() if str(image.dtype) == "torch.bfloat16" else image
    array = np.asarray(image)
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "f":
        return array.astype(np.float32) if array.dtype == np.float16 else array
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"An image's values must be ints from 0 to 255 or floats; got {array.dtype}. "
            "Turn a mask into levels with mask.astype('uint8') * 255."
        )
    if array.size and (array.min() < 0 or array.max() > WHITE):
        raise ImageError(
            f"An image's ints must lie in 0 to 255; got {array.min()} to {array.max()}. "
            "Divide deeper levels, such as (image // 257).astype('uint8') for 16 bits."
        )
    return array.astype(np.uint8)


def rgb_array(array: Array, input_data_format: str | ChannelDimension | None = None) -> Array:
    """An array of levels or fractions with its channels anywhere as (H, W, 3).

    Raises: ImageError for other shapes, for no pixels, and for NaN or infinite values.
    """
    shape = array.shape
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3:
        if channel_axis(shape, input_data_format) is ChannelDimension.FIRST:
            array = array.transpose(1, 2, 0)
    else:
        raise ImageError(f"An image has the axes (C, H, W), (H, W, C) or (H, W); got shape {shape}.")
    if array.size == 0:
        raise ImageError(f"An image must have pixels; got shape {shape}.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ImageError("An image's values must be finite numbers; got NaN or infinity. Repair it with np.nan_to_num.")
    if array.shape[-1] in (2, 4):
        array = _on_white(array)
    return np.broadcast_to(array, (*array.shape[:2], 3)) if array.shape[-1] == 1 else array


def channel_axis(shape: Sequence[int], input_data_format: str | ChannelDimension | None = None) -> ChannelDimension:
    """Which axis of three holds the channels: the given one, else the one with a number of channels that images have.

    Raises: ValueError for a format of another name; ImageError if the axis has no such number.
    """
    if input_data_format is not None:
        axis = choose(ChannelDimension, input_data_format, "input_data_format")
        if shape[0 if axis is ChannelDimension.FIRST else 2] in CHANNELS:
            return axis
    else:
        for count in LIKELIEST:
            for place, axis in ((0, ChannelDimension.FIRST), (2, ChannelDimension.LAST)):
                if shape[place] == count:
                    return axis
    given = f" as {input_data_format}" if input_data_format is not None else ""
    choices = ", ".join(f"{count} ({names})" for count, names in CHANNELS.items())
    raise ImageError(f"An image must have {choices} channels on its first or last axis; got shape {shape}{given}.")


def _on_white(array: Array) -> Array:
    """Colours or grey with alpha, (H, W, 4 or 2), over white."""
    white = 1.0 if holds_fractions(array) else float(WHITE)
    colours, alpha = array[..., :-1].astype(np.float32), array[..., -1:].astype(np.float32) / white
    mixed: Array = colours * alpha + white * (1 - alpha)
    return np.rint(mixed).astype(np.uint8) if array.dtype == np.uint8 else mixed


def holds_fractions(image: "Picture") -> bool:
    """Whether an image is an array of floats from 0 to 1."""
    return isinstance(image, np.ndarray) and image.dtype.kind == "f" and image.min() >= 0 and bool(image.max() <= 1)


# To size.


def size_of(image: "Picture") -> tuple[int, int]:
    """Height and width of an image, in pixels."""
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    return image.height, image.width


def size_to_fit(size: tuple[int, int], limit: tuple[int, int]) -> tuple[tuple[int, int], float]:
    """The size of an image shrunk into a limit with its aspect kept, never enlarged, and how far it shrank.

    size, limit: (height, width) in pixels. A side is rounded down, but never to nothing. The factor is that of the
    rounded height, as in the documented release, whose coordinates it scales.
    """
    if size[0] <= limit[0] and size[1] <= limit[1]:
        return size, 1.0
    scale = min(limit[0] / size[0], limit[1] / size[1])
    height, width = int(size[0] * scale), int(size[1] * scale)
    return (max(height, 1), max(width, 1)), height / size[0] if height else scale


def resize(image: "Picture", size: tuple[int, int], resample: int = Resampling.BILINEAR) -> Array:
    """An image as an array of another size (height, width), by Pillow's filter of that number.

    The filters work on uint8: arrays of floats are rounded to the nearest level, and are floats again afterwards.

    Raises: ImageError if floats are neither fractions nor levels.
    """
    if size_of(image) == size:
        return np.asarray(image)
    if not isinstance(image, np.ndarray):
        return np.asarray(image.resize((size[1], size[0]), resample))
    levels = image
    if image.dtype.kind == "f":
        if image.min() < 0 or image.max() > WHITE:
            raise ImageError(
                f"An image's floats must lie in 0 to 1, or 0 to 255, to be resized; got {image.min():.4g} to "
                f"{image.max():.4g}. Undo a normalisation first."
            )
        levels = np.rint(image * WHITE if holds_fractions(image) else image).astype(np.uint8)
    picture = _pillow().fromarray(np.ascontiguousarray(levels))
    resized: Array = np.asarray(picture.resize((size[1], size[0]), resample))
    if image.dtype.kind != "f":
        return resized
    return resized / np.float32(WHITE if holds_fractions(image) else 1)


def pad(image: Array, size: tuple[int, int], mode: str = "constant", value: float = 0.0) -> Array:
    """An array (H, W, C) continued to the right and below up to (height, width), by one of PADDING_MODES.

    Raises: ValueError if the mode is none of them, or the image is larger.
    """
    if mode not in PADDING_MODES:
        raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}; got {mode!r}.")
    more = [(0, size[0] - image.shape[0]), (0, size[1] - image.shape[1]), (0, 0)]
    if min(more)[1] < 0:
        raise ValueError(f"An image is padded up to a size that holds it; {size_of(image)} does not fit {size}.")
    options = {"constant_values": value} if mode == "constant" else {}
    return np.pad(image, more, PADDING_MODES[mode], **options)  # type: ignore[call-overload, no-any-return]


# To floats.


def float_blocks(image: Array, scale: Floats, shift: Floats, rows: int) -> Iterator[tuple[int, Floats]]:
    """`image * scale + shift` in float32, some rows at a time, so that each stays in the processor's cache.

    image: (H, W, C); scale, shift: one value, or one for each channel. Yields the first row's number and a block
    (rows or fewer, W, C), which is written over by the next.
    """
    height, width, channels = image.shape
    buffer = np.empty((min(rows, height), width * channels), np.float32)
    if scale.size > 1 or shift.size > 1:  # NumPy is quick over long rows, not over rows of three
        scale, shift = (np.tile(np.broadcast_to(each, channels), width) for each in (scale, shift))
    for top in range(0, height, rows):
        lines = image[top : top + rows]
        block = buffer[: len(lines)]
        np.copyto(block.reshape(lines.shape), lines, casting="same_kind")
        block *= scale
        block += shift
        yield top, block.reshape(lines.shape)


# To patches.


def patchify(images: Any, patch: tuple[int, int]) -> Any:
    """Images (B, C, H, W), arrays or tensors, as patches (B, N, patch height * patch width * C), row by row.

    In a patch the channels of a pixel lie together: (patch height, patch width, C), flattened.

    Raises: ValueError if a side is not a multiple of the patch's.
    """
    batch, channels, height, width = images.shape
    if height % patch[0] or width % patch[1]:
        raise ValueError(
            f"Images are cut into whole patches; {height} × {width} is no multiple of {patch[0]} × {patch[1]} "
            "(height × width). Pad them first."
        )
    grid = images.reshape(batch, channels, height // patch[0], patch[0], width // patch[1], patch[1])
    order = (0, 2, 4, 3, 5, 1)
    grid = grid.permute(*order) if hasattr(grid, "permute") else grid.transpose(order)
    return grid.reshape(batch, -1, patch[0] * patch[1] * channels)


def float_patches(image: Array, patch: tuple[int, int], scale: Floats, shift: Floats, fill: Floats) -> Floats:
    """`image * scale + shift`, cut into patches, row by row; `fill` continues the last row and column of patches.

    image: (H, W, C); fill: a value for each channel. Returns (rows, columns, patch height * patch width * C).
    """
    height, width, channels = image.shape
    rows, columns = -(-height // patch[0]), -(-width // patch[1])
    line = patch[1] * channels
    patches = np.empty((rows, columns, patch[0], line), np.float32)
    whole, rest = divmod(width, patch[1])
    filler = np.tile(np.broadcast_to(fill, channels), patch[1])
    if rest:
        patches[:, -1] = filler
    if height % patch[0]:
        patches[-1] = filler
    for top, block in float_blocks(image, scale, shift, patch[0]):
        lines = block.reshape(len(block), -1)
        row = patches[top // patch[0], :, : len(block)]
        row[:whole] = lines[:, : whole * line].reshape(len(block), whole, line).swapaxes(0, 1)
        if rest:
            row[whole, :, : rest * channels] = lines[:, whole * line :]
    return patches.reshape(rows, columns, -1)
