"""The engines that `run.py` compares: their environments, made on demand, and their processes."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REQUIREMENTS = HERE.parent / "requirements"
SOURCE = HERE.parent.parent / "src"


@dataclass(frozen=True)
class Kind:
    """An engine: its script with arguments, and packages that its requirements bring but that must not stay."""

    title: str
    script: tuple[str, ...]
    unwanted: tuple[str, ...] = ()


OURS = "triptych"
KINDS = {
    OURS: Kind("Triptych", ("pytorch.py", "triptych")),
    "reference": Kind("Transformers 4.37", ("pytorch.py", "transformers")),
    "transformers": Kind("Transformers 5", ("pytorch.py", "transformers")),
    "ctranslate2": Kind("CTranslate2 (GPT-2)", ("ctranslate2_gpt2.py",)),
    # its torchvision need not fit the PyTorch that is there, and then nothing can be imported
    "openvino": Kind("OpenVINO", ("openvino_gpt_neo.py",), unwanted=("torchvision",)),
}


class EngineError(RuntimeError):
    """An engine could not do what it was asked; the message is its own."""


def interpreter(name: str, folder: Path) -> Path:
    """The Python of an engine's environment below `folder`, which is made if it is not there."""
    if name == OURS:
        return Path(sys.executable)
    home, ready = folder / name, folder / name / "ready"
    python = home / "bin" / "python"
    if not ready.exists():
        print(f"Setting {name} up in {home}: several minutes, once.", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        install = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "install", "-r", str(REQUIREMENTS / f"{name}.txt")], check=True)
        if unwanted := KINDS[name].unwanted:
            subprocess.run([*install, "uninstall", "--yes", *unwanted], check=True)
        ready.touch()
    return python


@dataclass
class Engine:
    """A process of one engine, which waits for requests while the others work."""

    name: str
    python: Path
    threads: int
    process: Any = field(init=False)

    def __post_init__(self) -> None:
        """Start the process."""
        script, *arguments = KINDS[self.name].script
        self.process = subprocess.Popen(
            [str(self.python), str(HERE / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment(self.threads),
        )

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one request.

        Raises: EngineError with the engine's own message.
        """
        try:
            self.process.stdin.write(json.dumps({"do": operation} | arguments) + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline() or '{"error": "the process ended"}')
        except BrokenPipeError:
            answer = {"error": "the process ended"}
        if "error" in answer:
            raise EngineError(answer["error"])
        return dict(answer)

    def stop(self) -> None:
        """End the process."""
        with self.process:  # which closes its pipes, and waits
            pass


def environment(threads: int) -> dict[str, str]:
    """What every engine's process is started with."""
    quiet = {"HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "TOKENIZERS_PARALLELISM": "false"}
    return os.environ | quiet | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(SOURCE)}
