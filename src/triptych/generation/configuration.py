"""`GenerationConfig`: the options of `generate` as an object and as `generation_config.json`.

Names and defaults are those of the documented version (4.37), but for ADDITIONS. The order below is the documented one:
length, strategy, cache, logits, outputs, special tokens, encoder-decoder, assistance.
"""

import copy
import json
import os
import warnings
from pathlib import Path
from typing import Any, Self

from triptych import hub
from triptych.configuration import FORMAT_VERSION, data_only
from triptych.files import read_json, staged_folder
from triptych.generation import strategies
from triptych.generation.watermarking import WatermarkingConfig

GENERATION_CONFIG_NAME = "generation_config.json"

# Options that the documented version does not have.
ADDITIONS = frozenset(
    {"stop_strings", "min_p", "max_matching_ngram_size", "json_schema", "regex", "watermarking_config"}
)
_METADATA = ("_from_model_config", "transformers_version")
# Arguments of `generate` that are objects of one call, not settings.
CALL_ARGUMENTS = (
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "synced_gpus",
    "assistant_model",
    "streamer",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
)


class GenerationConfig:
    """The options of `generate` (documentation page "Generation"); unknown keyword arguments are kept as attributes.

    `max_length` counts the prompt, `max_new_tokens` does not and wins over it. `top_k=0`, `top_p=1.0` and None
    switch a filter off. `stop_strings` (a text or a list of texts) ends a row once its new text holds one of them.
    `json_schema` (text, dict or pydantic model class) or `regex` is what the new text follows. `watermarking_config` (a
    `WatermarkingConfig`, or its dict) marks the text for a `WatermarkDetector`.

    Raises: ValueError when options contradict each other (`check`); a UserWarning names options without effect.
    """

    max_length: int = 20
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    early_stopping: bool | str = False
    max_time: float | None = None
    stop_strings: str | list[str] | None = None

    do_sample: bool = False
    num_beams: int = 1
    num_beam_groups: int = 1
    penalty_alpha: float | None = None
    use_cache: bool = True

    temperature: float | None = 1.0
    top_k: int | None = 50
    top_p: float | None = 1.0
    min_p: float | None = None
    typical_p: float | None = 1.0
    epsilon_cutoff: float | None = 0.0
    eta_cutoff: float | None = 0.0
    diversity_penalty: float = 0.0
    repetition_penalty: float | None = 1.0
    encoder_repetition_penalty: float | None = 1.0
    length_penalty: float = 1.0
    no_repeat_ngram_size: int | None = 0
    bad_words_ids: list[list[int]] | None = None
    force_words_ids: list[Any] | None = None
    renormalize_logits: bool = False
    constraints: list[Any] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | list[int] | None = None
    remove_invalid_values: bool = False
    exponential_decay_length_penalty: tuple[int, float] | None = None
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    forced_decoder_ids: list[list[int | None]] | None = None
    sequence_bias: Any = None
    guidance_scale: float | None = None
    json_schema: Any = None
    regex: str | None = None
    watermarking_config: Any = None
    low_memory: bool | None = None

    num_return_sequences: int = 1
    output_attentions: bool = False
    output_hidden_states: bool = False
    output_scores: bool = False
    return_dict_in_generate: bool = False

    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    encoder_no_repeat_ngram_size: int | None = 0
    decoder_start_token_id: int | None = None

    num_assistant_tokens: int = 5
    num_assistant_tokens_schedule: str = "heuristic"
    prompt_lookup_num_tokens: int | None = None
    max_matching_ngram_size: int | None = None

    generation_kwargs: dict[str, Any]

    _as_made: str | None = None  # the options' text when made from a model's configuration

    def __init__(self, **kwargs: Any) -> None:
        for name in FIELDS:
            setattr(self, name, kwargs.pop(name, DEFAULTS[name]))
        self.generation_kwargs = dict(kwargs.pop("generation_kwargs", None) or {})
        self._from_model_config: bool = bool(kwargs.pop("_from_model_config", False))
        self.transformers_version: str = kwargs.pop("transformers_version", FORMAT_VERSION)
        kwargs.pop("_commit_hash", None)
        for name, value in kwargs.items():
            setattr(self, name, value)
        self.validate(is_init=True)

    # -- checks ------------------------------------------------------------------------------------------------

    def validate(self, is_init: bool = False) -> None:
        """Check the options against each other.

        Raises: ValueError as `check` does. One UserWarning names the options that have no effect beside the others.
        """
        self.check()
        changed = {name: getattr(self, name) for name in FIELDS if getattr(self, name) not in (None, DEFAULTS[name])}
        useless = " ".join(strategies.without_effect(self, {}, changed, settings_alone=True))
        if useless:
            where = " The generation config was made (or its file written) with this." if is_init else ""
            warnings.warn(useless + where, stacklevel=3 if is_init else 2)

    def check(self) -> None:
        """Refuse options that exclude each other or belong to the call of `generate`.

        Raises: ValueError.
        """
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(f"early_stopping must be True, False or 'never'; got {self.early_stopping!r}.")
        misplaced = [name for name in CALL_ARGUMENTS if hasattr(self, name)]
        if misplaced:
            raise ValueError(
                f"A GenerationConfig holds settings, and {', '.join(misplaced)} is an argument of one call. "
                "Pass it to generate()."
            )
        if self.num_return_sequences == 1:
            return
        if self.num_beams == 1 and self.do_sample is False:
            raise ValueError(
                "Greedy decoding gives one sequence per prompt, so num_return_sequences must be 1; "
                f"got {self.num_return_sequences}. Pass do_sample=True to draw several."
            )
        if 1 < self.num_beams < self.num_return_sequences:
            raise ValueError(
                f"num_return_sequences must not exceed num_beams ({self.num_beams}); got {self.num_return_sequences}."
            )

    # -- files -------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name: str | os.PathLike[str],
        config_file_name: str | os.PathLike[str] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str = "main",
        **kwargs: Any,
    ) -> Any:
        """Read the options of a folder or a hub name; keyword arguments replace and extend the file's.

        With `return_unused_kwargs=True` the result is (options, {}): every keyword argument is an option.

        Raises: OSError when there is no such file, or it is not JSON.
        """
        options = hub.pop_options(kwargs)
        options["cache_dir"] = cache_dir
        options["force_download"] = force_download
        options["local_files_only"] = local_files_only
        options["revision"] = revision
        options["token"] = token if token is not None else options["token"]
        path = hub.resolve_file(pretrained_model_name, os.fspath(config_file_name or GENERATION_CONFIG_NAME), **options)
        return cls.from_dict(read_json(str(path)), **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        config_file_name: str | os.PathLike[str] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write `generation_config.json`, whole or not at all, into a folder, which is made when missing.

        Raises: ValueError when `validate` finds fault, as whoever loads the file would inherit it, and for
            `push_to_hub`, which is not supported; OSError when the folder cannot be written.
        """
        if push_to_hub:
            raise ValueError("push_to_hub is not supported. Upload the saved folder with `hf upload`.")
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            self.validate()
        if found:
            raise ValueError(
                "Only options that fit each other are saved. " + " ".join(str(warning.message) for warning in found)
            )
        self.to_json_file(Path(save_directory) / os.fspath(config_file_name or GENERATION_CONFIG_NAME))

    # -- as a dict and as JSON -----------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The options of a dict; keyword arguments replace and extend it, unknown ones are kept.

        With `return_unused_kwargs=True` the result is (options, {}): every keyword argument is an option.
        """
        return_unused = kwargs.pop("return_unused_kwargs", False)
        kept = data_only(cls, config_dict)
        origin = {name: config_dict[name] for name in ("_from_model_config",) if name in config_dict}
        config = cls(**(kept | origin | kwargs))
        return (config, {}) if return_unused else config

    @classmethod
    def from_model_config(cls, model_config: Any) -> Self:
        """The options that old files keep in a model's `config.json`, and those of its `text_config` where it has one.

        The result remembers what it was made with: until it is changed itself, `generate` follows later changes of
        the model's configuration, as old scripts need.
        """
        found = {name: value for name, value in model_config.to_dict().items() if name in DEFAULTS}
        text_config = getattr(model_config, "text_config", None)
        if text_config is not None:
            inner = text_config if isinstance(text_config, dict) else text_config.to_dict()
            unset = [name for name in DEFAULTS if found.get(name, DEFAULTS[name]) == DEFAULTS[name]]
            found |= {name: inner[name] for name in unset if name in inner}
        config = cls(**found, _from_model_config=True)
        config._as_made = config._options_text()
        return config

    def is_as_made_from_model_config(self) -> bool:
        """Whether `from_model_config` made it and no option was changed since."""
        return self._as_made is not None and self._as_made == self._options_text()

    def _options_text(self) -> str:
        fields = {name: value for name, value in self.to_dict().items() if name not in _METADATA}
        return json.dumps(fields, sort_keys=True, default=_told)

    def to_dict(self) -> dict[str, Any]:
        """Every option, as a deep copy that JSON can hold: a dict in `sequence_bias` becomes [[ids, bias], …]."""
        fields = {name: copy.deepcopy(value) for name, value in vars(self).items() if name != "_as_made"}
        fields["transformers_version"] = FORMAT_VERSION
        if hasattr(self.json_schema, "model_json_schema"):
            fields["json_schema"] = self.json_schema.model_json_schema()
        if isinstance(self.watermarking_config, WatermarkingConfig):
            fields["watermarking_config"] = self.watermarking_config.to_dict()
        if isinstance(self.sequence_bias, dict):
            fields["sequence_bias"] = [[list(ids), bias] for ids, bias in self.sequence_bias.items()]
        return fields

    def to_diff_dict(self) -> dict[str, Any]:
        """The options that differ from the defaults, the unknown ones, and the format's version."""
        defaults = GenerationConfig().to_dict() | {"transformers_version": None}
        return {k: v for k, v in self.to_dict().items() if k not in defaults or v != defaults[k]}

    def to_json_string(self, use_diff: bool = True, ignore_metadata: bool = False) -> str:
        """The text of `generation_config.json`, keys sorted; metadata are the version and the origin.

        Raises: ValueError for an option whose value is an object.
        """
        fields = self.to_diff_dict() if use_diff else self.to_dict()
        if ignore_metadata:
            for name in _METADATA:
                fields.pop(name, None)
        try:
            return json.dumps(fields, indent=2, sort_keys=True) + "\n"
        except TypeError as error:
            raise ValueError(
                f"Options are written as JSON, which has no room for all of these: {error}. "
                "Pass objects to generate(), and words as force_words_ids."
            ) from error

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Write the JSON text to a file, whole or not at all."""
        path = Path(json_file_path)
        with staged_folder(path.parent) as staging:
            (staging / path.name).write_text(self.to_json_string(use_diff), encoding="utf-8", newline="\n")

    def update(self, **kwargs: Any) -> dict[str, Any]:
        """Set the options among the keyword arguments; returns the others."""
        known = {name for name in kwargs if name in vars(self)}  # not the methods' names
        vars(self).update({name: kwargs[name] for name in known})
        return {name: value for name, value in kwargs.items() if name not in known}

    def __eq__(self, other: object) -> bool:
        """Equal when every option is; versions and origins do not count."""
        if not isinstance(other, GenerationConfig):
            return False
        return self._options_text() == other._options_text()

    __hash__ = None  # type: ignore[assignment]  # options can be changed

    def __repr__(self) -> str:
        """The class and the options that differ from the defaults."""
        fields = {name: value for name, value in self.to_diff_dict().items() if name not in _METADATA}
        return f"{type(self).__name__} {json.dumps(fields, indent=2, sort_keys=True, default=_told)}\n"


def _told(value: Any) -> str:
    """An object that JSON has no room for, by its kind and what it holds."""
    return f"{type(value).__name__}({getattr(value, '__dict__', repr(value))})"


# The documented options and their defaults, read off the class; `generation_kwargs` is a fresh dict each time.
FIELDS: tuple[str, ...] = tuple(
    name for name in GenerationConfig.__annotations__ if name not in ("generation_kwargs", "_as_made")
)
DEFAULTS: dict[str, Any] = {name: getattr(GenerationConfig, name) for name in FIELDS}
