"""A run: its engines, the models that they share, and the turns they take."""

import random
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines import OURS, Engine, EngineError

REFERENCES = ("reference", "transformers")  # the releases that a figure must beat, whichever is better
Answers = dict[str, list[dict[str, Any]]]
_VOCABULARY = 40_000  # the ids of prompts lie below it, and so in every family's vocabulary


@dataclass
class Result:
    """One row of the table: medians by engine, the machine's limit in the same unit, and what was to be reached."""

    title: str
    unit: str
    more_is_better: bool
    figures: dict[str, float]
    limit: float | None = None
    wanted: list[tuple[str, bool]] = field(default_factory=list)  # (target and figure, reached)
    notes: list[str] = field(default_factory=list)

    def want_ratio(self, bound: float, over: float | None = None, name: str = "the reference") -> None:
        """To be `bound` times as good as the better of the references, or as the figure `over`."""
        ours, peers = self.figures.get(OURS), [self.figures[n] for n in REFERENCES if n in self.figures]
        if over is None and peers:
            over = (max if self.more_is_better else min)(peers)
        if ours is not None and over is not None:
            ratio = ours / over if self.more_is_better else over / ours
            self.wanted.append((f"{bound:g} × {name}: {ratio:.2f} ×", ratio >= bound))

    def want_at_most(self, what: str, value: float | None, bound: float, unit: str = "") -> None:
        """That a figure is not larger than `bound`."""
        if value is not None:
            self.wanted.append((f"{what} {bound:g}{unit} at most: {value:.3g}{unit}", value <= bound))

    def want_fraction(self, bound: float) -> None:
        """To reach this part of the machine's limit."""
        if self.fraction is not None:
            self.wanted.append((f"{bound:.0%} of the limit: {self.fraction:.0%}", self.fraction >= bound))

    @property
    def fraction(self) -> float | None:
        """How much of the limit is reached."""
        if self.limit is None or OURS not in self.figures:
            return None
        return self.figures[OURS] / self.limit if self.more_is_better else self.limit / self.figures[OURS]


class Bench:
    """The engines of a run, started when first needed; `folder` is where they find their models."""

    def __init__(self, pythons: dict[str, Path], folder: Path, threads: int, rounds: int, quick: bool) -> None:
        self.pythons, self.folder, self.threads = pythons, folder, threads
        self.rounds, self.quick = rounds, quick
        self.bandwidth = self.rate = 0.0
        self.notes: list[str] = []  # why an engine has no figure
        self._engines: dict[str, Engine] = {}
        self._held: set[tuple[str, str]] = set()

    def engine(self, name: str) -> Engine:
        """The long-lived process of an engine."""
        if name not in self._engines:
            self._engines[name] = Engine(name, self.pythons[name], self.threads)
        return self._engines[name]

    @contextmanager
    def fresh(self, name: str) -> Iterator[Engine]:
        """A process of its own, for what must not depend on what came before."""
        engine = Engine(name, self.pythons[name], self.threads)
        try:
            yield engine
        finally:
            engine.stop()

    def stop(self) -> None:
        """End all processes, and so let go of their models."""
        for engine in self._engines.values():
            engine.stop()
        self._engines.clear()
        self._held.clear()

    def asked(self, *names: str) -> list[str]:
        """Those of the named engines that take part in this run."""
        return [name for name in names if name in self.pythons]

    def measure_machine(self) -> None:
        """Ask what the machine can do; the best answer so far counts, as work beside makes it look slower only."""
        answer = self.engine(OURS).ask("machine")
        self.bandwidth, self.rate = max(self.bandwidth, answer["bandwidth"]), max(self.rate, answer["rate"])

    def checkpoint(self, family: str, name: str, **fields: Any) -> str:
        """The folder of a model with random weights, which all engines load."""
        folder = self.folder / name
        if not (folder / "config.json").exists():
            with self.fresh(OURS) as engine:
                engine.ask("make", family=family, folder=str(folder), fields=fields)
        return str(folder)

    def load(self, name: str, model: str, family: str, folder: str, **options: Any) -> None:
        """Have an engine hold a checkpoint under a name."""
        if (name, model) not in self._held:
            self.engine(name).ask("load", name=model, family=family, folder=folder, threads=self.threads, **options)
            self._held.add((name, model))

    def turns(self, work: dict[str, Callable[[], dict[str, Any]]], rounds: int | None = None) -> Answers:
        """The answers of each engine, in turns. One that fails leaves a note and is not asked again."""
        answers: Answers = {name: [] for name in work}
        for _ in range(rounds or self.rounds):
            for name in list(answers):
                try:
                    answers[name].append(work[name]())
                except EngineError as error:
                    self.notes.append(f"{name} gave no figure: {error}")
                    del answers[name]
        return answers


def prompts(rows: int, length: int) -> list[list[int]]:
    """Random ids, the same in every run."""
    source = random.Random(length)
    return [[source.randrange(_VOCABULARY) for _ in range(length)] for _ in range(rows)]


def medians(answers: Answers, figure: Callable[[dict[str, Any]], float]) -> dict[str, float]:
    """The middle figure of each engine's runs."""
    return {name: statistics.median(map(figure, runs)) for name, runs in answers.items()}
