"""How fast pictures become what Fuyu takes, beside other releases: times of one run, taken in turns, as ratios.

    python benchmarks/fuyu_images.py [--peer PYTHON ...] [--rounds N] [--json]

Each PYTHON is an interpreter that has Transformers. A process for each library holds the same pictures of Pillow and
answers one call after the other, in turns. Times are of the processor, on one thread, so that other work on the machine
counts less; the figures are medians, the ratios those of the pairs.
"preprocess" gives padded floats; "to patches" goes on to the patches, ids and indices of a prompt, where the
library can: our processor's call, and for a peer its image processor's two steps (its processor pads ids besides).
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

SIZES = ((300, 300), (1080, 1920), (3000, 4000))
BATCHES = (1, 8)
STEPS = ("preprocess", "to patches")


def pictures(size, count):
    """Pictures of Pillow with fine detail, all different."""
    import numpy as np
    from PIL import Image

    y, x, c = np.ogrid[: size[0], : size[1], :3]
    return [
        Image.fromarray(((y * y * 3 + x * 7 + x * y + 31 * c * (y // 5 + 1) + 11 * number) % 253).astype(np.uint8))
        for number in range(count)
    ]


def our_calls():
    """Step → a call with pictures."""
    from triptych import FuyuImageProcessor, __version__
    from triptych.models.fuyu.image_processing import patch_indices

    processor = FuyuImageProcessor()

    def to_patches(images):
        found = [processor.patches(image) for image in images]
        return [(each.values, patch_indices(len(each.values), each.rows)) for each in found]

    return f"triptych {__version__}", {
        "preprocess": lambda images: processor.preprocess(images, return_tensors="pt"),
        "to patches": to_patches,
    }


def peer_calls():
    """The same of the reference."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    processor = transformers.FuyuImageProcessor()

    def to_patches(images):
        found = processor.preprocess(images, return_tensors="pt")
        rows = [image if isinstance(image, torch.Tensor) else image[0] for image in found["images"]]
        present = torch.ones(len(images), 1, 1)
        sides = [
            torch.tensor([[int(entry)] for row in found[name] for entry in row])
            for name in ("image_unpadded_heights", "image_unpadded_widths")
        ]
        stacked = torch.stack([row.reshape(1, *row.shape[-3:]) for row in rows])
        return processor.preprocess_with_tokenizer_info(stacked, present, *sides, 1, 2, True)

    backend = "Pillow" if type(processor).__name__.endswith("Pil") or transformers.__version__ < "5" else "torchvision"
    return f"Transformers {transformers.__version__}, {backend}", {
        "preprocess": lambda images: processor.preprocess(images, return_tensors="pt"),
        "to patches": to_patches,
    }


def worker(library):
    """Answer each line, a step with a size and a batch, with the processor's seconds that one call took."""
    import torch

    torch.set_num_threads(1)
    name, calls = our_calls() if library == "triptych" else peer_calls()
    print(json.dumps({"name": name}), flush=True)
    held = {}
    for line in sys.stdin:
        step, size, batch = json.loads(line)
        key = (*size, batch)
        if key not in held:
            held = {key: pictures(size, batch)}  # one set at a time, so that memory stays small
        start = time.process_time()
        calls[step](held[key])
        print(json.dumps(time.process_time() - start), flush=True)


class Library:
    """A process that measures one library."""

    def __init__(self, python, library):
        self.process = subprocess.Popen(
            [python, __file__, "--worker", library], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.name = self._answer()["name"]

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args[0]} stopped; its messages are above.")
        return json.loads(line)

    def seconds(self, *case):
        """The time of one call."""
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self):
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def measure(peers, rounds):
    """For each case: library → the median in milliseconds for an image, and the ratios."""
    libraries = [Library(sys.executable, "triptych"), *(Library(python, "transformers") for python in peers)]
    results = []
    for size in SIZES:
        for batch in BATCHES:
            for step in STEPS:
                times = {library.name: [] for library in libraries}
                for number in range(rounds + 1):
                    for library in libraries:
                        taken = library.seconds(step, size, batch)
                        if number:  # the first call warms up
                            times[library.name].append(taken * 1e3 / batch)
                ours, *others = times.values()
                ratios = [statistics.median(b / a for a, b in zip(ours, other, strict=True)) for other in others]
                results.append(
                    {
                        "size": size,
                        "batch": batch,
                        "step": step,
                        "milliseconds": {name: statistics.median(values) for name, values in times.items()},
                        "times as fast": dict(zip(list(times)[1:], ratios, strict=True)),
                    }
                )
    for library in libraries:
        library.close()
    return results


def show(results):
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    ours, *peers = results[0]["milliseconds"]
    table = Table(title="milliseconds an image, and how many times as fast")
    table.add_column("height × width, batch, step")
    for name in (ours, *peers, *(f"over {peer}" for peer in peers)):
        table.add_column(name, justify="right")
    for result in results:
        times = result["milliseconds"]
        height, width = result["size"]
        table.add_row(
            f"{height} × {width}, {result['batch']}, {result['step']}",
            *(f"{time:.1f}" for time in times.values()),
            *(f"{ratio:.1f}" for ratio in result["times as fast"].values()),
        )
    Console(width=160).print(table)


def main():
    """Read the arguments, measure, print."""
    if sys.argv[1:2] == ["--worker"]:
        return worker(sys.argv[2])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", nargs="*", default=[], help="interpreters that have Transformers")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    results = measure(options.peer, options.rounds)
    return print(json.dumps(results, indent=2)) if options.json else show(results)


if __name__ == "__main__":
    main()
