"""Triptych or Transformers (any release with these classes), as an engine: `pytorch.py PACKAGE`."""

import sys
import time
import warnings
from typing import Any

from serve import Clock, Memory, serve

warnings.simplefilter("ignore")
import torch  # noqa: E402

PACKAGE = __import__(sys.argv[1])
CLASSES = {"gpt_neo": ("GPTNeoConfig", "GPTNeoForCausalLM"), "openai-gpt": ("OpenAIGPTConfig", "OpenAIGPTLMHeadModel")}
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


def load(name: str, family: str, folder: str, threads: int | None = None, **options: Any) -> dict[str, Any]:
    """Load a model under a name; every page of it is read. The environment has set the threads already."""
    kind = getattr(PACKAGE, CLASSES[family][1])
    memory, start = Memory(), time.perf_counter()
    model = kind.from_pretrained(folder, **options)
    for weight in model.parameters():
        weight.detach().view(-1)[::1024].float().sum()
    seconds = time.perf_counter() - start
    models[name] = model
    return {"seconds": seconds, "peak": memory.growth(), "weights": sum(p.nbytes for p in model.parameters())}


def decode(name: str, prompts: list[list[int]], new: int) -> dict[str, Any]:
    """Continue prompts of one length greedily by `new` tokens."""
    ids = torch.tensor(prompts)
    is_new = sys.argv[1] == "transformers" and not PACKAGE.__version__.startswith("4.")
    clock = Clock(torch.zeros(len(ids), dtype=torch.bool) if is_new else False)
    stop = {"max_new_tokens": new, "eos_token_id": None, "pad_token_id": 0, "do_sample": False}
    out = models[name].generate(ids, attention_mask=torch.ones_like(ids), stopping_criteria=_listed(clock), **stop)
    return clock.seconds(new) | {"ids": out[:, ids.shape[1] :].tolist()}


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
    ids = torch.tensor(texts)
    with torch.no_grad():
        return {"perplexity": float(models[name].eval()(ids, labels=ids).loss.exp())}


def machine() -> dict[str, Any]:
    """What this machine can do: bytes read per second in a stream, and float32 operations per second in a product."""
    stream = torch.ones(2**28)
    square = torch.ones(3072, 3072)
    reads, products = [], []
    for _ in range(5):
        start = time.perf_counter()
        stream.sum()
        middle = time.perf_counter()
        torch.mm(square, square)
        reads.append(stream.nbytes / (middle - start))
        products.append(2 * 3072**3 / (time.perf_counter() - middle))
    return {"bandwidth": sorted(reads)[2], "rate": sorted(products)[2], "threads": torch.get_num_threads()}


if __name__ == "__main__":
    names = (versions, make, load, decode, cache, train, write, perplexity, machine)
    serve({operation.__name__: operation for operation in names})
