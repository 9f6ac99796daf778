"""The tokens that were added to a vocabulary, and how they are found in a text."""

from collections.abc import Iterator

import regex
from tokenizers import AddedToken

# What counts as inside a word for `single_word`, as the fast tokenizers see it.
_WORD_CHARACTER = regex.compile(r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]")
_SPACE_BEFORE = regex.compile(r"(?r)\s*")  # read from right to left
_SPACE_AFTER = regex.compile(r"\s*")


class AddedTokens:
    """Id ↔ token, and the split of a text at these tokens."""

    def __init__(self) -> None:
        self.by_id: dict[int, AddedToken] = {}
        self.ids: dict[str, int] = {}
        self._pattern: regex.Pattern[str] | None = None

    def __len__(self) -> int:
        return len(self.by_id)

    def put(self, token_id: int, token: AddedToken) -> None:
        """Set or replace a token."""
        old = self.by_id.get(token_id)
        if old is not None:
            self.ids.pop(old.content, None)
        self.by_id[token_id] = token
        self.ids[token.content] = token_id
        self._pattern = None

    def get(self, text: str) -> AddedToken | None:
        """The added token with this text."""
        token_id = self.ids.get(text)
        return None if token_id is None else self.by_id[token_id]

    def sorted(self) -> dict[int, AddedToken]:
        """Id → token, by id."""
        return {token_id: self.by_id[token_id] for token_id in sorted(self.by_id)}

    def split(self, text: str) -> Iterator[tuple[str, bool]]:
        """The pieces of a text, each with whether it is an added token.

        The leftmost token wins, and of those that start together the longest. White space that a token claims
        (`lstrip`, `rstrip`) goes with it.
        """
        end = 0
        for found in self._search(text):
            token = self.by_id[self.ids[found.group()]]
            start, stop = found.span()
            if start < end or (token.single_word and not _stands_alone(text, start, stop)):
                continue
            if token.lstrip:
                start = _edge(_SPACE_BEFORE, text, end, start)[0]
            if token.rstrip:
                stop = _edge(_SPACE_AFTER, text, stop, len(text))[1]
            if start > end:
                yield text[end:start], False
            yield token.content, True
            end = stop
        if end < len(text):
            yield text[end:], False

    def _search(self, text: str) -> Iterator["regex.Match[str]"]:
        if self._pattern is None:
            longest_first = sorted(filter(None, self.ids), key=len, reverse=True)
            self._pattern = regex.compile("|".join(map(regex.escape, longest_first)) or r"(?!)")
        found: Iterator[regex.Match[str]] = self._pattern.finditer(text)
        return found


def _edge(space: "regex.Pattern[str]", text: str, start: int, stop: int) -> tuple[int, int]:
    found = space.match(text, start, stop)
    return (stop, start) if found is None else found.span()


def _stands_alone(text: str, start: int, stop: int) -> bool:
    before = text[start - 1 : start] if start else ""
    return not (_WORD_CHARACTER.match(before) or _WORD_CHARACTER.match(text[stop : stop + 1]))
