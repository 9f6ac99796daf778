"""`triptych locate IMAGE… WHAT`: where a thing is in a picture, in pixels, and the picture with it framed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.cli import pictures
from triptych.cli.paths import require_folder

if TYPE_CHECKING:
    from PIL.Image import Image

PROMPT = "Find: {}"
FRAME = (255, 0, 160)
Box = tuple[float, ...]  # top, left, bottom, right


def locate(
    arguments: Annotated[
        list[str], typer.Argument(metavar="[IMAGE…] WHAT", help='Files, or - for a pipe; then what, as "red circle".')
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Write the picture with its boxes drawn; a folder, for several."),
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="How the model is asked; {} stands for WHAT.")] = PROMPT,
    model: Annotated[
        str, typer.Option("--model", "-m", help="A folder, a hub name, or a model in the box.")
    ] = pictures.MODEL,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", min=1, help="Tokens to write at most.")
    ] = 100,
    device: Annotated[str, typer.Option(help="cpu, cuda, …; auto takes a GPU when there is one.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto for that of the files.")] = "float32",
    quantization: Annotated[
        str | None, typer.Option("--quantization", help="int8 or int4: weights of 8 or 4 bits, which take less memory.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead, at the end.")] = False,
) -> None:
    """Find a thing in pictures: a line for each box, in pixels from the top left."""
    *names, what = arguments
    if pictures.is_picture(what):
        raise typer.BadParameter(f'What is to be found comes last, as in: triptych locate {what} "red circle".')
    if "{}" not in prompt:
        raise typer.BadParameter(f"--prompt must hold {{}}, which stands for what is to be found; got {prompt!r}.")
    found = pictures.read_pictures(names)
    targets = _targets(out, found)

    from triptych.models.fuyu.coordinates import places

    looker = pictures.Looker(model, device, dtype, quantization)
    facts = []
    for picture, target in zip(found, targets, strict=True):
        question = prompt.replace("{}", what).rstrip("\n") + "\n"
        answer, count = looker.ask(picture, question, max_new_tokens=max_new_tokens, do_sample=False)
        if count == max_new_tokens:
            typer.secho(f"The answer about {picture.name} was cut off. Raise --max-new-tokens.", err=True)
        boxes = [place.values for place in places(answer) if place.kind.name == "box"]
        if target is not None:
            _save(framed(picture.image, boxes), target)
        size = {"width": picture.image.width, "height": picture.image.height}
        named = [dict(zip(("top", "left", "bottom", "right"), box, strict=True)) for box in boxes]
        facts.append(
            {"image": picture.name, **size, "answer": answer, "boxes": named, "out": str(target) if target else None}
        )
        if not as_json:
            _print(picture.name if len(found) > 1 else None, what, boxes, target)
    if as_json:
        typer.echo(json.dumps({"model": model, "what": what, "pictures": facts}, ensure_ascii=False))


def framed(image: "Image", boxes: list[Box]) -> "Image":
    """A copy of a picture with a frame around each box, (top, left, bottom, right) in its pixels."""
    from PIL import ImageDraw

    copy = image.copy()
    pen = ImageDraw.Draw(copy)
    width = max(1, round(max(copy.size) / 200))
    for top, left, bottom, right in boxes:
        left, right = sorted((left, right))
        top, bottom = sorted((top, bottom))
        outer = (left - width, top - width, right + width, bottom + width)
        pen.rectangle(outer, outline=FRAME, width=width)
    return copy


def _targets(out: Path | None, found: list[pictures.Picture]) -> list[Path | None]:
    """Where the picture of each is written, checked before any work.

    Raises: typer.BadParameter for a file name that no picture can have, or one file for several pictures.
    """
    if out is None:
        return [None] * len(found)
    if len(found) > 1 or out.is_dir():
        if out.suffix.lower() in pictures.ENDINGS and not out.is_dir():
            raise typer.BadParameter(f"--out must be a folder for {len(found)} pictures; got {out}.")
        targets = [out / f"{Path(picture.name).stem}-found.png" for picture in found]
        if len(set(targets)) < len(targets):
            raise typer.BadParameter("Pictures of one name would overwrite each other in --out. Rename one of them.")
        require_folder(out, "--out")
        return list(targets)
    if out.suffix.lower() not in pictures.ENDINGS:
        endings = ", ".join(sorted(pictures.ENDINGS))
        raise typer.BadParameter(f"--out must be a folder that there is, or end in one of {endings}; got {out}.")
    require_folder(out.parent, "--out")
    if out.resolve() in [Path(picture.name).resolve() for picture in found]:
        raise typer.BadParameter(f"--out would overwrite the picture {out}. Give another name.")
    return [out]


def _save(image: "Image", target: Path) -> None:
    from triptych.files import staged_folder

    with staged_folder(target.parent) as stage:
        image.save(stage / target.name)


def _print(name: str | None, what: str, boxes: list[Box], target: Path | None) -> None:
    before = f"{name}: " if name else ""
    for top, left, bottom, right in boxes:
        typer.echo(f"{before}{what}: top {top:g}, left {left:g}, bottom {bottom:g}, right {right:g}")
    if not boxes:
        typer.echo(f"{before}no {what} found")
    if target is not None:
        typer.secho(f"{before}written to {target}", dim=True, err=True)
