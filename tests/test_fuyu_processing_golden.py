"""Fuyu's processors against the golden files: pixels, patches, ids and indices."""

import json
from functools import cache

import numpy as np
import pytest
import torch

import golden_fuyu_processing as golden
from fuyu_processors import FOLDER, processor, tokenizer
from triptych import FuyuImageProcessor

PAIR = ((50, 70), (150, 170))  # a picture that fits the small processor's size, and one that does not


@cache
def read(name):
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def close(found, expected):
    """Two fingerprints: equal in shape and in every level, close in the values that were kept."""
    assert found["shape"] == expected["shape"]
    assert found["dtype"] == expected["dtype"]
    assert found["digest"] == expected["digest"]
    np.testing.assert_allclose(found["some"], expected["some"], rtol=1e-6, atol=1e-5)


def alike(found, expected):
    assert found.keys() == expected.keys()
    for name in found.keys() - {"shape", "dtype", "digest", "some"}:
        assert found[name] == pytest.approx(expected[name], abs=1e-12), name
    close(found, expected)


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, sizes in golden.SIZES.items() for size in sizes])
def test_pixels_are_those_of_the_reference_at_every_size(name, size):
    expected = read("images.json")["sizes"][name][golden.SIZES[name].index(size)]
    image_processor = FuyuImageProcessor(**golden.PROCESSORS[name])
    found = golden.preprocessed(image_processor, golden.picture(size), input_data_format="channels_last")
    if "error" in expected:  # the reference shrinks a side to nothing
        assert min(found["image_unpadded_heights"], found["image_unpadded_widths"]) == 1
    else:
        alike(found, expected)


@pytest.mark.parametrize("number", range(len(golden.OPTIONS)), ids=[str(options) for options in golden.OPTIONS])
@pytest.mark.parametrize("place", [0, 1])
def test_pixels_are_those_of_the_reference_with_every_option(number, place):
    image_processor, options = FuyuImageProcessor(**golden.PROCESSORS["small"]), golden.OPTIONS[number]
    found = golden.preprocessed(image_processor, golden.picture(PAIR[place]), **options)
    alike(found, read("images.json")["options"][number][place])


@pytest.mark.parametrize("form", golden.FORMS)
@pytest.mark.parametrize("place", [0, 1])
def test_pixels_are_those_of_the_reference_however_the_picture_is_handed_over(form, place):
    image, options = golden.in_form(golden.picture(PAIR[place]), form)
    found = golden.preprocessed(FuyuImageProcessor(**golden.PROCESSORS["small"]), image, **options)
    alike(found, read("images.json")["forms"][form][place])


@pytest.mark.parametrize("variable_sized", [True, False])
def test_patches_and_their_places_are_those_of_the_reference(variable_sized):
    image_processor = FuyuImageProcessor(**golden.PROCESSORS["small"])
    found = golden.tokenizer_info(image_processor, [(50, 90), (16, 16), (333, 200)], variable_sized, torch)
    expected = read("images.json")["tokenizer_info"][0 if variable_sized else 1]
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        assert [len(row) for row in found[name]] == [len(row) for row in rows]
        for row, expected_row in zip(found[name], rows, strict=True):
            for value, wanted in zip(row, expected_row, strict=True):
                if isinstance(wanted, dict):
                    close(value, wanted)
                else:
                    assert value == wanted, name


def test_the_file_of_the_reference_is_written_as_it_writes_it():
    assert json.loads(FuyuImageProcessor().to_json_string()) == read("images.json")["file"]


@pytest.mark.parametrize("number", range(len(golden.CALLS)), ids=[repr(text) for text, *_ in golden.CALLS])
def test_ids_indices_and_patches_are_those_of_the_reference(number):
    text, sizes, name = golden.CALLS[number]
    expected = read("calls.json")["calls"][number]
    found = golden.called(processor(name), text, sizes)
    if text is None:
        assert len(sizes) == 1  # of several, the reference encodes the first only
    for key in ("keys", "input_ids", "image_patches_indices", "attention_mask"):
        assert found[key] == expected[key]
    for patches, wanted in zip(found["image_patches"], expected["image_patches"], strict=True):
        close(patches, wanted)


@pytest.mark.parametrize("number", range(len(golden.SWEEPS)), ids=[str(size) for size, _ in golden.SWEEPS])
def test_every_coordinate_becomes_the_token_of_the_reference(number):
    size, name = golden.SWEEPS[number]
    image, _ = golden.in_form(golden.picture(size), "pillow")
    expected = read("calls.json")["sweeps"][number]
    found = processor(name)(text=golden.sweep_text(size), images=image)["input_ids"][0].tolist()
    assert found[-len(expected) :] == expected


@pytest.mark.parametrize("number", range(len(golden.ANSWERS)))
def test_places_in_answers_become_the_text_of_the_reference(number):
    ids = torch.tensor([tokenizer().convert_tokens_to_ids(golden.ANSWERS[number])])
    assert processor().post_process_box_coordinates(ids)[0].tolist() == read("calls.json")["answers"][number]


@pytest.mark.parametrize("number", range(3))
def test_texts_alone_are_encoded_as_the_tokenizer_does(number):
    text = ("a red bus", "", "x <box>1, 2, 3, 4</box>")[number]
    assert processor()(text=text)["input_ids"] == read("calls.json")["text_alone"][number]
