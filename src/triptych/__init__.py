"""OpenAI GPT, GPT Neo and Fuyu, in PyTorch, TensorFlow and JAX.

`import triptych` imports no framework: each public name is imported when it is first used. The names and where
they live are listed in `__init__.pyi`.
"""

from typing import Any

import lazy_loader

__version__ = "0.1.0"

_import_name, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """Import a public name's module.

    Raises: ImportError naming the extra to install when the name needs a framework that is not here.
    """
    try:
        return _import_name(name)
    except ModuleNotFoundError as error:
        from triptych.frameworks import EXTRAS, missing

        if error.name not in EXTRAS:
            raise
        raise missing(error.name) from error
