"""What a user of Fuyu and Persimmon may rely on, beyond the reference's numbers of test_fuyu_golden.py."""

import copy
import json

import accelerate
import pytest
import torch
from hypothesis import given, settings, strategies as st

from fuyu_models import DYNAMIC, SMALL, alone, batch, gap, make, patches, row, tokens
from triptych import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    FuyuConfig,
    FuyuForCausalLM,
    PersimmonConfig,
    PersimmonForCausalLM,
    PersimmonModel,
)
from triptych.errors import GenerationWarning, LabelError, LoadingWarning, TokenIdError

TOLERANCE = 2e-5
IMPLEMENTATIONS = ("eager", "sdpa")
VARIANTS = {
    "plain": {},
    "no_norm": {"qk_layernorm": False, "partial_rotary_factor": 1.0},
    "linear": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "dynamic": DYNAMIC,
}
END = {"eos_token_id": None, "pad_token_id": 0}

# -- batches ---------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), min_size=1, max_size=4),
    side=st.sampled_from(["left", "right"]),
    variant=st.sampled_from(["plain", "no_norm", "linear"]),
    implementation=st.sampled_from(IMPLEMENTATIONS),
)
def test_a_padded_batch_gives_what_each_row_gives_alone(sizes, side, variant, implementation):
    """Without position ids too: only the differences of positions count."""
    model = make(attn_implementation=implementation, **VARIANTS[variant])
    rows = [row(count, words, seed) for seed, (count, words) in enumerate(sizes)]
    together = batch(rows, side)
    with torch.no_grad():
        logits = model(**together).logits
        for index, one in enumerate(rows):
            of_row = logits[index][together["attention_mask"][index] == 1]
            assert gap(of_row, model(**alone(one)).logits[0]) <= TOLERANCE


@pytest.mark.parametrize("side", ["left", "right"])
def test_with_dynamic_scaling_the_length_of_a_row_counts_and_not_that_of_the_batch(side):
    model, rows = make(**DYNAMIC), [row(4, 9, 1), row(0, 3, 2), row(6, 3, 3)]
    together = batch(rows, side)
    mask = together["attention_mask"]
    with torch.no_grad():
        logits = model(**together, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
        for index, one in enumerate(rows):
            assert gap(logits[index][mask[index] == 1], model(**alone(one)).logits[0]) <= TOLERANCE
        if side == "right":  # the positions that are counted are the same
            assert gap(model(**together).logits[mask == 1], logits[mask == 1]) <= TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_left_padded_batch_is_continued_as_each_row_is_alone(variant, use_cache):
    """With dynamic scaling too, where the angles follow the length of the row: past the trained eight tokens."""
    model = make(**VARIANTS[variant])
    rows = [row(4, 6, 1), row(0, 3, 2), row(6, 1, 3), row(2, 3, 4)]
    options = {"max_new_tokens": 8, "use_cache": use_cache} | END
    ids = model.generate(**batch(rows), **options)
    for index, one in enumerate(rows):
        assert ids[index, -8:].tolist() == model.generate(**alone(one), **options)[0, -8:].tolist()


def test_several_sequences_of_a_prompt_with_images_are_drawn_from_the_same_distributions():
    model, rows = make(), [row(4, 2, 1), row(1, 5, 2)]
    for use_cache in (True, False):
        scores = model.generate(
            **batch(rows),
            **END,
            max_new_tokens=1,
            do_sample=True,
            num_return_sequences=3,
            use_cache=use_cache,
            output_scores=True,
            return_dict_in_generate=True,
            top_k=0,
        ).scores[0]
        with torch.no_grad():
            expected = model(**batch(rows)).logits[:, -1].repeat_interleave(3, 0)
        assert gap(scores, expected) <= TOLERANCE


def test_left_padding_is_warned_of_only_where_it_counts():
    ids, mask = tokens(), torch.ones(2, 9, dtype=torch.long)
    mask[1, :3] = 0
    make()(ids, attention_mask=mask)
    make(**(DYNAMIC | {"max_position_embeddings": 9}))(ids, attention_mask=mask)
    with pytest.warns(UserWarning, match="padded on the left but position_ids were not given"):
        make(**DYNAMIC)(ids, attention_mask=mask)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_of_padding_alone_are_finite_and_so_are_their_gradients(implementation):
    model, ids = make(attn_implementation=implementation), tokens()
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1] = 0
    output = model(ids, attention_mask=mask, labels=ids)
    output.loss.backward()
    assert bool(output.logits.isfinite().all())
    assert all(bool(weight.grad.isfinite().all()) for weight in model.language_model.parameters())


# -- the cache -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["plain", "no_norm", "linear"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_cached_equals_uncached(variant, implementation):
    model, one = make(attn_implementation=implementation, **VARIANTS[variant]), row(5, 9)
    whole = alone(one)
    with torch.no_grad():
        expected = model(**whole).logits
        first = {name: x[:, :8] if isinstance(x, torch.Tensor) else x for name, x in whole.items()}
        output = model(**first)
        assert gap(output.logits, expected[:, :8]) <= TOLERANCE
        for place in range(8, 15):
            # images are in the past already, whatever a loop still passes on
            step = {"input_ids": whole["input_ids"][:, place : place + 1], "image_patches": whole["image_patches"]}
            output = model(**step, past_key_values=output.past_key_values)
            assert gap(output.logits[:, -1], expected[:, place]) <= TOLERANCE


def test_gradients_reach_the_images_through_a_past_that_several_questions_share():
    """One prefix, computed once, then repeated for three questions: the same loss and gradients as in full."""
    model, one, questions = make(), row(4, 2), tokens(3, 5, seed=7)
    model.train()
    past = model(**alone(one)).past_key_values
    repeated = [tuple(x.repeat_interleave(3, 0) for x in pair) for pair in past]
    loss = model(questions, past_key_values=repeated, labels=questions).loss
    loss.backward()
    got = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    ids = torch.cat((one["ids"].expand(3, -1), questions), 1)
    places = torch.cat((one["places"].expand(3, -1), torch.full((3, 5), -1)), 1)
    labels = ids.clone()
    labels[:, :8] = -100  # a question's first token is not predicted in its own pass
    full = model(ids, image_patches=[one["patches"]] * 3, image_patches_indices=places, labels=labels).loss
    full.backward()
    assert gap(loss, full) <= TOLERANCE
    assert got["vision_embed_tokens.weight"].abs().max() > 1e-2
    assert max(gap(got[name], weight.grad) for name, weight in model.named_parameters()) <= TOLERANCE


def test_a_cache_can_be_reordered_and_cropped():
    model, rows = make(), [row(3, 3, 1), row(3, 3, 2)]
    with torch.no_grad():
        past = model(**batch(rows)).past_key_values
        turned = model(tokens(2, 1), past_key_values=past.reorder(torch.tensor([1, 0]))).logits
        straight = model(tokens(2, 1).flip(0), past_key_values=past).logits
        assert gap(turned, straight.flip(0)) <= TOLERANCE
        again = model(batch(rows)["input_ids"][:, 5:], past_key_values=past.crop(5)).logits
        assert gap(again, model(**batch(rows)).logits[:, 5:]) <= TOLERANCE


def test_use_cache_follows_the_configuration_unless_told():
    ids = tokens()
    assert make(use_cache=False)(ids).past_key_values is None
    assert make(use_cache=False)(ids, use_cache=True).past_key_values.length == 9
    assert make()(ids, use_cache=False).past_key_values is None
    model = make()
    model.config.use_cache = False
    assert model(ids).past_key_values is None


# -- positions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["plain", "no_norm", "linear"])
def test_only_the_differences_of_positions_count(variant):
    model, ids = make(**VARIANTS[variant]), tokens()
    with torch.no_grad():
        moved = model(ids, position_ids=torch.arange(1000, 1009)[None]).logits
        assert gap(moved, model(ids).logits) <= 2e-3  # angles of large positions are less exact in float32
        assert gap(model(ids, position_ids=torch.arange(9).flip(0)[None]).logits, model(ids).logits) > 0.1


def test_with_dynamic_scaling_outputs_depend_on_their_input_alone():
    """Not on a longer one that came before it."""
    model, short, long = make(**DYNAMIC), tokens(1, 10, seed=1), tokens(1, 24, seed=2)
    with torch.no_grad():
        before = model(short).logits
        model(long)
        assert gap(model(short).logits, before) == 0


def test_dynamic_scaling_is_that_of_the_base_theta_times_a_growth():
    """At length L: theta * (factor * L / trained - factor + 1) ** (R / (R - 2)), for the whole input."""
    model, ids = make(**DYNAMIC), tokens(1, 20)
    fields = {"rope_scaling": None, "rope_theta": 50.0 * (3.0 * 20 / 8 - 2.0) ** (4 / 2)}
    with torch.no_grad():
        assert gap(model(ids).logits, make(**(DYNAMIC | fields))(ids).logits) <= TOLERANCE
        shorter = ids[:, :8]
        assert gap(model(shorter).logits, make(**(DYNAMIC | {"rope_scaling": None}))(shorter).logits) == 0


def test_linear_scaling_is_that_of_positions_divided():
    model, ids = make(rope_scaling={"type": "linear", "factor": 2.0}), tokens()
    with torch.no_grad():
        assert gap(model(ids, position_ids=2 * torch.arange(9)[None]).logits, make()(ids).logits) <= TOLERANCE


def test_texts_may_be_longer_than_max_position_embeddings():
    model = make(max_position_embeddings=4)
    assert model.max_positions is None
    assert model(tokens(1, 30)).logits.shape == (1, 30, 31)
    with pytest.warns(GenerationWarning, match="9 tokens, more than the 4 that the model was trained on"):
        assert model.generate(tokens(1, 9), max_new_tokens=5, **END).shape == (1, 14)
    assert make(**DYNAMIC).trained_positions == 24
    assert make(**DYNAMIC).generate(tokens(1, 9), max_new_tokens=5, **END).shape == (1, 14)


# -- images ----------------------------------------------------------------------------------------------------


def test_a_patch_stands_where_its_index_says():
    """Equal to giving, as embeddings, the words with the projected patches put in their places one by one."""
    model, one = make(), row(4, 3)
    one["places"][1:6] = torch.tensor([2, 0, 0, 1, 3])  # in any order, and a patch may stand twice
    with torch.no_grad():
        embeds = model.get_input_embeddings()(one["ids"])
        for place, index in enumerate(one["places"].tolist()):
            if index >= 0:
                weight, bias = model.vision_embed_tokens.weight, model.vision_embed_tokens.bias
                embeds[place] = weight @ one["patches"][index] + bias
        got = model(**alone(one)).logits
        assert gap(got, model(inputs_embeds=embeds[None]).logits) <= TOLERANCE


def test_patches_come_in_several_forms():
    """A list with a tensor, a list of images or None for each row, or one tensor whose spare patches have no place."""
    model, rows = make(), [row(4, 2, 1), row(0, 6, 2), row(2, 4, 3)]
    inputs = batch(rows)
    first, _, last = inputs["image_patches"]
    forms = {
        "none": [first, None, last],
        "axis": [first[None], torch.empty(1, 0, 12), last[None]],
        "images": [[first[:1], first[1:]], [], (last,)],
        "tensor": torch.stack((first, patches(4, 9), torch.cat((last, patches(2, 8))))),
        "double": [first.double(), None, last.double()],
    }
    with torch.no_grad():
        expected = model(**inputs).logits
        for form, given_patches in forms.items():
            assert gap(model(**(inputs | {"image_patches": given_patches})).logits, expected) <= TOLERANCE, form


def test_text_needs_no_images_and_a_batch_may_have_none():
    model, ids = make(), tokens()
    with torch.no_grad():
        expected = model(ids).logits
        nowhere = torch.full((2, 9), -1)
        for images in (None, [None, None], [torch.empty(0, 12)] * 2, torch.empty(2, 0, 12), torch.zeros(2, 3, 12)):
            assert gap(model(ids, image_patches=images, image_patches_indices=nowhere).logits, expected) == 0


def test_embeddings_hold_their_images_already():
    model, one = make(), row(4, 3)
    with torch.no_grad():
        embeds = model.get_input_embeddings()(one["ids"][None])
        images = {name: x for name, x in alone(one).items() if name != "input_ids"}
        assert gap(model(inputs_embeds=embeds, **images).logits, model(one["ids"][None]).logits) == 0
        continued = model.generate(one["ids"][None], inputs_embeds=embeds, max_new_tokens=4, **END)
        assert continued.tolist() == model.generate(one["ids"][None], max_new_tokens=4, **END).tolist()


def test_images_change_the_text_that_follows():
    model, one = make(), row(4, 3)
    other = one | {"patches": patches(4, seed=5)}
    with torch.no_grad():
        assert gap(model(**alone(one)).logits[:, -1], model(**alone(other)).logits[:, -1]) > 0.1


# -- dtypes, embeddings, devices -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The prompt has")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_half_precision_is_finite_and_takes_patches_in_float32(dtype, implementation):
    model, rows = make(attn_implementation=implementation), [row(5, 300, 1), row(2, 7, 2)]
    with torch.no_grad():
        for layer in model.language_model.model.layers:
            layer.self_attn.q_layernorm.weight.mul_(100)
        expected = make()(**batch([row(3, 3)])).logits
        half = make().to(dtype)(**batch([row(3, 3)])).logits
        output = model.to(dtype)(**batch(rows), labels=batch(rows)["input_ids"])
    assert gap(half.float(), expected) < 0.2
    assert output.logits.dtype == dtype
    assert output.loss.dtype == torch.float32
    assert bool(output.logits.isfinite().all())
    assert bool(output.loss.isfinite())
    assert model.generate(**batch(rows), max_new_tokens=3, **END).shape == (2, 309)


def test_autocast_trains_float32_weights():
    model, rows = make().train(), [row(5, 3, 1), row(2, 7, 2)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch(rows), labels=batch(rows)["input_ids"]).loss
    loss.backward()
    exact = make()(**batch(rows), labels=batch(rows)["input_ids"]).loss
    assert gap(loss, exact) < 0.1
    assert all(bool(weight.grad.isfinite().all()) for weight in model.parameters())


@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": True}])
@pytest.mark.parametrize("size", [20, 40])
def test_resizing_changes_the_head_and_both_configurations(fields, size):
    model, ids = make(**fields), tokens(vocab=20)
    with torch.no_grad():
        before = model(ids).logits
        embedding = model.resize_token_embeddings(size)
        logits = model(ids).logits
    assert embedding is model.get_input_embeddings()
    assert (model.config.vocab_size, model.config.text_config.vocab_size, model.vocab_size) == (size, size, size)
    kept = min(size, 31)
    assert logits.shape == (2, 9, size)
    assert gap(logits[..., :kept], before[..., :kept]) <= TOLERANCE
    assert (model.get_output_embeddings().weight is embedding.weight) == bool(fields)
    assert model(torch.full((1, 2), size - 1), labels=torch.full((1, 2), size - 1)).loss.isfinite()


@pytest.mark.parametrize(
    "fields",
    [
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": True, "text_config": SMALL},
        {"text_config": SMALL | {"tie_word_embeddings": True}},
    ],
)
def test_the_head_is_tied_where_either_configuration_says_so(fields, tmp_path):
    model = make(**fields)
    model.save_pretrained(tmp_path)
    loaded = FuyuForCausalLM.from_pretrained(tmp_path)
    for each in (model, loaded, copy.deepcopy(model)):
        assert each.get_output_embeddings().weight is each.get_input_embeddings().weight
    assert gap(loaded(tokens()).logits, model(tokens()).logits) == 0


def test_saving_and_loading_changes_nothing(tmp_path):
    model, rows = make(rope_scaling={"type": "linear", "factor": 2.0}, pad_token_id=0), [row(3, 2, 1), row(0, 4, 2)]
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    loaded, info = FuyuForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.config == model.config
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["FuyuForCausalLM"]
    for (name, a), (other, b) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b)
    with torch.no_grad():
        for options in ({}, {"low_cpu_mem_usage": True}, {"attn_implementation": "eager"}):
            again = AutoModelForCausalLM.from_pretrained(tmp_path, **options)
            assert gap(again(**batch(rows)).logits, model(**batch(rows)).logits) <= TOLERANCE


def test_the_decoder_is_saved_and_loaded_alone(tmp_path):
    decoder = make().language_model
    decoder.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is PersimmonConfig
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is PersimmonForCausalLM
    with pytest.warns(LoadingWarning, match=r"1 not used.*lm_head\.weight"):
        bare = AutoModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert type(bare) is PersimmonModel
    with torch.no_grad():
        assert gap(loaded(tokens()).logits, decoder(tokens()).logits) == 0
        assert gap(loaded.lm_head(bare(tokens()).last_hidden_state), decoder(tokens()).logits) <= TOLERANCE
    ids = decoder.generate(tokens(), max_new_tokens=4, **END)
    assert loaded.generate(tokens(), max_new_tokens=4, **END).tolist() == ids.tolist()


def test_frequencies_that_old_checkpoints_hold_are_dropped_silently():
    state = make().state_dict()
    state["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    config = FuyuConfig(**SMALL)
    model, info = FuyuForCausalLM.from_pretrained(None, config=config, state_dict=state, output_loading_info=True)
    assert not any(info.values())
    assert gap(model(tokens()).logits, make()(tokens()).logits) == 0


DEVICE_MAPS = {
    "auto": "auto",
    "decoder on disk": {"vision_embed_tokens": "cpu", "language_model": "disk"},
    "patches on disk": {"vision_embed_tokens": "disk", "language_model": "cpu"},
    "some layers on disk": {
        "vision_embed_tokens": "cpu",
        "language_model.model.embed_tokens": "cpu",
        "language_model.model.layers.0": "disk",
        "language_model.model.layers.1": "cpu",
        "language_model.model.final_layernorm": "disk",
        "language_model.lm_head": "cpu",
    },
}


@pytest.mark.parametrize("name", DEVICE_MAPS)
def test_a_model_spread_over_memory_and_disk_gives_the_same(name, tmp_path):
    model, rows = make(), [row(3, 2, 1), row(0, 4, 2)]
    model.save_pretrained(tmp_path / "saved")
    spread = FuyuForCausalLM.from_pretrained(
        tmp_path / "saved", device_map=DEVICE_MAPS[name], offload_folder=tmp_path / "disk"
    )
    assert spread.hf_device_map
    with torch.no_grad():
        assert gap(spread(**batch(rows)).logits, model(**batch(rows)).logits) <= TOLERANCE
    options = {"max_new_tokens": 5} | END
    assert spread.generate(**batch(rows), **options).tolist() == model.generate(**batch(rows), **options).tolist()


# -- arguments and configuration -------------------------------------------------------------------------------


def test_attentions_and_hidden_states_can_be_asked_for_in_the_configuration():
    output = make(output_attentions=True, output_hidden_states=True)(tokens())
    assert [tuple(x.shape) for x in output.attentions] == [(2, 3, 9, 9)] * 2
    assert [tuple(x.shape) for x in output.hidden_states] == [(2, 9, 24)] * 3
    for weights in output.attentions:
        assert gap(weights.sum(-1), torch.ones(2, 3, 9)) <= TOLERANCE
    output = make().generate(
        tokens(), max_new_tokens=2, **END, output_attentions=True, return_dict_in_generate=True, output_scores=True
    )
    assert [[tuple(x.shape) for x in step] for step in output.attentions] == [[(2, 3, 9, 9)] * 2, [(2, 3, 1, 10)] * 2]


def test_dropout_acts_in_training_only():
    for field in ("hidden_dropout", "attention_dropout"):
        model, ids = make(**{field: 0.5}), tokens()
        assert gap(model(ids).logits, model(ids).logits) == 0
        model.train()
        assert gap(model(ids).logits, model(ids).logits) > 0.1


def test_labels_of_minus_100_do_not_count():
    model, ids = make(), tokens()
    labels = ids.clone()
    labels[:, 5:] = -100
    assert gap(model(ids, labels=labels).loss, model(ids[:, :5], labels=ids[:, :5]).loss) <= TOLERANCE


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_next_token_logits_are_those_of_the_last_position(implementation):
    model, rows = make(attn_implementation=implementation), [row(3, 4, 1), row(5, 2, 2)]
    inputs = batch(rows)
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda module, given, output: seen.append(given[0].shape))
    with torch.no_grad():
        whole = model(**inputs).logits
        step = model.next_token_logits(**inputs, cache=model.new_cache(2, 20))
        assert gap(step.logits, whole[:, -1]) <= TOLERANCE
        assert step.cache.length == 8
        assert model.half().next_token_logits(**inputs, cache=None).logits.dtype == torch.float32
    assert seen == [(2, 8, 24), (2, 24), (2, 24)]


def test_a_users_own_forward_and_hooks_are_called_when_generating():
    class Watched(FuyuForCausalLM):
        def forward(self, input_ids=None, image_patches=None, image_patches_indices=None, **others):
            seen.append("forward")
            return super().forward(input_ids, image_patches, image_patches_indices, **others)

    model, one, seen = make(), row(3, 3), []
    expected = model.generate(**alone(one), max_new_tokens=4, **END).tolist()
    watched = Watched(FuyuConfig(**SMALL)).eval()
    watched.load_state_dict(model.state_dict())
    assert watched.generate(**alone(one), max_new_tokens=4, **END).tolist() == expected
    model.register_forward_hook(lambda *_: seen.append("hook"))
    assert model.generate(**alone(one), max_new_tokens=4, **END).tolist() == expected
    assert seen == ["forward"] * 4 + ["hook"] * 4


def test_fields_named_when_loading_reach_the_decoder(tmp_path):
    make().save_pretrained(tmp_path)
    scaling = {"type": "dynamic", "factor": 2.0}
    model = FuyuForCausalLM.from_pretrained(tmp_path, rope_scaling=scaling, attention_dropout=0.5, use_cache=False)
    for config in (model.config, model.config.text_config):
        assert (config.rope_scaling, config.attention_dropout, config.use_cache) == (scaling, 0.5, False)
    given = FuyuConfig.from_pretrained(tmp_path, text_config={"hidden_size": 48}, vocab_size=50)
    assert (given.text_config.hidden_size, given.vocab_size, given.text_config.vocab_size) == (48, 50, 262144)


def test_the_decoder_is_built_from_text_config(tmp_path):
    config = FuyuConfig(patch_size=2, text_config=PersimmonConfig(**{n: SMALL[n] for n in SMALL if n != "patch_size"}))
    model = FuyuForCausalLM(config)
    assert model(**batch([row(3, 3)])).logits.shape == (1, 7, 31)
    assert model.config.text_config is model.language_model.config
    model.save_pretrained(tmp_path)
    assert FuyuForCausalLM.from_pretrained(tmp_path).config == config


def test_the_published_configuration_loads_as_it_is(tmp_path):
    published = {
        "_name_or_path": "/fsx/some/folder",
        "architectures": ["FuyuForCausalLM"],
        "model_type": "fuyu",
        "rope_theta": 25000.0,
        "text_config": {"model_type": "persimmon"},
        "torch_dtype": "bfloat16",
        "transformers_version": "4.35.0.dev0",
    }
    for fields in (published, {name: x for name, x in published.items() if name != "text_config"}):
        (tmp_path / "config.json").write_text(json.dumps(fields))
        config = AutoConfig.from_pretrained(tmp_path)
        assert config.torch_dtype == torch.bfloat16
        assert config.text_config == PersimmonConfig()
        assert config.text_config.num_hidden_layers == 36


# -- bad input -------------------------------------------------------------------------------------------------

IDS, ONE = tokens(), row(4, 4)
PLACES = torch.full((2, 9), -1)
BAD_INPUT = {
    "id above": (
        {"input_ids": torch.tensor([[1, 2], [3, 31]])},
        TokenIdError,
        r"input_ids must be from 0 to 30.*got 31 at \[1, 1\]\..*resize_token_embeddings",
    ),
    "positions' shape": (
        {"position_ids": tokens(3)},
        ValueError,
        r"position_ids must have shape \(2, 9\); got \(3, 9\)",
    ),
    "one axis": ({"input_ids": IDS[0]}, ValueError, r"The input must have shape \(batch, length\); got \(9,\)\. Add"),
    "short attention mask": (
        {"attention_mask": torch.ones(2, 8)},
        ValueError,
        r"attention_mask must have shape .* = \(2, 9\); got \(2, 8\)",
    ),
    "no input": ({"input_ids": None}, ValueError, r"input_ids or inputs_embeds, one of the two; got neither\."),
    "two inputs": ({"inputs_embeds": torch.zeros(2, 9, 24)}, ValueError, r"got both\. Pass one"),
    "narrow embeddings": (
        {"input_ids": None, "inputs_embeds": torch.zeros(2, 9, 12)},
        ValueError,
        r"inputs_embeds must be 24 wide, as the model is; got 12",
    ),
    "labels' shape": ({"labels": IDS[:, :8]}, ValueError, r"labels must have shape \(2, 9\).*got \(2, 8\)"),
    "label": ({"labels": IDS * 0 + 31}, LabelError, r"labels must be from 0 to 30, or -100.*got 31 at \[0, 0\]"),
    "past of another batch": (
        {"past_key_values": [(torch.zeros(1, 3, 4, 8), torch.zeros(1, 3, 4, 8))] * 2},
        ValueError,
        r"past_key_values must be of the model's heads and the input's batch size.*'batch': 2.*'batch': 1",
    ),
    "past of too few layers": (
        {"past_key_values": [(torch.zeros(2, 3, 4, 8), torch.zeros(2, 3, 4, 8))]},
        ValueError,
        r"each of the 2 layers; got 1\.",
    ),
}
BAD_IMAGES = {
    "no indices": ({"image_patches_indices": None}, ValueError, r"image_patches need image_patches_indices.*Pass both"),
    "indices' batch": (
        {"image_patches_indices": PLACES},
        ValueError,
        r"image_patches_indices must have shape \(batch, length\) = \(1, 9\); got \(2, 9\)",
    ),
    "flat indices": ({"image_patches_indices": ONE["places"]}, ValueError, r"= \(1, 9\); got \(9,\)"),
    "indices that are no ints": (
        {"image_patches_indices": ONE["places"][None].float()},
        TypeError,
        r"image_patches_indices must be a tensor of ints; got torch\.float32",
    ),
    "a list of indices": ({"image_patches_indices": [[-1]]}, TypeError, r"a tensor of ints; got list"),
    "index above": (
        {"image_patches_indices": ONE["places"][None] + 1},
        ValueError,
        r"image_patches_indices must be below the row's number of patches, or -1; row 0 has 4 patches and the index 4",
    ),
    "places without patches": ({"image_patches": None}, ValueError, r"row 0 has 0 patches and the index 3"),
    "patches without places": (
        {"image_patches": [patches(6)]},
        ValueError,
        r"Each patch needs a place .*; row 0 has 6 patches and 4 places\. Was the text cut",
    ),
    "a patch twice and another nowhere": (
        {"image_patches_indices": ONE["places"][None].clamp(max=2)},
        ValueError,
        r"Each patch needs a place .*; row 0 has 4 patches and 3 places",
    ),
    "rows": ({"image_patches": [patches(4)] * 2}, ValueError, r"an entry for each of the 1 rows; got 2"),
    "patch size": (
        {"image_patches": [patches(4, values=27)]},
        ValueError,
        r"patch_size \* patch_size \* num_channels = 12 values; row 0 has image_patches of shape \(4, 27\)\. Use",
    ),
    "one patch": ({"image_patches": [patches(4)[0]]}, ValueError, r"row 0 has image_patches of shape \(12,\)"),
    "no tensors": ({"image_patches": [[[0.5] * 12]]}, TypeError, r"must be a tensor .*; row 0 has list\."),
    "a place behind the text": (
        {"image_patches_indices": torch.cat((ONE["places"][None], torch.tensor([[3]])), 1)},
        ValueError,
        r"within the input's 9 tokens, and place some behind them\. Truncate both",
    ),
}


@pytest.mark.parametrize("what", BAD_INPUT)
def test_bad_input_is_refused_with_the_rule_what_was_got_and_the_remedy(what):
    inputs, error, message = BAD_INPUT[what]
    with pytest.raises(error, match=message):
        make()(**({"input_ids": IDS} | inputs))


@pytest.mark.parametrize("what", BAD_IMAGES)
def test_bad_images_are_refused_with_the_rule_what_was_got_and_the_remedy(what):
    inputs, error, message = BAD_IMAGES[what]
    for call in (lambda **given: make()(**given), lambda **given: make().generate(**given, max_new_tokens=2, **END)):
        with pytest.raises(error, match=message):
            call(**(alone(ONE) | inputs))


BAD_FIELDS = {
    "heads": ({"num_attention_heads": 5}, "hidden_size must be a multiple of num_attention_heads; got 24 and 5"),
    "layers": ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive int; got 0"),
    "many layers": ({"num_hidden_layers": 10_001}, "num_hidden_layers must be at most 10,000; got 10,001"),
    "patches": ({"patch_size": -2}, "patch_size must be a positive int; got -2"),
    "odd rotation": (
        {"partial_rotary_factor": 0.4},
        "even number of rotated features from 0 to head_dim=8; 0.4 gives 3",
    ),
    "wide rotation": ({"partial_rotary_factor": 1.5}, "1.5 gives 12"),
    "narrow dynamic rotation": (
        {"partial_rotary_factor": 0.25, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "from 4 to head_dim=8; 0.25 gives 2",
    ),
    "scaling without factor": ({"rope_scaling": {"type": "linear"}}, "rope_scaling must be a dict of a type and a fac"),
    "scaling of a kind": ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "one of linear, dynamic; got 'yarn'"),
    "small factor": ({"rope_scaling": {"type": "linear", "factor": 1.0}}, "float above 1, such as 2.0; got 1.0"),
    "whole factor": ({"rope_scaling": {"type": "linear", "factor": 2}}, "float above 1, such as 2.0; got 2"),
    "padding": ({"pad_token_id": 31}, "pad_token_id must be a token of the vocabulary, below 31; got 31"),
    "activation": ({"hidden_act": "gelo"}, "activation function must be one of gelu, .*; got 'gelo'"),
    "other decoder": ({"text_config": {"model_type": "llama"}}, "must be of the family 'persimmon'; got 'llama'"),
    "no decoder": ({"text_config": 3}, "text_config must be a PersimmonConfig or a dict of its fields; got 3"),
    "bad decoder": ({"text_config": {"vocab_size": "x"}}, "vocab_size must be a positive int; got 'x'"),
}


@pytest.mark.parametrize("what", BAD_FIELDS)
def test_a_configuration_that_no_model_can_have_is_refused(what):
    fields, message = BAD_FIELDS[what]
    with pytest.raises(ValueError, match=message):
        make(**fields)


def test_heads_cannot_be_pruned():
    with pytest.raises(TypeError, match="FuyuForCausalLM does not support head pruning"):
        make().prune_heads({0: [1]})


def test_a_device_map_never_cuts_a_layer_in_two():
    model = make()
    layer = model.language_model.model.layers[0]
    size = sum(p.nbytes for p in layer.parameters())
    whole = accelerate.infer_auto_device_map(
        model, max_memory={0: size, "cpu": 10**9}, no_split_module_classes=model._no_split_modules
    )
    cut = accelerate.infer_auto_device_map(model, max_memory={0: size, "cpu": 10**9}, no_split_module_classes=[])
    assert any(".layers.0." in name for name in cut), "this much memory would cut a layer"
    assert not any(".layers.0." in name or ".layers.1." in name for name in whole)
