"""What several test files need."""

import importlib.util
import io
import os
import sys
from pathlib import Path

import pytest

from triptych import cli

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may touch the network
if importlib.util.find_spec("torch"):  # each framework's tests pass without the others
    import torch

    torch.set_num_threads(1)  # the models are too small to be shared out among threads

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of outputs recorded from the reference."""
    return GOLDEN


@pytest.fixture
def run(monkeypatch, capsys):
    """`run(*ARGUMENTS)` does what `triptych ARGUMENTS` does, and gives back what it wrote to stdout and stderr."""

    def run(*arguments, stdin="", code=0):
        monkeypatch.setattr(sys, "argv", ["triptych", *map(str, arguments)])
        monkeypatch.setattr(
            sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin if isinstance(stdin, bytes) else stdin.encode()))
        )
        try:
            cli.main()
            got = 0
        except SystemExit as done:
            got = done.code or 0
        written = capsys.readouterr()
        assert got == code, written.err
        return written

    return run
