"""A process of one library, which waits for its turn while the others work: a line of JSON in, a line of JSON out."""

import json
import os
import subprocess
from typing import Any


class Worker:
    """Runs a program that answers each case it reads from its input."""

    def __init__(self, python: str, program: str, *arguments: Any, **environment: str) -> None:
        self.process = subprocess.Popen(
            [python, "-c", program, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"} | environment,
        )

    def run(self, **case: Any) -> Any:
        """The program's answer to a case."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("A worker ended. Check that its interpreter has the library and enough memory.")
        return json.loads(answer)

    def stop(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
