"""`generate` in PyTorch: from a prompt to the finished ids, token by token.

`read_prompt` and `settle_length` check the call, `pipeline_torch` makes the transforms and criteria, `Feed` turns the
ids so far into the next token's logits, and a strategy (`sampling_torch`, …) is the loop over a `Run`.

Shapes: B rows, N ids of the prompt, T ids so far, V vocabulary.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from triptych.generation import (
    assisted_torch,
    beams_torch,
    constrained_beams_torch,
    contrastive_torch,
    pipeline_torch,
    sampling_torch,
)
from triptych.generation.beam_checks import check_constraints
from triptych.generation.checks import as_ids
from triptych.generation.configuration import GenerationConfig
from triptych.generation.drafting_torch import drafter
from triptych.generation.guidance_torch import guided_feed
from triptych.generation.lengths import settle_length
from triptych.generation.options import NOT_FOR_USERS, check_token_ids, notice, resolve
from triptych.generation.outputs import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from triptych.generation.prompt_torch import read_negative_prompt, read_prompt
from triptych.generation.run_torch import Run
from triptych.generation.strategies import check_assistant
from triptych.generation.synchronising_torch import InStep

if TYPE_CHECKING:
    from triptych.modeling_torch import PreTrainedModel


Output = Tensor | GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput

# The loop of each strategy that `strategies.strategy_of` names.
STRATEGIES: dict[str, Callable[[Run], Output]] = {
    "greedy": sampling_torch.decode,
    "sample": sampling_torch.decode,
    "contrastive": contrastive_torch.decode,
    "assisted": assisted_torch.decode,
    "beam": beams_torch.decode,
    "beam sample": beams_torch.decode,
    "group beam": beams_torch.decode,
    "constrained beam": constrained_beams_torch.decode,
}


def generate(
    model: "PreTrainedModel",
    inputs: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    logits_processor: Sequence[Any] | None = None,
    stopping_criteria: Sequence[Any] | None = None,
    prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]] | None = None,
    synced_gpus: bool | None = None,
    assistant_model: Any = None,
    streamer: Any = None,
    negative_prompt_ids: Tensor | None = None,
    negative_prompt_attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Output:
    """Continue each row of the prompt `inputs` (B, N): greedily, by sampling (do_sample=True), or with beams.

    Keyword arguments are options (see `GenerationConfig`) or inputs of the model. They win over `generation_config`,
    which wins over the model's own options; an option that a given `generation_config` leaves out has the documented
    default, but bos, eos and pad ids come from the model. `eos_token_id=None` as a keyword argument means no end.

    The prompt may be left-padded: positions follow `attention_mask`, so that each row gives what it gives alone. Rows
    of similar length are read together, so that little padding is computed. Without a mask, pad tokens count as padding
    unless they also end texts. A prompt of `inputs_embeds` alone leaves bos and the new ids in the result; without any
    prompt generation starts from bos.

    `stop_strings`, `json_schema` and `regex` need `tokenizer=`. `streamer.put` gets the prompt and then each new token,
    and `streamer.end` is called whatever happens.

    With `num_beams` above 1 the `num_return_sequences` best texts of each prompt come back, best first. A text's score
    is its log-probability over its number of new tokens to the power of `length_penalty`. `num_beam_groups` search
    apart, and `diversity_penalty` keeps them so; `force_words_ids` and `constraints` say what the new text must hold,
    where that can be reached. Each text shorter than the longest ends in the (first) eos id.

    `assistant_model`, of the same vocabulary, or `prompt_lookup_num_tokens` write drafts that the model checks: the
    text stays the model's. `guidance_scale` leads away from `negative_prompt_ids` (B or 1, M), by default the last
    token. `synced_gpus` keeps the processes of `torch.distributed` in step, as sharded weights need; an assistant is
    not kept.

    Returns: ids (B * num_return_sequences, T), prompt included, each row filled with pad_token_id after its end; with
        `return_dict_in_generate` a GenerateDecoderOnlyOutput, or of beams a GenerateBeamDecoderOnlyOutput.
    Raises: ValueError for options that are out of range or exclude each other; UnknownOptionError; TokenIdError;
        SequenceTooLongError. A GenerationWarning names options of the call that have no effect in it.
    """
    if not all(hasattr(streamer, name) for name in ("put", "end") if streamer is not None):
        raise TypeError(f"streamer must have put() and end(), as a TextStreamer has; got {type(streamer).__name__}.")
    try:
        ids, tokenizer = _one_prompt(inputs, kwargs.pop("input_ids", None)), kwargs.pop("tokenizer", None)
        arguments = {
            "assistant_model": assistant_model,
            "streamer": streamer,
            "negative_prompt_ids": negative_prompt_ids,
            "negative_prompt_attention_mask": negative_prompt_attention_mask,
        }
        request = resolve(model, generation_config, kwargs, arguments=arguments, inputs=_inputs(model))
        options, strategy = request.options, request.strategy
        options.do_sample = options.do_sample and strategy != "constrained beam"  # as was said
        check_token_ids(options, model.config.vocab_size)
        check_assistant(model, assistant_model)
        prompt = read_prompt(model, ids, request)
        if strategy == "contrastive" and prompt.past is not None:
            raise ValueError(
                "Contrastive search compares with the hidden states of the whole text, which past_key_values do not "
                "hold. Leave past_key_values out."
            )
        negative = read_negative_prompt(model, prompt, options, negative_prompt_ids, negative_prompt_attention_mask)
        room = settle_length(request, prompt, model.max_positions, last_is_fed=strategy == "contrastive")
        check_constraints(options, room)
        in_step = InStep(model) if synced_gpus else None
        with torch.no_grad():
            copies = options.num_beams if options.num_beams > 1 else options.num_return_sequences
            rows = len(prompt.ids) * options.num_return_sequences
            if strategy == "assisted":  # drafts come before the first step
                negative = negative and negative.repeated(copies)
                prompt, copies = prompt.repeated(copies), 1
            how = {
                "copies": copies,
                "whole": strategy in ("contrastive", "assisted"),
                "ahead": options.top_k if strategy == "contrastive" else 0,
                "in_step": in_step,
            }
            feed = guided_feed(model, prompt, negative, room, options, **how)
            all_ids = prompt.ids.repeat_interleave(copies, dim=0)
            _settle_padding(options, rows, model.config.vocab_size)
            call = pipeline_torch.Call(options, all_ids, prefix_allowed_tokens_fn, tokenizer)
            transforms = pipeline_torch.transforms(call, logits_processor)
            run = Run(
                feed=feed,
                prompt=all_ids,
                options=options,
                transforms=transforms,
                criteria=pipeline_torch.criteria(call, stopping_criteria),
                streamer=streamer,
                drafter=drafter(request, prompt, room, transforms, assistant_model) if strategy == "assisted" else None,
            )
            output = STRATEGIES[strategy](run)
            if in_step is not None:
                in_step.run_along()
            return output
    finally:
        if streamer is not None:
            streamer.end()


def _inputs(model: "PreTrainedModel") -> frozenset[str]:
    """What the model takes from a user of `generate`: what its `forward` does, and a cache if it decodes with one."""
    own = frozenset(inspect.signature(model.forward).parameters) - NOT_FOR_USERS
    return own | {"past_key_values"} if model.decodes_with_cache else own


def _one_prompt(inputs: Tensor | None, input_ids: Tensor | None) -> Tensor | None:
    if inputs is not None and input_ids is not None:
        raise ValueError("inputs and input_ids are two names of the prompt, and both were given. Pass one of them.")
    return input_ids if inputs is None else inputs


def _settle_padding(options: GenerationConfig, rows: int, vocab_size: int) -> None:
    """Choose what fills rows after their end; only in a batch is anything filled.

    Raises: ValueError when a batch may need a pad token and there is none.
    """
    if rows == 1 or (options.eos_token_id is None and options.stop_strings is None):
        return
    if options.pad_token_id is None:
        if options.eos_token_id is None:
            raise ValueError(
                "Rows that end early are filled with pad_token_id, which is not set. Pass pad_token_id=..."
            )
        options.pad_token_id = as_ids(options.eos_token_id)[0]
        notice(
            f"pad_token_id is not set, so rows that end early are filled with eos_token_id={options.pad_token_id}. "
            "Pass pad_token_id to choose."
        )
    if not 0 <= options.pad_token_id < vocab_size:
        raise ValueError(
            f"pad_token_id must be from 0 to {vocab_size - 1}, the vocabulary's size less one; "
            f"got {options.pad_token_id}."
        )
