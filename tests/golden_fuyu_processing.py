"""Writes the golden files of Fuyu's processors: what the reference makes of many pictures, texts and options.

    REFERENCE_PYTHON tests/golden_fuyu_processing.py tests/golden/fuyu_processing

Pictures are computed, not stored; of the pixels that come out, a digest of their levels and some values are kept. The
tests import the tables of this file, so both sides run the same cases. The tokenizer is trained on a few words, with
what Adept's has: SentencePiece's Unigram, byte fallback, Fuyu's special tokens, and whole numbers as tokens.
"""

import hashlib
import json
import random
import sys
import tempfile
from pathlib import Path

import numpy as np

NUMBERS = 1001
WORDS = (
    "a the red green blue circle square picture of what is in this where how many find locate caption bus parked on "
    "side road Generate coco style please describe it and then answer question one two three"
)

# name -> options of the constructor
PROCESSORS = {
    "published": {},
    "small": {"size": {"height": 96, "width": 128}, "patch_size": {"height": 16, "width": 16}},
    "oblong": {"size": {"height": 70, "width": 60}, "patch_size": {"height": 7, "width": 10}},
}
SIZES = {
    "published": [(300, 300), (420, 640), (1080, 1920), (1081, 1920), (100, 4000), (2000, 200)],
    "small": [
        *[(1, 1), (1, 500), (500, 3), (16, 16), (17, 33), (96, 128), (97, 128), (96, 129), (50, 90)],
        *[(333, 200), (200, 333), (128, 96), (30, 3000), (95, 127), (480, 640)],
    ],
    "oblong": [(1, 1), (7, 10), (70, 60), (71, 60), (71, 61), (8, 11), (500, 400), (65, 43)],
}
# Options of a call, for a picture of 50 × 70 and one of 150 × 170 with the "small" processor.
OPTIONS = [
    {},
    {"do_rescale": False},
    {"do_normalize": False},
    {"do_rescale": False, "do_normalize": False},
    {"do_pad": False},
    {"do_resize": False, "do_pad": False},
    {"data_format": "channels_last"},
    {"image_mean": [0.0, 0.2, 0.4], "image_std": [0.5, 1.0, 0.25]},
    {"rescale_factor": 0.25},
    {"padding_mode": "reflect"},
    {"padding_mode": "symmetric"},
    {"padding_mode": "replicate"},
    {"padding_value": 0.0},
    {"size": {"height": 31, "width": 200}},
]
# How the same pictures are handed over.
FORMS = ("pillow", "last", "first", "int32", "levels", "fractions", "torch")

# text (or several), sizes of the pictures, and which processor
CALLS = [
    ("Generate a coco style caption.\n", [(420, 640)], "published"),
    ("a red bus", [(1080, 1920)], "published"),
    ("a red bus", [(100, 4000)], "published"),
    ("what is in this picture", [(50, 90)], "small"),
    ("", [(2, 1)], "small"),
    (None, [(20, 30)], "small"),
    ([" a  red ", "what is in this picture?\n"], [(50, 90), (16, 16)], "small"),
    (["a", "the red circle", "x" * 40], [(500, 6), (17, 33), (300, 300)], "small"),
    ("a <s> |NEWLINE| |SPEAKER| <0x0A> héllo ☃", [(8, 11)], "oblong"),
    (["one", "two"], [(70, 60), (500, 400)], "oblong"),
    ("find <box>10, 20, 30, 41</box>", [(50, 90)], "small"),
    ("<box>10, 20, 30, 41</box> is what", [(96, 128)], "small"),
    ("where <point>7, 9</point> and <point>0, 0</point>", [(50, 90)], "small"),
    ("x<box>1,2,3,4</box>y<point>5,6</point>z", [(333, 200)], "small"),
    ("<box> 10.5 , 20 , 30.25 , 41 </box><point>1, 2</point>", [(333, 200)], "small"),
    ("a <box>0, 0, 2000, 200</box>", [(2000, 200)], "published"),
    (["<point>1, 1</point>", "red <box>100, 50, 333, 200</box>\n"], [(17, 33), (333, 200)], "small"),
]
# Pictures on which every coordinate is tried, with the processor.
SWEEPS = [((90, 128), "small"), ((200, 333), "small"), ((333, 200), "small"), ((500, 400), "oblong")]
SWEEPS += [((1501, 99), "published"), ((97, 2000), "published")]

# Tokens that a model might answer, beside those that the documented release gets wrong.
ANSWERS = [
    ["▁a", "▁red", "▁bus", "</s>"],
    ["▁a", "<0x00>", "5", "10", "15", "20", "<0x01>", "▁is", "|ENDOFTEXT|"],
    ["▁a", "<0x02>", "5", "1000", "<0x03>", "▁is"],
    ["▁a", "<0x00>", "5", "10", "15", "20", "▁is"],
]


def picture(size):
    """A picture (H, W, 3) with fine and coarse detail, uint8."""
    y, x, c = np.ogrid[: size[0], : size[1], :3]
    return ((y * y * 3 + x * 7 + x * y + 31 * c * (y // 5 + 1) + (x // 9) * 40) % 253).astype(np.uint8)


def in_form(pixels, form):
    """The same picture as the user might hand it over, and the options that it needs."""
    first = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    if form == "pillow":
        from PIL import Image

        return Image.fromarray(pixels), {}
    if form == "torch":
        import torch

        return torch.from_numpy(first), {}
    if form == "fractions":
        return first.astype(np.float32) / np.float32(255), {"do_rescale": False}
    return {
        "last": pixels,
        "first": first,
        "int32": first.astype(np.int32),
        "levels": pixels.astype(np.float32),
    }[form], {}


def fingerprint(values):
    """What is kept of an array of floats around -1 to 1, or levels: its shape, a digest of levels, some values."""
    values = np.asarray(values)
    levels = np.floor(values * np.float32(127.5) + np.float32(127.87)).astype(np.int16)  # no level is cut in two
    some = values.reshape(-1)[:: max(values.size // 23, 1)]
    return {
        "shape": list(values.shape),
        "dtype": str(values.dtype),
        "digest": hashlib.sha256(np.ascontiguousarray(levels).tobytes()).hexdigest()[:16],
        "some": [round(float(value), 7) for value in some],
    }


def preprocessed(processor, image, **options):
    """What `preprocess` makes of one image."""
    try:
        found = processor.preprocess(image, **options)
    except Exception as error:
        return {"error": type(error).__name__}
    facts = {name: float(found[name][0][0]) for name in found if name != "images"}
    return facts | fingerprint(found["images"][0][0])


def tokenizer_info(processor, sizes, variable_sized, torch):
    """What `preprocess_with_tokenizer_info` makes of a row of pictures, of which the second is not there."""
    found = processor.preprocess([picture(size) for size in sizes])
    images = torch.from_numpy(np.stack([row[0] for row in found["images"]]))[None]
    number = len(sizes)
    outcome = processor.preprocess_with_tokenizer_info(
        image_input=images,
        image_present=torch.tensor([[[place != 1] for place in range(number)]]),
        image_unpadded_h=torch.tensor(found["image_unpadded_heights"])[None].reshape(1, number),
        image_unpadded_w=torch.tensor(found["image_unpadded_widths"])[None].reshape(1, number),
        image_placeholder_id=7,
        image_newline_id=8,
        variable_sized=variable_sized,
    )
    return {
        name: [
            [fingerprint(x) if x.dtype == torch.float32 else [str(x.dtype), *x.tolist()] for x in row] for row in rows
        ]
        for name, rows in outcome.items()
    }


def called(processor, text, sizes):
    """What the processor makes of texts and pictures."""
    images = [picture(size) for size in sizes]
    found = processor(text=text, images=[in_form(image, "pillow")[0] for image in images])
    length = found["input_ids"].shape[1]
    indices = found["image_patches_indices"]
    # The documented release has ten columns too many, which never hold anything.
    assert (indices[:, length:] == -1).all()
    return {
        "keys": sorted(found),
        "input_ids": found["input_ids"].tolist(),
        "image_patches_indices": indices[:, :length].tolist(),
        "attention_mask": found["attention_mask"].tolist(),
        "image_patches": [fingerprint(each) for each in found["image_patches"]],
    }


def sweep_text(size):
    """A text with a point at every coordinate of a picture."""
    longest = max(size)
    return "".join(f"<point>{min(at, size[0])}, {min(at, size[1])}</point>" for at in range(longest + 1))


def train_tokenizer(folder):
    """Train the tokenizer and save it as tokenizer.json and tokenizer_config.json."""
    import sentencepiece
    from transformers import LlamaTokenizerFast

    generator = random.Random(0)
    with tempfile.TemporaryDirectory() as scratch:
        texts = Path(scratch) / "texts.txt"
        texts.write_text("\n".join(" ".join(generator.choices(WORDS.split(), k=8)) for _ in range(800)))
        sentencepiece.SentencePieceTrainer.train(
            input=str(texts),
            model_prefix=f"{scratch}/tokenizer",
            vocab_size=1450,
            hard_vocab_limit=False,
            model_type="unigram",
            byte_fallback=True,
            user_defined_symbols=["|SPEAKER|", "|NEWLINE|", "|ENDOFTEXT|", *map(str, range(NUMBERS))],
            character_coverage=1.0,
            num_threads=1,
        )
        tokenizer = LlamaTokenizerFast(
            vocab_file=f"{scratch}/tokenizer.model", bos_token="|ENDOFTEXT|", eos_token="|ENDOFTEXT|", legacy=True
        )
        tokenizer.save_pretrained(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            write(folder / name, json.loads((Path(scratch) / name).read_text()))


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def main(folder):
    import torch
    from transformers import FuyuImageProcessor, FuyuProcessor, LlamaTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer").is_dir():
        train_tokenizer(folder / "tokenizer")
    tokenizer = LlamaTokenizerFast.from_pretrained(folder / "tokenizer")
    image_processors = {name: FuyuImageProcessor(**options) for name, options in PROCESSORS.items()}
    processors = {name: FuyuProcessor(each, tokenizer) for name, each in image_processors.items()}
    small = image_processors["small"]
    write(
        folder / "images.json",
        {
            "sizes": {
                name: [
                    preprocessed(image_processors[name], picture(size), input_data_format="channels_last")
                    for size in sizes
                ]
                for name, sizes in SIZES.items()
            },
            "options": [
                [preprocessed(small, picture(size), **options) for size in ((50, 70), (150, 170))]
                for options in OPTIONS
            ],
            "forms": {
                form: [
                    preprocessed(small, image, **options)
                    for image, options in (in_form(picture(size), form) for size in ((50, 70), (150, 170)))
                ]
                for form in FORMS
            },
            "tokenizer_info": [
                tokenizer_info(small, [(50, 90), (16, 16), (333, 200)], variable, torch) for variable in (True, False)
            ],
            "file": json.loads(FuyuImageProcessor().to_json_string()),
        },
    )
    write(
        folder / "calls.json",
        {
            "calls": [called(processors[name], text, sizes) for text, sizes, name in CALLS],
            "sweeps": [
                processors[name](text=sweep_text(size), images=in_form(picture(size), "pillow")[0])["input_ids"][
                    0
                ].tolist()[-4 * max(size) - 5 :]
                for size, name in SWEEPS
            ],
            "answers": [
                processors["small"]
                .post_process_box_coordinates(torch.tensor([tokenizer.convert_tokens_to_ids(answer)]))[0]
                .tolist()
                for answer in ANSWERS
            ],
            "text_alone": [tokenizer(text)["input_ids"] for text in ("a red bus", "", "x <box>1, 2, 3, 4</box>")],
        },
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
