"""Files that are written whole or not at all, and JSON whose errors name the file."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from triptych.errors import InvalidFileError, MissingFileError, SaveError


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object in a UTF-8 file.

    Raises: MissingFileError; InvalidFileError if the text is not UTF-8, not JSON or not an object.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFileError(f"A JSON file is needed but {path} does not exist. Check the path.") from error
    except IsADirectoryError as error:
        raise InvalidFileError(f"A JSON file is needed but {path} is a folder. Give the file's own path.") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InvalidFileError(
            f"{path} must hold JSON in UTF-8: {error}. Repair the file or fetch it again."
        ) from error
    if not isinstance(value, dict):
        raise InvalidFileError(
            f"{path} must hold a JSON object, but its top is a {type(value).__name__}. "
            "Repair the file or fetch it again."
        )
    return value


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write UTF-8, two spaces of indent, keys in the order given, one newline at the end."""
    Path(path).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


@contextmanager
def staged_folder(target: str | os.PathLike[str], *, replaces: Callable[[str], bool] | None = None) -> Iterator[Path]:
    """Yield an empty folder whose files move into `target` together once the block ends well.

    `target` is made if missing. Files of `target` whose names satisfy `replaces` belong to an earlier version: those
    that were not written anew are removed after the new files are in place. On any exception, KeyboardInterrupt
    included, `target` is as it was before.

    Raises: SaveError if `target` is a file, or no folder or file can be made in it.
    """
    target = Path(target)
    made = _make_folder(target)
    try:
        stage = _temporary_folder(target)
        try:
            yield stage
            _move_together(stage, target, replaces or (lambda name: False))
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    except BaseException:
        for folder in made:
            if not any(folder.iterdir()):
                folder.rmdir()
        raise


def _make_folder(target: Path) -> list[Path]:
    """Make a folder and its parents; the ones that were made, deepest first."""
    missing = [folder for folder in (target, *target.parents) if not folder.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        in_the_way = next(path for path in (target, *target.parents) if path.exists())
        raise SaveError(f"Files are saved in a folder, but {in_the_way} is a file. Give another folder.") from error
    except OSError as error:
        raise SaveError(f"The folder {target} cannot be made: {error}. Give a folder that you may write to.") from error
    return missing


def _temporary_folder(target: Path) -> Path:
    # Inside the target, so that moving a file is a rename within one file system.
    try:
        return Path(tempfile.mkdtemp(prefix=".saving-", dir=target))
    except OSError as error:
        raise SaveError(f"Nothing can be written in {target}: {error}. Give a folder that you may write to.") from error


def _move_together(stage: Path, target: Path, replaces: Callable[[str], bool]) -> None:
    new = sorted(path.relative_to(stage) for path in stage.rglob("*") if path.is_file())
    stale = [Path(path.name) for path in target.iterdir() if path.is_file() and replaces(path.name)]
    stale = [name for name in stale if name not in new]
    kept = Path(tempfile.mkdtemp(prefix=".replaced-", dir=stage))
    moved: list[Path] = []
    try:
        for name in new:
            moved.append(name)
            _keep(target / name, kept / name)
            (stage / name).replace(target / name)
        for name in stale:
            moved.append(name)
            (target / name).replace(kept / name)
    except BaseException as error:
        for name in moved:
            _put_back(kept / name, target / name, was_written=not (stage / name).exists() and name not in stale)
        if isinstance(error, OSError):
            raise SaveError(
                f"The new files cannot be put into {target}: {error}. The old ones are unchanged."
            ) from error
        raise


def _keep(old: Path, backup: Path) -> None:
    """Keep what is at `old`, which stays in place where the file system has hard links."""
    old.parent.mkdir(parents=True, exist_ok=True)
    if not old.exists():
        return
    backup.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(old, backup)
    except OSError:
        old.replace(backup)


def _put_back(backup: Path, path: Path, *, was_written: bool) -> None:
    if backup.exists():
        backup.replace(path)
    elif was_written:
        path.unlink(missing_ok=True)
