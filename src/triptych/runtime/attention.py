"""Attention: one function per implementation, all given the same mask, window and scale, all equal to `eager`.

`eager` and `sdpa` are here; the others, which load what they need at their first use, have modules of their own.

Which keys a query may see is said once, by `AttentionMask`, for every implementation: those not after it, not
padding, and, in a layer with a window, the last `window` of them, itself counted. A query that may see nothing
gives zeros.

Shapes: B batch, H heads, T queries, S keys (the past and the T new ones), D head_dim.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class AttentionMask:
    """Which of the S keys each of the T queries may see; the queries are the last T of the S positions.

    `padding` (B, S) is True at keys that are tokens and False at padding; None when nothing is padding.
    A dense mask is made only where no shorter way of saying it exists, and once for all layers of a kind. A layer
    whose cache has let go of what its window no longer shows gives fewer keys, the last of the S.

    With `shared`, the keys behind the first `shared` ones are alternatives, each the next token after those: a query
    sees the shared past and itself.

    With `fixed`, the keys are the places of a `FixedCache`, and for each window an additive bias (1 or B, 1, 1, places)
    says which of them one query sees. Nothing else is asked then.
    """

    queries: int
    keys: int
    device: torch.device
    padding: Tensor | None = None
    shared: int | None = None
    fixed: dict[int | None, Tensor] | None = None
    _dense: dict[tuple[int | None, int, int, int], Tensor] = field(default_factory=dict, repr=False)
    _made: dict[Any, Any] = field(default_factory=dict, repr=False)
    _elsewhere: dict[torch.device, "AttentionMask"] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, attention_mask: "Tensor | AttentionMask | None", batch: int, queries: int, past: int, device: torch.device
    ) -> "AttentionMask":
        """From the documented `attention_mask` (B, S), 1 at tokens and 0 at padding; B may be several axes.

        One that is an AttentionMask already is taken as it is: `generate` makes some that no tensor can say.

        Raises: ValueError when its shape is not (B, past + queries).
        """
        if isinstance(attention_mask, AttentionMask):
            return attention_mask
        keys = past + queries
        if attention_mask is None:
            return cls(queries, keys, device)
        if attention_mask.dim() > 2:
            attention_mask = attention_mask.flatten(0, -2)
        if tuple(attention_mask.shape) != (batch, keys):
            raise ValueError(
                f"attention_mask must have shape (batch, past + new tokens) = {(batch, keys)}; "
                f"got {tuple(attention_mask.shape)}."
            )
        padding = attention_mask.to(device) != 0
        # On an accelerator a decoding step does not look: the host would wait for it at every token.
        look = not torch.compiler.is_compiling() and (device.type == "cpu" or queries > 1)
        return cls(queries, keys, device, None if look and bool(padding.all()) else padding)

    def on(self, device: torch.device) -> "AttentionMask":
        """The same mask for layers that live on another device, made once for all of them."""
        if device == self.device:
            return self
        if device not in self._elsewhere:
            padding = None if self.padding is None else self.padding.to(device)
            self._elsewhere[device] = AttentionMask(self.queries, self.keys, device, padding, self.shared)
        return self._elsewhere[device]

    def once(self, name: Any, make: Callable[[], Any]) -> Any:
        """What `make` makes of this mask for an implementation, made once for all layers that ask for that `name`."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def narrows(self, window: int | None) -> bool:
        """Whether a window hides any key that causal order shows."""
        return window is not None and window < self.keys

    def dense(self, window: int | None, gone: int = 0) -> Tensor:
        """True where query t may see key s: (1 or B, 1, T, S - gone), without the first `gone` keys."""
        return self.block(window, self.keys - self.queries, self.keys, gone)

    def block(self, window: int | None, start: int, stop: int, first: int) -> Tensor:
        """The part of the queries at positions start … stop - 1 and the keys first … stop - 1, made once."""
        kind = window if self.narrows(window) else None
        name = (kind, stop - start, stop - first, 0 if self.padding is None else stop)
        if name not in self._dense:
            key = torch.arange(first, stop, device=self.device)
            query = torch.arange(start, stop, device=self.device)[:, None]
            place = query if self.shared is None else self.shared
            visible = key <= query if self.shared is None else (key < place) | (key == query)
            if kind is not None:
                visible &= key > place - kind
            if self.padding is not None:
                self._dense[name] = visible & self.padding[:, None, None, first:stop]
            else:
                self._dense[name] = visible[None, None]
        return self._dense[name]


def eager(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: AttentionMask,
    *,
    scale: float,
    window: int | None,
    dropout: float,
    head_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attention as written in the papers, with scores and softmax in float32: the truth for the others.

    Returns: (B, H, T, D) in v's dtype, and the weights (B, H, T, S) after dropout and `head_mask` (H,).
    """
    with torch.autocast(q.device.type, enabled=False):
        scores = torch.matmul(q.float(), k.float().transpose(-1, -2)) * scale
    if mask.fixed is not None:
        weights = (scores + mask.fixed[window]).softmax(dim=-1).to(v.dtype)
        return torch.matmul(weights, v), weights
    gone = mask.keys - k.shape[2]
    visible = mask.dense(window, gone)
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1)
    if mask.padding is not None:
        weights = weights.masked_fill(~visible, 0.0)  # a query that may see nothing
    weights = F.dropout(weights.to(v.dtype), p=dropout)
    if head_mask is not None:
        weights = weights * head_mask.to(weights.dtype)[:, None, None]
    return torch.matmul(weights, v), F.pad(weights, (gone, 0)) if gone else weights


def sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: AttentionMask,
    *,
    scale: float,
    window: int | None,
    dropout: float,
    head_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """PyTorch's fused attention, told by a flag or a slice where that says the same as a mask.

    Returns: (B, H, T, D) and no weights: callers that want those, or a head mask, use `eager`.
    """
    padding = mask.padding
    if mask.fixed is not None:
        return F.scaled_dot_product_attention(q, k, v, mask.fixed[window], scale=scale), None
    if mask.shared is not None:
        return F.scaled_dot_product_attention(q, k, v, mask.dense(window), dropout, scale=scale), None
    if mask.queries == 1:  # decoding: everything seen so far, or its last `window` tokens
        if window is not None and mask.narrows(window):
            k, v = k[:, :, -window:], v[:, :, -window:]
            padding = padding[:, -window:] if padding is not None else None
        visible = padding[:, None, None, :] if padding is not None else None
        return F.scaled_dot_product_attention(q, k, v, visible, dropout, scale=scale), None
    if padding is None and not mask.narrows(window) and mask.queries == mask.keys:
        return F.scaled_dot_product_attention(q, k, v, None, dropout, is_causal=True, scale=scale), None
    if window is not None and mask.narrows(window) and not torch.compiler.is_compiling():  # T would become a constant
        return _by_blocks(q, k, v, mask, window, scale, dropout), None
    visible = mask.dense(window, mask.keys - k.shape[2])
    return F.scaled_dot_product_attention(q, k, v, visible, dropout, scale=scale), None


def _by_blocks(
    q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, window: int, scale: float, dropout: float
) -> Tensor:
    """Attention within a window at the window's cost: each block of queries with the keys that it can see."""
    size = 64 if q.device.type == "cpu" else max(window, 64)  # a CPU's kernels are quick to start
    gone, outs = mask.keys - k.shape[2], []
    for start in range(mask.keys - mask.queries, mask.keys, size):
        stop = min(start + size, mask.keys)
        first = max(start - window + 1, gone)
        part = q[:, :, start + mask.queries - mask.keys : stop + mask.queries - mask.keys]
        keys, values = (x[:, :, first - gone : stop - gone] for x in (k, v))
        visible = mask.block(window, start, stop, first)
        outs.append(F.scaled_dot_product_attention(part, keys, values, visible, dropout, scale=scale))
    return torch.cat(outs, dim=2) if len(outs) > 1 else outs[0]


def flash_attention_2(
    q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention by the package flash-attn; see `triptych.runtime.flash`."""
    from triptych.runtime import flash

    return flash.flash_attention_2(q, k, v, mask, **options)


def flex_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention by a kernel that PyTorch compiles for the mask; see `triptych.runtime.flex`."""
    from triptych.runtime import flex

    return flex.flex_attention(q, k, v, mask, **options)


IMPLEMENTATIONS: dict[str, Callable[..., tuple[Tensor, Tensor | None]]] = {
    "eager": eager,
    "sdpa": sdpa,
    "flash_attention_2": flash_attention_2,
    "flex_attention": flex_attention,
}
DEFAULT_IMPLEMENTATION = "sdpa"


def check_implementation(name: str | None) -> str:
    """The name of an implementation that can be had here; None gives the default.

    Whether the device and the dtype suit it is asked when it runs: a model may be moved and converted until then.

    Raises: ValueError when there is no such implementation; ImportError when it needs what is not installed.
    """
    if name is None:
        return DEFAULT_IMPLEMENTATION
    if not isinstance(name, str) or name not in IMPLEMENTATIONS:
        raise ValueError(f"attn_implementation must be one of {', '.join(IMPLEMENTATIONS)}; got {name!r}.")
    if name == "flash_attention_2":
        from triptych.runtime import flash

        flash.check_installed()
    elif name == "flex_attention":
        from triptych.runtime import flex

        flex.check_installed()
    return name


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: AttentionMask,
    *,
    impl: str,
    scale: float,
    window: int | None = None,
    dropout: float = 0.0,
    head_mask: Tensor | None = None,
    need_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention by the named implementation; by `eager` when weights are wanted or a head mask is given.

    Takes q (B, H, T, D), k and v (B, H, S, D); scores are multiplied by `scale`; a `window` of n lets a query see
    the last n keys, itself counted; `dropout` is the probability that a weight is dropped; `head_mask` (H,)
    multiplies the weights.

    Returns: (B, H, T, D), and the weights (B, H, T, S) when `need_weights`, else None.
    Raises: ValueError when there is no such implementation, or none for this device, dtype or head size.
    """
    if need_weights or head_mask is not None:
        function = eager
    else:
        function = IMPLEMENTATIONS.get(impl) or IMPLEMENTATIONS[check_implementation(impl)]
    if mask.fixed is not None and function is not eager:
        function = sdpa
    out, weights = function(
        q, k, v, mask.on(q.device), scale=scale, window=window, dropout=dropout, head_mask=head_mask
    )
    return out, weights if need_weights else None


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """(B, T, H * D) -> (B, H, T, D)."""
    return x.view(*x.shape[:-1], -1, head_dim).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, T, D) -> (B, T, H * D)."""
    return x.transpose(1, 2).flatten(2)


def in_one_dtype(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same in the dtype of autocast, where that is on: norms leave float32 where products give half precision."""
    if not torch.is_autocast_enabled(q.device.type):
        return q, k, v
    dtype = torch.get_autocast_dtype(q.device.type)
    return q.to(dtype), k.to(dtype), v.to(dtype)
