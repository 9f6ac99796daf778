"""How every engine is driven: one process each, one JSON request a line on stdin, one JSON answer a line on stdout."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def serve(operations: dict[str, Callable[..., dict[str, Any]]]) -> None:
    """Answer requests {"do": name, ...} until stdin ends; an exception becomes {"error": text}.

    What libraries print goes to stderr.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = operations[request.pop("do")](**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print(json.dumps(answer), file=answers, flush=True)


class Clock:
    """When each step of a decoding loop came: called as a stopping criterion or a callback, it never stops anything."""

    def __init__(self, answer: Any = False) -> None:
        self.start = time.perf_counter()
        self.times: list[float] = []
        self.answer = answer

    def __call__(self, *_: Any, **__: Any) -> Any:
        self.times.append(time.perf_counter())
        return self.answer

    def seconds(self, steps: int) -> dict[str, float]:
        """Until the first step, and from there to the last, at which some loops no longer call."""
        if len(self.times) < steps:
            self.times.append(time.perf_counter())
        return {"first": self.times[0] - self.start, "rest": self.times[-1] - self.times[0]}


class Memory:
    """The growth of this process's peak memory, in bytes (Linux)."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        self.before = self._peak()

    def growth(self) -> int:
        """Since the object was made."""
        return self._peak() - self.before

    @staticmethod
    def _peak() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
