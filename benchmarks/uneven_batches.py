"""How fast batches of uneven lengths are read and written, beside the reference and beside feeding all of them.

    python benchmarks/uneven_batches.py --peer PYTHON --json

Every library holds a GPT Neo of 12 layers × 768 with the same random weights, in a process of its own that waits for
its turn; runs alternate, and the fastest of each counts. "Whole" is Triptych feeding all padding and all rows that have
ended. `--cpu` counts processor seconds, where others use the machine too. New ids are compared. `--peer` may be given
several times, for several releases of Transformers.
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from triptych import GPTNeoConfig, GPTNeoForCausalLM
from worker import Worker

EVEN = [64] * 8
# name -> tokens of each prompt, new tokens of each text
CASES: dict[str, tuple[list[int], list[int]]] = {
    "read 8 prompts of 32 to 512": ([32, 64, 96, 128, 192, 256, 384, 512], [1] * 8),
    "read 4 prompts of 32 and 4 of 512": ([32] * 4 + [512] * 4, [1] * 8),
    "read 8 prompts of 100 to 128": ([100, 104, 110, 116, 120, 124, 126, 128], [1] * 8),
    "write 8 texts of 16 to 128": (EVEN, [16, 32, 48, 64, 80, 96, 112, 128]),
    "write 7 texts of 16 to 64 and one of 128": (EVEN, [16, 24, 32, 40, 48, 56, 64, 128]),
}

WORKER = """
import json, sys, time, warnings
package, whole, path, threads = sys.argv[1:]
import torch
warnings.simplefilter("ignore")
torch.set_num_threads(int(threads))
library = __import__(package, fromlist=["GPTNeoForCausalLM"])
model = library.GPTNeoForCausalLM.from_pretrained(path).float().eval()
if whole == "whole":
    from triptych.generation import ended_rows_torch, feed_torch
    feed_torch.in_groups = lambda *_: None
    ended_rows_torch.RunningRows.leave = lambda *_: None

usual = list(range(2, 200))
for line in sys.stdin:
    case = json.loads(line)
    lengths = torch.tensor(case["prompts"])
    width = int(lengths.max())
    torch.manual_seed(1)
    mask = (torch.arange(width) >= width - lengths[:, None]).long()
    ids = torch.randint(2, 50000, mask.shape) * mask
    ends = [width + new - 1 for new in case["new"]]  # where each row may only end
    clock = time.process_time if case["cpu"] else time.perf_counter
    start = clock()
    out = model.generate(ids, attention_mask=mask, do_sample=False, pad_token_id=0, eos_token_id=1,
                         max_new_tokens=max(case["new"]),
                         prefix_allowed_tokens_fn=lambda row, ids: usual if len(ids) < ends[row] else [1])
    print(json.dumps([clock() - start, out[:, width:].tolist()]), flush=True)
"""


def measure(workers: dict[str, Worker], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each case: seconds of each engine, how many times as fast the first is, and whose ids are its."""
    rows = []
    for name, (prompts, new) in CASES.items():
        if arguments.only not in name:
            continue
        best, ids = dict.fromkeys(workers, float("inf")), {}
        for _ in range(arguments.rounds):
            for engine, worker in workers.items():
                seconds, ids[engine] = worker.run(prompts=prompts, new=new, cpu=arguments.cpu)
                best[engine] = min(best[engine], seconds)
        ours = next(iter(workers))
        ratios = {engine: seconds / best[ours] for engine, seconds in best.items() if engine != ours}
        alike = [engine for engine in workers if ids[engine] == ids[ours]]
        rows.append({"case": name, "seconds": best, "ratios": ratios, "same_ids": alike})
    return rows


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="append", default=[], help="a Python interpreter that has Transformers")
    parser.add_argument("--only", default="", help="run the cases whose name holds this")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--cpu", action="store_true", help="count processor seconds of all threads")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    workers: dict[str, Worker] = {}
    with TemporaryDirectory() as folder:
        torch.manual_seed(0)
        kinds = [[["global", "local"], arguments.layers // 2]]
        config = GPTNeoConfig(hidden_size=768, num_layers=arguments.layers, num_heads=12, attention_types=kinds)
        GPTNeoForCausalLM(config).save_pretrained(Path(folder))
        try:
            for name in ("triptych", "whole"):
                workers[name] = _worker(sys.executable, "triptych", name, folder, arguments)
            for number, python in enumerate(arguments.peer):
                workers[f"reference {number + 1}"] = _worker(python, "transformers", "", folder, arguments)
            rows = measure(workers, arguments)
        finally:
            for worker in workers.values():
                worker.stop()
    if arguments.json:
        settings = {name: value for name, value in vars(arguments).items() if name not in ("peer", "json")}
        print(json.dumps({"settings": settings, "rows": rows}, indent=2))
        return
    for row in rows:
        print(row["case"])
        for name, seconds in row["seconds"].items():
            ratio = f", Triptych is {row['ratios'][name]:.2f} times as fast" if name in row["ratios"] else ""
            print(f"    {name:20} {seconds:7.2f} s{ratio}{'' if name in row['same_ids'] else ', other ids'}")


def _worker(python: str, package: str, name: str, folder: str, arguments: argparse.Namespace) -> Worker:
    return Worker(python, WORKER, package, name, folder, arguments.threads, OMP_WAIT_POLICY="passive")


if __name__ == "__main__":
    main()
