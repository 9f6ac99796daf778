"""`triptych convert FAMILY SOURCE TARGET`: a checkpoint as its authors published it → a folder that loads."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from triptych.cli.paths import require_folder

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

    require_folder(target.parent, "TARGET")

    config = run(source, target, heads=heads, pre_tokenizer=pre_tokenizer)
    _tell(source, target, config, config.n_positions, as_json)


@convert.command("fuyu")
def fuyu(
    source: Annotated[
        Path, typer.Argument(help="The release's .tar, the folder it was unpacked into, or its model_optim_rng.pt.")
    ],
    target: Annotated[Path, typer.Argument(help="The folder to write; made when it is not there.")],
    tokenizer: Annotated[Path | None, typer.Option(help="adept_vocab.model; that of the release if not given.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="The largest file of weights, such as 5GB or 500MB.")] = "5GB",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Convert Fuyu from Adept's release."""
    from triptych.models.fuyu.conversion import convert as run

    require_folder(target.parent, "TARGET")

    config = run(source, target, tokenizer=tokenizer, max_shard_size=max_shard_size)
    _tell(source, target, config, config.max_position_embeddings, as_json)


def _tell(source: Path, target: Path, config: Any, positions: int, as_json: bool) -> None:
    """What was made."""
    files = {path.name: path.stat().st_size for path in sorted(target.iterdir()) if path.is_file()}
    if as_json:
        facts = {"source": str(source), "target": str(target), "config": config.to_dict(), "files": files}
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    typer.echo(
        f"{target}: {config.num_hidden_layers} layers of {config.hidden_size} wide, "
        f"{config.num_attention_heads} heads, {config.vocab_size:,} tokens, {positions:,} positions"
    )
    for name, size in files.items():
        typer.echo(f"  {name}  {size:,} bytes")
