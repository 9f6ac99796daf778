"""A batch's prompts of uneven lengths, fed without most of their padding.

Rows of similar length go through the model together, each group from the first token of its longest row on, and their
keys and values go to their places, right-aligned, in the one cache that decoding continues.

Shapes: B rows, T positions of the padded prompt, R rows of a group, V vocabulary, C hidden_size.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from triptych.runtime.cache import KeyValueCache, open_layers

if TYPE_CHECKING:
    from triptych.modeling_torch import PreTrainedModel
    from triptych.runtime.preparing import NextToken

# What one more call of the model costs, in tokens' work. It reads all weights once more, and in the time that takes a
# CPU multiplies them with a dozen or two tokens, a GPU's matrix units with some hundreds. Few tokens also use a CPU
# worse: at 125 M parameters on two cores a call costs 45 ms and a token 1.9 ms.
READING_ON_CPU, READING = 24, 256
# An accelerator also waits while the host launches the kernels, some 20 a layer of some 10 µs each, and would have done
# that many numbers of matrices C x C meanwhile, at some 400 TFLOP/s. Of wide models that is less than the reading.
LAUNCHING = 2**32

_CUT = ("attention_mask", "position_ids", "inputs_embeds")  # inputs (B, T, …)
_PATCHES = ("image_patches", "image_patches_indices")
_KNOWN = {*_CUT, *_PATCHES, "head_mask", "last", "last_hidden"}


def in_groups(
    model: "PreTrainedModel", cache: KeyValueCache, ids: Tensor | None, inputs: Mapping[str, Any]
) -> "NextToken | None":
    """What `model.next_token_logits(ids, cache=cache, **inputs)` gives after a batch's prompts, for less work.

    `cache` is empty. What it and the hidden states (where `last_hidden` asks for them) hold at padding is zero.

    Returns: None where one call with all the padding is as good, or where an input or a module that is not this
        package's own might tell the difference.
    """
    mask: Tensor | None = inputs.get("attention_mask")
    if mask is None or not inputs.keys() <= _KNOWN:
        return None
    width = mask.shape[1]
    lengths = (width - mask.argmax(dim=1)).tolist()  # from the first token on
    groups = plan(lengths, cost_of_call(model.device.type, model.config.hidden_size))
    if (len(groups) == 1 and max(lengths) == width) or not is_plain(model):
        return None
    shared = dict(inputs)
    if ids is not None and any(name in inputs for name in _PATCHES):
        patches = [shared.pop(name, None) for name in _PATCHES]
        ids, shared["inputs_embeds"] = None, model.embedded(ids, *patches)  # type: ignore[operator]
    layers = open_layers(cache, model.config.num_hidden_layers)
    rows = [torch.tensor(group, device=mask.device) for group in groups]
    outs = []
    for group, index in zip(groups, rows, strict=True):
        length = lengths[group[0]]
        own = shared | {name: _part(shared[name], index, length) for name in _CUT if name in shared}
        own["cache"] = KeyValueCache.of_rows(layers, index, len(mask), width)
        out = model.next_token_logits(None if ids is None else _part(ids, index, length), **own)
        kept = out.hidden_states[-1:] if inputs.get("last_hidden") and out.hidden_states else ()
        outs.append(out._replace(cache=None, hidden_states=kept))
    hidden = [out.hidden_states[-1] for out in outs if out.hidden_states]
    return outs[0]._replace(
        logits=_together(rows, [out.logits for out in outs], outs[0].logits.shape[1]),
        cache=KeyValueCache.of_layers(layers),
        hidden_states=(_together(rows, hidden, width),) if hidden else None,
        attentions=None,
    )


def _part(x: Tensor, rows: Tensor, length: int) -> Tensor:
    """The last `length` of T, of some `rows` (R,), of (B, T, …): (R, length, …)."""
    return x[:, -length:].index_select(0, rows.to(x.device))


def _together(rows: list[Tensor], parts: list[Tensor], width: int) -> Tensor:
    """Parts (R, at most T, …) in their `rows` of (B, T, …), behind zeros."""
    whole = parts[0].new_zeros((sum(map(len, rows)), width, *parts[0].shape[2:]))
    for index, part in zip(rows, parts, strict=True):
        whole[:, -part.shape[1] :].index_copy_(0, index.to(part.device), part)
    return whole


def plan(lengths: Sequence[int], call: int) -> list[list[int]]:
    """The rows of each group, longest first, such that tokens computed and `call` for each group are fewest.

    A group's rows are neighbours by length, and rows of one length stay together; that makes a shortest path over the
    different lengths.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    starts = [place for place, row in enumerate(order) if place == 0 or lengths[row] != lengths[order[place - 1]]]
    stops = [*starts[1:], len(order)]
    best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, (0,))}  # by where a group stops: cost, and all stops so far
    for stop in stops:
        found = [start for start in starts if start < stop]
        cost, start = min((best[start][0] + (stop - start) * lengths[order[start]] + call, start) for start in found)
        best[stop] = (cost, (*best[start][1], stop))
    return [order[start:stop] for start, stop in pairwise(best[len(order)][1])]


def cost_of_call(device: str, hidden_size: int) -> int:
    """What one more call costs, in tokens' work."""
    if device == "cpu":
        return READING_ON_CPU
    return max(READING, LAUNCHING // hidden_size**2)


def is_plain(model: nn.Module) -> bool:
    """Whether all modules are this package's or PyTorch's own, and nobody watches, wraps or trains them."""
    if nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
        return False
    return not any(
        module.training
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._compiled_call_impl is not None
        or "forward" in vars(module)
        or type(module).forward.__module__.partition(".")[0] not in ("triptych", "torch")
        for module in model.modules()
    )
