"""Which tensor of a checkpoint goes where, and what is said of those that do not fit, whatever the framework."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from triptych.checkpoints.checkpoint import TensorInfo
from triptych.errors import CheckpointError, WeightMismatchError

Mismatch = tuple[str, tuple[int, ...], tuple[int, ...]]  # name, shape in the checkpoint, shape in the model


@dataclass(slots=True)
class Matching:
    """Which tensor of the checkpoint goes where; names of the model and of the checkpoint are both as published."""

    stored_name: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[Mismatch] = field(default_factory=list)
    to_initialise: list[str] = field(default_factory=list)

    def loading_info(self) -> dict[str, list[Any]]:
        """The documented dict of `output_loading_info=True`."""
        return {
            "missing_keys": self.missing,
            "unexpected_keys": self.unexpected,
            "mismatched_keys": self.mismatched,
            "error_msgs": [],
        }


def targets(stored: Iterable[str], slots: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """Stored name → the model's name, with the base model's prefix added or dropped where that makes it fit."""
    stored = list(stored)
    target_of = {name: name for name in stored if name in slots}
    taken = set(target_of)
    start = f"{prefix}."
    for name in stored:
        other = name.removeprefix(start) if name.startswith(start) else start + name
        if prefix and name not in target_of and other in slots and other not in taken:
            target_of[name] = other
            taken.add(other)
    return target_of


def refuse_mismatched(mismatched: list[Mismatch], source: str) -> None:
    """Raises: WeightMismatchError listing every tensor of another shape; nothing if there is none."""
    if not mismatched:
        return
    lines = [
        f"  {name}: {tuple(stored)} in the checkpoint, {tuple(wanted)} in the model"
        for name, stored, wanted in mismatched
    ]
    raise WeightMismatchError(
        f"Stored tensors must have the shapes of the model's parameters, but {len(mismatched)} in {source} "
        "have not:\n" + "\n".join(lines) + "\nMake the configuration fit the checkpoint (for a head: num_labels=…), "
        "or pass ignore_mismatched_sizes=True to initialise these anew."
    )


def refuse_integers(names: Iterable[str], tensors: Mapping[str, TensorInfo], source: str) -> None:
    """Refuse whole numbers in the place of weights: what they stand for, a quantised checkpoint says elsewhere.

    Raises: CheckpointError naming the first of `names` that are such.
    """
    whole = sorted(name for name in names if "float" not in tensors[name].dtype)
    if whole:
        raise CheckpointError(
            f"Weights must be stored as floats, but {len(whole)} in {source} are not: {quote(whole, 2)} "
            f"({tensors[whole[0]].dtype}). Load the checkpoint from before it was quantised, with quantization='int8'."
        )


def describe(model_class: type, found: Matching, source: str) -> str | None:
    """What a user should know about weights that did not fit; None if there is nothing to tell."""
    lines = []
    if found.missing:
        lines.append(
            f"- {len(found.missing)} newly initialised, as the checkpoint lacks them: {quote(found.missing)}. "
            "Train the model before you rely on it."
        )
    if found.mismatched:
        shapes = [f"{name} {tuple(stored)} → {tuple(wanted)}" for name, stored, wanted in found.mismatched]
        lines.append(
            f"- {len(shapes)} newly initialised, as their shapes differ: {quote(shapes)}. "
            "Train the model before you rely on it."
        )
    if found.unexpected:
        lines.append(
            f"- {len(found.unexpected)} not used, as the model has no place for them: {quote(found.unexpected)}. "
            "That is fine if the checkpoint was saved from a model with another head."
        )
    if not lines:
        return None
    return "\n".join([f"Not all weights of {model_class.__name__} came from {source}:", *lines])


def is_any_of(name: str, patterns: Iterable[str] | None) -> bool:
    """Whether one of the regular expressions is found in a name."""
    return any(re.search(pattern, name) for pattern in patterns or ())


def quote(names: Iterable[str], limit: int = 10) -> str:
    """The first names, as an error message quotes them."""
    names = [name if name.isprintable() else repr(name) for name in names]
    more = f", … and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
