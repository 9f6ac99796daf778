"""What a call of `generate` asks for, whatever the framework: the strategy, what excludes what, what has no effect.

Three tables: which strategy the options mean, which combinations are impossible, and where an option has an effect.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from triptych.generation import checks

Options = Any  # GenerationConfig, whose module reads this one
Arguments = Mapping[str, Any]  # the arguments of the call that are no options, by name
Test = Callable[[Options, Arguments], Any]


def _is_constrained(o: Options, a: Arguments) -> bool:
    return o.constraints is not None or o.force_words_ids is not None


def _is_assisted(o: Options, a: Arguments) -> bool:
    return a.get("assistant_model") is not None or o.prompt_lookup_num_tokens is not None


def _is_contrastive(o: Options, a: Arguments) -> bool:
    return bool(o.penalty_alpha and o.penalty_alpha > 0 and o.top_k and o.top_k > 1)


def _is_guided(o: Options, a: Arguments) -> bool:
    return o.guidance_scale not in (None, 1)


# -- which strategy --------------------------------------------------------------------------------------------------

# The first whose test holds.
STRATEGIES: tuple[tuple[str, Test], ...] = (
    ("constrained beam", _is_constrained),
    ("assisted", _is_assisted),
    ("group beam", lambda o, a: o.num_beams > 1 and o.num_beam_groups > 1),
    ("beam sample", lambda o, a: o.num_beams > 1 and o.do_sample),
    ("beam", lambda o, a: o.num_beams > 1),
    ("sample", lambda o, a: o.do_sample),
    ("contrastive", _is_contrastive),
    ("greedy", lambda o, a: True),
)


def strategy_of(options: Options, arguments: Arguments) -> str:
    """The name of the strategy that a call means; "assisted" is greedy or samples, as `do_sample` says."""
    return next(name for name, asked in STRATEGIES if asked(options, arguments))


# -- what is impossible ----------------------------------------------------------------------------------------------


def _positive(name: str) -> Callable[[Any], None]:
    return lambda value: checks.require_int(name, value, 1)


def _share(name: str) -> Callable[[Any], None]:
    return lambda value: checks.require_share(name, value)


def _length_penalty(value: Any) -> None:
    checks.require_number("length_penalty", value, least=-checks.INF)


# Ranges that hold even where the option has no effect; a temperature of 0 is a habit of greedy decoding.
RANGES: dict[str, Callable[[Any], None]] = {
    **{name: _positive(name) for name in ("num_beams", "num_beam_groups", "num_return_sequences")},
    **{name: _share(name) for name in ("top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "penalty_alpha")},
    "prompt_lookup_num_tokens": _positive("prompt_lookup_num_tokens"),
    "max_matching_ngram_size": _positive("max_matching_ngram_size"),
    "num_assistant_tokens": _positive("num_assistant_tokens"),
    "top_k": lambda value: checks.require_int("top_k", value, 0 if value == 0 else 1),
    "length_penalty": _length_penalty,
    "diversity_penalty": lambda value: checks.require_number("diversity_penalty", value, least=0.0),
}

# What is impossible, and what to say; the text is filled in with the options `o`.
IMPOSSIBLE: tuple[tuple[Test, str], ...] = (
    (
        lambda o, a: o.num_beams > 1 and o.num_beams % o.num_beam_groups,
        "num_beam_groups must divide num_beams ({o.num_beams}); got {o.num_beam_groups}. "
        "Make num_beams a multiple of it.",
    ),
    (
        lambda o, a: o.num_beams > 1 and o.num_beam_groups > 1 and o.do_sample,
        "Groups of beams do not sample, so num_beam_groups={o.num_beam_groups} and do_sample=True exclude each other. "
        "Leave one of them out.",
    ),
    (
        lambda o, a: o.num_beams > 1 and o.num_beam_groups > 1 and not o.diversity_penalty,
        "Groups of beams without a diversity_penalty all write the same texts, so with num_beam_groups="
        "{o.num_beam_groups} it must be above 0; got {o.diversity_penalty!r}. Pass diversity_penalty=0.5, for example.",
    ),
    (
        lambda o, a: _is_constrained(o, a) and o.num_beams == 1,
        "constraints and force_words_ids are met by beam search, which needs num_beams above 1; got {o.num_beams}. "
        "Pass num_beams=4, for example.",
    ),
    (
        lambda o, a: _is_constrained(o, a) and o.num_beam_groups > 1,
        "constraints and force_words_ids are met without groups of beams; got num_beam_groups={o.num_beam_groups}. "
        "Leave it out.",
    ),
    (
        lambda o, a: a.get("assistant_model") is not None and o.prompt_lookup_num_tokens is not None,
        "assistant_model and prompt_lookup_num_tokens both write drafts. Pass one of them.",
    ),
    (
        lambda o, a: _is_assisted(o, a) and (o.num_beams > 1 or _is_constrained(o, a)),
        "Drafts (assistant_model, prompt_lookup_num_tokens) serve greedy decoding and sampling; "
        "got num_beams={o.num_beams}. Leave one of them out.",
    ),
    (
        lambda o, a: _is_assisted(o, a) and not o.do_sample and _is_contrastive(o, a),
        "Drafts (assistant_model, prompt_lookup_num_tokens) serve greedy decoding and sampling, not contrastive "
        "search; got penalty_alpha={o.penalty_alpha!r}. Leave one of them out.",
    ),
    (
        lambda o, a: _is_assisted(o, a) and not o.use_cache,
        "Drafts (assistant_model, prompt_lookup_num_tokens) are checked and taken back in the cache; got "
        "use_cache=False. Leave one of them out.",
    ),
    (
        lambda o, a: _is_assisted(o, a) and o.num_assistant_tokens_schedule not in ("heuristic", "constant"),
        "num_assistant_tokens_schedule must be 'heuristic' or 'constant'; got {o.num_assistant_tokens_schedule!r}.",
    ),
    (
        lambda o, a: strategy_of(o, a) == "contrastive" and not o.use_cache,
        "Contrastive search needs the cache; got use_cache=False with penalty_alpha={o.penalty_alpha!r}. "
        "Leave one of them out.",
    ),
    (
        lambda o, a: a.get("streamer") is not None and o.num_beams > 1,
        "A streamer hands on tokens as they are chosen, but beam search chooses its text at the end; got "
        "num_beams={o.num_beams}. Leave streamer out, or pass num_beams=1.",
    ),
)


def refuse_impossible(options: Options, arguments: Arguments, named: Collection[str]) -> None:
    """Refuse options that are out of range or exclude each other; `named` are those that the call itself gave.

    Raises: ValueError.
    """
    for name, check in RANGES.items():
        needed = name == "num_beams" or (name in ("num_beam_groups", "length_penalty") and options.num_beams > 1)
        if needed or getattr(options, name) is not None:
            check(getattr(options, name))
    for broken, says in IMPOSSIBLE:
        if broken(options, arguments):
            raise ValueError(says.format(o=options))
    if _is_contrastive(options, arguments) and options.do_sample and {"penalty_alpha", "do_sample"} <= set(named):
        raise ValueError(
            f"Contrastive search does not sample, so penalty_alpha={options.penalty_alpha!r} and do_sample=True "
            "exclude each other. Leave one of them out."
        )


# -- what has an effect where ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scope:
    """Options that have an effect only `where`; `clash` says what the call has instead, `remedy` what to do.

    `of_settings` is true where the options of a file alone tell, without the other arguments of a call.
    """

    names: tuple[str, ...]
    where: str
    applies: Test
    clash: Callable[[Options], str]
    remedy: str
    of_settings: bool = False


def _no_contrast(o: Options) -> str:
    return "do_sample=True" if o.do_sample else f"num_beams={o.num_beams}" if o.num_beams > 1 else f"top_k={o.top_k}"


_SAMPLERS = ("temperature", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")

SCOPES = (
    Scope(
        _SAMPLERS,
        "in sampling",
        lambda o, a: o.do_sample,
        lambda o: f"do_sample={o.do_sample}",
        "Pass do_sample=True",
        of_settings=True,
    ),
    Scope(
        ("top_k",),
        "in sampling and contrastive search",
        lambda o, a: o.do_sample or (o.penalty_alpha and o.num_beams == 1),
        lambda o: f"do_sample={o.do_sample}",
        "Pass do_sample=True",
        of_settings=True,
    ),
    Scope(
        ("early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty"),
        "in beam search",
        lambda o, a: o.num_beams > 1,
        lambda o: f"num_beams={o.num_beams}",
        "Use num_beams above 1",
        of_settings=True,
    ),
    Scope(
        ("diversity_penalty",),
        "between groups of beams",
        lambda o, a: o.num_beam_groups > 1 or o.num_beams == 1,  # one beam was said above
        lambda o: f"num_beam_groups={o.num_beam_groups}",
        "Use num_beam_groups above 1",
    ),
    Scope(
        ("do_sample", "top_k", *_SAMPLERS),
        "without constraints",
        lambda o, a: not (o.do_sample and _is_constrained(o, a)),
        lambda o: "constraints or force_words_ids were given, which are met by search",
        "Pass do_sample=False",
    ),
    Scope(
        ("penalty_alpha",),
        "in contrastive search",
        lambda o, a: strategy_of(o, a) == "contrastive",
        _no_contrast,
        "Use top_k above 1, num_beams=1 and do_sample=False",
    ),
    Scope(
        ("low_memory",),
        "in contrastive search",
        lambda o, a: strategy_of(o, a) == "contrastive",
        lambda o: f"penalty_alpha={o.penalty_alpha!r} does not ask for it here",
        "Pass penalty_alpha and top_k",
    ),
    Scope(
        ("num_assistant_tokens", "num_assistant_tokens_schedule"),
        "with an assistant_model",
        lambda o, a: a.get("assistant_model") is not None,
        lambda o: "none was given",
        "Pass assistant_model",
    ),
    Scope(
        ("max_matching_ngram_size",),
        "in prompt lookup",
        lambda o, a: o.prompt_lookup_num_tokens is not None,
        lambda o: "prompt_lookup_num_tokens is not set",
        "Pass prompt_lookup_num_tokens",
    ),
    Scope(
        ("negative_prompt_ids", "negative_prompt_attention_mask"),
        "under guidance",
        _is_guided,
        lambda o: f"guidance_scale={o.guidance_scale!r}",
        "Pass a guidance_scale above 1",
    ),
    Scope(
        ("min_length", "min_new_tokens"),
        "where a token ends texts",
        lambda o, a: o.eos_token_id is not None,
        lambda o: "eos_token_id=None",
        "Pass eos_token_id",
    ),
    Scope(
        ("output_scores", "output_attentions", "output_hidden_states"),
        "in an output object",
        lambda o, a: o.return_dict_in_generate,
        lambda o: "return_dict_in_generate=False",
        "Pass return_dict_in_generate=True",
    ),
    Scope(
        ("decoder_start_token_id",),
        "in models with an encoder",
        lambda o, a: False,
        lambda o: "this model has none",
        "Start the prompt with the token",
    ),
)


def without_effect(
    options: Options,
    arguments: Arguments,
    given: Mapping[str, Any],
    *,
    settings_alone: bool = False,
) -> Iterator[str]:
    """A sentence for each scope in which something that was `given`, values by name, has no effect."""
    for scope in SCOPES:
        names = [name for name in scope.names if name in given]
        if names and (scope.of_settings or not settings_alone) and not scope.applies(options, arguments):
            listed = " and ".join(f"{name}={given[name]!r}" if _is_short(given[name]) else name for name in names)
            has, them = ("has", "it") if len(names) == 1 else ("have", "them")
            yield (
                f"{listed} {has} an effect only {scope.where}, but {scope.clash(options)}. "
                f"{scope.remedy}, or leave {them} out."
            )


def _is_short(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)


# -- drafts ------------------------------------------------------------------------------------------------------------


def check_assistant(model: Any, assistant: Any) -> None:
    """Refuse an assistant that cannot write drafts for the model.

    Raises: TypeError when it cannot generate; ValueError when its vocabulary is another or it decodes without a cache.
    """
    if assistant is None:
        return
    if not getattr(assistant, "can_generate", lambda: False)():
        raise TypeError(
            f"assistant_model must be a model that generates; got {type(assistant).__name__}. "
            "Load it with AutoModelForCausalLM."
        )
    own, others = model.config.vocab_size, assistant.config.vocab_size
    if own != others:
        raise ValueError(
            f"assistant_model must have the model's vocabulary of {own} tokens; got one of {others}. "
            "Choose an assistant that was trained with the same tokenizer."
        )
    for name, one in (("The model", model), ("assistant_model", assistant)):
        if not one.decodes_with_cache:
            raise ValueError(f"{name} has a forward of its own that takes no cache, which assisted decoding needs.")
