"""OpenVINO as an engine: GPT Neo exported, with its past, by optimum-intel."""

from pathlib import Path
from typing import Any

from serve import Clock, serve

models: dict[str, Any] = {}


def versions() -> dict[str, Any]:
    """OpenVINO's and the exporter's."""
    import openvino
    from optimum.intel.version import __version__ as exporter

    return {"library": f"openvino {openvino.__version__.split('-')[0]}, optimum-intel {exporter}"}


def load(name: str, family: str, folder: str, threads: int) -> dict[str, Any]:
    """Export the model once, into `openvino/` in its folder, and load it in float32."""
    from optimum.intel import OVModelForCausalLM

    settings = {
        "INFERENCE_NUM_THREADS": str(threads),
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
    }
    exported = Path(folder) / "openvino"
    if not (exported / "openvino_model.xml").exists():
        OVModelForCausalLM.from_pretrained(folder, export=True, compile=False, load_in_8bit=False).save_pretrained(
            exported
        )
    models[name] = OVModelForCausalLM.from_pretrained(exported, ov_config=settings)
    return {}


def decode(name: str, prompts: list[list[int]], new: int) -> dict[str, Any]:
    """Continue prompts of one length greedily by `new` tokens."""
    import torch
    from transformers import StoppingCriteriaList

    ids = torch.tensor(prompts)
    clock = Clock(torch.zeros(len(ids), dtype=torch.bool))
    stop = {"max_new_tokens": new, "eos_token_id": None, "pad_token_id": 0, "do_sample": False}
    mask, criteria = torch.ones_like(ids), StoppingCriteriaList([clock])
    out = models[name].generate(ids, attention_mask=mask, stopping_criteria=criteria, **stop)
    return clock.seconds() | {"ids": out[:, ids.shape[1] :].tolist()}


if __name__ == "__main__":
    serve({operation.__name__: operation for operation in (versions, load, decode)})
