"""The curves of a training run as a picture."""

import csv
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt


def draw(logs: Path, names: Sequence[str], picture: Path, unit: str) -> None:
    """The columns `names` of Lightning's CSV files, one for each start of the run, against the step, as a PNG."""
    files = sorted(logs.glob("version_*/metrics.csv"))
    rows = [row for file in files for row in csv.DictReader(file.open(encoding="utf-8"))]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name in names:
        points = sorted((int(row["step"]), float(row[name])) for row in rows if row.get(name))
        if points:
            style = {"lw": 0.8} if len(points) > 50 else {"marker": "o", "ms": 3}
            axes.plot(*zip(*points, strict=True), label=name.replace("_", " "), **style)
    axes.set(xlabel="step", ylabel=unit)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=120)
