"""What the weights of the reference's Keras 2 models are called in files, and how their axes lie there.

A weight lies at LAYER/CLASS/LAYER/h_._0/attn/c_attn/weight:0 in a whole tf_model.h5, without CLASS in a shard and in
its model.safetensors. The published name is transformer.h.0.attn.c_attn.weight.
"""

import re
from collections.abc import Mapping
from typing import Any

from triptych.checkpoints.checkpoint import Checkpoint, TensorInfo
from triptych.errors import CheckpointError

# Name of a weight in Keras → its name as published, and what is done to its axes.
LEAVES = {
    "weight": ("weight", "as is"),
    "embeddings": ("weight", "as is"),
    "gamma": ("weight", "as is"),
    "beta": ("bias", "as is"),
    "kernel": ("weight", "turn"),
    "bias": ("bias", "drop leading axis"),
}
_COUNTED = re.compile(r"(\w+)_\._(\d+)")  # h_._0, the first of the list h


def published_name(where: tuple[str, ...]) -> tuple[str, str]:
    """The place of a weight → its published name, and what is to be done to its axes.

    Raises: CheckpointError for a place that no model has.
    """
    leaf = where[-1].partition(":")[0]
    if leaf not in LEAVES or len(where) < 2:
        raise CheckpointError(
            f"Weights of Keras are called {', '.join(LEAVES)} and lie in their layers; got {'/'.join(where)}. Save the "
            "model with the library that the file is from, as model.safetensors."
        )
    name, change = LEAVES[leaf]
    return ".".join([_COUNTED.sub(r"\1.\2", part) for part in _within_model(where[:-1])] + [name]), change


def _within_model(parts: tuple[str, ...]) -> tuple[str, ...]:
    """The way to a layer from the model on: a whole file has LAYER/CLASS/ before it, an index CLASS/, a shard none."""
    if len(parts) > 2 and parts[2] == parts[0]:
        return parts[2:]
    return parts[1:] if parts[0].startswith("tf_") and len(parts) > 1 else parts


def published_shape(shape: tuple[int, ...], change: str) -> tuple[int, ...]:
    """The shape that a stored tensor has as it is published."""
    if change == "turn":
        return shape[::-1]
    if change == "drop leading axis" and len(shape) == 2 and shape[0] == 1:
        return shape[1:]
    return shape


def published_array(array: Any, change: str) -> Any:
    """A stored array as it is published."""
    return array.T if change == "turn" else array.reshape(published_shape(array.shape, change))


class PublishedView:
    """A checkpoint whose tensors have Keras' names, by published name and as they are published."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.source = checkpoint.source
        self._checkpoint = checkpoint
        self._stored = {}
        tensors = {}
        for stored, info in checkpoint.tensors.items():
            name, change = published_name(tuple(stored.split("/")))
            self._stored[name] = (stored, change)
            tensors[name] = TensorInfo(published_shape(info.shape, change), info.dtype)
        self.tensors: Mapping[str, TensorInfo] = tensors

    def read(self, name: str, *, mapped: bool = False, dtype: Any = None) -> Any:
        """One array as it is published; see `TensorFile.read`."""
        stored, change = self._stored[name]
        return published_array(self._checkpoint.read(stored, mapped=mapped, dtype=dtype), change)


def published(checkpoint: Checkpoint) -> Any:
    """The checkpoint by published names, whichever names it has."""
    is_of_keras = any(name.endswith(":0") for name in checkpoint.tensors)
    return PublishedView(checkpoint) if is_of_keras else checkpoint


def keras_place(name: str, class_name: str, prefix: str) -> tuple[tuple[str, ...], str]:
    """The published name of a weight → its place in a file of the reference, and what is to be done to its axes."""
    parts = name.split(".")
    leaf, change = next((leaf, change) for pattern, leaf, change in _KERAS_LEAVES if re.search(pattern, name))
    if parts[0] in ("h", "tokens_embed", "positions_embed"):
        parts = [prefix, *parts]
    inner = re.sub(r"(\w+)/(\d+)(?=/)", r"\1_._\2", "/".join(parts[:-1]) + "/").strip("/").split("/")
    return (parts[0], _snake_case(class_name), *inner, f"{leaf}:0"), change


# Which weight has which name in Keras, and what is done to its axes on the way there; the first that fits.
_KERAS_LEAVES = (
    (r"(^|\.)ln_\w+\.weight$", "gamma", "as is"),
    (r"(^|\.)ln_\w+\.bias$", "beta", "as is"),
    (r"(^|\.)positions_embed\.weight$", "embeddings", "as is"),
    (r"(^|\.)(summary|score|lm_head)\.weight$", "kernel", "turn"),
    (r"(^|\.)c_\w+\.bias$", "bias", "add leading axis"),
    (r"\.bias$", "bias", "as is"),
    (r"\.weight$", "weight", "as is"),
)


def _snake_case(class_name: str) -> str:
    """TFOpenAIGPTLMHeadModel → tf_open_aigptlm_head_model, as Keras 2 called its objects."""
    words = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", class_name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()


def name_in_index(name: str, class_name: str, prefix: str) -> str:
    """What an index of shards calls a weight."""
    return "/".join(keras_place(name, class_name, prefix)[0][1:])
