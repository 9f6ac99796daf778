"""The small models that ship inside the package, loaded by name without the network.

AutoModelForCausalLM.from_pretrained("triptych/tales-neo")
"""

from pathlib import Path

from triptych.errors import MissingFileError

OWNER = "triptych"
DEFAULT = f"{OWNER}/tales-neo"
_HERE = Path(__file__).parent


def names() -> list[str]:
    """The models in the box, as `from_pretrained` takes them."""
    return sorted(f"{OWNER}/{path.parent.name}" for path in _HERE.glob("*/config.json"))


def folder(name: str) -> Path | None:
    """The folder of a model in the box; None for a name that is not of theirs.

    Raises: MissingFileError for a name of their owner's that none of them has, which no hub is asked for.
    """
    if name in names():
        return _HERE / name.partition("/")[2]
    if name.startswith(f"{OWNER}/"):
        raise MissingFileError(f"The models in the box are {', '.join(names())}; got {name}.")
    return None
