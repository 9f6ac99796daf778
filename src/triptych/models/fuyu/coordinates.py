"""Boxes and points: as people write them, and as the tokens that Fuyu was trained on.

`<box>y1, x1, y2, x2</box>` and `<point>y, x</point>`, in pixels of the picture as it was given, become an opening
token, each coordinate as the token of a whole number, and a closing token. The numbers are halves of the pixels of the
picture as the model sees it, after shrinking: observed of the documented release, whose checkpoint was trained so.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Kind:
    """What is written between `<name>` and `</name>`, and the tokens that open and close it."""

    name: str
    coordinates: tuple[str, ...]
    open: str
    close: str


KINDS = (
    Kind("box", ("y1", "x1", "y2", "x2"), "<0x00>", "<0x01>"),
    Kind("point", ("y", "x"), "<0x02>", "<0x03>"),
)
BY_NAME = {kind.name: kind for kind in KINDS}
SHOWN = 60  # characters of what is wrong that an error repeats
_TAG = re.compile(r"<(/?)(box|point)>")
_NUMBER = re.compile(r"\s*[+-]?(\d{1,9}(\.\d{0,9})?|\.\d{1,9})\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Place:
    """A box or a point; its values alternate between y and x, in pixels of the picture as it was given."""

    kind: Kind
    values: tuple[float, ...]

    def __str__(self) -> str:
        """As people write it."""
        numbers = ", ".join(f"{value:g}" for value in self.values)
        return f"<{self.kind.name}>{numbers}</{self.kind.name}>"

    def tokens(self, factor: float) -> list[str]:
        """The tokens of a place on a picture that was shrunk by `factor`, which counts as float32 like observed."""
        single = float(np.float32(factor))
        numbers = [str(round(value / 2 * single)) for value in self.values]
        return [self.kind.open, *numbers, self.kind.close]

    def check_inside(self, size: Size) -> None:
        """Raises: ValueError if a coordinate lies outside a picture of this (height, width)."""
        for index, value in enumerate(self.values):
            limit = size[index % 2]
            if not 0 <= value <= limit:
                raise ValueError(
                    f"{self.kind.coordinates[index]} must lie in the picture, which is {size[0]} × {size[1]} (height × "
                    f"width); got {value:g} in {self}. Coordinates are pixels of the picture as it was given, y first."
                )


def split(text: str) -> list[str | Place]:
    """A text as what stands between the places and the places themselves, in order, nothing empty.

    Raises: ValueError for a tag without its partner, a wrong number of coordinates, or one that is no number.
    """
    parts: list[str | Place] = []
    end = 0
    tags = _TAG.finditer(text)
    for tag in tags:
        parts.append(text[end : tag.start()])
        kind = BY_NAME[tag[2]]
        closing = next(tags, None)
        if tag[1] or closing is None or closing[0] != f"</{kind.name}>":
            raise ValueError(
                f"A {kind.name} is written {_form(kind)}; got {text[tag.start() : tag.start() + SHOWN]!r}, "
                f"which {'closes' if tag[1] else 'opens'} one only."
            )
        parts.append(_place(kind, text[tag.end() : closing.start()]))
        end = closing.end()
    parts.append(text[end:])
    return [part for part in parts if part]


def places(text: str) -> list[Place]:
    """The boxes and points in a text, in order.

    Raises: ValueError as `split` does.
    """
    return [part for part in split(text) if isinstance(part, Place)]


def _form(kind: Kind) -> str:
    return f"<{kind.name}>{', '.join(kind.coordinates)}</{kind.name}>"


def _place(kind: Kind, inner: str) -> Place:
    numbers = inner.split(",")
    if len(numbers) != len(kind.coordinates) or not all(map(_NUMBER.fullmatch, numbers)):
        got = inner if len(inner) <= SHOWN else f"{inner[:SHOWN]}…"
        raise ValueError(f"A {kind.name} is written {_form(kind)} with numbers; got <{kind.name}>{got}</{kind.name}>.")
    return Place(kind, tuple(map(float, numbers)))


def replace_tokens(
    ids: Sequence[int], factor: float, token_id: Callable[[str], int | None], number: Callable[[int], int | None]
) -> Iterator[int | Place]:
    """Ids with each box and point that is written out in full as a Place, in pixels of the picture as it was given.

    `token_id` gives the id of a token, `number` the number that an id stands for; either None. What is not an opening
    token, as many numbers as the kind has, and its closing token stays as it is.
    """
    opening = {token_id(kind.open): kind for kind in KINDS}
    position = 0
    while position < len(ids):
        kind = opening.get(ids[position])
        if kind is not None:
            last = position + len(kind.coordinates) + 1
            inner = [number(each) for each in ids[position + 1 : last]]
            if last < len(ids) and ids[last] == token_id(kind.close) and None not in inner:
                yield Place(kind, tuple(round(value * 2 / factor) for value in inner if value is not None))
                position = last + 1
                continue
        yield ids[position]
        position += 1
