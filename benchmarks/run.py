"""Triptych beside its peers, in one run: `make bench`, or

    python benchmarks/run.py --quick --rows decode-1 --rows prefill --peers reference

Every engine runs in an environment and a process of its own, and they take turns. Environments are made at the first
use, below `--folder`; one that exists can be named instead: `--python reference=/path/to/python`.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

import report
from bench import Bench, Result
from engines import KINDS, OURS, EngineError, interpreter
from rows import ROWS

PEERS = [name for name in KINDS if name != OURS]


def main(
    rows: Annotated[list[str] | None, typer.Option(help=f"Some of {', '.join(ROWS)}; all if not given.")] = None,
    peers: Annotated[list[str] | None, typer.Option(help=f"Some of {', '.join(PEERS)}; all if not given.")] = None,
    python: Annotated[list[str] | None, typer.Option(help="NAME=PYTHON of a peer's own environment.")] = None,
    folder: Annotated[Path, typer.Option(help="For environments and models; may be kept.")] = Path(".bench"),
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    threads: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
    quick: Annotated[
        bool, typer.Option(help="Fewer turns and smaller work: to try the harness, not to quote.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
    write: Annotated[bool, typer.Option(help="Write BENCHMARKS.md and docs/benchmarks.png.")] = False,
) -> None:
    """Measure, and print what came out."""
    chosen, others = _known("--rows", rows, list(ROWS)), _known("--peers", peers, PEERS)
    given = dict(entry.split("=", 1) for entry in python or [])
    folder = folder.resolve()
    pythons = {name: Path(given[name]) if name in given else interpreter(name, folder) for name in [OURS, *others]}
    models = folder / "models"
    models.mkdir(parents=True, exist_ok=True)
    bench = Bench(pythons, models, threads, 1 if quick else rounds, quick)
    results: list[Result] = []
    try:
        versions = {name: _version(bench, name) for name in list(pythons)}
        for name in chosen:
            print(f"{name} …", file=sys.stderr, flush=True)
            bench.measure_machine()
            try:
                results += ROWS[name](bench)
            except EngineError as error:  # the other rows may still be had
                bench.notes.append(f"{name} was not measured: {error}")
    finally:
        bench.stop()
    facts = report.machine(bench.bandwidth, bench.rate, threads)
    if write:
        (report.ROOT / "BENCHMARKS.md").write_text(report.page(results, facts, versions, bench.notes))
        report.picture(results, report.ROOT / "docs" / "benchmarks.png")
    if as_json:
        rows_of = [dataclasses.asdict(result) | {"fraction": result.fraction} for result in results]
        print(json.dumps({"machine": facts, "versions": versions, "rows": rows_of, "notes": bench.notes}, indent=2))
        return
    print(f"{facts['bandwidth'] / 1e9:.1f} GB/s, {facts['rate'] / 1e9:.0f} GFLOP/s, {threads} threads")
    for result in results:
        print(report.paragraph(result))
    print(*bench.notes, sep="\n")


def _known(option: str, asked: list[str] | None, known: list[str]) -> list[str]:
    wrong = [name for name in asked or () if name not in known]
    if wrong:
        raise typer.BadParameter(f"{option} must be some of {', '.join(known)}; got {wrong[0]}.")
    return [name for name in known if not asked or name in asked]


def _version(bench: Bench, name: str) -> str:
    """The engine's versions; an engine that cannot even start takes no part."""
    try:
        if name == "ctranslate2" and not (bench.folder / "ctranslate2").exists():
            bench.engine(name).ask("make", folder=str(bench.folder))
        answer = bench.engine(name).ask("versions")
    except EngineError as error:
        del bench.pythons[name]
        bench.notes.append(f"{KINDS[name].title} takes no part: {error}")
        return "does not run"
    return ", ".join(str(value) for value in answer.values())


if __name__ == "__main__":
    typer.run(main)
