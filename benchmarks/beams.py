"""How fast beams write, beside the reference.

    python benchmarks/beams.py --peer PYTHON --peer PYTHON --json

Every library holds a GPT Neo of 12 layers × 768 with random weights, each in a process of its own that waits for its
turn; runs alternate. Tokens per second count the new tokens of a prompt's best text and the prompt's time, in the
fastest run. `--peer` may be given several times, for several releases of Transformers.
"""

import argparse
import json
import sys
from typing import Any

from worker import Worker

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
for line in sys.stdin:
    case = json.loads(line)
    if not case:
        print(json.dumps(name), flush=True)
        continue
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


def measure(workers: dict[str, Worker], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each case: tokens per second of each library, and how many times as fast Triptych is.

    A library that cannot do a case has none.
    """
    rows = []
    for name, (options, batch, prompt) in CASES.items():
        if arguments.only not in name:
            continue
        case = {"batch": batch, "prompt": prompt, "new": arguments.new, "options": options}
        best: dict[str, float] = {}
        for _ in range(arguments.rounds):
            for library, worker in workers.items():
                if (seconds := worker.run(**case)) is not None:
                    best[library] = min(best.get(library, seconds), seconds)
        speeds = {library: batch * arguments.new / seconds for library, seconds in best.items()}
        ratios = {library: speeds["triptych"] / speed for library, speed in speeds.items() if library != "triptych"}
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
    sizes = (arguments.threads, arguments.layers, arguments.width)
    libraries = [(sys.executable, "triptych"), *((python, "transformers") for python in arguments.peer)]
    started = [Worker(python, WORKER, package, *sizes, OMP_WAIT_POLICY="passive") for python, package in libraries]
    try:
        rows = measure({worker.run(): worker for worker in started}, arguments)
    finally:
        for worker in started:
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
