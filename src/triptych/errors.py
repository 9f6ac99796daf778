"""The exceptions of this package.

    TriptychError
    ├── CheckpointError (OSError)           a file of a checkpoint is missing, damaged or unsafe
    │   ├── InvalidFileError (ValueError)   … because its text is not what its format asks for
    │   ├── MissingFileError (FileNotFoundError) … because it is not there
    │   └── UnsafeFileError                 … because it holds code
    ├── ImageError (OSError, ValueError)    a picture that cannot be read, or that is none
    ├── LabelError (IndexError, ValueError) a label that is no class of the model
    ├── SaveError (OSError)                 a file could not be written; what was there before still is
    ├── SequenceTooLongError (ValueError)   more tokens than the model has positions
    ├── TokenIdError (IndexError, ValueError) an id outside the vocabulary
    ├── UnknownOptionError (TypeError, ValueError) a keyword argument that nothing takes
    └── WeightMismatchError (RuntimeError, ValueError) a tensor of the checkpoint has another shape than the model's

    GenerationWarning (UserWarning)         a default that `generate` had to choose, or options without effect
    LoadingWarning (UserWarning)            weights that were missing, unexpected or newly initialised

Each is also the built-in exception that callers would expect, so `except ValueError` keeps working. Messages
state the rule, what was got, and the remedy.
"""


class TriptychError(Exception):
    """Base of every exception that only this package raises."""


class CheckpointError(TriptychError, OSError):
    """A file of a checkpoint is missing, damaged or not what it says it is."""


class InvalidFileError(CheckpointError, ValueError):
    """A file is there, but its text does not follow its format."""


class MissingFileError(CheckpointError, FileNotFoundError):
    """A file that is needed is neither in the folder nor on the hub (nor in its cache, when offline)."""


class UnsafeFileError(CheckpointError):
    """A file of a checkpoint holds code, which is never run."""


class ImageError(TriptychError, OSError, ValueError):
    """A picture is damaged, too large, or has no pixels that a model could see."""


class LabelError(TriptychError, IndexError, ValueError):
    """A label is none of the model's classes."""


class SaveError(TriptychError, OSError):
    """Files could not be written; what the target held before is still there."""


class SequenceTooLongError(TriptychError, ValueError):
    """The tokens do not fit into the positions that the model has."""


class TokenIdError(TriptychError, IndexError, ValueError):
    """A token id lies outside the vocabulary."""


class UnknownOptionError(TriptychError, TypeError, ValueError):
    """A keyword argument has a name that nothing takes."""


class WeightMismatchError(TriptychError, RuntimeError, ValueError):
    """Tensors of the checkpoint have other shapes than the model's parameters."""


class GenerationWarning(UserWarning):
    """`generate` chose a default that may surprise, or was given options that have no effect."""


class LoadingWarning(UserWarning):
    """Weights were missing, unexpected or newly initialised while loading."""
