"""What users do with tokenizers beyond the documented examples, and what hostile files do."""

import copy
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models

from triptych import GPT2Tokenizer, GPT2TokenizerFast, PreTrainedTokenizerFast, pretrained
from triptych.errors import CheckpointError, TokenIdError
from triptych.models.openai_gpt.pretokenization import standardise

CLASSES = [GPT2Tokenizer, GPT2TokenizerFast]
BOX = pretrained.folder(pretrained.DEFAULT)


@pytest.fixture(params=CLASSES, ids=lambda cls: cls.__name__)
def tokenizer(request):
    return request.param.from_pretrained(BOX)


@pytest.fixture
def folder(tmp_path):
    GPT2Tokenizer.from_pretrained(BOX).save_pretrained(tmp_path)
    return tmp_path


def change(folder, **fields) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_tokens_added_as_special_are_special(tokenizer, tmp_path):
    tokenizer.add_tokens(["[y]"], special_tokens=True)
    tokenizer.add_tokens(AddedToken("[z]", special=True))
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, type(tokenizer).from_pretrained(tmp_path)):
        assert each.decode(each("a[y]b[z]c").input_ids, skip_special_tokens=True) == "abc"


def test_threads_that_share_a_fast_tokenizer_each_get_their_own_padding():
    tokenizer = GPT2TokenizerFast.from_pretrained(BOX)
    tokenizer.pad_token = tokenizer.eos_token
    texts = ["a b", "a b c d"]

    def lengths(number: int) -> list[int]:
        options = {"padding": "max_length", "max_length": 12} if number % 2 else {}
        return [len(row) for row in tokenizer(texts, **options).input_ids]

    expected = [lengths(0), lengths(1)]
    assert expected[1] == [12, 12]
    with ThreadPoolExecutor(4) as pool:
        for number, got in enumerate(pool.map(lengths, range(300))):
            assert got == expected[number % 2]


def test_copies_and_pickles_work_on_their_own(tokenizer):
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        other.add_tokens(["[new]"])
        assert len(other) == len(tokenizer) + 1
        assert other("a [new] b").input_ids != tokenizer("a [new] b").input_ids


def test_a_new_token_takes_no_id_that_is_taken(folder):
    size = len(GPT2Tokenizer.from_pretrained(folder))
    stored = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    change(folder, added_tokens_decoder=stored | {str(size + 1): {"content": "[Q]"}})
    tokenizer = GPT2Tokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["[R]"])
    assert tokenizer.convert_tokens_to_ids(["[Q]", "[R]"]) == [size + 1, size + 2]
    with pytest.raises(CheckpointError, match=r"'\[Q\]' has the id .* use_fast=False"):
        GPT2TokenizerFast.from_pretrained(folder)


def test_floats_beside_ids_become_float32(tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    rows = [{"input_ids": [1, 2, 3], "label": 1.5}, {"input_ids": [4], "label": 0.5}]
    batch = tokenizer.pad(rows, return_tensors="pt")
    assert batch["label"].dtype is torch.float32
    assert batch["input_ids"].dtype is torch.int64


def test_a_wrong_side_is_refused(tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "middle"
    with pytest.raises(ValueError, match="middle"):
        tokenizer.pad({"input_ids": [[1], [1, 2]]})


def test_a_file_cannot_point_the_loader_elsewhere(folder):
    expected = GPT2Tokenizer.from_pretrained(folder)("Hello there").input_ids
    change(
        folder, vocab_file="/etc/passwd", merges_file="/etc/passwd", tokenizer_file="/x", special_tokens_map_file="/x"
    )
    for cls in CLASSES:
        assert cls.from_pretrained(folder)("Hello there").input_ids == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"added_tokens_decoder": {"-1": {"content": "q"}}},
        {"added_tokens_decoder": {"x": {"content": "q"}}},
        {"added_tokens_decoder": {"9": "q"}},
        {"added_tokens_decoder": {"9999": {"content": ""}}},
        {"added_tokens_decoder": {"9999999999999": {"content": "q"}}},
        {"added_tokens_decoder": {"9999": {"content": "q", "lstrip": "yes"}}},
        {"added_tokens_decoder": [1]},
        {"unk_token": 5},
        {"model_max_length": "abc"},
        {"model_max_length": -3},
        {"model_input_names": "input_ids"},
        {"model_input_names": []},
        {"add_prefix_space": "no"},
        {"padding_side": "middle"},
        {"errors": "bogus"},
    ],
    ids=str,
)
@pytest.mark.parametrize("cls", CLASSES)
def test_a_damaged_option_is_named_with_its_file(folder, cls, fields):
    change(folder, **fields)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        cls.from_pretrained(folder)


def test_white_space_takes_time_in_proportion():
    # A million spaces took minutes when the time was squared; a hang would end the run.
    assert standardise("a" + " " * 1_000_000 + "b \n\n  c") == "a b \n c"


def test_a_fast_vocabulary_may_leave_ids_out():
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 7}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert tokenizer.decode([0, 7]) == "a b"
    with pytest.raises(TokenIdError, match="ids 0 to 7, and 8 is not"):
        tokenizer.decode([8])
    tokenizer.add_tokens(["c"])
    assert tokenizer.decode(tokenizer.convert_tokens_to_ids(["b", "c"])) == "b c"
