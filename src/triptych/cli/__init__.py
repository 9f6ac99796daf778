"""The command line: `triptych COMMAND …`, one module per command.

Output is for people; `--json` gives the same facts to programs. An error is one line and a non-zero exit; with
TRIPTYCH_TRACEBACK=1 in the environment it is Python's traceback, for reports.
"""

import os
import sys
from typing import Annotated

import typer

from triptych import __version__
from triptych.cli.convert import convert
from triptych.cli.generate import generate
from triptych.cli.inspect import inspect

app = typer.Typer(
    help="OpenAI GPT, GPT Neo and Fuyu: write text, look into models, convert original checkpoints.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(generate)
app.command()(inspect)
app.add_typer(convert, name="convert")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"triptych {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; the exit code is 1 after an error, 2 after a wrong call, 130 after Ctrl-C."""
    try:
        app()
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if "TRIPTYCH_TRACEBACK" in os.environ:
            raise
        text = " ".join(str(error).split())
        known = isinstance(error, OSError | ValueError | TypeError | ImportError)
        typer.secho(f"Error: {text if known else f'{type(error).__name__}: {text}'}", err=True, fg=typer.colors.RED)
        sys.exit(1)
