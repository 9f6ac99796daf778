"""`triptych convert FAMILY SOURCE TARGET`: a checkpoint as its authors published it → a folder that loads."""

import json
from pathlib import Path
from typing import Annotated

import typer

convert = typer.Typer(
    help="Turn a checkpoint as its authors published it into a folder that loads.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@convert.callback()
def _families() -> None:
    pass


@convert.command("openai-gpt")
def openai_gpt(
    source: Annotated[Path, typer.Argument(help="The folder with params_shapes.json, params_0.npy … and vocabulary.")],
    target: Annotated[Path, typer.Argument(help="The folder to write; made when it is not there.")],
    heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads; one for each 64 of the width if not given.")
    ] = None,
    pre_tokenizer: Annotated[
        str, typer.Option(help="How the tokenizer splits text: spacy, as the model was trained, or basic.")
    ] = "spacy",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Convert GPT from OpenAI's release."""
    from triptych.models.openai_gpt.conversion import convert as run

    config = run(source, target, heads=heads, pre_tokenizer=pre_tokenizer)
    files = {path.name: path.stat().st_size for path in sorted(target.iterdir()) if path.is_file()}
    if as_json:
        facts = {"source": str(source), "target": str(target), "config": config.to_dict(), "files": files}
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    typer.echo(
        f"{target}: {config.n_layer} layers of {config.n_embd} wide, {config.n_head} heads, "
        f"{config.vocab_size:,} tokens, {config.n_positions:,} positions"
    )
    for name, size in files.items():
        typer.echo(f"  {name}  {size:,} bytes")
