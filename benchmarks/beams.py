"""How fast beams write, beside the reference.

    python benchmarks/beams.py --peer PYTHON --peer PYTHON --json

Every library holds a GPT Neo of 12 layers × 768 with random weights, each in a process of its own that waits for its
turn; runs alternate. Tokens per second count the new tokens of a prompt's best text and the prompt's time, in the
fastest run. `--peer` may be given several times, for several releases of Transformers.
"""

import argparse
import json
import os
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
name = "triptych" if package == "triptych" else f"transformers {library.__version__}"
print(json.dumps(name), flush=True)
for line in sys.stdin:
    case = json.loads(line)
    torch.manual_seed(1)
    ids = torch.randint(0, 50000, (case["batch"], case["prompt"]))
    mask = torch.ones_like(ids)
    started = time.perf_counter()
    try:
        model.generate(ids, attention_mask=mask, pad_token_id=0, eos_token_id=50256, min_new_tokens=case["new"],
                       max_new_tokens=case["new"], **case["options"])
    except ValueError:  # a strategy that this release does not have
        print("null", flush=True)
        continue
    print(json.dumps(time.perf_counter() - started), flush=True)
"""
SEARCH: dict[str, Any] = {"num_beams": 4}
# name -> options, prompts, tokens of each prompt
CASES: dict[str, tuple[dict[str, Any], int, int]] = {
    "search, batch 1, prompt 32": (SEARCH, 1, 32),
    "search, batch 4, prompt 32": (SEARCH, 4, 32),
    "search, batch 1, prompt 400": (SEARCH, 1, 400),
    "sampling, batch 1, prompt 32": (SEARCH | {"do_sample": True}, 1, 32),
    "groups, batch 1, prompt 32": (SEARCH | {"num_beam_groups": 2, "diversity_penalty": 1.0}, 1, 32),
    "constraint, batch 1, prompt 32": (SEARCH | {"force_words_ids": [[11, 12, 13]]}, 1, 32),
}


class Worker:
    """A process with a model of one library, by its name and release."""

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
        self.name: str = self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("A worker ended. Check that its interpreter has the library and enough memory.")
        return json.loads(answer)

    def run(self, **case: Any) -> float:
        """How long one call of `generate` takes, in seconds; infinitely where the library cannot do it."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        seconds = self._answer()
        return float("inf") if seconds is None else float(seconds)

    def stop(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(workers: list[Worker], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each case: tokens per second of each library, and how many times as fast the first one is."""
    rows = []
    for name, (options, batch, prompt) in CASES.items():
        if arguments.only not in name:
            continue
        case = {"batch": batch, "prompt": prompt, "new": arguments.new, "options": options}
        best = {worker.name: float("inf") for worker in workers}
        for _ in range(arguments.rounds):
            for worker in workers:
                best[worker.name] = min(best[worker.name], worker.run(**case))
        speeds = {name: batch * arguments.new / seconds for name, seconds in best.items()}
        ours = speeds[workers[0].name]
        ratios = {worker.name: ours / speeds[worker.name] for worker in workers[1:] if speeds[worker.name]}
        rows.append({"case": name, "speeds": speeds, "ratios": ratios})
    return rows


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="append", default=[], help="a Python interpreter that has Transformers")
    parser.add_argument("--only", default="", help="run the cases whose name holds this")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new", type=int, default=64, help="new tokens of a text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    workers = [Worker(sys.executable, "triptych", arguments)]
    try:
        workers += [Worker(python, "transformers", arguments) for python in arguments.peer]
        rows = measure(workers, arguments)
    finally:
        for worker in workers:
            worker.stop()
    if arguments.json:
        settings = {name: value for name, value in vars(arguments).items() if name not in ("peer", "json")}
        print(json.dumps({"settings": settings, "rows": rows}, indent=2))
        return
    for row in rows:
        print(row["case"])
        for name, speed in row["speeds"].items():
            ratio = f", Triptych is {row['ratios'][name]:.2f} times as fast" if name in row["ratios"] else ""
            print(f"    {name:20} {speed:7.1f} tokens/s{ratio}")


if __name__ == "__main__":
    main()
