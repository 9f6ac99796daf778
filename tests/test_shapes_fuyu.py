"""The Fuyu in the box looks: it is right about scenes that it was not trained on, in pictures of several sizes."""

import sys
from pathlib import Path

import pytest

from triptych import FuyuForCausalLM, FuyuProcessor

sys.path.append(str(Path(__file__).parents[1] / "recipes"))
import score_fuyu

SEEDS = range(3 * 10**9, 3 * 10**9 + 12)  # neither trained on nor in the card's figures


@pytest.fixture(scope="module")
def shapes() -> tuple[FuyuForCausalLM, FuyuProcessor]:
    name = "triptych/shapes-fuyu"
    return FuyuForCausalLM.from_pretrained(name), FuyuProcessor.from_pretrained(name)


@pytest.mark.parametrize(("height", "width", "scale"), [(64, 64, 1), (75, 100, 1), (96, 128, 1), (96, 128, 5)])
def test_answers_and_boxes_about_unseen_scenes_are_right(shapes, height, width, scale):
    asked = [pair for seed in SEEDS for pair in score_fuyu.all_questions(seed, height, width, scale)]
    answers = score_fuyu.answers_of(*shapes, asked)
    exact, boxes = [], []
    for (_, question), answer in zip(asked, answers, strict=True):
        if question.boxes:
            boxes.append(score_fuyu.overlap(question.boxes, score_fuyu.boxes_in(answer)))
        else:
            exact.append(answer == question.answer)
    assert len(exact) > 50
    assert sum(exact) / len(exact) >= 0.9
    assert len(boxes) >= 8
    assert sum(boxes) / len(boxes) >= 0.6


def test_the_answer_is_about_the_picture_and_not_about_the_question(shapes):
    """The same question about a picture with nothing on it gets another answer."""
    (scene, question), *_ = score_fuyu.all_questions(SEEDS[0], 96, 128, 1)
    assert question.form == "caption"
    blank = type(scene)(scene.image.resize((1, 1)).resize(scene.image.size), scene.things)
    seen, unseen = score_fuyu.answers_of(*shapes, [(scene, question), (blank, question)])
    assert seen == question.answer
    assert unseen != question.answer
