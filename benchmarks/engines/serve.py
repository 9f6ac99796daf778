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
    """When a decoding loop made its first token and when it ended; it never stops anything.

    It is called at each step, as a stopping criterion or a callback. `wait` waits for a device that works on its own.
    """

    def __init__(self, answer: Any = False, wait: Callable[[], Any] | None = None) -> None:
        self.answer, self.wait = answer, wait
        self.first: float | None = None
        self.start = self._now()

    def __call__(self, *_: Any, **__: Any) -> Any:
        if self.first is None:
            self.first = self._now()
        return self.answer

    def seconds(self) -> dict[str, float]:
        """Until the first token, and from there to now."""
        end = self._now()
        first = end if self.first is None else self.first  # some loops do not call at their last token
        return {"first": first - self.start, "rest": end - first}

    def _now(self) -> float:
        if self.wait is not None:
            self.wait()
        return time.perf_counter()


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
