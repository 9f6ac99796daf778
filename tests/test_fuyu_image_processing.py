"""Pictures in: what Fuyu's image processor takes, what it refuses, and what it gives back."""

import io
import json
import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import EpsImagePlugin, Image, ImageFile

from golden_fuyu_processing import picture
from triptych import AutoImageProcessor, AutoProcessor, FuyuBatchFeature, FuyuImageProcessor
from triptych.errors import ImageError, InvalidFileError, MissingFileError
from triptych.image_transforms import FORMATS, float_patches, open_image, patchify, size_to_fit, to_image

SMALL = {"size": {"height": 96, "width": 128}, "patch_size": {"height": 16, "width": 16}}
PUBLISHED = {  # preprocessor_config.json of adept/fuyu-8b
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": 0.5,
    "image_processor_type": "FuyuImageProcessor",
    "image_std": 0.5,
    "padding_mode": "constant",
    "padding_value": 1.0,
    "patch_size": {"height": 30, "width": 30},
    "processor_class": "FuyuProcessor",
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 1080, "width": 1920},
}


@pytest.fixture
def small():
    return FuyuImageProcessor(**SMALL)


def pixels(processor, image, **options):
    """The floats of one image."""
    return processor(image, **options).images[0][0]


# What is taken.


@pytest.mark.parametrize("size", [(50, 70), (150, 170)])
def test_every_way_to_hand_over_a_picture_gives_the_same_floats(small, size):
    levels = picture(size)
    expected = pixels(small, Image.fromarray(levels))
    first = levels.transpose(2, 0, 1)
    for image in (
        levels,
        first,
        levels.astype(np.int64),
        levels.astype(np.float64),
        first / 255,
        (levels / 255).astype(np.float32),
        torch.from_numpy(first.copy()),
        torch.from_numpy(levels / 255),
        torch.from_numpy(levels).float().requires_grad_(),
    ):
        np.testing.assert_allclose(pixels(small, image), expected, atol=1e-5)


def test_sixteen_bit_floats_are_taken(small):
    exact = np.full((3, 20, 30), 0.5, np.float16)
    for image in (exact, torch.from_numpy(exact), torch.from_numpy(exact).bfloat16()):
        np.testing.assert_allclose(pixels(small, image)[:, :20, :30], 0, atol=1e-6)


@pytest.mark.parametrize("size", [(50, 70), (150, 170)])
def test_grey_is_three_equal_channels(small, size):
    grey = picture(size)[..., 0]
    expected = pixels(small, np.stack([grey] * 3))
    for image in (grey, grey[None], grey[..., None], Image.fromarray(grey), torch.from_numpy(grey)):
        np.testing.assert_array_equal(pixels(small, image), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_pixels_are_white_and_opaque_ones_stay(small, mode):
    image = Image.new("RGBA", (20, 10), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 20, 5))
    found = pixels(small, image.convert(mode) if mode != "PA" else image.convert("P").convert("PA"))
    if mode != "PA":
        np.testing.assert_allclose(found[:, :5, :20], -1)
        np.testing.assert_allclose(found[:, 5:10, :20], 1)


def test_alpha_in_arrays_is_that_of_pictures(small):
    image = Image.merge(
        "RGBA", [*Image.fromarray(picture((30, 40))).split(), Image.linear_gradient("L").resize((40, 30))]
    )
    expected = pixels(small, image)
    levels = np.asarray(image)
    for array in (levels, levels.transpose(2, 0, 1), (levels / 255).astype(np.float32)):
        np.testing.assert_allclose(pixels(small, array), expected, atol=0.009)  # Pillow rounds to a level


def test_a_palette_with_a_transparent_colour_stands_on_white(small):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.info["transparency"] = 1
    np.testing.assert_allclose(pixels(small, image)[:, :4, :4], 1)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"])
def test_every_mode_of_pillow_is_read_as_the_same_white(small, mode):
    white = Image.new("RGB", (8, 6), "white")
    if mode == "I;16":
        image = Image.fromarray(np.full((6, 8), 65535, np.uint16))
    else:
        image = white.convert("L").convert(mode) if mode in ("I", "F") else white.convert(mode)
    np.testing.assert_allclose(pixels(small, image)[:, :6, :8], 1, atol=0.02)


def test_the_orientation_that_a_camera_wrote_is_followed(small, tmp_path):
    upright = Image.fromarray(picture((20, 30)))
    expected = pixels(small, upright)
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> the method of Pillow that undoes it
    for orientation, method in back.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        upright.transpose(method).save(tmp_path / "turned.png", exif=exif)
        with Image.open(tmp_path / "turned.png") as image:
            found = pixels(small, image)
        np.testing.assert_array_equal(found, expected)


def test_an_ambiguous_array_is_read_as_documented_and_may_be_settled(small):
    array = picture((3, 50))  # (3, 50, 3)
    assert pixels(small, array, do_pad=False).shape == (3, 50, 3)
    assert pixels(small, array, do_pad=False, input_data_format="channels_last").shape == (3, 3, 50)
    row = picture((1, 50))  # (1, 50, 3): a row of colours rather than a grey picture three wide
    assert pixels(small, row, do_pad=False).shape == (3, 1, 50)


@pytest.mark.parametrize(
    ("images", "rows"),
    [
        (picture((5, 6)), [1]),
        ([picture((5, 6)), picture((7, 8))], [1, 1]),
        ((picture((5, 6)),), [1]),
        ([[picture((5, 6)), picture((7, 8))], [picture((3, 9))]], [2, 1]),
        ([picture((5, 6)), [picture((7, 8)), picture((3, 9))]], [1, 2]),
        (np.zeros((4, 3, 5, 6), np.uint8), [1, 1, 1, 1]),
        (torch.zeros(2, 5, 6, 3), [1, 1]),
    ],
)
def test_lists_of_lists_and_batches_keep_their_form(small, images, rows):
    found = small(images)
    for column in found.values():
        assert [len(row) for row in column] == rows
    assert found.image_unpadded_heights[0][0] == 5


@pytest.mark.parametrize(
    ("given", "kind"), [("np", np.ndarray), ("pt", torch.Tensor), (None, np.ndarray)], ids=["np", "pt", "None"]
)
def test_tensors_are_of_the_kind_asked_for(small, given, kind):
    found = small(picture((5, 6)), return_tensors=given)
    assert isinstance(found, FuyuBatchFeature)
    assert isinstance(found["images"][0][0], kind)
    assert int(found.image_unpadded_widths[0][0]) == 6


def test_tensors_move_and_only_floats_change_their_dtype(small):
    found = small(picture((5, 6)), return_tensors="pt").to("meta", torch.float16)
    assert found.images[0][0].device.type == "meta"
    assert found.images[0][0].dtype == torch.float16
    assert found.image_unpadded_widths[0][0].dtype == torch.int64


def test_the_user_s_picture_is_left_as_it_was(small):
    array = picture((50, 70)).astype(np.float32)
    before = array.copy()
    small(array)
    np.testing.assert_array_equal(array, before)


# Sizes.


@pytest.mark.parametrize("size", [(1, 1), (1, 30_000), (30_000, 1), (2, 30_000), (96, 128), (97, 129)])
def test_a_picture_of_any_size_fits_and_keeps_at_least_a_pixel(small, size):
    found = small(np.zeros((*size, 3), np.uint8))
    height, width = found.image_unpadded_heights[0][0], found.image_unpadded_widths[0][0]
    assert 1 <= height <= 96
    assert 1 <= width <= 128
    assert found.images[0][0].shape == (3, 96, 128)


@given(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), st.tuples(st.integers(1, 500), st.integers(1, 500)))
def test_a_picture_is_never_enlarged_and_keeps_its_aspect(size, limit):
    fitting, factor = size_to_fit(size, limit)
    assert 0 < factor <= 1
    scale = min(1, limit[0] / size[0], limit[1] / size[1])
    for side, before, most in zip(fitting, size, limit, strict=True):
        assert 1 <= side <= most
        assert before * scale - 1 - 1e-9 <= side <= max(before * scale, 1) + 1e-9


def test_the_filter_is_the_one_asked_for():
    levels = picture((150, 170))
    for resample in (0, 1, 2, 3, 4, 5):
        found = pixels(FuyuImageProcessor(**SMALL, resample=resample), levels, do_pad=False)
        expected = np.asarray(Image.fromarray(levels).resize((108, 96), resample))
        np.testing.assert_allclose(found, expected.transpose(2, 0, 1) / 127.5 - 1, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    patch=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    mode=st.sampled_from(["constant", "reflect", "replicate", "symmetric"]),
    kind=st.sampled_from([np.uint8, np.float32]),
)
def test_patches_are_those_of_the_padded_image_whatever_their_size(size, patch, mode, kind):
    side = {"height": patch[0] * 6, "width": patch[1] * 5}
    options = {"patch_size": {"height": patch[0], "width": patch[1]}, "size": side, "padding_mode": mode}
    image_processor = FuyuImageProcessor(image_mean=[0.1, 0.5, 0.2], image_std=[0.5, 0.25, 1], **options)
    image = picture(size).astype(kind)
    canvas = image_processor(image, return_tensors="pt", input_data_format="channels_last")
    found = image_processor.patches(image, input_data_format="channels_last")
    height, width = canvas.image_unpadded_heights[0][0], canvas.image_unpadded_widths[0][0]
    rows, columns = -(-height // patch[0]), -(-width // patch[1])
    cut = canvas.images[0][0][None, :, : rows * patch[0], : columns * patch[1]]
    assert found.rows == rows
    np.testing.assert_allclose(found.values, image_processor.patchify_image(cut)[0].numpy(), atol=2e-6)


def test_a_patch_holds_the_colours_of_a_pixel_side_by_side():
    image = np.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    patches = patchify(image, (2, 3))
    assert patches.shape == (2, 4, 18)
    np.testing.assert_array_equal(patches[1, 3, :6], [*image[1, :, 2, 3], *image[1, :, 2, 4]])
    np.testing.assert_array_equal(patchify(torch.from_numpy(image), (2, 3)).numpy(), patches)
    one = np.ones(1, np.float32)
    direct = float_patches(image[1].transpose(1, 2, 0), (2, 3), one, 0 * one, one)
    np.testing.assert_array_equal(direct.reshape(4, 18), patches[1])


def test_the_number_of_patches_is_that_of_the_patch_size_asked_for():
    image_processor = FuyuImageProcessor()
    assert image_processor.get_num_patches(60, 90) == 6
    assert image_processor.get_num_patches(60, 90, {"height": 10, "width": 30}) == 18
    with pytest.raises(ValueError, match="61 × 90 is no multiple of 30 × 30"):
        image_processor.get_num_patches(61, 90)
    with pytest.raises(ValueError, match="no multiple of 30 × 30"):
        image_processor.patchify_image(torch.zeros(1, 3, 31, 60))


def test_a_picture_that_is_not_shrunk_may_be_larger_than_the_size(small):
    assert pixels(small, picture((150, 50)), do_resize=False).shape == (3, 150, 128)


def test_one_step_at_a_time_keeps_the_axes(small):
    levels = picture((150, 170))
    assert small.resize(levels, {"height": 96, "width": 128}).shape == (96, 108, 3)
    assert small.resize(levels.transpose(2, 0, 1), {"height": 96, "width": 128}).shape == (3, 96, 108)
    padded = small.pad_image(levels, {"height": 200, "width": 300})
    assert padded.shape == (200, 300, 3)
    assert (padded[150:] == 1).all()
    with pytest.raises(ValueError, match="does not fit"):
        small.pad_image(levels, {"height": 20, "width": 300})


# What is refused.


@pytest.mark.parametrize(
    ("image", "error", "says"),
    [
        ("cat.png", TypeError, "open_image"),
        (None, TypeError, "NoneType"),
        (3, TypeError, "int"),
        (np.ones((20, 30, 3), bool), TypeError, "astype"),
        (torch.ones(3, 20, 30, dtype=torch.bool), TypeError, "bool"),
        (np.array([["a"]]), TypeError, "ints from 0 to 255"),
        (np.zeros((20, 30, 3), complex), TypeError, "complex"),
        (np.full((20, 30, 3), 256), ImageError, "0 to 255"),
        (np.full((20, 30, 3), -1), ImageError, "0 to 255"),
        (np.full((3, 20, 30), np.nan), ImageError, "NaN"),
        (np.full((3, 20, 30), np.inf, np.float32), ImageError, "infinity"),
        (torch.full((3, 20, 30), torch.nan), ImageError, "NaN"),
        (np.zeros((3, 0, 30), np.uint8), ImageError, "must have pixels"),
        (np.zeros((0, 0, 3), np.uint8), ImageError, "must have pixels"),
        (np.zeros((5, 20, 30), np.uint8), ImageError, "channels"),
        (np.zeros((20, 30, 7), np.uint8), ImageError, "channels"),
        (np.zeros(20, np.uint8), ImageError, "axes"),
        (np.zeros((2, 2, 3, 20, 30), np.uint8), ImageError, "axes"),
        (np.full((200, 300, 3), -0.5), ImageError, "0 to 1, or 0 to 255"),
        (Image.new("RGB", (0, 5)), ImageError, "0 × 5"),
        ([], ValueError, "At least one image"),
        ([[]], ValueError, "At least one image"),
        ([[picture((5, 6))], []], ValueError, "row 1 has none"),
    ],
)
def test_what_is_no_picture_is_refused(small, image, error, says):
    with pytest.raises(error, match=says):
        small(image)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"size": {"height": 10}}, ValueError, "size must be like"),
        ({"size": 10}, ValueError, "size must be like"),
        ({"size": {"height": 10, "width": 0}}, ValueError, "size must be like"),
        ({"size": {"height": 10, "width": 10**9}}, ValueError, "100,000"),
        ({"patch_size": {"height": True, "width": 3}}, ValueError, "patch_size must be like"),
        ({"resample": 7}, ValueError, "BILINEAR"),
        ({"padding_mode": "mirror"}, ValueError, "reflect"),
        ({"padding_value": "white"}, ValueError, "padding_value must be a number"),
        ({"image_mean": [0.5, 0.5]}, ValueError, "three for red"),
        ({"image_std": 0}, ValueError, "must not be 0"),
        ({"image_std": float("nan")}, ValueError, "image_std"),
        ({"rescale_factor": None, "do_rescale": "yes"}, TypeError, "do_rescale must be True or False"),
    ],
)
def test_an_option_of_a_wrong_kind_is_named(small, options, error, says):
    with pytest.raises(error, match=says):
        small(picture((5, 6)), **options)
    if "do_rescale" not in options:
        with pytest.raises(error, match=says):
            FuyuImageProcessor(**options)


def test_formats_of_other_names_are_refused(small):
    with pytest.raises(ValueError, match="channels_first"):
        small(picture((5, 6)), input_data_format="HWC")
    with pytest.raises(ValueError, match="channels_last"):
        small(picture((5, 6)), data_format="HWC")
    with pytest.raises(ValueError, match="return_tensors"):
        small(picture((5, 6)), return_tensors="tensors")
    with pytest.raises(ImageError, match="as channels_first"):
        small(picture((5, 6)), input_data_format="channels_first")


@pytest.mark.parametrize("format_", ["png", "jpeg", "gif", "bmp", "webp", "tiff"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.8])
@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # Pillow warns of some cut files as well
def test_a_file_that_is_cut_short_is_refused(tmp_path, format_, share):
    path = tmp_path / f"cut.{format_}"
    Image.fromarray(picture((200, 300))).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError, match=f"cut.{format_}"):
        open_image(path)


def test_a_file_that_was_opened_but_is_cut_short_is_refused(small, tmp_path):
    path = tmp_path / "cut.png"
    Image.fromarray(picture((200, 300))).save(path)
    path.write_bytes(path.read_bytes()[:50_000])
    with Image.open(path) as lazy, pytest.raises(ImageError, match="damaged or cut short"):
        small(lazy)


FUZZED = [("AVIF", {}), ("BMP", {}), ("GIF", {}), ("ICO", {}), ("JPEG", {}), ("JPEG2000", {}), ("PNG", {}), ("PPM", {})]
FUZZED += [
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "jpeg"}),
    ("WEBP", {}),
    ("TGA", {}),
]


@pytest.mark.parametrize(
    ("format_", "options"), FUZZED, ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else value
)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_a_file_with_changed_bytes_is_read_or_refused(format_, options):
    if format_ not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {format_}")
    file = io.BytesIO()
    Image.fromarray(picture((40, 50))).save(file, format_, **options)
    draw, refusals = random.Random(0), []
    for _ in range(150):
        data = bytearray(file.getvalue())
        for _ in range(draw.choice((1, 2, 4, 16))):
            data[draw.randrange(min(len(data), draw.choice((40, 200, 10**9))))] = draw.choice((0, 127, 128, 255))
        del data[draw.choice((len(data), draw.randrange(len(data)))) :]
        try:
            assert open_image(io.BytesIO(data), "changed").mode == "RGB"
        except ImageError as error:
            refusals.append(str(error))
    assert refusals
    assert all("changed" in refusal for refusal in refusals)


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, ValueError, KeyError, SyntaxError, OSError, TypeError])
@pytest.mark.parametrize("step", ["open", "load"])
def test_whatever_pillow_raises_over_a_damaged_file_the_file_is_named(tmp_path, monkeypatch, error, step):
    def fail(*_, **__):
        raise error("broken")

    Image.new("RGB", (4, 4)).save(tmp_path / "bad.png")
    monkeypatch.setattr(*(Image, "open") if step == "open" else (ImageFile.ImageFile, "load"), fail)
    with pytest.raises(ImageError, match=r"bad\.png.*broken"):
        open_image(tmp_path / "bad.png")


def test_postscript_is_not_run(small, tmp_path, monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png must be a picture, in one of AVIF, BMP"):
        open_image(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as lazy, pytest.raises(ImageError, match=r"not be PostScript.*Call its load"):
        small(lazy)
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: Image.new("RGB", (4, 4)).im)
    with Image.open(tmp_path / "a.png") as read:
        read.load()
        assert to_image(read).size == (4, 4)


@pytest.mark.parametrize("format_", FORMATS)
def test_every_format_is_opened_under_any_name(tmp_path, format_):
    Image.init()
    if format_ not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {format_}")
    Image.fromarray(picture((20, 30))).save(tmp_path / "it", format_)
    assert open_image(tmp_path / "it").mode == "RGB"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_before_it_is_read(small, tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    Image.new("1", (400, 500)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150_000)
    with pytest.raises(ImageError, match=r"150,000 pixels; .*400 × 500"):
        open_image(path)
    with Image.open(path) as lazy, pytest.raises(ImageError, match="MAX_IMAGE_PIXELS"):
        small(lazy)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)  # Pillow itself refuses twice its limit
    with pytest.raises(ImageError, match=r"200000 pixels.*MAX_IMAGE_PIXELS"):
        open_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert open_image(path).size == (400, 500)


def test_a_file_that_is_no_picture_or_not_there_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"missing\.png does not exist"):
        open_image(tmp_path / "missing.png")
    for content in (b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(50)):
        (tmp_path / "text.png").write_bytes(content)
        with pytest.raises(ImageError, match=r"text\.png must be a picture"):
            open_image(tmp_path / "text.png")
    with pytest.raises(ImageError, match=r"A picture is needed but .* is a folder"):
        open_image(tmp_path)


def test_a_file_is_opened_upright_and_as_rgb(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture((20, 30))[..., 0]).save(tmp_path / "grey.png", exif=exif)
    found = open_image(str(tmp_path / "grey.png"))
    assert (found.mode, found.size) == ("RGB", (20, 30))


def test_damaged_exif_says_nothing(tmp_path):
    image = Image.fromarray(picture((20, 30)))
    image.save(tmp_path / "picture.png", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff\x01\x12\x00")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert open_image(tmp_path / "picture.png").size == (30, 20)


# Files.


def test_the_published_file_loads_and_is_saved_as_it_was(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED))
    loaded = FuyuImageProcessor.from_pretrained(tmp_path)
    assert loaded.size == {"height": 1080, "width": 1920}
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is FuyuImageProcessor
    (path,) = loaded.save_pretrained(tmp_path / "new")
    assert json.loads(Path(path).read_text()) == PUBLISHED
    assert FuyuImageProcessor.from_pretrained(tmp_path / "new") == loaded
    assert FuyuImageProcessor.from_pretrained(tmp_path, do_pad=False) != loaded


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"size": "large"}, ValueError),
        ({"size": {"height": 100_000, "width": 100_000}}, ValueError),
        ({"patch_size": {"height": 1025, "width": 1024}}, ValueError),
        ({"patch_size": {"height": 0, "width": 0}}, ValueError),
        ({"image_std": [0, 0, 0]}, ValueError),
        ({"do_pad": 1}, TypeError),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, fields, error):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED | fields))
    with pytest.raises(error, match=next(iter(fields))):
        FuyuImageProcessor.from_pretrained(tmp_path)


def test_files_that_are_missing_or_no_json_are_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"preprocessor_config\.json"):
        FuyuImageProcessor.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(InvalidFileError, match=r"preprocessor_config\.json"):
        FuyuImageProcessor.from_pretrained(tmp_path)


def test_a_file_cannot_hide_a_method_or_name_code(tmp_path):
    extra = {"preprocess": 1, "auto_map": {"AutoImageProcessor": "evil.Evil"}, "_private": 2, "kept": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED | extra))
    loaded = FuyuImageProcessor.from_pretrained(tmp_path)
    assert callable(loaded.preprocess)
    assert loaded.kept == 3
    assert not hasattr(loaded, "auto_map")


@pytest.mark.parametrize(
    ("auto", "key"), [(AutoImageProcessor, "image_processor_type"), (AutoProcessor, "processor_class")]
)
def test_a_class_of_another_package_is_refused(tmp_path, auto, key):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED | {key: "CLIPImageProcessor"}))
    with pytest.raises(ValueError, match=f"{key} in .* must be one of Fuyu"):
        auto.from_pretrained(tmp_path)


def test_without_pillow_arrays_that_fit_still_work_and_others_name_the_extra():
    code = (
        "import sys; sys.modules['PIL'] = None\n"
        "import numpy as np\n"
        "from triptych import FuyuImageProcessor\n"
        "print(FuyuImageProcessor()(np.zeros((3, 20, 30), np.uint8)).images[0][0].shape)\n"
        "try: FuyuImageProcessor()(np.zeros((3, 2000, 30), np.uint8))\n"
        "except ImportError as error: print(error)\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "(3, 1080, 1920)" in done
    assert 'pip install "triptych[fuyu]"' in done
    assert done.endswith("False\n")


def test_an_image_that_is_rgb_already_is_not_copied():
    image = Image.fromarray(picture((5, 6)))
    assert to_image(image) is image
