"""The results as a page, BENCHMARKS.md, and as a picture, docs/benchmarks.png."""

import datetime
import platform
from pathlib import Path
from typing import Any

from bench import Result
from engines import KINDS, OURS

ROOT = Path(__file__).parent.parent
_NOT_MEASURED = """\
Not measured: the rows that want an H100 (decode of 1.3 B and 2.7 B in bfloat16; Fuyu-8B's shape with one image). They
need a GPU, and no figure is given from a machine that has none.
"""


def machine(bandwidth: float, rate: float, threads: int) -> dict[str, Any]:
    """What the figures were taken on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((x.split(":")[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "threads": threads,
        "bandwidth": bandwidth,
        "rate": rate,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def cell(result: Result, name: str) -> str:
    """One figure with the digits that it deserves."""
    figure = result.figures.get(name)
    return "" if figure is None else f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"


def table(results: list[Result]) -> list[list[str]]:
    """Header and lines, as text."""
    names = [name for name in KINDS if any(name in result.figures for result in results)]
    lines = [["", "unit", *(KINDS[name].title for name in names), "of the limit", "to reach: got", "reached"]]
    for result in results:
        wanted = "; ".join(text.strip() for text, _ in result.wanted)
        reached = "" if not result.wanted else "yes" if all(ok for _, ok in result.wanted) else "no"
        fraction = "" if result.fraction is None else f"{result.fraction:.0%}"
        figures = [cell(result, name) for name in names]
        lines.append([result.title, result.unit, *figures, fraction, wanted, reached or "not measured"])
    return lines


def paragraph(result: Result) -> str:
    """One result for the screen."""
    figures = ", ".join(f"{KINDS[name].title} {cell(result, name)}" for name in KINDS if name in result.figures)
    limit = "" if result.limit is None else f"; limit {result.limit:.3g}"
    lines = [f"{result.title}, {result.unit}: {figures}{limit}"]
    lines += [f"{'reached' if ok else 'MISSED'}: {text.strip()}" for text, ok in result.wanted]
    return "\n    ".join([*lines, *result.notes])


def page(results: list[Result], facts: dict[str, Any], versions: dict[str, str], notes: list[str]) -> str:
    """BENCHMARKS.md."""
    lines = table(results)
    rule = ["---"] * len(lines[0])
    rows = "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))
    libraries = "\n".join(f"- {KINDS[name].title}: {version}" for name, version in versions.items())
    remarks = "\n".join(f"- {result.title}: {note}" for result in results for note in result.notes)
    remarks += "".join(f"\n- {note}" for note in notes)
    return f"""\
# Benchmarks

Written by `make bench` on {facts["date"]}. All engines take turns in one run, with the same weights and prompts on
{facts["threads"]} threads; figures are medians. CTranslate2 has no GPT Neo and runs a GPT-2 of the same shape.

![The figures as bars](docs/benchmarks.png)

{rows}

The machine, measured in the same run: {facts["cpu"]}, {facts["threads"]} threads, {facts["bandwidth"] / 1e9:.1f} GB/s
read in a stream, {facts["rate"] / 1e9:.0f} GFLOP/s in a float32 product of matrices; {facts["system"]}. "Of the limit"
is against these: weights read once a step, or the operations of the products, whichever takes longer; keys and values
of the tokens that layers can see; bytes of the weights.

{libraries}

## Remarks

{remarks}

{_NOT_MEASURED}"""


def picture(results: list[Result], path: Path) -> None:
    """How each engine does in each row, as a share of the best; longer bars are better."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [result for result in results if len(result.figures) > 1 and OURS in result.figures]
    if not shown:
        return
    names = [name for name in KINDS if any(name in result.figures for result in shown)]
    figure, axes = plt.subplots(figsize=(9, 0.85 * len(shown) + 1.2), layout="constrained")
    height = 0.8 / len(names)
    for index, name in enumerate(names):
        for row, result in enumerate(shown):
            if name not in result.figures:
                continue
            values = result.figures
            best = max(values.values()) if result.more_is_better else min(values.values())
            share = values[name] / best if result.more_is_better else best / values[name]
            place = row + (index - (len(names) - 1) / 2) * height
            label = KINDS[name].title if row == next(r for r, s in enumerate(shown) if name in s.figures) else None
            axes.barh(place, share, height * 0.9, color=f"C{index}", label=label)
            axes.text(share + 0.01, place, f"{cell(result, name)} {result.unit}", va="center", fontsize=7)
    axes.set_yticks(range(len(shown)), [result.title for result in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25)
    axes.set_xticks([])
    axes.set_xlabel("longer is better; each row by itself")
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(names), fontsize=8, frameon=False)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
