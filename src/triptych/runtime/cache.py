"""Keys and values of tokens already seen, kept in buffers with room to grow.

Outside, a cache is the documented tuple of one (key, value) pair per layer, each (B, H, S, D), and it never
changes: every forward pass returns a new one. Inside, the new cache shares the old one's buffers and the new
tokens are written behind the old ones, so a token costs a token and not a copy of the past. Only when two
continuations start from the same past does the second one copy it.

Shapes: B batch, H heads, S tokens seen, D head_dim.
"""

from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Any, Self

import torch
import torch.utils._pytree
from torch import Tensor

Pair = tuple[Tensor, Tensor]


_claiming = Lock()  # held for two comparisons, so one for all buffers is enough


class _Buffer:
    """Keys and values (B, H, capacity, D), of which the first `used` positions are written."""

    __slots__ = ("keys", "used", "values")

    def __init__(self, keys: Tensor, values: Tensor, used: int) -> None:
        self.keys, self.values, self.used = keys, values, used

    def claim(self, start: int, stop: int) -> bool:
        """Take positions start … stop for the caller to write, if no other cache can see them; False if one can.

        Of two threads that continue one past, one gets the room behind it.
        """
        if torch.compiler.is_compiling():
            return self._take(start, stop)
        if self.keys.is_inference() and not torch.is_inference_mode_enabled():
            return False  # such tensors cannot be written any more
        with _claiming:
            return self._take(start, stop)

    def _take(self, start: int, stop: int) -> bool:
        if start != self.used or stop > self.keys.shape[2]:
            return False
        self.used = stop
        return True


class LayerCache:
    """What one layer has seen; `append` adds the new tokens and gives back all of them."""

    __slots__ = ("_buffer", "_reserve", "length")

    def __init__(self, buffer: _Buffer | None = None, length: int = 0, reserve: int = 0) -> None:
        self._buffer, self.length, self._reserve = buffer, length, reserve

    @classmethod
    def of_pair(cls, pair: Pair | None) -> Self:
        """Start from one layer of a documented tuple."""
        if pair is None:
            return cls()
        return cls(_Buffer(*pair, used=pair[0].shape[2]), pair[0].shape[2])

    def fork(self, length: int | None = None) -> "LayerCache":
        """The same past, or its first `length` tokens, to be continued on its own."""
        return LayerCache(self._buffer, self.length if length is None else length, self._reserve)

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens; what comes next is written over the rest.

        For the only one who has seen that rest: where another cache was continued since, its room stays its own.
        """
        if self._buffer is not None and self._buffer.used == self.length:
            self._buffer.used = length
        self.length = length

    def pair(self) -> Pair:
        """Keys and values of all tokens seen, (B, H, S, D) each."""
        if self._buffer is None:
            raise ValueError("The cache is empty: no token has been seen yet.")
        return self._buffer.keys[:, :, : self.length], self._buffer.values[:, :, : self.length]

    def append(self, key: Tensor, value: Tensor) -> Pair:
        """Add keys and values of T new tokens, (B, H, T, D) each; returns those of all S tokens.

        Raises: ValueError when the past is of another batch size, number of heads or head size.
        """
        if self._buffer is not None:
            _check_past(self._buffer.keys, key)
        start, stop = self.length, self.length + key.shape[2]
        self.length = stop
        if torch.is_grad_enabled():
            # Autograd keeps what it was given (for the queries' gradient too), so nothing may be written in place.
            if self._buffer is not None and start:
                key = torch.cat((self._buffer.keys[:, :, :start], key), dim=2)
                value = torch.cat((self._buffer.values[:, :, :start], value), dim=2)
            self._buffer = _Buffer(key, value, stop)
            return key, value
        if self._buffer is None and stop >= self._reserve:
            self._buffer = _Buffer(key, value, stop)  # room for more is made when more comes
            return key, value
        if self._buffer is None or not self._buffer.claim(start, stop):
            self._buffer = self._copied_with_room(key, value, stop)
        buffer = self._buffer
        buffer.keys[:, :, start:stop] = key
        buffer.values[:, :, start:stop] = value
        return buffer.keys[:, :, :stop], buffer.values[:, :, :stop]

    def _copied_with_room(self, key: Tensor, value: Tensor, needed: int) -> _Buffer:
        capacity = max(needed, self._reserve)
        if capacity > self._reserve:
            capacity += max(64, capacity // 2)
        start = needed - key.shape[2]
        keys, values = (new.new_empty((*new.shape[:2], capacity, new.shape[3])) for new in (key, value))
        if self._buffer is not None and start:
            keys[:, :, :start] = self._buffer.keys[:, :, :start]
            values[:, :, :start] = self._buffer.values[:, :, :start]
        return _Buffer(keys, values, used=needed)


def _check_past(past: Tensor, new: Tensor) -> None:
    if past.shape[:2] != new.shape[:2] or past.shape[3] != new.shape[3]:
        names = ("batch", "heads", "head_dim")
        was, now = ({n: x.shape[i] for n, i in zip(names, (0, 1, 3), strict=True)} for x in (past, new))
        raise ValueError(
            f"past_key_values must be of the model's heads and the input's batch size, {now}; got {was}. "
            "Pass the cache that this model returned for the same rows."
        )


class KeyValueCache(tuple[Pair, ...]):
    """The documented `past_key_values`: one (key, value) pair of (B, H, S, D) per layer."""

    _layers: list[LayerCache] | None = None  # None for one made from pairs alone

    @classmethod
    def reserved(cls, num_layers: int, capacity: int) -> Self:
        """An empty cache whose buffers will have room for `capacity` tokens from the first write on."""
        cache = cls()
        cache._layers = [LayerCache(reserve=capacity) for _ in range(num_layers)]
        return cache

    @classmethod
    def of_layers(cls, layers: Iterable[LayerCache]) -> Self:
        """What the layers have seen by now."""
        layers = list(layers)
        cache = cls([layer.pair() for layer in layers])  # a list: torch.compile cannot follow a generator here
        cache._layers = layers
        return cache

    @property
    def length(self) -> int:
        """S, the number of tokens seen."""
        return self[0][0].shape[2] if self else 0

    def reorder(self, rows: Tensor) -> Self:
        """A cache of the batch rows named by `rows` (B',), in that order; rows may repeat."""
        if not self:
            return self
        layers = []
        for key, value in self:
            chosen = LayerCache(reserve=self._reserve)
            chosen.append(key.index_select(0, rows), value.index_select(0, rows))
            layers.append(chosen)
        return self.of_layers(layers)

    def crop(self, length: int) -> Self:
        """A cache of the first `length` tokens.

        Raises: ValueError unless `length` is from 0 to the number of tokens seen.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"A cache of {self.length} tokens can be cropped to 0 to {self.length}; got {length}.")
        if not self:
            return self
        return self.of_layers(layer.fork(length) for layer in open_layers(self, len(self)))

    def rewound(self, length: int) -> Self:
        """`crop` for the only one who has seen the tokens behind `length`: the cache goes on in their place, uncopied.

        Raises: as `crop`.
        """
        cache = self.crop(length)
        for layer, longer in zip(cache._layers or (), self._layers or (), strict=False):
            layer.length = longer.length
            layer.rewind(length)
        return cache

    def with_branch(self, start: int, chosen: Tensor) -> Self:
        """Of the alternatives that stand from `start` on, keep one a row, the one `chosen` (B,), as token `start`.

        For the only one who has seen the alternatives, as `rewound`.
        """
        rows = torch.arange(len(chosen), device=chosen.device)
        taken = [tuple(x[rows.to(x.device), :, start + chosen.to(x.device)] for x in pair) for pair in self]
        cache = self.rewound(start)
        layers = open_layers(cache, len(cache))
        for layer, (key, value) in zip(layers, taken, strict=True):
            layer.append(key[:, :, None], value[:, :, None])
        return self.of_layers(layers)

    @property
    def _reserve(self) -> int:
        return self._layers[0]._reserve if self._layers else 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy what was seen, without the room behind it."""
        if not self and self._layers:
            return (type(self).reserved, (len(self._layers), self._reserve))
        return (type(self), (tuple((key.contiguous(), value.contiguous()) for key, value in self),))


# Let torch look inside a cache as it does inside the documented tuple.
torch.utils._pytree.register_pytree_node(
    KeyValueCache,
    lambda cache: (list(cache), len(cache._layers or cache)),
    lambda pairs, num_layers: KeyValueCache(pairs) if pairs else KeyValueCache.reserved(num_layers, 0),
    serialized_type_name="triptych.runtime.cache.KeyValueCache",
)


def open_layers(past: Sequence[Pair | None] | None, num_layers: int) -> list[LayerCache]:
    """One writable layer cache per layer, continuing from `past`, which itself stays as it is. An empty past is none.

    Raises: ValueError when `past` has another number of layers, or a layer of another form, than the model.
    """
    layers: list[LayerCache] | None = getattr(past, "_layers", None)
    if past is None or (layers is None and not len(past)):  # tools that move inputs to a device rebuild the tuple
        return [LayerCache() for _ in range(num_layers)]
    pairs = list(past) if layers is None else layers
    if len(pairs) != num_layers:
        raise ValueError(
            f"past_key_values needs one (key, value) pair for each of the {num_layers} layers; got {len(pairs)}."
        )
    if layers is not None:
        return [layer.fork() for layer in layers]
    for index, pair in enumerate(past):
        if pair is not None and (len(pair) != 2 or any(x.dim() != 4 for x in pair)):
            raise ValueError(
                f"past_key_values[{index}] must be a (key, value) pair of tensors of shape "
                f"(batch, heads, length, head_dim); got {[tuple(x.shape) for x in pair]}."
            )
    return [LayerCache.of_pair(pair) for pair in past]
