"""The cache: cheap to continue, safe to share, and outside the documented tuple."""

import copy
import io
import pickle

import pytest
import torch
import torch.utils._pytree as pytree

from gpt_neo_models import gap, make, tokens
from triptych.runtime.cache import KeyValueCache, LayerCache, open_layers

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture
def filled(model):
    with torch.no_grad():
        return model(tokens()).past_key_values


def continued(model, cache, ids):
    with torch.no_grad():
        return model(ids, past_key_values=cache)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("chunks", [[1] * 9, [4, 5], [2, 1, 5, 1], [8, 1], [1, 8]], ids=str)
def test_cached_equals_uncached_in_any_chunks(implementation, chunks):
    model, ids = make(attn_implementation=implementation), tokens()
    with torch.no_grad():
        whole = model(ids, output_hidden_states=True)
        cache, parts = None, []
        for part in ids.split(chunks, dim=1):
            output = model(part, past_key_values=cache)
            cache = output.past_key_values
            parts.append(output.logits)
    assert gap(torch.cat(parts, 1), whole.logits) <= TOLERANCE
    for ours, theirs in zip(cache, whole.past_key_values, strict=True):
        assert max(map(gap, ours, theirs)) <= TOLERANCE


def test_a_legacy_tuple_continues_like_the_cache(model, filled):
    ids = tokens(seed=1)
    legacy = tuple((key.clone(), value.clone()) for key, value in filled)
    assert gap(continued(model, legacy, ids).logits, continued(model, filled, ids).logits) == 0
    assert gap(continued(model, [list(pair) for pair in legacy], ids).logits, continued(model, filled, ids).logits) == 0


def test_a_legacy_tuple_is_left_as_it_was(model, filled):
    legacy = tuple((key.clone(), value.clone()) for key, value in filled)
    kept = copy.deepcopy(legacy)
    continued(model, legacy, tokens(seed=1))
    assert all(
        torch.equal(a, b) for pair, old in zip(legacy, kept, strict=True) for a, b in zip(pair, old, strict=True)
    )


def test_two_continuations_of_one_cache_do_not_disturb_each_other(model, filled):
    """Nor does either disturb the cache, whichever comes first and however long they are."""
    kept = [(key.clone(), value.clone()) for key, value in filled]
    first, second = tokens(seed=1, length=5), tokens(seed=2, length=7)
    alone = [continued(model, tuple(kept), ids).logits for ids in (first, second)]
    one = continued(model, filled, first[:, :2])
    two = continued(model, filled, second[:, :3])
    one_more = continued(model, one.past_key_values, first[:, 2:])
    two_more = continued(model, two.past_key_values, second[:, 3:])
    assert gap(torch.cat((one.logits, one_more.logits), 1), alone[0]) <= TOLERANCE
    assert gap(torch.cat((two.logits, two_more.logits), 1), alone[1]) <= TOLERANCE
    assert all(
        torch.equal(a, b) for pair, old in zip(filled, kept, strict=True) for a, b in zip(pair, old, strict=True)
    )


def test_a_token_is_written_behind_the_past_without_copying_it(model):
    cache = model.new_cache(2, capacity=20)
    with torch.no_grad():
        cache = model(tokens(), past_key_values=cache).past_key_values
        place = cache[0][0].data_ptr()
        for step in range(8):
            cache = model(tokens(length=1, seed=step), past_key_values=cache).past_key_values
            assert cache[0][0].data_ptr() == place
    assert cache.length == 17


def test_the_room_grows_when_the_reserve_is_used_up(model):
    cache, ids = model.new_cache(2, capacity=4), tokens()
    with torch.no_grad():
        for token in ids.split(1, dim=1):
            output = model(token, past_key_values=cache)
            cache = output.past_key_values
        assert gap(output.logits, model(ids).logits[:, -1:]) <= TOLERANCE


def test_a_cache_made_in_inference_mode_continues_outside_of_it(model):
    ids = tokens()
    with torch.inference_mode():
        cache = model(ids[:, :4], past_key_values=model.new_cache(2, 30)).past_key_values
    with torch.no_grad():
        whole = model(ids).logits[:, 4:]
        assert gap(model(ids[:, 4:], past_key_values=cache).logits, whole) <= TOLERANCE
    with torch.enable_grad():
        model(ids[:, 4:], past_key_values=cache).logits.sum().backward()
    model.zero_grad()


def test_a_cache_made_outside_continues_in_inference_mode(model, filled):
    ids = tokens(seed=1)
    expected = continued(model, filled, ids).logits
    with torch.inference_mode():
        assert gap(model(ids, past_key_values=filled).logits, expected) <= TOLERANCE


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_gradients_flow_through_the_cache(implementation):
    model, ids = make(attn_implementation=implementation), tokens()
    model(ids).logits[:, 4:].square().sum().backward()
    whole = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    cache, losses = model(ids[:, :4]).past_key_values, []
    for token in ids[:, 4:].split(1, dim=1):
        output = model(token, past_key_values=cache)
        cache = output.past_key_values
        losses.append(output.logits.square().sum())
    sum(losses).backward()
    for name, weight in model.named_parameters():
        assert gap(weight.grad, whole[name]) <= 1e-4 * max(1.0, whole[name].abs().max().item())


def test_gradients_flow_through_the_cache_when_only_the_queries_are_trained():
    """Then keys and values of the first layer need no gradient, but the queries' gradient needs them unchanged."""
    model, ids = make(), tokens()
    model.requires_grad_(False)
    model.transformer.h[0].attn.attention.q_proj.requires_grad_(True)
    weight = model.transformer.h[0].attn.attention.q_proj.weight
    model(ids).logits.square().sum().backward()
    whole, weight.grad = weight.grad.clone(), None
    cache, losses = model.new_cache(2, 20), []
    for part in ids.split([4, 1, 1, 3], dim=1):
        output = model(part, past_key_values=cache)
        cache = output.past_key_values
        losses.append(output.logits.square().sum())
    sum(losses).backward()
    assert gap(weight.grad, whole) <= 1e-4 * whole.abs().max().item()


def test_rows_can_be_chosen_and_repeated(model, filled):
    rows, ids = torch.tensor([1, 1, 0]), tokens(batch=3, seed=3, length=4)
    chosen = filled.reorder(rows)
    assert chosen.length == filled.length
    pairs = tuple((key[rows], value[rows]) for key, value in filled)
    assert gap(continued(model, chosen, ids).logits, continued(model, pairs, ids).logits) == 0


def test_a_cropped_cache_is_that_of_the_first_tokens(model, filled):
    cropped = filled.crop(5)
    assert cropped.length == 5
    ids = tokens()
    with torch.no_grad():
        whole = model(ids).logits
    assert gap(continued(model, cropped, ids[:, 5:]).logits, whole[:, 5:]) <= TOLERANCE
    assert filled.length == 9
    with pytest.raises(ValueError, match=r"cropped to 0 to 9; got 10"):
        filled.crop(10)


def test_an_empty_cache_stays_empty_when_reordered_cropped_or_copied(model):
    empty = model.new_cache(2, 16)
    for made in (empty.reorder(torch.tensor([0])), empty.crop(0), pickle.loads(pickle.dumps(empty)), copy.copy(empty)):
        assert made.length == 0
        assert continued(model, made, tokens()).past_key_values.length == 9


@pytest.mark.parametrize(
    "copied",
    [
        lambda cache: pickle.loads(pickle.dumps(cache)),
        copy.deepcopy,
        copy.copy,
        lambda cache: pytree.tree_map(lambda x: x.clone(), cache),
        lambda cache: KeyValueCache(cache),
    ],
    ids=["pickle", "deepcopy", "copy", "pytree", "from pairs"],
)
def test_a_copied_cache_holds_the_same_and_works_the_same(model, filled, copied):
    made = copied(filled)
    assert isinstance(made, KeyValueCache)
    assert all(
        torch.equal(a, b) for pair, old in zip(made, filled, strict=True) for a, b in zip(pair, old, strict=True)
    )
    ids = tokens(seed=1)
    assert gap(continued(model, made, ids).logits, continued(model, filled, ids).logits) == 0
    assert made.reorder(torch.tensor([1, 0])).length == made.crop(9).length == 9


def test_a_pickled_cache_leaves_out_the_room_behind_the_tokens(model):
    with torch.no_grad():
        wide = model(tokens(), past_key_values=model.new_cache(2, 30_000)).past_key_values
    assert len(pickle.dumps(wide)) < 20_000
    file = io.BytesIO()
    torch.save(wide, file)
    assert len(file.getvalue()) < 30_000


def test_a_past_of_another_number_of_layers_is_refused(model, filled):
    with pytest.raises(ValueError, match=r"one \(key, value\) pair for each of the 2 layers; got 1"):
        model(tokens(), past_key_values=tuple(filled)[:1])


def test_a_past_of_another_form_is_refused(model, filled):
    with pytest.raises(ValueError, match=r"past_key_values\[1\] must be a \(key, value\) pair .* got \[\(9, 4\)"):
        model(tokens(), past_key_values=(filled[0], (torch.zeros(9, 4), torch.zeros(9, 4))))


def test_a_past_of_another_batch_is_refused_not_broadcast(model, filled):
    with pytest.raises(ValueError, match=r"\{'batch': 1, .*got \{'batch': 2"):
        model(tokens(batch=1), past_key_values=filled)
    other = make(num_heads=4)
    with pytest.raises(ValueError, match=r"'heads': 4, 'head_dim': 3\}; got .*'heads': 3, 'head_dim': 4"):
        other(tokens(), past_key_values=filled)


def test_a_refused_call_leaves_the_cache_as_it_was(model, filled):
    ids = tokens(seed=1)
    expected = continued(model, filled, ids).logits
    with pytest.raises(ValueError, match="input_ids must be from 0"):
        model(torch.full((2, 2), 99), past_key_values=filled)
    assert gap(continued(model, filled, ids).logits, expected) == 0


def test_an_empty_layer_has_no_pair_to_give():
    with pytest.raises(ValueError, match="empty: no token has been seen"):
        LayerCache().pair()


def test_layers_that_are_none_in_a_legacy_tuple_start_empty():
    assert [layer.length for layer in open_layers([None, None], 2)] == [0, 0]


# -- windows ---------------------------------------------------------------------------------------------------


def long_model(**fields):
    return make(max_position_embeddings=500, attention_types=[[["local", "global"], 1]], **fields)


def held(cache):
    """How many tokens' room each layer's buffer has."""
    return [layer._buffer.keys.shape[2] for layer in cache._layers]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "chunks",
    [[1] * 180, [5, 170, 1, 4], [179, 1], [150] + [3] * 10, [131, 1, 48]],
    ids=["single", "5 170 1 4", "179 1", "150 and threes", "131 1 48"],
)
def test_a_windowed_cache_gives_what_a_whole_one_gives(implementation, chunks):
    model, ids = long_model(attn_implementation=implementation), tokens(length=180)
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    with torch.no_grad():
        whole = model.transformer(ids, attention_mask=mask, position_ids=torch.arange(180)).last_hidden_state
        cache, seen, parts = model.new_cache(2, 400, windowed=True), 0, []
        for part in ids.split(chunks, dim=1):
            seen += part.shape[1]
            position = torch.arange(seen - part.shape[1], seen)
            output = model.transformer(
                part, past_key_values=cache, attention_mask=mask[:, :seen], position_ids=position
            )
            cache = output.past_key_values
            parts.append(output.last_hidden_state)
    assert cache.length == 180
    assert held(cache)[0] == 3 + 128
    assert gap(torch.cat(parts, 1)[0, 7:], whole[0, 7:]) <= TOLERANCE
    assert gap(torch.cat(parts, 1)[1], whole[1]) <= TOLERANCE


def windowed_cache(model, ids):
    """A windowed cache of these tokens, fed one by one behind the first ten."""
    cache = model.new_cache(len(ids), 400, windowed=True)
    with torch.no_grad():
        for part in ids.split([10] + [1] * (ids.shape[1] - 10), dim=1):
            cache = model(part, past_key_values=cache).past_key_values
    return cache


def test_the_last_tokens_of_a_windowed_cache_can_be_taken_back():
    model, ids = long_model(), tokens(length=250)
    cache = windowed_cache(model, ids[:, :200])
    with torch.no_grad():
        whole = model(ids).logits
        for length in (200, 199, 137):  # 64 are always kept behind the window
            after = model(ids[:, length:], past_key_values=cache.crop(length)).logits
            assert gap(after, whole[:, length:]) <= TOLERANCE
        long = model(ids, past_key_values=model.new_cache(2, 400, windowed=True)).past_key_values
        assert gap(model(ids[:, 186:], past_key_values=long.crop(186)).logits, whole[:, 186:]) <= TOLERANCE
    with pytest.raises(ValueError, match=r"200 tokens can be cropped to \d+ to 200; got 2\. Its local layers have let"):
        cache.crop(2)


@pytest.mark.parametrize(
    "copied",
    [
        lambda cache: pickle.loads(pickle.dumps(cache)),
        copy.deepcopy,
        lambda cache: pytree.tree_map(lambda x: x.clone(), cache),
        lambda cache: cache.reorder(torch.tensor([0, 1])),
    ],
    ids=["pickle", "deepcopy", "pytree", "reorder"],
)
def test_a_copied_windowed_cache_works_the_same(copied):
    model, ids = long_model(), tokens(length=210)
    cache = windowed_cache(model, ids[:, :190])
    made = copied(cache)
    assert made.length == 190
    with torch.no_grad():
        for kept in (190, 180):
            ours = model(ids[:, kept:], past_key_values=made.crop(kept)).logits
            assert gap(ours, model(ids[:, kept:], past_key_values=cache.crop(kept)).logits) <= TOLERANCE
        empty = copied(model.new_cache(2, 400, windowed=True))
        assert [x.window for x in empty._layers] == [3, None]
        assert held(model(ids, past_key_values=empty).past_key_values)[0] == 131


def test_gradients_flow_through_a_windowed_cache():
    model, ids = long_model(), tokens(length=210)
    cache = windowed_cache(model, ids[:, :200])
    model.zero_grad()
    model(ids[:, 200:], past_key_values=cache).logits.square().sum().backward()
    got = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    with torch.no_grad():
        past = tuple(model(ids[:, :200]).past_key_values)
    model(ids[:, 200:], past_key_values=past).logits.square().sum().backward()
    for name, weight in model.named_parameters():
        assert gap(weight.grad, got[name]) <= 1e-4 * max(1.0, weight.grad.abs().max().item())


def test_attentions_behind_a_windowed_cache_cover_all_tokens():
    model, ids = long_model(), tokens(length=210)
    cache = windowed_cache(model, ids[:, :200])
    with torch.no_grad():
        whole = model(ids, output_attentions=True).attentions
        part = model(ids[:, 200:], past_key_values=cache, output_attentions=True).attentions
    assert max(gap(a, b[:, :, 200:]) for a, b in zip(part, whole, strict=True)) <= TOLERANCE


def test_generate_holds_the_windows_of_local_layers_and_hands_out_whole_caches(monkeypatch):
    model, ids, caches = long_model(), tokens(length=20), []
    step = type(model).next_token_logits

    def watched(self, *args, **kwargs):
        out = step(self, *args, **kwargs)
        caches.append(out.cache)
        return out

    monkeypatch.setattr(type(model), "next_token_logits", watched)
    options = {"max_new_tokens": 300, "eos_token_id": None, "pad_token_id": 0}
    written = model.generate(ids, **options)
    assert held(caches[-1]) == [131, 319]
    output = model.generate(ids, **options, return_dict_in_generate=True)
    assert torch.equal(output.sequences, written)
    assert all(key.shape == (2, 3, 319, 4) for key, _ in output.past_key_values)
    with torch.no_grad():
        whole = model(written[:, :-1]).past_key_values
    for ours, theirs in zip(output.past_key_values, whole, strict=True):
        assert max(map(gap, ours, theirs)) <= TOLERANCE
