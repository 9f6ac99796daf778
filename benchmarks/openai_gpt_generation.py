"""What a generated token of OpenAI GPT costs behind a short and a long prefix, beside the reference.

    python benchmarks/openai_gpt_generation.py --peer PYTHON --threads 1 --json

Both libraries hold an OpenAI GPT of 12 layers × 768 with random weights, each in a process of its own that waits for
its turn; runs alternate. The time per token is the median over a run's tokens, the prompt's left out, in the fastest
run. The last column says how many times as fast Triptych is. The reference keeps no cache for this family, so its cost
grows with the prefix.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from typing import Any

WORKER = """
import json, sys, time, warnings
package, threads, layers, width = sys.argv[1], *map(int, sys.argv[2:])
import torch
warnings.simplefilter("ignore")
torch.set_num_threads(threads)
library = __import__(package, fromlist=["OpenAIGPTLMHeadModel", "OpenAIGPTConfig"])
torch.manual_seed(0)
model = library.OpenAIGPTLMHeadModel(library.OpenAIGPTConfig(n_embd=width, n_layer=layers)).eval()
class Clock:
    def __init__(self):
        self.times = []
    def put(self, value):
        self.times.append(time.perf_counter())
    def end(self):
        pass
for line in sys.stdin:
    case = json.loads(line)
    torch.manual_seed(1)
    ids = torch.randint(0, 40000, (1, case["prefix"]))
    clock = Clock()
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=case["new"], streamer=clock)
    print(json.dumps([b - a for a, b in zip(clock.times, clock.times[1:])]), flush=True)
"""
PREFIXES = (32, 400)


class Worker:
    """A process with a model of one library."""

    def __init__(self, python: str, package: str, arguments: argparse.Namespace) -> None:
        sizes = [str(arguments.threads), str(arguments.layers), str(arguments.width)]
        self.process = subprocess.Popen(
            [python, "-c", WORKER, package, *sizes],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_WAIT_POLICY": "passive"},
        )

    def seconds(self, **case: int) -> list[float]:
        """How long `generate` takes for each new token; the first has the prompt's time."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("A worker ended. Check that its interpreter has the library and enough memory.")
        return [float(value) for value in json.loads(answer)]

    def stop(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(workers: dict[str, Worker], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each prefix: milliseconds per token, and their ratio."""
    rows: list[dict[str, Any]] = []
    for prefix in PREFIXES:
        times: dict[str, list[float]] = {name: [] for name in workers}
        for _ in range(arguments.rounds):
            for name, worker in workers.items():
                times[name].append(statistics.median(worker.seconds(prefix=prefix, new=arguments.new)[1:]))
        cost = {name: 1000 * min(each) for name, each in times.items()}
        row: dict[str, Any] = {"prefix": prefix, "unit": "ms/token"} | cost
        if "reference" in cost:
            row["ratio"] = cost["reference"] / cost["triptych"]
        rows.append(row)
    return rows


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="a Python interpreter that has Transformers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new", type=int, default=24, help="new tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    workers = {"triptych": Worker(sys.executable, "triptych", arguments)}
    if arguments.peer:
        workers["reference"] = Worker(arguments.peer, "transformers", arguments)
    try:
        rows = measure(workers, arguments)
    finally:
        for worker in workers.values():
            worker.stop()
    if arguments.json:
        settings = vars(arguments) | {"reference": bool(arguments.peer)}
        print(json.dumps({"settings": settings, "rows": rows}, indent=2))
        return
    print(f"{'prefix':>6} {'triptych':>9} {'reference':>9} {'times as fast':>14}   (ms per token)")
    for row in rows:
        theirs = f"{row['reference']:9.1f} {row['ratio']:14.2f}" if "reference" in row else ""
        print(f"{row['prefix']:6} {row['triptych']:9.1f} {theirs}")


if __name__ == "__main__":
    main()
