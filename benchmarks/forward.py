"""How long GPT Neo's forward pass takes beside the reference: the prompt (prefill) and one more token (decode).

python benchmarks/forward.py [--peer PYTHON] [--json]     PYTHON: an interpreter that has transformers

Both sides run the same configuration with random weights on the same threads, each in its own process that
waits while the other measures; they take turns, and the ratio is the median over the turns. Below 1 is faster
than the peer. A decoding step continues from a cache that is already `past` tokens long, as in a loop.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

# Runs on either side: reads one job a line, answers with the seconds that it took.
WORKER = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import torch
library, fields, threads = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
clock = getattr(time, sys.argv[4])
package = __import__(library)
torch.set_num_threads(threads)
torch.manual_seed(0)
model = package.GPTNeoForCausalLM(package.GPTNeoConfig(**fields)).eval()
ids = torch.randint(0, fields["vocab_size"], (1, fields["max_position_embeddings"]))
caches = {}
print("ready", flush=True)
with torch.inference_mode():
    for line in sys.stdin:
        kind, tokens, repeats = json.loads(line)
        if kind == "decode" and tokens not in caches:
            caches[tokens] = model(ids[:, :tokens]).past_key_values
        if kind == "decode":  # the first step from a kept cache is not the loop's
            past = model(ids[:, :1], past_key_values=caches[tokens]).past_key_values
        start = clock()
        for _ in range(repeats):
            if kind == "decode":
                past = model(ids[:, :1], past_key_values=past).past_key_values
            else:
                model(ids[:, :tokens])
        print((clock() - start) / repeats, flush=True)
"""


class Side:
    """A process that holds one library's model and measures on request."""

    def __init__(self, python: str, library: str, fields: dict[str, object], threads: int, clock: str) -> None:
        command = [python, "-c", WORKER, library, json.dumps(fields), str(threads), clock]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline().strip() != "ready":
            raise SystemExit(f"{python} could not make the model with {library}; its error is above.")

    def seconds(self, kind: str, tokens: int, repeats: int) -> float:
        """Mean time of one forward pass of a job."""
        self.process.stdin.write(json.dumps([kind, tokens, repeats]) + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        """Let the process end."""
        self.process.stdin.close()
        self.process.wait()


def main(
    peer: Annotated[Path | None, typer.Option(help="Interpreter that has transformers.")] = None,
    layers: int = 12,
    hidden: int = 768,
    heads: int = 12,
    threads: int = 1,
    turns: int = 5,
    prefill: Annotated[str, typer.Option(help="Prompt lengths.")] = "128,512,2048",
    decode: Annotated[str, typer.Option(help="Lengths of the past.")] = "32,400,1500",
    cpu_time: Annotated[bool, typer.Option("--cpu-time", help="Count CPU time, for a machine that is busy.")] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Medians over the turns, in milliseconds, and ratios to the peer."""
    fields = {
        "vocab_size": 50257,
        "max_position_embeddings": 2048,
        "hidden_size": hidden,
        "num_layers": layers,
        "num_heads": heads,
        "attention_types": [[["global", "local"], layers // 2]],
    }
    clock = "process_time" if cpu_time else "perf_counter"
    sides = {"triptych": Side(sys.executable, "triptych", fields, threads, clock)}
    if peer:
        sides["peer"] = Side(str(peer), "transformers", fields, threads, clock)
    jobs = [("prefill", int(length), 1) for length in prefill.split(",") if length]
    jobs += [("decode", int(length), 8) for length in decode.split(",") if length]
    rows = []
    for kind, tokens, repeats in jobs:
        times: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(turns + 1):
            for name, side in sides.items():
                value = side.seconds(kind, tokens, repeats)
                if turn:  # the first fills caches
                    times[name].append(value)
        row = {"job": kind, "tokens": tokens} | {f"{n}_ms": 1000 * statistics.median(v) for n, v in times.items()}
        if peer:
            row["ratio"] = statistics.median(a / b for a, b in zip(times["triptych"], times["peer"], strict=True))
        rows.append(row)
    for side in sides.values():
        side.close()
    if as_json:
        print(json.dumps({"model": fields, "threads": threads, "clock": clock, "turns": turns, "rows": rows}))
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
