"""`Feed`: the model's side of decoding. It turns the ids so far into the next token's logits.

Everything that grows with the text (mask, positions, token types, cache) has its full size from the start, and a step
takes views. Shapes: B rows, N ids of the prompt, W its width in positions, T ids so far, S positions in the cache,
K alternatives.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from triptych.generation.configuration import GenerationConfig
from triptych.generation.prefill_torch import in_groups
from triptych.generation.prompt_torch import Prompt
from triptych.runtime.attention import AttentionMask
from triptych.runtime.cache import KeyValueCache
from triptych.runtime.fixed_cache import FixedCache
from triptych.runtime.fixed_decoding import Columns, FixedDecoder, lent_decoder
from triptych.runtime.preparing import NextToken, end_if_changed

if TYPE_CHECKING:
    from triptych.modeling_torch import PreTrainedModel


class Feed:
    """Feeds a model the prompt once and then each new token; without a cache, everything every time.

    With several sequences per prompt the prompt is still fed once, and what it left is repeated.

    A strategy that goes back or aside wants the `whole` cache, with room for the positions `ahead` of the longest
    text. `in_step` are the processes that must all run their models as often (see `synchronising_torch`).
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        prompt: Prompt,
        room: int,
        options: GenerationConfig,
        copies: int = 1,
        *,
        whole: bool = False,
        ahead: int = 0,
        in_step: Any = None,
    ) -> None:
        end_if_changed(model)
        self.model = model
        self.in_step = in_step
        self.cached = bool(options.use_cache) and model.decodes_with_cache
        base = model.base_model
        # whether nobody but this package has seen the caches between
        self.private = model.forward_is_published and not (base._forward_hooks or base._forward_pre_hooks)
        self.copies = copies if self.cached else 1  # still to be made
        self.prompt = prompt if self.cached else prompt.repeated(copies)
        self.places: list[int] | None = None  # of the cache, one for each row of ids; None while they are in order
        self.full, self.ahead = prompt.width + room, ahead
        self.offset = prompt.width - prompt.ids.shape[1]  # positions less ids
        self.mask = _extended_mask(self.prompt.mask, room)
        self.positions = _extended_positions(self.prompt.positions, self.mask, room)
        self.token_types = _extended(self.prompt.token_types, room)
        self.always: dict[str, Any] = {}  # inputs of every step
        self.once = dict(self.prompt.extras)  # inputs of the step that sees the prompt
        if "head_mask" in self.once:
            self.always["head_mask"] = self.once.pop("head_mask")
        if options.return_dict_in_generate:
            self.always |= {name: True for name in _TRACES if getattr(options, name)}
        self.seen = 0
        self.cache: Any = None
        # A cache that is handed out, or shown to a forward of the user's own, is the documented one; and only a whole
        # one goes back and aside.
        self.windowed = windowed = self.private and not options.return_dict_in_generate and not whole
        self.fixed: FixedDecoder | None = None  # what does the steps behind the prompt, where there is one
        self.may_be_fixed = self.cached and self.private and not whole and not self.always
        if self.cached:
            past = self.prompt.past
            capacity = self.full - 1 + ahead
            self.cache = past if past is not None else model.new_cache(len(self.prompt.ids), capacity, windowed)
            self.seen = 0 if past is None else past[0][0].shape[2]

    def in_order(self) -> Any:
        """The cache, its rows in the order of the ids'; None without one."""
        cache = self.cache.documented() if isinstance(self.cache, FixedCache) else self.cache
        return cache if self.places is None else cache.reorder(self._index(self.places))

    def step(self, ids: Tensor, last: int | None = None) -> "NextToken":
        """The next token's logits (B, V) after `ids` (B, T), which continue those of the step before.

        With `last`, those after each of the last `last` ids: (B, last, V).
        """
        prompt = self.prompt
        if self.copies > 1:
            ids = prompt.ids  # once; the copies come after
        elif self.places is not None:
            ids = ids.index_select(0, self._index(inverse(self.places)))
        total = ids.shape[1] + self.offset
        if self.may_be_fixed and self.seen >= prompt.width and self.copies == 1 and total == self.seen + 1:
            self._fix()
        if self.fixed is not None:
            self.seen = total
            out = NextToken(self._run_fixed(self.fixed, ids[:, -1:]), self.cache, None, None)
            return out if self.places is None else _picked(out, self._index(self.places))
        new = slice(self.seen, total)
        inputs = self.always | (self.once if self.seen < prompt.width else {})
        if last is not None:
            inputs["last"] = last
        if self.mask is not None:
            inputs["attention_mask"] = self.mask[:, :total]
        if self.positions is not None:
            inputs["position_ids"] = self.positions[:, new]
        if self.token_types is not None:
            inputs["token_type_ids"] = self.token_types[:, new]
        if prompt.embeds is not None and self.seen == 0:
            inputs["inputs_embeds"] = self._embedded(ids[:, prompt.ids.shape[1] :])
            given = None
        else:
            given = ids[:, ids.shape[1] - total + self.seen :]
        alone = self.seen == 0 and self.cached and self.private and self.in_step is None  # nobody counts the calls
        out = (in_groups(self.model, self.cache, given, inputs) if alone else None) or self._run(given, inputs)
        if self.cached:
            self.cache, self.seen = out.cache, total
        if self.copies > 1:
            return self._copied(out)
        return out if self.places is None else _picked(out, self._index(self.places))

    def step_ahead(self, ids: Tensor) -> "NextToken | None":
        """`step`, if it may be in vain: where a GPU does it while the host looks whether it was wanted. Else None."""
        if self.fixed is None or not self.windowed or self.in_step is not None:
            return None  # someone would see the cache, or must run along
        return self.step(ids) if ids.shape[1] + self.offset < self.full else None

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """The log-probabilities that a step's logits (B, V) stand for."""
        return logits.log_softmax(dim=-1)

    def follow(self, parents: list[int]) -> None:
        """From now on each row continues what the row `parents[row]` of the same prompt has been fed.

        Only a row's second and further followers are copied, behind the prompt, to places that nobody follows.
        """
        if not self.cached:
            return
        if not self.private:  # someone may have kept what it was given
            self.cache = self.cache.reorder(self._index(parents))
            return
        places = parents if self.places is None else [self.places[parent] for parent in parents]
        self.places, copies = settled(places)
        if copies:
            self.cache.copy_rows(self._index(copies.values()), self._index(copies.keys()), self.prompt.width)
        if self.places == sorted(self.places):
            self.places = None

    def _index(self, rows: Iterable[int]) -> Tensor:
        return torch.tensor(list(rows), device=self.prompt.ids.device)

    def keep_rows(self, rows: Tensor) -> None:
        """From now on feed only `rows` (B',), rising, of those fed: for a cache that nobody else has seen."""
        self._choose(rows)
        self.cache = self.cache.narrowed(rows.tolist())

    def rewind(self, length: int) -> None:
        """Take back what was fed behind the first `length` ids; those stay in the cache."""
        if self.cached and length + self.offset < self.seen:
            self.seen = length + self.offset
            self.cache = self._to_go_back.rewound(self.seen)

    def branch(self, candidates: Tensor, *, one_by_one: bool = False) -> "NextToken":
        """What would follow each of `candidates` (B, K) as the next token: logits (B, K, V) and the rest likewise.

        The alternatives stand side by side behind one past, which is neither copied nor read K times, and each sees
        that past and itself. `one_by_one` feeds them in turn, for less memory. `keep` chooses between them.
        """
        past, parts = self.seen, []
        width = 1 if one_by_one else candidates.shape[1]
        for first in range(0, candidates.shape[1], width):
            part = candidates[:, first : first + width]
            keys = past + first + part.shape[1]
            padding = None if self.mask is None else F.pad(self.mask[:, :past], (0, keys - past), value=1) != 0
            mask = AttentionMask(part.shape[1], keys, part.device, padding, shared=past)
            inputs = self.always | {"attention_mask": mask, "last": part.shape[1]}
            places = self.positions[:, past : past + 1] if self.positions is not None else part.new_full((1, 1), past)
            inputs["position_ids"] = places.expand(-1, part.shape[1])
            if self.token_types is not None:
                inputs["token_type_ids"] = self.token_types[:, past : past + 1].expand_as(part)
            out = self._run(part, inputs)
            self.cache = out.cache
            parts.append(out)
        return parts[0] if len(parts) == 1 else _joined(parts)

    def keep(self, chosen: Tensor, out: "NextToken") -> "NextToken":
        """Of the alternatives of `branch`, which gave `out`, keep the one numbered by `chosen` (B,) in each row."""
        self._keep(chosen)
        rows = torch.arange(len(chosen), device=chosen.device)
        hidden, weights = out.hidden_states, out.attentions
        return out._replace(
            logits=out.logits[rows, chosen],
            cache=self.cache,
            hidden_states=None if hidden is None else tuple(x[rows, chosen][:, None] for x in hidden),
            attentions=None if weights is None else tuple(_of_branch(x, chosen) for x in weights),
        )

    def _keep(self, chosen: Tensor) -> None:
        self.cache = self._to_go_back.with_branch(self.seen, chosen)
        self.seen += 1

    def _fix(self) -> None:
        """From here on decode at fixed shapes, where that is quicker. The prompt is in the cache."""
        self.may_be_fixed = False  # is asked once
        columns = Columns(self.mask, self.positions, self.token_types)
        self.fixed = lent_decoder(
            self.model.decoder, self, self.cache, self.full - 1, windowed=self.windowed, columns=columns
        )
        if self.fixed is not None:
            self.cache = self.fixed.cache

    def _run_fixed(self, fixed: FixedDecoder, ids: Tensor) -> Tensor:
        if self.in_step is not None:
            self.in_step.announce()
        return fixed(ids)

    def _run(self, ids: Tensor | None, inputs: dict[str, Any]) -> "NextToken":
        if self.in_step is not None:
            self.in_step.announce()
        out = self.model.next_token_logits(ids, cache=self.cache, **inputs)
        if out.cache is None or isinstance(out.cache, KeyValueCache):
            return out
        return out._replace(cache=KeyValueCache(out.cache))  # of a forward of the user's own, that gives a plain tuple

    @property
    def _to_go_back(self) -> KeyValueCache:
        """The cache to be written over behind a point; one that someone may have kept is copied."""
        return self.cache if self.private else KeyValueCache(self.cache)

    def _embedded(self, new_ids: Tensor) -> Tensor:
        embeds = self.prompt.embeds
        if new_ids.shape[1] == 0 or embeds is None:
            return embeds  # type: ignore[return-value]  # asked for only with embeddings
        return torch.cat((embeds, self.model.get_input_embeddings()(new_ids).to(embeds.dtype)), dim=1)

    def _copied(self, out: "NextToken") -> "NextToken":
        """Repeat what the prompt left for each of its sequences."""
        rows = torch.arange(len(out.logits), device=out.logits.device).repeat_interleave(self.copies)
        self.copies = 1
        self._choose(rows)
        self.cache = self.cache.reorder(rows)
        return _picked(out, rows)._replace(cache=self.cache)

    def _choose(self, rows: Tensor) -> None:
        """Of what is said of each row's tokens, that of `rows` (B',)."""
        self.mask, self.positions, self.token_types = (
            value if value is None else value.index_select(0, rows)
            for value in (self.mask, self.positions, self.token_types)
        )


def _picked(out: "NextToken", rows: Tensor) -> "NextToken":
    """What the model gave out for `rows` (B',), in that order; the cache as it is."""

    def pick(values: tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
        return None if values is None else tuple(value.index_select(0, rows) for value in values)

    return out._replace(
        logits=out.logits.index_select(0, rows),
        hidden_states=pick(out.hidden_states),
        attentions=pick(out.attentions),
    )


def settled(wanted: list[int]) -> tuple[list[int], dict[int, int]]:
    """A place for each row, given the place that it continues: that one for the first to want it, else an unwanted one.

    Rows of a prompt want places of that prompt only, and get such. Returns also {place: the one to be copied there}.
    """
    free = iter(sorted(set(range(len(wanted))).difference(wanted)))
    places: list[int] = []
    copies: dict[int, int] = {}
    taken: set[int] = set()
    for place in wanted:
        if place in taken:
            copies[spare := next(free)] = place
            place = spare
        taken.add(place)
        places.append(place)
    return places, copies


def inverse(places: list[int]) -> list[int]:
    """The row at each place."""
    return sorted(range(len(places)), key=places.__getitem__)


_TRACES = ("output_attentions", "output_hidden_states")


def _of_branch(weights: Tensor, chosen: Tensor) -> Tensor:
    """The weights (B, H, K, S + K) of one alternative a row, as (B, H, 1, S + 1): those of its past and of itself."""
    rows, past = torch.arange(len(chosen), device=chosen.device), weights.shape[3] - weights.shape[2]
    own = weights[rows, :, chosen]  # (B, H, S + K)
    itself = own[rows, :, past + chosen]  # (B, H)
    return torch.cat((own[..., :past], itself[..., None]), dim=-1)[:, :, None]


def _joined(parts: list["NextToken"]) -> "NextToken":
    """Alternatives that were fed one by one, as if at once."""

    def layers(name: str) -> Any:
        found = [getattr(part, name) for part in parts]
        if found[0] is None:
            return None
        width = found[-1][0].shape[-1]
        if name == "attentions":
            found = [[F.pad(x, (0, width - x.shape[-1])) for x in part] for part in found]
        return tuple(torch.cat(layer, dim=-2) for layer in zip(*found, strict=True))

    logits = torch.cat([part.logits for part in parts], dim=1)
    return parts[-1]._replace(logits=logits, hidden_states=layers("hidden_states"), attentions=layers("attentions"))


def _extended_mask(mask: Tensor | None, room: int) -> Tensor | None:
    return None if mask is None else F.pad(mask, (0, room), value=1)


def _extended_positions(given: Tensor | None, mask: Tensor | None, room: int) -> Tensor | None:
    """Positions (B, W + room): the user's, counted on, or those that the mask tells; padding gets any, here 1."""
    if given is not None:
        return torch.cat((given, given[:, -1:] + torch.arange(1, room + 1, device=given.device)), dim=1)
    if mask is None:
        return None
    return (mask.cumsum(dim=-1) - 1).masked_fill(mask == 0, 1)


def _extended(values: Tensor | None, room: int) -> Tensor | None:
    """Values (B, W + room): the last column goes on."""
    return None if values is None else torch.cat((values, values[:, -1:].expand(-1, room)), dim=1)
