"""The base of the TensorFlow models: a Keras model with a configuration, weights on disk and the documented calls."""

import copy
from collections.abc import Callable, Mapping
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import keras
import optree
import tensorflow as tf

from triptych import outputs
from triptych.checkpoints import pretrained_tf
from triptych.configuration import PretrainedConfig, positive_int
from triptych.files import staged_folder
from triptych.generation import decoding_tf
from triptych.generation.configuration import GenerationConfig
from triptych.inputs_tf import by_name
from triptych.layers_tf import Embedding, Tensor, named_weights

_Output = TypeVar("_Output", bound=type[outputs.ModelOutput])

# What `call` takes that is no tensor.
_FLAGS = frozenset({"output_attentions", "output_hidden_states", "return_dict", "training"})


class TFPreTrainedModel(keras.Model):  # type: ignore[misc]  # Keras publishes no types
    """A Keras model whose weights are there from the start, named and shaped as in the published files.

    A family sets the class attributes and gives `call`. Inputs come in any of the documented forms: by keyword, in one
    list or tuple in their order, or in one dict.
    """

    config_class: ClassVar[type[PretrainedConfig]] = PretrainedConfig
    base_model_prefix: ClassVar[str] = ""
    main_input_name: ClassVar[str] = "input_ids"
    framework: ClassVar[str] = "tf"
    has_published_names: ClassVar[bool] = True
    _tied_weights: ClassVar[dict[str, str]] = {}  # published name that may be in a file → the one that stands for it
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = []

    generation_config: GenerationConfig | None

    def __init__(self, config: PretrainedConfig, *inputs: Any, **kwargs: Any) -> None:
        if not isinstance(config, self.config_class):
            raise TypeError(
                f"{type(self).__name__} is made from a {self.config_class.__name__}; got {type(config).__name__}. "
                f"To load weights by name, use {type(self).__name__}.from_pretrained(...)."
            )
        super().__init__(*inputs, **kwargs)
        self.config = config
        self.name_or_path = config.name_or_path
        self.generation_config = GenerationConfig.from_model_config(config) if self.can_generate() else None
        self.built = True

    # -- calls -------------------------------------------------------------------------------------------------

    def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        """See `call`: the inputs by keyword, in their order, in one list or tuple, or in one dict."""
        names = self._call_names
        flags = {name: kwargs.pop(name) for name in list(kwargs) if name in _FLAGS}
        unknown = [name for name in kwargs if name not in names]
        if unknown:
            raise TypeError(
                f"{type(self).__name__} takes {', '.join(names)}, {', '.join(sorted(_FLAGS))}; got "
                f"{', '.join(map(repr, unknown))}."
            )
        first, others = (inputs[0], inputs[1:]) if inputs else (None, ())
        given = by_name(names, first, others, kwargs)
        tensors = {
            name: value if isinstance(value, keras.KerasTensor) else tf.convert_to_tensor(value)
            for name, value in given.items()
        }
        return super().__call__(**tensors, **flags)

    @cached_property
    def _call_names(self) -> tuple[str, ...]:
        """The tensors that `call` takes, in their order."""
        return tuple(name for name in signature(type(self).call).parameters if name not in _FLAGS | {"self"})

    def _wants_dict(self, return_dict: bool | None) -> bool:
        return self.config.use_return_dict if return_dict is None else return_dict

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """A small batch to try the model on."""
        return {"input_ids": tf.reshape(tf.range(6) % self.config.vocab_size, [2, 3])}

    # -- training ----------------------------------------------------------------------------------------------

    def loss_of(self, logits: Tensor, labels: Any) -> Tensor:
        """The model's own loss, which `fit` uses where `compile` was given none."""
        raise TypeError(f"{type(self).__name__} has no loss of its own. Pass one: model.compile(loss=...).")

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Tensor:
        """The loss of a batch, for `fit` and `evaluate`: the one that `compile` was given, or the model's own.

        Labels are in `y`, or among the inputs as "labels".
        """
        labels = _labels_in(x, y)
        if self._has_loss_of_user:
            return super().compute_loss(x, labels, self._predicted(y_pred, labels), sample_weight, training)
        if labels is None:
            raise ValueError(
                'Training needs labels: among the inputs as "labels", or as the second part of each batch; got none.'
            )
        if sample_weight is not None:
            raise ValueError("The model's own loss takes no sample weights. Pass a loss: model.compile(loss=...).")
        found = y_pred.get("loss") if isinstance(y_pred, Mapping) else None
        loss = self.loss_of(self._predicted(y_pred, labels), labels) if found is None else found
        own = [tf.reduce_mean(loss), *self.losses]
        return tf.add_n([tf.cast(each, tf.float32) for each in own])

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """Metrics of `compile` compare the labels with the logits."""
        labels = _labels_in(x, y)
        if labels is None:
            return dict(self.get_metrics_result())
        metrics: dict[str, Any] = super().compute_metrics(x, labels, self._predicted(y_pred, labels), sample_weight)
        return metrics

    @property
    def _has_loss_of_user(self) -> bool:
        return getattr(self, "_compile_loss", None) is not None

    def _predicted(self, y_pred: Any, labels: Any) -> Any:
        """What labels are compared with: outputs of the labels' names, or else the logits."""
        if isinstance(labels, Mapping):
            return {name: y_pred[name] for name in labels}
        return y_pred["logits"] if isinstance(y_pred, Mapping) and "logits" in y_pred else y_pred

    # -- embeddings --------------------------------------------------------------------------------------------

    @property
    def base_model(self) -> Any:
        """The model without a head; itself when it has none."""
        return getattr(self, self.base_model_prefix, self)

    def __dir__(self) -> list[str]:
        """Keras saves the parts that this lists; `base_model` is another name for one, or for the model itself."""
        return [name for name in super().__dir__() if name != "base_model"]

    def get_input_embeddings(self) -> Embedding:
        """The token embedding, weight (V, C)."""
        found: Embedding = self.base_model.get_input_embeddings()
        return found

    def set_input_embeddings(self, value: Any) -> None:
        """Give the tokens other vectors: a tensor (V, C), or a layer that has such a `weight`; V may be another.

        Raises: ValueError for another shape.
        """
        embedding = self.get_input_embeddings()
        new = tf.convert_to_tensor(getattr(value, "weight", value))
        width = embedding.weight.shape[1]
        if new.shape.rank != 2 or new.shape[1] != width:
            raise ValueError(f"Input embeddings must have shape (vocabulary, {width}); got {tuple(new.shape)}.")
        self.resize_token_embeddings(new.shape[0])
        embedding.weight.assign(new)

    def get_output_embeddings(self) -> Any:
        """The layer whose weight (V, C) makes hidden states logits; None where there is none."""
        return None

    def resize_token_embeddings(self, new_num_tokens: int | None = None) -> Embedding:
        """Grow or shrink the vocabulary; the head follows.

        New rows start at the mean of the old ones, so the loss does not jump. A compiled model has to be compiled
        again. Without an argument nothing changes.

        Returns: the input embedding, weight (new_num_tokens, C).
        Raises: ValueError unless the argument is a positive int.
        """
        embedding = self.get_input_embeddings()
        if new_num_tokens is None or new_num_tokens == embedding.weight.shape[0]:
            return embedding
        new_num_tokens = positive_int("new_num_tokens", new_num_tokens)
        head = self.get_output_embeddings()
        for layer in {id(each): each for each in (embedding, head) if each is not None}.values():
            layer.resize(new_num_tokens)
        self.config.vocab_size = new_num_tokens
        self._forget_compiled()
        return embedding

    def _forget_compiled(self) -> None:
        """Drop what was traced with weights or a configuration that are no longer the model's."""
        self.train_function = self.test_function = self.predict_function = None
        self.__dict__.pop("_programs", None)

    def num_parameters(self, only_trainable: bool = False) -> int:
        """How many numbers the parameters hold, tied ones once."""
        return sum(int(w.shape.num_elements()) for _, w in self.named_weights() if w.trainable or not only_trainable)

    def named_weights(self) -> list[tuple[str, Any]]:
        """Published name and variable of every weight."""
        return list(named_weights(self))

    # -- files -------------------------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """What `.keras` files keep of the model: its configuration, name and dtype."""
        return {
            "config": self.config.to_dict(),
            "name": self.name,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config: Any, custom_objects: Any = None, **kwargs: Any) -> Self:
        """A new model of a configuration, or of what `get_config` gave."""
        if isinstance(config, PretrainedConfig):
            return cls._from_config(config, **kwargs)
        given = dict(config)
        policy = given.pop("dtype", None)
        if isinstance(policy, Mapping):
            policy = keras.dtype_policies.deserialize(policy)
        fields = given.pop("config")
        return cls(cls.config_class.from_dict(dict(fields)), dtype=policy, **given)

    @classmethod
    def _from_config(cls, config: PretrainedConfig, **kwargs: Any) -> Self:
        return cls(copy.deepcopy(config), **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *model_args: Any,
        config: PretrainedConfig | str | Path | None = None,
        cache_dir: str | Path | None = None,
        ignore_mismatched_sizes: bool = False,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str = "main",
        use_safetensors: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a model from a folder, from a hub name or from those that ship inside the package.

        See `triptych.checkpoints.pretrained_tf.load_pretrained` for every option.

        Returns: the model; with `output_loading_info=True` (model, a dict of what did not fit).
        Raises: CheckpointError, WeightMismatchError, TypeError for an unknown option.
        """
        return pretrained_tf.load_pretrained(
            cls,
            pretrained_model_name_or_path,
            *model_args,
            config=config,
            cache_dir=cache_dir,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            revision=revision,
            use_safetensors=use_safetensors,
            **kwargs,
        )

    def save_pretrained(
        self,
        save_directory: str | Path,
        saved_model: bool = False,
        version: int = 1,
        push_to_hub: bool = False,
        signatures: Any = None,
        max_shard_size: int | str = "10GB",
        create_pr: bool = False,
        safe_serialization: bool = True,
        token: str | bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Write configuration and weights into a folder, all of them or nothing.

        The weights go into model.safetensors, as PyTorch would write them, or, with `safe_serialization=False`, into
        tf_model.h5; in shards of at most `max_shard_size`. `saved_model` also writes a SavedModel into
        saved_model/{version}, with `signatures` or those of `export`.

        Raises: OSError when the folder cannot be written; what was there before is then unchanged.
        """
        pretrained_tf.save_pretrained(
            self,
            save_directory,
            push_to_hub=push_to_hub,
            max_shard_size=max_shard_size,
            safe_serialization=safe_serialization,
            **kwargs,
        )
        if saved_model:
            with staged_folder(Path(save_directory) / "saved_model") as stage:
                self.export(stage / str(version), input_signature=signatures)

    def export(
        self,
        filepath: str | Path,
        format: str = "tf_saved_model",  # noqa: A002  # Keras calls it so
        input_signature: Any = None,
        **kwargs: Any,
    ) -> None:
        """Write a SavedModel whose signature "serving_default" takes and gives tensors by name.

        `input_signature` is a dict of tf.TensorSpec; by default int32 `input_ids` and `attention_mask`, any batch and
        length. The outputs are those that one tensor holds: logits, or last_hidden_state.
        """
        if format != "tf_saved_model":
            raise ValueError(f'format must be "tf_saved_model"; got {format!r}. Keep a model whole with model.save().')
        any_ids = {name: tf.TensorSpec([None, None], tf.int32, name=name) for name in ("input_ids", "attention_mask")}
        specs = any_ids if input_signature is None else dict(input_signature)

        def serve(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            output = self(inputs, return_dict=True, training=False)
            return {name: value for name, value in output.items() if tf.is_tensor(value)}

        archive = keras.export.ExportArchive()
        archive.track(self)
        archive.add_endpoint("serving_default", serve, input_signature=[specs])
        archive.write_out(str(filepath), verbose=kwargs.get("verbose", False))

    # -- generation --------------------------------------------------------------------------------------------

    @classmethod
    def can_generate(cls) -> bool:
        """Whether `generate` works: the class has a language model head."""
        return hasattr(cls, "next_token_logits")

    def generate(
        self,
        inputs: Any = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Any = None,
        seed: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Continue the prompts `inputs` (B, T); see `triptych.generation.decoding_tf.generate`.

        Raises: TypeError when the class has no language model head.
        """
        return decoding_tf.generate(self, inputs, generation_config, logits_processor, seed, **kwargs)

    compute_transition_scores = staticmethod(decoding_tf.compute_transition_scores)

    @property
    def max_positions(self) -> int | None:
        """How many tokens fit; None when there is no limit."""
        return self.config.max_position_embeddings  # type: ignore[no-any-return]


def _labels_in(x: Any, y: Any) -> Any:
    """The labels of a batch: its second part, else "labels" among the inputs."""
    if isinstance(y, Mapping) and set(y) == {"labels"}:
        return y["labels"]
    if y is not None:
        return y
    return x.get("labels") if isinstance(x, Mapping) else None


def register_output(output_class: _Output) -> _Output:
    """Let Keras look inside an output object: the fields that are not None. Usable as a decorator."""
    make: Callable[..., Any] = output_class
    optree.register_pytree_node(
        output_class,
        lambda output: (tuple(output.values()), tuple(output.keys()), tuple(output.keys())),
        lambda names, values: make(**dict(zip(names, values, strict=True))),
        namespace="keras",
    )
    return output_class


for _class in (outputs.TFBaseModelOutput, outputs.TFCausalLMOutput, outputs.TFSequenceClassifierOutput):
    register_output(_class)
