"""Text → words for GPT's byte-pair encoding, in the two ways that there are.

"spacy" is how the model was trained: ftfy repairs the text, spaCy's English rules split it (Radford et al., 2018,
section 4.1). "basic" needs neither library: BERT's basic tokenizer (Devlin et al., 2018, arXiv:1810.04805), which also
drops accents and splits at every punctuation mark. Their ids differ, on "don't" for one.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import cache

from triptych import frameworks

Split = Callable[[str], list[str]]

SPACY_LIBRARIES = ("ftfy", "spacy")

# What ftfy leaves and the vocabulary lacks.
REPLACED = str.maketrans({"—": "-", "–": "-", "―": "-", "…": "...", "´": "'"})
RUN_OF_ONE_MARK = re.compile(r"""([-~!";?+,)(\\/*\[\]}{|_])\1*""")
OTHER_SPACE = re.compile(r"[^\S\n]+")
AROUND_LINE_BREAKS = re.compile(r" ?\n\s*")

# Ideographs of Chinese; each is a word of its own.
IDEOGRAPHS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)


def standardise(text: str) -> str:
    """Spaces around marks and line breaks, plain dashes and dots, no other white space in a row."""
    text = RUN_OF_ONE_MARK.sub(r" \g<0> ", text.translate(REPLACED))
    # Runs of spaces become one first: looking for a line break behind each of them would take time squared.
    return AROUND_LINE_BREAKS.sub(" \n ", OTHER_SPACE.sub(" ", text)).strip()


@cache
def spacy_split() -> Split:
    """Make the splitter of the trained model; a line break is a word.

    Raises: ImportError naming the extra to install when ftfy or spaCy is missing.
    """
    fix_text = frameworks.load("ftfy").fix_text
    words_of = frameworks.load("spacy").blank("en").tokenizer

    def split(text: str) -> list[str]:
        words = (token.text.lower() for token in words_of(standardise(fix_text(text))))
        return ["\n" if word == "\n " else word for word in words]

    return split


class _Table(dict[int, str | None]):
    """Code point → what `str.translate` puts in its place, worked out when it first comes up."""

    def __init__(self, replacement: Callable[[str], str | None]) -> None:
        self.replacement = replacement

    def __missing__(self, code: int) -> str | None:
        self[code] = replaced = self.replacement(chr(code))
        return replaced


def _cleaned(char: str) -> str | None:
    """White space as a space, ideographs apart; control, format, private and unassigned characters go."""
    if char in "\t\n\r" or unicodedata.category(char) == "Zs":
        return " "
    if char == "\ufffd" or unicodedata.category(char).startswith("C"):
        return None
    return f" {char} " if any(low <= ord(char) <= high for low, high in IDEOGRAPHS) else char


def _parted(char: str) -> str | None:
    """Accents go; punctuation, and any symbol of ASCII, is a word of its own."""
    category = unicodedata.category(char)
    if category == "Mn":
        return None
    is_mark = category.startswith("P") or (char.isascii() and category.startswith("S"))
    return f" {char} " if is_mark else char


CLEANED, PARTED = _Table(_cleaned), _Table(_parted)


def basic_split(text: str) -> list[str]:
    """Split as BERT does: at white space and punctuation, lower-case, without accents."""
    text = unicodedata.normalize("NFC", text.translate(CLEANED))
    return unicodedata.normalize("NFD", text.lower()).translate(PARTED).split()


PRE_TOKENIZERS: dict[str, Callable[[], Split]] = {"spacy": spacy_split, "basic": lambda: basic_split}


def choose(wanted: str | None) -> str:
    """The pre-tokenizer to use: the one wanted, else "spacy" where its libraries are, else "basic".

    Raises: ValueError for any other name; ImportError saying what to install when "spacy" is wanted and cannot be had.
    """
    absent = [name for name in SPACY_LIBRARIES if not frameworks.is_available(name)]
    if wanted is None:
        return "basic" if absent else "spacy"
    if wanted not in PRE_TOKENIZERS:
        raise ValueError(f"pre_tokenizer must be one of {', '.join(PRE_TOKENIZERS)}, not {wanted!r}.")
    if wanted == "spacy" and absent:
        raise ImportError(
            f"The pre-tokenizer 'spacy' needs {' and '.join(absent)}, which this machine lacks. Run: pip install "
            "\"triptych[openai-gpt]\", or pass pre_tokenizer='basic', whose ids differ in places.",
            name=absent[0],
        )
    return wanted
