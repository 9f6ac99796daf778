"""GPT Neo in Flax and in PyTorch: one file, the same numbers."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("jax")
pytest.importorskip("flax")

import jax
import jax.numpy as jnp
import torch

from gpt_neo_flax_models import gap, made
from gpt_neo_models import make, tokens
from triptych import AutoTokenizer, FlaxGPTNeoForCausalLM, GPTNeoForCausalLM, activations_flax, activations_torch
from triptych.checkpoints.pretrained_flax import slots_of
from triptych.errors import UnsafeFileError
from triptych.losses_flax import next_token_loss
from triptych.trees import leaves_of, tree_of

TOLERANCE = 2e-5


def twin(theirs):
    """The Flax model with a PyTorch model's weights."""
    model = made(FlaxGPTNeoForCausalLM, theirs.config)
    state = theirs.state_dict()
    model.params = tree_of(
        {
            slot.leaf: jnp.asarray((state[name].T if slot.is_turned else state[name]).numpy())
            for name, slot in slots_of(model.params_shape_tree).items()
        }
    )
    return model


@pytest.mark.parametrize(
    ("fields", "lengths"),
    [
        ({"num_heads": 3, "window_size": 3}, (2, 3, 4, 11)),
        ({"num_heads": 5, "hidden_size": 15, "window_size": 1, "tie_word_embeddings": False}, (1, 9)),
        ({"window_size": 256, "max_position_embeddings": 300, "num_heads": 5, "hidden_size": 10}, (255, 256, 257)),
    ],
    ids=["window3", "window1", "window256"],
)
def test_logits_are_the_same_around_the_window(fields, lengths):
    theirs = make(**fields)
    ours = twin(theirs)
    for length in lengths:
        ids = tokens(2, length, seed=length)
        with torch.no_grad():
            assert gap(ours(ids.numpy()).logits, theirs(ids).logits) <= TOLERANCE


def test_loss_and_gradients_are_the_same():
    theirs = make(num_heads=3)
    ours = twin(theirs)
    ids, mask = tokens(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    loss = theirs(ids, attention_mask=mask, labels=labels).loss
    loss.backward()

    def loss_of(params):
        return next_token_loss(ours(ids.numpy(), mask.numpy(), params=params).logits, jnp.asarray(labels.numpy()))

    value, gradients = jax.jit(jax.value_and_grad(loss_of))(ours.params)
    assert gap(value, loss.detach()) <= TOLERANCE
    found = leaves_of(gradients)
    theirs_by_name = {name: weight.grad for name, weight in theirs.named_parameters()}
    for name, slot in slots_of(ours.params_shape_tree).items():
        ours_here = found[slot.leaf].T if slot.is_turned else found[slot.leaf]
        assert gap(ours_here, theirs_by_name[name]) <= TOLERANCE, name


def test_every_activation_is_the_same():
    assert activations_flax.ACTIVATIONS.keys() == activations_torch.ACTIVATIONS.keys()
    x = np.linspace(-12, 12, 97, dtype=np.float32)
    for name, function in activations_flax.ACTIVATIONS.items():
        theirs = activations_torch.ACTIVATIONS[name](torch.tensor(x))
        assert gap(function(jnp.asarray(x)), theirs) <= TOLERANCE, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"max_shard_size": "3KB"}, {"safe_serialization": False}], ids=str)
def test_what_pytorch_saves_loads_and_is_saved_again_byte_for_byte(tmp_path, dtype, options):
    theirs = make(tie_word_embeddings=False).to(dtype)
    theirs.save_pretrained(tmp_path / "torch", **options)
    ours = FlaxGPTNeoForCausalLM.from_pretrained(tmp_path / "torch")
    for name, slot in slots_of(ours.params).items():
        value = leaves_of(ours.params)[slot.leaf]
        assert gap(value.T if slot.is_turned else value, theirs.state_dict()[name].float()) == 0
    if options.get("safe_serialization", True):
        params = ours.params if dtype == torch.float32 else ours.to_bf16(ours.params)
        ours.save_pretrained(tmp_path / "flax", params=params, **options)
        names = sorted(path.name for path in (tmp_path / "torch").iterdir())
        assert names == sorted(path.name for path in (tmp_path / "flax").iterdir())
        for name in names:
            assert (tmp_path / "flax" / name).read_bytes() == (tmp_path / "torch" / name).read_bytes(), name


def test_what_flax_saves_loads_in_pytorch(tmp_path):
    theirs = make()
    ours = twin(theirs)
    ours.save_pretrained(tmp_path)
    again = GPTNeoForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in again.state_dict().items())


def test_a_pickle_with_more_than_tensors_is_refused(tmp_path):
    make().save_pretrained(tmp_path, safe_serialization=False)
    path = tmp_path / "pytorch_model.bin"
    torch.save(torch.load(path) | {"step": 3}, path)
    with pytest.raises(UnsafeFileError, match="step is something else"):
        FlaxGPTNeoForCausalLM.from_pretrained(tmp_path)


def test_the_model_in_the_box_gives_the_same_numbers():
    ours = FlaxGPTNeoForCausalLM.from_pretrained("triptych/tales-neo")
    theirs = GPTNeoForCausalLM.from_pretrained("triptych/tales-neo")
    ids = tokens(2, 20, vocab=ours.config.vocab_size)
    with torch.no_grad():
        assert gap(ours(ids.numpy()).logits, theirs(ids).logits) <= TOLERANCE


# -- generation ----------------------------------------------------------------------------------------------------

PROMPT = tokens(3, 6, seed=5)
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6, [0, 0, 0, 0, 1, 1]])
PAIR = {}


def pair():
    if not PAIR:
        theirs = make(seed=4)
        PAIR["theirs"], PAIR["ours"] = theirs, twin(theirs)
    return PAIR["ours"], PAIR["theirs"]


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 8, "eos_token_id": [5, 9]},
        {"max_new_tokens": 8, "repetition_penalty": 1.7, "encoder_repetition_penalty": 1.2, "no_repeat_ngram_size": 2},
        {"max_new_tokens": 8, "encoder_no_repeat_ngram_size": 2, "bad_words_ids": [[3], [7, 8], [1, 2, 3]]},
        {"max_new_tokens": 6, "sequence_bias": {(4,): 2.0, (2, 6): 9.0}, "min_new_tokens": 4, "eos_token_id": 4},
        {"max_new_tokens": 6, "eos_token_id": 9, "exponential_decay_length_penalty": (2, 3.0), "min_length": 9},
        {"max_new_tokens": 6, "forced_decoder_ids": [[7, 3], [8, None]], "forced_eos_token_id": 2},
        {
            "max_new_tokens": 6,
            "suppress_tokens": [1, 2, 3],
            "begin_suppress_tokens": [4, 5],
            "renormalize_logits": True,
        },
    ],
    ids=lambda options: ", ".join(options),
)
def test_greedy_ids_are_the_same_whatever_the_rules(options):
    ours, theirs = pair()
    given = {"pad_token_id": 0, "eos_token_id": None} | options
    wanted = theirs.generate(PROMPT, attention_mask=MASK, **given).numpy()
    got = np.asarray(ours.generate(PROMPT.numpy(), attention_mask=MASK.numpy(), **given).sequences)
    assert np.array_equal(got[:, : wanted.shape[1]], wanted)
    assert (got[:, wanted.shape[1] :] == 0).all()
    assert got.shape == (3, 6 + options["max_new_tokens"])


BEAMS = (
    {"num_beams": 3},
    {"num_beams": 3, "length_penalty": -1.5, "eos_token_id": [5, 9], "num_return_sequences": 3},
    {"num_beams": 2, "length_penalty": 0.0, "eos_token_id": [5, 9, 14, 20], "num_return_sequences": 2},
    {"num_beams": 4, "length_penalty": 2.0, "eos_token_id": [5, 9], "no_repeat_ngram_size": 2},
    {"num_beams": 3, "early_stopping": True, "eos_token_id": [20, 5, 9], "num_return_sequences": 2},
    {"num_beams": 3, "early_stopping": "never", "length_penalty": 2.0, "eos_token_id": list(range(1, 31, 2))},
    {"num_beams": 3, "early_stopping": "never", "length_penalty": -0.5, "repetition_penalty": 1.7},
    {"num_beams": 4, "early_stopping": True, "min_length": 9, "eos_token_id": [5, 9, 14, 20], "length_penalty": -1.0},
    {"num_beams": 3, "forced_eos_token_id": 9, "eos_token_id": 9, "num_return_sequences": 3},
    {"num_beams": 3, "eos_token_id": None, "num_return_sequences": 3, "length_penalty": 2.0},
    {"num_beams": 4, "suppress_tokens": list(range(2, 29)), "eos_token_id": 30, "num_return_sequences": 4},
)


@pytest.mark.parametrize("options", BEAMS, ids=lambda options: ", ".join(options))
def test_beams_have_pytorchs_ids_and_scores(options):
    """Each program is compiled once and then meets several random models, so that rows end early, late and never."""
    ours, _ = pair()
    given = {"pad_token_id": 0, "eos_token_id": 5, "max_new_tokens": 7} | options
    for seed in range(8):
        theirs = make(seed=seed)
        wanted = theirs.generate(PROMPT, attention_mask=MASK, return_dict_in_generate=True, output_scores=True, **given)
        got = ours.generate(PROMPT.numpy(), attention_mask=MASK.numpy(), params=twin(theirs).params, **given)
        width = wanted.sequences.shape[1]
        assert np.array_equal(got.sequences[:, :width], wanted.sequences), seed
        assert (np.asarray(got.sequences[:, width:]) == 0).all()
        assert gap(got.scores, wanted.sequences_scores) <= 1e-4


@pytest.mark.parametrize("beams", [{}, {"num_beams": 4, "num_return_sequences": 2}], ids=["greedy", "beams"])
def test_the_model_in_the_box_writes_the_same(beams):
    tokenizer = AutoTokenizer.from_pretrained("triptych/tales-neo", padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    inputs = tokenizer(["Once upon a time there was a", "The king said"], return_tensors="np", padding=True)
    stops = [tokenizer.eos_token_id, *tokenizer(".").input_ids]
    given = {**inputs, **beams, "max_new_tokens": 20, "eos_token_id": stops, "pad_token_id": tokenizer.eos_token_id}
    ours = FlaxGPTNeoForCausalLM.from_pretrained("triptych/tales-neo").generate(**given)
    given |= {name: torch.tensor(value) for name, value in inputs.items()}
    theirs = GPTNeoForCausalLM.from_pretrained("triptych/tales-neo").generate(
        **given, return_dict_in_generate=True, output_scores=True
    )
    width = theirs.sequences.shape[1]
    assert np.array_equal(ours.sequences[:, :width], theirs.sequences)
    assert (np.asarray(ours.sequences[:, width:]) == tokenizer.eos_token_id).all()
    if beams:
        assert gap(ours.scores, theirs.sequences_scores) <= 1e-4


WARPED = (
    {"temperature": 0.6},
    {"top_k": 4},
    {"top_k": 0, "top_p": 0.5},
    {"top_k": 0, "typical_p": 0.4},
    {"top_k": 0, "epsilon_cutoff": 0.03},
    {"top_k": 0, "eta_cutoff": 0.1},
)


def test_filters_leave_the_scores_that_pytorchs_leave():
    from triptych.generation import logits_flax, pipeline_torch
    from triptych.generation.configuration import GenerationConfig

    scores = np.random.default_rng(1).standard_normal((4, 31)).astype(np.float32) * 3
    scores[1, :9] = scores[1, 9]  # some that are equal
    for fields in WARPED:
        options = GenerationConfig(do_sample=True, **fields)
        theirs = pipeline_torch.transforms(pipeline_torch.Call(options, PROMPT), None)(PROMPT, torch.tensor(scores))
        ours = logits_flax.transforms(logits_flax.Call(options, 6), None)(
            jnp.zeros((4, 9), int), jnp.asarray(scores), 6
        )
        is_in = np.isfinite(np.asarray(ours))
        assert np.array_equal(is_in, np.isfinite(theirs.numpy())), fields
        assert np.abs(np.asarray(ours)[is_in] - theirs.numpy()[is_in]).max() <= TOLERANCE


def test_sampling_draws_from_the_distribution_by_its_key():
    ours, theirs = pair()
    prompt = PROMPT[1:2]
    given = {"do_sample": True, "max_new_tokens": 1, "top_k": 0, "num_return_sequences": 4000, "eos_token_id": None}
    key = jax.random.PRNGKey(3)
    drawn = np.asarray(ours.generate(prompt.numpy(), prng_key=key, **given).sequences)
    assert drawn.shape == (4000, 7)
    assert np.array_equal(drawn, ours.generate(prompt.numpy(), prng_key=key, **given).sequences)
    assert not np.array_equal(drawn, ours.generate(prompt.numpy(), prng_key=jax.random.PRNGKey(4), **given).sequences)
    with torch.no_grad():
        p = theirs(prompt).logits[0, -1].softmax(-1).numpy()
    share = np.bincount(drawn[:, -1], minlength=31) / 4000
    assert np.abs(share - p).max() < 4 * np.sqrt(0.25 / 4000)
    few = given | {"top_k": 3, "num_return_sequences": 300}
    assert set(np.asarray(ours.generate(prompt.numpy(), **few).sequences)[:, -1]) == set(np.argsort(p)[-3:])


def test_what_a_compiled_loop_has_no_place_for_is_refused():
    ours, _ = pair()
    for given, message in (
        ({"stop_strings": ["x"]}, "stop_strings is not supported"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha is not supported"),
        ({"num_beams": 2, "do_sample": True}, "do_sample together with num_beams"),
        ({"colour": 1}, "got 'colour'"),
        ({"max_new_tokens": 0}, "max_new_tokens must be an int of at least 1"),
        ({"max_new_tokens": 100}, "40 positions but the prompt of 6 tokens and 100 new ones"),
        ({"do_sample": True, "temperature": 0.0}, "temperature must be a number above 0"),
        ({"attention_mask": np.zeros((3, 6))}, "row 0 is all padding"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            ours.generate(PROMPT.numpy(), **({"max_new_tokens": 3, "eos_token_id": None} | given))
    with pytest.raises(ValueError, match="no distribution to draw from"):
        ours.generate(
            PROMPT.numpy(), do_sample=True, max_new_tokens=2, eos_token_id=None, suppress_tokens=list(range(31))
        )


def test_own_transforms_take_part_and_a_loop_can_run_step_by_step():
    ours, _ = pair()
    plain = {"max_new_tokens": 3, "eos_token_id": None}
    sevens = [lambda ids, scores, length: scores.at[:, 7].set(99.0)]
    assert (np.asarray(ours.generate(PROMPT.numpy(), logits_processor=sevens, **plain).sequences)[:, 6:] == 7).all()
    by_step = ours.generate(PROMPT.numpy(), trace=False, **plain).sequences
    assert np.array_equal(by_step, ours.generate(PROMPT.numpy(), **plain).sequences)
