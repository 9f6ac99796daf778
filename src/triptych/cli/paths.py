"""Where commands write: into folders that are there, so that a slip of the keyboard makes none."""

from pathlib import Path

import typer


def require_folder(folder: Path, option: str) -> None:
    """Refuse a folder that is missing, before any work.

    Raises: typer.BadParameter naming the option and the command that makes the folder.
    """
    if not folder.is_dir():
        state = "is no folder" if folder.exists() else "does not exist"
        raise typer.BadParameter(
            f"{option} writes into a folder that is there, and {folder} {state}. mkdir -p {folder}"
        )
