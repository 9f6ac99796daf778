"""Parameters on a mesh of devices, by the partition rules that ship with a model."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from triptych.trees import leaves_of, tree_of

if TYPE_CHECKING:
    from triptych.modeling_flax import FlaxPreTrainedModel

_Spec: Any = PartitionSpec
RULE_AXIS = "model"  # what the rules call the axis over which a model is split


def partition_specs(model: "FlaxPreTrainedModel", mesh: Mesh, axis: str) -> dict[str, Any]:
    """See `FlaxPreTrainedModel.partition_specs`."""
    if axis not in mesh.shape:
        raise ValueError(f"The mesh has the axes {', '.join(mesh.axis_names)}; there is no {axis!r} among them.")
    parts = mesh.shape[axis]
    heads = model.config.num_attention_heads
    if heads % parts:
        raise ValueError(
            f"The mesh splits a model into {parts} parts ({axis!r}), which must divide its {heads} heads. Make that "
            f"axis of the mesh one of {', '.join(str(n) for n in range(1, heads + 1) if heads % n == 0)}."
        )
    shapes = leaves_of(model.params_shape_tree)
    specs = {leaf: _spec_of("/".join(leaf), shape.shape, model, axis, parts) for leaf, shape in shapes.items()}
    return tree_of(specs)


def shard_params(model: "FlaxPreTrainedModel", mesh: Mesh, params: Mapping[str, Any], axis: str) -> dict[str, Any]:
    """See `FlaxPreTrainedModel.shard_params`."""
    own = model.checked_params(params)
    specs = partition_specs(model, mesh, axis) if axis in mesh.shape else jax.tree_util.tree_map(lambda _: _Spec(), own)
    placed: dict[str, Any] = jax.tree_util.tree_map(
        lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)), own, specs
    )
    return placed


def _spec_of(name: str, shape: tuple[int, ...], model: "FlaxPreTrainedModel", axis: str, parts: int) -> Any:
    rule = next((axes for pattern, axes in model.partition_rules if re.search(pattern, name)), ())
    for size, part in zip(shape, rule, strict=False):
        if part is None or size % parts == 0:
            continue
        if size == model.config.vocab_size:
            return _Spec()  # few vocabularies divide; whole, they give the same numbers
        raise ValueError(
            f"The mesh splits a model into {parts} parts ({axis!r}), which must divide {name} of shape {shape}. "
            "Make that axis of the mesh smaller."
        )
    return _Spec(*(axis if part == RULE_AXIS else part for part in rule))
