"""A run: its engines, the models that they share, and the turns they take."""

import random
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines import OURS, Engine, EngineError
from shapes import Shape

REFERENCES = ("reference", "transformers")  # the releases that a figure must beat, whichever is better
Answers = dict[str, list[dict[str, Any]]]
_VOCABULARY = 40_000  # the ids of prompts lie below it, and so in every family's vocabulary


@dataclass(frozen=True)
class Limits:
    """What a device can do: bytes of memory per second, and operations per second of a product of matrices."""

    bandwidth: float
    rate: float

    def tokens_per_second(self, weights: int, rows: int, bytes_each: float) -> float:
        """What streaming the weights once a step, and the products, would allow."""
        return rows / max(weights * bytes_each / self.bandwidth, 2 * weights * rows / self.rate)


@dataclass
class Result:
    """One line of the table: medians by engine, the machine's limit in the same unit, and what was to be reached.

    A line without figures says what would be measured and reached.
    """

    title: str
    unit: str
    more_is_better: bool
    figures: dict[str, float] = field(default_factory=dict)
    limit: float | None = None
    wanted: list[tuple[str, bool | None]] = field(default_factory=list)  # (target and figure, reached; None: not known)
    notes: list[str] = field(default_factory=list)

    def want_ratio(self, bound: float, over: float | None = None, name: str = "the reference") -> None:
        """To be `bound` times as good as the better of the references, or as the figure `over`."""
        ours, target = self.figures.get(OURS), f"{bound:g} × {name}"
        if over is None:
            over = self.best_reference
        if ours is None or over is None:
            self.wanted.append((target, None))
            return
        ratio = ours / over if self.more_is_better else over / ours
        self.wanted.append((f"{target}: {ratio:.2f} ×", ratio >= bound))

    def want_at_most(self, what: str, value: float | None, bound: float, unit: str = "") -> None:
        """That a figure is not larger than `bound`."""
        target = f"{what} {bound:g}{unit} at most".strip()
        self.wanted.append((target, None) if value is None else (f"{target}: {value:.3g}{unit}", value <= bound))

    def want_fraction(self, bound: float) -> None:
        """To reach this part of the machine's limit."""
        target, got = f"{bound:.0%} of the limit", self.fraction
        self.wanted.append((target, None) if got is None else (f"{target}: {got:.0%}", got >= bound))

    @property
    def best_reference(self) -> float | None:
        """The figure of the better of the references."""
        figures = [self.figures[name] for name in REFERENCES if name in self.figures]
        return (max if self.more_is_better else min)(figures, default=None)

    @property
    def reached(self) -> str:
        """Whether all of the targets are: "yes", "no", "not measured", or "" where there are none."""
        verdicts = {verdict for _, verdict in self.wanted}
        if OURS not in self.figures:
            return "not measured"
        return "no" if False in verdicts else "not measured" if None in verdicts else "yes" if verdicts else ""

    @property
    def fraction(self) -> float | None:
        """How much of the limit is reached."""
        if self.limit is None or OURS not in self.figures:
            return None
        return self.figures[OURS] / self.limit if self.more_is_better else self.limit / self.figures[OURS]


class Bench:
    """The engines of a run, started when first needed; `folder` is where they find their models.

    `gpu` is the device of the rows that want one, "cuda"; None where the machine has none.
    """

    gpu: str | None = None

    def __init__(self, pythons: dict[str, Path], folder: Path, threads: int, rounds: int, quick: bool) -> None:
        self.pythons, self.folder, self.threads = pythons, folder, threads
        self.rounds, self.quick = rounds, quick
        self.limits: dict[str, Limits] = {}  # by device
        self._part = 1
        self.facts: dict[str, dict[str, Any]] = {}  # what else a device says about itself
        self.notes: list[str] = []  # why an engine has no figure
        self._engines: dict[str, Engine] = {}
        self._held: set[tuple[str, str]] = set()  # engine, and what it did to a model

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

    def find_gpu(self) -> None:
        """Have the rows that want a GPU run, if our own PyTorch can use one."""
        self.gpu = "cuda" if "cuda" in self.engine(OURS).ask("what_there_is")["devices"] else None

    def measure_machine(self, device: str = "cpu", part: int = 1) -> None:
        """Ask what a device can do; the best answer so far counts, as work beside makes it look slower only."""
        self._part = part
        answer = self.engine(OURS).ask("machine", device=device, part=part)
        before = self.limits.get(device, Limits(0.0, 0.0))
        bandwidth, rate = answer.pop("bandwidth"), answer.pop("rate")
        self.limits[device] = Limits(max(before.bandwidth, bandwidth), max(before.rate, rate))
        self.facts[device] = answer

    def checkpoint(self, family: str, name: str, **fields: Any) -> str:
        """The folder of a model with random weights, which all engines load."""
        folder = self.folder / name
        if not (folder / "config.json").exists():
            with self.fresh(OURS) as engine:
                engine.ask("make", family=family, folder=str(folder), fields=fields)
        return str(folder)

    def load(self, name: str, model: str, family: str, folder: str, **options: Any) -> None:
        """Have an engine hold a checkpoint under a name."""
        self.once(name, "load", model, family=family, folder=folder, threads=self.threads, **options)

    def build(self, name: str, model: str, shape: Shape, device: str, dtype: str) -> None:
        """Have an engine make a model of random weights where it shall be, under a name."""
        options = {"family": shape.family, "fields": shape.fields, "device": device, "dtype": dtype}
        self.once(name, "build", model, **options)

    def once(self, name: str, operation: str, model: str, **arguments: Any) -> None:
        """Have an engine do something to a model, if it has not done it yet."""
        done = (name, f"{operation} {model}")
        if done not in self._held:
            self.engine(name).ask(operation, name=model, **arguments)
            self._held.add(done)

    def turns(self, work: dict[str, Callable[[], dict[str, Any]]], rounds: int | None = None) -> Answers:
        """The answers of each engine, in turns. One that fails leaves a note and is not asked again.

        Each round begins with another engine, as what an engine leaves behind is not the same to all that follow it.
        """
        answers: Answers = {name: [] for name in work}
        for first in range(rounds or self.rounds):
            names = list(answers)
            first %= max(len(names), 1)
            for name in names[first:] + names[:first]:
                try:
                    answers[name].append(work[name]())
                except EngineError as error:
                    self.notes.append(f"{name} gave no figure: {error}")
                    del answers[name]
        for device in self.limits:  # a machine may have become quicker since, and then its limit did too
            self.measure_machine(device, self._part)
        return answers


def prompts(rows: int, length: int, vocabulary: int = _VOCABULARY) -> list[list[int]]:
    """Random ids, the same in every run."""
    source = random.Random(length)
    return [[source.randrange(vocabulary) for _ in range(length)] for _ in range(rows)]


def medians(answers: Answers, figure: Callable[[dict[str, Any]], float]) -> dict[str, float]:
    """The middle figure of each engine's runs."""
    return {name: statistics.median(map(figure, runs)) for name, runs in answers.items()}
