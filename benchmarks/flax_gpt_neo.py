"""How fast GPT Neo in Flax is, beside the reference.

    python benchmarks/flax_gpt_neo.py --peer PYTHON --json

Both libraries hold a GPT Neo with random weights, each in a process of its own that waits for its turn; runs alternate.
A case is compiled before it is timed, as far as the library keeps what it compiled; the fastest run counts. Forward
and training step are of 4 × 128 tokens under `jax.jit`; writing is a whole call of `generate`, over its new tokens. The
last column says how many times as fast Triptych is.
"""

import argparse
import json
import sys
from typing import Any

from worker import Worker

WORKER = """
import json, sys, time, warnings
package, layers, width = sys.argv[1], *map(int, sys.argv[2:])
import jax, jax.numpy as jnp, numpy as np
warnings.simplefilter("ignore")
library = __import__(package, fromlist=["FlaxGPTNeoForCausalLM", "GPTNeoConfig"])
kinds = [[["global", "local"], layers // 2]]
config = library.GPTNeoConfig(hidden_size=width, num_layers=layers, num_heads=8, attention_types=kinds,
                              vocab_size=8192, max_position_embeddings=1024)
model = library.FlaxGPTNeoForCausalLM(config, seed=0)
params = model.params
@jax.jit
def forward(params, ids):
    return model(ids, params=params).logits
@jax.jit
def training(params, ids):
    def loss(params):
        log_p = jax.nn.log_softmax(model(ids, params=params).logits[:, :-1])
        return -jnp.take_along_axis(log_p, ids[:, 1:, None], axis=-1).mean()
    return jax.tree_util.tree_map(lambda p, g: p - 0.01 * g, params, jax.grad(loss)(params))
def generate(params, ids, new):
    return model.generate(ids, attention_mask=jnp.ones_like(ids), params=params, max_new_tokens=new, pad_token_id=0,
                          eos_token_id=8191, min_length=ids.shape[1] + new).sequences
for line in sys.stdin:
    case = json.loads(line)
    ids = jnp.asarray(np.random.default_rng(1).integers(0, 8000, case["shape"]))
    run = {"forward": forward, "training": training, "generate": generate}[case["what"]]
    given = (params, ids, case["new"]) if case["what"] == "generate" else (params, ids)
    if case["warm"]:
        jax.block_until_ready(run(*given))
    start = time.perf_counter()
    jax.block_until_ready(run(*given))
    print(time.perf_counter() - start, flush=True)
"""


def measure(workers: dict[str, Worker], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each case."""
    new = arguments.new
    cases = [
        ("forward, 4 × 128 tokens", 1, {"what": "forward", "shape": (4, 128), "new": 0}),
        ("training step, 4 × 128 tokens", 1, {"what": "training", "shape": (4, 128), "new": 0}),
        ("a token behind 32", new, {"what": "generate", "shape": (1, 32), "new": new}),
        ("a token behind 400", new, {"what": "generate", "shape": (1, 400), "new": new}),
    ]
    rows = []
    for name, parts, case in cases:
        fastest: dict[str, float] = {}
        for round_ in range(arguments.rounds):
            for library, worker in workers.items():
                took = 1000 * worker.run(**case, warm=round_ == 0) / parts
                fastest[library] = min(took, fastest.get(library, took))
        rows.append({"case": name, "unit": "ms"} | fastest)
        if "reference" in fastest:
            rows[-1]["ratio"] = fastest["reference"] / fastest["triptych"]
    return rows


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="a Python interpreter that has Transformers with Flax")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new", type=int, default=48, help="new tokens")
    parser.add_argument("--threads", type=int, default=2, help="1, or as many as JAX takes")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    flags = "" if arguments.threads > 1 else "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    workers = {
        "triptych": Worker(sys.executable, WORKER, "triptych", arguments.layers, arguments.width, XLA_FLAGS=flags)
    }
    if arguments.peer:
        workers["reference"] = Worker(
            arguments.peer, WORKER, "transformers", arguments.layers, arguments.width, XLA_FLAGS=flags
        )
    try:
        rows = measure(workers, arguments)
    finally:
        for worker in workers.values():
            worker.stop()
    if arguments.json:
        settings = vars(arguments) | {"peer": bool(arguments.peer)}
        print(json.dumps({"settings": settings, "rows": rows}, indent=2))
        return
    print(f"{'case':32} {'unit':>4} {'triptych':>9} {'reference':>9} {'times as fast':>14}")
    for row in rows:
        theirs = f"{row['reference']:9.2f} {row['ratio']:14.2f}" if "reference" in row else ""
        print(f"{row['case']:32} {row['unit']:>4} {row['triptych']:9.2f} {theirs}")


if __name__ == "__main__":
    main()
