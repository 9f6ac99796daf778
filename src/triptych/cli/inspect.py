"""`triptych inspect MODEL`: what a model is, what its files hold and how much memory it takes."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from triptych import hub, pretrained

if TYPE_CHECKING:
    from rich.text import Text


def inspect(
    model: Annotated[str, typer.Argument(help="A folder, a hub name, or a model in the box.")] = pretrained.DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Show a model's family, sizes, files, dtype and memory, without loading its weights."""
    facts = describe(model)
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False))
    else:
        _print(facts)


def describe(model: str) -> dict[str, Any]:
    """The facts of a model, read from its configuration and the headers of its weight files.

    Memory is in bytes: `weights` at each dtype, and what the cache takes for each token of a row at float32.
    """
    from triptych.auto import AutoConfig
    from triptych.checkpoints.checkpoint import open_checkpoint
    from triptych.checkpoints.locate import find_weights
    from triptych.checkpoints.names import SAFETENSORS

    config = AutoConfig.from_pretrained(model)
    files = find_weights(model, hub.pop_options({}))
    with open_checkpoint(files, "np" if files.format is SAFETENSORS else "pt") as checkpoint:
        tensors = dict(checkpoint.tensors)
    parameters = sum(_count(info.shape) for info in tensors.values())
    return {
        "model": model,
        "family": config.model_type,
        "architectures": config.architectures,
        "parameters": parameters,
        "dtypes": sorted({info.dtype for info in tensors.values()}),
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "heads": config.num_attention_heads,
        "vocab_size": config.vocab_size,
        "positions": config.max_position_embeddings,
        "folder": str(files.files[0].parent),
        "files": {path.name: path.stat().st_size for path in sorted(_files(files.files))},
        "memory": {
            "weights": {"float32": 4 * parameters, "float16": 2 * parameters},
            "cache_per_token_float32": 2 * 4 * config.num_hidden_layers * config.hidden_size,
        },
    }


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _files(weights: tuple[Path, ...]) -> list[Path]:
    return [path for path in weights[0].parent.iterdir() if path.is_file()]


def _plain(text: str) -> "Text":
    """Text from a file or a folder's name as it is: no mark-up, and no control characters that a terminal obeys."""
    from rich.text import Text

    return Text("".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text))


def _print(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table
    from rich.text import Text

    weights = facts["memory"]["weights"]
    rows = {
        "family": facts["family"],
        "classes": ", ".join(facts["architectures"] or ()) or "not said",
        "parameters": f"{facts['parameters']:,}",
        "saved as": ", ".join(facts["dtypes"]),
        "layers": f"{facts['layers']} of {facts['hidden_size']} wide, {facts['heads']} heads",
        "vocabulary": f"{facts['vocab_size']:,} tokens",
        "positions": f"{facts['positions']:,} tokens",
        "memory": f"{decimal(weights['float32'])} in float32, {decimal(weights['float16'])} in float16",
        "cache": f"{decimal(facts['memory']['cache_per_token_float32'])} per token in float32",
        "folder": facts["folder"],
    }
    summary = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        summary.add_row(Text(name, "bold"), _plain(value))
    listing = Table("file", box=None, padding=(0, 2, 0, 0))
    listing.add_column("size", justify="right")
    for name, size in facts["files"].items():
        listing.add_row(_plain(name), decimal(size))
    console = Console(highlight=False)
    title = _plain(facts["model"])
    title.stylize("bold")
    console.print(title, "", summary, "", listing, sep="\n")
