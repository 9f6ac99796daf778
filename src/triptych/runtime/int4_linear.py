"""Weights of 4 bits on the CPU: an eighth of the memory, for products in bfloat16.

The inputs of a layer are taken in groups, and for each output and group 16 evenly spaced values reach from the smallest
weight to the largest. Inputs and outputs are bfloat16. The products are PyTorch's own, in the layout that the processor
reads best; torchao has no other for the CPU.
"""

import torch
from torch import Tensor

from triptych.runtime.quantized_linear import QuantizedLinear, pieces, refuse_endless

GROUPS = (64, 32)  # the larger that divides a layer's inputs is taken; 128 lose twice as much in perplexity
_BLOCK = 64  # outputs that the kernels take at a time; fewer are filled up with zeros
_AT_A_TIME = 16 * _BLOCK  # outputs that are laid out at a time, of which each step takes 4 bytes until then
_MIDDLE = 8  # the step that stands for the offset


def group_of(in_features: int) -> int | None:
    """How many inputs share a scale; None where a layer's inputs cannot be split."""
    return next((group for group in GROUPS if in_features % group == 0), None)


class Int4Linear(QuantizedLinear):
    """A linear layer (..., in) -> (..., out) whose weight is held in 4 bits, on the CPU."""

    quantization = "int4"

    @classmethod
    def check(cls, device: torch.device) -> None:
        if not hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu"):
            raise ValueError(
                f"PyTorch {torch.__version__} has no int4 kernels for the CPU. Pass quantization='int8', or install "
                "PyTorch 2.6 or newer."
            )

    @classmethod
    def takes(cls, in_features: int) -> bool:
        return group_of(in_features) is not None

    def product(self, x: Tensor) -> Tensor:
        bits, scales, bias = self.packed
        rows = x.reshape(-1, self.in_features).to(torch.bfloat16).contiguous()
        out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu.default(rows, bits, self.group, scales)
        out = out[:, : self.out_features].to(x.dtype)
        return (out if bias is None else out + bias.to(x.dtype)).view(*x.shape[:-1], self.out_features)

    def _pack(self, rows: Tensor, bias: Tensor | None) -> None:
        self.group = group_of(self.in_features) or 0
        if not self.group:
            raise ValueError(f"Weights of 4 bits need inputs that 32 divides; got in_features={self.in_features}.")
        parts = [_rounded(part, self.group) for part in torch.split(rows, _AT_A_TIME)]
        scales = torch.cat([scales for _, scales in parts], dim=1)
        refuse_endless(scales)
        self.packed = (
            torch.cat([_in_layout(steps) for steps, _ in parts]),
            scales,
            None if bias is None else bias.float().clone(),
        )

    def _steps(self) -> Tensor:
        """The steps (out, in), 0 to 15, with what fills up the last block.

        The layout differs between processors. It is read off by laying out the number of each place, digit by digit.
        """
        bits = self.packed[0]
        places = torch.arange(_BLOCK * self.in_features, dtype=torch.int32).view(_BLOCK, -1)
        place = torch.zeros(places.numel(), dtype=torch.long)
        for shift in range(0, places.numel().bit_length(), 4):
            place |= _halves(_in_layout(places >> shift & 15)).long() << shift
        laid_out = _halves(bits).view(-1, len(place))
        steps = torch.empty_like(laid_out)
        steps[:, place] = laid_out
        return steps.view(-1, self.in_features)

    def _held(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Steps, two of neighbouring inputs in a byte, scales and offsets (groups, out, 2), and bias (out,)."""
        _, scales, bias = self.packed
        steps = self._steps()
        return steps[:, ::2] | steps[:, 1::2] << 4, scales, bias

    def _hold(self, pairs: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        steps = _halves(pairs).view(len(pairs), -1)
        self.packed = torch.cat([_in_layout(part.int()) for part in torch.split(steps, _AT_A_TIME)]), scales, bias

    def _rows(self) -> tuple[Tensor, Tensor | None]:
        _, scales, bias = self.packed
        scale, offset = scales.float().transpose(0, 1).unsqueeze(-1).unbind(2)  # (out, groups, 1)
        steps = self._steps().float().view(len(scale), -1, self.group)
        return steps.sub_(_MIDDLE).mul_(scale).add_(offset).flatten(1)[: self.out_features], bias

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def nbytes(self) -> int:
        """Bytes of the steps, of scales and offsets, and of the bias."""
        return sum(value.nbytes for value in self.packed if value is not None)


def _rounded(rows: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Steps (out, in) of int32 and scales with offsets (groups, out, 2) in bfloat16, filled up to whole blocks."""
    count = -(-len(rows) // _BLOCK) * _BLOCK
    steps = torch.zeros(count, rows.shape[1], dtype=torch.int32)
    scales = torch.zeros(count, rows.shape[1] // group, 2, dtype=torch.bfloat16)
    for part, step, both in pieces(rows, steps[: len(rows)], scales[: len(rows)]):
        grouped = part.float().contiguous().view(len(part), -1, group)
        low, high = grouped.amin(dim=2), grouped.amax(dim=2)
        scale, offset = both.unbind(2)
        scale.copy_(((high - low) / 15).clamp_(min=torch.finfo(torch.float32).tiny))
        offset.copy_(low + _MIDDLE * scale)
        # by what the kernels will multiply with, so that its rounding is made good
        exact = (grouped - offset[..., None].float()).div_(scale[..., None].float())
        step.copy_(exact.round_().clamp_(-_MIDDLE, 15 - _MIDDLE).add_(_MIDDLE).flatten(1))
    return steps, scales.transpose(0, 1)


def _in_layout(steps: Tensor) -> Tensor:
    """Steps (out, in) of int32 in the layout of this processor, (out, in / 2) of uint8."""
    laid_out: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(steps, 1)
    return laid_out


def _halves(pairs: Tensor) -> Tensor:
    """The two halves of each byte, one after the other."""
    return torch.stack([pairs & 15, pairs >> 4], dim=-1).flatten()
