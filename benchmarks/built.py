"""Models that every engine builds in place from the same random weights: their runs, and whether their ids agree."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bench import REFERENCES, Answers, Bench, Result, medians
from engines import KINDS, OURS
from shapes import Shape

COMPILED = f"{OURS} compiled"
FAR = 0.25  # deviations of the logits by which rounding may move the best id; a wrong one is some deviations off


@dataclass
class Runs:
    """What the engines answered in turns, and what they answered at first, when they prepare; `prompt` is what to."""

    bench: Bench
    shape: Shape
    prompt: dict[str, Any]
    first: Answers = field(default_factory=dict)
    answers: Answers = field(default_factory=dict)

    def report(self, line: Result, figure: Callable[[dict[str, Any]], float], compiled: bool = False) -> None:
        """Fill a line with medians, those of our own compiled engine if so, and say whether the ids are right."""
        ours = COMPILED if compiled else OURS
        figures = medians(self.answers, figure)
        line.figures = {name: value for name, value in figures.items() if name not in (OURS, COMPILED)}
        if ours not in figures:
            return
        line.figures[OURS] = figures[ours]
        first = self.first[ours][0]
        line.notes.append(f"The first call took {first['first'] + first['rest']:.2f} s.")
        self._judge(line, self.answers[ours][0]["ids"])

    def _judge(self, line: Result, ids: list[list[int]]) -> None:
        """Each id must be the best one, or as good as the best, by the logits of a reference: else by our own."""
        judge = next((name for name in REFERENCES if name in self.answers), OURS)
        if judge != OURS:
            theirs = self.answers[judge][0]["ids"]
            same = [a == b for mine, other in zip(ids, theirs, strict=True) for a, b in zip(mine, other, strict=True)]
            line.notes.append(f"{sum(same)} of {len(same)} ids are those of {KINDS[judge].title}.")
        far = self.bench.engine(judge).ask("regret", name=self.shape.title, ids=ids, **self.prompt)["regret"]
        line.want_at_most(f"ids below the best by {KINDS[judge].title}'s logits: σ", far, FAR)


def measured(
    bench: Bench,
    shape: Shape,
    device: str,
    dtype: str,
    new: int,
    peers: tuple[str, ...] = (),
    compiled: bool = False,
    quantization: str | None = None,
    **prompt: Any,
) -> Runs:
    """Let the engines continue a prompt in turns; models of earlier rows are let go of, as they would take the room."""
    bench.stop()
    runs = Runs(bench, shape, prompt)

    def continued(name: str) -> dict[str, Any]:
        bench.build(name, shape.title, shape, device, dtype)
        if quantization is not None:
            bench.once(name, "quantize", shape.title, kind=quantization)
        return bench.engine(name).ask("decode", name=shape.title, new=new, **prompt)

    def continued_compiled() -> dict[str, Any]:
        bench.build(OURS, shape.title, shape, device, dtype)
        bench.once(OURS, "compiled", COMPILED, source=shape.title)
        return bench.engine(OURS).ask("decode", name=COMPILED, new=new, **prompt)

    work = {name: partial(continued, name) for name in bench.asked(OURS, *peers)}
    if compiled:
        work[COMPILED] = continued_compiled
    runs.first = bench.turns(work, 1)
    runs.answers = bench.turns({name: work[name] for name in runs.first})
    return runs
