"""BatchEncoding: a dict of columns that knows where its tokens came from."""

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from triptych.models.gpt2.tokenization import GPT2Tokenizer
from triptych.models.gpt2.tokenization_fast import GPT2TokenizerFast
from triptych.tokenization.batch_encoding import BatchEncoding, CharSpan, TokenSpan

SMALL = Path(__file__).parent / "golden" / "tokenizers_fast"


@pytest.fixture(scope="module")
def encoding():
    """A padded batch of two pairs."""
    return GPT2TokenizerFast.from_pretrained(SMALL)(["ab c", "d"], ["x", "yy"], padding=True)


def test_columns_are_read_like_a_dict_and_like_attributes(encoding):
    assert list(encoding) == list(encoding.keys()) == ["input_ids", "attention_mask"]
    assert encoding["input_ids"] is encoding.input_ids
    assert "input_ids" in encoding
    assert len(encoding) == 2
    assert dict(**encoding) == dict(encoding.items()) == encoding.data
    assert list(encoding.values())[1] == encoding.attention_mask
    with pytest.raises(KeyError, match="nope"):
        encoding["nope"]
    with pytest.raises(AttributeError, match="no attribute or column 'nope'"):
        encoding.nope  # noqa: B018
    changed = encoding.copy()
    changed["labels"] = [1, 2]
    assert changed.pop("attention_mask") == encoding["attention_mask"]
    assert changed.labels == [1, 2]
    assert "labels" not in encoding


def test_tokens_lead_back_to_words_and_characters(encoding):
    assert encoding.is_fast
    assert encoding.n_sequences == 2
    assert encoding.tokens(0) == ["a", "b", "Ġc", "x"]
    assert encoding.word_ids(0) == [0, 0, 1, 0]
    assert encoding.words(0) == encoding.word_ids()
    assert encoding.sequence_ids(0) == [0, 0, 0, 1]
    assert encoding.sequence_ids(1)[-1] is None
    assert encoding.token_to_word(0, 2) == encoding.token_to_word(2) == 1
    assert encoding.token_to_word(0, -2) == 1
    assert encoding.token_to_sequence(0, 3) == 1
    assert encoding.token_to_chars(0, 2) == CharSpan(2, 4)
    assert encoding.char_to_token(0, 1) == 1
    assert encoding.char_to_token(0, 0, sequence_index=1) == 3
    assert encoding.char_to_token(0, 99) is None
    assert encoding.char_to_word(0, 3) == 1
    assert encoding.word_to_tokens(0, 0) == TokenSpan(0, 2)
    assert encoding.word_to_tokens(0, 0, sequence_index=1) == TokenSpan(3, 4)
    assert encoding.word_to_tokens(0, 9) is None
    assert encoding.word_to_chars(0, 1) == CharSpan(2, 4)
    assert encoding[0].tokens == encoding.tokens(0)
    assert [row.ids for row in encoding[:2]] == encoding["input_ids"]


def test_a_slow_tokenizer_gives_columns_and_slices_of_them():
    encoding = GPT2Tokenizer.from_pretrained(SMALL)(["ab c", "d"], padding=True)
    assert not encoding.is_fast
    assert encoding.encodings is None
    assert encoding.n_sequences is None
    assert encoding[:1] == {name: column[:1] for name, column in encoding.data.items()}
    with pytest.raises(KeyError, match="Encodings of a fast tokenizer"):
        encoding[0]
    for call in (encoding.tokens, encoding.word_ids, lambda: encoding.char_to_token(0)):
        with pytest.raises(ValueError, match="needs the encodings of a fast tokenizer"):
            call()


def test_pickled_encodings_come_back_whole(encoding):
    twin = pickle.loads(pickle.dumps(encoding))
    assert twin.data == encoding.data
    assert twin.word_ids(1) == encoding.word_ids(1)
    assert twin.n_sequences == 2


def test_columns_become_tensors_and_move():
    encoding = BatchEncoding({"input_ids": [[1, 2]], "pixels": torch.ones(1)})
    assert encoding.convert_to_tensors("pt") is encoding
    assert encoding["input_ids"].dtype == torch.int64
    assert encoding.to("cpu")["pixels"].device.type == "cpu"
    assert encoding.to(torch.device("meta"))["input_ids"].device.type == "meta"
    assert BatchEncoding({"a": [1]}, tensor_type="np", prepend_batch_axis=True)["a"].tolist() == [[1]]
    assert isinstance(BatchEncoding({"a": np.ones(2)}, tensor_type="np")["a"], np.ndarray)


def test_what_cannot_move_says_so(caplog):
    with pytest.raises(TypeError, match=r'input_ids is a list\. Call the tokenizer with return_tensors="pt"'):
        BatchEncoding({"input_ids": [1]}).to("cpu")
    with caplog.at_level(logging.WARNING):
        BatchEncoding({"input_ids": [1]}).to(5.0)
    assert "not to 5.0" in caplog.text


def test_rows_of_several_lengths_are_no_tensor():
    with pytest.raises(ValueError, match=r"input_ids has rows of 1 to 2\. Pass padding=True"):
        BatchEncoding({"input_ids": [[1], [1, 2]]}, tensor_type="pt")
    with pytest.raises(ValueError, match=r"overflowing_tokens differ from text to text\. Use a fast tokenizer"):
        BatchEncoding({"overflowing_tokens": [[1], [1, 2]]}, tensor_type="np")
    with pytest.raises(ValueError, match="return_tensors must be one of"):
        BatchEncoding({"input_ids": [1]}, tensor_type="xx")
