"""Pictures → the patches that Fuyu reads, and where they stand among the ids.

Bavishi et al., 2023, adept.ai/blog/fuyu-8b: a picture is shrunk to fit 1080 × 1920 with its aspect kept, continued to
whole patches of 30 × 30 pixels, and read like text, a newline behind each row of patches. Sizes are (height, width).

Shapes: B rows of the batch, S images of a row, H and W pixels, N patches of an image, P values of a patch.
"""

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from triptych import frameworks, hub
from triptych.configuration import data_only
from triptych.files import read_json, staged_folder
from triptych.image_transforms import (
    PADDING_MODES,
    Array,
    ChannelDimension,
    Floats,
    Resampling,
    channel_axis,
    float_patches,
    pad,
    patchify,
    resize,
    size_of,
    size_to_fit,
    to_image,
)
from triptych.models.fuyu.fitting import Settings, Size, canvas, fit, numbers, sides
from triptych.tokenization import tensors
from triptych.tokenization.batch_encoding import BatchEncoding
from triptych.tokenization.options import TensorType, choose

IMAGE_PROCESSOR_NAME = "preprocessor_config.json"


class FuyuBatchFeature(BatchEncoding):
    """What the image processor returns: columns by key or attribute; lists of images may hold tensors."""

    def to(self, *args: Any, **kwargs: Any) -> "FuyuBatchFeature":
        """Move every tensor to a device, and every tensor of floats to a dtype, of PyTorch, in place.

        Takes either or both in any order, as `Tensor.to`. What is no tensor stays as it is.
        """
        torch = frameworks.load("torch")
        dtype = next((each for each in (*args, *kwargs.values()) if isinstance(each, torch.dtype)), None)
        places = [each for each in args if not isinstance(each, torch.dtype)]
        device = kwargs.get("device", places[0] if places else None)

        def moved(value: Any) -> Any:
            if isinstance(value, list):
                return [moved(item) for item in value]
            if not isinstance(value, torch.Tensor):
                return value
            return value.to(device=device, dtype=dtype if value.is_floating_point() else None)

        self.data = {name: moved(column) for name, column in self.data.items()}
        return self


@dataclass(frozen=True, slots=True)
class Patches:
    """The patches (N, P) of an image in `rows` rows, its size as it was given, and how far it shrank."""

    values: Floats
    rows: int
    original: Size
    factor: float


class FuyuImageProcessor:
    """Pictures → floats of one size, and patches with their places.

    Keyword arguments that are no option are kept as attributes and in the file. Every option of the constructor may
    be given to `preprocess` for one call. Unlike the documented release, `resample` is honoured, grey pictures and
    those with alpha are taken (on white), and floats from 0 to 1 are the same picture as levels from 0 to 255.

    Raises: ValueError or TypeError naming an option of a wrong kind.
    """

    model_input_names: ClassVar[list[str]] = [
        "images",
        "image_input_ids",
        "image_patches",
        "image_patch_indices_per_batch",
        "image_patch_indices_per_subsequence",
    ]

    def __init__(
        self,
        do_resize: bool = True,
        size: dict[str, int] | None = None,
        resample: int = Resampling.BILINEAR,
        do_pad: bool = True,
        padding_value: float = 1.0,
        padding_mode: str = "constant",
        do_normalize: bool = True,
        image_mean: float | list[float] = 0.5,
        image_std: float | list[float] = 0.5,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        patch_size: dict[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        self.do_resize = do_resize
        self.size = size if size is not None else {"height": 1080, "width": 1920}
        self.resample = resample
        self.do_pad = do_pad
        self.padding_value = padding_value
        self.padding_mode = padding_mode
        self.do_normalize = do_normalize
        self.image_mean = image_mean
        self.image_std = image_std
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.patch_size = patch_size if patch_size is not None else {"height": 30, "width": 30}
        for name in ("image_processor_type", "feature_extractor_type"):
            kwargs.pop(name, None)
        for name, value in kwargs.items():
            setattr(self, name, value)
        self._settings()

    def __call__(self, images: Any, **kwargs: Any) -> FuyuBatchFeature:
        """The same as `preprocess`."""
        return self.preprocess(images, **kwargs)

    def preprocess(
        self,
        images: Any,
        do_resize: bool | None = None,
        size: dict[str, int] | None = None,
        resample: int | None = None,
        do_pad: bool | None = None,
        padding_value: float | None = None,
        padding_mode: str | None = None,
        do_normalize: bool | None = None,
        image_mean: float | list[float] | None = None,
        image_std: float | list[float] | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        patch_size: dict[str, int] | None = None,
        data_format: str | ChannelDimension | None = ChannelDimension.FIRST,
        input_data_format: str | ChannelDimension | None = None,
        return_tensors: str | TensorType | None = None,
    ) -> FuyuBatchFeature:
        """Shrink images to fit `size`, pad them to it to the right and below, rescale and normalise.

        `images` is a picture of Pillow, an array or a tensor, a batch of four axes, or a list of those; in a list of
        lists each inner one holds the images of one row. Options that are None have the constructor's values. With
        `do_rescale=False` values are taken as they are. `data_format=None` returns the axes as they came.

        Returns: FuyuBatchFeature of lists, one entry for each image inside one for each row: `images`, float32
            (3, H, W) or (H, W, 3), `image_unpadded_heights` and `image_unpadded_widths` in pixels after shrinking, and
            `image_scale_factors`, how far each shrank; as tensors of `return_tensors`, or arrays and numbers.
        Raises: TypeError or ValueError naming an option or an image that is none; ImageError (ValueError, OSError)
            for images that are damaged, too large, or hold no finite levels.
        """
        settings = self._settings(
            do_resize=do_resize,
            size=size,
            resample=resample,
            do_pad=do_pad,
            padding_value=padding_value,
            padding_mode=padding_mode,
            do_normalize=do_normalize,
            image_mean=image_mean,
            image_std=image_std,
            do_rescale=do_rescale,
            rescale_factor=rescale_factor,
            patch_size=patch_size,
        )
        make = None if return_tensors is None else tensors.maker(choose(TensorType, return_tensors, "return_tensors"))
        columns: dict[str, list[list[Any]]] = {
            name: [] for name in ("images", "image_unpadded_heights", "image_unpadded_widths", "image_scale_factors")
        }
        for row in image_rows(images):
            entries = []
            for image in row:
                fitted = fit(image, settings, input_data_format)
                axes = data_format if data_format is not None else _own_axes(image, input_data_format)
                entries.append((canvas(fitted, settings, axes), *fitted.size, fitted.factor))
            for name, column in zip(columns, zip(*entries, strict=True), strict=True):
                columns[name].append([make(value) for value in column] if make else list(column))
        return FuyuBatchFeature(columns)

    # Patches and their places.

    def get_num_patches(self, image_height: int, image_width: int, patch_size: dict[str, int] | None = None) -> int:
        """How many patches an image of whole patches has.

        Raises: ValueError if a side is not a multiple of the patch's.
        """
        patch = self._patch(patch_size)
        if image_height % patch[0] or image_width % patch[1]:
            raise ValueError(
                f"An image is cut into whole patches; {image_height} × {image_width} is no multiple of "
                f"{patch[0]} × {patch[1]} (height × width). Pad it first."
            )
        return (image_height // patch[0]) * (image_width // patch[1])

    def patchify_image(self, image: Any, patch_size: dict[str, int] | None = None) -> Any:
        """Images (B, C, H, W), arrays or tensors, as patches (B, N, P), each (height, width, C) flattened.

        Raises: ValueError if a side is not a multiple of the patch's.
        """
        return patchify(image, self._patch(patch_size))

    def patches(self, image: Any, **options: Any) -> Patches:
        """The patches of one image, shrunk but padded only to whole patches; options as of `preprocess`.

        Raises: as `preprocess`.
        """
        input_data_format = options.pop("input_data_format", None)
        options.pop("data_format", None)
        settings = self._settings(**options)
        fitted = fit(image, settings, input_data_format)
        pixels, patch = fitted.pixels, settings.patch
        if settings.padding_mode != "constant":
            height, width = (-(-side // step) * step for side, step in zip(fitted.size, patch, strict=True))
            pixels = pad(pixels, (height, width), settings.padding_mode)
        grid = float_patches(pixels, patch, fitted.scale, settings.shift, settings.fill)
        return Patches(grid.reshape(-1, grid.shape[-1]), len(grid), fitted.original, fitted.factor)

    def preprocess_with_tokenizer_info(
        self,
        image_input: Any,
        image_present: Any,
        image_unpadded_h: Any,
        image_unpadded_w: Any,
        image_placeholder_id: int,
        image_newline_id: int,
        variable_sized: bool,
        patch_size: dict[str, int] | None = None,
    ) -> FuyuBatchFeature:
        """Patches of padded images, with the ids and the indices that stand for them.

        `image_input` (B, S, C, H, W) and `image_present`, `image_unpadded_h`, `image_unpadded_w` (B, S, 1 or none) are
        arrays or tensors; images that are not present are left out. With `variable_sized` each image is cut to the
        patches that hold pixels of it, and a newline follows each row of patches; without, all of it is taken.

        Returns: FuyuBatchFeature of lists, for each row a list of what its images have: `image_input_ids` (N and
            newlines), `image_patches` (N, P), `image_patch_indices_per_subsequence`, the patch's number within its
            image, or -1, and `image_patch_indices_per_batch`, its number within the row; `images` has one list of one
            image for each that is present.
        Raises: ValueError if an image is not of whole patches.
        """
        patch = self._patch(patch_size)
        number, subsequences = image_input.shape[:2]
        present, heights, widths = (
            np.asarray(values).reshape(number, subsequences)
            for values in (image_present, image_unpadded_h, image_unpadded_w)
        )
        make = tensors.maker(tensors.kind_of(image_input) or TensorType.NUMPY)
        columns: dict[str, list[list[Any]]] = {name: [] for name in self.model_input_names}
        for row in range(number):
            rows: dict[str, list[Any]] = {name: [] for name in self.model_input_names[1:]}
            before = 0
            for place in range(subsequences):
                if not present[row, place]:
                    nothing = make(np.zeros(0, np.int32))
                    for name in rows.keys() - {"image_patches"}:
                        rows[name].append(nothing)
                    continue
                image = image_input[row, place]
                if variable_sized:
                    ends = zip((heights[row, place], widths[row, place]), patch, image.shape[1:], strict=True)
                    height, width = (min(side, -(-int(end) // step) * step) for end, step, side in ends)
                    image = image[:, :height, :width]
                patches = patchify(image[None], patch)[0]
                lines = image.shape[1] // patch[0] if variable_sized else 0
                indices = patch_indices(len(patches), lines)
                ids = np.where(indices < 0, image_newline_id, image_placeholder_id)
                columns["images"].append([image])
                rows["image_input_ids"].append(make(ids.astype(np.int32)))
                rows["image_patches"].append(patches)
                rows["image_patch_indices_per_batch"].append(make(np.where(indices < 0, -1, indices + before)))
                rows["image_patch_indices_per_subsequence"].append(make(indices))
                before += len(patches)
            for name, values in rows.items():
                columns[name].append(values)
        return FuyuBatchFeature(columns)

    # One step at a time.

    def resize(
        self,
        image: Any,
        size: dict[str, int],
        resample: int = Resampling.BILINEAR,
        data_format: str | ChannelDimension | None = None,
        input_data_format: str | ChannelDimension | None = None,
    ) -> Array:
        """An array shrunk to fit `size`, never enlarged; its axes as they came, or as `data_format` says."""
        picture = to_image(image, input_data_format)
        fitting, _ = size_to_fit(size_of(picture), sides(size, "size"))
        return _with_axes(resize(picture, fitting, resample), data_format or _own_axes(image, input_data_format))

    def pad_image(
        self,
        image: Any,
        size: dict[str, int],
        mode: str = "constant",
        constant_values: float = 1.0,
        data_format: str | ChannelDimension | None = None,
        input_data_format: str | ChannelDimension | None = None,
    ) -> Array:
        """An array padded to `size` to the right and below; its axes as they came, or as `data_format` says."""
        pixels = np.asarray(to_image(image, input_data_format))
        padded = pad(pixels, sides(size, "size"), mode, constant_values)
        return _with_axes(padded, data_format or _own_axes(image, input_data_format))

    # Options.

    def _patch(self, patch_size: dict[str, int] | None) -> Size:
        return sides(self.patch_size if patch_size is None else patch_size, "patch_size")

    def _settings(self, **options: Any) -> Settings:
        """The options of a call, with the constructor's where they are None."""

        def get(name: str) -> Any:
            value = options.get(name)
            return getattr(self, name) if value is None else value

        for name in ("do_resize", "do_pad", "do_normalize", "do_rescale"):
            if not isinstance(get(name), bool):
                raise TypeError(f"{name} must be True or False; got {get(name)!r}.")
        if get("padding_mode") not in PADDING_MODES:
            raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}; got {get('padding_mode')!r}.")
        if isinstance(get("resample"), bool) or get("resample") not in list(Resampling):
            choices = ", ".join(f"{filter_.value} ({filter_.name})" for filter_ in Resampling)
            raise ValueError(f"resample must be one of {choices}; got {get('resample')!r}.")
        std = numbers(get("image_std"), "image_std")
        if not std.all():
            raise ValueError(f"image_std must not be 0; got {get('image_std')!r}.")
        return Settings(
            resizes=get("do_resize"),
            size=sides(get("size"), "size"),
            resample=int(get("resample")),
            pads=get("do_pad"),
            padding_value=float(numbers(get("padding_value"), "padding_value", several=False)[0]),
            padding_mode=get("padding_mode"),
            patch=sides(get("patch_size"), "patch_size"),
            rescales=get("do_rescale"),
            factor=float(numbers(get("rescale_factor"), "rescale_factor", several=False)[0]),
            normalizes=get("do_normalize"),
            mean=numbers(get("image_mean"), "image_mean"),
            std=std,
        )

    # Files.

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Read `preprocessor_config.json` of a folder or a hub name, or one JSON file; `kwargs` override it.

        Raises: CheckpointError (OSError) if there is no such file or it is damaged; ValueError or TypeError naming an
            option of a wrong kind.
        """
        options = hub.pop_options(kwargs)
        path = hub.resolve_file(pretrained_model_name_or_path, IMAGE_PROCESSOR_NAME, **options)
        return cls.from_dict(read_json(path), **kwargs)

    @classmethod
    def from_dict(cls, image_processor_dict: Mapping[str, Any], **kwargs: Any) -> Self:
        """An image processor from its options; `kwargs` override them."""
        return cls(**data_only(cls, dict(image_processor_dict)) | kwargs)

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> Self:
        """An image processor from a JSON file."""
        return cls.from_dict(read_json(json_file))

    def to_dict(self) -> dict[str, Any]:
        """Every option, with `image_processor_type`; a deep copy."""
        return copy.deepcopy(vars(self)) | {"image_processor_type": type(self).__name__}

    def to_json_string(self) -> str:
        """The text of `preprocessor_config.json`, keys sorted."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Write the options to a JSON file, whole or not at all."""
        path = Path(json_file_path)
        with staged_folder(path.parent) as stage:
            (stage / path.name).write_text(self.to_json_string(), encoding="utf-8")

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False) -> list[str]:
        """Write `preprocessor_config.json` into a folder, which is made when missing; its path.

        Raises: SaveError (OSError) if the folder cannot be written; ValueError for `push_to_hub`.
        """
        if push_to_hub:
            raise ValueError("push_to_hub is not supported. Upload the saved folder with `hf upload`.")
        path = Path(save_directory) / IMAGE_PROCESSOR_NAME
        self.to_json_file(path)
        return [str(path)]

    def __eq__(self, other: object) -> bool:
        """Equal when of one class and alike in every option."""
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """The class and its options."""
        return f"{type(self).__name__} {self.to_json_string()}"


def image_rows(images: Any, may_lack: bool = False) -> list[list[Any]]:
    """One image, a batch of four axes, a list of images, or a list of lists: as the images of each row.

    With `may_lack`, a row may have none, which may be written as None.

    Raises: ValueError if there are no images, or a row that needs one has none.
    """
    if not isinstance(images, list | tuple):
        is_batch = hasattr(images, "shape") and len(images.shape) == 4
        rows = [[image] for image in images] if is_batch else [[images]]
    else:
        rows = [list(entry) if isinstance(entry, list | tuple) else [entry] for entry in images]
    if may_lack:
        rows = [[image for image in row if image is not None] for row in rows]
    if not any(rows):
        raise ValueError("At least one image is needed; got none.")
    if not all(rows) and not may_lack:
        raise ValueError(f"Each row needs an image; row {rows.index([])} has none.")
    return rows


def patch_indices(count: int, lines: int) -> Array:
    """0 to count - 1 in that many lines, each followed by -1 for its newline; no newlines for 0 lines. int32."""
    if not lines:
        return np.arange(count, dtype=np.int32)
    indices = np.full((lines, count // lines + 1), -1, np.int32)
    indices[:, :-1] = np.arange(count, dtype=np.int32).reshape(lines, -1)
    return indices.reshape(-1)


def _own_axes(image: Any, input_data_format: str | ChannelDimension | None) -> ChannelDimension:
    """Where an image has its channels; those of Pillow, and grey ones of two axes, have them last."""
    if hasattr(image, "getexif") or len(image.shape) != 3:
        return ChannelDimension.LAST
    return channel_axis(image.shape, input_data_format)


def _with_axes(pixels: Array, axes: str | ChannelDimension) -> Array:
    return (
        pixels.transpose(2, 0, 1) if choose(ChannelDimension, axes, "data_format") is ChannelDimension.FIRST else pixels
    )
