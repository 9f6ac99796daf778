"""The engine of the fast tokenizers, a `tokenizers.Tokenizer`, and its file."""

import os
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from triptych.errors import InvalidFileError, MissingFileError


def read(path: str | os.PathLike[str]) -> Tokenizer:
    """The engine that a tokenizer.json describes.

    Raises: MissingFileError; InvalidFileError if the file is damaged.
    """
    if not Path(path).is_file():
        raise MissingFileError(f"The tokenizer's file {os.fspath(path)} does not exist. Check the path.")
    try:
        return Tokenizer.from_file(os.fspath(path))
    except Exception as error:  # the library raises no narrower class
        raise InvalidFileError(
            f"{os.fspath(path)} is no tokenizer.json: {error}. Repair the file or fetch it again."
        ) from error


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
