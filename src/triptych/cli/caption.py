"""`triptych caption IMAGE… [PROMPT]`: what a picture shows, or the answer to a question about it."""

import json
import sys
import time
from typing import Annotated, Any

import typer

from triptych.cli import pictures

PROMPT = "Generate a coco-style caption."


def caption(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE… [PROMPT]",
            help="Files, or - for a pipe; the last may be what is asked, unless it reads like a file (then --prompt).",
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="What is asked.", show_default=PROMPT)] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="A folder, a hub name, or a model in the box.")
    ] = pictures.MODEL,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", min=1, help="Tokens to write at most.")
    ] = 100,
    temperature: Annotated[
        float, typer.Option("--temperature", "-t", min=0, help="0 always takes the likeliest token; more is wilder.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="The same seed writes the same text, at a temperature above 0.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, …; auto takes a GPU when there is one.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto for that of the files.")] = "float32",
    quantization: Annotated[
        str | None, typer.Option("--quantization", help="int8 or int4: weights of 8 or 4 bits, which take less memory.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead, at the end.")] = False,
) -> None:
    """Describe pictures, or answer a question about each of them."""
    names = list(arguments or ())
    if prompt is None:
        alone = len(names) == 1 and pictures.is_folder(names[0])  # meant as pictures, not as words
        prompt = names.pop() if names and not alone and not pictures.is_picture(names[-1]) else PROMPT
    found = pictures.read_pictures(names)

    import torch  # after the arguments are known to be right: help and mistakes are quick

    torch.manual_seed(seed)
    looker = pictures.Looker(model, device, dtype, quantization)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
    if temperature > 0:
        options["temperature"] = temperature
    facts = []
    for picture in found:
        if len(found) > 1 and not as_json:
            typer.secho(f"{picture.name}: ", nl=False, bold=True)
        start = time.perf_counter()
        answer, count = looker.ask(picture, prompt.rstrip("\n") + "\n", None if as_json else _show, **options)
        seconds = time.perf_counter() - start
        facts.append({"image": picture.name, "answer": answer, "new_tokens": count, "seconds": round(seconds, 3)})
        if not as_json:
            typer.echo()
    if as_json:
        typer.echo(json.dumps({"model": model, "prompt": prompt, "pictures": facts}, ensure_ascii=False))


def _show(text: str) -> None:
    typer.echo(text, nl=False)
    sys.stdout.flush()
