"""What is measured: one function for each line of the table, or for lines that share their turns."""

import dataclasses
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import rows_built
from bench import REFERENCES, Answers, Bench, Result, medians, prompts
from engines import KINDS, OURS, EngineError, environment
from shapes import NEO_1B, NEO_125M, Shape

NEO, LAYERS = NEO_125M.fields, NEO_125M.matrices
GPT_HEAD = 40478 * 768


def decode(bench: Bench, rows: int) -> list[Result]:
    """New tokens a second behind a prompt of 32, all rows together; the first token is the prompt's."""
    new, given = 16 if bench.quick else 64, prompts(rows, 32)
    folder = bench.checkpoint("gpt_neo", "neo-125m", **NEO)
    work: dict[str, Callable[[], dict[str, Any]]] = {}
    for name in bench.asked(OURS, *REFERENCES, "openvino"):
        work[name] = partial(_decoded, bench, name, "gpt_neo", folder, given, new)
    work[f"{OURS} int8"] = partial(_decoded, bench, OURS, "gpt_neo", folder, given, new, quantization="int8")
    for name, kind in (("ctranslate2", "float32"), ("ctranslate2 int8", "int8")):
        if "ctranslate2" in bench.pythons:
            work[name] = partial(
                _decoded, bench, "ctranslate2", "gpt2", str(bench.folder), given, new, quantization=kind
            )
    answers = bench.turns(work, bench.rounds if rows == 1 else min(bench.rounds, 3))
    speed = medians(answers, lambda run: rows * (new - 1) / run["rest"])
    line = f"decode, 125 M, {{}}, {rows} row{'s' * (rows > 1)}"
    in_float32 = {name: figure for name, figure in speed.items() if "int8" not in name}
    float32 = Result(line.format("float32"), "tokens/s", True, in_float32)
    float32.limit = bench.limits["cpu"].tokens_per_second(LAYERS + NEO_125M.head, rows, 4)
    float32.notes.append(_equality(bench, answers, given, new))
    float32.want_ratio({1: 1.3, 8: 2.5}[rows])
    if rows == 1:
        float32.want_fraction(0.75)
    in_int8 = {name.removesuffix(" int8"): figure for name, figure in speed.items() if "int8" in name}
    int8 = Result(line.format("int8"), "tokens/s", True, in_int8)
    int8.limit = bench.limits["cpu"].tokens_per_second(LAYERS + NEO_125M.head, rows, 1)
    int8.want_ratio({1: 2.5, 8: 5.0}[rows], float32.best_reference, "the reference in float32")
    int8.want_ratio(1.0, in_int8.get("ctranslate2"), "CTranslate2")
    if OURS in in_int8:
        _perplexity(bench, int8)
    return [float32, int8]


def _decoded(
    bench: Bench, name: str, family: str, folder: str, given: list[list[int]], new: int, **options: Any
) -> dict[str, Any]:
    """One continuation, by a model that is loaded at the first."""
    model = " ".join((family, *options.values()))
    bench.load(name, model, family, folder, **options)
    return bench.engine(name).ask("decode", name=model, prompts=given, new=new)


def _equality(bench: Bench, answers: Answers, given: list[list[int]], new: int) -> str:
    """Whether engines with the same weights wrote the same ids."""
    ids = {name: runs[0]["ids"] for name, runs in answers.items() if "int8" not in name}
    if "ctranslate2" in ids:
        expected = bench.engine("ctranslate2").ask("expected", folder=str(bench.folder), prompts=given, new=new)["ids"]
        equal = "the same ids as" if ids.pop("ctranslate2") == expected else "OTHER IDS than"
        gpt2 = f" CTranslate2 wrote {equal} Transformers with its GPT-2."
    else:
        gpt2 = ""
    verdicts = [f"{KINDS[name].title}: {'same ids' if ids[name] == ids.get(OURS) else 'OTHER IDS'}" for name in ids]
    return "; ".join(verdict for verdict in verdicts if not verdict.startswith(KINDS[OURS].title)) + "." + gpt2


def _perplexity(bench: Bench, result: Result) -> None:
    """How far int8 is from float32, with a trained model and what it writes."""
    engine, figures = bench.engine(OURS), []
    for name, options in (("tales", {}), ("tales int8", {"quantization": "int8"})):
        engine.ask("load", name=name, family="gpt_neo", folder="triptych/tales-neo", **options)
        if name == "tales":
            texts = engine.ask("write", name=name, rows=8, new=200)["ids"]
        figures.append(engine.ask("perplexity", name=name, texts=texts)["perplexity"])
    result.want_at_most("perplexity of tales-neo off by", 100 * abs(figures[1] / figures[0] - 1), 1, " %")


def gpt(bench: Bench) -> list[Result]:
    """Seconds for a token behind 400, OpenAI GPT; the documented release keeps no cache for it."""
    folder, given = bench.checkpoint("openai-gpt", "gpt"), prompts(1, 400)
    new = 3 if bench.quick else 9
    names = bench.asked(OURS, *REFERENCES)
    work = {name: partial(_decoded, bench, name, "openai-gpt", folder, given, new) for name in names}
    answers = bench.turns(work, rounds=min(bench.rounds, 3))
    result = Result("decode, GPT's shape, float32, 400 tokens of prefix", "ms/token", False, {})
    result.figures = medians(answers, lambda run: 1000 * run["rest"] / (new - 1))
    result.limit = 1000 / bench.limits["cpu"].tokens_per_second(LAYERS + GPT_HEAD, 1, 4)
    result.notes.append(_equality(bench, answers, given, new))
    result.want_ratio(15)
    return [result]


def prefill(bench: Bench) -> list[Result]:
    """Seconds until the first token behind 1,024."""
    folder, given = bench.checkpoint("gpt_neo", "neo-125m", **NEO), prompts(1, 1024)
    names = bench.asked(OURS, *REFERENCES, "openvino")
    answers = bench.turns({name: partial(_decoded, bench, name, "gpt_neo", folder, given, 1) for name in names})
    result = Result("prefill, 125 M, float32, 1,024 tokens", "s", False, medians(answers, lambda run: run["first"]))
    result.limit = NEO_125M.prefill_operations(1024) / bench.limits["cpu"].rate
    result.notes.append(_equality(bench, answers, given, 1))
    result.want_ratio(1.4)
    return [result]


def cache(bench: Bench) -> list[Result]:
    """Bytes of keys and values behind 2,048 tokens, GPT Neo."""
    folder, given = bench.checkpoint("gpt_neo", "neo-125m", **NEO), prompts(1, 2048)

    def held(name: str) -> dict[str, Any]:
        bench.load(name, "gpt_neo", "gpt_neo", folder)
        return bench.engine(name).ask("cache", name="gpt_neo", prompts=given)

    answers = bench.turns({name: partial(held, name) for name in bench.asked(OURS, *REFERENCES)}, rounds=1)
    result = Result("cache memory, 125 M, 2,048 tokens", "MB", False, medians(answers, lambda run: run["bytes"] / 1e6))
    result.limit = 2 * 4 * 768 * (6 * 2048 + 6 * 256) / 1e6
    _want_share(result, 0.6)
    return [result]


def _want_share(result: Result, bound: float) -> None:
    ours, theirs = result.figures.get(OURS), result.best_reference
    result.want_at_most("× the reference:", None if ours is None or theirs is None else ours / theirs, bound)


def training(bench: Bench) -> list[Result]:
    """Peak memory of a training step above the loaded model, each in a process of its own."""
    bench.stop()  # models of others would take the room
    folder = bench.checkpoint("gpt_neo", "neo-125m", **NEO)
    rows, length = (2, 256) if bench.quick else (8, 512)

    def step(name: str) -> dict[str, Any]:
        with bench.fresh(name) as engine:
            engine.ask("load", name="neo", family="gpt_neo", folder=folder)
            return engine.ask("train", name="neo", rows=rows, length=length)

    answers = bench.turns({name: partial(step, name) for name in bench.asked(OURS, *REFERENCES)}, rounds=1)
    result = Result(f"peak memory of a training step, 125 M, {rows} × {length}", "GB", False, {})
    result.figures = medians(answers, lambda run: run["peak"] / 1e9)
    _want_share(result, 0.5)
    seconds = (f"{KINDS[name].title} {runs[0]['seconds']:.1f} s" for name, runs in answers.items())
    losses = {round(runs[0]["loss"], 4) for runs in answers.values()}
    result.notes.append(f"One step each: {', '.join(seconds)}. Losses {'equal' if len(losses) == 1 else losses}.")
    return [result]


def loading(bench: Bench) -> list[Result]:
    """Seconds to load a checkpoint that is in the page cache, every weight touched; each in a process of its own."""
    bench.stop()
    shape = dataclasses.replace(NEO_1B, layers=4) if bench.quick else NEO_1B
    small = bench.checkpoint("gpt_neo", "neo-tiny", **Shape("tiny", "gpt_neo", 16, 2, 2, 50).fields)
    folder = bench.checkpoint("gpt_neo", f"neo-large-{shape.layers}", **shape.fields)
    os.sync()  # else it is still being written while it is read

    def load(name: str, **options: Any) -> dict[str, Any]:
        with bench.fresh(name) as engine:
            engine.ask("load", name="small", family="gpt_neo", folder=small, **options)  # imports what loading imports
            return engine.ask("load", name="large", family="gpt_neo", folder=folder, **options)

    work = {name: partial(load, name) for name in bench.asked(OURS, *REFERENCES)}
    answers = bench.turns(work | {"mapped": partial(load, OURS, low_cpu_mem_usage=True)})
    shutil.rmtree(folder)  # larger than all else together
    mapped = statistics.median(run["seconds"] for run in answers.pop("mapped"))
    weights = answers[OURS][0]["weights"]
    result = Result(f"load {weights / 1e9:.1f} GB, 1.3 B's shape", "s", False, medians(answers, lambda r: r["seconds"]))
    result.limit = weights / bench.limits["cpu"].bandwidth
    peaks = medians(answers, lambda run: run["peak"] / run["weights"])
    result.want_ratio(2, result.figures.get("reference"), KINDS["reference"].title)
    result.want_at_most("peak memory over the weights'", peaks[OURS], 1.1)
    others = (f"{KINDS[name].title} {peak:.2f}" for name, peak in peaks.items() if name != OURS)
    result.notes.append(f"Peak memory over the weights': {', '.join(others)}.")
    result.notes.append(
        "Transformers 5 leaves weights in the file, which must then stay as it is while the model lives; Triptych does "
        f"with low_cpu_mem_usage=True, in {mapped:.3f} s."
    )
    if result.reached == "no":
        result.notes.append(_WHY_NOT_FASTER)
    return [result]


_WHY_NOT_FASTER = (
    "What is left is the system's: on two cores of the machine where this was looked into, clearing 5.3 GB of new "
    "pages took 0.8 s, asked for in runs, and copying the weights into them 0.2 s. Tried without gain: parts of 0.5 to "
    "1,024 MB, four threads, copying from the map, a private map filled at once, memfd; huge pages took several times "
    "as long in that virtual machine. Mapping is not the default, as a file overwritten in place would change a live "
    "model."
)


def imports(bench: Bench) -> list[Result]:
    """Seconds of an import, above those of Python's own start."""
    packages = {OURS: "triptych"} | dict.fromkeys(REFERENCES, "transformers")
    commands = {name: [str(bench.pythons[name]), "-c", f"import {packages[name]}"] for name in bench.asked(*packages)}
    starts = {name: [command[0], "-c", "pass"] for name, command in commands.items()}
    rounds = min(bench.rounds, 3) + 1
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            times[name].append(_run(bench, command) - _run(bench, starts[name]))
    figures = {name: statistics.median(values[1:]) for name, values in times.items()}  # the first fills the caches
    result = Result("import", "s", False, figures)
    result.want_at_most("", figures[OURS], 0.1, " s")
    return [result]


def _run(bench: Bench, command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment(bench.threads))
    return time.perf_counter() - start


def first_token(bench: Bench) -> list[Result]:
    """Seconds from the start of `triptych generate` with the model in the box to the first new token on the screen."""
    times = []
    prompt = "Once upon a time there was a"
    command = [sys.executable, "-c", "from triptych.cli import main; main()", "generate", prompt, "--seed", "4"]
    for _ in range(bench.rounds + 1):
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment(bench.threads)
        )
        assert process.stdout is not None
        seen = b""
        while len(seen) <= len(prompt):
            part = os.read(process.stdout.fileno(), 4096)
            if not part:
                raise EngineError("triptych generate wrote nothing.")
            seen += part
        times.append(time.perf_counter() - start)
        process.kill()
        process.wait()
        process.stdout.close()
    result = Result("first token of `triptych generate`", "s", False, {OURS: statistics.median(times[1:])})
    result.want_at_most("", result.figures[OURS], 3, " s")
    return [result]


ALL = tuple(name for name in KINDS if name != OURS)


@dataclass(frozen=True)
class Row:
    """What measures some lines of the table, and the peers that it asks for.

    Where there is no GPU, a row that is `on_gpu` gives lines without figures.
    """

    measure: Callable[[Bench], list[Result]]
    peers: tuple[str, ...] = REFERENCES
    on_gpu: bool = False


ROWS = {
    "decode-1": Row(partial(decode, rows=1), ALL),
    "decode-8": Row(partial(decode, rows=8), ALL),
    "gpt": Row(gpt),
    "fuyu": Row(rows_built.fuyu_on_cpu, ("reference",)),
    "prefill": Row(prefill, (*REFERENCES, "openvino")),
    "cache": Row(cache),
    "training": Row(training),
    "loading": Row(loading),
    "import": Row(imports),
    "first-token": Row(first_token, ()),
    "gpu-decode-1": Row(partial(rows_built.decode, rows=1), on_gpu=True),
    "gpu-decode-8": Row(partial(rows_built.decode, rows=8), on_gpu=True),
    "gpu-quantized": Row(rows_built.quantized, (), on_gpu=True),
    "gpu-prefill": Row(rows_built.prefill, on_gpu=True),
    "gpu-fuyu": Row(rows_built.fuyu_on_gpu, ("reference",), on_gpu=True),
}
