"""tf_model.h5 files: they are read as plain tensors, and what is damaged or leads out of the file is refused."""

import json

import pytest

pytest.importorskip("h5py")

import h5py
import numpy as np

from triptych.checkpoints import h5_file
from triptych.checkpoints.keras_names import keras_place, published_name
from triptych.errors import CheckpointError, UnsafeFileError, WeightMismatchError

ARRAYS = {
    "transformer.tokens_embed.weight": np.arange(12, dtype=np.float32).reshape(4, 3),
    "transformer.positions_embed.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "transformer.h.0.attn.c_attn.weight": np.arange(27, dtype=np.float32).reshape(3, 9),
    "transformer.h.0.attn.c_attn.bias": np.arange(9, dtype=np.float32),
    "transformer.h.10.ln_1.weight": np.array([1, 2, 3], np.float32),
    "transformer.h.10.ln_1.bias": np.array([4, 5, 6], np.float32),
    "multiple_choice_head.summary.weight": np.arange(3, dtype=np.float32).reshape(1, 3),
    "multiple_choice_head.summary.bias": np.array([7], np.float32),
}
# As the published files have them.
PLACES = {
    "transformer.tokens_embed.weight": "transformer/tf_open_aigpt_double_heads_model/transformer/tokens_embed/weight:0",
    "transformer.positions_embed.weight": (
        "transformer/tf_open_aigpt_double_heads_model/transformer/positions_embed/embeddings:0"
    ),
    "transformer.h.0.attn.c_attn.weight": (
        "transformer/tf_open_aigpt_double_heads_model/transformer/h_._0/attn/c_attn/weight:0"
    ),
    "transformer.h.0.attn.c_attn.bias": (
        "transformer/tf_open_aigpt_double_heads_model/transformer/h_._0/attn/c_attn/bias:0"
    ),
    "transformer.h.10.ln_1.weight": "transformer/tf_open_aigpt_double_heads_model/transformer/h_._10/ln_1/gamma:0",
    "transformer.h.10.ln_1.bias": "transformer/tf_open_aigpt_double_heads_model/transformer/h_._10/ln_1/beta:0",
    "multiple_choice_head.summary.weight": (
        "multiple_choice_head/tf_open_aigpt_double_heads_model/multiple_choice_head/summary/kernel:0"
    ),
    "multiple_choice_head.summary.bias": (
        "multiple_choice_head/tf_open_aigpt_double_heads_model/multiple_choice_head/summary/bias:0"
    ),
}
CLASS = "TFOpenAIGPTDoubleHeadsModel"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tf_model.h5"


def read(path):
    file = h5_file.open_file(path, "np")
    arrays = {name: file.read(name, mapped=True) for name in file.tensors}
    file.close()
    return arrays


@pytest.mark.parametrize("is_shard", [False, True])
def test_what_is_written_is_read_and_lies_where_the_published_files_have_it(path, is_shard):
    h5_file.write_file(ARRAYS, CLASS, "transformer", path, is_shard)
    back = read(path)
    assert back.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(back[name], array)
    with h5py.File(path) as file:
        for name, place in PLACES.items():
            assert keras_place(name, CLASS, "transformer")[0] == tuple(place.split("/"))
            assert ("/".join(place.split("/")[2:]) if is_shard else place) in file
        if not is_shard:
            assert file["transformer/tf_open_aigpt_double_heads_model/transformer/h_._0/attn/c_attn/bias:0"].shape == (
                1,
                9,
            )
            assert {name.decode() for name in file.attrs["layer_names"]} == {"transformer", "multiple_choice_head"}


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.dtype(">f4")])
def test_other_dtypes_and_compressed_data_give_the_same_numbers(path, dtype):
    value = np.linspace(-1, 1, 12).reshape(3, 4).astype(dtype)
    with h5py.File(path, "w") as file:
        file.create_dataset("transformer/x/transformer/c_fc/weight:0", data=value, compression="gzip", chunks=(1, 4))
    np.testing.assert_array_equal(read(path)["transformer.c_fc.weight"], value)


def external_link(file, folder):
    file["transformer/weight:0"] = h5py.ExternalLink(str(folder / "other.h5"), "secret")


def soft_link(file, folder):
    file["transformer/bias:0"] = np.zeros(3, np.float32)
    file["transformer/weight:0"] = h5py.SoftLink("/transformer/bias:0")


def link_to_a_group(file, folder):
    file["transformer"] = h5py.ExternalLink(str(folder / "other.h5"), "/")


def external_storage(file, folder):
    group = file.create_group("transformer")
    group.create_dataset("weight:0", (2,), "f4", external=[(str(folder / "other.h5"), 0, 8)])


def virtual_data(file, folder):
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "secret", (3,))
    file.create_group("transformer").create_virtual_dataset("weight:0", layout)


@pytest.mark.parametrize(
    "hostile", [external_link, soft_link, link_to_a_group, external_storage, virtual_data], ids=lambda f: f.__name__
)
def test_what_leads_out_of_the_file_is_named_and_not_followed(path, tmp_path, hostile):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = np.ones(3, np.float32)
    with h5py.File(path, "w") as file:
        hostile(file, tmp_path)
    with pytest.raises(UnsafeFileError, match=r"must lie in the file itself.*transformer"):
        h5_file.open_file(path, "np")


def objects(file):
    file.create_dataset("transformer/weight:0", data=["a", "b"], dtype=h5py.string_dtype())


def references(file):
    file.create_dataset("transformer/weight:0", data=[file.ref], dtype=h5py.ref_dtype)


def records(file):
    file["transformer/weight:0"] = np.zeros(2, [("a", "f4"), ("b", "i4")])


def booleans(file):
    file["transformer/weight:0"] = np.zeros(2, bool)


def a_dtype(file):
    file["transformer/weight:0"] = np.dtype("f4")


@pytest.mark.parametrize("strange", [objects, references, records, booleans, a_dtype], ids=lambda f: f.__name__)
def test_what_is_no_tensor_of_numbers_is_refused(path, strange):
    with h5py.File(path, "w") as file:
        strange(file)
    with pytest.raises(CheckpointError, match=r"transformer/weight:0 in .* must be a tensor"):
        h5_file.open_file(path, "np")


@pytest.mark.parametrize("endless", [True, False])
def test_groups_that_lead_back_or_are_in_two_places_are_refused_at_once(path, endless):
    with h5py.File(path, "w") as file:
        group = file
        for _ in range(30):  # 2 ** 30 ways to the end
            group = group.create_group("a")
            group.parent["b"] = file if endless else group
        group["weight:0"] = np.zeros(3, np.float32)
    with pytest.raises(CheckpointError, match="lies in one place"):
        h5_file.open_file(path, "np")


def test_one_tensor_in_two_places_is_refused(path):
    with h5py.File(path, "w") as file:
        file["transformer/x/transformer/positions_embed/weight:0"] = np.zeros(3, np.float32)
        file["transformer/x/transformer/positions_embed/embeddings:0"] = np.ones(3, np.float32)
    with pytest.raises(CheckpointError, match=r"positions_embed\.weight in /transformer"):
        h5_file.open_file(path, "np")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not a whole HDF5 file"), (b"\x89HDF\r\n\x1a\n" + bytes(40), "not a whole HDF5 file"), (b"text", "HDF5")],
)
def test_what_is_no_hdf5_is_named(path, content, message):
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        h5_file.open_file(path, "np")


def test_a_file_cut_short_is_named_wherever_it_is_cut(path):
    h5_file.write_file(ARRAYS, CLASS, "transformer", path, False)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, len(whole) // 23):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"tf_model\.h5"):
            read(path)


def test_files_without_weights_and_weights_without_a_place_are_named(path):
    with h5py.File(path, "w") as file:
        file.create_group("transformer")
    with pytest.raises(CheckpointError, match="holds no tensor"):
        h5_file.open_file(path, "np")
    with h5py.File(path, "w") as file:
        file["transformer/x/moving_mean:0"] = np.zeros(3, np.float32)
    with pytest.raises(CheckpointError, match="transformer/x/moving_mean:0"):
        h5_file.open_file(path, "np")
    with pytest.raises(CheckpointError, match="weight:0"):
        published_name(("weight:0",))


def test_a_model_refuses_weights_of_another_shape_and_takes_no_memory_for_absurd_ones(tmp_path):
    pytest.importorskip("tensorflow")
    from triptych import OpenAIGPTConfig, TFOpenAIGPTLMHeadModel

    model = TFOpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=9, n_positions=8, n_embd=4, n_layer=1, n_head=2))
    model.save_pretrained(tmp_path, safe_serialization=False)
    with h5py.File(tmp_path / "tf_model.h5", "a") as file:
        where = "transformer/tf_open_aigptlm_head_model/transformer/positions_embed/embeddings:0"
        del file[where]
        file.create_dataset(where, (2**40, 2**20), "f4", chunks=(1, 1024))  # 4 EiB, none of it written
    with pytest.raises(WeightMismatchError, match=r"positions_embed.weight: \(1099511627776, 1048576\) .* \(8, 4\)"):
        TFOpenAIGPTLMHeadModel.from_pretrained(tmp_path)


def test_shards_go_by_an_index_as_the_published_ones(tmp_path):
    pytest.importorskip("tensorflow")
    from triptych import OpenAIGPTConfig, TFOpenAIGPTLMHeadModel

    model = TFOpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=9, n_positions=8, n_embd=4, n_layer=2, n_head=2))
    model.save_pretrained(tmp_path, safe_serialization=False, max_shard_size="1KB")
    index = json.loads((tmp_path / "tf_model.h5.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 2
    assert "tf_open_aigptlm_head_model/transformer/h_._1/mlp/c_fc/bias:0" in index
    back = TFOpenAIGPTLMHeadModel.from_pretrained(tmp_path)
    for (name, weight), (_, other) in zip(model.named_weights(), back.named_weights(), strict=True):
        np.testing.assert_array_equal(weight.numpy(), other.numpy(), name)
