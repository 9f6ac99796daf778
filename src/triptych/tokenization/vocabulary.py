"""vocab.json and merges.txt ↔ the vocabulary of a byte-pair encoding."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from triptych.errors import InvalidFileError, MissingFileError
from triptych.files import read_json, staged_folder, write_json

Merges = list[tuple[str, str]]
VERSION_LINE = "#version: 0.2"


def read_vocabulary(path: str | os.PathLike[str]) -> dict[str, int]:
    """Token → id.

    Raises: CheckpointError naming the file if it is missing, damaged, or an id is no int or used twice.
    """
    vocabulary = read_json(path)
    # One pass over a set is cheap; the loop that finds the culprit runs only when there is one.
    if not all(type(token_id) is int and token_id >= 0 for token_id in vocabulary.values()):
        token, token_id = next((t, i) for t, i in vocabulary.items() if type(i) is not int or i < 0)
        raise InvalidFileError(f"{os.fspath(path)} must map tokens to ids, and {token!r} has {token_id!r}.")
    if len(set(vocabulary.values())) != len(vocabulary):
        seen: dict[int, str] = {}
        token = next(t for t, i in vocabulary.items() if seen.setdefault(i, t) != t)
        raise InvalidFileError(
            f"{os.fspath(path)} must give each token its own id, and {token!r} has {vocabulary[token]}, "
            f"as {seen[vocabulary[token]]!r} has."
        )
    return vocabulary


def read_merges(path: str | os.PathLike[str], vocabulary: Mapping[str, int]) -> Merges:
    """The pairs to join, first come first joined; every piece and every result is in the vocabulary.

    Raises: CheckpointError naming the file and the line if it is missing, damaged or of another vocabulary.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise MissingFileError(f"The file of merges {os.fspath(path)} does not exist. Check the path.") from error
    except UnicodeDecodeError as error:
        raise InvalidFileError(f"{os.fspath(path)} must be UTF-8: {error}. Fetch the file again.") from error
    merges: Merges = []
    for number, line in enumerate(lines, 1):
        pair = line.rstrip("\r").split(" ")
        if pair == [""] or (number == 1 and line.startswith("#version")):
            continue
        if len(pair) != 2 or not all(pair):
            raise InvalidFileError(
                f"Each line of {os.fspath(path)} must be two tokens with a space between them, "
                f"and line {number} is {line!r}."
            )
        if pair[0] not in vocabulary or pair[1] not in vocabulary or pair[0] + pair[1] not in vocabulary:
            absent = next(token for token in (*pair, pair[0] + pair[1]) if token not in vocabulary)
            raise InvalidFileError(
                f"The merges must fit the vocabulary, and {absent!r} of line {number} of {os.fspath(path)} is not in "
                "it. Use the two files of one tokenizer."
            )
        merges.append((pair[0], pair[1]))
    return merges


def write_files(
    directory: str | os.PathLike[str],
    names: Mapping[str, str],
    prefix: str | None,
    vocabulary: Mapping[str, int],
    merges: Iterable[Sequence[str]],
) -> tuple[str, str]:
    """Write both files under their names in `names` ("vocab_file", "merges_file"); returns their paths."""
    start = f"{prefix}-" if prefix else ""
    vocab_name, merges_name = start + names["vocab_file"], start + names["merges_file"]
    with staged_folder(directory) as stage:
        write_json(stage / vocab_name, dict(sorted(vocabulary.items(), key=lambda item: item[1])))
        lines = [VERSION_LINE, *(f"{left} {right}" for left, right in merges), ""]
        (stage / merges_name).write_text("\n".join(lines), encoding="utf-8", newline="\n")
    return str(Path(directory, vocab_name)), str(Path(directory, merges_name))
