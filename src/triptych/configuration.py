"""Configurations: the published fields of a model, as an object and as `config.json`.

Field names and defaults are those of the specification's configuration pages. A file is only data: keys that
start with `_` and keys that name code are dropped on load, all other unknown keys are kept.
"""

import copy
import json
import operator
import warnings
from pathlib import Path
from typing import Any, ClassVar, Self

from triptych import frameworks, hub
from triptych.files import read_json, staged_folder

CONFIG_NAME = "config.json"
# The release whose file format and field names this package reads and writes.
FORMAT_VERSION = "4.37.2"

# Fields every configuration has. Those of generation are here because old files keep them in config.json.
COMMON_FIELDS: dict[str, Any] = {
    "return_dict": True,
    "output_hidden_states": False,
    "output_attentions": False,
    "torchscript": False,
    "torch_dtype": None,
    "use_bfloat16": False,
    "tf_legacy_loss": False,
    "pruned_heads": {},
    "tie_word_embeddings": True,
    "chunk_size_feed_forward": 0,
    "is_encoder_decoder": False,
    "is_decoder": False,
    "cross_attention_hidden_size": None,
    "add_cross_attention": False,
    "tie_encoder_decoder": False,
    "architectures": None,
    "finetuning_task": None,
    "id2label": None,
    "label2id": None,
    "tokenizer_class": None,
    "prefix": None,
    "bos_token_id": None,
    "pad_token_id": None,
    "eos_token_id": None,
    "sep_token_id": None,
    "decoder_start_token_id": None,
    "task_specific_params": None,
    "problem_type": None,
}
GENERATION_FIELDS: dict[str, Any] = {
    "max_length": 20,
    "min_length": 0,
    "do_sample": False,
    "early_stopping": False,
    "num_beams": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "num_return_sequences": 1,
    "output_scores": False,
    "return_dict_in_generate": False,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "remove_invalid_values": False,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
# Keys of published files that point at Python code. Nothing from a checkpoint is ever run.
CODE_KEYS = frozenset({"auto_map", "custom_pipelines", "trust_remote_code"})
# No model comes near these. A damaged or hostile file could otherwise ask for all of the memory.
MAX_LAYERS = 10_000
MAX_LABELS = 1_000_000


class PretrainedConfig:
    """Base of the configurations.

    `attribute_map` gives other names of fields (`num_hidden_layers` of `num_layers`, say); both names read and
    write the one value. Keyword arguments that are no field are kept as attributes and in the file.

    Raises: ValueError for a `problem_type` that is none of the three documented ones.
    """

    model_type: ClassVar[str] = ""
    attribute_map: ClassVar[dict[str, str]] = {}
    is_composition: ClassVar[bool] = False

    def __init__(self, **kwargs: Any) -> None:
        fields = COMMON_FIELDS | GENERATION_FIELDS
        num_labels = kwargs.pop("num_labels", None)
        self._name_or_path = str(kwargs.pop("name_or_path", ""))
        self._attn_implementation: str | None = kwargs.pop("attn_implementation", None)
        kwargs.pop("model_type", None)
        kwargs.pop("transformers_version", None)
        for name, default in fields.items():
            if name not in ("id2label", "label2id"):
                setattr(self, name, kwargs.pop(name, copy.copy(default)))
        self.pruned_heads = _pruned_heads(vars(self)["pruned_heads"])
        self._set_labels(num_labels, kwargs.pop("id2label", None), kwargs.pop("label2id", None))
        if self.problem_type is not None and self.problem_type not in PROBLEM_TYPES:
            raise ValueError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}; got {self.problem_type!r}.")
        for name, value in kwargs.items():
            setattr(self, name, value)

    def _set_labels(self, num_labels: int | None, id2label: Any, label2id: Any) -> None:
        if id2label is None:
            self.num_labels = 2 if num_labels is None else num_labels
        else:
            if not isinstance(id2label, dict) or not id2label:
                raise ValueError(f"id2label must map 0, 1, … to the names of the labels; got {id2label!r}.")
            self.id2label = {int(key): value for key, value in id2label.items()}
            if num_labels is not None and num_labels != len(self.id2label):
                warnings.warn(
                    f"num_labels={num_labels} but id2label has {len(self.id2label)} entries; id2label is used.",
                    stacklevel=4,
                )
            self.label2id = {label: key for key, label in self.id2label.items()}
        if label2id is not None:
            self.label2id = dict(label2id)

    # -- fields with two names or a value that is derived ------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        """A field by its other name. Only asked when no attribute of that name is there."""
        target = type(self).attribute_map.get(name)
        if target is None:
            raise AttributeError(f"{type(self).__name__} has no field {name!r}.")
        return getattr(self, target)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field by either of its names."""
        super().__setattr__(type(self).attribute_map.get(name, name), value)

    @property
    def num_labels(self) -> int:
        """How many classes a classification head has: the length of `id2label`."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        require_positive_ints(num_labels=count)
        if count > MAX_LABELS:
            raise ValueError(f"num_labels must be at most {MAX_LABELS:,}; got {count:,}.")
        if len(self.__dict__.get("id2label", ())) != count:
            self.id2label = {index: f"LABEL_{index}" for index in range(count)}
            self.label2id = {label: index for index, label in self.id2label.items()}

    @property
    def torch_dtype(self) -> Any:
        """The dtype the weights were saved in: a torch.dtype where torch is installed, else its name.

        Raises: ValueError when torch has no dtype of that name.
        """
        name = self.__dict__.get("_torch_dtype")
        if name is None or not frameworks.is_available("torch"):
            return name
        torch = frameworks.load("torch")
        dtype = getattr(torch, name, None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(
                f"torch_dtype must name a dtype of torch, such as 'float16'; got {name!r}. Correct config.json."
            )
        return dtype

    @torch_dtype.setter
    def torch_dtype(self, value: Any) -> None:
        self._torch_dtype = None if value is None else str(value).removeprefix("torch.")

    @property
    def name_or_path(self) -> str:
        """Where the configuration was loaded from; never written to a file."""
        return self._name_or_path

    @name_or_path.setter
    def name_or_path(self, value: str) -> None:
        self._name_or_path = str(value)

    @property
    def use_return_dict(self) -> bool:
        """Whether `forward` returns an output object rather than a tuple when not told."""
        return bool(self.return_dict) and not self.torchscript

    # -- as a dict and as JSON -------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Every field, with `model_type`; a deep copy that JSON can hold."""
        fields = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        fields["torch_dtype"] = self._torch_dtype
        fields["model_type"] = type(self).model_type
        fields["transformers_version"] = FORMAT_VERSION
        return copy.deepcopy(fields)

    def to_diff_dict(self) -> dict[str, Any]:
        """The fields that tell this configuration from the defaults: those that all families share, and its own."""
        common, own = PretrainedConfig().to_dict(), type(self)().to_dict()
        return {
            name: value
            for name, value in self.to_dict().items()
            if name == "transformers_version" or any(name not in d or value != d[name] for d in (common, own))
        }

    def to_json_string(self, use_diff: bool = True) -> str:
        """The JSON text of `config.json`, keys sorted."""
        fields = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(fields, indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | Path, use_diff: bool = True) -> None:
        """Write the JSON text to a file, whole or not at all."""
        path = Path(json_file_path)
        with staged_folder(path.parent) as staging:
            (staging / path.name).write_text(self.to_json_string(use_diff), encoding="utf-8")

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write `config.json` into a folder, which is made when missing.

        Raises: OSError when the folder cannot be written; ValueError for `push_to_hub`, which is not supported.
        """
        if push_to_hub:
            raise ValueError("push_to_hub is not supported. Upload the saved folder with `hf upload`.")
        self.to_json_file(Path(save_directory) / CONFIG_NAME)

    @classmethod
    def get_config_dict(cls, name_or_folder: str | Path, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The raw fields of a folder's, a hub name's or a JSON file's configuration, and the kwargs not used."""
        options = hub.pop_options(kwargs)
        if Path(name_or_folder).is_file():
            return read_json(Path(name_or_folder)), kwargs
        path = hub.resolve_file(name_or_folder, CONFIG_NAME, **options)
        fields = read_json(path)
        return fields, kwargs

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Read the configuration of a folder, a hub name or a JSON file.

        Keyword arguments that name fields replace the file's values. With `return_unused_kwargs=True` the result
        is (configuration, the keyword arguments that name no field).

        Raises: OSError when there is no such file, or it is not JSON.
        """
        fields, kwargs = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        found = fields.get("model_type")
        if found and cls.model_type and found != cls.model_type:
            warnings.warn(
                f"{pretrained_model_name_or_path} holds a {found!r} model, read here as {cls.model_type!r}; "
                "fields and weights may not fit.",
                stacklevel=2,
            )
        fields["name_or_path"] = str(pretrained_model_name_or_path)
        return cls.from_dict(fields, **kwargs)

    @classmethod
    def from_json_file(cls, json_file: str | Path) -> Self:
        """Read a configuration from a JSON file."""
        return cls._from_fields(read_json(Path(json_file)))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A configuration from its fields; keyword arguments that name fields replace them.

        With `return_unused_kwargs=True` the result is (configuration, the keyword arguments that name no field).
        """
        return_unused = kwargs.pop("return_unused_kwargs", False)
        known = set(cls().to_dict()) | set(cls.attribute_map) | {"num_labels", "attn_implementation"} | set(config_dict)
        overrides = {name: kwargs.pop(name) for name in list(kwargs) if name in known and not name.startswith("_")}
        fields = {cls.attribute_map.get(name, name): value for name, value in config_dict.items()}
        if "num_labels" in overrides and "id2label" not in overrides:
            count = overrides["num_labels"]
            if len(fields.get("id2label") or ()) != count:  # the file's labels no longer apply
                fields.pop("id2label", None)
                fields.pop("label2id", None)
        fields |= {cls.attribute_map.get(name, name): value for name, value in overrides.items()}
        config = cls._from_fields(fields)
        return (config, kwargs) if return_unused else config

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> Self:
        return cls(**data_only(cls, fields))

    def update(self, config_dict: dict[str, Any]) -> None:
        """Set several fields."""
        for name, value in config_dict.items():
            setattr(self, name, value)

    def __eq__(self, other: object) -> bool:
        """Equal when of one class and alike in every field."""
        return type(self) is type(other) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """The class and the fields that differ from the shared defaults."""
        return f"{type(self).__name__} {self.to_json_string()}"


def data_only(owner: type, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a file without those that start with `_`, name code or would hide a method of the class."""

    def is_method(name: str) -> bool:
        found = getattr(owner, name, None)
        return callable(found) or (isinstance(found, property) and found.fset is None)

    return {k: v for k, v in fields.items() if not (k.startswith("_") or k in CODE_KEYS or is_method(k))}


def require_positive_ints(**values: Any) -> None:
    """Raises: ValueError naming the first field that is no positive int."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive int; got {value!r}.")


def positive_int(name: str, value: Any) -> int:
    """An argument as an int, where it is one (NumPy's too) and at least 1.

    Raises: ValueError for anything else.
    """
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"{name} must be a positive int; got {value!r}.")
    return number


def _pruned_heads(value: Any) -> dict[int, list[int]]:
    """{layer: heads}, whose layers JSON turns into text.

    Raises: ValueError when it is anything else.
    """
    try:
        pruned = {int(layer): sorted(map(int, heads)) for layer, heads in value.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"pruned_heads must be like {{layer: [heads]}}; got {value!r}.") from error
    return pruned
