"""vocab.json and merges.txt ↔ the vocabulary of a byte-pair encoding."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import cast

from triptych.errors import InvalidFileError, MissingFileError
from triptych.files import read_json, staged_folder

Merges = list[tuple[str, str]]
MAX_PIECE = 2**12  # characters; SentencePiece makes 16 by default, and some 10**5 end the process of the engine
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
    if lines[0].startswith("#version"):
        lines[0] = ""
    pairs = [tuple(line.split(" ")) for line in lines if line]
    # Whole sets are compared first, which is quick; the culprit is looked for only when there is one.
    pieces = set(chain.from_iterable(pairs))
    if {len(pair) for pair in pairs} - {2} or (pieces | set(map("".join, pairs))) - vocabulary.keys():
        raise _misfit(lines, vocabulary, os.fspath(path))
    return cast(Merges, pairs)


def _misfit(lines: list[str], vocabulary: Mapping[str, int], path: str) -> InvalidFileError:
    """The error for the first line that is no pair of tokens, or whose tokens the vocabulary lacks."""
    pairs = ((number, line.split(" ")) for number, line in enumerate(lines, 1) if line)
    number, problem = next((number, found) for number, pair in pairs if (found := _problem(pair, vocabulary)))
    return InvalidFileError(f"Line {number} of {path}, {lines[number - 1]!r}, {problem}")


def _problem(pair: Sequence[str], vocabulary: Mapping[str, int]) -> str:
    """What is wrong with a line of merges; empty if nothing is."""
    if len(pair) != 2 or not all(pair):
        return "must be two tokens with a space between them. Repair the file or fetch it again."
    absent = [token for token in (*pair, "".join(pair)) if token not in vocabulary]
    return f"must fit the vocabulary, which has no {absent[0]!r}. Use the two files of one tokenizer." if absent else ""


def write_files(
    directory: str | os.PathLike[str],
    names: Mapping[str, str],
    prefix: str | None,
    vocabulary: Mapping[str, int],
    merges: Iterable[tuple[str, str]],
) -> tuple[str, str]:
    """Write both files under their names in `names` ("vocab_file", "merges_file"); returns their paths."""
    start = f"{prefix}-" if prefix else ""
    vocab_name, merges_name = start + names["vocab_file"], start + names["merges_file"]
    with staged_folder(directory) as stage:
        by_id = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
        # On one line: indenting tens of thousands of tokens takes seven times as long.
        (stage / vocab_name).write_text(json.dumps(by_id, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
        lines = [VERSION_LINE, *(f"{left} {right}" for left, right in merges), ""]
        (stage / merges_name).write_text("\n".join(lines), encoding="utf-8", newline="\n")
    return str(Path(directory, vocab_name)), str(Path(directory, merges_name))
