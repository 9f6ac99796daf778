"""How long `import triptych` and `triptych --help` take, each in a fresh process, beside Python's own start.

python benchmarks/import_time.py [--peer PYTHON]     PYTHON: an interpreter that has transformers
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def seconds(command: list[str]) -> float:
    """Wall time of one run of a command."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main(
    peer: Annotated[Path | None, typer.Option(help="Interpreter that has transformers.")] = None,
    runs: int = 11,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Medians over several runs, the commands taken in turn."""
    commands = {
        "python": [sys.executable, "-c", "pass"],
        "import triptych": [sys.executable, "-c", "import triptych"],
        "triptych --help": [str(Path(sys.executable).parent / "triptych"), "--help"],
    }
    if peer:
        commands["peer: import transformers"] = [str(peer), "-c", "import transformers"]
    for command in commands.values():
        seconds(command)  # fills the caches
    times = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            times[name].append(seconds(command))
    medians = {name: statistics.median(values) for name, values in times.items()}
    if as_json:
        print(json.dumps(medians))
        return
    table = Table("command", "median", "more than Python's start")
    for name, value in medians.items():
        table.add_row(name, f"{1000 * value:.0f} ms", f"{1000 * (value - medians['python']):.0f} ms")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
