"""Text that follows a grammar: which tokens may come next, for a JSON schema or a regular expression.

llguidance (MIT, https://github.com/guidance-ai/llguidance) walks the grammar over the bytes of the tokens. This module
tells it those bytes for the three kinds of vocabulary, and keeps one state for each text that is being written. A
state belongs to the ids themselves, so rows may be reordered, repeated or rolled back between steps.

Shapes: B rows, V vocabulary. No framework is imported here.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from triptych import frameworks
from triptych.tokenization.bpe import alphabet_bytes

Ids = tuple[int, ...]

# Without a limit, a small model writes white space between two keys for ever.
JSON_STYLE = {"whitespace_pattern": " ?"}

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_CONTROLS = frozenset({"<s>", "</s>", "<unk>", "<pad>"})  # of sentencepiece: ids without text


@dataclass(frozen=True)
class Spelling:
    """How a kind of vocabulary writes text: the bytes of a token, and the spaces that decoding drops at the edges."""

    is_of: Callable[[Mapping[str, int]], bool]
    bytes_of: Callable[[str], bytes]
    before: str = ""
    after: str = ""


def _byte_level(token: str) -> bytes:
    known = alphabet_bytes()
    return bytes(known[char] for char in token) if all(char in known for char in token) else token.encode()


def _word_ends(token: str) -> bytes:
    return (token[: -len("</w>")] + " " if token.endswith("</w>") else token).encode()


def _sentencepiece(token: str) -> bytes:
    if found := _BYTE.fullmatch(token):
        return bytes([int(found[1], 16)])
    return b"" if token in _CONTROLS else token.replace("▁", " ").encode()


PLAIN = Spelling(lambda vocabulary: True, str.encode)
SPELLINGS = (  # the first that fits; the regular expressions of the edges are what decoding takes away
    Spelling(lambda vocabulary: "Ġ" in vocabulary, _byte_level),  # GPT-2
    Spelling(lambda vocabulary: any(map(_ends_word, vocabulary)), _word_ends, after=" ?"),  # OpenAI GPT
    Spelling(lambda vocabulary: any("▁" in token for token in vocabulary), _sentencepiece, before=" "),  # Llama
)


def _ends_word(token: str) -> bool:
    return token.endswith("</w>")


class Vocabulary:
    """A tokenizer as llguidance sees it: each id's bytes, none for ids that are no text.

    The first `width` tokens are the tokenizer's.

    Raises: ValueError for a tokenizer of another kind; ImportError when llguidance is missing.
    """

    is_tokenizer_wrapper = True  # what llguidance asks for, together with the next four
    bos_token_id = None
    special_token_ids: Sequence[int] = ()

    def __init__(self, tokenizer: Any, ends: Ids) -> None:
        library = frameworks.load("llguidance")
        tokens: dict[str, int] = tokenizer.get_vocab()
        spelling = next((each for each in SPELLINGS if each.is_of(tokens)), None)
        if spelling is None:
            raise ValueError(
                f"A grammar needs a byte-level, a </w> or a sentencepiece vocabulary; that of "
                f"{type(tokenizer).__name__} is none of them. Use prefix_allowed_tokens_fn."
            )
        self.spelling = spelling
        silent = set(tokenizer.all_special_ids) | set(ends)
        self.tokens = [b""] * (max(*tokens.values(), *ends) + 1)
        for token, token_id in tokens.items():
            if token_id not in silent:
                self.tokens[token_id] = self.spelling.bytes_of(token)
        self.width = len(self.tokens)
        # llguidance passes over bytes that no token has; so each gets one, which `Grammar` never allows.
        self.tokens += sorted({bytes([byte]) for byte in range(256)} - set(self.tokens))
        self.eos_token_id = ends[0]
        self.engine = library.LLTokenizer(self, n_vocab=len(self.tokens), eos_token=list(ends))

    def __call__(self, text: bytes | str) -> list[int]:
        """Ids of what the grammar leaves no choice about: always the longest token that fits."""
        ids: list[int] = self.engine.greedy_tokenize(text if isinstance(text, str) else text.decode())
        return ids


_vocabularies: WeakKeyDictionary[Any, dict[tuple[int, Ids], Vocabulary]] = WeakKeyDictionary()


def vocabulary_of(tokenizer: Any, ends: Ids) -> Vocabulary:
    """The tokenizer's `Vocabulary`, made once (about 0.1 s for 50,000 tokens)."""
    known = _vocabularies.setdefault(tokenizer, {})
    key = (len(tokenizer), ends)
    if key not in known:
        known[key] = Vocabulary(tokenizer, ends)
    return known[key]


# -- grammars --------------------------------------------------------------------------------------------------------


def schema_text(schema: Any) -> str:
    """A JSON schema as text; given as text, as a dict or a bool, or as a pydantic model class.

    Raises: ValueError when the text is not JSON; TypeError for anything else.
    """
    if hasattr(schema, "model_json_schema"):
        schema = schema.model_json_schema()
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise ValueError(f"json_schema must be JSON: {error}. A file is to be read first.") from error
    if not isinstance(schema, Mapping | bool):
        raise TypeError(
            f"json_schema must be a JSON object as text or dict, or a pydantic model class; got {schema!r}."
        )
    return json.dumps(schema if isinstance(schema, bool) else dict(schema))


def _json_grammar(schema: Any, spelling: Spelling) -> str:
    asked = json.loads(schema_text(schema))
    if asked is True:
        asked = {}
    if asked is False:
        raise ValueError("json_schema is False, which no text follows. Pass a schema that allows something.")
    asked["x-guidance"] = JSON_STYLE | asked.get("x-guidance", {})
    before, after = (f" /{edge}/ " if edge else " " for edge in (spelling.before, spelling.after))
    return _from_lark(f"start:{before}%json {json.dumps(asked)}{after}")


def _regex_grammar(pattern: Any, spelling: Spelling) -> str:
    if not isinstance(pattern, str):
        raise TypeError(f"regex must be a text; got {pattern!r}. For a compiled one, pass its .pattern.")
    bare = pattern.removeprefix("^")  # the whole text is matched, so the outer anchors say nothing
    if bare.endswith("$") and (len(bare) - len(bare[:-1].rstrip("\\"))) % 2 == 1:
        bare = bare[:-1]
    library = frameworks.load("llguidance")
    _check(library.LLMatcher.grammar_from_regex(bare), f"regex {pattern!r}")  # alone: a stray ) must not close ours
    whole: str = library.LLMatcher.grammar_from_regex(f"{spelling.before}(?:{bare}){spelling.after}")
    return whole


def _from_lark(lark: str) -> str:
    grammar: str = frameworks.load("llguidance").LLMatcher.grammar_from_lark(lark)
    return grammar


KINDS: dict[str, Callable[[Any, Spelling], str]] = {"json_schema": _json_grammar, "regex": _regex_grammar}


def check(json_schema: Any = None, regex: str | None = None) -> None:
    """Refuse a grammar that cannot be read, before there is a model.

    Raises: ValueError or TypeError saying why; ImportError when llguidance is missing.
    """
    kind, source = _the_one({"json_schema": json_schema, "regex": regex})
    _check(KINDS[kind](source, PLAIN), kind)


def _the_one(asked: Mapping[str, Any]) -> tuple[str, Any]:
    given = {name: value for name, value in asked.items() if value is not None}
    if len(given) != 1:
        raise ValueError(f"Pass exactly one of {' and '.join(KINDS)}; got {' and '.join(given) or 'neither'}.")
    return next(iter(given.items()))


def _check(grammar: str, what: str) -> None:
    """Refuse a grammar that llguidance cannot read.

    Raises: ValueError with its reason.
    """
    failed, messages = frameworks.load("llguidance").LLMatcher.validate_grammar_with_warnings(grammar)
    if failed:
        reason = _reason(messages[0])
        raise ValueError(
            f"The {what} must be one that can be followed token by token; it cannot: {reason}. "
            "See docs/grammars.md for what is understood."
        )


def _reason(message: str) -> str:
    """The gist of llguidance's message, which shows the grammar and points at a place in it."""
    lines = [line.strip() for line in message.splitlines()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (told or [lines[0].removesuffix(":")])[0].rstrip(".")


# -- states ----------------------------------------------------------------------------------------------------------


class Grammar:
    """One grammar over one vocabulary, and where in it each text stands.

    Exactly one of `json_schema` and `regex` is given; `ends` are the ids that end a text.
    Raises: ValueError for a grammar that cannot be read, TypeError for one of a wrong type, ImportError when
        llguidance is missing.
    """

    def __init__(self, tokenizer: Any, ends: Ids, **asked: Any) -> None:
        kind, source = _the_one(asked)
        vocabulary = vocabulary_of(tokenizer, ends)
        grammar = KINDS[kind](source, vocabulary.spelling)
        _check(grammar, kind)
        self._library = frameworks.load("llguidance")
        frameworks.load("llguidance.numpy")
        self._ends = ends
        self._root = self._library.LLMatcher(vocabulary.engine, grammar, log_level=0)
        if self._root.is_error():  # not found by the check, which does not build everything
            raise ValueError(f"The {kind} cannot be followed: {_reason(self._root.get_error())}. Simplify it.")
        self.width, self._all = vocabulary.width, len(vocabulary.tokens)
        self._states: OrderedDict[Ids, Any] = OrderedDict()
        self._executor: Any = None

    def allowed(self, texts: Sequence[Ids]) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Which tokens may follow each text: one bit for each of `width`, the lowest first, in words of 32; (B, …).

        A text that has ended, or left the grammar because another option forced it to, is only followed by an end.
        Bits behind the first `width` say nothing.
        Raises: ValueError when nothing can follow: the vocabulary lacks a character that the grammar asks for.
        """
        texts = [self._up_to_end(ids) for ids in texts]
        places = {ids: number for number, ids in enumerate(dict.fromkeys(texts))}
        states = [self._state(ids) for ids in places]
        bits = np.zeros((len(places), (self._all + 31) // 32), dtype=np.int32)
        work = [(state, row) for row, state in enumerate(states) if state is not None]
        self._fill(work, bits)
        for state, row in work:
            if state.is_error() or not np.unpackbits(bits[row].view(np.uint8), bitorder="little")[: self.width].any():
                raise ValueError(
                    f"The grammar asks for {self._wanted(state)} next, which no token of the vocabulary writes. "
                    "Allow other characters, or use a tokenizer that has these."
                )
        for row, state in enumerate(states):
            if state is None:
                for end in self._ends:
                    bits[row, end // 32] |= np.uint32(1 << end % 32).astype(np.int32)
        while len(self._states) > 4 * len(texts) + 64:  # rows of this step, and some that a roll-back may want
            self._states.popitem(last=False)
        return bits[[places[ids] for ids in texts]]

    def is_complete(self, ids: Ids) -> bool:
        """Whether the text may end here."""
        state = self._state(self._up_to_end(ids))
        return state is not None and bool(state.is_accepting())

    def _wanted(self, state: Any) -> str:
        forced = "" if state.is_error() else state.compute_ff_bytes().decode("utf-8", "replace")
        return repr(forced) if forced else "characters"

    def _fill(self, work: list[tuple[Any, int]], bits: np.ndarray[Any, np.dtype[np.int32]]) -> None:
        if len(work) == 1:
            self._library.numpy.fill_next_token_bitmask(work[0][0], bits, work[0][1])
        elif work:
            self._executor = self._executor or self._library.LLExecutor()
            self._library.numpy.fill_next_token_bitmask_par(self._executor, work, bits)

    def _up_to_end(self, ids: Ids) -> Ids:
        stop = next((place for place, token in enumerate(ids) if token in self._ends), None)
        return ids if stop is None else ids[: stop + 1]

    def _state(self, ids: Ids) -> Any:
        """The state behind a text, gone on from the longest beginning that is known; None outside the grammar."""
        for known in range(len(ids), -1, -1):
            if ids[:known] in self._states or not known:
                break
        state = self._states.get(ids[:known]) if known else self._root
        if known < len(ids) and state is not None:
            state = state.deep_copy()
            if state.try_consume_tokens(list(ids[known:])) < len(ids) - known:
                state = None
        if ids:
            self._states[ids] = state
            self._states.move_to_end(ids)
        return state
