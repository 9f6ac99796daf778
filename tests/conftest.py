"""What several test files need."""

import os
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may touch the network
torch.set_num_threads(1)  # the models are too small to be shared out among threads

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of outputs recorded from the reference."""
    return GOLDEN
