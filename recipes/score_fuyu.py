"""How well a Fuyu answers about scenes that it was not trained on (`scenes.py`).

python recipes/score_fuyu.py FOLDER
"""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from scenes import FORMS, Box, Question, Scene, draw_scene
from triptych import FuyuForCausalLM, FuyuProcessor
from triptych.models.fuyu.coordinates import places

FIRST_UNSEEN = 10**9  # scenes to be scored on have seeds from here on, those to learn from below
# Height, width and how much larger the picture is: what is larger than HEIGHT × WIDTH is shrunk by the processor.
SCORED = ((48, 64, 1), (64, 64, 1), (75, 100, 1), (96, 128, 1), (96, 96, 2.5), (96, 128, 2.5), (96, 128, 5))
AT_ONCE = 25  # scenes


@torch.inference_mode()
def score(folder: str | Path, count: int) -> dict[str, Any]:
    """How a saved model does on `count` scenes of each size SCORED, all with seeds that were not trained on.

    Every form that fits a scene is asked of it once, and answered by `generate`. An answer counts if it is the right
    one to the letter; where it is places, those of the boxes that should be there, in order, count by how much they
    overlap (intersection over union), and one that is missing as 0.

    Returns: "exact" and "boxes" over all scenes, and for each size and each form.
    """
    model, processor = FuyuForCausalLM.from_pretrained(folder).eval(), FuyuProcessor.from_pretrained(folder)
    found: list[tuple[str, str, bool, float]] = []  # size, form, whether it counts by overlap, and what it is worth
    tasks = [(*size, start) for size in SCORED for start in range(0, count, AT_ONCE)]
    with typer.progressbar(tasks, label="Scoring") as bar:
        for number, (height, width, scale, start) in enumerate(bar):
            seeds = range(FIRST_UNSEEN + 10_000 * number, FIRST_UNSEEN + 10_000 * number + min(AT_ONCE, count - start))
            asked = [pair for seed in seeds for pair in all_questions(seed, height, width, scale)]
            answers = answers_of(model, processor, asked)
            for (scene, question), answer in zip(asked, answers, strict=True):
                size = f"{scene.image.width} x {scene.image.height}"
                if question.boxes:
                    found.append((size, question.form, True, overlap(question.boxes, boxes_in(answer))))
                else:
                    found.append((size, question.form, False, float(answer == question.answer)))

    def part(of: Callable[[tuple[str, str, bool, float]], bool]) -> dict[str, float]:
        exact = [worth for *facts, places, worth in found if not places and of((*facts, places, worth))]
        boxes = [worth for *facts, places, worth in found if places and of((*facts, places, worth))]
        return {name: sum(of) / len(of) for name, of in (("exact", exact), ("boxes", boxes)) if of}

    sizes, forms = (list(dict.fromkeys(row[axis] for row in found)) for axis in (0, 1))
    return {
        **part(lambda row: True),
        "answers": len(found),
        "sizes": {size: part(lambda row, size=size: row[0] == size) for size in sizes},
        "forms": {form: part(lambda row, form=form: row[1] == form) for form in forms},
    }


def all_questions(seed: int, height: int, width: int, scale: float) -> list[tuple[Scene, Question]]:
    """A scene with one question of each form that fits it."""
    rng = random.Random(seed)
    scene = draw_scene(rng, width, height, scale)
    return [(scene, question) for form in FORMS.values() for question in form(rng, scene)]


def answers_of(model: FuyuForCausalLM, processor: FuyuProcessor, asked: list[tuple[Scene, Question]]) -> list[str]:
    """What the model answers, greedily."""
    inputs = processor(
        text=[question.prompt for _, question in asked],
        images=[scene.image for scene, _ in asked],
        return_tensors="pt",
    )
    ids = model.generate(**inputs, max_new_tokens=60, do_sample=False, pad_token_id=processor.tokenizer.pad_token_id)
    new = ids[:, inputs["input_ids"].shape[1] :]
    sizes = [(scene.image.height, scene.image.width) for scene, _ in asked]
    read = processor.post_process_box_coordinates(new, target_sizes=sizes)
    return [processor.decode(row, skip_special_tokens=True).strip() for row in read]


def boxes_in(answer: str) -> list[Box]:
    """The boxes in an answer; none where it is not well formed."""
    try:
        return [place.values for place in places(answer)]
    except ValueError:
        return []


def overlap(right: Sequence[Box], found: Sequence[Box]) -> float:
    """The mean intersection over union of boxes in order; a box too many or too few counts as 0."""
    pairs = list(zip(right, found, strict=False))
    return sum(one_overlap(*pair) for pair in pairs) / max(len(right), len(found))


def one_overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    both = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    return both / (area(a) + area(b) - both or 1.0)


def area(box: Box) -> float:
    """Height times width; 0 for a box turned inside out."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def main(
    model: Annotated[str, typer.Argument(help="A folder, a hub name, or a model in the box.")] = "triptych/shapes-fuyu",
    scenes: Annotated[int, typer.Option(help="Scenes of each size.")] = 250,
) -> None:
    """Print the scores of a model as JSON."""
    typer.echo(json.dumps(score(model, scenes), indent=2))


if __name__ == "__main__":
    typer.run(main)
