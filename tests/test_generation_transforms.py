"""Logits transforms and stopping criteria: numbers of the reference, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file
from torch import Tensor

from triptych.generation import logits_torch, stopping_torch, warpers_torch

GOLDEN = Path(__file__).parent / "golden"
TRANSFORMS: list[list[Any]] = json.loads((GOLDEN / "generation.json").read_text(encoding="utf-8"))["transforms"]
CLASSES = vars(logits_torch) | vars(warpers_torch)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return load_file(GOLDEN / "generation_tensors.safetensors")


@pytest.mark.parametrize("index", range(len(TRANSFORMS)), ids=[f"{name}-{args}" for name, args in TRANSFORMS])
def test_transforms_give_the_references_scores_and_leave_their_input_alone(
    tensors: dict[str, Tensor], index: int
) -> None:
    name, arguments = TRANSFORMS[index]
    scores = tensors["scores"].clone()
    out = CLASSES[name](*arguments)(tensors["ids"], scores)
    assert torch.equal(scores, tensors["scores"])
    torch.testing.assert_close(out, tensors[f"transform.{index}"], atol=2e-5, rtol=0)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([i / 8 for i in range(60)]), min_size=40, max_size=40),
    st.integers(1, 4),
    st.floats(0.05, 0.99),
)
def test_top_p_after_top_k_is_the_same_however_few_tokens_are_sorted(
    values: list[float], top_k: int, top_p: float
) -> None:
    ids = torch.zeros(1, 1, dtype=torch.long)
    wide = torch.cat((torch.tensor([values]), torch.full((1, 400), -9.0)), dim=1)
    kept = warpers_torch.TopKLogitsWarper(top_k)(ids, wide)
    ascending, order = kept.sort(dim=-1)
    out = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    out[:, -1] = False
    whole = kept.masked_fill(out.scatter(1, order, out), -float("inf"))
    assert torch.equal(warpers_torch.TopPLogitsWarper(top_p)(ids, kept), whole)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=14), st.integers(1, 4))
def test_the_n_gram_ban_forbids_exactly_the_tokens_that_would_repeat_a_run(ids: list[int], n: int) -> None:
    out = logits_torch.NoRepeatNGramLogitsProcessor(n)(torch.tensor([ids]), torch.zeros(1, 4))
    runs = {tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)}
    tail = tuple(ids[len(ids) - n + 1 :])
    expected = [len(ids) >= n - 1 and (*tail, token) in runs for token in range(4)]
    assert out.isinf()[0].tolist() == expected


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-9, 9, width=32), min_size=4, max_size=12), st.floats(0.01, 1.0), st.integers(1, 4))
def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest(values: list[float], min_p: float, least: int) -> None:
    scores = torch.tensor([values], dtype=torch.float64)
    out = warpers_torch.MinPLogitsWarper(min_p, min_tokens_to_keep=least)(torch.zeros(1, 1), scores)
    share = (scores - scores.max()).exp()[0]
    near = (share / min_p - 1).abs() < 1e-9  # where rounding decides
    likely = share >= min_p
    among_best = scores[0] >= scores[0].sort(descending=True).values[least - 1]
    assert ((out.isfinite()[0] == (likely | among_best)) | near).all()
    assert torch.equal(out[out.isfinite()], scores[out.isfinite()])


def test_a_forbidden_end_stays_forbidden_however_long_the_text_gets() -> None:
    scores = torch.tensor([[1.0, -torch.inf, -2.0]])
    out = logits_torch.ExponentialDecayLengthPenalty((1, 2.0), [1, 2], 2)(torch.zeros(1, 5), scores)
    assert out.tolist() == [[1.0, -torch.inf, 4.0]]


def test_both_forms_of_sequence_bias_give_the_same() -> None:
    ids, scores = torch.tensor([[1, 2], [3, 4]]), torch.zeros(2, 6)
    as_dict = logits_torch.SequenceBiasLogitsProcessor({(5,): 1.0, (2, 0): 2.0})(ids, scores)
    as_list = logits_torch.SequenceBiasLogitsProcessor([[[5], 1.0], [[2, 0], 2.0]])(ids, scores)
    assert as_dict.tolist() == as_list.tolist() == [[2.0, 0, 0, 0, 0, 1.0], [0, 0, 0, 0, 0, 1.0]]


def test_a_list_of_transforms_passes_named_arguments_to_those_that_take_them() -> None:
    class Shift(logits_torch.LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor, by: float) -> Tensor:  # type: ignore[override]
            return scores + by

    both = logits_torch.LogitsProcessorList([warpers_torch.TemperatureLogitsWarper(0.5), Shift()])
    assert both(torch.zeros(1, 1), torch.ones(1, 2), by=3.0).tolist() == [[5.0, 5.0]]
    with pytest.raises(ValueError, match="Shift needs by"):
        both(torch.zeros(1, 1), torch.ones(1, 2))


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("TemperatureLogitsWarper", [0.0], "temperature must be a number above 0; got 0.0"),
        ("TemperatureLogitsWarper", [-1.0], "do_sample=False"),
        ("TopKLogitsWarper", [0], "top_k must be an int of at least 1"),
        ("TopKLogitsWarper", [2.5], "got 2.5"),
        ("TopPLogitsWarper", [1.5], "top_p"),
        ("TopPLogitsWarper", [-0.1], "top_p"),
        ("MinPLogitsWarper", [1.5], "min_p is a probability"),
        ("HammingDiversityLogitsProcessor", [0.0, 4, 2], "diversity_penalty must be a number above 0"),
        ("HammingDiversityLogitsProcessor", [0.5, 4, 3], "must divide num_beams \\(4\\); got 3"),
        ("HammingDiversityLogitsProcessor", [0.5, 4, 1], "num_beam_groups must be an int of at least 2"),
        ("TypicalLogitsWarper", [1.0], "typical_p"),
        ("EpsilonLogitsWarper", [0.0], "epsilon_cutoff"),
        ("EtaLogitsWarper", [2], "eta_cutoff"),
        ("RepetitionPenaltyLogitsProcessor", [0.0], "repetition_penalty"),
        ("RepetitionPenaltyLogitsProcessor", ["a"], "repetition_penalty"),
        ("NoRepeatNGramLogitsProcessor", [0], "no_repeat_ngram_size"),
        ("MinLengthLogitsProcessor", [-1, 2], "min_length"),
        ("MinLengthLogitsProcessor", [3, -2], "eos_token_id"),
        ("NoBadWordsLogitsProcessor", [[], 2], "bad_words_ids"),
        ("NoBadWordsLogitsProcessor", [[13], 2], "list of lists"),
        ("NoBadWordsLogitsProcessor", [[[]], 2], "bad_words_ids"),
        ("NoBadWordsLogitsProcessor", [[[-1]], 2], "negative"),
        ("SequenceBiasLogitsProcessor", [{}], "sequence_bias"),
        ("SequenceBiasLogitsProcessor", [[[3, 1.0]]], "sequence_bias"),
        ("SequenceBiasLogitsProcessor", [7], "sequence_bias"),
        ("SuppressTokensLogitsProcessor", [[-4]], "suppress_tokens"),
        ("ForceTokensLogitsProcessor", [[3]], "forced_decoder_ids"),
        ("ExponentialDecayLengthPenalty", [3, 2, 4], "exponential_decay_length_penalty"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(name: str, arguments: list[Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        CLASSES[name](*arguments)


@pytest.mark.parametrize("base", [logits_torch.LogitsProcessor(), stopping_torch.StoppingCriteria()])
def test_the_bases_ask_for_a_call(base: Any) -> None:
    with pytest.raises(NotImplementedError, match="must define __call__"):
        base(torch.zeros(1, 1), torch.zeros(1, 2))


def test_transforms_cannot_be_changed_and_tell_what_they_do() -> None:
    transform = warpers_torch.TopKLogitsWarper(3)
    with pytest.raises(AttributeError):
        transform.top_k = 4  # type: ignore[misc]
    assert repr(transform) == "TopKLogitsWarper(top_k=3, filter_value=-inf, min_tokens_to_keep=1)"


def test_criteria_stop_at_length_and_time_and_lists_know_their_length() -> None:
    ids = torch.zeros(2, 5)
    assert stopping_torch.MaxLengthCriteria(5)(ids, None) is True
    assert stopping_torch.MaxLengthCriteria(6)(ids, None) is False
    assert stopping_torch.MaxTimeCriteria(1.0, initial_timestamp=0.0)(ids, None) is True
    assert stopping_torch.MaxTimeCriteria(1000.0)(ids, None) is False
    both = stopping_torch.StoppingCriteriaList(
        [stopping_torch.MaxTimeCriteria(1000.0), stopping_torch.MaxLengthCriteria(6)]
    )
    assert both(ids, None) is False
    assert both.max_length == 6
    assert stopping_torch.StoppingCriteriaList().max_length is None
    with pytest.warns(UserWarning, match="positions"):
        stopping_torch.MaxLengthCriteria(9, max_position_embeddings=4)(ids, None)


class Bytes:
    """A tokenizer whose ids are bytes of UTF-8."""

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


@settings(deadline=None, max_examples=80)
@given(st.text(alphabet="ab é東🙂", max_size=20), st.text(alphabet="ab é東🙂", min_size=1, max_size=4))
def test_a_stop_string_is_found_at_the_byte_that_completes_it(text: str, stop: str) -> None:
    data = list(text.encode())
    criterion = stopping_torch.StopStringCriteria(Bytes(), [stop])
    found = next((n for n in range(1, len(data) + 1) if criterion(torch.tensor([data[:n]]), None).item()), None)
    place = text.find(stop)
    assert found == (None if place < 0 else len(text[: place + len(stop)].encode()))


@pytest.mark.parametrize("stop", ["", [], ["a", ""], [3]])
def test_stop_strings_must_be_texts(stop: Any) -> None:
    with pytest.raises(ValueError, match="stop_strings must be a text or a list of texts"):
        stopping_torch.StopStringCriteria(Bytes(), stop)
