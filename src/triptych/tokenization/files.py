"""The files of a tokenizer ↔ the tokenizer.

tokenizer_config.json    the constructor's options, the added tokens by id
special_tokens_map.json  role → token
added_tokens.json        added token → id; older folders have only this and the two above
vocab.json, merges.txt   (or whatever the class names) the vocabulary
tokenizer.json           everything, for the engine of the fast tokenizers
"""

import os
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken

from triptych import hub
from triptych.errors import InvalidFileError, MissingFileError
from triptych.files import read_json, staged_folder, write_json
from triptych.tokenization.special_tokens import LIST_NAME, NAMES, from_json, str_of, to_json

if TYPE_CHECKING:
    from typing import TypeVar

    from triptych.tokenization.base import PreTrainedTokenizerBase

    T = TypeVar("T", bound=PreTrainedTokenizerBase)

CONFIG, SPECIAL, ADDED, BACKEND = FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
)

# In tokenizer_config.json, but about the file or about code: not for the constructor.
_NOT_OPTIONS = (
    "tokenizer_class",
    "auto_map",
    "init_inputs",
    "fast_tokenizer_files",
    "tokenizer_file",
    "tokenizer_object",
    "special_tokens_map_file",
    "self",
)
# What the stored options may be, where another kind of value would be noticed only later, or not at all.
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "model_max_length": ("a positive number", lambda v: v is None or (is_number(v) and v > 0)),
    "padding_side": ("'left' or 'right'", lambda v: v in ("left", "right")),
    "truncation_side": ("'left' or 'right'", lambda v: v in ("left", "right")),
    "add_prefix_space": ("true or false", lambda v: isinstance(v, bool)),
    "add_bos_token": ("true or false", lambda v: isinstance(v, bool)),
    "add_eos_token": ("true or false", lambda v: isinstance(v, bool)),
    "legacy": ("true, false or null", lambda v: v is None or isinstance(v, bool)),
    "sp_model_kwargs": ("a map from options to values, or null", lambda v: v is None or isinstance(v, dict)),
    "errors": ("strict, replace or ignore", lambda v: v in ("strict", "replace", "ignore")),
    "model_input_names": ("a list of names", lambda v: isinstance(v, list) and set(map(type, v)) == {str}),
    "added_tokens_decoder": ("a map from ids to tokens", lambda v: isinstance(v, dict)),
}
MAX_ID = 2**31  # ids are 32-bit in the engine
# Where the tokenizer came from: not for the file.
_NOT_SAVED = ("name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file", "merges_file", *_NOT_OPTIONS)
# Attributes that may have been set since: written if they are options already, or differ from the class's default.
_LIVE = ("padding_side", "truncation_side", "split_special_tokens")


def load(cls: "type[T]", name: str | os.PathLike[str], init_inputs: Iterable[Any], kwargs: dict[str, Any]) -> "T":
    """Make a tokenizer from its files; `kwargs` hold the hub's options and what overrides the stored options.

    Raises: CheckpointError naming the file that is missing or damaged.
    """
    where = hub.pop_options(kwargs)
    if Path(name).is_file():
        return _from_one_file(cls, Path(name), init_inputs, kwargs)
    vocabulary = _vocabulary(cls, name, kwargs.keys(), where)
    found = {
        filename: path
        for filename in (CONFIG, SPECIAL, ADDED)
        if (path := hub.resolve_file(name, filename, required=False, **where)) is not None
    }
    options = _options(found, kwargs, cls.vocab_files_names)
    options = {**vocabulary, **options, **kwargs, "name_or_path": os.fspath(name)}
    _give_flags(options)
    return cls(*init_inputs, **options)


def _from_one_file(cls: "type[T]", path: Path, init_inputs: Iterable[Any], kwargs: dict[str, Any]) -> "T":
    arguments = {"tokenizer_file"} & cls.vocab_files_names.keys() if path.suffix == ".json" else set()
    if len(cls.vocab_files_names) == 1:
        arguments = set(cls.vocab_files_names)
    if not arguments:
        raise ValueError(
            f"{cls.__name__} is loaded from a folder or a hub name, and {path} is one file. "
            f"Give the folder that holds {' and '.join(cls.vocab_files_names.values())}."
        )
    return cls(*init_inputs, **{arguments.pop(): str(path)}, **kwargs, name_or_path=os.fspath(path))


def _vocabulary(
    cls: "type[PreTrainedTokenizerBase]", name: Any, given: Container[str], where: hub.HubOptions
) -> dict[str, str]:
    """The constructor's arguments for the vocabulary: tokenizer.json where the class reads it, else all other files.

    With tokenizer.json come the files that the class keeps for saving, where they are there.
    """
    names = {argument: filename for argument, filename in cls.vocab_files_names.items() if argument not in given}
    backend = names.pop("tokenizer_file", None)
    if backend is not None:
        path = hub.resolve_file(name, backend, required=not names, **where)
        if path is not None:
            kept = {argument: names[argument] for argument in cls.vocab_files_kept if argument in names}
            beside = {a: hub.resolve_file(name, filename, required=False, **where) for a, filename in kept.items()}
            return {"tokenizer_file": str(path)} | {a: str(path) for a, path in beside.items() if path is not None}
    try:
        return {argument: str(hub.resolve_file(name, filename, **where)) for argument, filename in names.items()}
    except MissingFileError as error:
        other = f", or {backend}" if backend is not None else ""
        if backend is None and hub.resolve_file(name, BACKEND, required=False, **where) is not None:
            other = f", and only {BACKEND} is there. Load it with {cls.__name__}Fast (AutoTokenizer with use_fast=True)"
        raise MissingFileError(f"{cls.__name__} needs {' and '.join(names.values())}{other}. {error}") from error


def _options(found: Mapping[str, Path], overrides: Mapping[str, Any], vocabulary: Container[str]) -> dict[str, Any]:
    """The constructor's options that the files store; where the `vocabulary` is, is found in the folder alone.

    Raises: InvalidFileError naming the file and the option of a wrong kind.
    """
    config = read_json(found[CONFIG]) if CONFIG in found else {}
    for name, (rule, is_right) in _KINDS.items():
        if name in config and not is_right(config[name]):
            raise InvalidFileError(f"{name} in {found[CONFIG]} must be {rule}; got {config[name]!r}.")
    options = {
        name: _token(value, found[CONFIG]) if name in NAMES or _is_token(value) else value
        for name, value in config.items()
        if name not in _NOT_OPTIONS and name not in vocabulary
    }
    if "added_tokens_decoder" in options:
        options["added_tokens_decoder"] = _stored_by_id(options["added_tokens_decoder"], found[CONFIG])
        return options
    if SPECIAL in found:
        roles = {name: value for name, value in read_json(found[SPECIAL]).items() if name not in overrides}
        options |= {name: _token(value, found[SPECIAL]) for name, value in roles.items()}
    if ADDED in found:
        options["added_tokens_decoder"] = _by_id(read_json(found[ADDED]), options | dict(overrides), found[ADDED])
    return options


def _is_token(value: Any) -> bool:
    return isinstance(value, dict) and value.get("__type") == "AddedToken"


def _token(value: Any, path: Path) -> Any:
    if isinstance(value, list):
        return [_token(item, path) for item in value]
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise InvalidFileError(f"A token in {path} must have its text as 'content', and one is {value!r}.")
    try:
        return from_json(value)
    except TypeError as error:
        raise InvalidFileError(f"The token {value!r} in {path} must have true or false as its flags.") from error


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _checked_ids(tokens: Iterable[tuple[Any, AddedToken]], path: Path) -> dict[int, AddedToken]:
    """Id → token.

    Raises: InvalidFileError naming the file and an id that is none, is given twice, or has no text.
    """
    by_id: dict[int, AddedToken] = {}
    for given, token in tokens:
        is_id = (isinstance(given, int) and not isinstance(given, bool)) or (isinstance(given, str) and given.isdigit())
        if not is_id or not 0 <= int(given) < MAX_ID or int(given) in by_id or not token.content:
            raise InvalidFileError(
                f"{path} must give each added token, with a text, an id of its own from 0 to {MAX_ID - 1}; "
                f"{token.content!r} has {given!r}."
            )
        by_id[int(given)] = token
    return by_id


def _stored_by_id(value: Any, path: Path) -> dict[int, AddedToken]:
    for fields in value.values():
        if not isinstance(fields, dict):
            raise InvalidFileError(f"added_tokens_decoder in {path} must map ids to tokens, and one is {fields!r}.")
    return _checked_ids(((token_id, _token(fields, path)) for token_id, fields in value.items()), path)


def _by_id(ids: Mapping[str, Any], options: Mapping[str, Any], path: Path) -> dict[int, AddedToken]:
    """added_tokens.json as id → token; special tokens have the fields that their role stores."""
    roles: dict[str, Any] = {}
    for name in NAMES:
        value = options.get(name)
        for token in value if isinstance(value, list) else [value]:
            if token is not None:
                roles[str_of(token)] = token

    def added(text: str) -> AddedToken:
        role = roles.get(text)
        if isinstance(role, AddedToken):
            return from_json(to_json(role), special=True)
        return AddedToken(text, normalized=role is None, special=role is not None)

    return _checked_ids(((token_id, added(text)) for text, token_id in ids.items()), path)


def _give_flags(options: dict[str, Any]) -> None:
    """Special tokens that are named only by their text get the fields stored with their id."""
    stored = {token.content: token for token in options.get("added_tokens_decoder", {}).values()}
    for name in NAMES:
        if isinstance(options.get(name), str) and name != LIST_NAME:
            options[name] = stored.get(options[name], options[name])


def save(
    tokenizer: "PreTrainedTokenizerBase", directory: str | os.PathLike[str], legacy: bool | None, prefix: str | None
) -> tuple[str, ...]:
    """Write the files of a tokenizer, all or none; their paths, in the order of the documentation.

    Raises: SaveError if the folder cannot be written; ValueError if there is no such form of the vocabulary.
    """
    folder, start = Path(directory), f"{prefix}-" if prefix else ""
    with staged_folder(folder) as stage:
        write_json(stage / (start + CONFIG), config_of(tokenizer))
        roles = {name: _saved_role(value) for name, value in tokenizer.special_tokens_map_extended.items()}
        write_json(stage / (start + SPECIAL), dict(sorted(roles.items())))
        names = [start + CONFIG, start + SPECIAL]
        if _saves_vocabulary(tokenizer, legacy):
            names += [Path(path).name for path in tokenizer.save_vocabulary(str(stage), filename_prefix=prefix)]
            beyond = {text: i for text, i in tokenizer.get_added_vocab().items() if i >= tokenizer.vocab_size}
            if beyond:
                write_json(stage / (start + ADDED), dict(sorted(beyond.items())))
                names.append(start + ADDED)
        if tokenizer.is_fast and legacy is not True:
            (stage / (start + BACKEND)).write_text(tokenizer.to_json(), encoding="utf-8")  # type: ignore[attr-defined]
            names.append(start + BACKEND)
    return tuple(str(folder / name) for name in names)


def _saves_vocabulary(tokenizer: "PreTrainedTokenizerBase", legacy: bool | None) -> bool:
    if not tokenizer.is_fast:
        if legacy is False:
            raise ValueError(f"{BACKEND} is written by fast tokenizers only. Leave legacy_format out.")
        return True
    possible = tokenizer.slow_tokenizer_class is not None and getattr(tokenizer, "can_save_slow_tokenizer", False)
    if legacy is True and not possible:
        raise ValueError(f"{type(tokenizer).__name__} has no vocabulary files but {BACKEND}. Leave legacy_format out.")
    return legacy is not False and possible


def _saved_role(value: Any) -> Any:
    if isinstance(value, list):
        return [_saved_role(token) for token in value]
    return to_json(value, special=False) if isinstance(value, AddedToken) else value


def config_of(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """What tokenizer_config.json stores: the options as they are now, by name."""
    config = {name: value for name, value in tokenizer.init_kwargs.items() if name not in _NOT_SAVED}
    config["model_max_length"] = tokenizer.model_max_length
    config["clean_up_tokenization_spaces"] = tokenizer.clean_up_tokenization_spaces
    for name in _LIVE:
        value = getattr(tokenizer, name)
        if name in config or value != getattr(type(tokenizer), name, False):
            config[name] = value
    for name in NAMES:
        if name in config:
            config[name] = None
    config |= tokenizer.special_tokens_map
    if config.get(LIST_NAME, ()) is None:
        config[LIST_NAME] = []
    config["added_tokens_decoder"] = {str(i): to_json(token) for i, token in tokenizer.added_tokens_decoder.items()}
    name = type(tokenizer).__name__
    config["tokenizer_class"] = name.removesuffix("Fast") if tokenizer.slow_tokenizer_class is not None else name
    return dict(sorted(config.items()))
