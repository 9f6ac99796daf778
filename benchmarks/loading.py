"""How long `from_pretrained` takes and how much memory it peaks at, beside the reference.

    python benchmarks/loading.py --gigabytes 1 --peer PYTHON --json

A GPT Neo with random weights is saved into a temporary folder. Each load runs in a process of its own, libraries
alternating; "touched" adds reading every weight once, as memory-mapped weights cost nothing before that.
Memory is the growth of the peak resident set over what the process held before, in units of the loaded weights.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

LOAD = """
import json, sys, time, warnings
package, folder, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
import torch
torch.set_num_threads(1)
GPTNeoForCausalLM = getattr(__import__(package, fromlist=["GPTNeoForCausalLM"]), "GPTNeoForCausalLM")
GPTNeoForCausalLM.from_pretrained(folder + "/small", **options)  # imports what loading imports
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
before = peak()
start = time.perf_counter()
model = GPTNeoForCausalLM.from_pretrained(folder, **options)
loaded = time.perf_counter()
total = sum(float(p.detach().view(-1).float().abs().max()) for p in model.parameters())
end = time.perf_counter()
size = sum(p.nbytes for p in model.parameters())
print(json.dumps({"load_s": loaded - start, "touched_s": end - start, "peak": (peak() - before) / size}))
"""
CASES = {
    "default": {},
    "low_cpu_mem_usage": {"low_cpu_mem_usage": True},
    "torch_dtype=auto, low_cpu_mem_usage": {"low_cpu_mem_usage": True, "torch_dtype": "auto"},
}


def make_checkpoint(folder: Path, gigabytes: float, dtype: str, shard_size: str) -> int:
    """Save a random model of about this size, and a small one in `small/`; the bytes of its weights."""
    import torch

    from triptych.models.gpt_neo.configuration import GPTNeoConfig
    from triptych.models.gpt_neo.modeling_torch import GPTNeoForCausalLM

    def config(width: int, layers: int) -> GPTNeoConfig:
        kinds = [[["global", "local"], layers // 2]]
        return GPTNeoConfig(hidden_size=width, num_layers=layers, num_heads=4, attention_types=kinds, vocab_size=8192)

    torch.set_default_dtype(getattr(torch, dtype))
    GPTNeoForCausalLM(config(32, 2)).save_pretrained(folder / "small")
    bytes_each = torch.get_default_dtype().itemsize
    layers = max(2, 2 * round(gigabytes * 1e9 / (12 * 1024**2 * bytes_each) / 2))
    model = GPTNeoForCausalLM(config(1024, layers))
    model.save_pretrained(folder, max_shard_size=shard_size)
    return sum(p.nbytes for p in model.parameters())


def measure(python: str, package: str, folder: Path, options: dict[str, object]) -> dict[str, float]:
    """One load in a process of its own."""
    command = [python, "-W", "ignore", "-c", LOAD, package, str(folder), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{package} could not load the checkpoint:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="a Python interpreter that has Transformers")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--max-shard-size", default="5GB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where to put the temporary checkpoint")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    libraries = {"triptych": (sys.executable, "triptych.models.gpt_neo.modeling_torch")}
    if arguments.peer:
        libraries["reference"] = (arguments.peer, "transformers")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        size = make_checkpoint(folder, arguments.gigabytes, arguments.dtype, arguments.max_shard_size)
        runs: dict[tuple[str, str], list[dict[str, float]]] = {}
        for _ in range(arguments.rounds):
            for case, options in CASES.items():
                for library, (python, package) in libraries.items():
                    runs.setdefault((case, library), []).append(measure(python, package, folder, options))
    rows = [
        {"case": case, "library": library}
        | {key: statistics.median(run[key] for run in results) for key in ("load_s", "touched_s", "peak")}
        for (case, library), results in runs.items()
    ]
    if arguments.json:
        print(json.dumps({"weight_bytes": size, "rounds": arguments.rounds, "rows": rows}, indent=2))
        return
    print(f"{size / 1e9:.2f} GB of {arguments.dtype}, median of {arguments.rounds} rounds")
    print(f"{'case':38} {'library':10} {'load s':>8} {'touched s':>10} {'peak/weights':>13}")
    for row in rows:
        numbers = f"{row['load_s']:8.3f} {row['touched_s']:10.3f} {row['peak']:13.2f}"
        print(f"{row['case']:38} {row['library']:10} {numbers}")


if __name__ == "__main__":
    main()
