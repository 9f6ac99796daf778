"""How fast OpenAI GPT in TensorFlow is, beside the reference.

    python benchmarks/tf_openai_gpt.py --peer PYTHON --json

Both libraries hold an OpenAI GPT with random weights, each in a process of its own that waits for its turn; runs
alternate. A case runs once before it is timed, and the fastest run counts; "first" rows time that run, in which
programs are compiled. Forward and training step are of 4 × 128 tokens in `tf.function`; writing is a whole call of
`generate`, over its new tokens. The last column says how many times as fast Triptych is.
"""

import argparse
import json
import sys
from typing import Any

from worker import Worker

WORKER = """
import json, sys, time, warnings
package, layers, width, threads = sys.argv[1], *map(int, sys.argv[2:])
import numpy as np
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(threads)
warnings.simplefilter("ignore")
library = __import__(package, fromlist=["TFOpenAIGPTLMHeadModel", "OpenAIGPTConfig"])
config = library.OpenAIGPTConfig(n_embd=width, n_layer=layers, n_head=8, vocab_size=8192, n_positions=512,
                                 resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
model = library.TFOpenAIGPTLMHeadModel(config)
model(tf.ones((1, 2), tf.int32))
variables = model.trainable_variables
forward = tf.function(lambda ids: model(ids).logits)
@tf.function
def training(ids):
    with tf.GradientTape() as tape:
        logits = model(ids, training=True).logits[:, :-1]
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(ids[:, 1:], logits))
    gradients = tape.gradient(loss, [getattr(v, "value", v) if package == "triptych" else v for v in variables])
    for variable, gradient in zip(variables, gradients):
        variable.assign_sub(0.01 * tf.convert_to_tensor(gradient))
    return loss
def generate(ids, new):
    return model.generate(ids, max_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=None)
for line in sys.stdin:
    case = json.loads(line)
    ids = tf.constant(np.random.default_rng(1).integers(1, 8000, case["shape"]), tf.int32)
    run = {"forward": forward, "training": training, "generate": generate}[case["what"]]
    given = (ids, case["new"]) if case["what"] == "generate" else (ids,)
    start = time.perf_counter()
    run(*given).numpy()
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
        first = {library: worker.run(**case) for library, worker in workers.items()}
        fastest: dict[str, float] = {}
        for _ in range(arguments.rounds):
            for library, worker in workers.items():
                took = 1000 * worker.run(**case) / parts
                fastest[library] = min(took, fastest.get(library, took))
        rows.append(_row(name, "ms", fastest))
        rows.append(_row("  first run", "s", first))
    return rows


def _row(name: str, unit: str, took: dict[str, float]) -> dict[str, Any]:
    row: dict[str, Any] = {"case": name, "unit": unit} | took
    return row | {"ratio": took["reference"] / took["triptych"]} if "reference" in took else row


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="a Python interpreter that has Transformers with TensorFlow")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new", type=int, default=48, help="new tokens")
    parser.add_argument("--threads", type=int, default=2, help="threads of an operation")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    sizes = (arguments.layers, arguments.width, arguments.threads)
    workers = {"triptych": Worker(sys.executable, WORKER, "triptych", *sizes)}
    if arguments.peer:
        workers["reference"] = Worker(arguments.peer, WORKER, "transformers", *sizes)
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
