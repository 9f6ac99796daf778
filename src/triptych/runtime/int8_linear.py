"""Weights of 8 bits on the CPU: a quarter of the memory, and about three times the speed where reading them takes time.

Each output of a layer has a scale of its own (its largest weight is 127 steps); inputs are quantised as they come.
The products are those of FBGEMM and oneDNN, which PyTorch ships. Dettmers et al., 2022, arXiv:2208.07339, compares
such schemes; this one has no outlier path.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch
from torch import Tensor

from triptych.runtime.quantized_linear import QuantizedLinear, pieces, refuse_endless

_warnings = Lock()  # Python's filters belong to all threads


class Int8Linear(QuantizedLinear):
    """A linear layer (..., in) -> (..., out) whose weight is held in 8 bits, on the CPU."""

    quantization = "int8"

    @classmethod
    def check(cls, device: torch.device) -> None:
        if _engine() == "none":
            raise ValueError(
                "This PyTorch has no int8 kernels for this processor. Load without quantization, for example in "
                "bfloat16."
            )

    def product(self, x: Tensor) -> Tensor:
        if x.dtype is not torch.float32:
            return self.product(x.float()).to(x.dtype)
        out: Tensor = torch.ops.quantized.linear_dynamic.default(x, self.packed, self.reduce_range)
        return out

    def _pack(self, rows: Tensor, bias: Tensor | None) -> None:
        steps = torch.empty(rows.shape, dtype=torch.int8)
        scales = torch.empty(len(rows))
        for part, step, scale in pieces(rows, steps, scales):
            part = part.float().contiguous()
            largest = torch.maximum(part.amax(dim=1), part.amin(dim=1).neg_())
            scale.copy_(largest.div_(127).clamp_(min=torch.finfo(torch.float32).tiny))
            step.copy_((part / scale[:, None]).round_())
        refuse_endless(scales)
        self._hold(steps, scales, None if bias is None else bias.float())

    def _hold(self, steps: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        # Without VNNI the kernels add pairs of products in 16 bits, for which inputs may have 7 bits only. Asked here
        # because a pickle may come from another processor.
        self.reduce_range = not getattr(torch.cpu, "_is_vnni_supported", bool)()
        with _quietly():
            quantised = torch._make_per_channel_quantized_tensor(steps, scales.double(), _no_offsets(steps), 0)
        # a copy of the bias, which may lie in a mapped file
        self.packed = torch.ops.quantized.linear_prepack(quantised, None if bias is None else bias.clone())

    def _held(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Steps (out, in), scales (out,) and bias (out,)."""
        quantised, bias = torch.ops.quantized.linear_unpack(self.packed)
        return quantised.int_repr(), quantised.q_per_channel_scales().float(), bias

    def _rows(self) -> tuple[Tensor, Tensor | None]:
        steps, scales, bias = self._held()
        return steps.float().mul_(scales[:, None]), bias

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def nbytes(self) -> int:
        """Bytes of the steps, scales and bias."""
        return self.out_features * (self.in_features + 8)


def _engine() -> str:
    return str(torch.backends.quantized.engine)


def _no_offsets(rows: Tensor) -> Tensor:
    return torch.zeros(len(rows), dtype=torch.long)


@contextmanager
def _quietly() -> Iterator[None]:
    """Tensors with scales of their own are deprecated in PyTorch, but its packed products have no other way in."""
    with _warnings, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
