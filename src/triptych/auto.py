"""From a configuration's `model_type` to the classes of its family, through one table.

A family is one row; classes are imported when they are first asked for. No code ever comes from a checkpoint.
"""

import importlib
from pathlib import Path
from typing import Any, ClassVar

from triptych import hub
from triptych.configuration import PretrainedConfig
from triptych.errors import MissingFileError
from triptych.files import read_json

# model_type -> what each Auto class stands for, as names of the package
FAMILIES: dict[str, dict[str, str]] = {
    "fuyu": {
        "AutoConfig": "FuyuConfig",
        "AutoImageProcessor": "FuyuImageProcessor",
        "AutoModelForCausalLM": "FuyuForCausalLM",
        "AutoProcessor": "FuyuProcessor",
        "AutoTokenizer": "LlamaTokenizer",
    },
    "gpt_neo": {
        "AutoConfig": "GPTNeoConfig",
        "AutoTokenizer": "GPT2Tokenizer",
        "AutoModel": "GPTNeoModel",
        "AutoModelForCausalLM": "GPTNeoForCausalLM",
        "AutoModelForQuestionAnswering": "GPTNeoForQuestionAnswering",
        "AutoModelForSequenceClassification": "GPTNeoForSequenceClassification",
        "AutoModelForTokenClassification": "GPTNeoForTokenClassification",
        "FlaxAutoModel": "FlaxGPTNeoModel",
        "FlaxAutoModelForCausalLM": "FlaxGPTNeoForCausalLM",
    },
    "openai-gpt": {
        "AutoConfig": "OpenAIGPTConfig",
        "AutoTokenizer": "OpenAIGPTTokenizer",
        "AutoModel": "OpenAIGPTModel",
        "AutoModelForCausalLM": "OpenAIGPTLMHeadModel",
        "AutoModelForSequenceClassification": "OpenAIGPTForSequenceClassification",
        "TFAutoModel": "TFOpenAIGPTModel",
        "TFAutoModelForCausalLM": "TFOpenAIGPTLMHeadModel",
        "TFAutoModelForSequenceClassification": "TFOpenAIGPTForSequenceClassification",
    },
    "persimmon": {
        "AutoConfig": "PersimmonConfig",
        "AutoTokenizer": "LlamaTokenizer",
        "AutoModel": "PersimmonModel",
        "AutoModelForCausalLM": "PersimmonForCausalLM",
    },
}
# By the names without "Fast". PreTrainedTokenizer is any that was built with `tokenizers`, and fast only.
ANY_TOKENIZER = "PreTrainedTokenizer"
TOKENIZERS = sorted({row["AutoTokenizer"] for row in FAMILIES.values()} | {ANY_TOKENIZER})


def _public(name: str) -> Any:
    return getattr(importlib.import_module("triptych"), name)


def _class_for(auto: str, model_type: str | None, where: object) -> Any:
    row = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if row is None:
        raise ValueError(
            f"The model_type in config.json must be one of {', '.join(FAMILIES)}; {where} has {model_type!r}."
        )
    if auto not in row:
        able = ", ".join(family for family, names in FAMILIES.items() if auto in names)
        raise ValueError(f"{auto} is there for {able}; {where} is a {model_type!r} model.")
    return _public(row[auto])


class _Auto:
    """Base of the Auto classes, which are never made themselves."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError(
            f"{type(self).__name__} only finds the right class. Use {type(self).__name__}.from_pretrained(...)."
        )


class AutoConfig(_Auto):
    """The configuration class of a family, by `model_type`."""

    @classmethod
    def for_model(cls, model_type: str, **kwargs: Any) -> Any:
        """A new configuration of a family."""
        return _class_for("AutoConfig", model_type, "the argument")(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Read `config.json` of a folder or a hub name into its family's configuration class.

        Raises: ValueError when the family is not one of this package's; OSError when there is no such file.
        """
        fields, _ = PretrainedConfig.get_config_dict(pretrained_model_name_or_path, **kwargs)
        config_class = _class_for("AutoConfig", fields.get("model_type"), pretrained_model_name_or_path)
        return config_class.from_pretrained(pretrained_model_name_or_path, **kwargs)


class AutoTokenizer(_Auto):
    """The tokenizer class of a folder or a hub name."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *inputs: Any, use_fast: bool = True, **kwargs: Any
    ) -> Any:
        """Load the tokenizer that `tokenizer_config.json` names, else the one of the family in `config.json`.

        The fast one, over `tokenizers`, unless `use_fast` is False; `tokenizer_type` (a model_type) and `config`
        choose the family without a look at the files.

        Raises: ValueError when the class is not one of this package's; OSError when there are no such files.
        """
        config = kwargs.pop("config", None)
        family = kwargs.pop("tokenizer_type", None) or getattr(config, "model_type", None)
        name = None if family else cls._class_in_files(pretrained_model_name_or_path, dict(kwargs))
        if name is None:
            if family is None:
                found = AutoConfig.from_pretrained(pretrained_model_name_or_path, **hub.pop_options(dict(kwargs)))
                family = found.model_type
            name = FAMILIES.get(family, {}).get("AutoTokenizer", family)
        plain = name.removesuffix("Fast")
        if plain not in TOKENIZERS:
            raise ValueError(f"The tokenizer must be one of {', '.join(TOKENIZERS)}; got {name!r}.")
        chosen = _public(plain + "Fast" * (use_fast or plain == ANY_TOKENIZER))
        return chosen.from_pretrained(pretrained_model_name_or_path, *inputs, **kwargs)

    @classmethod
    def _class_in_files(cls, name_or_folder: str | Path, kwargs: dict[str, Any]) -> str | None:
        options = hub.pop_options(kwargs)
        for file in ("tokenizer_config.json", "config.json"):
            try:
                path = hub.resolve_file(name_or_folder, file, **options)
            except MissingFileError:
                continue
            name = read_json(path).get("tokenizer_class")
            if name is not None:
                return str(name)
        return None


class _AutoFromFile(_Auto):
    """Base of the Auto classes whose class is named in `preprocessor_config.json`, else by the family."""

    key: ClassVar[str]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Load what `preprocessor_config.json` names, else what the family in `config.json` has.

        Raises: ValueError when the class is not one of this package's; OSError when there are no such files.
        """
        options = hub.pop_options(dict(kwargs))
        path = hub.resolve_file(pretrained_model_name_or_path, "preprocessor_config.json", required=False, **options)
        name = read_json(path).get(cls.key) if path is not None else None
        known = [row[cls.__name__] for row in FAMILIES.values() if cls.__name__ in row]
        if name is None:
            family = AutoConfig.from_pretrained(pretrained_model_name_or_path, **options).model_type
            chosen = _class_for(cls.__name__, family, pretrained_model_name_or_path)
        elif name in known:
            chosen = _public(name)
        else:
            raise ValueError(f"{cls.key} in {path} must be one of {', '.join(known)}; got {name!r}.")
        return chosen.from_pretrained(pretrained_model_name_or_path, **kwargs)


class AutoImageProcessor(_AutoFromFile):
    """The image processor of a folder or a hub name."""

    key = "image_processor_type"


class AutoProcessor(_AutoFromFile):
    """The processor, text and images together, of a folder or a hub name."""

    key = "processor_class"


class _AutoModel(_Auto):
    """Base of the Auto classes for models; the row's column is the class's own name."""

    @classmethod
    def from_config(cls, config: PretrainedConfig, **kwargs: Any) -> Any:
        """A model with new weights; `torch_dtype` and `attn_implementation` as in `from_pretrained`."""
        return _class_for(cls.__name__, config.model_type, "the configuration")._from_config(config, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *model_args: Any, **kwargs: Any) -> Any:
        """Load the model of a folder or a hub name; options as in `PreTrainedModel.from_pretrained`.

        Raises: ValueError when the family is not one of this package's or has no such head.
        """
        config = kwargs.get("config")
        if isinstance(config, PretrainedConfig):
            model_type: str | None = config.model_type
        else:
            source = config if config is not None else pretrained_model_name_or_path
            fields, _ = PretrainedConfig.get_config_dict(source, **dict(kwargs))
            model_type = fields.get("model_type")
        model_class = _class_for(cls.__name__, model_type, pretrained_model_name_or_path)
        return model_class.from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)


class AutoModel(_AutoModel):
    """The bare model of a family."""


class AutoModelForCausalLM(_AutoModel):
    """The model of a family with a language model head."""


class AutoModelForQuestionAnswering(_AutoModel):
    """The model of a family with a head for the span of an answer."""


class AutoModelForSequenceClassification(_AutoModel):
    """The model of a family with a head for whole sequences."""


class AutoModelForTokenClassification(_AutoModel):
    """The model of a family with a head for each token."""


class FlaxAutoModel(_AutoModel):
    """The bare model of a family, in Flax."""


class FlaxAutoModelForCausalLM(_AutoModel):
    """The model of a family with a language model head, in Flax."""


class TFAutoModel(_AutoModel):
    """The bare model of a family, in TensorFlow."""


class TFAutoModelForCausalLM(_AutoModel):
    """The model of a family with a language model head, in TensorFlow."""


class TFAutoModelForSequenceClassification(_AutoModel):
    """The model of a family with a head for whole sequences, in TensorFlow."""
