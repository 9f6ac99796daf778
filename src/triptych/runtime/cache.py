"""Keys and values of tokens already seen, kept in buffers with room to grow.

Outside, a cache is the documented tuple of one (key, value) pair per layer, each (B, H, S, D), and it never
changes: every forward pass returns a new one. Inside, the new cache shares the old one's buffers and the new
tokens are written behind the old ones, so a token costs a token and not a copy of the past. Only when two
continuations start from the same past does the second one copy it.

A cache that `generate` keeps to itself may be told the layers' windows. A layer with one then holds the tokens that
its window still shows, and some more to be taken back, in a buffer that does not grow with the text.

Shapes: B batch, H heads, S tokens seen, D head_dim.
"""

from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Any, Self

import torch
import torch.nn.functional as F
import torch.utils._pytree
from torch import Tensor

Pair = tuple[Tensor, Tensor]


_claiming = Lock()  # held for two comparisons, so one for all buffers is enough
_BEHIND = 64  # tokens that a layer keeps behind its window, so that the last ones can be cropped away
_AHEAD = 64  # tokens that come between two movings of a window


class _Buffer:
    """Keys and values (B, H, capacity, D) of the tokens from `first` on, written up to the token `used`."""

    __slots__ = ("first", "keys", "used", "values")

    def __init__(self, keys: Tensor, values: Tensor, used: int, first: int = 0) -> None:
        self.keys, self.values, self.used, self.first = keys, values, used, first

    @classmethod
    def like(
        cls, key: Tensor, value: Tensor, capacity: int, used: int, first: int = 0, rows: int | None = None
    ) -> Self:
        """Room for `capacity` tokens with heads like these, (B, H, T, D) each; of `rows` rows, else of as many."""
        keys, values = (x.new_empty((rows or len(x), x.shape[1], capacity, x.shape[3])) for x in (key, value))
        return cls(keys, values, used, first)

    def part(self, start: int, stop: int) -> Pair:
        """The keys and values of the tokens start … stop - 1, as views."""
        start, stop = start - self.first, stop - self.first
        return self.keys[:, :, start:stop], self.values[:, :, start:stop]

    def write(self, start: int, stop: int, key: Tensor, value: Tensor) -> None:
        """Put the keys and values of the tokens start … stop - 1 in their places."""
        keys, values = self.part(start, stop)
        keys.copy_(key)
        values.copy_(value)

    def claim(self, start: int, stop: int) -> bool:
        """Take the places start … stop - 1 for the caller to write; False if another cache sees them or none are left.

        Of two threads that continue one past, one gets the room behind it.
        """
        if torch.compiler.is_compiling():
            return self._take(start, stop)
        if self.keys.is_inference() and not torch.is_inference_mode_enabled():
            return False  # such tensors cannot be written any more
        with _claiming:
            return self._take(start, stop)

    def _take(self, start: int, stop: int) -> bool:
        if start != self.used or stop - self.first > self.keys.shape[2]:
            return False
        self.used = stop
        return True


class LayerCache:
    """What one layer has seen; `append` adds the new tokens and gives back all that the layer may still look at.

    Without a `window` that is all of them.
    """

    __slots__ = ("_buffer", "_reserve", "length", "window")

    def __init__(
        self, buffer: _Buffer | None = None, length: int = 0, reserve: int = 0, window: int | None = None
    ) -> None:
        self._buffer, self.length, self._reserve, self.window = buffer, length, reserve, window

    @classmethod
    def of_pair(cls, pair: Pair | None) -> Self:
        """Start from one layer of a documented tuple."""
        if pair is None:
            return cls()
        return cls(_Buffer(*pair, used=pair[0].shape[2]), pair[0].shape[2])

    @property
    def first(self) -> int:
        """How many tokens the layer has let go of."""
        return self.length if self._buffer is None else self._buffer.first

    @property
    def least(self) -> int:
        """The shortest past that it can be taken back to."""
        return self.first + self.window - 1 if self.window and self._buffer and self.first else 0

    def fork(self, length: int | None = None) -> "LayerCache":
        """The same past, or its first `length` tokens, to be continued on its own."""
        return LayerCache(self._buffer, self.length if length is None else length, self._reserve, self.window)

    def rows(self, rows: Tensor) -> "LayerCache":
        """A copy of the batch rows named by `rows` (B',)."""
        chosen = LayerCache(length=self.first, reserve=self._reserve, window=self.window)
        chosen.append(*(x.index_select(0, rows) for x in self.pair()))
        return chosen

    def narrow(self, rows: list[int]) -> None:
        """Keep the batch rows named by `rows`, rising, and move them to the front; for the only one who sees them."""
        if self._buffer is None:
            return
        for seen in self.pair():
            for place, row in enumerate(rows):
                if place != row:
                    seen[place].copy_(seen[row])
        keys, values = (x[: len(rows)] for x in (self._buffer.keys, self._buffer.values))
        self._buffer = _Buffer(keys, values, self._buffer.used, self._buffer.first)

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens; what comes next is written over the rest.

        For the only one who has seen that rest: where another cache was continued since, its room stays its own.
        """
        if self._buffer is not None and self._buffer.used == self.length:
            self._buffer.used = length
        self.length = length

    def pair(self) -> Pair:
        """Keys and values of the tokens seen and not let go of, (B, H, S, D) each."""
        if self._buffer is None:
            raise ValueError("The cache is empty: no token has been seen yet.")
        return self._buffer.part(self.first, self.length)

    def append(self, key: Tensor, value: Tensor) -> Pair:
        """Add keys and values of T new tokens, (B, H, T, D) each; returns those of all S tokens.

        A layer with a window returns the last ones, at least those that the window of the first new token shows.

        Raises: ValueError when the past is of another batch size, number of heads or head size.
        """
        if self._buffer is not None:
            _check_past(self._buffer.keys, key)
        first, start, stop = self.first, self.length, self.length + key.shape[2]
        self.length = stop
        if torch.is_grad_enabled():
            # Autograd keeps what it was given (for the queries' gradient too), so nothing may be written in place.
            self._buffer = _Buffer(*self._joined(first, start, key, value), stop, first)
        elif self._buffer is not None and self._buffer.claim(start, stop):
            self._buffer.write(start, stop, key, value)
        elif self.window is not None:
            return self._moved(self.window, first, start, key, value)
        elif self._buffer is None and stop >= self._reserve:
            self._buffer = _Buffer(key, value, stop, first)  # room for more is made when more comes
        else:
            self._buffer = self._copied_with_room(key, value, stop)
        return self._buffer.part(first, stop)

    def _joined(self, since: int, start: int, key: Tensor, value: Tensor) -> Pair:
        """The tokens since … start - 1 of the past, and the new ones behind them."""
        if self._buffer is None or since == start:
            return key, value
        keys, values = self._buffer.part(since, start)
        return torch.cat((keys, key), dim=2), torch.cat((values, value), dim=2)

    def _moved(self, window: int, first: int, start: int, key: Tensor, value: Tensor) -> Pair:
        """Let go of what the window has passed; a new buffer holds the last tokens."""
        since, stop = max(first, start - window + 1 - _BEHIND), start + key.shape[2]
        keys, values = self._joined(since, start, key, value)
        room = window + _BEHIND + _AHEAD
        held = min(stop - since, room)
        self._buffer = _Buffer.like(key, value, room, used=stop, first=stop - held)
        self._buffer.write(stop - held, stop, keys[:, :, -held:], values[:, :, -held:])
        return keys, values

    def _copied_with_room(self, key: Tensor, value: Tensor, needed: int) -> _Buffer:
        capacity = max(needed, self._reserve)
        if capacity > self._reserve:
            capacity += max(64, capacity // 2)
        start = needed - key.shape[2]
        buffer = _Buffer.like(key, value, capacity, used=needed)
        if self._buffer is not None and start:
            buffer.write(0, start, *self._buffer.part(0, start))
        buffer.write(start, needed, key, value)
        return buffer


class RowsOfLayer(LayerCache):
    """Some `rows` (R,) of a layer's `batch` rows, for their first tokens, which end with the batch's first `stop`.

    They go straight to their places in the one buffer of all rows, which the layer gets with its first group. What
    stands before a row's first token is zero.
    """

    __slots__ = ("_batch", "_rows", "_stop", "_whole")

    def __init__(self, whole: LayerCache, rows: Tensor, batch: int, stop: int) -> None:
        super().__init__()
        self._whole, self._rows, self._batch, self._stop = whole, rows, batch, stop

    def fork(self, length: int | None = None) -> "LayerCache":
        """Itself: it is there for one forward pass."""
        return self

    def pair(self) -> Pair:
        """Keys and values of the whole batch, as far as they are there."""
        return self._whole.pair()

    def append(self, key: Tensor, value: Tensor) -> Pair:
        """Put keys and values of the rows' T tokens, (R, H, T, D) each, in their places; returns them as they are."""
        whole, stop = self._whole, self._stop
        if whole._buffer is None:
            room = whole.window + _BEHIND + _AHEAD if whole.window else max(whole._reserve, stop)
            first = max(stop - room, 0)
            whole._buffer = _Buffer.like(key, value, room, used=stop, first=first, rows=self._batch)
            whole.length = stop
        rows = self._rows.to(key.device)
        for places, new in zip(whole.pair(), (key, value), strict=True):
            before = max(places.shape[2] - new.shape[2], 0)
            places[:, :, :before].index_fill_(0, rows, 0)
            places[:, :, before:].index_copy_(0, rows, new[:, :, before - places.shape[2] :])
        self.length = key.shape[2]
        return key, value


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
    def reserved(cls, num_layers: int, capacity: int, windows: Sequence[int | None] | None = None) -> Self:
        """An empty cache whose buffers will have room for `capacity` tokens from the first write on.

        A layer that `windows` gives a window holds that and little more, where that is less than the capacity.
        """
        cache = cls()
        cache._layers = [
            LayerCache(reserve=capacity, window=window if window and window + _BEHIND + _AHEAD < capacity else None)
            for window in windows or [None] * num_layers
        ]
        return cache

    @classmethod
    def of_layers(cls, layers: Iterable[LayerCache]) -> Self:
        """What the layers have seen by now."""
        layers = list(layers)
        cache = cls([layer.pair() for layer in layers])  # a list: torch.compile cannot follow a generator here
        cache._layers = layers
        return cache

    @classmethod
    def of_rows(cls, layers: Iterable[LayerCache], rows: Tensor, batch: int, stop: int) -> Self:
        """An empty cache for the first tokens of some `rows` (R,) of a `batch`, the last of which is its `stop` - 1.

        They are written to `layers`, which have seen nothing but other such rows.
        """
        cache = cls()
        cache._layers = [RowsOfLayer(layer, rows, batch, stop) for layer in layers]
        return cache

    @property
    def length(self) -> int:
        """S, the number of tokens seen."""
        return self._layers[0].length if self._layers else self[0][0].shape[2] if self else 0

    def reorder(self, rows: Tensor) -> Self:
        """A cache of the batch rows named by `rows` (B',), in that order; rows may repeat."""
        if not self:
            return self
        return self.of_layers([layer.rows(rows) for layer in open_layers(self, len(self))])

    def copy_rows(self, sources: Tensor, targets: Tensor, start: int) -> None:
        """Write the batch rows `sources` over the rows `targets`, from the token `start` on, in place.

        For the one who made the cache with `reorder` and has shown it to nobody. No row may be in both.
        """
        for layer, pair in zip(open_layers(self, len(self)), self, strict=True):
            for seen in pair:
                part = seen[:, :, max(start - layer.first, 0) :]
                part.index_copy_(0, targets.to(part.device), part.index_select(0, sources.to(part.device)))

    def narrowed(self, rows: list[int]) -> Self:
        """A cache of the batch rows named by `rows`, in rising order, in the place of all: no memory is asked for.

        For the only one who has seen this cache, whose other rows are lost.
        """
        layers = open_layers(self, len(self))
        for layer in layers:
            layer.narrow(rows)
        return self.of_layers(layers)

    def crop(self, length: int) -> Self:
        """A cache of the first `length` tokens.

        Raises: ValueError unless `length` is from 0 to the number of tokens seen, or from where the windows allow it.
        """
        least = max((layer.least for layer in self._layers or ()), default=0)
        if not least <= length <= self.length:
            why = " Its local layers have let go of earlier tokens; a cache made without windows has not." * bool(least)
            raise ValueError(
                f"A cache of {self.length} tokens can be cropped to {least} to {self.length}; got {length}.{why}"
            )
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

    def beside(self, other: Self, capacity: int) -> Self:
        """A cache of the rows of both, the shorter past behind zeros, with room for `capacity` tokens."""
        layers = []
        for pairs in zip(self, other, strict=True):
            longest = max(key.shape[2] for key, _ in pairs)
            both = LayerCache(reserve=capacity)
            both.append(
                *(torch.cat([F.pad(x, (0, 0, longest - x.shape[2], 0)) for x in xs]) for xs in zip(*pairs, strict=True))
            )
            layers.append(both)
        return self.of_layers(layers)

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
        pairs = [(key.contiguous(), value.contiguous()) for key, value in self]
        return (_rebuilt, (pairs, self._unsaid))

    @property
    def _unsaid(self) -> tuple[Any, ...]:
        """The room, and each layer's length and window, where the pairs do not say all."""
        layers = self._layers or []
        if not layers or (self and not any(layer.window for layer in layers)):
            return ()
        return (self._reserve, tuple((layer.length, layer.window) for layer in layers))


def _rebuilt(pairs: list[Pair], unsaid: Any) -> KeyValueCache:
    if not unsaid:
        return KeyValueCache(pairs)
    reserve, layers = unsaid
    if not pairs:
        return KeyValueCache.reserved(len(layers), reserve, [window for _, window in layers])
    return KeyValueCache.of_layers(
        LayerCache(_Buffer(*pair, used=length, first=length - pair[0].shape[2]), length, reserve, window)
        for pair, (length, window) in zip(pairs, layers, strict=True)
    )


# Let torch look inside a cache as it does inside the documented tuple.
torch.utils._pytree.register_pytree_node(
    KeyValueCache,
    lambda cache: (list(cache), cache._unsaid),
    lambda pairs, unsaid: _rebuilt(list(pairs), unsaid),
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
