"""How fast `generate` writes, beside the reference.

    python benchmarks/generation.py --peer PYTHON --json

Both libraries hold a GPT Neo of 12 layers × 768 with random weights, each in a process of its own that waits for its
turn; runs alternate. Tokens per second count the new tokens of all rows and the prompt's time, in the fastest run.
Time per token is the median over tokens, the prompt's left out. The last column says how many times as fast Triptych
is.
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
library = __import__(package, fromlist=["GPTNeoForCausalLM", "GPTNeoConfig"])
torch.manual_seed(0)
kinds = [[["global", "local"], layers // 2]]
config = library.GPTNeoConfig(hidden_size=width, num_layers=layers, num_heads=12, attention_types=kinds)
model = library.GPTNeoForCausalLM(config).eval()
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
    ids = torch.randint(0, 50000, (case["batch"], case["prompt"]))
    mask = torch.ones_like(ids)
    clock = Clock()
    model.generate(ids, attention_mask=mask, pad_token_id=0, eos_token_id=50256, min_new_tokens=case["new"],
                   max_new_tokens=case["new"], streamer=clock, **case["options"])
    print(json.dumps([b - a for a, b in zip(clock.times, clock.times[1:])]), flush=True)
"""
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_p": 0.9, "temperature": 0.8},
}
PREFIXES = (100, 500, 1000, 1900)


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

    def seconds(self, batch: int, prompt: int, new: int, options: dict[str, Any]) -> list[float]:
        """How long one call of `generate` takes for each new token; the first has the prompt's time."""
        case = {"batch": batch, "prompt": prompt, "new": new, "options": options}
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


def alternate(workers: dict[str, Worker], rounds: int, **case: Any) -> dict[str, list[list[float]]]:
    """The seconds per token of each run of each library."""
    runs: dict[str, list[list[float]]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            runs[name].append(worker.seconds(**case))
    return runs


def measure(workers: dict[str, Worker], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each strategy, batch and prompt, and for each prefix."""
    rows = []
    for strategy, options in STRATEGIES.items():
        for batch in (1, 4):
            for prompt in (32, 400):
                case = {"batch": batch, "prompt": prompt, "new": arguments.new, "options": options}
                runs = alternate(workers, arguments.rounds, **case)
                speed = {name: batch * arguments.new / min(map(sum, each)) for name, each in runs.items()}
                rows.append({"case": f"{strategy}, batch {batch}, prompt {prompt}", "unit": "tokens/s"} | speed)
    for prefix in PREFIXES:
        runs = alternate(workers, arguments.rounds, batch=1, prompt=prefix, new=arguments.new, options={})
        cost = {name: 1000 * statistics.median(t for run in each for t in run[1:]) for name, each in runs.items()}
        rows.append({"case": f"greedy, batch 1, behind {prefix} tokens", "unit": "ms/token"} | cost)
    for row in rows:
        if "reference" in row:
            ours, theirs = row["triptych"], row["reference"]
            row["ratio"] = ours / theirs if row["unit"] == "tokens/s" else theirs / ours
    return rows


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="a Python interpreter that has Transformers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new", type=int, default=48, help="new tokens per row")
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
    print(f"{'case':40} {'unit':>9} {'triptych':>9} {'reference':>9} {'times as fast':>14}")
    for row in rows:
        theirs = f"{row['reference']:9.1f} {row['ratio']:14.2f}" if "reference" in row else ""
        print(f"{row['case']:40} {row['unit']:>9} {row['triptych']:9.1f} {theirs}")


if __name__ == "__main__":
    main()
