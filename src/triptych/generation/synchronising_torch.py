"""Several processes that must run their models equally often, as sharded weights need (`synced_gpus`)."""

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from triptych.modeling_torch import PreTrainedModel


class InStep:
    """Before each step every process says whether it still writes; those that are done run along for the others.

    Raises: ValueError when there are no processes to be in step with.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "synced_gpus=True keeps processes in step, and torch.distributed is not initialised. "
                "Call torch.distributed.init_process_group(), or leave synced_gpus out."
            )
        self.model = model

    def announce(self, still_writing: bool = True) -> bool:
        """Say whether this process still writes; True when any does."""
        flag = torch.tensor(float(still_writing), device=self.model.device)
        dist.all_reduce(flag)
        return bool(flag > 0)

    def run_along(self) -> None:
        """Run the model as often as the others still do, on one token, for nothing."""
        token = torch.zeros((1, 1), dtype=torch.long, device=self.model.device)
        while self.announce(still_writing=False):
            self.model.next_token_logits(token, cache=None)
