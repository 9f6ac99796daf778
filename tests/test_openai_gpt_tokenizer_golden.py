"""GPT's tokenizers against the golden files: ids, texts, options and files."""

import json
from functools import cache
from pathlib import Path

import pytest
from tokenizers import AddedToken

import golden_openai_gpt_tokenizers as golden
from triptych.models.openai_gpt.tokenization import OpenAIGPTTokenizer
from triptych.models.openai_gpt.tokenization_fast import OpenAIGPTTokenizerFast

FOLDER = Path(__file__).parent / "golden" / "openai_gpt_tokenizers"
FILES = (FOLDER / "vocab.json", FOLDER / "merges.txt")


def read(name):
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


@cache
def make(setup, fast, pre_tokenizer="basic"):
    """The tokenizer of a row of SETUPS, with the small vocabulary."""
    cls = OpenAIGPTTokenizerFast if fast else OpenAIGPTTokenizer
    return golden.build(cls, AddedToken, setup, *FILES, pre_tokenizer=pre_tokenizer)


@pytest.mark.parametrize("setup", ["plain", "added"])
@pytest.mark.parametrize(
    ("file", "fast", "pre_tokenizer"),
    [("basic.json", False, "basic"), ("basic.json", True, "basic"), ("spacy.json", False, "spacy")],
    ids=["slow basic", "fast", "slow spacy"],
)
def test_ids_and_decoded_texts_are_those_of_the_reference(setup, file, fast, pre_tokenizer):
    tokenizer, key = make(setup, fast, pre_tokenizer), f"{setup} fast" if fast else setup
    rows = read(file)
    assert len(rows) > 150
    for row in rows:
        expected = row[key]
        assert tokenizer(row["text"], verbose=False)["input_ids"] == expected["ids"], row["text"]
        if "decoded" in expected:
            assert tokenizer.decode(expected["ids"]) == expected["decoded"], row["text"]
            skipped = tokenizer.decode(expected["ids"], skip_special_tokens=True, clean_up_tokenization_spaces=False)
            assert skipped == expected["skipped"], row["text"]


@pytest.mark.parametrize("fast", [False, True], ids=["slow", "fast"])
def test_every_combination_of_options_gives_the_columns_of_the_reference(fast):
    calls = [call for call in read("calls.json") if call["fast"] is fast]
    assert len(calls) > 50
    for call in calls:
        tokenizer = make(call["setup"], fast)
        if "refused" in call:
            with pytest.raises((ValueError, TypeError, NotImplementedError)):
                golden.outcome(tokenizer, call)
        else:
            assert golden.outcome(tokenizer, call) == call["outcome"], call


@pytest.mark.parametrize("saved", ["saved_slow", "saved_fast"])
def test_a_folder_saved_by_the_reference_gives_its_ids_slow(saved, tmp_path):
    tokenizer = OpenAIGPTTokenizer.from_pretrained(FOLDER / saved, pre_tokenizer="basic")
    tokenizer.save_pretrained(tmp_path)
    again = OpenAIGPTTokenizer.from_pretrained(tmp_path)
    for row in read(f"{saved}.json"):
        assert tokenizer(row["text"])["input_ids"] == row["ids"], row["text"]
        assert again(row["text"])["input_ids"] == row["ids"], row["text"]


def test_a_folder_saved_by_the_reference_gives_its_ids_fast(tmp_path):
    tokenizer = OpenAIGPTTokenizerFast.from_pretrained(FOLDER / "saved_fast")
    tokenizer.save_pretrained(tmp_path)
    again = OpenAIGPTTokenizerFast.from_pretrained(tmp_path)
    for row in read("basic.json"):
        assert tokenizer(row["text"])["input_ids"] == row["added fast"]["ids"], row["text"]
        assert again(row["text"])["input_ids"] == row["added fast"]["ids"], row["text"]


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
@pytest.mark.parametrize("saved", ["saved_slow", "saved_fast"])
def test_a_tokenizer_saves_the_settings_that_the_reference_saved(saved, name, tmp_path):
    make.__wrapped__("added", saved == "saved_fast").save_pretrained(tmp_path)
    written = json.loads((tmp_path / name).read_text(encoding="utf-8"))
    expected = read(f"{saved}/{name}")
    assert written == (expected | {"pre_tokenizer": "basic"} if name == "tokenizer_config.json" else expected)
