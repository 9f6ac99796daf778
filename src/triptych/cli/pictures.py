"""What the commands that look at pictures share: reading pictures, and asking a model about one."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from triptych import FuyuProcessor

MODEL = "triptych/shapes-fuyu"
STDIN = "-"
ENDINGS = {".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm"}


@dataclass(frozen=True)
class Picture:
    """A picture and the name that it was given by."""

    name: str
    image: "Image"


def is_picture(argument: str) -> bool:
    """Whether an argument means a picture and not words: it names a file, or looks as if it should."""
    # os.path.isfile, because Path.exists fails where words are too long for a file's name.
    return argument == STDIN or Path(argument).suffix.lower() in ENDINGS or os.path.isfile(argument)  # noqa: PTH113


def is_folder(argument: str) -> bool:
    """Whether an argument names a folder."""
    return os.path.isdir(argument)  # noqa: PTH112


def read_pictures(names: Sequence[str]) -> list[Picture]:
    """The pictures in files; "-" is the one that comes through a pipe, as does that of an empty list.

    Raises: ImageError and MissingFileError (OSError) naming the first that cannot be read.
    """
    from triptych.image_transforms import open_image

    if not names and sys.stdin.isatty():
        raise typer.BadParameter("A picture is needed: give a file, or pipe one in.")
    return [
        Picture("stdin", open_image(BytesIO(sys.stdin.buffer.read()), name="The picture from the pipe"))
        if name == STDIN
        else Picture(name, open_image(name))
        for name in names or [STDIN]
    ]


class Looker:
    """A Fuyu and its processor, ready to be asked about pictures."""

    def __init__(self, model: str, device: str, dtype: str, quantization: str | None = None) -> None:
        from triptych import AutoConfig, FuyuConfig, FuyuForCausalLM, FuyuProcessor
        from triptych.cli.device import device_named

        place = device_named(device, quantization)
        family = AutoConfig.from_pretrained(model).model_type
        if family != FuyuConfig.model_type:
            raise typer.BadParameter(
                f"--model must be a Fuyu, which reads pictures; {model} is of the family {family!r}."
            )
        self.processor: FuyuProcessor = FuyuProcessor.from_pretrained(model)
        network: FuyuForCausalLM = FuyuForCausalLM.from_pretrained(
            model,
            torch_dtype=dtype,
            low_cpu_mem_usage=True,
            quantization=quantization,
            device_map=place if quantization else None,
        )
        self.network = network.to(place)

    def ask(
        self, picture: Picture, prompt: str, show: Callable[[str], None] | None = None, **options: Any
    ) -> tuple[str, int]:
        """The answer to a prompt about a picture, boxes in pixels of the picture, and how many tokens it took.

        `show` is given the answer piece by piece as it is written; `options` are those of `generate`.
        """
        height, width = picture.image.height, picture.image.width
        inputs = self.processor(text=prompt, images=[picture.image], return_tensors="pt").to(self.network.device)
        self._refuse_long(inputs["input_ids"].shape[1], picture.name)
        teller = _Teller(self.processor, (height, width), show)
        end = self.network.generation_config.eos_token_id if self.network.generation_config else None
        self.network.generate(**inputs, pad_token_id=end or 0, streamer=teller, **options)
        return teller.text, len(teller.ids)

    def _refuse_long(self, length: int, name: str) -> None:
        """Refuse a prompt longer than those of training: what would be written past it is no answer.

        Raises: SequenceTooLongError.
        """
        from triptych.errors import SequenceTooLongError

        most = self.network.trained_positions
        if most is not None and length > most:
            raise SequenceTooLongError(
                f"The picture {name} and the prompt are {length:,} tokens, more than the {most:,} that the model was "
                "trained on. Shorten the prompt, or shrink the picture."
            )


class _Teller:
    """A streamer that turns what a Fuyu writes into text, a box or point once it is closed."""

    def __init__(
        self, processor: "FuyuProcessor", size: tuple[int, int], show: Callable[[str], None] | None = None
    ) -> None:
        from triptych.models.fuyu.coordinates import KINDS

        self.ids: list[int] = []
        self.text = ""
        self._processor, self._size, self._show = processor, size, show
        self._opening, self._closing = (
            {processor.token_id(getattr(k, end)) for k in KINDS} for end in ("open", "close")
        )
        self._begun = False

    def put(self, ids: "Tensor") -> None:
        """Take the prompt's ids, then each new one."""
        if not self._begun:
            self._begun = True
            return
        self.ids += ids.flatten().tolist()
        places = [each for each in self.ids if each in self._opening | self._closing]
        if not places or places[-1] in self._closing:
            self._tell(final=False)

    def end(self) -> None:
        """Show what is left."""
        self._tell(final=True)

    def _tell(self, *, final: bool) -> None:
        (ids,) = self._processor.post_process_box_coordinates([self.ids], target_sizes=[self._size])
        text = self._processor.decode(ids, skip_special_tokens=True).lstrip()
        if not final:
            text = text.rstrip("\N{REPLACEMENT CHARACTER}")  # the rest of a character is still to come
        if self._show is not None:
            self._show(text[len(self.text) :])
        self.text = text
