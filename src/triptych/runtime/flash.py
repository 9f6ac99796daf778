"""`flash_attention_2`: attention by the package flash-attn (Dao, 2023, arXiv:2307.08691), on CUDA, in half precision.

The window of a local layer is passed, so such a layer costs its window. Padding is left out of the computation, and
its queries get zeros; a row's last query never does, because `generate` goes on from it whatever it is. What the
package cannot say goes to `sdpa`: alternatives (`mask.shared`), a window over a row with padding between its tokens,
and one query a row with padding, for which all keys would have to be copied.

Shapes: B batch, H heads, T queries, S keys, D head_dim, N tokens of all rows.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from triptych.runtime.attention import AttentionMask, in_one_dtype, sdpa
from triptych.runtime.devices import machine

_ANY = (-1, -1)  # no window
_LARGEST_HEAD = 256
_DTYPES = (torch.float16, torch.bfloat16)
_OTHERWISE = 'or choose attn_implementation="sdpa"'


def check_installed() -> None:
    """Whether flash-attn is here, in a version that knows windows.

    Raises: ImportError that tells how to install it.
    """
    try:
        dense, _ = _functions()
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "flash_attn"
        raise _missing("it is not installed" if absent else f"importing it failed: {error}") from error
    if "window_size" not in inspect.signature(dense).parameters:
        raise _missing("the one that is installed is older")


def _functions() -> tuple[Callable[..., Any], Callable[..., Any]]:
    from flash_attn import flash_attn_func, flash_attn_varlen_func

    return flash_attn_func, flash_attn_varlen_func


def _missing(what: str) -> ImportError:
    return ImportError(
        f'attn_implementation="flash_attention_2" needs the package flash-attn, 2.3 or newer; {what}. '
        f"Run: pip install flash-attn --no-build-isolation (on a machine with CUDA), {_OTHERWISE}.",
        name="flash_attn",
    )


def check_can_run(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """Whether flash-attn has a kernel for such queries.

    Raises: ValueError naming what the machine or the model has.
    """
    rule = "flash_attention_2 runs"
    if device.type != "cuda":
        raise ValueError(
            f"{rule} on CUDA devices; the model is on {device}, and this machine has {machine()}. "
            f'Move the model with model.to("cuda") where there is one, {_OTHERWISE}.'
        )
    if dtype not in _DTYPES:
        raise ValueError(
            f"{rule} in float16 and bfloat16; the model computes in {str(dtype).removeprefix('torch.')}. "
            f"Load it with torch_dtype=torch.bfloat16, use torch.autocast, {_OTHERWISE}."
        )
    if head_dim > _LARGEST_HEAD:
        raise ValueError(
            f"{rule} with heads of at most {_LARGEST_HEAD} numbers; the model's have {head_dim}. "
            'Choose attn_implementation="sdpa".'
        )


@dataclass(frozen=True, slots=True)
class _Packing:
    """Where the tokens of all rows are, without padding; known to the host once for all layers."""

    keys: Tensor  # (N,) of B * S
    queries: Tensor  # (M,) of B * T
    key_ends: Tensor  # (B + 1,) where each row's keys begin and end among the N
    query_ends: Tensor  # (B + 1,)
    longest: int  # row of keys
    most: int  # queries of a row
    solid: bool  # no row has padding between its tokens
    ends_in_padding: bool  # some row's last query is padding

    @classmethod
    def of(cls, padding: Tensor, queries: int) -> Self:
        """From where the tokens are (B, S) and how many of the last positions are queries."""
        asking = padding[:, -queries:]
        starts = padding[:, :1].sum(dim=1) + (padding[:, 1:] & ~padding[:, :-1]).sum(dim=1)
        key_counts, query_counts = padding.sum(dim=1), asking.sum(dim=1)
        facts = (key_counts.amax(), query_counts.amax(), starts.amax(), asking[:, -1].logical_not().any())
        longest, most, parts, ends_in_padding = torch.stack([fact.long() for fact in facts]).tolist()
        return cls(
            padding.flatten().nonzero()[:, 0],
            asking.flatten().nonzero()[:, 0],
            _ends(key_counts),
            _ends(query_counts),
            longest,
            most,
            parts <= 1,
            bool(ends_in_padding),
        )


def _ends(counts: Tensor) -> Tensor:
    return F.pad(counts.cumsum(dim=0), (1, 0)).to(torch.int32)


def flash_attention_2(
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
    """Attention by flash-attn, and by `sdpa` where that cannot say the mask.

    Returns: (B, H, T, D) and no weights: callers that want those, or a head mask, use `eager`.
    Raises: ValueError when the device, the dtype or the head size is none that it runs with.
    """
    q, k, v = in_one_dtype(q, k, v)
    check_can_run(q.device, q.dtype, q.shape[3])
    options: dict[str, Any] = {"scale": scale, "window": window, "dropout": dropout}
    if mask.shared is not None or (mask.queries == 1 and mask.padding is not None):
        return sdpa(q, k, v, mask, **options)
    # Both ends of its causal mask are the last ones: the queries are the last of the keys.
    near = (window - 1, 0) if window is not None and mask.narrows(window) else _ANY
    how = {"dropout_p": dropout, "softmax_scale": scale, "causal": True, "window_size": near}
    if mask.padding is None:
        dense, _ = _functions()
        return dense(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), **how).transpose(1, 2), None
    packing = _packing(mask, mask.padding[:, mask.keys - k.shape[2] :])
    if near != _ANY and not packing.solid:
        return sdpa(q, k, v, mask, **options)
    out = _among_tokens(q, k, v, packing, how)
    if packing.ends_in_padding:
        last, _ = sdpa(q[:, :, -1:], k, v, _of_last_query(mask), **options)
        out = torch.cat((out[:, :, :-1], last), dim=2)
    return out, None


def _packing(mask: AttentionMask, padding: Tensor) -> _Packing:
    packing: _Packing = mask.once(("packing", padding.shape[1]), lambda: _Packing.of(padding, mask.queries))
    return packing


def _of_last_query(mask: AttentionMask) -> AttentionMask:
    last: AttentionMask = mask.once("last", lambda: AttentionMask(1, mask.keys, mask.device, mask.padding))
    return last


def _among_tokens(q: Tensor, k: Tensor, v: Tensor, packing: _Packing, how: dict[str, Any]) -> Tensor:
    """Attention without the padding; zeros for the queries (B, H, T, D) that are padding."""
    batch, heads, queries, size = q.shape
    rows = q.new_zeros(batch * queries, heads, size)
    if packing.most:
        _, of_rows = _functions()
        out = of_rows(
            _picked(q, packing.queries),
            _picked(k, packing.keys),
            _picked(v, packing.keys),
            packing.query_ends,
            packing.key_ends,
            packing.most,
            packing.longest,
            **how,
        )  # (M, H, D)
        rows = rows.index_copy(0, packing.queries, out)
    return rows.view(batch, queries, heads, size).transpose(1, 2)


def _picked(x: Tensor, places: Tensor) -> Tensor:
    """Of (B, H, S, D) those of B * S, as (N, H, D)."""
    return x.transpose(1, 2).flatten(0, 1).index_select(0, places)
