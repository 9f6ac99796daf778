"""The inputs of GPT's tasks and its fine-tuning objective."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st

from triptych import OpenAIGPTConfig, OpenAIGPTDoubleHeadsModel, OpenAIGPTTokenizer, OpenAIGPTTokenizerFast
from triptych.errors import SequenceTooLongError
from triptych.models.openai_gpt import tasks
from triptych.models.openai_gpt.tasks_torch import fine_tuning_loss

FOLDER = Path(__file__).parent / "golden" / "openai_gpt_tokenizers"
FILES = (FOLDER / "vocab.json", FOLDER / "merges.txt")
MARKS = tasks.Marks(start=100, delimiter=101, extract=102)
IDS = st.lists(st.integers(0, 99), max_size=30)


def test_each_task_has_the_row_of_the_paper():
    assert tasks.classification([1, 2], MARKS, 512) == [100, 1, 2, 102]
    assert tasks.entailment([1, 2], [3], MARKS, 512) == [100, 1, 2, 101, 3, 102]
    assert tasks.similarity([1, 2], [3], MARKS, 512) == ([100, 1, 2, 101, 3, 102], [100, 3, 101, 1, 2, 102])
    rows = tasks.multiple_choice([1], [2, 3], [[4], [5, 6]], MARKS, 512)
    assert rows == [[100, 1, 2, 3, 101, 4, 102], [100, 1, 2, 3, 101, 5, 6, 102]]


@given(IDS, IDS, IDS, st.integers(4, 40))
def test_long_texts_are_cut_at_their_ends_and_the_marks_stay(first, second, third, n_positions):
    for row, parts, marks in (
        (tasks.classification(first, MARKS, n_positions), [first], 2),
        (tasks.entailment(first, second, MARKS, n_positions), [first, second], 3),
        (tasks.multiple_choice(first, second, [third], MARKS, n_positions)[0], [first, second, third], 3),
    ):
        assert len(row) == min(n_positions, marks + sum(map(len, parts)))
        assert (row[0], row[-1], row.count(101)) == (100, 102, marks - 2)
    kept_first, kept_second = " ".join(map(str, tasks.entailment(first, second, MARKS, n_positions)[1:-1])).split("101")
    kept_first, kept_second = ([int(i) for i in part.split()] for part in (kept_first, kept_second))
    assert kept_first == first[: len(kept_first)]
    assert kept_second == second[: len(kept_second)]
    if len(kept_first) < len(first) and len(kept_second) < len(second):
        assert abs(len(kept_first) - len(kept_second)) <= 1


def test_positions_that_hold_only_the_marks_are_refused():
    with pytest.raises(SequenceTooLongError, match="0 positions are left"):
        tasks.classification([1], MARKS, 2)
    with pytest.raises(SequenceTooLongError, match="-1 positions are left"):
        tasks.entailment([1], [2], MARKS, 2)


def test_padding_keeps_the_depth_and_says_where_the_extract_tokens_are():
    batch = tasks.pad([[5, 6, 7], [8]], 0)
    assert batch["input_ids"] == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"] == [[1, 1, 1], [1, 0, 0]]
    assert batch["mc_token_ids"] == [2, 0]
    choices = tasks.pad([[[1, 2], [3]], [[4], [5, 6, 7]]], 9)
    assert choices["input_ids"] == [[[1, 2, 9], [3, 9, 9]], [[4, 9, 9], [5, 6, 7]]]
    assert choices["mc_token_ids"] == [[1, 0], [0, 2]]


@pytest.mark.parametrize("cls", [OpenAIGPTTokenizer, OpenAIGPTTokenizerFast])
def test_the_marks_are_new_tokens_and_adding_them_again_changes_nothing(cls):
    tokenizer = cls(*FILES, pre_tokenizer="basic")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<mine>"]})
    size = len(tokenizer)
    marks = tasks.add_marks(tokenizer)
    assert marks == tasks.Marks(size, size + 1, size + 2) == tasks.add_marks(tokenizer)
    assert len(tokenizer) == size + 3
    row = tasks.entailment(tokenizer("the man").input_ids, tokenizer("a hat").input_ids, marks, 512)
    assert tokenizer.decode(row, skip_special_tokens=True) == "the man a hat"
    assert "<mine>" in tokenizer.additional_special_tokens


def test_the_objective_adds_half_of_the_language_modelling_loss():
    torch.manual_seed(0)
    logits, ids = torch.randn(2, 3, 7, 11), torch.randint(11, (2, 3, 7))
    mask = torch.tensor([1, 1, 1, 1, 1, 0, 0]).expand(2, 3, 7)
    task = torch.tensor(0.7)
    lm = F.cross_entropy(logits[..., :4, :].reshape(-1, 11), ids[..., 1:5].reshape(-1))
    assert fine_tuning_loss(task, logits, ids, mask) == pytest.approx(float(task + 0.5 * lm), abs=1e-6)
    assert fine_tuning_loss(task, logits, ids, mask, lm_weight=0.0) == task


def test_multiple_choice_learns_with_the_double_heads_model():
    torch.manual_seed(0)
    config = OpenAIGPTConfig(vocab_size=103, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    model = OpenAIGPTDoubleHeadsModel(config).eval()  # without dropout, so that the losses are comparable
    questions = ([1, 2], [3], [[4], [5, 6]]), ([7], [8], [[9], [4]])
    rows = [tasks.multiple_choice(*question, MARKS, 16) for question in questions]
    batch = {name: torch.tensor(value) for name, value in tasks.pad(rows, 0).items()}
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    task_losses = []
    for _ in range(20):
        out = model(**batch, mc_labels=torch.tensor([1, 0]))
        optimizer.zero_grad()
        fine_tuning_loss(out.mc_loss, out.logits, batch["input_ids"], batch["attention_mask"]).backward()
        optimizer.step()
        task_losses.append(out.mc_loss.item())
    assert task_losses[-1] < 0.2 * task_losses[0]
    assert out.mc_logits.argmax(-1).tolist() == [1, 0]
