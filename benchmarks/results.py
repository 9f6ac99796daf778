"""What was measured, kept in results.json: each row as it was last measured, with its machine and versions."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import Result

PATH = Path(__file__).parent / "results.json"


@dataclass
class Run:
    """What one call of the program measured: on what machine, with which versions, and the lines of each row."""

    machine: dict[str, Any]
    versions: dict[str, str]
    notes: list[str]
    rows: dict[str, list[Result]]

    @property
    def lines(self) -> list[Result]:
        """The lines of all rows."""
        return [line for lines in self.rows.values() for line in lines]


def read(path: Path = PATH) -> list[Run]:
    """The runs so far; none where there is no such file."""
    if not path.exists():
        return []
    runs = [Run(**entry) for entry in json.loads(path.read_text())]
    for run in runs:
        run.rows = {name: [_result(line) for line in lines] for name, lines in run.rows.items()}
    return runs


def _result(line: dict[str, Any]) -> Result:
    return Result(**line | {"wanted": [(text, reached) for text, reached in line["wanted"]]})


def write(runs: list[Run], path: Path = PATH) -> None:
    """Keep the runs."""
    path.write_text(json.dumps([dataclasses.asdict(run) for run in runs], indent=1) + "\n")


def with_newer(runs: list[Run], newer: Run) -> list[Run]:
    """All runs, without what the newer one has measured again, and that one."""
    kept = []
    for run in runs:
        rows = {name: lines for name, lines in run.rows.items() if name not in newer.rows}
        if rows:
            kept.append(dataclasses.replace(run, rows=rows))
    return [*kept, newer] if newer.rows else kept
