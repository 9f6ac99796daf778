"""GPT Neo in Flax: what users rely on, with no other framework."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("flax")

import jax
import jax.numpy as jnp

from gpt_neo_flax_models import SMALL, drawn, gap, make, tokens
from triptych import (
    FlaxAutoModel,
    FlaxAutoModelForCausalLM,
    FlaxGPTNeoForCausalLM,
    FlaxGPTNeoModel,
    GPTNeoConfig,
)
from triptych.errors import LoadingWarning, SequenceTooLongError, TokenIdError, WeightMismatchError
from triptych.losses_flax import next_token_loss
from triptych.trees import leaves_of

TOLERANCE = 2e-5
MODEL = make()
PARAMS = MODEL.params


def loss_of(params, ids):
    return next_token_loss(MODEL(ids, params=params).logits, ids)


def same(a, b):
    return jax.tree_util.tree_all(jax.tree_util.tree_map(lambda x, y: bool((x == y).all()), a, b))


# -- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 3, 64])
def test_a_cache_gives_what_one_pass_gives(window):
    model, ids = make(window_size=window), tokens(2, 11)
    whole = model(ids).logits
    cache, parts = model.init_cache(2, 13), []
    for start, stop in ((0, 5), (5, 6), (6, 11)):
        out = model(ids[:, start:stop], past_key_values=cache)
        cache = out.past_key_values
        parts.append(out.logits)
    assert gap(jnp.concatenate(parts, axis=1), whole) <= TOLERANCE
    assert int(leaves_of(cache)[("transformer", "h", "0", "attn", "attention", "cache_index")]) == 11


def test_a_left_padded_batch_gives_what_each_row_gives_alone():
    ids = tokens(2, 8)
    mask = np.array([[0] * 3 + [1] * 5, [1] * 8])
    out = MODEL(ids, mask, np.maximum(mask.cumsum(-1) - 1, 0)).logits
    assert gap(out[0, 3:], MODEL(ids[:1, 3:]).logits[0]) <= TOLERANCE


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_left_padding_is_finite_in_half_precision_with_its_gradients(dtype):
    model = make(dtype=dtype)
    ids, mask = tokens(2, 7), np.array([[0] * 5 + [1] * 2, [0] * 7])
    params = model.to_fp16(PARAMS) if dtype == jnp.float16 else model.to_bf16(PARAMS)

    def loss(params):
        return next_token_loss(model(ids, mask, np.zeros((2, 7), int), params=params).logits, ids)

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    assert jnp.isfinite(value)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree_util.tree_leaves(gradients))


def test_outputs_are_the_documented_ones_in_the_documented_order():
    ids, flags = tokens(2, 5), {"output_attentions": True, "output_hidden_states": True}
    out = MODEL(ids, **flags)
    assert list(out) == ["logits", "hidden_states", "attentions"]
    assert [x.shape for x in out.hidden_states] == [(2, 5, 12)] * 3
    assert [x.shape for x in out.attentions] == [(2, 3, 5, 5)] * 2
    as_tuple = MODEL(ids, return_dict=False, **flags)
    assert type(as_tuple) is tuple
    assert len(as_tuple) == 3
    bare = make(FlaxGPTNeoModel)
    out = bare(ids, past_key_values=bare.init_cache(2, 5))
    assert list(out) == ["last_hidden_state", "past_key_values"]
    assert set(out.past_key_values) == {"h"}


# -- transformations -----------------------------------------------------------------------------------------------


def test_jit_vmap_and_checkpointing_give_the_same_numbers_and_gradients():
    ids = tokens(3, 7)
    value, gradients = jax.jit(jax.value_and_grad(loss_of))(PARAMS, ids)
    rows = jax.vmap(lambda row: MODEL(row[None], params=PARAMS).logits[0])(jnp.asarray(ids))
    assert gap(rows, MODEL(ids).logits) <= TOLERANCE
    again = jax.jit(jax.grad(jax.checkpoint(loss_of)))(PARAMS, ids)
    model = make()
    model.enable_gradient_checkpointing()
    recomputed = jax.jit(jax.grad(lambda p: next_token_loss(model(ids, params=p).logits, ids)))(PARAMS)
    for other in (again, recomputed):
        assert max(map(gap, jax.tree_util.tree_leaves(gradients), jax.tree_util.tree_leaves(other))) <= TOLERANCE
    # the gradient is that of the loss: it tells how the loss changes along itself
    step = 1e-3
    norm = sum(float((g**2).sum()) for g in jax.tree_util.tree_leaves(gradients))
    moved = jax.tree_util.tree_map(lambda p, g: p - step * g, PARAMS, gradients)
    assert float(value - loss_of(moved, ids)) == pytest.approx(step * norm, rel=0.05)


def test_dropout_follows_its_key_and_needs_one():
    model, ids = make(embed_dropout=0.5, resid_dropout=0.3, attention_dropout=0.2), tokens(2, 6)
    key = jax.random.PRNGKey(1)
    first = model(ids, train=True, dropout_rng=key).logits
    assert gap(first, model(ids, train=True, dropout_rng=key).logits) == 0
    assert gap(first, model(ids, train=True, dropout_rng=jax.random.PRNGKey(2)).logits) > 0.1
    assert gap(model(ids, dropout_rng=key).logits, model(ids).logits) == 0
    with pytest.raises(ValueError, match="dropout_rng"):
        model(ids, train=True)


SHARDED = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
import sys
sys.path.insert(0, {tests!r})
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from gpt_neo_flax_models import gap, make, tokens
from triptych.losses_flax import next_token_loss
assert len(jax.devices()) == 8
model, ids = make(num_heads=4, hidden_size=16), tokens(8, 6)
forward = jax.jit(lambda p, x: jax.value_and_grad(lambda p: next_token_loss(model(x, params=p).logits, x))(p))
alone = forward(model.params, ids)
for shape, axes in (((8,), ("data",)), ((4,), ("model",)), ((2, 4), ("data", "model"))):
    mesh = Mesh(np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape), axes)
    params = model.shard_params(mesh)
    batch = jax.device_put(ids, NamedSharding(mesh, P("data" if "data" in axes else None)))
    q = params["transformer"]["h"]["0"]["attn"]["attention"]["q_proj"]["kernel"]
    assert q.addressable_shards[0].data.shape == ((16, 4) if "model" in axes else (16, 16)), q.sharding
    value, gradients = forward(params, batch)
    assert gap(value, alone[0]) <= 2e-5
    pairs = zip(jax.tree_util.tree_leaves(gradients), jax.tree_util.tree_leaves(alone[1]), strict=True)
    assert max(gap(a, b) for a, b in pairs) <= 2e-5
    print("same", shape)
for size, spec in ((31, P()), (32, P("model", None))):
    specs = make(num_heads=4, hidden_size=16, vocab_size=size).partition_specs(mesh)
    assert specs["transformer"]["wte"]["embedding"] == spec
ids = ids[:2]
mesh = Mesh(np.array(jax.devices()[:4]), ("model",))
alone = model.generate(ids, max_new_tokens=5, eos_token_id=None).sequences
shared = model.generate(ids, max_new_tokens=5, eos_token_id=None, params=model.shard_params(mesh)).sequences
assert (shared == alone).all()
mesh = Mesh(np.array(jax.devices()), ("model",))
for make_it in (lambda: model.shard_params(mesh), lambda: model.partition_specs(mesh, "tensor")):
    try: make_it()
    except ValueError as error: print(error)
"""


def test_eight_devices_give_the_same_numbers_however_they_share_the_work():
    code = SHARDED.format(tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("same") == 3
    assert "8 parts ('model'), which must divide its 4 heads" in done.stdout
    assert "no 'tensor' among them" in done.stdout


# -- parameters ----------------------------------------------------------------------------------------------------


def test_new_parameters_follow_the_seed_and_the_configuration():
    config = GPTNeoConfig(**SMALL, initializer_range=0.5)
    model = FlaxGPTNeoForCausalLM(config, seed=3)
    assert same(model.params, FlaxGPTNeoForCausalLM(config, seed=3, input_shape=(2, 5)).params)
    assert not same(model.params, model.init_weights(jax.random.PRNGKey(4), (1, 1)))
    leaves = leaves_of(model.params)
    assert model.required_params == set(leaves)
    assert model.num_params() == sum(x.size for x in leaves.values())
    assert 0.45 < float(leaves[("transformer", "wte", "embedding")].std()) < 0.55
    assert float(leaves[("transformer", "ln_f", "scale")].min()) == 1
    lacking = {"transformer": {"wte": {"embedding": jnp.zeros((31, 12))}}}
    filled = model.init_weights(jax.random.PRNGKey(3), (1, 1), lacking)
    assert float(jnp.abs(filled["transformer"]["wte"]["embedding"]).max()) == 0
    assert same(filled["transformer"]["h"], model.params["transformer"]["h"])


def test_without_init_parameters_stay_with_the_user():
    model = FlaxGPTNeoForCausalLM(GPTNeoConfig(**SMALL), _do_init=False)
    for use in (lambda: model.params, lambda: model(tokens()), lambda: setattr(model, "params", PARAMS)):
        with pytest.raises(ValueError, match="_do_init=False"):
            use()
    assert gap(model(tokens(), params=PARAMS).logits, MODEL(tokens()).logits) == 0


def test_casts_follow_the_mask():
    mask = jax.tree_util.tree_map(lambda leaf: leaf.ndim > 1, PARAMS)
    half = MODEL.to_bf16(PARAMS, mask)
    assert half["transformer"]["wte"]["embedding"].dtype == jnp.bfloat16
    assert half["transformer"]["ln_f"]["scale"].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree_util.tree_leaves(MODEL.to_fp32(half))} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree_util.tree_leaves(MODEL.to_fp16(PARAMS))} == {jnp.dtype("float16")}
    with pytest.raises(ValueError, match="mask must be a tree"):
        MODEL.to_bf16(PARAMS, {"transformer": True})


def test_computing_in_half_precision_leaves_parameters_as_they_are():
    model = make(dtype=jnp.bfloat16)
    assert model(tokens()).logits.dtype == jnp.bfloat16
    assert gap(model(tokens()).logits, MODEL(tokens()).logits) < 0.5


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "3KB"}, {"safe_serialization": False}], ids=str)
def test_saving_and_loading_is_the_identity(tmp_path, options):
    MODEL.save_pretrained(tmp_path, **options)
    again, info = FlaxAutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert same(again.params, PARAMS)
    assert not any(info.values())
    model, params = FlaxGPTNeoForCausalLM.from_pretrained(tmp_path, _do_init=False)
    assert same(params, PARAMS)
    assert model.config.architectures == ["GPTNeoForCausalLM"]
    bare = FlaxAutoModel.from_pretrained(tmp_path)
    assert same(bare.params, PARAMS["transformer"])


def test_a_bare_model_loads_into_one_with_a_head_and_misses_are_told(tmp_path):
    bare = make(FlaxGPTNeoModel)
    bare.save_pretrained(tmp_path)
    assert same(FlaxGPTNeoForCausalLM.from_pretrained(tmp_path).params["transformer"], bare.params)
    with pytest.warns(LoadingWarning, match=r"newly initialised, as the checkpoint lacks them: lm_head.weight"):
        model = FlaxGPTNeoForCausalLM.from_pretrained(tmp_path, tie_word_embeddings=False)
    assert model.params["lm_head"]["kernel"].shape == (12, 31)
    with pytest.raises(WeightMismatchError, match=r"wte.weight: \(31, 12\) in the checkpoint, \(32, 12\) in the model"):
        FlaxGPTNeoModel.from_pretrained(tmp_path, vocab_size=32)
    with pytest.warns(LoadingWarning, match="as their shapes differ"):
        FlaxGPTNeoModel.from_pretrained(tmp_path, vocab_size=32, ignore_mismatched_sizes=True)
    with pytest.raises(TypeError, match="colour"):
        FlaxGPTNeoModel.from_pretrained(tmp_path, colour="red")


def test_a_failed_save_leaves_what_was_there(tmp_path):
    MODEL.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    lacking = {"transformer": {name: value for name, value in PARAMS["transformer"].items() if name != "wpe"}}
    with pytest.raises(ValueError, match="lack transformer/wpe/embedding"):
        MODEL.save_pretrained(tmp_path, params=lacking)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_no_other_framework_is_imported():
    code = (
        "import sys\nfrom triptych import FlaxGPTNeoForCausalLM\n"
        "model = FlaxGPTNeoForCausalLM.from_pretrained('triptych/tales-neo')\n"
        "model([[1, 2, 3]])\n"
        "print(*{'torch', 'tensorflow', 'keras', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


# -- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"input_ids": [[1, 31]]}, TokenIdError, r"from 0 to 30.*got 31 at \[0, 1\]"),
        ({"input_ids": [[1.0, 2.0]]}, TypeError, "must hold ids, which are ints; got float"),
        ({"input_ids": [1, 2]}, ValueError, r"shape \(batch, length\); got \(2,\)"),
        ({"input_ids": tokens(1, 41)}, SequenceTooLongError, "40 positions but was given 41"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1, 1, 1]]}, ValueError, r"= \(1, 2\); got \(1, 3\)"),
        ({"input_ids": [[1, 2]], "position_ids": [[0, 40]]}, SequenceTooLongError, "from 0 to 39"),
        ({"input_ids": [[1, 2]], "position_ids": [[0, 1, 2]]}, ValueError, r"shape \(1, 2\); got \(1, 3\)"),
        ({"input_ids": [[1, 2]], "params": {}}, ValueError, "lack transformer/h/0/attn/attention/k_proj/kernel"),
        ({"input_ids": [[1, 2]], "past_key_values": {"h": {}}}, ValueError, "init_cache"),
        ({"input_ids": [[1, 2]], "past_key_values": MODEL.init_cache(1, 1)}, ValueError, "room for 1 tokens"),
        ({"input_ids": [[1, 2]], "past_key_values": MODEL.init_cache(2, 4)}, ValueError, "is of 2 rows"),
    ],
)
def test_what_does_not_fit_is_named(given, error, message):
    with pytest.raises(error, match=message):
        MODEL(**given)


def test_params_of_another_shape_or_with_more_leaves_are_named():
    other = drawn(make(vocab_size=30).params_shape_tree, 0)
    with pytest.raises(ValueError, match=r"params/transformer/wte/embedding must have the shape \(31, 12\); got \(30"):
        MODEL(tokens(), params=other)
    with pytest.raises(ValueError, match="also have more"):
        MODEL(tokens(), params=PARAMS | {"more": jnp.zeros(1)})


def test_a_model_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="multiple of num_heads"):
        FlaxGPTNeoModel(GPTNeoConfig(**(SMALL | {"num_heads": 5})))
    with pytest.raises(ValueError, match="must be one of gelu"):
        FlaxGPTNeoModel(GPTNeoConfig(**SMALL, activation_function="step"))
    with pytest.raises(TypeError, match="from_pretrained"):
        FlaxGPTNeoModel("triptych/tales-neo")
    with pytest.raises(ValueError, match="floating dtype"):
        FlaxGPTNeoModel(GPTNeoConfig(**SMALL), dtype=jnp.int32)


def test_left_padding_without_positions_is_warned_of():
    with pytest.warns(UserWarning, match="padded on the left"):
        MODEL(tokens(1, 3), np.array([[0, 1, 1]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MODEL(tokens(1, 3), np.array([[1, 1, 0]]))
