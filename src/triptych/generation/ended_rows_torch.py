"""Rows that have ended are fed no longer, once they are half of those fed: a step then costs what the others do.

Shapes: B rows, T ids so far, V vocabulary, R rows that are still fed.
"""

from typing import TYPE_CHECKING

from torch import Tensor

from triptych.generation.feed_torch import Feed
from triptych.generation.prefill_torch import is_plain
from triptych.generation.run_torch import Run

if TYPE_CHECKING:
    from triptych.runtime.preparing import NextToken


class RunningRows:
    """The feed of a run, less the rows that have ended. Their logits are zeros then, and nobody looks at them.

    All rows are fed on where someone might look: at scores or the cache of an output object, in hooks, or in transforms
    of the user's own. So they are on an accelerator, where a step takes as long for one row as for some.
    """

    def __init__(self, run: Run) -> None:
        self.feed = feed = run.feed
        self.fed: Tensor | None = None  # the rows (R,); None for all
        self.leaves = (
            type(feed) is Feed  # a guided one feeds each row twice
            and feed.cached
            and feed.private
            and feed.prompt.past is None
            and len(run.prompt) > 1
            and run.prompt.device.type == "cpu"
            and run.options.pad_token_id is not None  # else an ended row goes on with what its logits say
            and not run.options.return_dict_in_generate
            and isinstance(run.transforms, list)
            and all(type(transform).__module__.startswith("triptych.") for transform in run.transforms)
            and is_plain(feed.model)
        )

    def step(self, ids: Tensor, running: Tensor) -> "NextToken":
        """The next token's logits (B, V) after `ids` (B, T); only those of rows that are `running` (B,) matter."""
        if self.leaves and self.feed.fixed is None:  # those are of one shape
            self.leave(running)
        if self.fed is None:
            return self.feed.step(ids)
        out = self.feed.step(ids.index_select(0, self.fed))
        logits = out.logits.new_zeros((len(ids), out.logits.shape[1]))
        return out._replace(logits=logits.index_copy_(0, self.fed, out.logits))

    def step_ahead(self, ids: Tensor) -> "NextToken | None":
        """See `Feed.step_ahead`; None once rows have been left."""
        return self.feed.step_ahead(ids) if self.fed is None else None

    def leave(self, running: Tensor) -> None:
        """Feed only the rows that are `running` (B,) from now on, if they are few enough."""
        left = running if self.fed is None else running[self.fed]
        if 0 < 2 * int(left.sum()) <= len(left):
            places = left.nonzero().squeeze(1)
            self.fed = places if self.fed is None else self.fed[places]
            self.feed.keep_rows(places)
