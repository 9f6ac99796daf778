"""Triptych or Transformers (any release with these classes), as an engine: `pytorch.py PACKAGE`."""

import copy
import sys
import time
import warnings
from typing import Any

from serve import Clock, Memory, serve

warnings.simplefilter("ignore")
import torch  # noqa: E402
from devices import machine, wait_for, what_there_is  # noqa: E402
from weights import fill, picture_inputs  # noqa: E402

PACKAGE = __import__(sys.argv[1])
CLASSES = {
    "gpt_neo": ("GPTNeoConfig", "GPTNeoForCausalLM"),
    "openai-gpt": ("OpenAIGPTConfig", "OpenAIGPTLMHeadModel"),
    "fuyu": ("FuyuConfig", "FuyuForCausalLM"),
}
models: dict[str, Any] = {}


def versions() -> dict[str, Any]:
    """The library's and PyTorch's."""
    return {"library": f"{sys.argv[1]} {PACKAGE.__version__}", "torch": torch.__version__}


def make(family: str, folder: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Save a model with random weights."""
    torch.manual_seed(0)
    config, model = (getattr(PACKAGE, name) for name in CLASSES[family])
    model(config(**fields)).save_pretrained(folder)
    return {}


def build(name: str, family: str, fields: dict[str, Any], device: str, dtype: str) -> dict[str, Any]:
    """Make a model where it shall be, of weights that are the same in every library; no file takes part."""
    if device not in what_there_is()["devices"]:
        raise RuntimeError(
            f"PyTorch {torch.__version__} of this environment finds no {device!r}. Install a build for the machine's "
            "driver there, or name another environment: --python NAME=PYTHON."
        )
    config, model = (getattr(PACKAGE, name) for name in CLASSES[family])
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))  # as loading in that type does
    try:
        with torch.device(device):
            models[name] = model(config(**fields)).eval()
    finally:
        torch.set_default_dtype(before)
    fill(models[name])
    return {}


def compiled(name: str, source: str) -> dict[str, Any]:
    """The model `source` once more, over the same weights, with its decoding step compiled."""
    model = models[source]
    models[name] = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    models[name].prepare_decoding(compile=True)
    return {}


def quantize(name: str, kind: str) -> dict[str, Any]:
    """Hold a model's weights in fewer bits."""
    models[name].quantize(kind)
    return {}


def load(
    name: str, family: str, folder: str, threads: int | None = None, device: str = "cpu", **options: Any
) -> dict[str, Any]:
    """Load a model under a name; every page of it is read. The environment has set the threads already."""
    kind = getattr(PACKAGE, CLASSES[family][1])
    memory, start = Memory(), time.perf_counter()
    model = kind.from_pretrained(folder, **options)
    for weight in model.parameters():
        weight.detach().view(-1)[::1024].float().sum()
    seconds = time.perf_counter() - start
    models[name] = model.to(device)
    return {"seconds": seconds, "peak": memory.growth(), "weights": sum(p.nbytes for p in model.parameters())}


def decode(name: str, new: int, **prompt: Any) -> dict[str, Any]:
    """Continue `prompts` of one length, or a `picture`, greedily by `new` tokens."""
    model = models[name]
    inputs = _inputs(model, **prompt)
    ids = inputs.pop("input_ids")
    is_new = sys.argv[1] == "transformers" and not PACKAGE.__version__.startswith("4.")
    stop = {"max_new_tokens": new, "eos_token_id": None, "pad_token_id": 0, "do_sample": False}
    never = torch.zeros(len(ids), dtype=torch.bool, device=ids.device) if is_new else False
    mask, clock = torch.ones_like(ids), Clock(never, wait_for(ids.device))
    out = model.generate(ids, attention_mask=mask, stopping_criteria=_listed(clock), **stop, **inputs)
    return clock.seconds() | {"ids": out[:, ids.shape[1] :].tolist()}


def regret(name: str, ids: list[list[int]], **prompt: Any) -> dict[str, Any]:
    """How far new ids are below the best ones, by this model's logits of one pass over all tokens: the farthest.

    In standard deviations of the logits. In bfloat16 two right engines may choose different ids where the best two are
    close; a wrong one takes ids that are some deviations below the best.
    """
    model = models[name]
    inputs = _inputs(model, **prompt)
    before, new = inputs["input_ids"], torch.tensor(ids, device=model.device)
    inputs["input_ids"] = torch.cat((before, new[:, :-1]), dim=1)
    if "image_patches_indices" in inputs:  # none among the new tokens
        room = (0, new.shape[1] - 1)
        inputs["image_patches_indices"] = torch.nn.functional.pad(inputs["image_patches_indices"], room, value=-1)
    with torch.no_grad():
        logits = model(attention_mask=torch.ones_like(inputs["input_ids"]), **inputs).logits
    logits = logits[:, before.shape[1] - 1 :].float()
    chosen = logits.gather(-1, new[..., None])[..., 0]
    return {"regret": float(((logits.amax(-1) - chosen) / logits.std(-1)).max())}


def _inputs(
    model: Any, prompts: list[list[int]] | None = None, picture: dict[str, int] | None = None
) -> dict[str, torch.Tensor]:
    if picture is not None:
        return picture_inputs(**picture, config=model.config, device=model.device, dtype=model.dtype)
    return {"input_ids": torch.tensor(prompts, device=model.device)}


def _listed(clock: Clock) -> Any:
    return PACKAGE.StoppingCriteriaList([clock]) if hasattr(PACKAGE, "StoppingCriteriaList") else [clock]


def cache(name: str, prompts: list[list[int]]) -> dict[str, Any]:
    """Bytes of keys and values, room included, that generation keeps behind a prompt."""
    ids, model = torch.tensor(prompts), models[name]
    with torch.no_grad():
        if sys.argv[1] == "triptych":
            room = model.new_cache(*ids.shape, windowed=True)
            past = model.next_token_logits(ids, cache=room).cache
            parts = [x for layer in past._layers for x in (layer._buffer.keys, layer._buffer.values)]
        else:
            past = model(ids, use_cache=True).past_key_values
            layers = [(layer.keys, layer.values) for layer in past.layers] if hasattr(past, "layers") else past
            parts = [x for layer in layers for x in layer]
    storages = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}
    return {"bytes": sum(storages.values())}


def train(name: str, rows: int, length: int) -> dict[str, Any]:
    """One training step without an optimizer: peak memory above the loaded model, and seconds."""
    model = models[name].train()
    ids = torch.randint(0, model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    model(ids[:1, :8], labels=ids[:1, :8])  # what the first call sets up is not the step's
    memory, start = Memory(), time.perf_counter()
    loss = model(ids, labels=ids).loss
    loss.backward()
    return {"seconds": time.perf_counter() - start, "peak": memory.growth(), "loss": float(loss)}


def write(name: str, rows: int, new: int) -> dict[str, Any]:
    """Texts that the model itself draws, from its beginning of a text on."""
    torch.manual_seed(0)
    model = models[name]
    return {
        "ids": model.generate(do_sample=True, num_return_sequences=rows, max_new_tokens=new, eos_token_id=None).tolist()
    }


def perplexity(name: str, texts: list[list[int]]) -> dict[str, Any]:
    """Of texts of one length."""
    ids = torch.tensor(texts, device=models[name].device)
    with torch.no_grad():
        return {"perplexity": float(models[name].eval()(ids, labels=ids).loss.exp())}


if __name__ == "__main__":
    about = (versions, what_there_is, machine)
    models_of = (make, build, load, compiled, quantize)
    work = (decode, regret, cache, train, write, perplexity)
    serve({operation.__name__: operation for operation in (*about, *models_of, *work)})
