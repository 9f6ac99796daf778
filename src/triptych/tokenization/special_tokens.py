"""The tokens that mean something to a model (`pad_token`, `eos_token`, …) and the ways to set, read and add them."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken as AddedToken  # a public name of this package too

logger = logging.getLogger(__name__)

# In the order in which they are listed and get their ids.
SINGLE_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LIST_NAME = "additional_special_tokens"
NAMES = (*SINGLE_NAMES, LIST_NAME)

# What a file stores of an added token.
FIELDS = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")

Token = str | AddedToken


def to_json(token: AddedToken, *, special: bool = True) -> dict[str, Any]:
    """The fields of a token, as files store them; without `special` where the file says it otherwise."""
    return {name: getattr(token, name) for name in FIELDS if special or name != "special"}


def from_json(value: Mapping[str, Any], **overrides: Any) -> AddedToken:
    """A token from its stored fields; fields of other versions (such as `__type`) are ignored."""
    return AddedToken(**{name: value[name] for name in FIELDS if name in value} | overrides)


def special(token: Token, *, normalized: bool = False) -> AddedToken:
    """A token marked as special. A plain string matches exactly, without normalisation unless told otherwise."""
    if isinstance(token, str):
        return AddedToken(token, normalized=normalized, special=True)
    return from_json(to_json(token), special=True)


class SpecialToken:
    """`tokenizer.pad_token` and its like: reads as a str or None, set by a str, an AddedToken or None."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, tokenizer: "SpecialTokensMixin | None", owner: type) -> Any:
        if tokenizer is None:
            return self
        token = tokenizer._special_tokens.get(self.name)
        if token is None and tokenizer.verbose:
            logger.error("Using %s, but it is not set yet.", self.name)
        return None if token is None else str_of(token)

    def __set__(self, tokenizer: "SpecialTokensMixin", value: Token | None) -> None:
        if value is not None and not isinstance(value, str | AddedToken):
            raise ValueError(f"{self.name} must be a str, an AddedToken or None, not {value!r}. Pass the token's text.")
        tokenizer._special_tokens[self.name] = value


class SpecialTokenId:
    """`tokenizer.pad_token_id` and its like: the id of the token, or None while the token is not set."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.token_name = name.removesuffix("_id")

    def __get__(self, tokenizer: "SpecialTokensMixin | None", owner: type) -> Any:
        if tokenizer is None:
            return self
        token = tokenizer._special_tokens.get(self.token_name)
        return None if token is None else tokenizer.convert_tokens_to_ids(str_of(token))

    def __set__(self, tokenizer: "SpecialTokensMixin", value: int | None) -> None:
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise ValueError(f"{self.name} must be an int or None, not {value!r}. Pass a token id.")
        token = None if value is None else tokenizer.convert_ids_to_tokens(value)
        if value is not None and token is None:
            raise ValueError(f"{self.name} must be an id of the vocabulary, and {value} has no token.")
        setattr(tokenizer, self.token_name, token)


def str_of(token: Token) -> str:
    """The text of a token."""
    return token if isinstance(token, str) else str(token.content)


class SpecialTokensMixin:
    """Attributes for the special tokens, and `add_special_tokens` / `add_tokens`.

    Setting an attribute says which token plays the role; only `add_special_tokens` puts a new token into the
    vocabulary (then resize the model's embeddings to `len(tokenizer)`).
    """

    bos_token = SpecialToken()
    eos_token = SpecialToken()
    unk_token = SpecialToken()
    sep_token = SpecialToken()
    pad_token = SpecialToken()
    cls_token = SpecialToken()
    mask_token = SpecialToken()
    bos_token_id = SpecialTokenId()
    eos_token_id = SpecialTokenId()
    unk_token_id = SpecialTokenId()
    sep_token_id = SpecialTokenId()
    pad_token_id = SpecialTokenId()
    cls_token_id = SpecialTokenId()
    mask_token_id = SpecialTokenId()

    def __init__(self, verbose: bool = False, **kwargs: Any) -> None:
        self._special_tokens: dict[str, Token | None] = {}
        self._additional: list[Token] = []
        self._pad_token_type_id = kwargs.get("pad_token_type_id", 0)
        self.verbose = verbose
        for name in NAMES:
            if kwargs.get(name) is not None:
                self._set_special(name, kwargs[name], TypeError)

    def _set_special(self, name: str, value: Any, error: type[Exception]) -> None:
        tokens = value if name == LIST_NAME and isinstance(value, list | tuple) else [value]
        if name == LIST_NAME and tokens is not value:
            raise error(f"{name} must be a list of str or AddedToken, not {value!r}.")
        for token in tokens:
            if not isinstance(token, str | AddedToken):
                raise error(f"{name} must be a str or an AddedToken, not {token!r}. Pass the token's text.")
        setattr(self, name, value)

    # What the tokenizer gives.

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        raise NotImplementedError

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        raise NotImplementedError

    def _add_tokens(self, new_tokens: Sequence[Token], special_tokens: bool = False) -> int:
        raise NotImplementedError

    # Reading.

    @property
    def additional_special_tokens(self) -> list[str]:
        """Special tokens that have no role of their own."""
        return [str_of(token) for token in self._additional]

    @additional_special_tokens.setter
    def additional_special_tokens(self, value: Iterable[Token] | None) -> None:
        self._additional = list(value or ())

    @property
    def additional_special_tokens_ids(self) -> list[int]:
        """The ids of `additional_special_tokens`; set them to choose tokens that the vocabulary has."""
        ids: list[int] = self.convert_tokens_to_ids(self.additional_special_tokens)
        return ids

    @additional_special_tokens_ids.setter
    def additional_special_tokens_ids(self, values: Iterable[int]) -> None:
        self._additional = [self.convert_ids_to_tokens(value) for value in values]

    @property
    def pad_token_type_id(self) -> int:
        """What `token_type_ids` hold at padding."""
        return int(self._pad_token_type_id)

    @property
    def special_tokens_map_extended(self) -> dict[str, Any]:
        """Role → token as it was set (str or AddedToken), for the roles that are set."""
        tokens: dict[str, Any] = {name: self._special_tokens.get(name) for name in SINGLE_NAMES}
        tokens[LIST_NAME] = list(self._additional)
        return {name: value for name, value in tokens.items() if value}

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """Role → text of the token, for the roles that are set."""
        return {
            name: [str_of(token) for token in value] if isinstance(value, list) else str_of(value)
            for name, value in self.special_tokens_map_extended.items()
        }

    @property
    def all_special_tokens_extended(self) -> list[Token]:
        """Every special token once, as it was set."""
        tokens: dict[str, Token] = {}
        for value in self.special_tokens_map_extended.values():
            for token in value if isinstance(value, list) else [value]:
                tokens.setdefault(str_of(token), token)
        return list(tokens.values())

    @property
    def all_special_tokens(self) -> list[str]:
        """The text of every special token, once."""
        return [str_of(token) for token in self.all_special_tokens_extended]

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        ids: list[int] = self.convert_tokens_to_ids(self.all_special_tokens)
        return ids

    # Adding.

    def add_special_tokens(
        self, special_tokens_dict: Mapping[str, Any], replace_additional_special_tokens: bool = True
    ) -> int:
        """Give tokens their roles and put those that are new into the vocabulary.

        Returns: how many tokens the vocabulary gained; then call `model.resize_token_embeddings(len(tokenizer))`.
        Raises: ValueError if a key is no role, or a token is neither str nor AddedToken.
        """
        for name, value in special_tokens_dict.items():
            if name not in NAMES:
                raise ValueError(f"{name!r} is no special token. Use one of {', '.join(NAMES)}.")
            if name == LIST_NAME:
                value = [special(token) if isinstance(token, str) else token for token in self._checked_list(value)]
                if not replace_additional_special_tokens:
                    known = {str_of(token) for token in self._additional}
                    value = [*self._additional, *(token for token in value if str_of(token) not in known)]
            elif isinstance(value, str):
                value = special(value)
            self._set_special(name, value, ValueError)
        added = [
            token
            for name in special_tokens_dict
            for token in (self._additional if name == LIST_NAME else [self._special_tokens[name]])
            if token is not None
        ]
        return self.add_tokens(added, special_tokens=True)

    @staticmethod
    def _checked_list(value: Any) -> list[Token]:
        if not isinstance(value, list | tuple) or not all(isinstance(token, str | AddedToken) for token in value):
            raise ValueError(f"{LIST_NAME} must be a list of str or AddedToken, not {value!r}.")
        return list(value)

    def add_tokens(self, new_tokens: Token | Sequence[Token], special_tokens: bool = False) -> int:
        """Put tokens at the end of the vocabulary; they are found in the text before anything else is.

        `special_tokens=True` marks them as special: `decode(skip_special_tokens=True)` leaves them out.

        Returns: how many tokens the vocabulary gained.
        Raises: TypeError if a token is neither str nor AddedToken.
        """
        tokens = [new_tokens] if isinstance(new_tokens, str | AddedToken) else list(new_tokens or ())
        for token in tokens:
            if not isinstance(token, str | AddedToken):
                raise TypeError(f"A token to add must be a str or an AddedToken, not {token!r}.")
        return self._add_tokens(tokens, special_tokens=special_tokens) if tokens else 0

    def sanitize_special_tokens(self) -> int:
        """Put every special token that the vocabulary lacks into it; returns how many that were."""
        return self.add_tokens(self.all_special_tokens_extended, special_tokens=True)
