"""tokenizer.model → its pieces and settings.

The file is a protocol buffer: a run of fields, each a varint key (number and wire type) and a value. The numbers are
those of `sentencepiece_model.proto` (github.com/google/sentencepiece); only what a conversion needs is taken, and
other fields are stepped over. Every length is checked against what is there before it is used.
"""

import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from triptych.errors import InvalidFileError, MissingFileError
from triptych.tokenization.vocabulary import MAX_PIECE

MAX_BYTES = 2**28  # fifty times the largest vocabulary known

# Wire types, the bytes of a value of fixed size, and the longest varint.
VARINT, FIXED_64, TEXT, FIXED_32 = 0, 1, 2, 5
FIXED_SIZES = {FIXED_64: 8, FIXED_32: 4}
VARINT_BYTES = 10
PIECE_KEY, SCORE_KEY = 1 << 3 | TEXT, 2 << 3 | FIXED_32

# The types of pieces.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
PIECE_TYPES = range(NORMAL, BYTE + 1)

KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


class _DamageError(Exception):
    """What is wrong with the bytes; the reader adds the file's name."""


@dataclass(slots=True)
class SentencePieceModel:
    """The pieces in the order of their ids, with the log-probability (or -rank) and the type of each, and settings."""

    pieces: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    kind: str = "unigram"
    byte_fallback: bool = False
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    has_character_map: bool = False

    @property
    def unk_id(self) -> int:
        """The id of the unknown piece."""
        return self.types.index(UNKNOWN)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a tokenizer.model.

    Raises: MissingFileError; InvalidFileError if the file is empty or too large to be one.
    """
    if not Path(path).is_file():
        raise MissingFileError(f"The SentencePiece model {os.fspath(path)} does not exist. Check the path.")
    size = Path(path).stat().st_size
    if not 0 < size <= MAX_BYTES:
        raise InvalidFileError(
            f"A SentencePiece model has from 1 to {MAX_BYTES} bytes, and {os.fspath(path)} has {size}. Check the path."
        )
    return Path(path).read_bytes()


def read_model(path: str | os.PathLike[str]) -> SentencePieceModel:
    """The pieces and settings in a tokenizer.model.

    Raises: MissingFileError; InvalidFileError if the file is damaged, or no model of pieces.
    """
    return parse(read_bytes(path), os.fspath(path))


def parse(data: bytes, name: str) -> SentencePieceModel:
    """The pieces and settings in the bytes of a file called `name`.

    Raises: InvalidFileError if the bytes are damaged, or no model of pieces.
    """
    model = SentencePieceModel()
    at, found = 0, set()
    try:
        while (at := _read_usual_pieces(model, data, at)) < len(data):
            number, value, at = _field(data, at, len(data))
            if number in _READERS and isinstance(value, slice):
                _READERS[number](model, data, value)
                found.add(number)
        if not SETTINGS.issubset(found):
            raise _DamageError("it ends before its settings, which every model has")
        _check(model)
    except _DamageError as error:
        raise InvalidFileError(
            f"{name} is no SentencePiece model: {error}. Fetch the file again, or check that it is the right one."
        ) from error
    return model


def _check(model: SentencePieceModel) -> None:
    if model.types.count(UNKNOWN) != 1:
        raise _DamageError(
            f"it must have one unknown piece, and {model.types.count(UNKNOWN)} of {len(model.types)} are"
        )
    if len(set(model.pieces)) != len(model.pieces):
        last = {piece: token_id for token_id, piece in enumerate(model.pieces)}
        double = next(piece for token_id, piece in enumerate(model.pieces) if last[piece] != token_id)
        raise _DamageError(f"its pieces must differ, and {double!r} is there twice")
    if (longest := max(map(len, model.pieces))) > MAX_PIECE:
        raise _DamageError(f"a piece has at most {MAX_PIECE:,} characters, and one has {longest:,}")
    if not all(map(math.isfinite, model.scores)):
        raise _DamageError("the score of each piece must be a finite number")
    if model.kind not in ("unigram", "bpe"):
        raise _DamageError(f"its kind must be unigram or bpe, and is {model.kind}")


# A value is an int, or the slice of the bytes where a text (or a message in it, or a fixed-size number) stands.
def _field(data: bytes, at: int, end: int) -> tuple[int, int | slice, int]:
    """The number and the value of the field at a place, and the place after it."""
    key, at = _varint(data, at, end)
    number, wire_type = key >> 3, key & 7
    if wire_type == VARINT:
        value, at = _varint(data, at, end)
        return number, value, at
    if wire_type == TEXT:
        size, at = _varint(data, at, end)
    elif wire_type in FIXED_SIZES:
        size = FIXED_SIZES[wire_type]
    else:
        raise _DamageError(f"byte {at} is of no known field")
    if size > end - at:
        raise _DamageError(f"byte {at} begins {size} bytes where {end - at} are left")
    return number, slice(at, at + size), at + size


def _fields(data: bytes, place: slice) -> Iterator[tuple[int, int | slice]]:
    """The fields of a message."""
    at: int = place.start
    while at < place.stop:
        number, value, at = _field(data, at, place.stop)
        yield number, value


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """The number at a place, seven bits a byte from the low end, and the place after it."""
    value = 0
    for count in range(VARINT_BYTES):
        if at + count >= end:
            raise _DamageError(f"a number at byte {at} has no end")
        byte = data[at + count]
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value, at + count + 1
    raise _DamageError(f"a number at byte {at} has more than {VARINT_BYTES} bytes")


def _read_usual_pieces(model: SentencePieceModel, data: bytes, at: int) -> int:
    """Read the run of pieces that have a short text, then a score, and no type; returns the place after it.

    Nearly all pieces are such, and field by field a large vocabulary would take ten times as long.
    """
    pieces, scores, score_of = model.pieces, model.scores, struct.Struct("<f").unpack_from
    last = len(data) - 2 - 0x7F  # whatever the lengths below are, they lead to no place behind the end
    while at < last and data[at] == data[at + 2] == PIECE_KEY:
        size, length = data[at + 1], data[at + 3]
        stop = at + 4 + length
        if size > 0x7F or size != length + 7 or data[stop] != SCORE_KEY or not length:
            break
        try:
            pieces.append(data[at + 4 : stop].decode("utf-8"))
        except UnicodeDecodeError:
            break  # `_read_piece` says what is wrong
        scores.append(score_of(data, stop + 1)[0])
        at = stop + 5
    model.types += [NORMAL] * (len(pieces) - len(model.types))
    return at


def _read_piece(model: SentencePieceModel, data: bytes, place: slice) -> None:
    piece, score, kind = b"", 0.0, NORMAL
    for number, value in _fields(data, place):
        if number == 1 and isinstance(value, slice):
            piece = data[value]
        elif number == 2 and isinstance(value, slice) and value.stop - value.start == FIXED_SIZES[FIXED_32]:
            (score,) = struct.unpack_from("<f", data, value.start)
        elif number == 3 and isinstance(value, int):
            kind = value
    if not piece or kind not in PIECE_TYPES:
        raise _DamageError(f"piece {len(model.pieces)} has no text, or the unknown type {kind}")
    try:
        model.pieces.append(piece.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _DamageError(f"piece {len(model.pieces)} is not UTF-8 ({error})") from error
    model.scores.append(score)
    model.types.append(kind)


def _read_trainer_settings(model: SentencePieceModel, data: bytes, place: slice) -> None:
    for number, value in _fields(data, place):
        if number == 3 and isinstance(value, int):
            model.kind = KINDS.get(value, f"number {value}")
        elif number == 35:
            model.byte_fallback = bool(value)


def _read_normalizer_settings(model: SentencePieceModel, data: bytes, place: slice) -> None:
    for number, value in _fields(data, place):
        if number == 2 and isinstance(value, slice):
            model.has_character_map = value.stop > value.start
        elif number == 3:
            model.add_dummy_prefix = bool(value)
        elif number == 4:
            model.remove_extra_whitespaces = bool(value)


SETTINGS = {2, 3}
_READERS = {1: _read_piece, 2: _read_trainer_settings, 3: _read_normalizer_settings}
