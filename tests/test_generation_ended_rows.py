"""Rows that have ended are not fed on, and what the others write is what they write beside them."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor

import gpt_neo_models
from decoding_models import FAMILIES
from triptych.errors import GenerationWarning
from triptych.generation.ended_rows_torch import RunningRows
from triptych.models.gpt_neo.modeling_torch import GPTNeoForCausalLM

FEW = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


class Until:
    """A stopping criterion that ends each row at a length of its own."""

    def __init__(self, *lengths: int) -> None:
        self.lengths = torch.tensor(lengths)

    def __call__(self, ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return ids.shape[1] >= self.lengths


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GenerationWarning)
        yield


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    return FAMILIES[request.param]()


@pytest.fixture(scope="module")
def neo() -> GPTNeoForCausalLM:
    return gpt_neo_models.make()


def generated(model: Any, ends: tuple[int, ...], patch: pytest.MonkeyPatch, **options: Any) -> tuple[list[Any], Any]:
    """How many rows each step was fed, and the ids; row i of a prompt of 6 tokens ends after `ends[i]` new ones."""
    rows, inner = [], model.next_token_logits

    def counted(ids: Tensor, **inputs: Any) -> Any:
        rows.append(len(ids))
        return inner(ids, **inputs)

    patch.setattr(model, "next_token_logits", counted)
    inputs = {"input_ids": gpt_neo_models.tokens(len(ends), 6), "eos_token_id": None, "pad_token_id": 0}
    until = Until(*(6 + end for end in ends))
    torch.manual_seed(0)
    out = model.generate(**inputs | {"stopping_criteria": [until], "max_new_tokens": 12} | options)
    patch.setattr(model, "next_token_logits", inner)
    return rows, out


def fed_on(model: Any, ends: tuple[int, ...], **options: Any) -> Any:
    """The ids where ended rows are fed to the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunningRows, "leave", lambda *_: None)
        rows, out = generated(model, ends, patch, **options)
    assert set(rows) == {len(ends)}
    return out


MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6, [0, 0, 0, 0, 0, 1], [1] * 6, [0] + [1] * 5])
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 5},
    "padding": {"attention_mask": MASK},
    "rules": {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "do_sample": True, "temperature": 1.5},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_rows_are_left_once_half_of_those_fed_have_ended(
    model: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    ends = (2, 12, 4, 3, 8)
    rows, ids = generated(model, ends, monkeypatch, **OPTIONS[name])
    assert rows[-11:] == [5] * 3 + [2] * 4 + [1] * 4
    assert ids.tolist() == fed_on(model, ends, **OPTIONS[name]).tolist()


def test_an_end_token_leaves_rows_too(neo: GPTNeoForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"eos_token_id": list(range(1, 31, 4)), "stopping_criteria": None, "max_new_tokens": 20}
    rows, ids = generated(neo, (0,) * 8, monkeypatch, **options)
    assert rows[0] == 8
    assert rows[-1] < 4
    assert ids.tolist() == fed_on(neo, (0,) * 8, **options).tolist()


@settings(max_examples=25, **FEW)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=7), st.booleans())
def test_when_rows_end_changes_nothing_of_what_others_write(model: Any, ends: list[int], sample: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        rows, ids = generated(model, tuple(ends), patch, do_sample=sample)
    assert ids.tolist() == fed_on(model, tuple(ends), do_sample=sample).tolist()
    running = [sum(end > step for end in ends) for step in range(max(ends))]
    assert all(fed == len(ends) or fed < 2 * still for fed, still in zip(rows, running, strict=True))


def test_windowed_caches_are_narrowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A local layer holds 131 tokens here, and moves its window before and after rows are left."""
    model = gpt_neo_models.make(max_position_embeddings=300)
    options = {"input_ids": gpt_neo_models.tokens(4, 150), "max_new_tokens": 140}
    options["stopping_criteria"] = [Until(200, 290, 160, 240)]
    rows, ids = generated(model, (0,) * 4, monkeypatch, **options)
    assert sorted(set(rows)) == [1, 2, 4]
    assert ids.tolist() == fed_on(model, (0,) * 4, **options).tolist()


def own_transform(ids: Tensor, scores: Tensor) -> Tensor:
    return scores


NOT_LEFT: dict[str, dict[str, Any]] = {
    "an output object": {"return_dict_in_generate": True},
    "a transform of the user's own": {"logits_processor": [own_transform]},
    "no padding": {"pad_token_id": None},
}


@pytest.mark.parametrize("name", NOT_LEFT)
def test_where_someone_may_look_all_rows_are_fed_on(
    neo: GPTNeoForCausalLM, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rows, _ = generated(neo, (2, 12, 4, 3), monkeypatch, **NOT_LEFT[name])
    assert set(rows) == {4}


def test_a_hook_sees_all_rows_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    model = gpt_neo_models.make()
    model.transformer.h[1].register_forward_hook(lambda *_: None)
    rows, _ = generated(model, (2, 12, 4, 3), monkeypatch)
    assert set(rows) == {4}


def test_a_past_of_the_users_own_is_left_as_it_was(neo: GPTNeoForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = gpt_neo_models.tokens(4, 6)
    with torch.no_grad():
        past = neo(ids[:, :4], use_cache=True).past_key_values
        past = neo(ids[:, 4:5], past_key_values=past, use_cache=True).past_key_values  # it has room to go on
    kept = [(key.clone(), value.clone()) for key, value in past]
    generated(neo, (2, 12, 4, 3), monkeypatch, past_key_values=past)
    for pair, old in zip(past, kept, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(pair, old, strict=True))


@pytest.mark.parametrize("options", [{"guidance_scale": 1.5}, {"use_cache": False}], ids=str)
def test_other_ways_of_decoding_feed_all_rows(
    neo: GPTNeoForCausalLM, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    rows, ids = generated(neo, (2, 12, 4, 3), monkeypatch, **options)
    assert set(rows[2:]) <= {4, 8}
    assert ids.shape == (4, 18)
