"""`generate` in PyTorch: from a prompt to the finished ids, token by token.

`read_prompt` and `settle_length` check the call, `pipeline_torch` makes the transforms and criteria, `Feed` turns the
ids so far into the next token's logits, and `_decode` is the loop. Other strategies get a loop of their own beside it.

Shapes: B rows, N ids of the prompt, T ids so far, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from triptych.generation import pipeline_torch
from triptych.generation.checks import as_ids, require_int
from triptych.generation.configuration import GenerationConfig
from triptych.generation.feed_torch import Feed
from triptych.generation.lengths import settle_length
from triptych.generation.options import check_token_ids, notice, refuse_unsupported_arguments, resolve
from triptych.generation.outputs import GenerateDecoderOnlyOutput
from triptych.generation.prompt_torch import read_prompt

if TYPE_CHECKING:
    from triptych.modeling_torch import NextToken, PreTrainedModel


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

    `stop_strings`, `json_schema` and `regex` need `tokenizer=`. `streamer.put` gets the prompt and then each new token,
    and `streamer.end` is called whatever happens.

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
            call = pipeline_torch.Call(options, all_ids, prefix_allowed_tokens_fn, tokenizer, model.config.vocab_size)
            transforms = pipeline_torch.transforms(call, logits_processor)
            criteria = pipeline_torch.criteria(call, stopping_criteria)
            return _decode(feed, all_ids, options, transforms, criteria, streamer)
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


def _decode(
    feed: Feed,
    prompt: Tensor,
    options: GenerationConfig,
    transforms: Callable[[Tensor, Tensor], Tensor],
    criteria: Callable[[Tensor, Any], bool | Tensor],
    streamer: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """Greedy decoding and sampling: transform the logits, choose a token for each row, until all rows end.

    `prompt` (B, N). At each step one `torch.multinomial` on the probabilities (B, V) draws all rows' tokens.
    """
    rows, length = prompt.shape
    ids = prompt.new_zeros((rows, options.max_length))
    ids[:, :length] = prompt
    ends = torch.tensor(as_ids(options.eos_token_id), dtype=torch.long, device=ids.device)
    running = torch.ones(rows, dtype=torch.bool, device=ids.device)
    trace = _Trace(options)
    if streamer is not None:
        streamer.put(prompt.cpu())
    while True:
        step = feed.step(ids[:, :length])
        scores = transforms(ids[:, :length], step.logits)
        trace.add(scores, step)
        tokens = _drawn(scores) if options.do_sample else scores.argmax(dim=-1)  # (B,)
        if rows > 1 and options.pad_token_id is not None:
            tokens = tokens.where(running, options.pad_token_id)
        ids[:, length] = tokens
        length += 1
        if streamer is not None:
            streamer.put(tokens.cpu())
        if len(ends):
            running &= (tokens[:, None] != ends).all(dim=1)
        verdict = criteria(ids[:, :length], trace.scores)
        if isinstance(verdict, Tensor):
            running &= ~verdict
        elif verdict:
            break
        if (len(ends) or isinstance(verdict, Tensor)) and not bool(running.any()):
            break
    sequences = ids[:, :length].clone()
    return trace.output(sequences, step.cache) if options.return_dict_in_generate else sequences


def _drawn(scores: Tensor) -> Tensor:
    """One token per row, drawn with the probabilities that the scores (B, V) stand for.

    Raises: ValueError when they stand for none: a score is NaN or +inf, or every token of a row is ruled out.
    """
    probabilities = scores.softmax(dim=-1)
    try:
        return torch.multinomial(probabilities, num_samples=1).squeeze(1)
    except RuntimeError as error:
        if bool(probabilities.isfinite().all()):
            raise
        raise ValueError(
            "The scores give no distribution to draw from: one is NaN or infinite, or all tokens are ruled out. "
            "Use bfloat16 or float32 weights, allow more tokens, or pass remove_invalid_values=True."
        ) from error


class _Trace:
    """What the steps leave behind for the output, where it was asked for."""

    def __init__(self, options: GenerationConfig) -> None:
        asked = options.return_dict_in_generate
        self.scores: tuple[Tensor, ...] | None = () if asked and options.output_scores else None
        self.attentions: list[Any] | None = [] if asked and options.output_attentions else None
        self.hidden_states: list[Any] | None = [] if asked and options.output_hidden_states else None

    def add(self, scores: Tensor, step: "NextToken") -> None:
        """Keep one step's transformed scores (B, V) and what the model gave out."""
        if self.scores is not None:
            self.scores += (scores,)
        if self.attentions is not None:
            self.attentions.append(step.attentions)
        if self.hidden_states is not None:
            self.hidden_states.append(step.hidden_states)

    def output(self, sequences: Tensor, cache: Any) -> GenerateDecoderOnlyOutput:
        """The documented output object."""
        return GenerateDecoderOnlyOutput(
            sequences=sequences,
            scores=self.scores,
            attentions=None if self.attentions is None else tuple(self.attentions),
            hidden_states=None if self.hidden_states is None else tuple(self.hidden_states),
            past_key_values=cache,
        )
