"""What users of Llama's tokenizers may rely on, slow and fast."""

import copy
import json
import logging
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings, strategies as st
from tokenizers import AddedToken

import triptych
from triptych import AutoTokenizer
from triptych.errors import CheckpointError, InvalidFileError, MissingFileError, TokenIdError
from triptych.models.llama import sentencepiece_model
from triptych.models.llama.sentencepiece_model import read_model
from triptych.models.llama.tokenization import LlamaTokenizer, _tell_of_legacy
from triptych.models.llama.tokenization_fast import LlamaTokenizerFast
from triptych.tokenization.fast import PreTrainedTokenizerFast

FOLDER = Path(__file__).parent / "golden" / "llama_tokenizers"
BPE, UNIGRAM, CHANGING = (FOLDER / f"{name}.model" for name in ("bpe", "unigram", "changing"))
CLASSES = [LlamaTokenizer, LlamaTokenizerFast]
both = pytest.mark.parametrize("cls", CLASSES)
patient = settings(deadline=None)  # the machine may be busy
FUYU = {"bos_token": "|ENDOFTEXT|", "eos_token": "|ENDOFTEXT|"}

SLOW = [LlamaTokenizer(file, legacy=legacy) for file in (BPE, UNIGRAM) for legacy in (True, False)]
FAST = [LlamaTokenizerFast(file) for file in (BPE, UNIGRAM)]
every = pytest.mark.parametrize("tokenizer", SLOW + FAST, ids=lambda t: f"{type(t).__name__} {t.vocab_size}")

# Without "<" and "|" no text spells a token or a byte; "▁" is a space to these tokenizers.
TEXT = st.text(
    st.one_of(
        st.characters(codec="utf-8", exclude_characters="<|▁"),
        st.sampled_from("  \n\t abcdefgh the 0123456789 .,'é日本😀"),
    ),
    max_size=40,
)


@pytest.fixture
def folder(tmp_path):
    """A folder with a model and nothing else."""
    shutil.copy(UNIGRAM, tmp_path / "tokenizer.model")
    return tmp_path


def without(library):
    """The start of a script in which a library cannot be imported."""
    return f"import sys; sys.modules[{library!r}] = None; "


def output_of(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


# Properties.


@patient
@given(TEXT)
def test_fast_decoding_gives_back_every_text(text):
    for tokenizer in FAST:
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


@patient
@given(TEXT)
def test_slow_decoding_gives_back_every_text_but_for_spaces_in_front(text):
    for tokenizer in SLOW:
        decoded = tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)
        assert decoded.lstrip(" ") == text.lstrip(" ")


@patient
@given(TEXT)
def test_the_slow_and_the_fast_tokenizer_give_the_same_ids(text):
    for slow, fast in zip(SLOW[::2], FAST, strict=True):
        assert slow(text).input_ids == fast(text).input_ids


@patient
@given(st.lists(TEXT, min_size=1, max_size=4))
def test_a_batch_holds_what_each_text_gives_alone(texts):
    for tokenizer in SLOW + FAST:
        assert tokenizer(texts).input_ids == [tokenizer(text).input_ids for text in texts]


@patient
@given(st.lists(TEXT, min_size=1, max_size=3))
def test_padding_adds_to_one_side_and_nothing_else(texts):
    for cls, side in ((LlamaTokenizer, "right"), (LlamaTokenizerFast, "left")):
        tokenizer = PADDED[cls]
        batch = tokenizer(texts, padding=True)
        for row, mask, text in zip(batch.input_ids, batch.attention_mask, texts, strict=True):
            alone = tokenizer(text).input_ids
            pad = [tokenizer.pad_token_id] * (len(row) - len(alone))
            assert row == (pad + alone if side == "left" else alone + pad)
            assert sum(mask) == len(alone)


PADDED = {cls: cls(UNIGRAM, pad_token="<unk>", legacy=True) for cls in CLASSES}


@every
def test_pickling_and_copying_keep_the_ids(tokenizer):
    text = "Generate a coco-style caption.\n <s> now"
    for again in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert again(text).input_ids == tokenizer(text).input_ids
        assert again.decode([1, 5, 300]) == tokenizer.decode([1, 5, 300])


@every
def test_a_saved_tokenizer_loads_as_it_was(tokenizer, tmp_path):
    again = copy.deepcopy(tokenizer)
    again.add_tokens(["newword", AddedToken("exact", normalized=False)])
    again.add_special_tokens({"pad_token": "[PAD]"})
    again.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    assert loaded.get_vocab() == again.get_vocab()
    assert loaded.special_tokens_map == again.special_tokens_map
    for text in ("a newword <s> exactly [PAD]", "é\n\nb  c<0x0A>"):
        assert loaded(text).input_ids == again(text).input_ids
        assert loaded.decode(loaded(text).input_ids) == again.decode(loaded(text).input_ids)
    assert (tmp_path / "tokenizer.model").read_bytes() == Path(tokenizer.vocab_file).read_bytes()


def test_what_one_class_saves_the_other_loads(tmp_path):
    for cls, other in (CLASSES, CLASSES[::-1]):
        cls(UNIGRAM, legacy=False, pad_token="!", add_eos_token=True).save_pretrained(tmp_path)
        tokenizer = other.from_pretrained(tmp_path)
        assert tokenizer("Hello").input_ids == cls.from_pretrained(tmp_path)("Hello").input_ids
        assert tokenizer("Hello").input_ids[-1] == tokenizer.eos_token_id
        assert tokenizer.init_kwargs["legacy"] is False


# Text and bytes.


def test_a_byte_that_is_spelled_out_is_the_byte_to_a_fast_unigram_and_text_to_all_others():
    fast = FAST[1]
    assert fast("a<0x0A>").input_ids == fast("a\n").input_ids
    for tokenizer in (*SLOW, FAST[0]):
        assert tokenizer.decode(tokenizer("a<0x0A>").input_ids, skip_special_tokens=True) == "a<0x0A>"
    for tokenizer in SLOW + FAST:
        assert tokenizer("a\n").input_ids[-1] == tokenizer.convert_tokens_to_ids("<0x0A>")


def test_a_character_of_no_piece_becomes_its_bytes():
    for tokenizer in SLOW + FAST:
        assert tokenizer.convert_ids_to_tokens(tokenizer("\U0001f9ff").input_ids)[-4:] == [
            "<0xF0>",
            "<0x9F>",
            "<0xA7>",
            "<0xBF>",
        ]
    half = FAST[0].convert_tokens_to_ids(["<0xF0>", "<0x9F>"])
    for tokenizer in (SLOW[0], FAST[0]):
        assert set(tokenizer.decode(half)) == {"\ufffd"}


def test_legacy_decides_whether_text_after_a_special_token_gets_a_space():
    legacy, later = SLOW[:2]
    assert legacy.tokenize("<s>the") == ["<s>", "▁the"]
    assert later.tokenize("<s>the") == ["<s>", "t", "he"]
    assert later.tokenize("the") == legacy.tokenize("the") == ["▁the"]
    assert legacy("the <s>the").input_ids == FAST[0]("the <s>the").input_ids
    assert later.decode(later("a</s>b").input_ids) == "<s> a</s>b"


def test_without_legacy_the_older_form_is_taken_with_one_message(caplog):
    _tell_of_legacy.cache_clear()
    for _ in range(2):
        assert LlamaTokenizer(BPE).legacy is True
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "legacy=False" in caplog.text
    caplog.clear()
    _tell_of_legacy.cache_clear()
    assert LlamaTokenizer(BPE, legacy=False).legacy is False
    assert LlamaTokenizerFast(BPE).init_kwargs["legacy"] is True
    assert not caplog.records


def test_fuyu_prompts_have_their_symbols_as_single_tokens():
    for cls in CLASSES:
        tokenizer = cls(UNIGRAM, **FUYU, legacy=True)
        for symbol in ("|SPEAKER|", "|NEWLINE|"):
            ids = tokenizer(symbol).input_ids
            assert ids[0] == tokenizer.bos_token_id == tokenizer.eos_token_id
            assert ids[-1] == tokenizer.get_vocab()[symbol]
            assert len(ids) <= 3
        text = "Generate a coco-style caption.\n"
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


@both
def test_sequences_begin_and_end_as_asked(cls):
    def ids(**options):
        return cls(BPE, legacy=True, **options)("a", "a").input_ids

    (a,) = ids(add_bos_token=False)[:1]
    assert ids() == [1, a, 1, a]
    assert ids(add_eos_token=True) == [1, a, 2, 1, a, 2]
    assert ids(add_bos_token=False, add_eos_token=True) == [a, 2, a, 2]
    assert ids(add_bos_token=False) == [a, a]


def test_the_fast_tokenizer_follows_its_settings_at_once():
    tokenizer = LlamaTokenizerFast(BPE)
    (a,) = tokenizer("a", add_special_tokens=False).input_ids
    tokenizer.add_eos_token = True
    assert (tokenizer.add_eos_token, tokenizer("a").input_ids) == (True, [1, a, 2])
    tokenizer.add_bos_token = False
    assert (tokenizer.add_bos_token, tokenizer("a").input_ids) == (False, [a, 2])
    tokenizer.eos_token = "<unk>"
    tokenizer.update_post_processor()
    assert tokenizer("a").input_ids == [a, 0] == tokenizer.build_inputs_with_special_tokens([a])
    assert tokenizer.num_special_tokens_to_add() == 1


@both
def test_a_sequence_cannot_begin_with_a_token_that_is_none(cls):
    with pytest.raises(ValueError, match="add_bos_token=False"):
        cls(BPE, bos_token=None, legacy=True)("a")
    assert cls(BPE, bos_token=None, add_bos_token=False, legacy=True)("a").input_ids == SLOW[0]("a").input_ids[1:]


def test_added_tokens_keep_the_name_they_were_given():
    for tokenizer in (LlamaTokenizerFast(BPE), LlamaTokenizer(BPE, legacy=True)):
        start = len(tokenizer)
        assert tokenizer.add_tokens(["newword", AddedToken("exact", normalized=False)]) == 2
        assert tokenizer.convert_ids_to_tokens([start, start + 1]) == ["newword", "exact"]
        assert tokenizer.convert_ids_to_tokens(start) == "newword"
        assert tokenizer.convert_tokens_to_ids("newword") == start
        assert tokenizer.batch_decode([[start], [start + 1], []]) == ["newword", "exact", ""]


def test_a_fast_tokenizer_of_any_kind_keeps_the_names_of_added_tokens(tmp_path):
    FAST[0].save_pretrained(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    tokenizer.add_tokens(["newword"])
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("Extra", normalized=True)]})
    ids = tokenizer("newword").input_ids[-1:] + tokenizer.additional_special_tokens_ids
    assert tokenizer.decode(ids) == "newwordExtra"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "newword"
    tokenizer.backend_tokenizer.decoder = None
    assert tokenizer.decode(ids) == "newword Extra"


# The library's options.


def test_pieces_can_be_drawn_at_random():
    options = {"enable_sampling": True, "nbest_size": -1, "alpha": 0.1}
    tokenizer = LlamaTokenizer(UNIGRAM, sp_model_kwargs=options, legacy=True)
    text = "the tokenizers of this library"
    for each in (tokenizer, pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        drawn = {tuple(each(text).input_ids) for _ in range(20)}
        assert len(drawn) > 1
        assert {each.decode(ids, skip_special_tokens=True) for ids in drawn} == {text}


@pytest.mark.parametrize("options", [{"no_such": 1}, {"model_file": "x"}, {"out_type": int}])
def test_options_that_the_library_lacks_or_may_not_be_given_are_refused(options):
    with pytest.raises(TypeError, match=rf"{next(iter(options))}.*alpha.*nbest_size"):
        LlamaTokenizer(BPE, sp_model_kwargs=options, legacy=True)


@pytest.mark.parametrize(
    ("name", "value"), [("sp_model_kwargs", [1]), ("legacy", "yes"), ("add_eos_token", 1), ("add_bos_token", "no")]
)
def test_a_stored_option_of_a_wrong_kind_is_named(name, value, folder):
    (folder / "tokenizer_config.json").write_text(json.dumps({name: value}))
    for cls in CLASSES:
        with pytest.raises(InvalidFileError, match=rf"{name} in .*tokenizer_config\.json"):
            cls.from_pretrained(folder)


def test_without_sentencepiece_the_slow_tokenizer_names_the_extra_and_the_fast_one_works():
    code = without("sentencepiece") + (
        "import triptych\n"
        f"print(triptych.LlamaTokenizerFast({str(BPE)!r})('the').input_ids)\n"
        f"try: triptych.LlamaTokenizer({str(BPE)!r}, legacy=True)\n"
        "except ImportError as error: print(error)"
    )
    ids, message = output_of(code).splitlines()
    assert json.loads(ids) == FAST[0]("the").input_ids
    assert 'pip install "triptych[fuyu]"' in message


def test_no_framework_is_imported_and_sentencepiece_only_by_the_slow_tokenizer():
    code = f"import sys; from triptych import {{0}}; {{0}}({str(BPE)!r}, legacy=True); print(*sys.modules)"
    for name, expected in (("LlamaTokenizer", {"sentencepiece"}), ("LlamaTokenizerFast", set())):
        loaded = set(output_of(code.format(name)).split())
        assert loaded & {"sentencepiece", "google.protobuf", "torch"} == expected


# Models.


@pytest.mark.parametrize("file", [BPE, UNIGRAM, CHANGING], ids=lambda file: file.stem)
def test_the_pieces_are_those_that_sentencepiece_reads(file):
    model, library = read_model(file), sentencepiece.SentencePieceProcessor(model_file=str(file))
    ids = list(range(library.get_piece_size()))
    assert model.pieces == library.id_to_piece(ids)
    assert model.scores == library.get_score(ids)
    kinds = {
        sentencepiece_model.UNKNOWN: library.is_unknown,
        sentencepiece_model.CONTROL: library.is_control,
        sentencepiece_model.UNUSED: library.is_unused,
        sentencepiece_model.BYTE: library.is_byte,
    }
    for kind, is_of_kind in kinds.items():
        assert [piece_type == kind for piece_type in model.types] == [is_of_kind(i) for i in ids]
    assert model.unk_id == library.unk_id()
    assert (model.kind, model.byte_fallback) == ("bpe" if file is BPE else "unigram", file is not CHANGING)


def test_fields_in_any_order_and_of_any_width_are_read():
    # A score before its text, a type of its own, and a length that takes more bytes than it needs.
    unknown = b"\x0a\x87\x80\x00" + b"\x18\x02" + b"\x0a\x03<u>"
    plain = b"\x0a\x0a" + b"\x15\x00\x00\x80\xbf" + b"\x0a\x03abc"
    unheard_of = b"\xa2\x06\x02hi" + b"\xa9\x06" + bytes(8) + b"\xb0\x06\x05"
    model = sentencepiece_model.parse(b"\x1a\x00" + plain + unheard_of + unknown + b"\x12\x02\x18\x02", "it")
    assert (model.pieces, model.scores, model.kind, model.unk_id) == (["abc", "<u>"], [-1.0, 0.0], "bpe", 1)


def piece(text, score=b"\x15\x00\x00\x00\x00", kind=b""):
    fields = bytes([0x0A, len(text)]) + text + score + kind
    return bytes([0x0A, len(fields)]) + fields


UNKNOWN_PIECE = b"\x12\x00\x1a\x00" + piece(b"<unk>", kind=b"\x18\x02")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\x0a", "has no end"),
        (b"\x0a\xff\xff\xff\xff\x7f", "bytes where 0 are left"),
        (b"\x0a" + b"\xff" * 11, "more than 10 bytes"),
        (b"\x0b", "no known field"),
        (b"\x0a\x02\x0a\x09", "bytes where 0 are left"),
        (UNKNOWN_PIECE[4:], "ends before its settings"),
        (b"\x12\x00\x1a\x00" + piece(b"a"), "one unknown piece, and 0 of 1 are"),
        (UNKNOWN_PIECE + UNKNOWN_PIECE, "one unknown piece, and 2 of 2 are"),
        (UNKNOWN_PIECE + piece(b"a") + piece(b"a"), "'a' is there twice"),
        (UNKNOWN_PIECE + piece(b"\xff"), "piece 1 is not UTF-8"),
        (UNKNOWN_PIECE + piece(b""), "piece 1 has no text"),
        (UNKNOWN_PIECE + piece(b"a", kind=b"\x18\x09"), "unknown type 9"),
        (UNKNOWN_PIECE + piece(b"a", b"\x15\x00\x00\xc0\x7f"), "finite"),
        (UNKNOWN_PIECE + b"\x12\x02\x18\x03", "is word"),
        (UNKNOWN_PIECE + b"\x12\x02\x18\x09", "is number 9"),
        (b"version https://git-lfs.github.com/spec/v1\n", "known field"),
    ],
)
def test_what_is_wrong_with_a_model_is_said(data, problem, folder):
    (folder / "tokenizer.model").write_bytes(data)
    with pytest.raises(InvalidFileError, match=rf"(?s)tokenizer\.model is no SentencePiece model: .*{problem}"):
        LlamaTokenizerFast.from_pretrained(folder)


def field(number, data):
    size = len(data)
    return bytes([number << 3 | 2, size & 127 | 128, size >> 7 & 127 | 128, size >> 14]) + data


@pytest.mark.parametrize("kind", [1, 2])
def test_a_piece_far_too_long_is_refused(folder, kind):
    longest, too_long = (field(1, field(1, size * b"a")) for size in (2**12, 2**12 + 1))
    start = UNKNOWN_PIECE + field(2, bytes([0x18, kind]))
    assert len(sentencepiece_model.parse(start + longest, "it").pieces) == 2
    (folder / "tokenizer.model").write_bytes(start + too_long)
    with pytest.raises(InvalidFileError, match="at most 4,096 characters, and one has 4,097"):
        LlamaTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("character", ["a", '"', "\\", "é", '\\"'])
def test_a_unigram_of_the_engine_with_a_piece_far_too_long_is_refused(tmp_path, character):
    model = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", 0.0]]}
    path = tmp_path / "tokenizer.json"
    for size in (2**12, 2**12 + 1):
        model["vocab"][1][0] = (size * character)[:size]
        path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
        if size == 2**12:
            assert len(PreTrainedTokenizerFast(tokenizer_file=path)) == 2
    with pytest.raises(InvalidFileError, match="at most 4,096 characters, and one has 4,097"):
        PreTrainedTokenizerFast(tokenizer_file=path)


@both
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"garbage",
        b"{}" * 500,
        BPE.read_bytes()[:5000],
        UNIGRAM.read_bytes().replace("é".encode(), b"\xc3("),
    ],
    ids=["empty", "zero", "text", "braces", "cut", "not UTF-8"],
)
def test_a_damaged_model_is_named(cls, data, folder):
    (folder / "tokenizer.model").write_bytes(data)
    with pytest.raises(InvalidFileError, match=r"tokenizer\.model"):
        cls.from_pretrained(folder, legacy=True)


def test_a_damaged_table_of_changes_is_refused_by_the_class_that_uses_it(folder):
    table = CHANGING.read_bytes().replace(b"fi\x00", b"fi ")
    (folder / "tokenizer.model").write_bytes(table)
    with pytest.raises(InvalidFileError, match=r"tokenizer\.model"):
        LlamaTokenizer.from_pretrained(folder, legacy=True)


def test_a_file_far_too_large_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(sentencepiece_model, "MAX_BYTES", 100)
    for cls in CLASSES:
        with pytest.raises(InvalidFileError, match="from 1 to 100 bytes"):
            cls.from_pretrained(folder, legacy=True)


@settings(patient, max_examples=200)
@given(st.sampled_from([BPE, UNIGRAM, CHANGING]), st.data())
def test_a_model_with_changed_bytes_is_read_or_refused(file, data):
    bytes_ = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        bytes_[data.draw(st.integers(0, len(bytes_) - 1))] = data.draw(st.integers(0, 255))
    try:
        model = sentencepiece_model.parse(bytes(bytes_[: data.draw(st.integers(1, len(bytes_)))]), "it")
    except InvalidFileError:
        return
    assert len(model.pieces) == len(model.scores) == len(model.types)


def test_conversion_says_what_fast_tokenizers_leave_out(caplog):
    LlamaTokenizerFast(BPE)
    assert not caplog.records
    LlamaTokenizerFast(CHANGING)
    assert "no space in front" in caplog.text
    assert "white space" in caplog.text
    assert "replaces characters" in caplog.text
    assert "use_fast=False" in caplog.text


# Files.


@both
def test_a_folder_with_a_model_alone_loads(cls, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder, tokenizer_type="fuyu", use_fast=cls is LlamaTokenizerFast)
    assert type(tokenizer) is cls is getattr(triptych, cls.__name__)
    assert tokenizer("the").input_ids == SLOW[2]("the").input_ids


@pytest.mark.parametrize("name", ["LlamaTokenizer", "LlamaTokenizerFast"])
def test_the_class_that_the_files_name_is_found(name, folder):
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, "legacy": False}))
    assert type(AutoTokenizer.from_pretrained(folder)) is LlamaTokenizerFast
    assert AutoTokenizer.from_pretrained(folder, use_fast=False).legacy is False


def test_a_folder_without_a_model_says_what_the_slow_tokenizer_needs(folder):
    FAST[0].save_pretrained(folder)
    (folder / "tokenizer.model").unlink()
    with pytest.raises(MissingFileError, match=r"needs tokenizer\.model, and only tokenizer\.json .* use_fast=True"):
        AutoTokenizer.from_pretrained(folder, use_fast=False)
    fast = AutoTokenizer.from_pretrained(folder)
    assert not fast.can_save_slow_tokenizer
    with pytest.raises(ValueError, match="has none to copy"):
        fast.save_vocabulary(str(folder))
    fast.save_pretrained(folder / "again")
    assert not (folder / "again" / "tokenizer.model").exists()
    assert LlamaTokenizerFast.from_pretrained(folder / "again")("the").input_ids == fast("the").input_ids


def test_a_loaded_fast_tokenizer_keeps_the_model_for_saving(folder):
    LlamaTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    loaded = LlamaTokenizerFast.from_pretrained(folder)
    assert loaded.can_save_slow_tokenizer
    (path,) = loaded.save_vocabulary(str(folder / "copy"), filename_prefix="my")
    assert Path(path) == folder / "copy" / "my-tokenizer.model"
    assert Path(path).read_bytes() == UNIGRAM.read_bytes()
    loaded.save_pretrained(folder)  # onto itself
    assert (folder / "tokenizer.model").read_bytes() == UNIGRAM.read_bytes()


@pytest.mark.parametrize("file", [BPE, UNIGRAM], ids=["bpe", "unigram"])
def test_saving_leaves_out_the_lengths_of_the_last_call_and_keeps_them_in_use(file):
    tokenizer = LlamaTokenizerFast(file, pad_token="<unk>")
    before = tokenizer.to_json()
    tokenizer(["a b c d", "a"], padding=True, truncation=True, max_length=4)
    used = tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding
    assert None not in used
    assert tokenizer.to_json() == before
    assert (tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding) == used
    assert json.loads(before)["truncation"] is json.loads(before)["padding"] is None


def test_a_slow_tokenizer_is_saved_as_it_was_read_even_when_the_file_is_gone(folder):
    tokenizer = LlamaTokenizer.from_pretrained(folder, legacy=False)
    (folder / "tokenizer.model").unlink()
    (path,) = pickle.loads(pickle.dumps(tokenizer)).save_vocabulary(str(folder))
    assert Path(path).read_bytes() == UNIGRAM.read_bytes()


# The form of the files of adept/fuyu-8b: the tokenizer converted by the script that the documentation names, with
# LlamaTokenizerFast and |ENDOFTEXT| as bos and eos, saved by that version with the processor's class.
FUYU_CONFIG = {
    "add_bos_token": True,
    "add_eos_token": False,
    "added_tokens_decoder": {
        str(token_id): {
            "content": content,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token_id, content in ((0, "<unk>"), (1, "<s>"), (2, "</s>"), (3, "|ENDOFTEXT|"))
    },
    "additional_special_tokens": [],
    "bos_token": "|ENDOFTEXT|",
    "clean_up_tokenization_spaces": False,
    "eos_token": "|ENDOFTEXT|",
    "legacy": True,
    "model_max_length": 1000000000000000019884624838656,
    "pad_token": None,
    "processor_class": "FuyuProcessor",
    "sp_model_kwargs": {},
    "spaces_between_special_tokens": False,
    "tokenizer_class": "LlamaTokenizerFast",
    "unk_token": "<unk>",
    "use_default_system_prompt": True,
}


def test_files_of_the_form_of_fuyu_8b_load_as_they_are(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(FUYU_CONFIG))
    roles = {name: FUYU_CONFIG[name] for name in ("bos_token", "eos_token", "unk_token")}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(roles))
    shutil.copy(FOLDER / "saved_unigram" / "tokenizer.json", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer) is LlamaTokenizerFast
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (3, 3, 0)
    assert (tokenizer.pad_token, tokenizer.padding_side, len(tokenizer)) == (None, "left", 620)
    assert tokenizer.init_kwargs["processor_class"] == "FuyuProcessor"
    converted = LlamaTokenizerFast(UNIGRAM, **FUYU)
    for text in ("Generate a coco-style caption.\n", "|SPEAKER| a|NEWLINE|", "日 <0x0A>"):
        assert tokenizer(text).input_ids == converted(text).input_ids
    tokenizer.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert saved == FUYU_CONFIG | {"tokenizer_class": "LlamaTokenizer"}


@both
@pytest.mark.parametrize("missing", ["model", "folder"])
def test_missing_files_are_named(cls, missing, tmp_path):
    with pytest.raises(MissingFileError, match=r"tokenizer\.model"):
        cls.from_pretrained(tmp_path) if missing == "folder" else cls(tmp_path / "tokenizer.model", legacy=True)


def test_the_fast_tokenizer_without_files_says_what_it_needs():
    with pytest.raises(ValueError, match="tokenizer_file or vocab_file"):
        LlamaTokenizerFast()


def test_a_vocabulary_and_merges_that_do_not_fit_are_refused(tmp_path):
    state = json.loads(FAST[0].to_json())
    state["model"]["merges"].insert(0, "zz qq")
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        LlamaTokenizerFast.from_pretrained(tmp_path)


@every
def test_ids_outside_the_vocabulary_and_text_that_is_no_unicode_are_refused(tokenizer):
    with pytest.raises(TokenIdError, match="99999"):
        tokenizer.decode([99999])
    with pytest.raises(TokenIdError, match="-100"):
        tokenizer.batch_decode([[1, -100]])
    assert tokenizer.convert_ids_to_tokens([99999]) == [None]
    with pytest.raises(ValueError, match="surrogate"):
        tokenizer("a\ud800")
