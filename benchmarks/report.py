"""The results as a page, BENCHMARKS.md, and as a picture, docs/benchmarks.png."""

import datetime
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import Bench, Result
from engines import KINDS, OURS
from results import Run
from rows import ROWS

ROOT = Path(__file__).parent.parent


def machine(bench: Bench, threads: int) -> dict[str, Any]:
    """What the figures were taken on, and what it can do at most."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((x.split(":")[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "limits": {
            device: bench.facts[device] | {"bandwidth": limits.bandwidth, "rate": limits.rate}
            for device, limits in bench.limits.items()
        },
    }


def limits(facts: dict[str, Any]) -> Iterator[str]:
    """A sentence for each device: what it is, and what it can do at most."""
    for device, can in facts["limits"].items():
        name = f"{facts['cpu']}, {facts['threads']} threads" if device == "cpu" else can.get("gpu", device)
        more = f" (driver {can['driver']}, CUDA {can['cuda']}; {can['clocks']})" if "gpu" in can else ""
        yield (
            f"{name}{more}: {can['bandwidth'] / 1e9:,.1f} GB/s in a stream, {can['rate'] / 1e9:,.0f} GFLOP/s in a "
            f"product of {can['dtype']} matrices."
        )


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
        fraction = "" if result.fraction is None else f"{result.fraction:.0%}"
        figures = [cell(result, name) for name in names]
        lines.append([result.title, result.unit, *figures, fraction, wanted, result.reached])
    return lines


def paragraph(result: Result) -> str:
    """One result for the screen."""
    figures = ", ".join(f"{KINDS[name].title} {cell(result, name)}" for name in KINDS if name in result.figures)
    limit = "" if result.limit is None else f"; limit {result.limit:.3g}"
    lines = [f"{result.title}, {result.unit}: {figures}{limit}"]
    words = {True: "reached", False: "MISSED", None: "not measured"}
    lines += [f"{words[ok]}: {text.strip()}" for text, ok in result.wanted]
    return "\n    ".join([*lines, *result.notes])


def write(runs: list[Run]) -> None:
    """BENCHMARKS.md and its picture."""
    lines = [line for run in runs for line in run.lines]
    (ROOT / "BENCHMARKS.md").write_text(page(runs, unmeasured(runs)))
    picture(lines, ROOT / "docs" / "benchmarks.png")


def unmeasured(runs: list[Run]) -> list[Result]:
    """The lines, without figures, of the rows of a GPU that no run has."""
    without = Bench({}, ROOT, 1, 1, False)  # which has no GPU, and asks no engine
    there = {name for run in runs for name in run.rows}
    return [line for name, row in ROWS.items() if row.on_gpu and name not in there for line in row.measure(without)]


def page(runs: list[Run], missing: list[Result]) -> str:
    """BENCHMARKS.md."""
    parts = [_INTRODUCTION, *map(section, runs)]
    if missing:
        parts.append(f"## Not measured\n\n{_NOT_MEASURED}\n{markdown(missing)}")
    return "\n".join(parts)


_INTRODUCTION = """\
# Benchmarks

Written by `make bench`. Within a run all engines take turns, with the same weights and prompts; figures are medians.
CTranslate2 has no GPT Neo and runs a GPT-2 of the same shape. "Of the limit" is against what the machine did in the
same run: weights read once a step, or the operations of the products, whichever takes longer; keys and values of the
tokens that layers can see; bytes of the weights.

![The figures as bars](docs/benchmarks.png)
"""

_NOT_MEASURED = "These rows need a GPU, and no figure is given from a machine that has none.\n"


def section(run: Run) -> str:
    """What one run measured."""
    facts = run.machine
    libraries = "\n".join(f"- {KINDS[name].title}: {version}" for name, version in run.versions.items())
    remarks = [f"- {result.title}: {note}" for result in run.lines for note in result.notes]
    remarks += [f"- {note}" for note in run.notes]
    said = "\n".join(["Remarks:", "", *remarks, ""]) if remarks else ""
    return f"""\
## {facts["date"]}, {facts["system"]}

{" ".join(limits(facts))}

{markdown(run.lines)}
{libraries}

{said}"""


def markdown(results: list[Result]) -> str:
    """A table."""
    lines = table(results)
    rule = ["---"] * len(lines[0])
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:])) + "\n"


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
