"""A cache whose buffers have one size and one address from the first token to the last, for steps that are replayed.

Each layer is a ring: a token's key and value stand at its position modulo the ring's size, which is the layer's window
or the whole text. Where a key stands does not matter to attention, as positions are in the vectors; what matters is
which places may be seen, and that is an additive bias.

Shapes: B batch, H heads, D head_dim, R places of a ring that are looked at.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from triptych.runtime.attention import AttentionMask
from triptych.runtime.cache import KeyValueCache, Pair


class FixedCache:
    """Rings of keys and values, (B, H, size, D) each, for `capacity` tokens a row.

    `windows` are those of the layers, None for a layer that sees everything. A `whole` cache holds also what the
    windows have passed.
    """

    def __init__(self, like: KeyValueCache, capacity: int, windows: Sequence[int | None], *, whole: bool) -> None:
        self.sizes = [capacity if whole or window is None else min(window, capacity) for window in windows]
        self.windows = list(windows)
        self.capacity = capacity
        self.pairs: list[Pair] = [
            (_ring(key, size), _ring(value, size)) for (key, value), size in zip(like, self.sizes, strict=True)
        ]
        self.length = 0

    def fits(self, like: KeyValueCache) -> bool:
        """Whether it could hold what `like` holds."""
        return len(like) == len(self.pairs) and all(
            ours.shape[:2] == theirs.shape[:2] and ours.dtype == theirs.dtype and ours.device == theirs.device
            for (ours, _), (theirs, _) in zip(self.pairs, like, strict=True)
        )

    def take(self, cache: KeyValueCache) -> None:
        """Hold the last tokens of `cache`, as many as each ring has places for, and nothing else."""
        self.length = cache.length
        for pair, seen, size in zip(self.pairs, cache, self.sizes, strict=True):
            held = min(seen[0].shape[2], size)
            places = torch.arange(self.length - held, self.length, device=pair[0].device) % size
            for ring, values in zip(pair, seen, strict=True):
                ring.zero_()  # what was not finite here would outlive being hidden: 0 * NaN
                ring.index_copy_(2, places, values[:, :, values.shape[2] - held :])

    def copy_rows(self, sources: Tensor, targets: Tensor, start: int) -> None:
        """Write the batch rows `sources` over the rows `targets`; see `KeyValueCache.copy_rows`.

        A ring that has let go of tokens is copied whole: what stands in it before `start` is the same in both rows.
        """
        for pair, size in zip(self.pairs, self.sizes, strict=True):
            for ring in pair:
                part = ring[:, :, start : self.length] if self.length <= size else ring
                part.index_copy_(0, targets, part.index_select(0, sources))

    def documented(self) -> KeyValueCache:
        """A copy of what was seen, for those that look at it later.

        Raises: ValueError when a layer has let go of some of it.
        """
        if any(size < self.length for size in self.sizes):
            raise ValueError("The rings hold the windows of their layers only. Decode without windows to keep all.")
        return KeyValueCache(
            [(key[:, :, : self.length].clone(), value[:, :, : self.length].clone()) for key, value in self.pairs]
        )

    def opened(self, position: Tensor, padding: Tensor | None, reach: int) -> "tuple[AttentionMask, list[OpenLayer]]":
        """The mask and the layers for the one token at `position` (1,), of which nothing is known but when it runs.

        `padding` (B, capacity) is True at tokens; `reach` is how many places of a ring are looked at, at least
        position + 1 or all of them.
        """
        dtype = self.pairs[0][0].dtype
        places: dict[int, Tensor] = {}
        fixed: dict[int | None, Tensor] = {}
        for window, size in zip(self.windows, self.sizes, strict=True):
            if window in fixed:
                continue
            places[size] = position % size
            ring = torch.arange(min(size, reach), device=position.device)
            held = position - (position - ring) % size  # the position that stands at each place
            visible = (held >= 0) if window is None else (held >= 0) & (held > position - window)
            visible = visible[None]
            if padding is not None:
                visible = visible & padding.index_select(1, held.clamp(min=0))
            bias = torch.zeros(visible.shape, dtype=dtype, device=position.device)
            fixed[window] = bias.masked_fill(~visible, float("-inf"))[:, None, None]  # (1 or B, 1, 1, R)
        layers = [
            OpenLayer(pair, places[size], min(size, reach)) for pair, size in zip(self.pairs, self.sizes, strict=True)
        ]
        return AttentionMask(1, reach, position.device, fixed=fixed), layers


def _ring(like: Tensor, size: int) -> Tensor:
    return like.new_zeros((*like.shape[:2], size, like.shape[3]))


class OpenLayer:
    """A layer of a fixed cache while one token is written: to the model it is what a `LayerCache` is."""

    def __init__(self, pair: Pair, place: Tensor, reach: int) -> None:
        self.pair, self.place, self.reach = pair, place, reach

    def append(self, key: Tensor, value: Tensor) -> Pair:
        """Put the token's key and value (B, H, 1, D) in its place; returns the places that are looked at."""
        keys, values = self.pair
        keys.index_copy_(2, self.place, key)
        values.index_copy_(2, self.place, value)
        return keys[:, :, : self.reach], values[:, :, : self.reach]
