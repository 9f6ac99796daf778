"""Examples of what Fuyu should answer → a batch to train on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from triptych.errors import SequenceTooLongError
from triptych.models.fuyu.processing import FuyuBatchEncoding, FuyuProcessor, Row
from triptych.tokenization.options import Lengths, TensorType

IGNORED = -100  # what the loss leaves out


@dataclass(frozen=True, slots=True)
class FuyuDataCollator:
    """The `collate_fn` of a DataLoader for fine-tuning Fuyu.

    An example is a mapping with `text`, the prompt; `answer`; and `images` (or `image`), one image, a list of several,
    or None. Places in both texts, `<box>y1, x1, y2, x2</box>` and `<point>y, x</point>`, are in pixels of the image as
    it is given. A row is what `processor(text, images)` makes of the prompt, then the answer, then the eos token.

    Calling it with examples returns a FuyuBatchEncoding of `input_ids`, `image_patches`, `image_patches_indices`,
    `attention_mask` and `labels` (B, T), left-padded: the ids of the answer and its eos token, and -100 at images,
    prompt and padding. Labels are not shifted: the model shifts them.

    Raises: ValueError or TypeError naming an example that lacks something or has a malformed place;
        SequenceTooLongError if a row has more than `max_length` tokens; ValueError without an eos token.
    """

    processor: FuyuProcessor
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    return_tensors: str | TensorType = "pt"

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> FuyuBatchEncoding:
        """A batch of the examples."""
        eos = self.processor.tokenizer.eos_token_id
        if eos is None:
            raise ValueError("An answer ends with the eos token, and the tokenizer has none. Set tokenizer.eos_token.")
        rows, labels = [], []
        for number, example in enumerate(examples):
            try:
                row, answer = self._row(example, eos)
            except (TypeError, ValueError) as error:
                kind = ValueError if isinstance(error, UnicodeError) else type(error)  # those take five arguments
                raise kind(f"Example {number}: {error}") from error
            rows.append(row)
            labels.append([IGNORED] * (len(row.ids) - len(answer)) + answer)
        lengths = Lengths(pad_to_multiple_of=self.pad_to_multiple_of)
        return self.processor.collate(rows, lengths, ["attention_mask"], self.return_tensors, labels)

    def _row(self, example: Mapping[str, Any], eos: int) -> tuple[Row, list[int]]:
        if not isinstance(example, Mapping):
            raise TypeError(f"An example must be a mapping with text, answer and images; got {type(example).__name__}.")
        for name in ("text", "answer"):
            if not isinstance(example.get(name), str):
                raise TypeError(
                    f"An example needs a str as {name} (the prompt is text, and may be empty); got "
                    f"{example.get(name)!r}, with the keys {sorted(example)}."
                )
        if example.keys() >= {"image", "images"}:
            raise ValueError("An example has its images as images or as image; got both.")
        images = example.get("images", example.get("image"))
        if not isinstance(images, list | tuple):
            images = [] if images is None else [images]
        prompt = self.processor.row(example["text"], images)
        answer = [*self.processor.text_ids(example["answer"], prompt.pictures), eos]
        row = replace(prompt, ids=prompt.ids + answer, indices=prompt.indices + [-1] * len(answer))
        if self.max_length is not None and len(row.ids) > self.max_length:
            raise SequenceTooLongError(
                f"A row may have max_length={self.max_length} tokens; this has {len(row.ids)}, of which "
                f"{len(answer)} are the answer's. Shorten it, pass a smaller size to the image processor, or raise "
                "max_length."
            )
        return row, answer
