"""Which way of decoding the options ask for, and whether they agree about it; framework-free."""

from typing import Any

from triptych.generation.checks import require_int, require_number
from triptych.generation.options import Request, notice

_SCHEDULES = ("heuristic", "constant")


def strategy_of(request: Request, assistant: Any = None) -> str:
    """The name of the way: beams, contrastive, assisted, or sampling, which greedy decoding is a case of.

    Raises: ValueError for options that ask for two ways at once, or that are out of range. A warning names an option
        that has no effect beside another.
    """
    options = request.options
    drafts = assistant is not None or options.prompt_lookup_num_tokens is not None
    if drafts:
        _check_drafts(request, assistant)
    if options.penalty_alpha is not None:
        require_number("penalty_alpha", options.penalty_alpha, least=0.0)
        if options.penalty_alpha > 1:
            raise ValueError(f"penalty_alpha is a share, from 0 to 1; got {options.penalty_alpha!r}.")
    if options.num_beams > 1:
        _without_effect(
            options.penalty_alpha, f"penalty_alpha={options.penalty_alpha}", "num_beams above 1", "num_beams=1"
        )
        return "beams"
    if options.do_sample:
        _without_effect(
            options.penalty_alpha, f"penalty_alpha={options.penalty_alpha}", "do_sample=True", "do_sample=False"
        )
    elif options.penalty_alpha and not drafts:
        if (options.top_k or 0) > 1:
            if not options.use_cache:
                raise ValueError(
                    "Contrastive search needs the cache; got use_cache=False with penalty_alpha. Leave one out."
                )
            return "contrastive"
        notice(
            f"penalty_alpha={options.penalty_alpha} has an effect only with top_k above 1; got top_k={options.top_k}."
        )
    return "assisted" if drafts else "sampling"


def _without_effect(value: Any, what: str, beside: str, remedy: str) -> None:
    if value:
        notice(f"{what} has no effect beside {beside}: pass {remedy} for contrastive search, or leave it out.")


def _check_drafts(request: Request, assistant: Any) -> None:
    options, lookup = request.options, request.options.prompt_lookup_num_tokens
    name = "assistant_model" if assistant is not None else "prompt_lookup_num_tokens"
    if lookup is not None:
        require_int("prompt_lookup_num_tokens", lookup, 1)
        if assistant is not None:
            raise ValueError("assistant_model and prompt_lookup_num_tokens both write drafts. Pass one of them.")
        if options.max_matching_ngram_size is not None:
            require_int("max_matching_ngram_size", options.max_matching_ngram_size, 1)
    if options.num_assistant_tokens is not None:
        require_int("num_assistant_tokens", options.num_assistant_tokens, 1)
    if options.num_assistant_tokens_schedule not in _SCHEDULES:
        raise ValueError(
            f"num_assistant_tokens_schedule must be one of {', '.join(_SCHEDULES)}; "
            f"got {options.num_assistant_tokens_schedule!r}."
        )
    if options.num_beams > 1:
        raise ValueError(
            f"{name} serves greedy decoding and sampling; got num_beams={options.num_beams}. Leave one out."
        )
    if options.penalty_alpha and not options.do_sample:
        raise ValueError(f"{name} and penalty_alpha (contrastive search) exclude each other. Leave one out.")
    if not options.use_cache:
        raise ValueError(
            f"Drafts are checked and taken back in the cache; got use_cache=False with {name}. Leave one out."
        )


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
