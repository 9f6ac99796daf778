"""A model prepared for decoding: its weights fused and packed once, and the step that uses them.

The first decoding step prepares the model, and later ones use what it made for as long as the model is what it was. A
step asks that of every module and parameter, which costs some tens of microseconds. A weight that was changed in
place, replaced, moved or resized, a module put in another's place, a hook, and training all end it.

On the CPU the weights are copied, in the order in which the processor likes to read them. PyTorch does not record what
is written through `.data`, as merging adapters and averaging weights do, nor a setting or a method that is changed. So
every call of `generate` compares the settings and one number of each row and each column of each matrix with what they
were. Who writes less than a row or a column through `.data` calls `model.prepare_decoding()` after it.

On a GPU nothing is copied, and what is written is seen at once; there `fixed_decoding` has the step replayed.
"""

import warnings
import weakref
from collections.abc import Callable, Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from triptych.activations_torch import Activation
from triptych.runtime import packing
from triptych.runtime.cache import KeyValueCache, open_layers
from triptych.runtime.quantized_linear import QuantizedLinear

if TYPE_CHECKING:
    from triptych.modeling_torch import PreTrainedModel

# What a family's `step_torch` makes of a model: called with what its `enter` gave, the layers' caches and `last`, it
# returns logits and hidden states.
Step = Callable[..., tuple[Tensor, Tensor]]
_SHARE = 4  # a copy of the weights may take one part in four of the memory that is free
_FEW = 16  # new tokens of a row that the packed weights are still quicker for
_preparing = Lock()  # so that two threads do not pack the same model at once
_FORWARD_ONLY = ("head_mask", "output_attentions", "output_hidden_states")


class NextToken(NamedTuple):
    """What a decoding step needs of a model: `logits` (B, V) of the last position, in float32, and the cache.

    Of several positions, where `last` asked for them: (B, last, V).
    """

    logits: Tensor
    cache: Any
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class Seal:
    """What a model was when it was prepared; `holds` says whether it still is, `holds_closely` with more care."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = [
            (parent._modules, name, child)
            for parent in model.modules()
            for name, child in parent._modules.items()
            if child is not None
        ]
        self._tensors = [
            (module._parameters, name, value, value._version, value.data_ptr())
            for module in model.modules()
            for name, value in module._parameters.items()
            if value is not None
        ]
        # elsewhere nothing is copied, so there is nothing that could be out of date
        self._samples = [(value, _sample(value)) for value in model.parameters() if value.device.type == "cpu"]
        # weakly, as the model holds its seal: it is to be freed when it is let go of
        self._settings = [(weakref.ref(each), type(each).forward, _settings(each)) for each in model.modules()]

    def holds(self) -> bool:
        """Whether all modules and parameters are the same objects, unchanged and unwatched."""
        for siblings, name, child in self._modules:
            if siblings.get(name) is not child or child._forward_hooks or child._forward_pre_hooks:
                return False
            if child.training or "forward" in child.__dict__:
                return False
        return all(
            siblings.get(name) is value and value._version == version and value.data_ptr() == place
            for siblings, name, value, version, place in self._tensors
        )

    def holds_closely(self) -> bool:
        """Also whether settings and methods are the same, and the weights as far as a sample of them shows."""
        return (
            self.holds()
            and all(
                (module := known()) is not None and type(module).forward is forward and _settings(module) == settings
                for known, forward, settings in self._settings
            )
            and all(torch.equal(_sample(value), sample) for value, sample in self._samples)
        )


def _sample(value: Tensor) -> Tensor:
    """A copy of one number of each row and each column of a matrix; of all numbers of anything else."""
    value = value.detach()
    if value.dim() != 2:
        return value.clone()
    tall = value if value.shape[0] >= value.shape[1] else value.t()
    return torch.cat([part.diagonal() for part in torch.split(tall, max(tall.shape[1], 1))])


def _settings(module: nn.Module) -> dict[str, Any]:
    """A layer's sizes, constants and functions, such as `eps`, `window` and an activation."""
    return {
        name: value
        for name, value in vars(module).items()
        if name[0] != "_" and (isinstance(value, int | float | str | tuple) or callable(value))
    }


class Prepared:
    """A step, the seal of the model it was made from, and what keeps it at hand (see `fixed_decoding`).

    Copies and pickles of the model leave it behind.
    """

    def __init__(self, step: Step | None, seal: Seal) -> None:
        self.step, self.seal = step, seal
        self.decoders: list[Any] = []
        self.failed: set[str] = set()  # ways to make it quicker that do not work here

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(None), ())


def end_if_changed(model: nn.Module) -> None:
    """Let go of what was prepared from a model, or a part of it, that is not what it was. Called once by `generate`."""
    for part in model.modules():
        prepared: Prepared | None = vars(part).get("_prepared")
        if prepared is not None and not prepared.seal.holds_closely():
            part._prepared = None  # type: ignore[assignment]


def prepared_step(
    model: "PreTrainedModel",
    input_ids: Tensor | None,
    cache: Any,
    inputs: Mapping[str, Any],
    *,
    last: int | None,
    last_hidden: bool,
) -> NextToken | None:
    """One decoding step by what was prepared of the model; None where its `forward` must do it.

    `inputs` are further inputs of `forward`; with `last` the logits are (B, last, V); `last_hidden` asks for the last
    hidden state.
    """
    given = inputs.get("inputs_embeds") if input_ids is None else input_ids
    if cache is None or given is None or given.dim() != (3 if input_ids is None else 2):
        return None
    prepared = prepared_of(model, given.shape[1], inputs)
    if prepared is None or prepared.step is None:
        return None
    layers = open_layers(cache, model.config.num_hidden_layers)
    inputs = {name: value for name, value in inputs.items() if name not in _FORWARD_ONLY}  # all of which say no
    base: Any = model.base_model
    entered = base.enter(layers[0].length, input_ids, **inputs)
    logits, x = prepared.step(*entered, layers, last)
    return NextToken(logits.float(), KeyValueCache.of_layers(layers), (x,) if last_hidden else None, None)


def prepared_of(model: "PreTrainedModel", new_tokens: int, inputs: Mapping[str, Any]) -> Prepared | None:
    """What is prepared of a model, made where there is none yet; None where `forward` must do it.

    That is for longer prompts, for all inputs that only `forward` knows, and for models that are not just published
    modules with weights on one device (on the CPU float32 or int8 ones), or whose copy would take too much of the free
    memory.
    """
    if model.step_class is None or not model.forward_is_published or model.prepares_decoding is False:
        return None
    config = model.config
    if (
        new_tokens > _FEW
        or any(inputs.get(name) for name in _FORWARD_ONLY[1:])
        or inputs.get("head_mask") is not None
        or config.output_attentions
        or config.output_hidden_states
    ):
        return None
    if model.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    place = model.device.type
    if torch.amp.is_autocast_available(place) and torch.is_autocast_enabled(place):
        return None
    if nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
        return None
    prepared: Prepared | None = model._prepared
    if prepared is None or not prepared.seal.holds():
        with _preparing:
            prepared = model._prepared  # another thread may have made it by now
            if prepared is None or not prepared.seal.holds():
                prepared = model._prepared = _prepare(model)
    return prepared


def _prepare(model: "PreTrainedModel") -> Prepared | None:
    model._prepared = None  # free the old weights before the new ones are made
    if model.step_class is None or not _can_be_prepared(model):
        return None
    seal = Seal(model)
    if not seal.holds():
        return None
    try:
        with torch.inference_mode(False), torch.no_grad():
            step = model.step_class(model) if _fits(model) else None
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        warnings.warn(f"The weights could not be packed, so decoding is slower: {error}", stacklevel=6)
        return Prepared(None, seal)
    # where they are not copied, weights may have moved to each other's side
    return Prepared(step, seal if model.device.type in packing.BLOCKING else Seal(model))


def _can_be_prepared(model: "PreTrainedModel") -> bool:
    """Whether all modules are this package's or PyTorch's own, with ordinary weights on one device.

    On the CPU those are float32, and int8.
    """
    device, dtype = model.device, model.dtype
    if device.type == "cpu":
        known = dtype == torch.float32 and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    else:
        known = device.type in _ACCELERATORS and dtype.itemsize > 1
    return (
        known
        and all(
            type(value) is nn.Parameter and value.dtype == dtype and value.device == device and not value.is_inference()
            for value in model.parameters()
        )
        and all(
            type(module) in _KNOWN_LAYERS
            or (
                type(module).__module__.startswith("triptych.")
                and type(module).forward.__module__.startswith("triptych.")
            )
            for module in model.modules()
        )
    )


_ACCELERATORS = ("cuda",)
_KNOWN_LAYERS = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.Dropout, nn.ModuleList, Activation)


def _fits(model: "PreTrainedModel") -> bool:
    if model.prepares_decoding or model.device.type != "cpu":
        return True
    free = packing.available_memory()
    copied = sum(value.nbytes for value in model.parameters() if value.dim() == 2)
    return free is None or copied * _SHARE <= free or any(isinstance(each, QuantizedLinear) for each in model.modules())


def row_heads(fused: Tensor, heads: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, H, T, D) of the new tokens, from rows (B, T, 3 * H * D) of all three."""
    q, k, v = fused.view(*fused.shape[:2], 3, heads, head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def last_positions(x: Tensor, last: int | None) -> Tensor:
    """The last position of (B, T, …), as (B, …); or the last `last` of them, as (B, last, …)."""
    return x[:, -1] if last is None else x[:, -last:]
