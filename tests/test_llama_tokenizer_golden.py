"""Llama's tokenizers against the golden files: ids, texts, options and files."""

import json
from functools import cache
from pathlib import Path

import pytest
from tokenizers import AddedToken

import golden_llama_tokenizers as golden
from golden_tokenizers import signatures
from triptych.models.llama.tokenization import LlamaTokenizer
from triptych.models.llama.tokenization_fast import LlamaTokenizerFast

FOLDER = Path(__file__).parent / "golden" / "llama_tokenizers"


def read(name):
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


@cache
def make(setup, fast):
    """The tokenizer of a row of SETUPS."""
    return golden.build(LlamaTokenizerFast if fast else LlamaTokenizer, AddedToken, setup, FOLDER)


@pytest.mark.parametrize("kind", ["slow", "fast"])
@pytest.mark.parametrize("setup", [name for name in golden.SETUPS if name not in golden.CALLS_ONLY])
def test_ids_offsets_and_decoded_texts_are_those_of_the_reference(setup, kind):
    tokenizer = make(setup, kind == "fast")
    rows = read("texts.json") + (read("characters.json") if setup in golden.MODELS else [])
    assert len(rows) > 70
    for text, made in golden.made_by(rows, f"{setup} {kind}"):
        assert golden.made_of(tokenizer, text) == made, text


@pytest.mark.parametrize("fast", [False, True], ids=["slow", "fast"])
def test_every_combination_of_options_gives_the_columns_of_the_reference(fast):
    calls = [call for call in read("calls.json") if call["fast"] is fast]
    assert len(calls) > 40
    for call in calls:
        tokenizer = make(call["setup"], fast)
        if "refused" in call:
            with pytest.raises((ValueError, TypeError, NotImplementedError)):
                golden.outcome(tokenizer, call)
        else:
            assert golden.outcome(tokenizer, call) == call["outcome"], call


@pytest.mark.parametrize("kind", ["slow", "fast"])
@pytest.mark.parametrize("setup", golden.SETUPS)
def test_sizes_special_tokens_rows_and_options_are_those_of_the_reference(setup, kind):
    tokenizer = golden.build(LlamaTokenizerFast if kind == "fast" else LlamaTokenizer, AddedToken, setup, FOLDER)
    assert golden.facts_of(tokenizer) == dict(read("facts.json"))[f"{setup} {kind}"]


@pytest.mark.parametrize("cls", [LlamaTokenizer, LlamaTokenizerFast])
def test_every_public_method_has_the_parameters_and_defaults_of_the_reference(cls):
    expected = dict(read("signatures.json"))[cls.__name__]
    assert len(expected) > 15
    mine = signatures([cls])[cls.__name__]
    if cls is LlamaTokenizer:
        assert [name for name, _ in mine.pop("tokenize")] == ["self", "text", "pair", "add_special_tokens", "kwargs"]
        del expected["tokenize"]
    assert {name: mine.get(name) for name in expected} == expected


# Files.


@pytest.mark.parametrize("saved", ["saved_bpe", "saved_unigram"])
def test_a_converted_model_is_written_as_the_reference_writes_it(saved):
    state = json.loads(make(*golden.SAVED[saved]).to_json())
    assert state.pop("model").items() >= (expected := read(f"{saved}/tokenizer.json")).pop("model").items()
    assert state == expected
    if saved == "saved_unigram":  # merges have changed their form since
        assert make(*golden.SAVED[saved]).to_json() == (FOLDER / saved / "tokenizer.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("saved", golden.SAVED)
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
def test_a_tokenizer_saves_the_settings_that_the_reference_saved(saved, name, tmp_path):
    setup, fast = golden.SAVED[saved]
    golden.build(LlamaTokenizerFast if fast else LlamaTokenizer, AddedToken, setup, FOLDER).save_pretrained(tmp_path)
    assert (tmp_path / name).exists() == (FOLDER / saved / name).exists()
    if (FOLDER / saved / name).exists():
        assert json.loads((tmp_path / name).read_text(encoding="utf-8")) == read(f"{saved}/{name}")


@pytest.mark.parametrize("saved", golden.SAVED)
def test_a_folder_saved_by_the_reference_gives_its_ids(saved, tmp_path):
    setup, fast = golden.SAVED[saved]
    cls = LlamaTokenizerFast if fast else LlamaTokenizer
    options = {} if fast else {"vocab_file": str(FOLDER / f"{golden.SETUPS[setup]['model']}.model")}
    tokenizer = cls.from_pretrained(FOLDER / saved, **options)
    tokenizer.save_pretrained(tmp_path)
    again = cls.from_pretrained(tmp_path)
    for text, made in golden.made_by(read("texts.json"), f"{setup} {'fast' if fast else 'slow'}"):
        for each in (tokenizer, again):
            assert golden.made_of(each, text) == made, text
