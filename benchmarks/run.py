"""Triptych beside its peers, in one run: `make bench`, or

    python benchmarks/run.py --quick --rows decode-1 --rows prefill --peers reference

Every engine runs in an environment and a process of its own, and they take turns. Environments are made at the first
use, below `--folder`; one that exists can be named instead: `--python reference=/path/to/python`. Rows for a GPU run
where PyTorch finds one; `--write` keeps what other runs have measured of the other rows.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

import report
import results
from bench import Bench
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
    write: Annotated[
        bool, typer.Option(help="Write benchmarks/results.json, BENCHMARKS.md and docs/benchmarks.png.")
    ] = False,
) -> None:
    """Measure, and print what came out."""
    chosen, others = _known("--rows", rows, list(ROWS)), _known("--peers", peers, PEERS)
    folder = folder.resolve()
    models = folder / "models"
    models.mkdir(parents=True, exist_ok=True)
    bench = Bench({OURS: interpreter(OURS, folder)}, models, threads, 1 if quick else rounds, quick)
    try:
        bench.find_gpu()
        chosen = [name for name in chosen if bench.gpu or not ROWS[name].on_gpu]
        wanted = {peer for name in chosen for peer in ROWS[name].peers}
        given = dict(entry.split("=", 1) for entry in python or [])
        for name in (name for name in others if name in wanted):
            bench.pythons[name] = Path(given[name]) if name in given else interpreter(name, folder)
        versions = {name: _version(bench, name) for name in list(bench.pythons)}
        measured = _measured(bench, chosen)
    finally:
        bench.stop()
    run = results.Run(report.machine(bench, threads), versions, bench.notes, measured)
    if write:
        runs = results.with_newer(results.read(), run)
        results.write(runs)
        report.write(runs)
    if as_json:
        print(json.dumps(dataclasses.asdict(run), indent=2))
        return
    for sentence in report.limits(run.machine):
        print(sentence)
    for result in run.lines:
        print(report.paragraph(result))
    print(*bench.notes, sep="\n")


def _measured(bench: Bench, chosen: list[str]) -> dict[str, list[results.Result]]:
    """The lines of each row; a row that fails leaves a note."""
    measured = {}
    for name in chosen:
        print(f"{name} …", file=sys.stderr, flush=True)
        bench.measure_machine()
        if ROWS[name].on_gpu:
            bench.measure_machine(str(bench.gpu))
        try:
            measured[name] = ROWS[name].measure(bench)
        except EngineError as error:  # the other rows may still be had
            bench.notes.append(f"{name} was not measured: {error}")
    return measured


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
