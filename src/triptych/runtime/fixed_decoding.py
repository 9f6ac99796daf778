"""Decoding token by token at shapes and addresses that never change, so that a GPU can replay the step.

The prompt goes through the model as ever. Then its keys and values are put into a `FixedCache`, and every further token
is the same work on the same tensors, but for the number of places that attention looks at, which grows by doubling.

Shapes: B rows, V vocabulary, S positions of the cache.
"""

import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from triptych.runtime.cache import KeyValueCache
from triptych.runtime.fixed_cache import FixedCache
from triptych.runtime.graphs import captured, compiled
from triptych.runtime.preparing import Prepared, prepared_of

if TYPE_CHECKING:
    from triptych.modeling_torch import PreTrainedModel

Replay = Callable[[], Tensor]
_LEAST = 256  # places that attention looks at from the start: fewer would not be quicker
_REPLAYING = ("cuda",)  # devices that can replay
_KEPT = 2  # decoders that a model keeps for the next call, each with its cache
_lending = Lock()


class Columns(NamedTuple):
    """What the tokens to come are given with, (1 or B, up to S) each: mask, positions, token types; None for none."""

    mask: Tensor | None
    positions: Tensor | None
    types: Tensor | None


class FixedDecoder:
    """One token of each row through a prepared model, always on the same tensors.

    `kind` settles the size of its cache, whether that holds windows only, and which columns there are.
    """

    def __init__(self, model: "PreTrainedModel", prepared: Prepared, like: KeyValueCache, kind: "Kind") -> None:
        rows, device = len(like[0][0]), like[0][0].device
        self.kind = kind
        self.cache = FixedCache(like, kind.capacity, model.layer_windows, whole=not kind.windowed)
        self.ids = torch.zeros((rows, 1), dtype=torch.long, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.columns = Columns(
            *(
                torch.zeros((rows, kind.capacity), dtype=dtype, device=device) if there else None
                for there, dtype in zip(kind.columns, (torch.bool, torch.long, torch.long), strict=True)
            )
        )
        self.user: weakref.ref[Any] | None = None
        base: Any = model.base_model
        # no more of what was prepared, which keeps this decoder: memory of a GPU must not wait for the collector
        self._enter, self._step, self._failed = base.enter, prepared.step, prepared.failed
        self._compiles = model.compiles_decoding
        self._replays: dict[int, Replay | None] = {}  # None where nothing is quicker than the step itself

    @property
    def is_free(self) -> bool:
        """Whether nobody decodes with it."""
        return self.user is None or self.user() is None

    def begin(self, user: Any, cache: KeyValueCache, columns: Columns) -> None:
        """Continue from `cache`, for as long as `user` lives."""
        self.user = weakref.ref(user)
        self.cache.take(cache)
        for own, given in zip(self.columns, columns, strict=True):
            if own is not None and given is not None:
                # there is a column for the last token too, which is never fed: the width may be negative by one
                own.copy_(F.pad(given.to(own.dtype), (0, own.shape[1] - given.shape[1])))

    def __call__(self, ids: Tensor) -> Tensor:
        """The logits (B, V) after the next token `ids` (B, 1) of each row, in float32."""
        self.ids.copy_(ids)
        self.position.fill_(self.cache.length)
        self.cache.length += 1
        # Compiling takes too long to be done for each size.
        reach = self.kind.capacity if self._compiles else min(self.kind.capacity, _rounded(self.cache.length))
        if reach not in self._replays:
            self._replays[reach] = self._made(reach)
        replay = self._replays[reach]
        return self._run(reach) if replay is None else replay().clone()  # the next step writes over it

    def _run(self, reach: int) -> Tensor:
        mask, layers = self.cache.opened(self.position, self.columns.mask, reach)
        positions, types = (
            None if values is None else values.index_select(1, self.position) for values in self.columns[1:]
        )
        entered = self._enter(
            0,
            self.ids,
            attention_mask=mask,
            position_ids=self.position[None] if positions is None else positions,
            **({} if types is None else {"token_type_ids": types}),
        )
        logits, _ = self._step(*entered, layers, None)  # type: ignore[misc]  # only made where there is one
        return logits.float()

    def _made(self, reach: int) -> Replay | None:
        """The step for so many places, compiled or captured where that works; None where neither does."""
        run: Replay = partial(self._run, reach)
        made = None
        for what, make in self._ways():
            if what in self._failed:
                continue
            try:
                faster = make(run)
                faster()  # a compiler begins here
            except Exception as error:  # whatever a compiler or a driver says, the step itself works
                self._failed.add(what)
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                warnings.warn(
                    f"Decoding goes on without being {what}, which gives the same but is slower: {reason}", stacklevel=2
                )
            else:
                run = made = faster
        return made

    def _ways(self) -> Iterator[tuple[str, Callable[[Replay], Replay]]]:
        if self._compiles:
            yield "compiled", compiled
        yield "captured as a CUDA graph", partial(captured, device=self.ids.device)


class Kind(NamedTuple):
    """What a `FixedDecoder` is made for."""

    capacity: int
    windowed: bool
    columns: tuple[bool, ...]


def lent_decoder(
    model: "PreTrainedModel", user: Any, cache: KeyValueCache, capacity: int, *, windowed: bool, columns: Columns
) -> FixedDecoder | None:
    """A decoder that continues from `cache` up to `capacity` tokens, for as long as `user` lives; None where it would
    not be quicker, as on a CPU, where the model can't be prepared, or where there is no memory for its cache.

    A model keeps its decoders for later calls that want the like. Threads get one each.
    """
    if model.device.type not in _REPLAYING:
        return None
    prepared = prepared_of(model, 1, {})
    if prepared is None or prepared.step is None:
        return None
    kind = Kind(_rounded(capacity), windowed, tuple(values is not None for values in columns))
    with _lending:
        decoders: list[FixedDecoder] = prepared.decoders
        for decoder in decoders:
            if decoder.is_free and decoder.kind == kind and decoder.cache.fits(cache):
                break
        else:
            unused = [each for each in decoders if each.is_free]
            for each in unused[: len(decoders) + 1 - _KEPT]:
                decoders.remove(each)
            try:
                with torch.inference_mode(False):
                    decoder = FixedDecoder(model, prepared, cache, kind)
            except torch.OutOfMemoryError:  # it can be done without one
                decoders[:] = [each for each in decoders if not each.is_free]
                return None
            decoders.append(decoder)
        decoder.begin(user, cache, columns)
    return decoder


def _rounded(places: int) -> int:
    """The next power of two, so that few sizes serve all lengths."""
    return max(_LEAST, 1 << (places - 1).bit_length())
