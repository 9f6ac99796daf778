"""What a machine has and can do, asked of PyTorch."""

import statistics
import subprocess
from collections.abc import Callable
from typing import Any

import torch
from serve import Clock

# type of device -> bytes that are streamed, side of the square matrices, their type
WORK = {"cpu": (2**30, 3072, "float32"), "cuda": (2**32, 8192, "bfloat16")}


def what_there_is() -> dict[str, Any]:
    """Types of device."""
    return {"devices": ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]}


def wait_for(device: torch.device) -> Callable[[], Any] | None:
    """What waits until the device has done its work; None where a call returns with its result."""
    return torch.cuda.synchronize if device.type == "cuda" else None


def machine(device: str = "cpu", part: int = 1) -> dict[str, Any]:
    """Bytes per second of a stream, and operations per second of a product of matrices; `part` makes both smaller.

    On a CPU a stream is read, in a sum. On a GPU it is read or copied (read and written), whichever is quicker.
    """
    kind = torch.device(device).type
    size, side, dtype = WORK[kind]
    side = max(side // part, 64)
    stream = torch.ones(size // part // 4, device=device)
    square = torch.randn(side, side, dtype=getattr(torch, dtype), device=device)
    reads = [stream.nbytes / _seconds(stream.sum, device)]
    if kind == "cuda":
        other = torch.empty_like(stream)
        reads.append(2 * stream.nbytes / _seconds(lambda: other.copy_(stream), device))
    rate = 2 * side**3 / _seconds(lambda: torch.mm(square, square), device)
    facts = {"bandwidth": max(reads), "rate": rate, "dtype": dtype, "threads": torch.get_num_threads()}
    return facts | (_gpu() if kind == "cuda" else {})


def _seconds(work: Callable[[], Any], device: str) -> float:
    """The median time of some calls, the first of which does not count."""
    times = []
    for _ in range(6):
        clock = Clock(wait=wait_for(torch.device(device)))
        work()
        times.append(clock.seconds()["first"])
    return statistics.median(times[1:])


def _gpu() -> dict[str, Any]:
    """The GPU's name, the versions that it is driven by, and its clocks, which are asked for while it is warm."""
    facts = torch.cuda.get_device_properties(torch.cuda.current_device())
    asked = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit"
    command = ["nvidia-smi", f"--id=GPU-{facts.uuid}", f"--query-gpu={asked}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        driver, sm, most, memory, power = (part.strip() for part in answer.strip().split(","))
        clocks = f"multiprocessors at {sm} of {most}, memory at {memory}, at most {power}"
    except (OSError, subprocess.CalledProcessError, ValueError):
        driver, clocks = "unknown", "clocks unknown"
    return {"gpu": facts.name, "driver": driver, "cuda": str(torch.version.cuda), "clocks": clocks}
