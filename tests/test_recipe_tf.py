"""The recipe that fine-tunes with TensorFlow: it learns, and a stopped run ends where one that was not stopped ends."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow")

sys.path.append(str(Path(__file__).parents[1] / "recipes"))

import finetune_openai_gpt_tf as recipe
from triptych import (
    OpenAIGPTConfig,
    OpenAIGPTTokenizerFast,
    TFOpenAIGPTForSequenceClassification,
    TFOpenAIGPTLMHeadModel,
)

RUN = {"epochs": 4, "batch_size": 8, "peak_rate": 0.04, "warmup": 0.1, "valid_part": 0.25}
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras writes checkpoints so
    pytest.mark.filterwarnings("ignore:Not all weights:triptych.errors.LoadingWarning"),  # the head is new
]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A folder with a small new model and its tokenizer, and texts that one word decides."""
    folder = tmp_path_factory.mktemp("start")
    letters = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    (folder / "vocab.json").write_text(json.dumps({piece: n for n, piece in enumerate(["<unk>", *letters])}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    OpenAIGPTTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    recipe.keras.utils.set_random_seed(0)
    config = OpenAIGPTConfig(vocab_size=53, n_positions=16, n_embd=16, n_layer=1, n_head=2, initializer_range=0.2)
    TFOpenAIGPTLMHeadModel(config).save_pretrained(folder)
    rows = [{"text": f"{a} film {b}", "label": b} for a in "abcdefghijklmnop" for b in ("ok", "no")]
    texts = folder / "texts.jsonl"
    texts.write_text("\n".join(map(json.dumps, rows)))
    return folder, texts


def test_a_stopped_run_ends_where_one_that_was_not_stopped_ends(start, tmp_path, monkeypatch):
    model, texts = start
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    recipe.main(str(model), texts, whole, **RUN)
    log = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in log] == [0, 1, 2, 3]
    assert log[-1]["loss"] < log[0]["loss"]
    assert json.loads((whole / "scores.json").read_text())["accuracy"] > 0.9
    assert not (whole / "checkpoint").exists()

    epoch = recipe.Batches.epoch

    def until_the_second(self, number):
        for index, batch in enumerate(epoch(self, number)):
            if number == 1 and index == 1:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(recipe.Batches, "epoch", until_the_second)
    with pytest.raises(Exception, match="KeyboardInterrupt"):
        recipe.main(str(model), texts, stopped, **RUN)
    assert (stopped / "checkpoint").exists()
    assert not (stopped / "model.safetensors").exists()
    monkeypatch.setattr(recipe.Batches, "epoch", epoch)
    recipe.main(str(model), texts, stopped, **RUN)
    first, second = (
        dict(TFOpenAIGPTForSequenceClassification.from_pretrained(folder).named_weights())
        for folder in (whole, stopped)
    )
    assert (stopped / "log.jsonl").read_text() == (whole / "log.jsonl").read_text()
    for name, weight in first.items():
        np.testing.assert_array_equal(weight.numpy(), second[name].numpy(), name)
