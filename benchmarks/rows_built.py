"""The rows of GPUs, and Fuyu's on a CPU: every engine builds the same model of random weights in place.

A row that wants a GPU gives its lines on any machine; where there is none they have no figures.
"""

from collections.abc import Iterable
from typing import Any

from bench import REFERENCES, Bench, Result, prompts
from built import Runs, measured
from engines import OURS
from shapes import FUYU_8B, FUYU_SMALL, NEO_1B, NEO_2B, Shape

DTYPE = "bfloat16"  # of the rows of GPUs
BITS = {"int8": 1.0, "int4": 0.5}  # bytes of a weight


def decode(bench: Bench, rows: int, shapes: Iterable[Shape] = (NEO_1B, NEO_2B)) -> list[Result]:
    """New tokens a second behind a prompt of 32, all rows together: as it is, and with the step compiled."""
    new, lines = _new_tokens(bench), []
    for shape in shapes:
        title = f"decode, {shape.title}, {DTYPE}, {rows} row{'s' * (rows > 1)}"
        pair = [Result(title, "tokens/s", True), Result(f"{title}, compiled", "tokens/s", True)]
        if bench.gpu:
            given = prompts(rows, 32, shape.vocabulary)
            runs = measured(bench, shape, bench.gpu, DTYPE, new, REFERENCES, compiled=True, prompts=given)
            for line, compiled in zip(pair, (False, True), strict=True):
                runs.report(line, lambda run: rows * (new - 1) / run["rest"], compiled)
                line.limit = bench.limits[bench.gpu].tokens_per_second(shape.matrices + shape.head, rows, 2)
        if rows == 1:
            for line in pair:
                line.want_fraction(0.75)
                line.want_ratio(10)
        lines += pair
    return lines


def prefill(bench: Bench, shape: Shape = NEO_1B, length: int = 1024) -> list[Result]:
    """Milliseconds until the first token behind a long prompt."""
    line = Result(f"prefill, {shape.title}, {DTYPE}, {length:,} tokens", "ms", False)
    if bench.gpu:
        given = prompts(1, length, shape.vocabulary)
        runs = measured(bench, shape, bench.gpu, DTYPE, 1, REFERENCES, prompts=given)
        runs.report(line, lambda run: 1000 * run["first"])
        line.limit = 1000 * shape.prefill_operations(length) / bench.limits[bench.gpu].rate
    return [line]


def quantized(bench: Bench, shape: Shape = NEO_1B) -> list[Result]:
    """New tokens a second with weights of 8 and 4 bits, and what they do to a trained model's perplexity."""
    new, lines = _new_tokens(bench), []
    for kind, bytes_each in BITS.items():
        line = Result(f"decode, {shape.title}, {kind} in {DTYPE}, 1 row", "tokens/s", True)
        if bench.gpu:
            given = prompts(1, 32, shape.vocabulary)
            runs = measured(bench, shape, bench.gpu, DTYPE, new, quantization=kind, prompts=given)
            runs.report(line, lambda run: (new - 1) / run["rest"])
            line.limit = bench.limits[bench.gpu].tokens_per_second(shape.matrices + shape.head, 1, bytes_each)
            if OURS in line.figures:
                moved = _perplexity_moves(bench, kind, bench.gpu)
                line.notes.append(f"The perplexity of tales-neo is off by {moved:.3g} %.")
        lines.append(line)
    return lines


def _perplexity_moves(bench: Bench, kind: str, device: str) -> float:
    """By how many per cent weights of fewer bits change the perplexity of the model in the box, in texts of its own."""
    engine = bench.engine(OURS)
    engine.ask("load", name="tales", family="gpt_neo", folder="triptych/tales-neo", device=device, torch_dtype=DTYPE)
    texts = engine.ask("write", name="tales", rows=8, new=20 if bench.quick else 200)["ids"]
    before = engine.ask("perplexity", name="tales", texts=texts)["perplexity"]
    engine.ask("quantize", name="tales", kind=kind)
    after = engine.ask("perplexity", name="tales", texts=texts)["perplexity"]
    return float(100 * abs(after / before - 1))


def fuyu_on_gpu(bench: Bench, shape: Shape = FUYU_8B, size: tuple[int, int] = (1080, 1920)) -> list[Result]:
    """Seconds for 64 new tokens behind a picture and eight words: as it is, and with the step compiled."""
    new = _new_tokens(bench)
    title = f"{shape.title}, {DTYPE}, one {size[0]} × {size[1]} image, {new} new tokens"
    pair = [Result(title, "s", False), Result(f"{title}, compiled", "s", False)]
    if bench.gpu:
        runs = _with_picture(bench, shape, bench.gpu, DTYPE, new, size, compiled=True)
        for line, compiled in zip(pair, (False, True), strict=True):
            runs.report(line, _whole, compiled)
            line.limit = _limit_with_picture(bench, shape, bench.gpu, 2, new, size)
    for line in pair:
        line.want_ratio(3)
    return pair


def fuyu_on_cpu(bench: Bench, shape: Shape = FUYU_SMALL, size: tuple[int, int] = (300, 300)) -> list[Result]:
    """Seconds for 32 new tokens behind a picture and eight words."""
    new = 8 if bench.quick else 32
    line = Result(f"{shape.title}, float32, one {size[0]} × {size[1]} image, {new} new tokens", "s", False)
    _with_picture(bench, shape, "cpu", "float32", new, size, compiled=False).report(line, _whole)
    line.limit = _limit_with_picture(bench, shape, "cpu", 4, new, size)
    return [line]


def _with_picture(
    bench: Bench, shape: Shape, device: str, dtype: str, new: int, size: tuple[int, int], compiled: bool
) -> Runs:
    return measured(bench, shape, device, dtype, new, ("reference",), compiled, picture=_picture(size))


def _limit_with_picture(
    bench: Bench, shape: Shape, device: str, bytes_each: int, new: int, size: tuple[int, int]
) -> float:
    """Seconds of one pass over the prompt, and of a step for each token behind the first."""
    limits, picture = bench.limits[device], _picture(size)
    length = picture["rows"] * (picture["columns"] + 1) + picture["words"]
    steps = (new - 1) / limits.tokens_per_second(shape.matrices + shape.head, 1, bytes_each)
    return shape.prefill_operations(length) / limits.rate + steps


def _picture(size: tuple[int, int]) -> dict[str, int]:
    """Patches of 30 × 30 pixels, as the release has them."""
    return {"rows": -(-size[0] // 30), "columns": -(-size[1] // 30), "words": 8}


def _whole(run: dict[str, Any]) -> float:
    return float(run["first"] + run["rest"])


def _new_tokens(bench: Bench) -> int:
    return 16 if bench.quick else 64
