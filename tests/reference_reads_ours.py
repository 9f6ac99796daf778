"""Checks by hand that the reference reads what this package saves, and computes the same from it.

.venv/bin/python tests/reference_reads_ours.py write FOLDER
HF_HUB_OFFLINE=1 /path/to/reference/python tests/reference_reads_ours.py read FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

CASES = {
    "safetensors": {},
    "sharded_safetensors": {"max_shard_size": "20KB"},
    "bin": {"safe_serialization": False},
    "sharded_bin": {"safe_serialization": False, "max_shard_size": "20KB"},
    "variant": {"variant": "fp16"},
    "sharded_variant": {"variant": "fp16", "max_shard_size": "20KB"},
    "half": {},
}


def write(folder: Path) -> None:
    """Save a model of each family in every way, a converted release, and what they compute."""
    from fuyu_models import batch, make, row
    from fuyu_release import checkpoint, nested, tensors, write_folder
    from triptych.models.fuyu.conversion import convert
    from triptych.models.fuyu.modeling_torch import FuyuForCausalLM
    from triptych.models.gpt_neo.modeling_torch import GPTNeoForCausalLM

    golden = Path(__file__).parent / "golden" / "checkpoints"
    ids = {"input_ids": load_file(golden / "expected.safetensors")["input_ids"]}
    images = batch([row(4, 5, 1), row(4, 2, 2)], "right")
    images["image_patches"] = torch.stack(images["image_patches"])
    for model, inputs in ((GPTNeoForCausalLM.from_pretrained(golden / "safetensors"), ids), (make(), images)):
        for case, options in CASES.items():
            model = model.half() if case == "half" else model
            target = folder / type(model).__name__ / case
            model.save_pretrained(target, **options)
            _keep_expected(model.float(), inputs, target)
    target = folder / "FuyuForCausalLM" / "converted"
    write_folder(folder / "release", checkpoint(nested(tensors())))
    convert(folder / "release", target)
    _keep_expected(FuyuForCausalLM.from_pretrained(target), images, target)


def _keep_expected(model: Any, inputs: dict[str, torch.Tensor], folder: Path) -> None:
    with torch.no_grad():
        save_file(inputs | {"logits": model(**inputs).logits}, folder / "expected")


def read(folder: Path) -> None:
    """Load each with the reference; exits with an error if logits differ by more than 2e-5."""
    import transformers

    for path in sorted(folder.glob("*ForCausalLM/*")):
        inputs = load_file(path / "expected")
        logits, mask = inputs.pop("logits"), inputs.get("attention_mask")
        model, info = getattr(transformers, path.parent.name).from_pretrained(
            path, variant=CASES.get(path.name, {}).get("variant"), output_loading_info=True
        )
        with torch.no_grad():
            differences = (model(**inputs).logits - logits).abs()
        difference = float(differences.max() if mask is None else differences[mask == 1].max())
        clean = not any(info.values())
        name = "/".join(path.parts[-2:])
        print(f"{name:40} largest difference {difference:.1e}, {'nothing missing or unexpected' if clean else info}")
        if difference > 2e-5 or not clean:
            sys.exit(f"{name}: the reference reads something else than was saved")


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
