"""flax_model.msgpack files: what Flax writes is read, and what is damaged or hostile is refused."""

import pytest

pytest.importorskip("msgpack")
pytest.importorskip("flax")

import msgpack
import numpy as np
from flax import serialization

from triptych.checkpoints import msgpack_file
from triptych.errors import CheckpointError

TREE = {
    "h": {"0": {"c_fc": {"kernel": np.arange(15, dtype=np.float32).reshape(3, 5), "bias": np.ones(5, np.float32)}}},
    "wte": {"embedding": np.arange(6, dtype=np.float16).reshape(3, 2)},
    "ln_f": {"scale": np.array([1.5, 2], np.float32)},
}
PUBLISHED = {
    "h.0.c_fc.weight": TREE["h"]["0"]["c_fc"]["kernel"].T,
    "h.0.c_fc.bias": TREE["h"]["0"]["c_fc"]["bias"],
    "wte.weight": TREE["wte"]["embedding"],
    "ln_f.weight": TREE["ln_f"]["scale"],
}


def read(path):
    file = msgpack_file.open_file(path, "np")
    return {name: file.read(name, mapped=True) for name in file.tensors}


def equal(a, b):
    return a.keys() == b.keys() and all(
        np.array_equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a
    )


@pytest.mark.parametrize("chunk", [2**30, 16])
def test_what_flax_writes_is_read_and_the_other_way_round(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", chunk)
    monkeypatch.setattr(msgpack_file, "CHUNK_BYTES", chunk)
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(serialization.msgpack_serialize(TREE))
    assert equal(read(path), PUBLISHED)
    msgpack_file.write_file(TREE, path)
    back = serialization.msgpack_restore(path.read_bytes())
    assert np.array_equal(back["h"]["0"]["c_fc"]["kernel"], TREE["h"]["0"]["c_fc"]["kernel"])
    assert equal(read(path), PUBLISHED)


def array(shape, dtype, data):
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, data)))


ONE = array((1,), "float32", b"1234")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"\xdd\xff\xff\xff\xff", "not a whole file"),  # a list of four thousand million entries
        (b"\xdf\xff\xff\xff\xff", "not a whole file"),  # a dict of as many
        (b"\xc9\xff\xff\xff\xff\x01", "not a whole file"),  # an array of 4 GiB
        (b"\x91" * 5000, "not a whole file"),
        (msgpack.packb({"a": {"bias": array((2**40, 2**40), "float32", b"1234")}}), "needs"),
        (msgpack.packb({"a": {"bias": array((-1,), "float32", b"1234")}}), "tells the shape"),
        (msgpack.packb({"a": {"bias": array((1,), "object", b"12345678")}}), "array of 'object'"),
        (msgpack.packb({"a": {"bias": msgpack.ExtType(2, b"\x00")}}), "extension of type 2"),
        (msgpack.packb({"a": {"bias": "text"}}), "a/bias is a str"),
        (msgpack.packb({"a": {"what": array((1,), "float32", b"1234")}}), "a/what"),
        (
            msgpack.packb(
                {
                    "a": {
                        "bias": {
                            msgpack_file.CHUNKED: True,
                            "shape": {"0": 2**40},
                            "chunks": {"0": array((1,), "float32", b"1234")},
                        }
                    }
                }
            ),
            "a/bias must be an array in pieces",
        ),
    ],
)
def test_absurd_sizes_and_strange_content_are_refused(tmp_path, content, message):
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read(path)


def test_a_truncated_file_is_refused_at_every_length(tmp_path):
    path = tmp_path / "flax_model.msgpack"
    msgpack_file.write_file(TREE, path)
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read(path)
