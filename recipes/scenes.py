"""Pictures of coloured shapes and digits, with questions whose answers are known.

A seed gives a scene: a plain background with one to four things on it that do not touch. Each thing is a circle, a
square, a triangle, a star or a digit, in one of six colours. Everything that is asked of a scene is asked in a few
fixed forms (`questions`), so that an answer is either exactly right or wrong.

Boxes are (top, left, bottom, right) in pixels of the picture, as in `<box>y1, x1, y2, x2</box>`.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

SHAPES = ("circle", "square", "triangle", "star")
DIGITS = tuple("0123456789")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (150, 60, 180),
    "orange": (240, 130, 30),
}
CAPTION = "Generate a coco-style caption.\n"
FIND = "Find: {}\n"
NOTHING = "nothing"
MOST_THINGS = 4
SMALLEST, LARGEST = 20, 34  # pixels of a thing's square, before scaling

Box = tuple[float, float, float, float]  # top, left, bottom, right


@dataclass(frozen=True)
class Thing:
    """One shape or digit and where it is."""

    kind: str
    colour: str
    box: Box

    @property
    def name(self) -> str:
        """For example "red circle" or "blue 7"."""
        return f"{self.colour} {self.kind}"

    @property
    def centre(self) -> tuple[float, float]:
        """Its middle, (y, x)."""
        top, left, bottom, right = self.box
        return (top + bottom) / 2, (left + right) / 2


@dataclass(frozen=True)
class Scene:
    """A picture and what is on it, from left to right."""

    image: Image.Image
    things: tuple[Thing, ...]


@dataclass(frozen=True)
class Question:
    """What is asked, in which form, and the one right answer; `boxes` where the answer is places."""

    form: str
    prompt: str
    answer: str
    boxes: tuple[Box, ...] = ()


def draw_scene(rng: random.Random, width: int, height: int, scale: float = 1) -> Scene:
    """A scene of width × height pixels, and larger by `scale` with everything on it; its edges are smooth or not."""
    size = (round(width * scale), round(height * scale))
    finer = rng.choice((1, 3))  # drawn so many times as large, then shrunk
    grey = rng.randint(0, 60) if rng.random() < 0.25 else rng.randint(205, 255)
    image = Image.new("RGB", (size[0] * finer, size[1] * finer), _near(rng, (grey, grey, grey), 8))
    pen = ImageDraw.Draw(image)
    things = []
    for place in _places(rng, width, height):
        kind = rng.choice(DIGITS) if rng.random() < 0.35 else rng.choice(SHAPES)
        colour = rng.choice(tuple(COLOURS))
        drawn = _draw(pen, kind, tuple(value * scale * finer for value in place), _near(rng, COLOURS[colour], 18))
        things.append(Thing(kind, colour, tuple(value / finer for value in drawn)))
    if finer > 1:
        image = image.resize(size, Image.Resampling.BILINEAR)
    return Scene(image, tuple(sorted(things, key=lambda thing: thing.centre[1])))


def _near(rng: random.Random, colour: tuple[int, ...], most: int) -> tuple[int, ...]:
    """A colour whose levels are off by `most` at most."""
    return tuple(max(0, min(255, level + rng.randint(-most, most))) for level in colour)


def _places(rng: random.Random, width: int, height: int) -> list[Box]:
    """Squares for one to four things: apart from each other, and no two with nearly the same x."""
    wanted = rng.randint(1, MOST_THINGS)
    places: list[Box] = []
    for _ in range(200):
        if len(places) == wanted:
            break
        side = rng.randrange(SMALLEST, LARGEST + 1, 2)
        top, left = (2 * rng.randint(0, (length - side) // 2) for length in (height, width))
        box = (top, left, top + side, left + side)
        if all(_apart(box, other) for other in places):
            places.append(box)
    return places


def _apart(a: Box, b: Box) -> bool:
    gap = 3
    beside = a[3] + gap < b[1] or b[3] + gap < a[1] or a[2] + gap < b[0] or b[2] + gap < a[0]
    return beside and abs(a[1] + a[3] - b[1] - b[3]) > 12  # centres 6 pixels apart: "from left to right" is clear


def _draw(pen: ImageDraw.ImageDraw, kind: str, place: Box, paint: tuple[int, ...]) -> Box:
    """Draw one thing into a square; returns the box that it fills."""
    top, left, bottom, right = place
    side = right - left
    if kind == "circle":
        pen.ellipse((left, top, right, bottom), fill=paint)
        return place
    if kind == "square":
        pen.rectangle((left, top, right, bottom), fill=paint)
        return place
    if kind in DIGITS:
        font = ImageFont.load_default(size=side * 1.25)
        stroke = max(1, round(side * 0.04))
        x1, y1, x2, y2 = font.getbbox(kind, stroke_width=stroke)
        x = left + (side - (x2 - x1)) / 2 - x1
        y = top + (side - (y2 - y1)) / 2 - y1
        pen.text((x, y), kind, font=font, fill=paint, stroke_width=stroke, stroke_fill=paint)
        return (max(top, y + y1), max(left, x + x1), min(bottom, y + y2), min(right, x + x2))
    points = _corners(kind, place)
    pen.polygon(points, fill=paint)
    xs, ys = zip(*points, strict=True)
    return (min(ys), min(xs), max(ys), max(xs))


def _corners(kind: str, place: Box) -> list[tuple[float, float]]:
    """The corners (x, y) of a triangle or a five-pointed star that stands upright in a square."""
    top, left, bottom, right = place
    if kind == "triangle":
        return [((left + right) / 2, top), (right, bottom), (left, bottom)]
    radius, y, x = (right - left) / 2, (top + bottom) / 2, (left + right) / 2
    return [
        (
            x + radius * (1 if point % 2 == 0 else 0.42) * math.sin(math.pi * point / 5),
            y - radius * (1 if point % 2 == 0 else 0.42) * math.cos(math.pi * point / 5),
        )
        for point in range(10)
    ]


def caption(things: tuple[Thing, ...]) -> str:
    """All things from left to right: "a red circle, a blue 7 and a green star"."""
    names = [f"{'an' if thing.name[0] in 'aeiou' else 'a'} {thing.name}" for thing in things]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def as_text(boxes: tuple[Box, ...]) -> str:
    """Boxes as the processor reads them, one after another."""
    return "".join(f"<box>{', '.join(str(round(value)) for value in box)}</box>" for box in boxes) or NOTHING


def questions(rng: random.Random, scene: Scene, forms: Sequence[str], count: int) -> list[Question]:
    """`count` questions about a scene, each of a form drawn with the same chance; forms that do not fit it are left."""
    found: list[Question] = []
    while len(found) < count:
        found += FORMS[rng.choice(forms)](rng, scene)
    return found


def _caption(rng: random.Random, scene: Scene) -> Iterator[Question]:
    yield Question("caption", CAPTION, caption(scene.things))


def _count(rng: random.Random, scene: Scene) -> Iterator[Question]:
    things = scene.things
    what = rng.random()
    if what < 0.4:
        yield Question("count", "How many objects are there?\n", str(len(things)))
    elif what < 0.7:
        kind = rng.choice([*SHAPES, *(thing.kind for thing in things if thing.kind in SHAPES), "digit"])
        number = sum(thing.kind == kind or (kind == "digit" and thing.kind in DIGITS) for thing in things)
        yield Question("count", f"How many {kind}s are there?\n", str(number))
    else:
        colour = rng.choice([*COLOURS, *(thing.colour for thing in things)])
        number = sum(thing.colour == colour for thing in things)
        yield Question("count", f"How many {colour} objects are there?\n", str(number))


def _colour(rng: random.Random, scene: Scene) -> Iterator[Question]:
    thing = rng.choice(scene.things)
    if sum(other.kind == thing.kind for other in scene.things) == 1:
        yield Question("colour", f"What colour is the {thing.kind}?\n", thing.colour)


def _kind(rng: random.Random, scene: Scene) -> Iterator[Question]:
    thing = rng.choice(scene.things)
    if sum(other.colour == thing.colour for other in scene.things) == 1:
        yield Question("kind", f"What is the {thing.colour} object?\n", thing.kind)


def _digit(rng: random.Random, scene: Scene) -> Iterator[Question]:
    digits = [thing for thing in scene.things if thing.kind in DIGITS]
    if len(digits) == 1:
        yield Question("digit", "Which digit is there?\n", digits[0].kind)


def _position(rng: random.Random, scene: Scene) -> Iterator[Question]:
    thing = rng.choice(scene.things)
    y, x = (centre / side - 0.5 for centre, side in zip(thing.centre, scene.image.size[::-1], strict=True))
    clear = min(abs(y), abs(x)) > 0.06  # not about the middle, where the answer would be a matter of a pixel
    if clear and sum(other.name == thing.name for other in scene.things) == 1:
        where = f"{'top' if y < 0 else 'bottom'} {'left' if x < 0 else 'right'}"
        yield Question("position", f"Where is the {thing.name}?\n", where)


def _exists(rng: random.Random, scene: Scene) -> Iterator[Question]:
    name = _some_name(rng, scene)
    there = any(thing.name == name for thing in scene.things)
    article = "an" if name[0] in "aeiou" else "a"
    yield Question("exists", f"Is there {article} {name}?\n", "yes" if there else "no")


def _find(rng: random.Random, scene: Scene) -> Iterator[Question]:
    name = rng.choice(scene.things).name if rng.random() < 0.8 else _some_name(rng, scene)
    boxes = tuple(thing.box for thing in scene.things if thing.name == name)
    yield Question("find", FIND.format(name), as_text(boxes), boxes)


def _some_name(rng: random.Random, scene: Scene) -> str:
    """A thing of the scene, one with a colour and a kind of different things, or any."""
    what = rng.random()
    if what < 0.5:
        return rng.choice(scene.things).name
    if what < 0.75:
        return f"{rng.choice(scene.things).colour} {rng.choice(scene.things).kind}"
    return f"{rng.choice(tuple(COLOURS))} {rng.choice((*SHAPES, *DIGITS))}"


FORMS = {
    "caption": _caption,
    "count": _count,
    "colour": _colour,
    "kind": _kind,
    "digit": _digit,
    "position": _position,
    "exists": _exists,
    "find": _find,
}
