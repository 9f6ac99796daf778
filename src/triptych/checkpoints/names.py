"""What weight files are called, with and without a variant and shards."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """One format of weight files: the parts of its names, and the module that reads and writes it."""

    stem: str
    ending: str
    module: str

    def file_name(self, variant: str | None = None, shard: int = 0, shards: int = 0) -> str:
        """Such as model.safetensors, model.fp16.safetensors, model.fp16-00001-of-00003.safetensors."""
        middle = f".{variant}" if variant else ""
        number = f"-{shard:05d}-of-{shards:05d}" if shards else ""
        return f"{self.stem}{middle}{number}{self.ending}"

    def index_name(self, variant: str | None = None) -> str:
        """Such as model.safetensors.index.json, model.safetensors.index.fp16.json."""
        middle = f".{variant}" if variant else ""
        return f"{self.stem}{self.ending}.index{middle}.json"

    def owns(self, name: str, variant: str | None = None) -> bool:
        """Whether a file name is one of this format and variant: whole, a shard or the index."""
        start = self.stem + (f".{variant}" if variant else "")
        file = rf"{re.escape(start)}(-\d{{5}}-of-\d{{5}})?{re.escape(self.ending)}"
        return name == self.index_name(variant) or re.fullmatch(file, name) is not None


SAFETENSORS = WeightFormat("model", ".safetensors", "triptych.checkpoints.safetensors_file")
PICKLE = WeightFormat("pytorch_model", ".bin", "triptych.checkpoints.pickle_torch")

PICKLE_ARRAYS = WeightFormat("pytorch_model", ".bin", "triptych.checkpoints.pickle_arrays")
MSGPACK = WeightFormat("flax_model", ".msgpack", "triptych.checkpoints.msgpack_file")
H5 = WeightFormat("tf_model", ".h5", "triptych.checkpoints.h5_file")

# In the order in which they are looked for. A format of another framework is one more row and one more module.
FORMATS = (SAFETENSORS, PICKLE)
FLAX_FORMATS = (SAFETENSORS, MSGPACK, PICKLE_ARRAYS)
TF_FORMATS = (SAFETENSORS, H5, PICKLE_ARRAYS)
NOT_READABLE_YET = ("tf_model.h5", "tf_model.h5.index.json", "flax_model.msgpack", "flax_model.msgpack.index.json")
