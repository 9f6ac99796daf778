"""Generation with OpenAI GPT: a cache inside, although `forward` has none, and batches that do not disturb rows."""

import pytest
import torch

from gpt_neo_models import gap, tokens
from openai_gpt_models import make
from triptych.errors import GenerationWarning, SequenceTooLongError
from triptych.generation.outputs import GenerateDecoderOnlyOutput
from triptych.models.openai_gpt.modeling_torch import OpenAIGPTDoubleHeadsModel, OpenAIGPTModel
from triptych.runtime.cache import KeyValueCache

TOLERANCE = 2e-5
PADDED = torch.tensor([[0, 0, 7, 8, 12], [9, 3, 20, 14, 11], [0, 0, 0, 0, 21]])
MASK = (PADDED != 0).long()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_decoding_from_the_cache_gives_what_the_whole_text_gives(implementation):
    model, ids = make(attn_implementation=implementation), tokens(2, 12)
    with torch.no_grad():
        whole = model(ids).logits
        step = model.next_token_logits(ids[:, :4], cache=model.new_cache(2, 12))
        assert gap(step.logits, whole[:, 3]) <= TOLERANCE
        for place in range(4, 12):
            step = model.next_token_logits(ids[:, place : place + 1], cache=step.cache)
            assert gap(step.logits, whole[:, place]) <= TOLERANCE
        assert isinstance(step.cache, KeyValueCache)
        assert step.cache.length == 12
        assert [tuple(x.shape) for x in step.cache[0]] == [(2, 3, 12, 4)] * 2
        uncached = model.next_token_logits(ids, cache=None)
        assert gap(uncached.logits, whole[:, -1]) <= TOLERANCE
    assert uncached.cache is None
    assert model.half().next_token_logits(ids, cache=None).logits.dtype == torch.float32


def test_one_more_token_costs_one_token_of_work_whatever_the_prefix():
    """What the blocks are given, and the head: one position for each new token."""
    for prefix in (4, 30):
        model, fed, heads = make(), [], []
        model.transformer.h[0].register_forward_pre_hook(lambda module, args, seen=fed: seen.append(args[0].shape[1]))
        model.lm_head.register_forward_pre_hook(lambda module, args, seen=heads: seen.append(args[0].dim()))
        model.generate(tokens(1, prefix), max_new_tokens=6)
        assert fed == [prefix, 1, 1, 1, 1, 1]
        assert heads == [2] * 6


def test_the_cache_has_room_for_the_whole_text_from_the_start():
    output = make().generate(PADDED[1:2], max_new_tokens=12, return_dict_in_generate=True)
    key, _ = output.past_key_values[0]
    assert key.shape[2] == 16
    assert key.untyped_storage().nbytes() == key.numel() * key.element_size()


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_left_padded_batch_gives_what_each_row_gives_alone(use_cache):
    model = make()
    batch = model.generate(PADDED, attention_mask=MASK, max_new_tokens=20, use_cache=use_cache)
    assert model.generate(PADDED, max_new_tokens=20, pad_token_id=0).tolist() == batch.tolist()
    for row, ids in zip(batch, PADDED, strict=True):
        alone = model.generate(ids[ids != 0][None], max_new_tokens=20)[0]
        assert row[5:].tolist() == alone[int((ids != 0).sum()) :].tolist()


@pytest.mark.parametrize("sequences", [1, 2])
def test_sampling_with_and_without_the_cache_draws_the_same(sequences):
    model, drawn = make(), []
    options = {"do_sample": True, "max_new_tokens": 20, "num_return_sequences": sequences, "pad_token_id": 0}
    for use_cache in (True, False):
        torch.manual_seed(5)
        drawn.append(model.generate(PADDED, use_cache=use_cache, **options).tolist())
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("use_cache", [True, False])
def test_token_types_go_on_with_their_last_value(use_cache):
    model, ids, types = make(), PADDED[1:2], torch.tensor([[1, 1, 2, 2, 2]])
    with torch.no_grad():
        expected = ids
        for _ in range(8):
            all_types = torch.nn.functional.pad(types, (0, expected.shape[1] - 5), value=2)
            following = model(expected, token_type_ids=all_types).logits[:, -1].argmax(-1, keepdim=True)
            expected = torch.cat((expected, following), dim=1)
    given = model.generate(ids, token_type_ids=types, max_new_tokens=8, use_cache=use_cache)
    assert given.tolist() == expected.tolist()
    assert given.tolist() != model.generate(ids, max_new_tokens=8).tolist()


def test_token_types_of_a_padded_batch_do_not_disturb_the_rows():
    model, types = make(), tokens(3, 5, seed=4)
    batch = model.generate(PADDED, attention_mask=MASK, token_type_ids=types, max_new_tokens=8)
    for row, ids, kinds in zip(batch, PADDED, types, strict=True):
        real = ids != 0
        alone = model.generate(ids[real][None], token_type_ids=kinds[real][None], max_new_tokens=8)[0]
        assert row[5:].tolist() == alone[int(real.sum()) :].tolist()


def test_positions_are_counted_on_and_head_masks_hold_for_every_token():
    model, ids = make(), PADDED[:1]
    positions = torch.tensor([[1, 1, 0, 1, 2]])
    options = {"attention_mask": MASK[:1], "max_new_tokens": 8}
    assert model.generate(ids, position_ids=positions, **options).tolist() == model.generate(ids, **options).tolist()
    heads = torch.tensor([[1.0, 0, 1], [0, 1, 1]])
    masked = model.generate(PADDED[1:2], head_mask=heads, max_new_tokens=8)
    model.prune_heads({0: [1], 1: [0]})
    assert masked.tolist() == model.generate(PADDED[1:2], max_new_tokens=8).tolist()


@pytest.mark.parametrize("use_cache", [True, False])
def test_embeddings_are_continued_as_their_ids(use_cache):
    model, ids = make(bos_token_id=1), PADDED[1:2]
    embeds = model.get_input_embeddings()(ids).detach()
    alone = model.generate(inputs_embeds=embeds, max_new_tokens=6, use_cache=use_cache)
    assert alone[:, 1:].tolist() == model.generate(ids, max_new_tokens=6)[:, 5:].tolist()


def test_the_output_object_holds_what_was_asked_for():
    traces = {"output_scores": True, "output_attentions": True, "output_hidden_states": True}
    output = make().generate(PADDED[1:2], max_new_tokens=3, return_dict_in_generate=True, **traces)
    assert isinstance(output, GenerateDecoderOnlyOutput)
    assert list(output) == ["sequences", "scores", "attentions", "hidden_states", "past_key_values"]
    assert [tuple(step[1].shape) for step in output.attentions] == [(1, 3, 5, 5), (1, 3, 1, 6), (1, 3, 1, 7)]
    assert [tuple(step[-1].shape) for step in output.hidden_states] == [(1, 5, 12), (1, 1, 12), (1, 1, 12)]


def test_a_prompt_longer_than_the_positions_is_refused_with_both_numbers():
    model = make()
    with pytest.raises(SequenceTooLongError, match="40 positions but the prompt alone needs 41"):
        model.generate(tokens(1, 41), max_new_tokens=1)
    with pytest.raises(SequenceTooLongError, match=r"40 positions .* 38 tokens and 9 new ones need 46"):
        model.generate(tokens(1, 38), max_new_tokens=9)
    assert model.generate(tokens(1, 38), max_new_tokens=3).shape == (1, 41)


def test_rows_that_may_end_early_without_a_pad_token_are_told_what_to_set():
    with pytest.warns(GenerationWarning, match=r"pad_token_id is not set.*Pass pad_token_id"):
        make().generate(PADDED[1:2].repeat(2, 1), max_new_tokens=4, eos_token_id=5)

    class Letters:
        def decode(self, ids):
            return "".join("abcdefghij"[i % 10] for i in ids)

    with pytest.raises(ValueError, match=r"filled with pad_token_id, which is not set\. Pass pad_token_id="):
        make().generate(PADDED[1:2].repeat(2, 1), max_new_tokens=4, stop_strings="a", tokenizer=Letters())


def test_training_mode_and_gradient_checkpointing_do_not_disturb_generation():
    model = make(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    expected = model.generate(PADDED[1:2], max_new_tokens=6).tolist()
    model.train().gradient_checkpointing_enable()
    assert model.generate(PADDED[1:2], max_new_tokens=6).tolist() == expected
    assert model.training


def test_only_the_language_model_generates():
    assert not OpenAIGPTModel.can_generate()
    assert not OpenAIGPTDoubleHeadsModel.can_generate()
    with pytest.raises(TypeError, match="cannot generate"):
        make(OpenAIGPTModel).generate(PADDED)
