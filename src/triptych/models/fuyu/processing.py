"""Text and pictures → what Fuyu takes, and its answers → text.

A row reads: the patches of its pictures row by row, a newline behind each row of patches, then `<s>`, the text, and a
token that opens the answer. Rows are padded on the left, so that generation goes on at their ends.

Shapes: B rows, T tokens, N patches of a row, P values of a patch.
"""

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from triptych import hub
from triptych.errors import MissingFileError, SequenceTooLongError, UnknownOptionError
from triptych.files import staged_folder
from triptych.image_transforms import Floats, size_to_fit
from triptych.models.fuyu.coordinates import Place, replace_tokens, split
from triptych.models.fuyu.image_processing import (
    FuyuBatchFeature,
    FuyuImageProcessor,
    Patches,
    image_rows,
    patch_indices,
)
from triptych.tokenization import tensors
from triptych.tokenization.options import Lengths, TensorType, choose, logger, settle_lengths
from triptych.tokenization.padding import pad_row, target_length
from triptych.tokenization.truncation import cut

PLACEHOLDER, NEWLINE, BEGIN, ANSWER = "|SPEAKER|", "|NEWLINE|", "<s>", "<0x04>"
PATCH_OPTIONS = frozenset(inspect.signature(FuyuImageProcessor.preprocess).parameters) - {
    "self",
    "images",
    "return_tensors",
}


class FuyuBatchEncoding(FuyuBatchFeature):
    """What `FuyuProcessor` returns, by key or attribute: `input_ids`, `image_patches`, … as its `__call__` tells.

    It goes into the model as `model(**encoding)` or `model.generate(**encoding)`, and moves with `.to(device, dtype)`.
    """


@dataclass(frozen=True, slots=True)
class Row:
    """One row before padding: ids, the patch that stands at each or -1, 1 at each that is no text, and the patches."""

    ids: list[int]
    indices: list[int]
    special: list[int]
    patches: Floats
    pictures: Sequence[Patches]


class FuyuProcessor:
    """A Fuyu image processor and a Llama tokenizer as one.

    Unlike the documented release it takes every image of a call without text, several images for one text, rows
    without an image among others, and patches of any size; it refuses more texts than images; and
    `image_patches_indices` are as long as `input_ids`.

    Raises: ValueError if one of the two is missing.
    """

    attributes = ("image_processor", "tokenizer")
    image_processor_class = "FuyuImageProcessor"
    tokenizer_class = "AutoTokenizer"
    model_input_names = ("input_ids", "image_patches", "image_patches_indices", "attention_mask")

    def __init__(self, image_processor: FuyuImageProcessor, tokenizer: Any) -> None:
        for name, value, needed in (
            ("image_processor", image_processor, "preprocess"),
            ("tokenizer", tokenizer, "convert_tokens_to_ids"),
        ):
            if not hasattr(value, needed):
                kind = "a FuyuImageProcessor" if name == "image_processor" else "a tokenizer"
                raise ValueError(f"FuyuProcessor needs {kind} as {name}; got {value!r}.")
        self.image_processor = image_processor
        self.tokenizer = tokenizer

    def __call__(
        self,
        text: str | list[str] | None = None,
        images: Any = None,
        add_special_tokens: bool = True,
        return_attention_mask: bool = True,
        padding: Any = False,
        truncation: Any = None,
        max_length: int | None = None,
        stride: int = 0,
        pad_to_multiple_of: int | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_token_type_ids: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        return_tensors: str | TensorType | None = None,
        **kwargs: Any,
    ) -> FuyuBatchEncoding:
        """Prepare one or more texts and their images for the model.

        `text` is a str, or a list of one for each row; None stands for empty texts. `images` is an image (as
        `FuyuImageProcessor.preprocess` takes), or a list of one for each row, where a row may have a list of several,
        which stand before its text in their order, or None. A single text takes all images of a list. In texts,
        `<box>y1, x1, y2, x2</box>` and `<point>y, x</point>` are places, in pixels of the row's image as it was given.
        Texts alone go to the tokenizer as they are; so do the texts of rows without an image.

        With images, rows are always padded to the longest (on the left, with the pad token, or 0 where there is
        none), `truncation` shortens texts and never images, `add_special_tokens` is about `<s>` and the token that
        opens the answer, further arguments are options of the image processor, and None as `return_tensors` gives
        tensors of PyTorch.

        Returns: FuyuBatchEncoding with `input_ids` (B, T), `image_patches`, a list of a tensor (1, N, P) for each row,
            `image_patches_indices` (B, T), k where patch k of the row stands and -1 elsewhere, and `attention_mask`
            (B, T).
        Raises: ValueError or TypeError if texts and images do not match, a place is malformed or outside its image, or
            the tokenizer lacks a token; SequenceTooLongError if an image does not fit into `max_length`; ImageError.
        """
        if text is None and images is None:
            raise ValueError("A call needs text, images or both, and both are None.")
        if images is None:
            return self._texts_alone(
                text,
                kwargs,
                add_special_tokens=add_special_tokens,
                return_attention_mask=return_attention_mask,
                padding=padding,
                truncation=truncation,
                max_length=max_length,
                stride=stride,
                pad_to_multiple_of=pad_to_multiple_of,
                return_overflowing_tokens=return_overflowing_tokens,
                return_special_tokens_mask=return_special_tokens_mask,
                return_offsets_mapping=return_offsets_mapping,
                return_token_type_ids=return_token_type_ids,
                return_length=return_length,
                return_tensors=return_tensors,
                verbose=verbose,
            )
        if return_overflowing_tokens or return_offsets_mapping:
            raise ValueError(
                "return_overflowing_tokens and return_offsets_mapping are for texts without images. Leave them out."
            )
        tell = logger.warning if verbose else _say_nothing
        lengths = settle_lengths(
            padding, truncation, max_length, stride, pad_to_multiple_of, self.tokenizer.model_max_length, tell, kwargs
        )
        if unknown := kwargs.keys() - PATCH_OPTIONS:
            raise UnknownOptionError(
                f"FuyuProcessor does not know the options {sorted(unknown)}. With images, its further options are "
                f"{', '.join(sorted(PATCH_OPTIONS))}."
            )
        texts, pictures = _matched(text, images)
        rows = [
            self.row(each, row, add_special_tokens=add_special_tokens, limit=lengths.limit, **kwargs)
            for each, row in zip(texts, pictures, strict=True)
        ]
        columns = ["attention_mask"] * return_attention_mask + ["token_type_ids"] * return_token_type_ids
        columns += ["special_tokens_mask"] * return_special_tokens_mask + ["length"] * return_length
        return self.collate(rows, lengths, columns, return_tensors)

    def _texts_alone(self, text: Any, kwargs: dict[str, Any], **options: Any) -> FuyuBatchEncoding:
        found = self.tokenizer(text, **options, **kwargs)
        return FuyuBatchEncoding(found.data, found.encodings, n_sequences=found.n_sequences)

    # One row after another, then all of them as columns.

    def row(
        self,
        text: str,
        images: Sequence[Any],
        *,
        add_special_tokens: bool = True,
        limit: int | None = None,
        **options: Any,
    ) -> Row:
        """The row of a text and its images; `limit` is its greatest number of tokens, `options` are the images'.

        Raises: as `__call__`.
        """
        if not images:
            ids = self.tokenizer(
                text, add_special_tokens=add_special_tokens, truncation=limit is not None, max_length=limit
            )["input_ids"]
            patch = self.image_processor.patch_size
            nothing = np.zeros((0, patch["height"] * patch["width"] * 3), np.float32)
            return Row(ids, [-1] * len(ids), [0] * len(ids), nothing, ())
        pictures = [self.image_processor.patches(image, **options) for image in images]
        indices: list[int] = []
        before = 0
        for picture in pictures:
            places = patch_indices(len(picture.values), picture.rows)
            indices += np.where(places < 0, -1, places + before).tolist()
            before += len(picture.values)
        placeholder, newline = self.token_id(PLACEHOLDER), self.token_id(NEWLINE)
        before_text = [newline if index < 0 else placeholder for index in indices]
        if add_special_tokens:
            before_text.append(self.token_id(BEGIN))
        after_text = [self.token_id(ANSWER)] if add_special_tokens else []
        inner = self._cut(self.text_ids(text, pictures), len(before_text) + len(after_text), limit)
        special = [1] * len(before_text) + [0] * len(inner) + [1] * len(after_text)
        ids = before_text + inner + after_text
        indices += [-1] * (len(ids) - len(indices))
        values = pictures[0].values if len(pictures) == 1 else np.concatenate([each.values for each in pictures])
        return Row(ids, indices, special, values, pictures)

    def text_ids(self, text: str, pictures: Sequence[Patches]) -> list[int]:
        """The ids of a text without special tokens; its places are in pixels of the pictures as they were given.

        Raises: ValueError for a malformed place, one outside, or one where the pictures shrank differently.
        """
        ids: list[int] = []
        for part in split(text) if pictures else [text]:
            if isinstance(part, Place):
                factors = {picture.factor for picture in pictures}
                if len(factors) > 1:
                    raise ValueError(
                        f"{part} could be in any of {len(pictures)} images, which shrink by different factors. Shrink "
                        "them to one scale first, or ask about one image at a time."
                    )
                heights, widths = zip(*(picture.original for picture in pictures), strict=True)
                part.check_inside((max(heights), max(widths)))
                ids += [self.token_id(token) for token in part.tokens(factors.pop())]
            else:
                ids += self.tokenizer(part, add_special_tokens=False)["input_ids"]
        return ids

    def _cut(self, ids: list[int], others: int, limit: int | None) -> list[int]:
        excess = 0 if limit is None else others + len(ids) - limit
        if excess <= 0:
            return ids
        if excess > len(ids):
            raise SequenceTooLongError(
                f"An image is never cut, and with its newlines and special tokens it takes {others} tokens of "
                f"max_length={limit}. Pass a larger max_length, or a smaller size={{'height': …, 'width': …}}."
            )
        return cut(ids, excess, 0, self.tokenizer.truncation_side).kept

    def token_id(self, token: str) -> int:
        """The id of a token that the model needs.

        Raises: ValueError if the vocabulary does not have it.
        """
        found = self.tokenizer.convert_tokens_to_ids(token)
        if found is None or (found == self.tokenizer.unk_token_id and token != str(self.tokenizer.unk_token)):
            what = "The coordinate" if token.isdigit() else "The token"
            raise ValueError(
                f"{what} {token!r} must be a token of its own, and the tokenizer has none. "
                "Use Fuyu's tokenizer, or one trained with the same special tokens and whole numbers."
            )
        return int(found)

    def collate(
        self,
        rows: Sequence[Row],
        lengths: Lengths,
        columns: Sequence[str],
        return_tensors: str | TensorType | None,
        labels: Sequence[list[int]] | None = None,
    ) -> FuyuBatchEncoding:
        """Rows as columns, padded on the left; `columns` names those beside ids, patches and indices.

        `labels`, a list for each row, are padded with -100.
        """
        kind = TensorType.PYTORCH if return_tensors is None else choose(TensorType, return_tensors, "return_tensors")
        make = tensors.maker(kind)
        counts = [len(row.ids) for row in rows]
        length = max(target_length(counts, lengths), *counts)

        def fill(row: list[int], filler: int) -> list[int]:
            return pad_row(row, length, filler, "left")

        pad_id = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        every: dict[str, Callable[[], Any]] = {
            "input_ids": lambda: [fill(row.ids, pad_id) for row in rows],
            "image_patches": lambda: [make(row.patches[None]) for row in rows],
            "image_patches_indices": lambda: [fill(row.indices, -1) for row in rows],
            "attention_mask": lambda: [fill([1] * count, 0) for count in counts],
            "token_type_ids": lambda: [[0] * length for _ in rows],
            "special_tokens_mask": lambda: [fill(row.special, 1) for row in rows],
            "length": lambda: counts,
            "labels": lambda: [fill(row, -100) for row in labels or ()],
        }
        wanted = ("input_ids", "image_patches", "image_patches_indices", *columns, *["labels"] * (labels is not None))
        return FuyuBatchEncoding(
            {name: every[name]() if name == "image_patches" else make(every[name]()) for name in wanted}
        )

    # Ids → text.

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """The tokenizer's `decode`."""
        return self.tokenizer.decode(*args, **kwargs)  # type: ignore[no-any-return]

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """The tokenizer's `batch_decode`."""
        return self.tokenizer.batch_decode(*args, **kwargs)  # type: ignore[no-any-return]

    def post_process_box_coordinates(self, outputs: Any, target_sizes: Any = None) -> list[Any]:
        """Turn the coordinate tokens of generated ids back into `<box>…</box>` and `<point>…</point>` text.

        `outputs` (B, T), or a list of rows, are ids; `target_sizes` (B, 2) the (height, width) of each row's picture
        as it was given, where None means that it did not shrink. Places that are cut short or malformed stay as
        they are.

        Returns: a list of the ids of each row, as tensors, arrays or lists, ready for `decode`.
        Raises: ValueError if there are not as many sizes as rows, or a size is none.
        """
        rows = tensors.to_lists(outputs)
        if rows and isinstance(rows[0], int):
            raise ValueError("outputs must be rows of ids (B, T), and this is one row. Pass [ids] or ids[None].")
        sizes = [None] * len(rows) if target_sizes is None else tensors.to_lists(target_sizes)
        if len(sizes) != len(rows):
            raise ValueError(f"Each row needs a target size; outputs has {len(rows)} rows, target_sizes {len(sizes)}.")
        result = []
        for row, size, given in zip(rows, sizes, outputs, strict=True):
            ids: list[int] = []
            for part in replace_tokens(row, self._factor(size), self._known_id, self._number):
                if isinstance(part, Place):
                    ids += self.tokenizer(str(part), add_special_tokens=False)["input_ids"]
                else:
                    ids.append(part)
            result.append(_like(given, ids))
        return result

    def _factor(self, size: Any) -> float:
        if size is None or not self.image_processor.do_resize:
            return 1.0
        if not isinstance(size, list | tuple) or len(size) != 2 or not all(side > 0 for side in size):
            raise ValueError(f"A target size must be the (height, width) of a picture in pixels; got {size!r}.")
        limit = self.image_processor.size
        return size_to_fit((int(size[0]), int(size[1])), (limit["height"], limit["width"]))[1]

    def _known_id(self, token: str) -> int | None:
        found: int | None = self.tokenizer.convert_tokens_to_ids(token)
        return found

    def _number(self, token_id: int) -> int | None:
        token = str(self.tokenizer.convert_ids_to_tokens(token_id))
        return int(token) if token.isascii() and token.isdigit() else None

    # Files.

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load both parts from a folder or a hub name; `kwargs` override options of the one that has them.

        Raises: CheckpointError (OSError) naming a file that is missing or damaged.
        """
        from triptych.auto import AutoTokenizer  # here, because that module asks for this one by name

        options: Any = hub.pop_options(kwargs)
        own = {name: kwargs.pop(name) for name in PATCH_OPTIONS & kwargs.keys()}
        image_processor = FuyuImageProcessor.from_pretrained(pretrained_model_name_or_path, **options, **own)
        try:
            tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **options, **kwargs)
        except MissingFileError as error:
            raise MissingFileError(
                "A processor needs its tokenizer: tokenizer_config.json with tokenizer.json or tokenizer.model. "
                f"{error}"
            ) from error
        return cls(image_processor, tokenizer)

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False) -> list[str]:
        """Write the files of both parts into a folder, all or none; their paths.

        Raises: SaveError (OSError) if the folder cannot be written; ValueError for `push_to_hub`.
        """
        if push_to_hub:
            raise ValueError("push_to_hub is not supported. Upload the saved folder with `hf upload`.")
        self.image_processor.processor_class = type(self).__name__  # type: ignore[attr-defined]
        with staged_folder(save_directory) as stage:
            paths = [*self.tokenizer.save_pretrained(stage), *self.image_processor.save_pretrained(stage)]
        return [str(Path(save_directory) / Path(path).name) for path in paths]

    def __repr__(self) -> str:
        """Both parts."""
        return f"{type(self).__name__}:\n- image_processor: {self.image_processor}- tokenizer: {self.tokenizer}"


def _matched(text: Any, images: Any) -> tuple[list[str], list[list[Any]]]:
    """A text and the images of each row.

    Raises: TypeError if a text is no str; ValueError if there are not as many texts as rows of images.
    """
    if isinstance(text, str) and isinstance(images, list | tuple) and not any(_is_list(each) for each in images):
        images = [list(images)]  # a single text takes all of them
    rows = image_rows(images, may_lack=True)
    texts = [""] * len(rows) if text is None else list(text) if _is_list(text) else [text]
    for each in texts:
        if not isinstance(each, str):
            raise TypeError(f"text must be a str, or a list of str, one for each row; got {type(each).__name__} in it.")
    if len(texts) != len(rows):
        raise ValueError(
            f"Each text needs its images; got {len(texts)} texts and images for {len(rows)} rows. Give a list of an "
            "image for each text (None for a text without one), or a list of lists for several images in a row."
        )
    return texts, rows


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _like(given: Any, ids: list[int]) -> Any:
    """Ids as the kind of row that was given."""
    if hasattr(given, "new_tensor"):
        return given.new_tensor(ids)
    return np.array(ids, given.dtype) if isinstance(given, np.ndarray) else ids


def _say_nothing(message: str) -> None:
    """For verbose=False."""
