"""The recipe that trains with JAX: it learns, and a stopped run ends where one that was not stopped ends."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("flax")

sys.path.append(str(Path(__file__).parents[1] / "recipes"))

import train_gpt_neo_flax as recipe
from triptych import FlaxAutoModelForCausalLM, GPT2TokenizerFast
from triptych.trees import leaves_of

SIZES = {"vocab_size": 270, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "window_size": 4, "length": 16}
RUN = {"batch_size": 4, "steps": 12, "warmup": 2, "peak_rate": 0.03, "every": 4, "dropout": 0.1}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "one.txt").write_text("The cat sat on the mat and looked at the moon. " * 40)
    return folder


def test_a_stopped_run_ends_where_one_that_was_not_stopped_ends(texts, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    recipe.main(texts, texts, whole, **SIZES, **RUN)
    log = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [4, 8, 12]
    assert log[-1]["valid_loss"] < log[0]["valid_loss"] < 5  # an even guess among 270 tokens gives 5.6

    windows = recipe.windows

    def until_step_6(ids, length, count, seed, step):
        if step == 6:
            raise KeyboardInterrupt
        return windows(ids, length, count, seed, step)

    monkeypatch.setattr(recipe, "windows", until_step_6)
    with pytest.raises(KeyboardInterrupt):
        recipe.main(texts, texts, stopped, **SIZES, **RUN)
    assert not (stopped / "model.safetensors").exists()
    monkeypatch.setattr(recipe, "windows", windows)
    recipe.main(texts, texts, stopped, **SIZES, **RUN)
    first, second = (leaves_of(FlaxAutoModelForCausalLM.from_pretrained(folder).params) for folder in (whole, stopped))
    assert all(np.array_equal(value, second[leaf]) for leaf, value in first.items())
    assert GPT2TokenizerFast.from_pretrained(stopped).model_max_length == 16
