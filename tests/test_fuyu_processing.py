"""Text and pictures together: batches, places, lengths, files, and what is refused."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from fuyu_processors import processor, tokenizer, tokens
from golden_fuyu_processing import picture
from triptych import AutoProcessor, FuyuBatchEncoding, FuyuDataCollator, FuyuImageProcessor, FuyuProcessor
from triptych.errors import ImageError, MissingFileError, SequenceTooLongError, UnknownOptionError
from triptych.models.fuyu.coordinates import places, split

RED = Image.new("RGB", (40, 20), "red")  # 20 high and 40 wide: 2 rows of 3 patches of 16 × 16
BLUE = Image.new("RGB", (10, 10), "blue")  # a single patch
RED_TOKENS = ["|SPEAKER|", "|SPEAKER|", "|SPEAKER|", "|NEWLINE|"] * 2


@pytest.fixture
def small():
    return processor("small")


def row_of(encoding, row):
    """Ids, indices and patches of a row without its padding."""
    mask = np.asarray(encoding["attention_mask"][row]).astype(bool)
    ids, indices = (np.asarray(encoding[name][row])[mask].tolist() for name in ("input_ids", "image_patches_indices"))
    return ids, indices, np.asarray(encoding["image_patches"][row])


# Batches.


def test_a_picture_of_640_by_420_has_14_rows_of_22_patches_each_with_a_newline():
    image = Image.fromarray(picture((420, 640)))
    found = processor("published")(text="", images=image)
    lines = found.image_patches_indices[0, : 14 * 23].reshape(14, 23)
    np.testing.assert_array_equal(lines[:, :22], np.arange(14 * 22).reshape(14, 22))
    assert (lines[:, 22] == -1).all()
    assert found.input_ids.shape == found.image_patches_indices.shape == (1, 14 * 23 + 2)
    assert found.image_patches[0].shape == (1, 14 * 22, 2700)


def test_a_row_reads_image_text_and_the_token_that_opens_the_answer(small):
    found = small(text="a red bus", images=RED)
    assert isinstance(found, FuyuBatchEncoding)
    assert list(found) == ["input_ids", "image_patches", "image_patches_indices", "attention_mask"]
    assert tokens(found.input_ids[0].tolist()) == [*RED_TOKENS, "<s>", "▁a", "▁red", "▁bus", "<0x04>"]
    assert found.image_patches_indices[0].tolist() == [0, 1, 2, -1, 3, 4, 5, -1, -1, -1, -1, -1, -1]
    assert found.input_ids.dtype == found.image_patches_indices.dtype == torch.int64


@pytest.mark.parametrize("seed", range(4))
def test_a_batch_gives_what_each_row_gives_alone(small, seed):
    generator = np.random.default_rng(seed)
    texts, images = [], []
    for _ in range(5):
        texts.append(" ".join(generator.choice(["a", "red", "bus", "what", "\n"], generator.integers(0, 6))))
        row = [picture(tuple(generator.integers(1, 200, 2))) for _ in range(generator.integers(0, 4))]
        images.append(row or None)
    images[0] = picture((33, 20))
    batch = small(text=texts, images=images, input_data_format="channels_last")
    for number, (text, row) in enumerate(zip(texts, images, strict=True)):
        ids, indices, patches = row_of(batch, number)
        if row is None:
            assert ids == small(text=text)["input_ids"]
            assert patches.shape == (1, 0, 768)
            continue
        alone = small(text=text, images=[row] if isinstance(row, list) else row, input_data_format="channels_last")
        assert (ids, indices) == (alone["input_ids"][0].tolist(), alone["image_patches_indices"][0].tolist())
        np.testing.assert_array_equal(patches, alone["image_patches"][0])
        assert sorted(index for index in indices if index >= 0) == list(range(patches.shape[1]))


def test_images_without_text_are_all_encoded(small):
    found = small(images=[RED, BLUE])
    assert tokens(row_of(found, 0)[0]) == [*RED_TOKENS, "<s>", "<0x04>"]
    assert tokens(row_of(found, 1)[0]) == ["|SPEAKER|", "|NEWLINE|", "<s>", "<0x04>"]


def test_several_images_stand_before_their_text_in_their_order(small):
    for images in ([[BLUE, RED]], [BLUE, RED]):
        found = small(text="a bus", images=images)
        expected = ["|SPEAKER|", "|NEWLINE|", *RED_TOKENS, "<s>", "▁a", "▁bus", "<0x04>"]
        assert tokens(found.input_ids[0].tolist()) == expected
        assert found.image_patches_indices[0, :10].tolist() == [0, -1, 1, 2, 3, -1, 4, 5, 6, -1]
        np.testing.assert_array_equal(found.image_patches[0][:, :1], small(images=BLUE).image_patches[0])
        np.testing.assert_array_equal(found.image_patches[0][:, 1:], small(images=RED).image_patches[0])


def test_texts_alone_go_to_the_tokenizer(small):
    expected = tokenizer()(["a red bus", "what"], return_length=True, return_token_type_ids=False)
    found = small(text=["a red bus", "what"], return_length=True)
    assert isinstance(found, FuyuBatchEncoding)
    assert dict(found) == dict(expected)
    assert found.tokens(0) == expected.tokens(0)
    assert small(text="a").char_to_token(0) == 1


@pytest.mark.parametrize(("given", "kind"), [("np", np.ndarray), ("pt", torch.Tensor), (None, torch.Tensor)])
def test_tensors_are_of_the_kind_asked_for(small, given, kind):
    found = small(text=["a", "b"], images=[RED, None], return_tensors=given)
    for column in found.values():
        assert all(isinstance(each, kind) for each in (column if isinstance(column, list) else [column]))
    assert {str(each.dtype).removeprefix("torch.") for each in found.image_patches} == {"float32"}


def test_a_missing_framework_is_named(small):
    for name in ("tf", "jax"):
        try:
            __import__({"tf": "tensorflow", "jax": "jax"}[name])
        except ImportError:
            with pytest.raises(ImportError, match="pip install"):
                small(text="a", images=RED, return_tensors=name)
    with pytest.raises(ValueError, match="return_tensors must be one of"):
        small(text="a", images=RED, return_tensors="mx")


def test_an_encoding_moves_and_only_floats_change_their_dtype(small):
    found = small(text="a", images=RED).to("meta", dtype=torch.bfloat16)
    assert found.input_ids.device.type == found.image_patches[0].device.type == "meta"
    assert (found.input_ids.dtype, found.image_patches[0].dtype) == (torch.int64, torch.bfloat16)
    assert small(text="a", images=RED).to(torch.float16).image_patches[0].dtype == torch.float16


def test_further_columns_are_given_when_asked_for(small):
    options = {"return_special_tokens_mask": True, "return_token_type_ids": True, "return_length": True}
    found = small(text=["a bus", "a"], images=[BLUE, RED], return_attention_mask=False, **options)
    assert "attention_mask" not in found
    assert found.length.tolist() == [6, 11]
    assert found.special_tokens_mask.tolist() == [[1] * 5 + [1, 1, 1, 0, 0, 1], [1] * 9 + [0, 1]]
    assert found.token_type_ids.tolist() == [[0] * 11] * 2


def test_special_tokens_may_be_left_out(small):
    found = small(text="a bus", images=RED, add_special_tokens=False)
    assert tokens(found.input_ids[0].tolist()) == [*RED_TOKENS, "▁a", "▁bus"]


# Lengths.


def test_rows_are_padded_as_asked(small):
    assert small(text="a", images=RED, padding="max_length", max_length=20).input_ids.shape == (1, 20)
    assert small(text="a", images=RED, pad_to_multiple_of=8).input_ids.shape == (1, 16)
    assert small(text="a", images=RED, padding="max_length", max_length=3, truncation=False).input_ids.shape == (1, 11)


def test_padding_takes_the_pad_token_where_there_is_one():
    own = pickle.loads(pickle.dumps(tokenizer()))
    own.pad_token = "</s>"
    found = FuyuProcessor(processor("small").image_processor, own)(text=["a bus", "a"], images=[BLUE, RED])
    assert found.input_ids[0, :5].tolist() == [own.pad_token_id] * 5


def test_truncation_shortens_the_text_and_never_an_image(small):
    found = small(text=["a red bus", "what is"], images=[RED, BLUE], truncation=True, max_length=11)
    assert tokens(row_of(found, 0)[0]) == [*RED_TOKENS, "<s>", "▁a", "<0x04>"]
    assert tokens(row_of(found, 1)[0]) == ["|SPEAKER|", "|NEWLINE|", "<s>", "▁what", "▁is", "<0x04>"]
    assert small(text="a red bus", images=RED, truncation=True, max_length=10).input_ids.shape == (1, 10)
    with pytest.raises(SequenceTooLongError, match="10 tokens of max_length=9"):
        small(text="a red bus", images=RED, truncation=True, max_length=9)
    own = pickle.loads(pickle.dumps(tokenizer()))
    own.truncation_side = "left"
    found = FuyuProcessor(small.image_processor, own)(text="a red bus", images=RED, truncation=True, max_length=11)
    assert tokens(found.input_ids[0].tolist()) == [*RED_TOKENS, "<s>", "▁bus", "<0x04>"]


# Places.

factors = st.sampled_from([(96, 128), (50, 60), (192, 256), (333, 200)])


@settings(max_examples=150, deadline=None)
@given(data=st.data(), size=factors)
def test_places_come_back_within_the_grid_of_the_tokens(data, size):
    small = processor("small")
    coordinates = st.tuples(st.integers(0, size[0]), st.integers(0, size[1]))
    given_places = data.draw(st.lists(st.tuples(coordinates, coordinates) | st.tuples(coordinates), max_size=4))
    words = data.draw(st.lists(st.sampled_from(["", "a ", "red", " bus"]), min_size=5, max_size=5))
    text = words[0]
    for place, word in zip(given_places, words[1:], strict=False):
        name = "box" if len(place) == 2 else "point"
        text += f"<{name}>{', '.join(str(value) for pair in place for value in pair)}</{name}>{word}"
    ids = small(text=text, images=Image.new("RGB", size[::-1]))["input_ids"]
    found = places(small.decode(small.post_process_box_coordinates(ids, [size])[0]).replace("▁", " "))
    factor = min(1, 96 / size[0], 128 / size[1])
    assert [place.kind.name for place in found] == [place.kind.name for place in places(text)]
    for place, before in zip(found, places(text), strict=True):
        np.testing.assert_allclose(place.values, before.values, atol=1 / factor * 1.03 + 0.5)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["<0x00>", "<0x01>", "<0x02>", "<0x03>", "1", "20", "300", "▁a", "▁", "<s>"]), max_size=30)
)
def test_malformed_answers_end_and_stay_as_they_are(answer):
    ids = tokenizer().convert_tokens_to_ids(answer)
    (found,) = processor("small").post_process_box_coordinates([ids])
    whole = []
    position = 0
    while position < len(answer):
        for opens, closes, count in (("<0x00>", "<0x01>", 4), ("<0x02>", "<0x03>", 2)):
            inner = answer[position + 1 : position + 1 + count]
            end = position + 1 + count
            if answer[position] == opens and all(map(str.isdigit, inner)) and answer[end : end + 1] == [closes]:
                name = "box" if count == 4 else "point"
                text = f"<{name}>{', '.join(str(int(number) * 2) for number in inner)}</{name}>"
                whole += tokenizer()(text, add_special_tokens=False)["input_ids"]
                position = end
                break
        else:
            whole.append(ids[position])
        position += 1
    assert found == whole


def test_a_box_at_the_start_comes_back_and_several_are_not_doubled(small):
    answer = [
        "<0x00>",
        "1",
        "2",
        "3",
        "4",
        "<0x01>",
        "<0x00>",
        "5",
        "6",
        "7",
        "8",
        "<0x01>",
        "<0x02>",
        "0",
        "9",
        "<0x03>",
    ]
    ids = torch.tensor([tokenizer().convert_tokens_to_ids(answer)])
    (found,) = small.post_process_box_coordinates(ids)
    assert isinstance(found, torch.Tensor)
    text = "<box>2, 4, 6, 8</box> <box>10, 12, 14, 16</box> <point>0, 18</point>"
    assert small.decode(found).strip() == text
    (found,) = small.post_process_box_coordinates(ids.numpy(), target_sizes=torch.tensor([[192, 256]]))
    assert isinstance(found, np.ndarray)
    assert small.decode(found).strip().startswith("<box>4, 8, 12, 16</box>")


def test_each_row_has_its_own_target_size(small):
    row = tokenizer().convert_tokens_to_ids(["<0x02>", "10", "20", "<0x03>"])
    found = small.post_process_box_coordinates([row, row], [(96, 128), (192, 256)])
    assert [text.strip() for text in small.batch_decode(found)] == ["<point>20, 40</point>", "<point>40, 80</point>"]
    with pytest.raises(ValueError, match="2 rows, target_sizes 1"):
        small.post_process_box_coordinates([row, row], [(96, 128)])
    with pytest.raises(ValueError, match="one row"):
        small.post_process_box_coordinates(row)
    with pytest.raises(ValueError, match="height, width"):
        small.post_process_box_coordinates([row], [(96, 0)])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a <box>1, 2, 3</box>", r"<box>y1, x1, y2, x2</box> with numbers; got <box>1, 2, 3</box>"),
        ("<point>1, 2, 3</point>", "<point>y, x</point> with numbers"),
        ("<box>1, a, 3, 4</box>", "with numbers"),
        ("<box>nan, 1, 3, 4</box>", "with numbers"),
        ("<point>inf, 1</point>", "with numbers"),
        ("<box></box>", "with numbers"),
        ("<box>1, 2, 3, 4", "opens one only"),
        ("a </box>", "closes one only"),
        ("<box>1, 2</point>", "opens one only"),
        ("<box><box>1, 2, 3, 4</box></box>", "opens one only"),
        ("<point>21, 3</point>", r"y must lie in the picture, which is 20 × 40 \(height × width\); got 21"),
        ("<point>3, 40.5</point>", "x must lie in"),
        ("<box>0, 0, 5, 41</box>", "x2 must lie in"),
        ("<box>-1, 0, 5, 4</box>", "y1 must lie in"),
    ],
)
def test_a_malformed_place_or_one_outside_is_named(small, text, says):
    with pytest.raises(ValueError, match=says):
        small(text=text, images=RED)


def test_a_place_among_images_of_different_scales_is_refused(small):
    with pytest.raises(ValueError, match="any of 2 images"):
        small(text="<point>1, 2</point>", images=[[RED, Image.new("RGB", (400, 400))]])
    assert small(text="<point>19, 2</point>", images=[[RED, BLUE]]).input_ids.shape[0] == 1


def test_a_coordinate_without_a_token_is_named(small):
    tall = FuyuProcessor(FuyuImageProcessor(size={"height": 4000, "width": 40}), tokenizer())
    with pytest.raises(ValueError, match="'1500' must be a token of its own"):
        tall(text="<point>3000, 2</point>", images=Image.new("RGB", (40, 3500)))


def test_split_gives_every_character_back():
    text = "a<box>1, 2, 3, 4</box>b <point>5, 6.5</point>"
    assert "".join(map(str, split(text))) == text
    assert split("") == []


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({}, ValueError, "both are None"),
        ({"text": ["a", "b"], "images": RED}, ValueError, "2 texts and images for 1 rows"),
        ({"text": ["a", "b"], "images": [RED]}, ValueError, "2 texts and images for 1 rows"),
        ({"text": ["a"], "images": [RED, BLUE]}, ValueError, "1 texts and images for 2 rows"),
        ({"text": "a", "images": [[RED], [BLUE]]}, ValueError, "1 texts and images for 2 rows"),
        ({"text": "a", "images": []}, ValueError, "At least one image"),
        ({"text": [3], "images": [RED]}, TypeError, "text must be a str"),
        ({"text": 3, "images": [RED]}, TypeError, "text must be a str"),
        ({"text": [["a", "b"]], "images": [RED]}, TypeError, "text must be a str"),
        ({"text": "a", "images": "cat.png"}, TypeError, "open_image"),
        ({"text": "a", "images": np.full((3, 4, 4), np.nan)}, ImageError, "NaN"),
        ({"text": "a", "images": RED, "do_resise": True}, UnknownOptionError, "do_resise"),
        ({"text": "a", "images": RED, "padding": "longer"}, ValueError, "padding must be one of"),
        ({"text": "a", "images": RED, "return_offsets_mapping": True}, ValueError, "texts without images"),
    ],
)
def test_texts_and_images_that_do_not_match_are_refused(small, arguments, error, says):
    with pytest.raises(error, match=says):
        small(**arguments)


def test_a_processor_needs_both_parts():
    with pytest.raises(ValueError, match="a FuyuImageProcessor as image_processor"):
        FuyuProcessor(None, tokenizer())
    with pytest.raises(ValueError, match="a tokenizer as tokenizer"):
        FuyuProcessor(image_processor=FuyuImageProcessor(), tokenizer=None)


# Files.


@pytest.fixture
def folder(tmp_path):
    processor("small").save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_processor_loads_and_gives_the_same(folder):
    expected = processor("small")(text="a <point>3, 4</point>", images=RED)
    for loaded in (FuyuProcessor.from_pretrained(folder), AutoProcessor.from_pretrained(folder)):
        found = loaded(text="a <point>3, 4</point>", images=RED)
        assert found.input_ids.tolist() == expected.input_ids.tolist()
        assert loaded.image_processor == FuyuImageProcessor.from_pretrained(folder)
    assert FuyuProcessor.from_pretrained(folder, do_pad=False, padding_side="left").tokenizer.padding_side == "left"


def test_a_folder_without_its_tokenizer_names_the_files(folder):
    for path in folder.glob("*token*"):
        path.unlink()
    with pytest.raises(MissingFileError, match=r"tokenizer_config\.json with tokenizer\.json or tokenizer\.model"):
        FuyuProcessor.from_pretrained(folder)


def test_a_folder_without_the_image_processor_names_the_file(folder):
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(MissingFileError, match=r"preprocessor_config\.json"):
        FuyuProcessor.from_pretrained(folder)


def test_a_failed_save_leaves_what_was_there(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    small = processor("published")

    def fail(*arguments):
        raise RuntimeError("no")

    monkeypatch.setattr(small.image_processor, "save_pretrained", fail)
    with pytest.raises(RuntimeError, match="no"):
        small.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_tokenizer_without_fuyu_s_tokens_is_refused(small):
    from triptych import GPT2TokenizerFast

    other = GPT2TokenizerFast.from_pretrained("triptych/tales-neo")
    with pytest.raises(ValueError, match=r"'\|SPEAKER\|' must be a token of its own"):
        FuyuProcessor(small.image_processor, other)(text="a", images=RED)


# Fine-tuning.

EXAMPLES = [
    {"text": "what is in this picture", "answer": "a red bus", "images": RED},
    {"text": "find <point>3, 4</point>", "answer": "<box>2, 4, 10, 8</box>", "image": BLUE},
    {"text": "a", "answer": "bus", "images": [BLUE, RED]},
    {"text": "a", "answer": "", "images": None},
]


def test_the_loss_sees_the_answer_and_its_end_alone(small):
    batch = FuyuDataCollator(small)(EXAMPLES)
    assert list(batch) == ["input_ids", "image_patches", "image_patches_indices", "attention_mask", "labels"]
    seen = [["▁a", "▁red", "▁bus"], ["<0x00>", "1", "2", "5", "4", "<0x01>"], ["▁bus"], []]
    for number, (example, answer) in enumerate(zip(EXAMPLES, seen, strict=True)):
        labels = batch.labels[number]
        kept = labels[labels != -100].tolist()
        assert tokens(kept) == [*answer, "|ENDOFTEXT|"]
        ids, indices, patches = row_of(batch, number)
        assert ids[-len(kept) :] == kept  # labels stand where the ids stand: the model shifts them
        assert labels[-len(kept) :].tolist() == kept
        images = example.get("images", example.get("image"))
        prompt = small(text=example["text"], images=images)
        if images is None:
            assert ids[: -len(kept)] == prompt["input_ids"]
        else:
            assert ids[: -len(kept)] == prompt["input_ids"][0].tolist()
            assert indices[: -len(kept)] == prompt["image_patches_indices"][0].tolist()
            np.testing.assert_array_equal(patches, prompt["image_patches"][0])
        assert set(indices[-len(kept) :]) == {-1}


def test_the_collator_serves_a_data_loader(small):
    collator = pickle.loads(pickle.dumps(FuyuDataCollator(small, pad_to_multiple_of=8)))
    batches = list(DataLoader(EXAMPLES, batch_size=2, collate_fn=collator))
    assert len(batches) == 2
    for batch in batches:
        assert batch.input_ids.shape == batch.labels.shape == batch.image_patches_indices.shape
        assert batch.input_ids.shape[1] % 8 == 0
        assert (batch.labels[batch.attention_mask == 0] == -100).all()


@pytest.mark.parametrize(
    ("example", "error", "says"),
    [
        ({"answer": "a", "images": RED}, TypeError, "Example 1: An example needs a str as text"),
        ({"text": "a", "images": RED}, TypeError, "a str as answer"),
        ({"text": "a", "answer": 3}, TypeError, "a str as answer"),
        ({"text": "a", "answer": "b", "image": RED, "images": RED}, ValueError, "got both"),
        ({"text": "a", "answer": "<box>1</box>", "images": RED}, ValueError, "Example 1: A box is written"),
        ({"text": "a", "answer": "<point>99, 1</point>", "images": RED}, ValueError, "y must lie in"),
        ({"text": "a", "answer": "a " * 30, "images": RED}, SequenceTooLongError, "max_length=30 tokens; this has 43"),
        ({"text": "\ud800", "answer": "b", "images": RED}, (TypeError, ValueError), "Example 1: "),
        ("a", TypeError, "must be a mapping"),
    ],
)
def test_an_example_that_cannot_be_used_is_named(small, example, error, says):
    with pytest.raises(error, match=says):
        FuyuDataCollator(small, max_length=30)([EXAMPLES[0], example])


def test_training_needs_an_eos_token(small):
    own = pickle.loads(pickle.dumps(tokenizer()))
    own.eos_token = None
    with pytest.raises(ValueError, match="eos token"):
        FuyuDataCollator(FuyuProcessor(small.image_processor, own))(EXAMPLES)
