"""`generate` in PyTorch: from a prompt to the finished ids, token by token.

`read_prompt` and `settle_length` check the call, `pipeline_torch` makes the transforms and criteria, `Feed` turns the
ids so far into the next token's logits, and a strategy (`sampling_torch`, …) is the loop over a `Run`.

Shapes: B rows, N ids of the prompt, T ids so far, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from triptych.generation import pipeline_torch, sampling_torch
from triptych.generation.checks import as_ids, require_int
from triptych.generation.configuration import GenerationConfig
from triptych.generation.feed_torch import Feed
from triptych.generation.lengths import settle_length
from triptych.generation.options import check_token_ids, notice, refuse_unsupported_arguments, resolve
from triptych.generation.outputs import GenerateDecoderOnlyOutput
from triptych.generation.prompt_torch import read_prompt
from triptych.generation.run_torch import Run

if TYPE_CHECKING:
    from triptych.modeling_torch import PreTrainedModel


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
) -> Tensor | GenerateDecoderOnlyOutput:
    """Continue each row of the prompt `inputs` (B, N), greedily or, with do_sample=True, by sampling.

    Keyword arguments are options (see `GenerationConfig`) or inputs of the model. They win over `generation_config`,
    which wins over the model's own options; an option that a given `generation_config` leaves out has the documented
    default, but bos, eos and pad ids come from the model. `eos_token_id=None` as a keyword argument means no end.

    The prompt may be left-padded: positions follow `attention_mask`, so that each row gives what it gives alone.
    Without a mask, pad tokens count as padding unless they also end texts. A prompt of `inputs_embeds` alone leaves
    bos and the new ids in the result; without any prompt generation starts from bos.

    `stop_strings` needs `tokenizer=`. `streamer.put` gets the prompt and then each new token, and `streamer.end` is
    called whatever happens.

    Returns: ids (B * num_return_sequences, T), prompt included, each row filled with pad_token_id after its end; with
        `return_dict_in_generate` a GenerateDecoderOnlyOutput.
    Raises: ValueError for options that are out of range, contradict each other or are not supported (greedy and
        sampling are); UnknownOptionError; TokenIdError; SequenceTooLongError.
    """
    try:
        refuse_unsupported_arguments(
            synced_gpus=synced_gpus,
            assistant_model=assistant_model,
            negative_prompt_ids=negative_prompt_ids,
            negative_prompt_attention_mask=negative_prompt_attention_mask,
        )
        ids, tokenizer = _one_prompt(inputs, kwargs.pop("input_ids", None)), kwargs.pop("tokenizer", None)
        request = resolve(model, generation_config, kwargs)
        options = request.options
        check_token_ids(options, model.config.vocab_size)
        require_int("num_return_sequences", options.num_return_sequences, 1)
        prompt = read_prompt(model, ids, request)
        room = settle_length(request, prompt, model.max_positions)
        with torch.no_grad():
            feed = Feed(model, prompt, room, options)
            all_ids = prompt.ids.repeat_interleave(options.num_return_sequences, dim=0)
            _settle_padding(options, len(all_ids), model.config.vocab_size)
            call = pipeline_torch.Call(options, all_ids, prefix_allowed_tokens_fn, tokenizer)
            run = Run(
                feed=feed,
                prompt=all_ids,
                options=options,
                transforms=pipeline_torch.transforms(call, logits_processor),
                criteria=pipeline_torch.criteria(call, stopping_criteria),
                streamer=streamer,
            )
            return sampling_torch.decode(run)
    finally:
        if streamer is not None:
            streamer.end()


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
