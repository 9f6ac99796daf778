"""The small tokenizer and the processors that the tests of Fuyu share."""

from functools import cache
from pathlib import Path

import golden_fuyu_processing as golden
from triptych import FuyuImageProcessor, FuyuProcessor, PreTrainedTokenizerFast

FOLDER = Path(__file__).parent / "golden" / "fuyu_processing"


@cache
def tokenizer():
    """The golden files' tokenizer."""
    return PreTrainedTokenizerFast.from_pretrained(FOLDER / "tokenizer")


def processor(name="small"):
    """A processor of the golden script's table."""
    return FuyuProcessor(FuyuImageProcessor(**golden.PROCESSORS[name]), tokenizer())


def tokens(ids):
    """Ids as tokens."""
    return tokenizer().convert_ids_to_tokens(ids)
