"""Constraints: how a phrase, a choice of phrases and a list of them follow a text."""

import itertools
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st

from test_generation_beams import GOLDEN, PADDED
from triptych import (
    Constraint,
    ConstraintListState,
    DisjunctiveConstraint,
    GPTNeoForCausalLM,
    PhrasalConstraint,
)
from triptych.generation.constraints import fewest_tokens, read_constraints

WORDS = st.lists(st.integers(1, 5), min_size=1, max_size=3)
MASK = (PADDED != 0).long()


class Repeated(Constraint):
    """A constraint of the user's own: one token several times, with anything between."""

    def __init__(self, token: int, times: int) -> None:
        self.token, self.times, self.count = token, times, 0
        super().__init__()

    def advance(self) -> int | None:
        return self.token if self.count < self.times else None

    def does_advance(self, token_id: int) -> bool:
        return self.count < self.times and token_id == self.token

    def update(self, token_id: int) -> tuple[bool, bool, bool]:
        stepped = self.does_advance(token_id)
        self.count += stepped
        return stepped, self.count == self.times, False

    def reset(self) -> None:
        self.count = 0

    def remaining(self) -> int:
        return self.times - self.count

    def copy(self, stateful: bool = False) -> "Repeated":
        new = Repeated(self.token, self.times)
        new.count = self.count if stateful else 0
        return new


def test_a_phrase_is_followed_token_by_token_and_set_back_by_others() -> None:
    phrase = PhrasalConstraint([4, 7, 4])
    assert (phrase.seqlen, phrase.remaining(), phrase.advance(), phrase.completed) == (3, 3, 4, False)
    assert phrase.update(4) == (True, False, False)
    assert (phrase.remaining(), phrase.advance()) == (2, 7)
    assert phrase.does_advance(7)
    assert not phrase.does_advance(4)
    assert phrase.update(5) == (False, False, True)
    assert phrase.remaining() == 3
    for token in (4, 7):
        phrase.update(token)
    fresh, same = phrase.copy(), phrase.copy(stateful=True)
    assert phrase.update(4) == (True, True, False)
    assert (phrase.remaining(), phrase.advance(), phrase.completed) == (0, None, True)
    assert (fresh.remaining(), same.remaining()) == (3, 1)


def test_a_choice_is_completed_by_any_of_its_phrases() -> None:
    choice = DisjunctiveConstraint([[1, 2, 3], [1, 2, 4], [5]])
    assert (choice.seqlen, choice.remaining(), choice.advance()) == (3, 3, [1, 5])
    assert choice.copy().update(5) == (True, True, False)
    assert choice.update(1) == (True, False, False)
    assert choice.advance() == [2]
    assert choice.update(2) == (True, False, False)
    one, other = choice.copy(stateful=True), choice.copy(stateful=True)
    assert (one.update(3), other.update(4)) == ((True, True, False), (True, True, False))
    assert (choice.remaining(), choice.advance()) == (1, [3, 4])
    assert choice.update(5) == (False, False, True)
    assert choice.advance() == [1, 5]
    assert choice.current_seq == []


def test_a_list_works_on_one_constraint_at_a_time() -> None:
    state = ConstraintListState([PhrasalConstraint([1, 2]), PhrasalConstraint([3]), PhrasalConstraint([1, 4])])
    assert (state.advance(), state.get_bank()) == ([1, 3, 1], 0)
    assert state.add(1) == (False, True)
    assert (state.advance(), state.get_bank()) == ([2], 1)
    aside = state.copy(stateful=True)
    assert state.add(3) == (False, False)  # sets the first back and begins nothing
    assert (state.get_bank(), sorted(state.advance())) == (0, [1, 1, 3])
    assert aside.add(2) == (True, True)
    assert (aside.get_bank(), aside.advance()) == (2, [3, 1])
    for token in (3, 1, 4):
        aside.add(token)
    assert (aside.completed, aside.get_bank(), aside.advance()) == (True, 6, None)
    assert aside.add(9) == (True, False)
    again = aside.copy(stateful=False)
    assert (again.completed, again.get_bank()) == (False, 0)
    again.reset([9, 1, 2, 3, 9, 1, 4, 4])
    assert again.completed


@settings(max_examples=200, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=3), st.lists(st.integers(1, 5), max_size=14))
def test_a_list_that_is_completed_has_its_phrases_in_the_text(phrases: list[list[int]], text: list[int]) -> None:
    state = ConstraintListState([PhrasalConstraint(phrase) for phrase in phrases])
    state.reset(text)
    assert 0 <= state.get_bank() <= len(phrases) * state.max_seqlen
    if state.completed:
        for phrase in phrases:
            assert any(text[i : i + len(phrase)] == phrase for i in range(len(text)))
    while not state.completed:
        before = state.get_bank()
        state.add(state.advance()[0])
        assert state.get_bank() > before


def test_a_constraint_of_the_users_own_is_met() -> None:
    model = GPTNeoForCausalLM.from_pretrained(GOLDEN / "generation_model").eval()
    constraints = [Repeated(23, 3), PhrasalConstraint([29, 2])]
    texts = model.generate(
        PADDED, attention_mask=MASK, num_beams=8, max_new_tokens=6, eos_token_id=None, constraints=constraints,
        force_words_ids=[[[30], [31]]],
    )  # fmt: skip
    for text in texts[:, 5:].tolist():
        assert text.count(23) >= 3
        assert (29, 2) in list(itertools.pairwise(text))
        assert {30, 31} & set(text)
    assert [one.remaining() for one in constraints] == [3, 2]  # the user's own stay as they were


def test_what_the_prompt_holds_does_not_count() -> None:
    model = GPTNeoForCausalLM.from_pretrained(GOLDEN / "generation_model").eval()
    text = model.generate(PADDED[1:2], num_beams=4, max_new_tokens=6, force_words_ids=[[20], [31]], eos_token_id=None)
    assert {20, 31} <= set(text[0, 5:].tolist())


def test_texts_that_meet_their_constraints_come_before_those_that_do_not() -> None:
    """Here better texts without the words are still open when time is up."""
    model = GPTNeoForCausalLM.from_pretrained(GOLDEN / "generation_model").eval()
    prompt = torch.tensor([[0, 15, 20, 73, 58, 13]])
    options: dict[str, Any] = {"num_beams": 6, "repetition_penalty": 1.3, "eos_token_id": 75, "pad_token_id": 0}
    texts = model.generate(
        prompt, attention_mask=(prompt != 0).long(), force_words_ids=[[[30, 91], [88, 43, 57]]], max_new_tokens=12,
        early_stopping="never",
        num_return_sequences=3, **options,
    )  # fmt: skip
    assert all(re.search(r"\b(30 91|88 43 57)\b", " ".join(map(str, text))) for text in texts[:, 5:].tolist())


@pytest.mark.parametrize("ids", [[], [1, -2], [1, "a"], [1.5], torch.tensor([1, 2]), 3, None, (1, 2)])
def test_a_phrase_is_a_list_of_ids(ids: Any) -> None:
    with pytest.raises(ValueError, match="list of token ids"):
        PhrasalConstraint(ids)


@pytest.mark.parametrize(
    "ids", [[], [[]], [1], [[1], 2], [[1, "a"]], [[-1]], torch.tensor([[1]]), [torch.tensor([1])], None, [[1, 2], [1]]]
)
def test_a_choice_is_a_list_of_phrases_none_of_which_begins_with_another(ids: Any) -> None:
    with pytest.raises(ValueError, match="DisjunctiveConstraint"):
        DisjunctiveConstraint(ids)


def test_tokens_are_ints() -> None:
    for constraint in (PhrasalConstraint([1]), DisjunctiveConstraint([[1]])):
        with pytest.raises(ValueError, match="must be an int"):
            constraint.does_advance(torch.tensor(1))
    with pytest.raises(ValueError, match="must be an int"):
        ConstraintListState([PhrasalConstraint([1])]).add(torch.tensor(1))


def test_a_constraint_that_contradicts_itself_is_refused_when_made() -> None:
    class Endless(Repeated):
        def update(self, token_id: int) -> tuple[bool, bool, bool]:
            return True, False, False

    class Deaf(Repeated):
        def does_advance(self, token_id: int) -> bool:
            return False

    class Wrong(Repeated):
        def remaining(self) -> int:
            return 1

    for kind, says in ((Endless, "must be completed"), (Deaf, "does_advance must be true"), (Wrong, "must be 0")):
        with pytest.raises(ValueError, match=says):
            kind(3, 2)
    with pytest.raises(NotImplementedError, match=r"must define advance\(\)"):
        Constraint()


def test_the_options_are_read_as_phrases_and_choices() -> None:
    own = PhrasalConstraint([4])
    made = read_constraints([own], [[1, 2], [[3], [4, 5]]])
    assert [type(one) for one in made] == [PhrasalConstraint, PhrasalConstraint, DisjunctiveConstraint]
    assert made[0] is own
    assert [fewest_tokens(one) for one in (*made, Repeated(3, 4))] == [1, 2, 1, 4]
