"""`from_pretrained` and `save_pretrained` of the PyTorch models."""

import contextlib
import copy
import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from triptych.checkpoints import saving_torch
from triptych.checkpoints.checkpoint import open_checkpoint
from triptych.checkpoints.device_map_torch import Placement, plan
from triptych.checkpoints.loading_torch import (
    StateDict,
    TensorSource,
    assign,
    initialise,
    match,
    materialise_rest,
    without_weights,
)
from triptych.checkpoints.locate import find_weights
from triptych.checkpoints.matching import describe, refuse_integers, refuse_mismatched
from triptych.configuration import PretrainedConfig
from triptych.errors import LoadingWarning
from triptych.files import read_json
from triptych.generation.configuration import GenerationConfig
from triptych.generation.options import nearest
from triptych.hub import HubOptions, StrPath, pop_options, resolve_file
from triptych.runtime.quantization import check_devices, named_quantization, quantize_layers

if TYPE_CHECKING:
    from triptych.modeling_torch import PreTrainedModel

_CONVERT = "TensorFlow and Flax weights cannot be loaded into a PyTorch model yet. Convert them to model.safetensors."
_NAMELESS = "A folder or hub name is needed unless both config and state_dict are given; got None."
_REFUSED = {"from_tf": _CONVERT, "from_flax": _CONVERT}


@dataclass(slots=True)
class LoadOptions:
    """The keyword arguments of `from_pretrained` that are neither the hub's nor the configuration's."""

    ignore_mismatched_sizes: bool = False
    use_safetensors: bool | None = None
    variant: str | None = None
    torch_dtype: str | torch.dtype | None = None
    low_cpu_mem_usage: bool | None = None
    device_map: Any = None
    max_memory: dict[Any, Any] | None = None
    offload_folder: str | os.PathLike[str] | None = None
    offload_state_dict: bool | None = None
    offload_buffers: bool = False
    output_loading_info: bool = False
    attn_implementation: str | None = None
    use_flash_attention_2: bool = False
    quantization: str | None = None
    load_in_8bit: bool = False
    load_in_4bit: bool = False
    quantization_config: Any = None
    state_dict: Mapping[str, Tensor] | None = None
    _fast_init: bool = True

    @classmethod
    def pop(cls, kwargs: dict[str, Any]) -> "LoadOptions":
        """Take the options out of `kwargs`.

        Raises: ValueError for an option that is documented but not supported here.
        """
        for name, reason in _REFUSED.items():
            if kwargs.pop(name, None):
                raise ValueError(f"{name} was given. {reason}")
        options = cls(**{option.name: kwargs.pop(option.name) for option in fields(cls) if option.name in kwargs})
        flags = {"load_in_8bit": options.load_in_8bit, "load_in_4bit": options.load_in_4bit}
        options.quantization = named_quantization(options.quantization, flags, options.quantization_config)
        if options.use_flash_attention_2 and options.attn_implementation is None:
            options.attn_implementation = "flash_attention_2"
        return options


def load_pretrained(
    cls: "type[PreTrainedModel]",
    name_or_folder: StrPath | None,
    *model_args: Any,
    config: PretrainedConfig | StrPath | None = None,
    **kwargs: Any,
) -> Any:
    """Load a model of class `cls` from a folder, a hub name or a model of the package; in eval mode.

    Where files come from: `cache_dir`, `force_download`, `local_files_only`, `token`, `revision`, `subfolder`,
    `variant`, `use_safetensors` (None: safetensors first, then .bin; True or False: that one only).
    What is made of them: `config` (an object, or where to read it), `torch_dtype` (None: float32; "auto": as
    published; a dtype or its name), `attn_implementation` ("sdpa", which None means, "eager", "flash_attention_2" or
    "flex_attention"; `use_flash_attention_2=True` means the third), `quantization` ("int8" or "int4": see
    `PreTrainedModel.quantize`; `load_in_8bit=True` and `load_in_4bit=True` mean the same, and so does a
    `quantization_config` that has them), `ignore_mismatched_sizes`, `state_dict` (used in place of the files),
    `output_loading_info`. Other keyword arguments replace fields of the configuration that is read.
    Where it goes: `low_cpu_mem_usage` (True: weights stay memory-mapped, so the files must stay as they are while
    the model lives, unless they are replaced by renaming as `save_pretrained` does), `device_map`, `max_memory`,
    `offload_folder`. `resume_download`, `proxies`, `mirror`, `trust_remote_code`, `offload_state_dict`,
    `offload_buffers` and `_fast_init` are accepted without effect.

    Returns: the model; with `output_loading_info=True` (model, {"missing_keys", "unexpected_keys",
        "mismatched_keys", "error_msgs"}).
    Raises: CheckpointError naming the file that is missing or damaged; WeightMismatchError; TypeError for an argument
        that is neither an option nor a field of the configuration; ImportError if accelerate or flash-attn is needed
        but missing; ValueError for a device that this machine has not.
    """
    hub = pop_options(kwargs)
    options = LoadOptions.pop(kwargs)
    config, model_kwargs = _configuration(cls, name_or_folder, config, hub, options, kwargs)
    _check_constructor_takes(cls, model_kwargs)
    with _open_source(name_or_folder, hub, options) as source:
        dtype = _dtype(options.torch_dtype, config, source)
        # floats that are quantised stay in the files, as they are stored, until it is their turn
        with without_weights(_stored_dtype(source) if options.quantization else dtype):
            model = cls(config, *model_args, **model_kwargs)
        model.tie_weights()
        found = match(model, source)
        if not options.ignore_mismatched_sizes:
            refuse_mismatched(found.mismatched, source.source)
        weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        read = [stored for name, stored in found.stored_name.items() if name in weights]
        refuse_integers(read, source.tensors, source.source)
        placement = plan(model, options.device_map, options.max_memory, options.offload_folder)
        if options.quantization:
            check_devices(options.quantization, {placement(name) for name, _ in model.named_parameters()})
        first = Placement(None) if options.quantization else placement
        mapped = bool(options.low_cpu_mem_usage or options.quantization)
        assign(model, source, found.stored_name, first, mapped=mapped)
    initialise(model, found.to_initialise, first)
    model.tie_weights()
    model.eval()
    if options.quantization:
        _quantize(model, options, dtype, placement)
    materialise_rest(model, placement)
    _remember_origin(model, name_or_folder, hub)
    if options.device_map is not None:
        placement.dispatch(model)
    message = describe(cls, found, source.source)
    if message:
        warnings.warn(message, LoadingWarning, stacklevel=3)
    return (model, found.loading_info()) if options.output_loading_info else model


def save_pretrained(
    model: "PreTrainedModel",
    save_directory: StrPath,
    is_main_process: bool = True,
    state_dict: Mapping[str, Tensor] | None = None,
    save_function: Callable[..., object] | None = None,
    push_to_hub: bool = False,
    max_shard_size: int | str = "5GB",
    safe_serialization: bool = True,
    variant: str | None = None,
    token: str | bool | None = None,
    save_peft_format: bool = True,
    **kwargs: Any,
) -> None:
    """Write weights, config.json and (for models that generate) generation_config.json: all of them or nothing.

    Weights go into model.safetensors, or pytorch_model.bin with `safe_serialization=False` (through
    `save_function`, torch.save by default), in shards of at most `max_shard_size` ("5GB", "200MB", or bytes).
    Weight files that an earlier save in this format and `variant` left are removed once the new ones are in place.
    Processes that are not the main one write nothing. `token` and `save_peft_format` have no effect.

    Raises: SaveError if something cannot be written, and then the folder is as it was; ValueError for a size that is
        none, for weights that are in no memory, and for `push_to_hub`, which is not supported; TypeError for an
        unknown argument.
    """
    kwargs.pop("use_auth_token", None)
    if kwargs:
        raise TypeError(f"save_pretrained() got an unexpected keyword argument {next(iter(kwargs))!r}. Leave it out.")
    if push_to_hub:
        raise ValueError("push_to_hub is not supported. Upload the saved folder with `hf upload`.")
    if not is_main_process:
        return
    saving_torch.save(
        model,
        Path(save_directory),
        model.state_dict() if state_dict is None else state_dict,
        max_shard_size=max_shard_size,
        safe_serialization=safe_serialization,
        variant=variant,
        save_function=save_function,
    )


def _configuration(
    cls: "type[PreTrainedModel]",
    name_or_folder: StrPath | None,
    config: PretrainedConfig | StrPath | None,
    hub: HubOptions,
    options: LoadOptions,
    kwargs: dict[str, Any],
) -> tuple[PretrainedConfig, dict[str, Any]]:
    """The configuration, and the keyword arguments that are no field of it."""
    if isinstance(config, PretrainedConfig):
        config = copy.deepcopy(config)  # a model of one's own has a configuration of one's own
        if options.attn_implementation is not None:
            config._attn_implementation = options.attn_implementation
        return config, kwargs
    if options.attn_implementation is not None:
        kwargs["attn_implementation"] = options.attn_implementation
    where = config if config is not None else name_or_folder
    if where is None:
        raise ValueError(_NAMELESS)
    read, unused = cls.config_class.from_pretrained(os.fspath(where), return_unused_kwargs=True, **hub, **kwargs)
    return read, unused


def _check_constructor_takes(cls: "type[PreTrainedModel]", kwargs: Mapping[str, Any]) -> None:
    """Refuse keyword arguments that nobody wants, before anything is read or fetched."""
    own = inspect.signature(cls).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in own.values()):
        return
    known = [*(option.name for option in fields(LoadOptions)), *HubOptions.__annotations__, *vars(cls.config_class())]
    for name in kwargs:
        if name not in own:
            raise TypeError(
                f"{cls.__name__}.from_pretrained() got an unexpected keyword argument {name!r}. It is neither an "
                "option nor a field of the configuration (fields of a config object are set on the object)."
                + (nearest(name, known) if name not in known else "")
            )


@contextlib.contextmanager
def _open_source(name_or_folder: StrPath | None, hub: HubOptions, options: LoadOptions) -> Iterator[TensorSource]:
    if options.state_dict is not None:
        yield StateDict(options.state_dict)
        return
    if name_or_folder is None:
        raise ValueError(_NAMELESS)
    files = find_weights(name_or_folder, hub, variant=options.variant, use_safetensors=options.use_safetensors)
    with open_checkpoint(files) as checkpoint:
        yield checkpoint


def _dtype(wanted: str | torch.dtype | None, config: PretrainedConfig, source: TensorSource) -> torch.dtype:
    """What `torch_dtype` asks for: None the default dtype, "auto" the published one."""
    if wanted is None:
        return torch.get_default_dtype()
    if wanted != "auto":
        return named_dtype(wanted)
    names = [config._torch_dtype, *(info.dtype for info in source.tensors.values())]
    return next((dtype for dtype in map(_floating, names) if dtype is not None), torch.get_default_dtype())


def _stored_dtype(source: TensorSource) -> torch.dtype:
    dtypes = (_floating(info.dtype) for info in source.tensors.values())
    return next((dtype for dtype in dtypes if dtype is not None), torch.get_default_dtype())


def named_dtype(wanted: str | torch.dtype) -> torch.dtype:
    """A floating dtype, or the one of that name.

    Raises: ValueError if it is none.
    """
    dtype = _floating(str(wanted).removeprefix("torch."))
    if dtype is None:
        raise ValueError(
            'torch_dtype must be a floating dtype of 16 bits or more as torch.float16, its name, "auto" or None; '
            f"got {wanted!r}. For weights of fewer bits pass quantization='int8'."
        )
    return dtype


def _floating(name: str | None) -> torch.dtype | None:
    dtype = getattr(torch, name, None) if name else None
    is_one = isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1
    return dtype if is_one else None


def _quantize(
    model: "PreTrainedModel", options: LoadOptions, dtype: torch.dtype, placement: Callable[[str], torch.device | None]
) -> None:
    """Quantise a model whose floats may still lie in the files, each layer where it shall be.

    What stays float goes there too, in `dtype`, and leaves the files unless it may stay.
    """
    quantize_layers(
        model, str(options.quantization), device_of=lambda name: placement(f"{name}.weight"), dtype=dtype, at_once=True
    )
    made: dict[nn.Parameter, nn.Parameter] = {}  # so that what is tied stays so
    for name, value in list(model.named_parameters(remove_duplicate=False)):
        if value not in made:
            there = value.detach().to(placement(name), dtype, copy=not options.low_cpu_mem_usage)
            made[value] = nn.Parameter(there, requires_grad=False)
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner)._parameters[leaf] = made[value]


def _remember_origin(model: "PreTrainedModel", name_or_folder: StrPath | None, hub: HubOptions) -> None:
    if name_or_folder is None:
        return
    model.name_or_path = model.config._name_or_path = os.fspath(name_or_folder)
    if not model.can_generate():
        return
    path = resolve_file(name_or_folder, "generation_config.json", **hub, required=False)
    model.generation_config = (
        GenerationConfig.from_dict(read_json(path)) if path else GenerationConfig.from_model_config(model.config)
    )
