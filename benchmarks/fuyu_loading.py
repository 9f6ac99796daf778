"""How much memory a large Fuyu takes to load and to convert, and how long both take.

    python benchmarks/fuyu_loading.py --billions 2 --folder /some/large/disk --json

A checkpoint of random bfloat16 numbers in the shapes of Fuyu is written shard by shard, so that making it takes no
memory; so is the release that is converted, in the layout of Adept's. Each step runs in a process of its own. Memory is
the growth of the peak resident set over what the process held before, in units of the weights where it is a load;
loads read every weight once, as memory-mapped weights cost nothing before that.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from triptych.checkpoints import safetensors_file
from triptych.checkpoints.checkpoint import TensorInfo
from triptych.checkpoints.index import StoredTensor, make_index, parse_size, plan_shards, shard_names
from triptych.checkpoints.names import SAFETENSORS
from triptych.checkpoints.renaming import rows_of
from triptych.files import write_json
from triptych.models.fuyu.configuration import FuyuConfig
from triptych.models.fuyu.conversion import ADEPT_RELEASE

# Width, layers and heads of models of about so many billions of parameters; 8 is the published one.
SHAPES = {0.5: (512, 18, 8), 1: (1024, 36, 16), 2: (2048, 19, 32), 8: (4096, 36, 64)}
MEASURED = """
import json, sys, time
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
def measured(work):
    open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
    before, start = peak(), time.perf_counter()
    work()
    return {"peak_bytes": peak() - before, "seconds": time.perf_counter() - start}
"""
LOAD = (
    MEASURED
    + """
import torch
from triptych.models.fuyu.modeling_torch import FuyuForCausalLM
torch.set_num_threads(1)
folder, options = sys.argv[1], json.loads(sys.argv[2])
FuyuForCausalLM.from_pretrained(folder + "/small", **options)  # imports what loading imports
def load():
    global model
    model = FuyuForCausalLM.from_pretrained(folder, **options)
    for parameter in model.parameters():
        parameter.detach().view(-1)[::1024].sum()  # brings every page in
print(json.dumps(measured(load) | {"weight_bytes": sum(p.nbytes for p in model.parameters())}))
"""
)
CONVERT = (
    MEASURED
    + """
from triptych.models.fuyu.conversion import convert
source, target = sys.argv[1:]
print(json.dumps(measured(lambda: convert(source, target))))
"""
)
CASES = {
    "torch_dtype=bfloat16": {"torch_dtype": "bfloat16"},
    "torch_dtype=auto, low_cpu_mem_usage": {"torch_dtype": "auto", "low_cpu_mem_usage": True},
}
BLOCK = os.urandom(2**20)


def shapes_of(config: FuyuConfig) -> dict[str, tuple[int, ...]]:
    """Name in the release → shape, for every tensor of the table."""
    text = config.text_config
    head = text.hidden_size // text.num_attention_heads
    sizes = {"V": text.vocab_size, "C": text.hidden_size, "3C": 3 * text.hidden_size, "F": text.intermediate_size}
    sizes |= {"D": head, "P": config.patch_size**2 * config.num_channels}
    rows = rows_of(ADEPT_RELEASE, text.num_hidden_layers)
    return {row.original: tuple(sizes[size] for size in row.shape.split()) for row in rows}


def numbers(shape: tuple[int, ...]) -> Iterator[bytes]:
    """Random bytes for as many numbers of two bytes."""
    left = 2
    for size in shape:
        left *= size
    while left:
        piece = BLOCK[: min(left, len(BLOCK))]
        yield piece
        left -= len(piece)


def write_checkpoint(folder: Path, config: FuyuConfig, shard_size: str = "2GB") -> int:
    """A folder that loads; the bytes of its weights."""
    published = {row.original: row.published for row in rows_of(ADEPT_RELEASE, config.text_config.num_hidden_layers)}
    shapes = {published[name]: shape for name, shape in shapes_of(config).items()}
    sizes = {name: sum(map(len, numbers(shape))) for name, shape in shapes.items()}
    shards = plan_shards((StoredTensor(name, size, name) for name, size in sizes.items()), parse_size(shard_size))
    files = shard_names(SAFETENSORS, None, len(shards))
    folder.mkdir(parents=True, exist_ok=True)
    for file, names in zip(files, shards, strict=True):
        pieces = {name: (TensorInfo(shapes[name], "bfloat16"), numbers(shapes[name])) for name in names}
        safetensors_file.write_pieces(pieces, folder / file)
    if len(files) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        write_json(folder / SAFETENSORS.index_name(), make_index(weight_map, sum(sizes.values())))
    config.save_pretrained(folder)
    return sum(sizes.values())


def write_release(folder: Path, config: FuyuConfig) -> None:
    """A release as a folder: the pickle that torch makes of it, and random bytes for its storages."""
    import torch

    shapes = shapes_of(config)
    path = folder / "iter_0001251" / "mp_rank_00" / "model_optim_rng.pt"
    path.parent.mkdir(parents=True)
    (folder / "adept_vocab.model").write_bytes(b"no vocabulary")
    with torch.serialization.skip_data():  # room for the numbers, which follow
        torch.save({"model": {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}}, path)
    with zipfile.ZipFile(path) as archive:
        pickle = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle)
        for number, shape in enumerate(shapes.values()):
            with archive.open(f"archive/data/{number}", "w", force_zip64=True) as entry:
                for piece in numbers(shape):
                    entry.write(piece)


def measure(code: str, *arguments: str) -> dict[str, float]:
    """One step in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--billions", type=float, default=2, choices=sorted(SHAPES), help="parameters, in billions")
    parser.add_argument("--folder", help="where to put the temporary files: twice the weights at most")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    width, layers, heads = SHAPES[arguments.billions]
    config = FuyuConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads
    )
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        small = FuyuConfig(32, 32, 64, 2, 2, patch_size=2)
        size = write_checkpoint(folder / "saved", config)
        write_checkpoint(folder / "saved" / "small", small)
        for case, options in CASES.items():
            rows[case] = measure(LOAD, str(folder / "saved"), json.dumps(options))
            rows[case]["peak/weights"] = rows[case]["peak_bytes"] / size
        for path in (folder / "saved").glob("*.safetensors"):
            path.unlink()  # its room is needed
        write_release(folder / "release", config)
        rows["triptych convert fuyu"] = measure(CONVERT, str(folder / "release"), str(folder / "converted"))
    if arguments.json:
        print(json.dumps({"weight_bytes": size, "rows": rows}, indent=2))
        return
    print(f"{size / 2e9:.2f} billion parameters, {size / 1e9:.2f} GB of bfloat16")
    print(f"{'step':38} {'seconds':>8} {'peak MB':>9} {'peak/weights':>13}")
    for case, row in rows.items():
        print(f"{case:38} {row['seconds']:8.1f} {row['peak_bytes'] / 1e6:9.0f} {row.get('peak/weights', 0):13.3f}")


if __name__ == "__main__":
    main()
