"""The files of a tokenizer: published ones load, saved ones are the same tokenizer, damaged ones are named."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from tokenizers import AddedToken

from triptych.errors import CheckpointError, InvalidFileError, MissingFileError, SaveError
from triptych.models.gpt2.tokenization import GPT2Tokenizer
from triptych.models.gpt2.tokenization_fast import GPT2TokenizerFast
from triptych.tokenization.fast import PreTrainedTokenizerFast

SMALL = Path(__file__).parent / "golden" / "tokenizers_fast"
CLASSES = [GPT2Tokenizer, GPT2TokenizerFast]
both = pytest.mark.parametrize("cls", CLASSES)

# As EleutherAI/gpt-neo-125m publishes it, with this vocabulary's own end token.
END = {
    "content": "<end>",
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": True,
    "__type": "AddedToken",
}
PUBLISHED = {
    "errors": "replace",
    "unk_token": END,
    "bos_token": END,
    "eos_token": END,
    "add_prefix_space": False,
    "model_max_length": 2048,
    "special_tokens_map_file": None,
    "name_or_path": "gpt2",
    "tokenizer_class": "GPT2Tokenizer",
    "from_the_future": {"kept": True},
}


@pytest.fixture
def folder(tmp_path):
    """A folder with a vocabulary and nothing else."""
    target = tmp_path / "model"
    target.mkdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(SMALL / name, target)
    return target


def put(folder, name, value):
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


@both
def test_a_published_configuration_loads_as_it_is(cls, folder):
    put(folder, "tokenizer_config.json", PUBLISHED)
    put(folder, "special_tokens_map.json", {"bos_token": "<end>", "eos_token": "<end>", "unk_token": "<end>"})
    tokenizer = cls.from_pretrained(folder)
    assert (tokenizer.model_max_length, tokenizer.eos_token_id, len(tokenizer)) == (2048, 0, 320)
    assert tokenizer.name_or_path == str(folder)
    assert tokenizer.init_kwargs["from_the_future"] == {"kept": True}
    assert tokenizer("hello<end>")["input_ids"][-1] == 0
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["from_the_future"] == {"kept": True}
    assert config["eos_token"] == "<end>"
    assert config["tokenizer_class"] == "GPT2Tokenizer"
    assert not {"name_or_path", "special_tokens_map_file"} & config.keys()


@both
def test_a_folder_with_a_vocabulary_alone_loads(cls, folder):
    tokenizer = cls.from_pretrained(folder, unk_token="<end>", bos_token="<end>", eos_token="<end>")
    assert len(tokenizer) == 320
    assert tokenizer.decode(tokenizer.encode("Hello, dog")) == "Hello, dog"


def test_a_folder_of_an_older_version_gives_each_token_its_stored_id(folder):
    put(folder, "tokenizer_config.json", {"max_len": 77, "padding_side": "left", "unk_token": "<end>"})
    roles = {"bos_token": "<s>", "eos_token": END | {"content": "<e>", "lstrip": True}, "unk_token": "<end>"}
    put(folder, "special_tokens_map.json", roles | {"additional_special_tokens": ["<x>", "<y>"]})
    put(folder, "added_tokens.json", {"<s>": 320, "<e>": 321, "<x>": 322, "<y>": 324, "plain": 323})
    tokenizer = GPT2Tokenizer.from_pretrained(folder)
    assert (tokenizer.model_max_length, tokenizer.padding_side) == (77, "left")
    assert tokenizer.added_tokens_encoder == {"<end>": 0, "<s>": 320, "<e>": 321, "<x>": 322, "plain": 323, "<y>": 324}
    assert [token.special for token in tokenizer.added_tokens_decoder.values()] == [True] * 4 + [False, True]
    assert tokenizer.encode("a  <e>plain<y>") == [tokenizer.encode("a")[0], 321, 323, 324]
    fast = GPT2TokenizerFast.from_pretrained(folder)
    assert fast.convert_tokens_to_ids(["<s>", "<e>", "<x>", "plain", "<y>"]) == [320, 321, 322, 323, 324]


@both
def test_options_given_on_loading_come_before_the_stored_ones(cls):
    tokenizer = cls.from_pretrained(
        SMALL, add_prefix_space=True, pad_token="<a>", model_max_length=5, padding_side="left"
    )
    assert tokenizer.tokenize("a")[0].startswith("Ġ")
    assert (tokenizer.pad_token, tokenizer.model_max_length, tokenizer.padding_side) == ("<a>", 5, "left")
    assert tokenizer(["a", "b"], is_split_into_words=True)["input_ids"] == [
        *tokenizer("a")["input_ids"],
        *tokenizer("b")["input_ids"],
    ]


@both
@pytest.mark.parametrize("legacy", [None, True])
def test_the_saved_files_are_those_that_are_documented(cls, legacy, tmp_path):
    paths = cls.from_pretrained(SMALL).save_pretrained(tmp_path, legacy_format=legacy, filename_prefix="my")
    names = ["tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "added_tokens.json"]
    if cls is GPT2TokenizerFast and legacy is None:
        names.append("tokenizer.json")
    assert paths == tuple(str(tmp_path / f"my-{name}") for name in names)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"my-{name}" for name in names)


@both
def test_the_vocabulary_alone_can_be_saved(cls, tmp_path):
    paths = cls.from_pretrained(SMALL).save_vocabulary(str(tmp_path), filename_prefix="my")
    assert paths == (str(tmp_path / "my-vocab.json"), str(tmp_path / "my-merges.txt"))
    assert json.loads(Path(paths[0]).read_text()) == json.loads((SMALL / "vocab.json").read_text())
    assert Path(paths[1]).read_text() == (SMALL / "merges.txt").read_text()


def test_the_fast_file_has_the_form_that_older_versions_read(tmp_path):
    tokenizer = GPT2TokenizerFast.from_pretrained(SMALL)
    tokenizer(["a", "b c"], padding=True, truncation=True, max_length=4)
    tokenizer.save_pretrained(tmp_path, legacy_format=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    saved = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["truncation"] is saved["padding"] is None
    assert saved["model"]["merges"] == json.loads((SMALL / "tokenizer.json").read_text())["model"]["merges"]
    assert saved["added_tokens"] == json.loads((SMALL / "tokenizer.json").read_text())["added_tokens"]
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path / "tokenizer.json").encode("hi") == tokenizer.encode("hi")
    assert GPT2TokenizerFast.from_pretrained(tmp_path / "tokenizer.json").encode("hi") == tokenizer.encode("hi")
    with pytest.raises(ValueError, match=r"has no vocabulary files but tokenizer\.json"):
        PreTrainedTokenizerFast.from_pretrained(tmp_path).save_pretrained(tmp_path, legacy_format=True)
    with pytest.raises(ValueError, match="written by fast tokenizers only"):
        GPT2Tokenizer.from_pretrained(SMALL).save_pretrained(tmp_path, legacy_format=False)


TOKENS = st.lists(
    st.builds(
        AddedToken,
        st.text("abcXYZ<>é ", min_size=2, max_size=6).filter(str.strip),
        lstrip=st.booleans(),
        rstrip=st.booleans(),
        single_word=st.booleans(),
        normalized=st.booleans(),
    ),
    max_size=4,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tokens=TOKENS, special=TOKENS, side=st.sampled_from(["left", "right"]), length=st.integers(5, 50))
def test_a_saved_tokenizer_comes_back_the_same(tmp_path, tokens, special, side, length):
    texts = ["Xé <abc>", "".join(token.content for token in (*tokens, *special))]
    for cls in CLASSES:
        tokenizer = cls.from_pretrained(SMALL, model_max_length=length)
        tokenizer.add_tokens(tokens)
        tokenizer.add_special_tokens({"additional_special_tokens": special})
        tokenizer.padding_side = side
        tokenizer.save_pretrained(tmp_path)
        again = cls.from_pretrained(tmp_path)
        assert str(again.added_tokens_decoder) == str(tokenizer.added_tokens_decoder)
        assert again.special_tokens_map == tokenizer.special_tokens_map
        assert (again.model_max_length, again.padding_side) == (length, side)
        assert again(texts)["input_ids"] == tokenizer(texts)["input_ids"]
        assert again.get_vocab() == tokenizer.get_vocab()


@both
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", '{"a": 0, "b"', "vocab.json must hold JSON"),
        ("vocab.json", "[]", "vocab.json must hold a JSON object"),
        ("vocab.json", '{"a": "0"}', "vocab.json must map tokens to ids, and 'a' has '0'"),
        ("vocab.json", '{"a": 0, "b": 0}', "must give each token its own id, and 'b' has 0, as 'a' has"),
        ("merges.txt", "#version: 0.2\na b c\n", "Line 2 of .*merges.txt, 'a b c', must be two tokens"),
        ("merges.txt", "#version: 0.2\na\n", "Line 2 of .*merges.txt, 'a', must be two tokens"),
        ("merges.txt", "h e\nx yyy\n", "Line 2 of .*merges.txt.* must fit the vocabulary, which has no 'yyy'"),
        ("tokenizer_config.json", "{", "tokenizer_config.json must hold JSON"),
        ("tokenizer_config.json", '{"bos_token": {"text": "x"}}', "must have its text as 'content'"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', "must have its text as 'content'"),
        ("special_tokens_map.json", "no", "special_tokens_map.json must hold JSON"),
        ("added_tokens.json", '{"x": "y"}', "added_tokens.json must give each added token, .* an id .*'x' has 'y'"),
    ],
)
def test_a_damaged_file_is_named(cls, folder, name, content, message):
    put(folder, name, content)
    with pytest.raises(InvalidFileError, match=message):
        cls.from_pretrained(folder)


@pytest.mark.parametrize("content", ["", "{", '{"version": "1.0"}', "\ufeff[]"])
def test_a_damaged_fast_file_is_named(folder, content):
    put(folder, "tokenizer.json", content)
    with pytest.raises(InvalidFileError, match=r"tokenizer\.json is no tokenizer\.json"):
        GPT2TokenizerFast.from_pretrained(folder)


@both
@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_a_missing_file_is_named(cls, folder, missing):
    (folder / missing).unlink()
    with pytest.raises(
        MissingFileError, match=rf"{cls.__name__} needs vocab.json and merges.txt.* {missing} is not in"
    ):
        cls.from_pretrained(folder)
    with pytest.raises(CheckpointError, match="does not exist"):
        cls(folder / "vocab.json", folder / "merges.txt")


@both
def test_a_path_that_is_no_folder_is_refused(cls, folder, tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        cls.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is loaded from a folder or a hub name"):
        cls.from_pretrained(folder / "merges.txt")
    with pytest.raises(SaveError, match="is a file"):
        cls.from_pretrained(SMALL).save_pretrained(folder / "vocab.json")
    with pytest.raises(MissingFileError, match="does not exist"):
        GPT2TokenizerFast(tokenizer_file=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="needs tokenizer_file, or vocab_file and merges_file"):
        GPT2TokenizerFast()


@both
def test_an_interrupted_save_leaves_the_old_files(cls, tmp_path, monkeypatch):
    tokenizer = cls.from_pretrained(SMALL)
    tokenizer.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    tokenizer.add_tokens("late")

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(cls, "save_vocabulary", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tokenizer.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_code_named_by_a_configuration_is_ignored(folder):
    put(folder, "tokenizer_config.json", PUBLISHED | {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}})
    assert "auto_map" not in GPT2Tokenizer.from_pretrained(folder, trust_remote_code=True).init_kwargs
