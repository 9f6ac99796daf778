"""The Fuyu in the box looks: it is right about scenes that it was not trained on, in pictures of several sizes."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from triptych import FuyuForCausalLM, FuyuProcessor, pretrained

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


def test_it_is_at_most_ten_megabytes_and_its_weights_are_all_used():
    folder = pretrained.folder("triptych/shapes-fuyu")
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 10e6
    _, found = FuyuForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values())


def test_the_card_gives_the_figures_of_the_model_and_of_its_scores(shapes):
    folder = pretrained.folder("triptych/shapes-fuyu")
    card = (folder / "README.md").read_text(encoding="utf-8")
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    assert f"{shapes[0].num_parameters():,} parameters" in card
    assert f"{scores['exact']:.1%}".replace("%", " %") in card
    assert f"{scores['boxes']:.3f}" in card
    for size, row in scores["sizes"].items():
        figures = rf"{row['exact']:.1%}".replace("%", " %"), f"{row['boxes']:.3f}"
        assert re.search(rf"\| {size.replace('x', '×')} \| {figures[0]} \| {figures[1]} \|", card)
    assert scores["exact"] >= 0.95
    assert scores["boxes"] >= 0.6


def test_ids_and_answers_are_those_of_the_reference_with_the_same_files(shapes, golden):
    model, processor = shapes
    recorded = json.loads((golden / "pretrained.json").read_text(encoding="utf-8"))["shapes-fuyu"]
    picture = np.full((96, 128, 3), 255, np.uint8)
    picture[16:46, 20:50] = (220, 40, 40)
    for prompt, expected in zip(recorded["prompts"], recorded["answers"], strict=True):
        inputs = processor(text=prompt, images=picture, return_tensors="pt")
        assert inputs.input_ids[0].tolist() == expected["ids"]
        with torch.no_grad():
            assert float(model(**inputs).logits[0, -1].max()) == pytest.approx(expected["largest_logit"], abs=2e-5)
        ids = model.generate(**inputs, max_new_tokens=30, do_sample=False)
        assert ids[0].tolist() == expected["generated"]
