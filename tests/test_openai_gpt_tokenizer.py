"""What users of GPT's tokenizers may rely on, slow and fast."""

import copy
import json
import logging
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import AddedToken

import triptych
from triptych import AutoTokenizer, frameworks
from triptych.errors import CheckpointError, InvalidFileError, MissingFileError, TokenIdError
from triptych.models.openai_gpt import pretokenization
from triptych.models.openai_gpt.tokenization import OpenAIGPTTokenizer
from triptych.models.openai_gpt.tokenization_fast import OpenAIGPTTokenizerFast

FOLDER = Path(__file__).parent / "golden" / "openai_gpt_tokenizers"
FILES = (FOLDER / "vocab.json", FOLDER / "merges.txt")
CLASSES = [OpenAIGPTTokenizer, OpenAIGPTTokenizerFast]
both = pytest.mark.parametrize("cls", CLASSES)

SLOW, SPACY = (OpenAIGPTTokenizer(*FILES, pre_tokenizer=name) for name in ("basic", "spacy"))
FAST = OpenAIGPTTokenizerFast(*FILES)

# Assigned in every version of Unicode that Python or `tokenizers` may know.
CHARACTERS = st.one_of(
    st.characters(min_codepoint=9, max_codepoint=0x24F),
    st.sampled_from("αβΣς жЯ 中日本 한 é e\u0301 “”‘’—–… \u200b\ufeff\u2028\u3000½²Ⅷ😀€©"),
)
TEXT = st.text(CHARACTERS, max_size=40)


@pytest.fixture
def folder(tmp_path):
    """The vocabulary's two files in a folder that may be changed."""
    for file in FILES:
        shutil.copy(file, tmp_path)
    return tmp_path


# Properties.


@given(TEXT)
def test_the_slow_and_the_fast_tokenizer_give_the_same_ids(text):
    text = text.replace("<", "")  # "<UNK>" is the unknown token to the slow one only
    assert SLOW(text).input_ids == FAST(text).input_ids


@given(TEXT)
def test_text_of_the_vocabulary_comes_back_in_lower_case_and_with_single_spaces(text):
    text = text.replace("<", "").replace("Σ", "σ")  # letters are lowered one by one, without the final form of sigma
    for tokenizer in (SLOW, FAST):
        ids = tokenizer(text).input_ids
        if tokenizer.unk_token_id not in ids:
            decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            assert decoded == " ".join(pretokenization.basic_split(text))


@settings(deadline=None)  # the first text waits until spaCy is imported
@given(st.lists(TEXT, min_size=1, max_size=4))
@pytest.mark.parametrize("tokenizer", [SLOW, FAST, SPACY], ids=["slow", "fast", "spacy"])
def test_a_batch_holds_what_each_text_gives_alone(tokenizer, texts):
    assert tokenizer(texts).input_ids == [tokenizer(text).input_ids for text in texts]


@given(TEXT)
def test_standardised_text_has_no_white_space_in_a_row_and_stays_as_it_is(text):
    once = pretokenization.standardise(text)
    assert pretokenization.standardise(once) == once
    assert once == once.strip()
    assert "  " not in once
    assert "\n\n" not in once


@pytest.mark.parametrize("tokenizer", [SLOW, FAST, SPACY], ids=["slow", "fast", "spacy"])
def test_pickling_and_copying_keep_the_ids(tokenizer):
    text = "It's the hound of the Baskervilles -- again!"
    for again in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert again(text).input_ids == tokenizer(text).input_ids
        assert again.pre_tokenizer == tokenizer.pre_tokenizer


@pytest.mark.parametrize("tokenizer", [SLOW, FAST, SPACY], ids=["slow", "fast", "spacy"])
def test_a_saved_tokenizer_loads_as_it_was(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.pre_tokenizer == tokenizer.pre_tokenizer
    for text in ("Don't — “quote” me!", "É\n\nb  c"):
        assert again(text).input_ids == tokenizer(text).input_ids
    assert json.loads((tmp_path / "vocab.json").read_text()) == json.loads(FILES[0].read_text())
    assert (tmp_path / "merges.txt").read_text() == FILES[1].read_text()


# Words.


def test_the_two_pre_tokenizers_split_contractions_and_accents_differently():
    assert "".join(SLOW.tokenize("Don't")) == "don</w>'</w>t</w>"
    assert "".join(SPACY.tokenize("Don't")) == "do</w>n't</w>"
    assert SLOW.decode(SLOW("Café\nAu lait").input_ids) == "cafe au lait"
    assert SPACY.decode(SPACY("Café\nAu lait").input_ids) == "café \n au lait"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello,World! ", ["hello", ",", "world", "!"]),
        ("a\x00b\u0378c\ufffdd\u200be", ["abcde"]),
        ("naïve Ångström İ", ["naive", "angstrom", "i"]),
        ("中文x", ["中", "文", "x"]),
        ("$5=a_b|c", ["$", "5", "=", "a", "_", "b", "|", "c"]),
        ("½€©", ["½€©"]),
        ("tab\tnbsp\u00a0line\u2028end", ["tab", "nbsp", "line", "end"]),
        ("", []),
    ],
)
def test_basic_words_are_those_of_bert(text, words):
    assert pretokenization.basic_split(text) == words


@pytest.mark.parametrize(
    ("text", "standard"),
    [
        ("a--b", "a -- b"),
        ("a-+b", "a - + b"),
        ("wait…what—no", "wait...what - no"),
        (" a \n\n b ", "a \n b"),
        ("tab\t\tx", "tab x"),
        ("f(x)[0]", "f ( x ) [ 0 ]"),
        ("e.g. 3:30", "e.g. 3:30"),
        ("´", "'"),
    ],
)
def test_text_is_standardised_as_for_training(text, standard):
    assert pretokenization.standardise(text) == standard


def test_unknown_characters_are_the_unknown_token():
    for tokenizer in (SLOW, FAST):
        assert tokenizer("中").input_ids == [tokenizer.unk_token_id] == [0]
        assert tokenizer.convert_tokens_to_ids(["the</w>", "no such"]) == [tokenizer.get_vocab()["the</w>"], 0]


@both
def test_a_batch_that_needs_padding_is_told_a_pad_token_that_there_is(cls):
    tokenizer = cls(*FILES, pre_tokenizer="basic")
    with pytest.raises(ValueError, match=r"tokenizer\.pad_token = tokenizer\.unk_token"):
        tokenizer(["a", "a hat"], padding=True)
    tokenizer.pad_token = tokenizer.unk_token
    assert tokenizer(["a", "a hat"], padding=True).attention_mask == [[1, 0, 0], [1, 1, 1]]


def test_another_unknown_token_or_none_can_be_chosen():
    slow = OpenAIGPTTokenizer(*FILES, unk_token="<New>", pre_tokenizer="basic")
    assert slow("a中b").input_ids[1] == slow.unk_token_id == len(slow) - 1
    fast = OpenAIGPTTokenizerFast(*FILES, unk_token=None)
    assert fast("a 中 b").input_ids == fast("a b").input_ids
    assert OpenAIGPTTokenizer(*FILES, unk_token=None, pre_tokenizer="basic").tokenize("A") == ["a</w>"]
    with pytest.raises(ValueError, match=r"vocab\.json has no '<New>'"):
        OpenAIGPTTokenizerFast(*FILES, unk_token="<New>")


def test_unassigned_characters_go_slow_and_are_unknown_fast():
    assert SLOW("a\u0378").input_ids == SLOW("a").input_ids
    assert FAST.unk_token_id in FAST("a\u0378").input_ids


# Added tokens.


def test_added_tokens_are_lower_case_slow_and_as_given_fast():
    slow, fast = OpenAIGPTTokenizer(*FILES, pre_tokenizer="basic"), OpenAIGPTTokenizerFast(*FILES)
    for tokenizer in (slow, fast):
        start = len(tokenizer)
        assert tokenizer.add_tokens(["NewWord", AddedToken("RAW", normalized=False)]) == 2
        tokenizer.add_special_tokens({"pad_token": "[Pad]"})
        ids = tokenizer("a NEWWORD[Pad]b newword").input_ids
        assert [i for i in ids if i >= start] == [start, start + 2, start]
    assert slow.get_added_vocab() == {"<unk>": 0, "newword": start, "RAW": start + 1, "[Pad]": start + 2}
    assert fast.get_added_vocab() == {"<unk>": 0, "NewWord": start, "RAW": start + 1, "[Pad]": start + 2}
    assert slow.decode([start, start + 2]) == "newword [Pad]"
    assert fast.decode([start, start + 2]) == "NewWord[Pad]"
    assert fast.decode([start, start + 2], skip_special_tokens=True) == "NewWord"
    assert fast.batch_decode([[start], []]) == ["NewWord", ""]
    assert fast.convert_ids_to_tokens([start, start + 1]) == ["NewWord", "RAW"]
    assert fast.convert_ids_to_tokens(start) == "NewWord"


def test_words_and_offsets_point_into_the_text():
    encoding = FAST("The cat's hat", return_offsets_mapping=True)
    pieces = ["The cat's hat"[start:end].lower() for start, end in encoding.offset_mapping]
    assert "".join(pieces) == "thecat'shat"
    assert FAST(["The", "hat"], is_split_into_words=True).input_ids == FAST("The hat").input_ids
    assert SLOW(["The", "hat"], is_split_into_words=True).input_ids == SLOW("The hat").input_ids
    with pytest.raises(TokenIdError, match="99999"):
        FAST.decode([99999])


# Which pre-tokenizer.


def without(monkeypatch, *names):
    real = frameworks.is_available
    monkeypatch.setattr(frameworks, "is_available", lambda name: name not in names and real(name))


def test_spacy_is_taken_where_it_is_installed_and_basic_elsewhere(monkeypatch, caplog):
    assert OpenAIGPTTokenizer(*FILES).pre_tokenizer == "spacy"
    assert OpenAIGPTTokenizer(*FILES, pre_tokenizer="basic").pre_tokenizer == "basic"
    assert OpenAIGPTTokenizerFast(*FILES).pre_tokenizer == "basic"
    assert not caplog.records
    for absent in ("spacy", "ftfy"):
        without(monkeypatch, absent)
        caplog.clear()
        tokenizer = OpenAIGPTTokenizer(*FILES)
        assert tokenizer.pre_tokenizer == "basic"
        assert tokenizer("don't").input_ids == SLOW("don't").input_ids
        assert "triptych[openai-gpt]" in caplog.text


def test_a_folder_made_with_spacy_is_refused_where_it_is_missing_with_both_remedies(monkeypatch, tmp_path):
    SPACY.save_pretrained(tmp_path)
    without(monkeypatch, "spacy")
    with pytest.raises(ImportError, match=r"spacy.*triptych\[openai-gpt\].*pre_tokenizer='basic'"):
        OpenAIGPTTokenizer.from_pretrained(tmp_path)
    forced = OpenAIGPTTokenizer.from_pretrained(tmp_path, pre_tokenizer="basic")
    assert forced("don't").input_ids == SLOW("don't").input_ids


def test_a_folder_made_with_basic_stays_so_where_spacy_is(tmp_path):
    for tokenizer in (SLOW, FAST):
        tokenizer.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "tokenizer_config.json").read_text())["pre_tokenizer"] == "basic"
        assert OpenAIGPTTokenizer.from_pretrained(tmp_path)("don't").input_ids == tokenizer("don't").input_ids


def test_the_fast_tokenizer_says_that_it_splits_otherwise_than_its_files(tmp_path, caplog):
    SPACY.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert AutoTokenizer.from_pretrained(tmp_path).pre_tokenizer == "basic"
    assert "use_fast=False" in caplog.text
    assert AutoTokenizer.from_pretrained(tmp_path, use_fast=False).pre_tokenizer == "spacy"


def test_an_unknown_pre_tokenizer_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"spacy, basic, not 'nltk'"):
        OpenAIGPTTokenizer(*FILES, pre_tokenizer="nltk")


def test_neither_library_is_imported_before_a_text_is_split():
    files = ", ".join(repr(str(file)) for file in FILES)
    code = (
        f"import sys; from triptych import OpenAIGPTTokenizer; OpenAIGPTTokenizer({files}); "
        "print('spacy' in sys.modules, 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]


# Files.


@both
def test_the_files_of_the_published_checkpoint_load(cls, folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "openai-gpt", "n_special": 0, "afn": "gelu"}))
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    state = json.loads(FAST.to_json())
    del state["model"]["type"], state["model"]["byte_fallback"]  # as written by the `tokenizers` of its day
    (folder / "tokenizer.json").write_text(json.dumps(state))
    tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=cls is OpenAIGPTTokenizerFast, pre_tokenizer="basic")
    assert type(tokenizer) is cls is getattr(triptych, cls.__name__)
    assert tokenizer.model_max_length == 512
    assert tokenizer("The hat, isn't it?").input_ids == SLOW("The hat, isn't it?").input_ids


@both
@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_a_missing_file_is_named(cls, missing, folder):
    (folder / missing).unlink()
    with pytest.raises(MissingFileError, match=missing.replace(".", r"\.")):
        cls.from_pretrained(folder, pre_tokenizer="basic")


@both
def test_vocabulary_and_merges_of_different_tokenizers_are_refused_with_file_and_line(cls, folder):
    merges = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges.insert(3, "zz qq</w>")
    (folder / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
    with pytest.raises(InvalidFileError, match=r"Line 4 of .*merges\.txt.*'zz qq</w>'"):
        cls.from_pretrained(folder, pre_tokenizer="basic")


@both
@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"a": "b"}', '{"a": 1, "b": 1}'])
def test_a_damaged_vocabulary_is_named(cls, damage, folder):
    (folder / "vocab.json").write_text(damage)
    with pytest.raises(CheckpointError, match=r"vocab\.json"):
        cls.from_pretrained(folder, pre_tokenizer="basic")


def test_the_fast_tokenizer_without_files_says_what_it_needs():
    with pytest.raises(ValueError, match="tokenizer_file, or vocab_file and merges_file"):
        OpenAIGPTTokenizerFast()
