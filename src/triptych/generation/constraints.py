"""Constraints of beam search: what a text must hold, and how far it has come with it.

Names and methods are those of the documented version. Hokamp and Liu, 2017, arXiv:1704.07138; Post and Vilar, 2018,
arXiv:1804.06609.
"""

import copy
import itertools
from collections.abc import Sequence
from typing import Any, Self

from triptych.generation.checks import require_ids

_MANY_STEPS = 10_000  # a constraint that takes longer is taken to have no end


class Constraint:
    """Base of the constraints; write your own by overriding all methods but `test`.

    Feeding it what `advance` proposes, again and again, must complete it. The constructor tries that.
    """

    def __init__(self) -> None:
        self.test()

    def test(self) -> None:
        """Walk to the end once and start again.

        Raises: ValueError when the methods contradict each other, or the walk does not end.
        """
        for _ in range(_MANY_STEPS):
            proposed = self.advance()
            token = proposed[0] if isinstance(proposed, list) else proposed
            if token is None or not self.does_advance(token):
                raise ValueError(f"{self._name}.does_advance must be true of what advance() proposes; got {token!r}.")
            if self.update(token)[1]:
                break
        else:
            raise ValueError(f"{self._name} must be completed by what advance() proposes; it is not.")
        if self.remaining() != 0:
            raise ValueError(f"{self._name}.remaining() must be 0 when it is completed; got {self.remaining()}.")
        self.reset()

    def advance(self) -> int | list[int] | None:
        """The token, or the tokens, that take it one step further; None when it is completed."""
        raise NotImplementedError(f"{self._name} must define advance().")

    def does_advance(self, token_id: int) -> bool:
        """Whether the token takes it one step further."""
        raise NotImplementedError(f"{self._name} must define does_advance(token_id).")

    def update(self, token_id: int) -> tuple[bool, bool, bool]:
        """Take the text's next token. Returns: whether it went further, is completed, and was set back."""
        raise NotImplementedError(f"{self._name} must define update(token_id).")

    def reset(self) -> None:
        """Forget all progress."""
        raise NotImplementedError(f"{self._name} must define reset().")

    def remaining(self) -> int:
        """How many steps are left."""
        raise NotImplementedError(f"{self._name} must define remaining().")

    def copy(self, stateful: bool = False) -> "Constraint":
        """The same constraint, at its start, or with the same progress when `stateful`."""
        raise NotImplementedError(f"{self._name} must define copy(stateful=False).")

    @property
    def _name(self) -> str:
        return type(self).__name__


class DisjunctiveConstraint(Constraint):
    """The text must hold one of several phrases, `nested_token_ids`: a list of lists of token ids.

    Raises: ValueError unless it is that, and when a phrase begins with another, which would complete it earlier.
    """

    def __init__(self, nested_token_ids: list[list[int]]) -> None:
        rule = "DisjunctiveConstraint takes a non-empty list of phrases, each a non-empty list of token ids"
        if not isinstance(nested_token_ids, list) or not nested_token_ids:
            raise ValueError(f"{rule}; got {nested_token_ids!r}.")
        for phrase in nested_token_ids:
            if not isinstance(phrase, list):
                raise ValueError(f"{rule}; got {phrase!r} in it.")
            require_ids("each phrase of a DisjunctiveConstraint", phrase)
        ordered = sorted({tuple(phrase) for phrase in nested_token_ids})
        for shorter, longer in itertools.pairwise(ordered):
            if longer[: len(shorter)] == shorter:
                raise ValueError(
                    "No phrase of a DisjunctiveConstraint may begin with another, which is then completed first; got "
                    f"{list(shorter)} and {list(longer)}. Leave out the longer one."
                )
        self.token_ids = nested_token_ids
        self.seqlen = max(map(len, nested_token_ids))
        self.current_seq: list[int] = []
        self.completed = False
        super().__init__()

    def advance(self) -> list[int] | None:
        """The tokens that continue a phrase begun; None when one is completed."""
        done = len(self.current_seq)
        begun = [phrase[done] for phrase in self.token_ids if len(phrase) > done and phrase[:done] == self.current_seq]
        return list(dict.fromkeys(begun)) or None

    def does_advance(self, token_id: int) -> bool:
        """Whether the token continues a phrase begun."""
        return _checked(token_id) in (self.advance() or ())

    def update(self, token_id: int) -> tuple[bool, bool, bool]:
        """Take the text's next token. Returns: whether it went further, is completed, and was set back."""
        if not self.does_advance(token_id):
            self.reset()
            return False, False, True
        self.current_seq.append(token_id)
        self.completed = self.current_seq in self.token_ids
        return True, self.completed, False

    def reset(self) -> None:
        """Forget all progress."""
        self.current_seq, self.completed = [], False

    def remaining(self) -> int:
        """How many steps are left, on the longest way."""
        return 0 if self.completed else self.seqlen - len(self.current_seq)

    def copy(self, stateful: bool = False) -> "DisjunctiveConstraint":
        """The same constraint, at its start, or with the same progress when `stateful`."""
        new = copy.copy(self)
        new.current_seq, new.completed = [], False
        if stateful:
            new.current_seq, new.completed = list(self.current_seq), self.completed
        return new


class PhrasalConstraint(Constraint):
    """The text must hold the phrase `token_ids`, a list of token ids, without a break.

    Raises: ValueError unless it is that.
    """

    def __init__(self, token_ids: list[int]) -> None:
        if not isinstance(token_ids, list):
            raise ValueError(f"PhrasalConstraint takes a non-empty list of token ids; got {token_ids!r}.")
        require_ids("token_ids of a PhrasalConstraint", token_ids)
        self.token_ids = token_ids
        self.seqlen = len(token_ids)
        self.fulfilled_idx = -1  # the place of the last token that was found
        self.completed = False
        super().__init__()

    def advance(self) -> int | None:
        """The next token of the phrase; None when it is completed."""
        return None if self.completed else self.token_ids[self.fulfilled_idx + 1]

    def does_advance(self, token_id: int) -> bool:
        """Whether the token is the next one of the phrase."""
        return _checked(token_id) == self.advance()

    def update(self, token_id: int) -> tuple[bool, bool, bool]:
        """Take the text's next token. Returns: whether it went further, is completed, and was set back."""
        if not self.does_advance(token_id):
            self.reset()
            return False, False, True
        self.fulfilled_idx += 1
        self.completed = self.fulfilled_idx == self.seqlen - 1
        return True, self.completed, False

    def reset(self) -> None:
        """Forget all progress."""
        self.fulfilled_idx, self.completed = -1, False

    def remaining(self) -> int:
        """How many tokens are left."""
        return self.seqlen - (self.fulfilled_idx + 1)

    def copy(self, stateful: bool = False) -> "PhrasalConstraint":
        """The same constraint, at its start, or with the same progress when `stateful`."""
        new = copy.copy(self)
        if not stateful:
            new.fulfilled_idx, new.completed = -1, False
        return new


class ConstraintListState:
    """How far one text has come with all its constraints, of which it works on one at a time, in any order.

    `max_seqlen` is the number of steps of the longest.
    """

    def __init__(self, constraints: Sequence[Any]) -> None:
        self.constraints = constraints
        self.max_seqlen = max(constraint.copy().remaining() for constraint in constraints)
        self.n_constraints = len(constraints)
        self.init_state()

    def init_state(self) -> None:
        """Begin anew."""
        self.completed = False
        self.complete_constraints: list[Any] = []
        self.inprogress_constraint: Any = None
        self.pending_constraints = [constraint.copy(stateful=False) for constraint in self.constraints]

    def get_bank(self) -> int:
        """How far the text has come: `max_seqlen` for each completed constraint, and the steps into the one begun."""
        begun = self.inprogress_constraint
        steps = 0 if begun is None else self.max_seqlen - begun.remaining()
        return int(len(self.complete_constraints) * self.max_seqlen + steps)

    def advance(self) -> list[int] | None:
        """The tokens that take the text further: of the constraint begun, else of all pending ones; None if none do."""
        begun = self.inprogress_constraint
        tokens: list[int] = []
        for constraint in self.pending_constraints if begun is None else [begun]:
            proposed = constraint.advance()
            tokens += proposed if isinstance(proposed, list) else [] if proposed is None else [proposed]
        return tokens or None

    def reset(self, token_ids: list[int] | None) -> None:
        """Begin anew and take the tokens of a text, until all constraints are completed."""
        self.init_state()
        for token in token_ids or ():
            self.add(token)
            if self.completed:
                break

    def add(self, token_id: int) -> tuple[bool, bool]:
        """Take the text's next token. Returns: whether it completed a constraint, and whether it went further.

        A token that breaks off the constraint begun sets that back and begins no other.
        """
        _checked(token_id)
        if self.completed:
            return True, False
        begun = self.inprogress_constraint
        if begun is None:
            begun = next((one for one in self.pending_constraints if one.does_advance(token_id)), None)
            if begun is None:
                return False, False
            self.pending_constraints.remove(begun)
        stepped, complete, was_reset = begun.update(token_id)
        self.inprogress_constraint = None if complete or was_reset else begun
        if complete:
            self.complete_constraints.append(begun)
        elif was_reset:
            self.pending_constraints.append(begun.copy(stateful=False))
        self.completed = not self.pending_constraints and self.inprogress_constraint is None
        return complete, stepped

    def copy(self, stateful: bool = True) -> Self:
        """The same constraints, with the same progress when `stateful`, else at their start."""
        new = type(self)(self.constraints)
        if stateful:
            new.completed = self.completed
            new.complete_constraints = [one.copy(stateful=True) for one in self.complete_constraints]
            if self.inprogress_constraint is not None:
                new.inprogress_constraint = self.inprogress_constraint.copy(stateful=True)
            new.pending_constraints = [one.copy() for one in self.pending_constraints]
        return new


def _checked(token_id: int) -> int:
    if not isinstance(token_id, int):
        raise ValueError(f"token_id must be an int; got {token_id!r}, a {type(token_id).__name__}. Use .item().")
    return token_id


def fewest_tokens(constraint: Any) -> int:
    """How many tokens it takes at least."""
    if isinstance(constraint, DisjunctiveConstraint):
        return min(map(len, constraint.token_ids))
    return int(constraint.copy().remaining())


def read_constraints(constraints: Any, force_words_ids: Any) -> list[Any]:
    """The constraints of the two options: a phrase for each list of ids, a choice for each list of such lists.

    Raises: ValueError for what has neither form, and for objects that are no constraints.
    """
    if constraints is not None and (not isinstance(constraints, Sequence) or not constraints):
        raise ValueError(f"constraints must be a non-empty list of Constraint objects; got {constraints!r}.")
    made = list(constraints or ())
    for one in made:
        if not isinstance(one, Constraint):
            raise ValueError(f"constraints must be a list of Constraint objects; got {one!r} in it.")
    if force_words_ids is None:
        return made
    rule = "force_words_ids must be a non-empty list of phrases [id, …], or of choices [[id, …], …] between phrases"
    if not isinstance(force_words_ids, list) or not force_words_ids:
        raise ValueError(f"{rule}; got {force_words_ids!r}.")
    for words in force_words_ids:
        if not isinstance(words, list) or not words:
            raise ValueError(f"{rule}; got {words!r} in it.")
        made.append((DisjunctiveConstraint if isinstance(words[0], list) else PhrasalConstraint)(words))
    return made
