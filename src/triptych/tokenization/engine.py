"""The engine of the fast tokenizers, a `tokenizers.Tokenizer`, and its file."""

import json
import os
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from triptych.errors import InvalidFileError, MissingFileError
from triptych.tokenization.vocabulary import MAX_PIECE


def read(path: str | os.PathLike[str]) -> Tokenizer:
    """The engine that a tokenizer.json describes.

    Raises: MissingFileError; InvalidFileError if the file is damaged.
    """
    if not Path(path).is_file():
        raise MissingFileError(f"The tokenizer's file {os.fspath(path)} does not exist. Check the path.")
    try:
        _check_pieces(Path(path).read_bytes())
        return Tokenizer.from_file(os.fspath(path))
    except Exception as error:  # the library raises no narrower class
        raise InvalidFileError(
            f"{os.fspath(path)} is no tokenizer.json: {error}. Repair the file or fetch it again."
        ) from error


def _check_pieces(data: bytes) -> None:
    """See that no piece of a Unigram is so long that the engine, which goes into it by recursion, ends the process.

    JSON is read only where a text may be that long, as all else would take as long as the engine itself.
    """
    if max(map(len, data.replace(b'\\"', b"..").split(b'"'))) <= MAX_PIECE:
        return
    model = json.loads(data)["model"]
    vocabulary = model.get("vocab")
    if (
        isinstance(vocabulary, list)
        and (longest := max((len(piece) for piece, _ in vocabulary), default=0)) > MAX_PIECE
    ):
        raise ValueError(f"a piece has at most {MAX_PIECE:,} characters, and one has {longest:,}")


def stored_settings(backend: Tokenizer) -> dict[str, Any]:
    """What the engine's stored padding and truncation say about the tokenizer."""
    settings: dict[str, Any] = {}
    if backend.truncation is not None:
        settings["truncation_side"] = backend.truncation["direction"]
    if backend.padding is not None:
        settings["pad_token"] = backend.padding["pad_token"]
        settings["pad_token_type_id"] = backend.padding["pad_type_id"]
        settings["padding_side"] = backend.padding["direction"]
    return settings


def text_of(backend: Tokenizer) -> str:
    """The text of tokenizer.json, without the padding and truncation of the moment."""
    truncation, padding = backend.truncation, backend.padding
    backend.no_truncation()
    backend.no_padding()
    try:
        text: str = backend.to_str(pretty=True)
    finally:
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)
    return text
