"""A watermark in written text: its settings. How it is written and found is in `watermarking_torch.py`.

Kirchenbauer et al., 2023, "A Watermark for Large Language Models" (arXiv:2301.10226) and "On the Reliability of
Watermarks for Large Language Models" (arXiv:2306.04634). Names and defaults are those of the later Transformers.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from triptych.errors import UnknownOptionError
from triptych.generation.checks import require_int, require_number

SCHEMES = ("lefthash", "selfhash")


@dataclass
class WatermarkingConfig:
    """How texts are marked: in every place a secret part of the vocabulary, the green list, becomes likelier.

    `greenlist_ratio` is the green share of the vocabulary, `bias` is added to green scores, and `hashing_key` is the
    secret. The list follows from the token before (`seeding_scheme="lefthash"`), or from the last `context_width`
    tokens with the new one (`"selfhash"`: harder to take out, slower to write).

    Raises: ValueError for a setting out of its range.
    """

    greenlist_ratio: float = 0.25
    bias: float = 2.0
    hashing_key: int = 15485863
    seeding_scheme: str = "lefthash"
    context_width: int = 1

    def __post_init__(self) -> None:
        """Check the settings."""
        self.validate()

    def validate(self) -> None:
        """Check the settings against their ranges.

        Raises: ValueError naming the first that is out of its range.
        """
        if self.seeding_scheme not in SCHEMES:
            raise ValueError(f"seeding_scheme must be one of {', '.join(SCHEMES)}; got {self.seeding_scheme!r}.")
        require_number("greenlist_ratio", self.greenlist_ratio, above=0.0)
        if self.greenlist_ratio >= 1.0:
            raise ValueError(f"greenlist_ratio is a share, above 0 and below 1; got {self.greenlist_ratio!r}.")
        require_number("bias", self.bias, least=float("-inf"))
        require_int("hashing_key", self.hashing_key, 1)
        require_int("context_width", self.context_width, 1)

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Self:
        """The settings of a dict; keyword arguments win.

        Raises: UnknownOptionError for a name that is no setting; ValueError for a setting out of its range.
        """
        given = {**config_dict, **kwargs}
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in given if name not in known]:
            raise UnknownOptionError(f"watermarking_config has the settings {', '.join(known)}; got {unknown[0]!r}.")
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """The settings by name."""
        return asdict(self)

    def to_json_string(self) -> str:
        """The settings as JSON text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def update(self, **kwargs: Any) -> None:
        """Change settings; other names are passed over.

        Raises: ValueError for a setting out of its range.
        """
        for name in self.to_dict().keys() & kwargs.keys():
            setattr(self, name, kwargs[name])
        self.validate()


def settings(given: Any) -> WatermarkingConfig:
    """The settings given as an object or a dict.

    Raises: TypeError for anything else, UnknownOptionError, ValueError.
    """
    if isinstance(given, WatermarkingConfig):
        given.validate()
        return given
    if isinstance(given, Mapping):
        return WatermarkingConfig.from_dict(given)
    raise TypeError(f"watermarking_config must be a WatermarkingConfig or a dict of its settings; got {given!r}.")
