"""Which frameworks and optional libraries are here, and how to install the ones that are not.

Framework-free modules ask this one for a framework when they must make one of its tensors; nothing is
imported before it is asked for.
"""

import importlib
import importlib.util
from types import ModuleType

# module name -> the extra of this package that brings it
EXTRAS = {
    "torch": "torch",
    "accelerate": "device-map",
    "torchao": "quantization",
    "tensorflow": "tf",
    "h5py": "tf",
    "keras": "tf",
    "jax": "flax",
    "flax": "flax",
    "msgpack": "flax",
    "llguidance": "grammar",
    "ftfy": "openai-gpt",
    "spacy": "openai-gpt",
    "PIL": "fuyu",
    "sentencepiece": "fuyu",
    "lightning": "train",
    "matplotlib": "train",
}


def is_available(name: str) -> bool:
    """Whether the library can be imported; does not import it."""
    return importlib.util.find_spec(name) is not None


def load(name: str) -> ModuleType:
    """Import an optional library, or a module of one, by its name.

    Raises: ImportError naming the extra to install when the library is missing. A library that is there
        but fails to import raises its own error.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        library = name.partition(".")[0]
        if error.name not in (name, library):
            raise
        raise missing(library) from error


def missing(name: str) -> ImportError:
    """The error that tells how to install a library."""
    extra = EXTRAS.get(name)
    remedy = f'pip install "triptych[{extra}]"' if extra else f"pip install {name}"
    return ImportError(f"This needs {name}, which is not installed. Run: {remedy}", name=name)
