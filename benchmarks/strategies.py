"""How fast contrastive search, assisted decoding and guidance write, beside the reference.

    python benchmarks/strategies.py --peer PYTHON [--newer PYTHON] --json

The model is a GPT Neo of 12 layers × 768 that grows from tales-neo, the model in the box: its features are repeated
threefold, which leaves what they compute as it was, and the eight further layers add `--noise` of their own. So
tales-neo, as the assistant, is right about as often as a small model is about a large one of its kind; how often is
printed. Every library holds the same weights, in a process of its own that waits for its turn; runs alternate, and the
fastest of each counts. `--newer` is an interpreter with a later release of Transformers.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from triptych import AutoTokenizer, GPTNeoConfig, GPTNeoForCausalLM
from triptych.pretrained import DEFAULT, folder as folder_of
from worker import Worker

PROMPTS = ("Once upon a time", "Lily and Tom went to the park. They saw a big dog. The dog")
CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "assisted, greedy": {"assistant": True},
    "assisted, sampled": {"assistant": True, "do_sample": True},
    "prompt lookup": {"prompt_lookup_num_tokens": 4},
    "guided": {"guidance_scale": 1.5},
}

WORKER = """
import json, sys, time, warnings
package, model, assistant, threads = sys.argv[1:]
import torch
warnings.simplefilter("ignore")
torch.set_num_threads(int(threads))
library = __import__(package, fromlist=["GPTNeoForCausalLM"])
model, assistant = (library.GPTNeoForCausalLM.from_pretrained(path).float().eval() for path in (model, assistant))
for line in sys.stdin:
    case = json.loads(line)
    options, ids = case["options"], torch.tensor([case["ids"]])
    if options.pop("assistant", False):
        assistant.generation_config.num_assistant_tokens = 5  # the schedule of some releases changes it
        options["assistant_model"] = assistant
    steps = []
    hook = model.transformer.ln_f.register_forward_hook(lambda *_: steps.append(1)) if case["count"] else None
    torch.manual_seed(1)
    clock = time.process_time if case["cpu"] else time.perf_counter
    start = clock()
    try:
        out = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, eos_token_id=None,
                             max_new_tokens=case["new"], **options)
    except (ValueError, TypeError, OSError, AttributeError):  # a release without this strategy
        print("null", flush=True)
        continue
    seconds = clock() - start
    if hook:
        hook.remove()
    print(json.dumps([seconds, len(steps), out[0].tolist()]), flush=True)
"""


def grown(small: GPTNeoForCausalLM, times: int, layers: int, noise: float) -> GPTNeoForCausalLM:
    """The model `times` as wide and `layers` deep that computes the same but for `noise` in its further layers."""
    config = GPTNeoConfig(
        **{**small.config.to_diff_dict(), "attention_types": [[["global", "local"], layers // 2]]}
        | {
            "hidden_size": small.config.hidden_size * times,
            "num_heads": small.config.num_heads * times,
            "num_layers": layers,
            "attention_layers": ["global", "local"] * (layers // 2),
            "torch_dtype": "float32",
        }
    )
    torch.manual_seed(0)
    large = GPTNeoForCausalLM(config).eval()
    old, step = small.state_dict(), small.config.num_layers
    with torch.no_grad():
        for name, weight in large.state_dict().items():
            layer = int(name.split(".")[2]) if ".h." in name else 0
            if layer >= step:
                if name.endswith(("out_proj.weight", "c_proj.weight")):
                    weight.mul_(noise)  # what these layers add to the rest
                continue
            source = old[name].float()
            if weight.dim() == 1:
                weight.copy_(source.repeat(times))
            elif "wte" in name or "wpe" in name or "lm_head" in name:
                weight.copy_(source.repeat(1, times))
            else:
                weight.copy_(source.repeat(times, times) / times)
        large.transformer.ln_f.weight.div_(times)  # the head sums the repeated features
        large.transformer.ln_f.bias.div_(times)
    return large


def measure(
    workers: dict[str, Worker], prompts: list[list[int]], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row a case: tokens per second of each library, and how many tokens a step of the model gives."""
    rows = []
    for name, options in CASES.items():
        case = {"new": arguments.new, "options": options, "cpu": arguments.cpu_time}
        able = {name: w for name, w in workers.items() if w.run(ids=prompts[0], count=False, **case) is not None}
        fastest = {library: [float("inf")] * len(prompts) for library in able}
        steps, same = 0, True
        for number, ids in enumerate(prompts):
            texts = {}
            for library, worker in able.items():
                _, counted, texts[library] = worker.run(ids=ids, count=True, **case) or (0.0, 0, [])
                steps += counted if library == "triptych" else 0
            same &= options.get("do_sample", False) or len({tuple(text) for text in texts.values()}) == 1
            for _ in range(arguments.rounds):
                for library, worker in able.items():
                    seconds, _, _ = worker.run(ids=ids, count=False, **case) or (float("inf"), 0, [])
                    fastest[library][number] = min(fastest[library][number], seconds)
        row: dict[str, Any] = {"case": name, "tokens_per_step": arguments.new * len(prompts) / steps, "same_ids": same}
        row |= {library: arguments.new * len(prompts) / sum(times) for library, times in fastest.items()}
        row["ratios"] = {library: row["triptych"] / row[library] for library in able if library != "triptych"}
        rows.append(row)
    return rows


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="a Python interpreter that has Transformers 4.37")
    parser.add_argument("--newer", help="a Python interpreter that has a later Transformers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new", type=int, default=64, help="new tokens")
    parser.add_argument("--noise", type=float, default=2.0, help="share of the further layers in the text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="count processor time, for a busy machine")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    small = folder_of(DEFAULT)
    assert small is not None
    tokenizer = AutoTokenizer.from_pretrained(small)
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    with tempfile.TemporaryDirectory() as folder:
        grown(GPTNeoForCausalLM.from_pretrained(small).float(), 3, 12, arguments.noise).save_pretrained(folder)
        places = (folder, str(Path(small)))
        workers = {
            "triptych": Worker(
                sys.executable, WORKER, "triptych", *places, arguments.threads, OMP_WAIT_POLICY="passive"
            )
        }
        for name, python in (("reference", arguments.peer), ("newer", arguments.newer)):
            if python:
                workers[name] = Worker(
                    python, WORKER, "transformers", *places, arguments.threads, OMP_WAIT_POLICY="passive"
                )
        try:
            rows = measure(workers, prompts, arguments)
        finally:
            for worker in workers.values():
                worker.stop()
    if arguments.json:
        settings = {name: value for name, value in vars(arguments).items() if name not in ("peer", "newer")}
        print(json.dumps({"settings": settings, "rows": rows}, indent=2))
        return
    print(f"{'case':20} {'tokens/step':>11} " + "".join(f"{name + ' tok/s':>18} {'times':>6}" for name in workers))
    for row in rows:
        speeds = "".join(
            f"{row[name]:18.1f} {row['ratios'].get(name, 1.0):6.2f}" if name in row else f"{'cannot':>18} {'':6}"
            for name in workers
        )
        print(f"{row['case']:20} {row['tokens_per_step']:11.2f} {speeds}{'' if row['same_ids'] else '  ids differ'}")


if __name__ == "__main__":
    main()
