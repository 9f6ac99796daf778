"""`triptych caption` and `triptych locate`, as a person and as a program meets them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

RED, BLUE = (220, 40, 40), (50, 80, 220)
CIRCLE, SQUARE = (16, 20, 46, 50), (60, 80, 90, 110)  # top, left, bottom, right, of a picture 128 wide and 96 high


@pytest.fixture(scope="module")
def drawn() -> Image.Image:
    """A red circle and, to the right and below, a blue square; 640 × 480."""
    image = Image.new("RGB", (640, 480), "white")
    pen = ImageDraw.Draw(image)
    for (top, left, bottom, right), shape, paint in ((CIRCLE, pen.ellipse, RED), (SQUARE, pen.rectangle, BLUE)):
        shape((left * 5, top * 5, right * 5, bottom * 5), fill=paint)
    return image


@pytest.fixture
def picture(drawn, tmp_path):
    drawn.save(tmp_path / "drawn.png")
    return tmp_path / "drawn.png"


def test_caption_says_what_a_picture_shows(run, picture):
    assert run("caption", picture).out == "a red circle and a blue square\n"


def test_the_readmes_drawing_is_what_the_readme_says(run):
    said = run("caption", Path(__file__).parents[1] / "docs" / "drawing.png").out
    assert said == "a purple 3, a green square, a purple circle and a red triangle\n"


def test_a_question_is_the_last_argument_or_an_option(run, picture):
    asked = run("caption", picture, "How many objects are there?").out
    assert asked == "2\n"
    assert run("caption", picture, "--prompt", "How many objects are there?").out == asked


def test_words_are_words_however_long_and_whatever_folders_there_are(run, picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "circle").mkdir()
    for prompt in ("What is there? " * 40, "circle", ""):
        told = json.loads(run("caption", picture, prompt, "--json").out)
        assert told["prompt"] == prompt
        assert len(told["pictures"]) == 1


def test_several_pictures_are_named(run, picture, tmp_path):
    Image.new("RGB", (64, 64), "white").save(tmp_path / "b.jpg")
    lines = run("caption", picture, tmp_path / "b.jpg", "How many circles are there?").out.splitlines()
    assert [line.rpartition(": ")[0] for line in lines] == [str(picture), str(tmp_path / "b.jpg")]
    assert lines[0].endswith(": 1")


def test_json_says_the_same_as_the_text(run, picture):
    facts = json.loads(run("caption", picture, "--json").out)
    assert facts["model"] == "triptych/shapes-fuyu"
    (told,) = facts["pictures"]
    assert told["image"] == str(picture)
    assert told["answer"] == "a red circle and a blue square"
    assert told["new_tokens"] > 5


def test_a_picture_comes_through_a_pipe(run, picture):
    for arguments in (("caption",), ("caption", "-"), ("caption", "-", "Generate a coco-style caption.")):
        assert run(*arguments, stdin=picture.read_bytes()).out == "a red circle and a blue square\n"


def test_locate_gives_the_box_and_the_picture_with_its_frame(run, picture, drawn, tmp_path):
    out = tmp_path / "found.png"
    facts = json.loads(run("locate", picture, "blue square", "--out", out, "--json").out)
    (told,) = facts["pictures"]
    (box,) = told["boxes"]
    wanted = dict(zip(("top", "left", "bottom", "right"), (5 * side for side in SQUARE), strict=True))
    assert all(abs(box[side] - wanted[side]) <= 30 for side in wanted)  # 3 pixels of the model's
    assert told["out"] == str(out)
    with Image.open(out) as framed:
        changed = [(x, y) for x in range(640) for y in range(480) if framed.getpixel((x, y)) != drawn.getpixel((x, y))]
    assert changed
    assert all(
        box["left"] - 5 <= x <= box["right"] + 5 and box["top"] - 5 <= y <= box["bottom"] + 5 for x, y in changed
    )
    line = run("locate", picture, "blue square").out
    assert line == "blue square: " + ", ".join(f"{side} {box[side]:g}" for side in wanted) + "\n"


def test_locate_says_when_the_answer_was_cut_off(run, picture):
    assert "cut off" in run("locate", picture, "blue square", "-n", 3).err
    assert not run("locate", picture, "blue square").err


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_that_the_camera_held_otherwise_is_looked_at_upright(run, drawn, tmp_path, orientation):
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = drawn.transpose(turns[orientation]) if orientation > 1 else drawn
    stored.save(tmp_path / "held.png", exif=exif)
    (told,) = json.loads(run("locate", tmp_path / "held.png", "red circle", "--json").out)["pictures"]
    assert (told["width"], told["height"]) == drawn.size
    assert abs(told["boxes"][0]["left"] - 5 * CIRCLE[1]) <= 30
    assert abs(told["boxes"][0]["top"] - 5 * CIRCLE[0]) <= 30


def test_locate_says_when_there_is_nothing(run, picture):
    assert run("locate", picture, "yellow star").out == "no yellow star found\n"
    assert json.loads(run("locate", picture, "yellow star", "--json").out)["pictures"][0]["boxes"] == []


def test_pictures_of_several_are_written_to_a_folder(run, picture, drawn, tmp_path):
    drawn.save(tmp_path / "again.png")
    (tmp_path / "out").mkdir()
    run("locate", picture, tmp_path / "again.png", "red circle", "--out", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["again-found.png", "drawn-found.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("caption", "nowhere.png"), 1, "nowhere.png"),
        (("caption", "text.txt"), 1, "text.txt"),
        (("caption", "cut.png"), 1, "cut.png"),
        (("caption", "drawn.png", "--model", "triptych/tales-neo"), 2, "gpt_neo"),
        (("caption", "drawn.png", "--model", "triptych/shape-fuyu"), 1, "triptych/shapes-fuyu, triptych/tales-gpt"),
        (("locate", "drawn.png", "red circle", "--out", "drawn.png"), 2, "overwrite"),
        (("caption", "drawn.png", "<box>1, 2</box>"), 1, "<box>1, 2</box>"),
        (("caption", "drawn.png", "<box>1, 2, 3, 9999</box>"), 1, "9999"),
        (("caption", "drawn.png", "-n", "0"), 2, "max-new-tokens"),
        (("caption", "drawn.png", "-t", "-1"), 2, "temperature"),
        (("locate", "drawn.png"), 2, "last"),
        (("locate", "drawn.png", "red circle", "--out", "found.doc"), 2, "--out"),
        (("locate", "drawn.png", "drawn.png", "red circle", "--out", "found.png"), 2, "folder"),
        (("locate", "drawn.png", "drawn.png", "red circle", "--out", "found"), 2, "overwrite"),
        (("locate", "drawn.png", "drawn2.png", "red circle", "--out", "missing"), 2, "mkdir"),
        (("locate", "drawn.png", "red circle", "--out", "missing/found.png"), 2, "mkdir"),
        (("caption", "folder"), 1, "folder is a folder"),
        (("caption", "folder", "What?"), 1, "folder/*.png"),
        (("locate", "folder", "red circle"), 1, "folder is a folder"),
        (("caption", "drawn.png", "word " * 600), 1, "more than the 512"),
        (("locate", "drawn.png", "red circle", "--prompt", "Find it"), 2, "{}"),
    ],
)
def test_a_mistake_is_one_clear_line_and_writes_nothing(run, picture, tmp_path, monkeypatch, arguments, code, words):
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:400])
    (tmp_path / "text.txt").write_text("no picture")
    (tmp_path / "drawn2.png").write_bytes(picture.read_bytes())
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    done = run(*arguments, code=code)
    assert words in " ".join(done.err.replace("│", "").split())
    assert not done.out
    assert "Traceback" not in done.err
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_in_the_pipe_is_said(run):
    assert "pipe" in run("caption", code=1).err


def test_help_loads_no_framework():
    script = (
        "import sys; from triptych.cli import app\n"
        "try: app(['locate', '--help'])\n"
        "except SystemExit: print('LOADED', *sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert {"torch", "numpy", "PIL"}.isdisjoint(out.partition("LOADED")[2].split())
