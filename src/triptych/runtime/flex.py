"""`flex_attention`: attention by a kernel that PyTorch compiles for the mask (Dong et al., 2024, arXiv:2412.05496).

The kernel visits only blocks of keys that some query of a block of queries sees: a local layer costs its window, and
no dense mask is made. It serves on GPUs, where a mask is needed, for windows and padding, and where there are more
queries than a block has. All else is `sdpa`'s: plain causal order, decoding, alternatives (`mask.shared`), dropout,
and the CPU, where windows cost more by it than by `sdpa` (1.2 times with PyTorch 2.13), compiling takes seconds and
there is no backward pass.

Shapes: B batch, H heads, T queries, S keys, D head_dim; I blocks of queries, J blocks of keys.
"""

import importlib.util
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from triptych.runtime.attention import AttentionMask, in_one_dtype, sdpa

_MODULE = "torch.nn.attention.flex_attention"
_BLOCK = 128  # PyTorch's own default
_DEVICES = ("cuda", "xpu")
_failed: set["_Kind"] = set()  # the kinds that did not compile, in this process
_tried: dict["_Kind", set[tuple[torch.Size, torch.Size]]] = {}  # sizes whose backward pass has been compiled


def check_installed() -> None:
    """Whether this PyTorch has flex_attention; imports no more than is there already.

    Raises: ImportError that tells what to install.
    """
    if importlib.util.find_spec(_MODULE) is None:
        raise ImportError(
            f'attn_implementation="flex_attention" needs PyTorch 2.6 or newer, with {_MODULE}; this is '
            f'{torch.__version__}. Run: pip install "torch>=2.6", or choose attn_implementation="sdpa".',
            name=_MODULE,
        )


def flex_attention(
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
    """Attention by a compiled kernel where a mask is needed, and by `sdpa` elsewhere.

    A kernel that cannot be compiled is `sdpa` from then on, with one warning in a process.

    Returns: (B, H, T, D) and no weights: callers that want those, or a head mask, use `eager`.
    """
    narrows = window is not None and mask.narrows(window)
    if _serves(q, mask, narrows, dropout):
        one = in_one_dtype(q, k, v)
        kind = _kind(*one, mask, scale)
        if kind not in _failed:
            try:
                return _by_kernel(*one, mask, window if narrows else None, kind), None
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever the compilers raise
                _give_up(kind, error)
    return sdpa(q, k, v, mask, scale=scale, window=window, dropout=dropout)


def _serves(q: Tensor, mask: AttentionMask, narrows: bool, dropout: float) -> bool:
    """Whether the kernel can do it, and there is something for it to save."""
    masked = narrows or mask.padding is not None
    possible = q.device.type in _DEVICES and mask.shared is None and not dropout
    return possible and masked and mask.queries > _BLOCK


def _want_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


class _Kind(NamedTuple):
    """What a kernel is compiled for; it takes any lengths and windows."""

    device: str
    dtype: torch.dtype
    heads: int
    head_dim: int
    scale: float
    batched: bool
    padded: bool
    trained: bool


def _kind(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, scale: float) -> _Kind:
    _, heads, _, head_dim = q.shape
    batched, padded = q.shape[0] > 1, mask.padding is not None
    return _Kind(q.device.type, q.dtype, heads, head_dim, scale, batched, padded, _want_gradient(q, k, v))


def _give_up(kind: _Kind, error: Exception) -> None:
    if not _failed:
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(
            f"flex_attention could not be compiled here, so sdpa is used instead. {type(error).__name__}: {reason}",
            stacklevel=4,
        )
    _failed.add(kind)


def _by_kernel(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, window: int | None, kind: _Kind) -> Any:
    blocks = mask.once(("blocks", window, k.shape[2]), lambda: block_mask(mask, window, k.shape[2]))
    with torch.autocast(q.device.type, enabled=False):
        if torch.compiler.is_compiling():  # the caller is
            return _function(kind)(q, k, v, blocks)
        function = _compiled(kind)
        if kind.trained:
            _try_backward(function, q, k, v, blocks, _tried.setdefault(kind, set()))
        return function(q, k, v, blocks)


def _try_backward(
    function: Callable[..., Any],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Any,
    tried: set[tuple[torch.Size, torch.Size]],
) -> None:
    """Let the backward pass be compiled now, while there still is another way.

    PyTorch compiles for the first sizes that it meets, and soon after for any.
    """
    sizes = (q.shape, k.shape)
    if sizes not in tried and len(tried) < 3:
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        torch.autograd.grad(function(*inputs, blocks).sum(), inputs)
        tried.add(sizes)


def _function(kind: _Kind) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention as function

    def attention(q: Tensor, k: Tensor, v: Tensor, blocks: Any) -> Any:
        return function(q, k, v, block_mask=blocks, scale=kind.scale)

    return attention


@cache
def _compiled(kind: _Kind) -> Callable[..., Any]:
    """A compiled function for each kind.

    It has code of its own, by a name of its own: PyTorch compiles one piece of code anew only a few times, and what
    varied at one place of a file it takes for variable there from then on.
    """
    function: Any = _function(kind)
    function.__code__ = function.__code__.replace(co_name=f"attention_{'_'.join(map(str, kind))}")
    compiled: Callable[..., Any] = torch.compile(function)
    return compiled


def block_mask(mask: AttentionMask, window: int | None, keys: int) -> Any:
    """Which blocks of keys the queries see, in part or in full, for the last `keys` of the mask's keys.

    Told from the ends of the blocks alone, without a mask of all queries and keys. Numbers that change from call to
    call are tensors, so that the kernel is compiled for any of them.

    Returns: a torch.nn.attention.flex_attention.BlockMask of (B or 1, 1, T, S).
    """
    from torch.nn.attention.flex_attention import BlockMask

    past, reach = keys - mask.queries, keys if window is None else window
    padding = None if mask.padding is None else mask.padding[:, mask.keys - keys :]
    first_query, last_query = _block_ends(mask.queries, mask.device)
    first_query, last_query = first_query[:, None] + past, last_query[:, None] + past  # (I, 1)
    first_key, last_key = _block_ends(keys, mask.device)  # (J,)
    some = (first_key <= last_query) & (last_key > first_query - reach)  # (I, J)
    every = (last_key <= first_query) & (first_key > last_query - reach)
    # As PyTorch does it, a block that ends behind the last query or key is never full.
    every[mask.queries // _BLOCK :] = False
    every[:, keys // _BLOCK :] = False
    some, every = some[None, None], every[None, None]
    if padding is not None:
        tokens = F.pad(padding, (0, -keys % _BLOCK)).view(len(padding), 1, 1, -1, _BLOCK)  # (B, 1, 1, J, block)
        some, every = some & tokens.any(-1), every & tokens.all(-1)
    return BlockMask.from_kv_blocks(
        *_listed(some & ~every),
        *_listed(every),
        BLOCK_SIZE=_BLOCK,
        mask_mod=_visible(mask.device, past, reach, padding),
        seq_lengths=(mask.queries, keys),
    )


def _block_ends(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The first and the last place of each block."""
    first = torch.arange(0, length, _BLOCK, device=device)
    return first, (first + _BLOCK - 1).clamp(max=length - 1)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and their numbers in front: (…, I) and (…, I, J)."""
    numbers = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(dim=-1).to(torch.int32), numbers.to(torch.int32).contiguous()


def _visible(device: torch.device, past: int, reach: int, padding: Tensor | None) -> Callable[..., Tensor]:
    """Whether a query sees a key, by their numbers."""
    behind, within = torch.tensor(past, device=device), torch.tensor(reach, device=device)

    def causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        place = query + behind
        return (key <= place) & (key > place - within)

    if padding is None:
        return causal

    def padded(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return causal(batch, head, query, key) & padding[batch, key]

    return padded
