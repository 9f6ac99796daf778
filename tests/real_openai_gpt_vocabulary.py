"""GPT's real vocabulary against the golden files; not collected by itself, as the vocabulary is no part of the project.

    GPT1_VOCABULARY=FOLDER pytest tests/real_openai_gpt_vocabulary.py

FOLDER holds encoder_bpe_40000.json and vocab_40000.bpe of openai/finetune-transformer-lm, folder model/.
"""

import json
import os
from pathlib import Path

import pytest

from triptych.models.openai_gpt.conversion import ENCODER, MERGES
from triptych.models.openai_gpt.tokenization import OpenAIGPTTokenizer
from triptych.models.openai_gpt.tokenization_fast import OpenAIGPTTokenizerFast

GOLDEN = Path(__file__).parent / "golden" / "openai_gpt_tokenizers"
FILES = [Path(os.environ["GPT1_VOCABULARY"], name) for name in (ENCODER, MERGES)]


@pytest.mark.parametrize("name", ["basic", "spacy"])
def test_the_real_vocabulary_gives_the_ids_of_the_reference(name):
    tokenizer = OpenAIGPTTokenizer(*FILES, pre_tokenizer=name)
    assert len(tokenizer) == 40478
    for row in json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8")):
        assert tokenizer(row["text"]).input_ids == row["real"]["ids"], row["text"]


def test_slow_and_fast_agree_on_the_real_vocabulary():
    slow, fast = OpenAIGPTTokenizer(*FILES, pre_tokenizer="basic"), OpenAIGPTTokenizerFast(*FILES)
    assert slow.get_vocab() == fast.get_vocab()
    text = "The quick brown fox jumped over the lazy dog; it didn't mind."
    assert slow(text).input_ids == fast(text).input_ids
