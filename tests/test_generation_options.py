"""Options alone and together on three families: ids, scores and draws of the reference."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from triptych.generation.configuration import ADDITIONS, DEFAULTS, GenerationConfig
from triptych.generation.guidance_logits_torch import UnbatchedClassifierFreeGuidanceLogitsProcessor
from triptych.generation.logits_torch import HammingDiversityLogitsProcessor
from triptych.modeling_torch import PreTrainedModel
from triptych.models.fuyu.modeling_torch import FuyuForCausalLM
from triptych.models.gpt_neo.modeling_torch import GPTNeoForCausalLM
from triptych.models.openai_gpt.modeling_torch import OpenAIGPTLMHeadModel

GOLDEN = Path(__file__).parent / "golden"
FOLDER = GOLDEN / "generation_options"
RECORD = json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))
CASES = list(enumerate(RECORD["cases"]))
NAMES = [f"{case['family']}-{case['name']}-{case['seed']}" for _, case in CASES]
TOLERANCE = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models() -> dict[str, PreTrainedModel]:
    return {
        "gpt_neo": GPTNeoForCausalLM.from_pretrained(GOLDEN / "generation_model"),
        "openai_gpt": OpenAIGPTLMHeadModel.from_pretrained(FOLDER / "openai_gpt"),
        "fuyu": FuyuForCausalLM.from_pretrained(FOLDER / "fuyu"),
    }


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return load_file(FOLDER / "scores.safetensors")


def even(row: int, ids: Tensor) -> list[int]:
    return list(range((int(ids[-1]) + row) % 2, 97, 2))


def called(case: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a case, and its seed set."""
    options = {"return_dict_in_generate": True, "output_scores": True} | case["options"]
    if options.pop("prefix", None):
        options["prefix_allowed_tokens_fn"] = even
    if case["seed"] is not None:
        torch.manual_seed(case["seed"])
        options["do_sample"] = True
    return options


def ends(case: dict[str, Any]) -> set[int]:
    given = case["options"].get("eos_token_id", 2)
    return {given} if isinstance(given, int) else set(given)


def unfinished(case: dict[str, Any]) -> list[int]:
    """The prompts whose search went on to the last step; what scores those that are over have means nothing."""
    width, each = len(case["prompt"][0]), len(case["ids"]) // len(case["prompt"])
    texts = [case["ids"][i * each : (i + 1) * each] for i in range(len(case["prompt"]))]
    return [i for i, rows in enumerate(texts) if not any(ends(case) & set(row[width:-1]) for row in rows)]


@pytest.mark.parametrize(("index", "case"), CASES, ids=NAMES)
def test_ids_and_scores_are_those_of_the_reference(
    models: dict[str, PreTrainedModel], tensors: dict[str, Tensor], index: int, case: dict[str, Any]
) -> None:
    model, prompts = models[case["family"]], len(case["prompt"])
    output = model.generate(torch.tensor(case["prompt"]), **called(case))
    assert output.sequences.tolist() == case["ids"]
    assert len(output.scores) == case["steps"]
    last, golden = output.scores[-1].view(prompts, -1, 97), tensors[f"{index}.last"].view(prompts, -1, 97)
    for prompt in unfinished(case):
        torch.testing.assert_close(last[prompt], golden[prompt], **TOLERANCE)
    indices = output.get("beam_indices")
    if f"{index}.chosen" in tensors:
        chosen = model.compute_transition_scores(output.sequences, output.scores, indices, bool(index % 2))
        torch.testing.assert_close(chosen, tensors[f"{index}.chosen"], **TOLERANCE)
    if indices is not None:
        torch.testing.assert_close(output.sequences_scores, tensors[f"{index}.sequences"], **TOLERANCE)
    if indices is not None and len(ends(case)) == 1:  # of several ends, the first is written whichever was chosen
        total = model.compute_transition_scores(output.sequences, output.scores, indices).sum(dim=1)
        length = (indices >= 0).sum(dim=1) ** case["options"].get("length_penalty", 1.0)
        torch.testing.assert_close(total / length, output.sequences_scores, **TOLERANCE)


def test_groups_are_told_apart_by_what_earlier_ones_chose(tensors: dict[str, Tensor]) -> None:
    ids = torch.zeros(4, 2, dtype=torch.long)
    transform = HammingDiversityLogitsProcessor(0.7, 6, 3)
    out = transform(ids, tensors["hamming.scores"], current_tokens=tensors["hamming.chosen"], beam_group_idx=2)
    torch.testing.assert_close(out, tensors["hamming.out"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["settings", "grouped"])
def test_files_with_every_option_are_read_and_written_as_the_reference_does(tmp_path: Path, name: str) -> None:
    config = GenerationConfig.from_pretrained(FOLDER, f"{name}.json")
    assert {key: getattr(config, key) for key in RECORD[name]} == RECORD[name]
    config.save_pretrained(tmp_path, f"{name}.json")
    assert (tmp_path / f"{name}.json").read_bytes() == (FOLDER / f"{name}.json").read_bytes()


def test_those_files_leave_out_no_option_of_the_reference() -> None:
    assert set(RECORD["settings"]) | set(RECORD["grouped"]) == set(DEFAULTS) - ADDITIONS


@pytest.mark.parametrize("family", ["gpt_neo", "openai_gpt", "fuyu"])
@pytest.mark.parametrize("negative", [None, [[8, 7, 60], [12, 3, 90]]])
@pytest.mark.parametrize("more", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 5}])
def test_guidance_as_a_transform_gives_what_the_option_gives(
    models: dict[str, PreTrainedModel], family: str, negative: Any, more: dict[str, Any]
) -> None:
    model, prompts = models[family], torch.tensor([[5, 6, 7, 8], [9, 3, 60, 44]])
    options = {"max_new_tokens": 8, "pad_token_id": 0} | more
    ids = None if negative is None else torch.tensor(negative)
    torch.manual_seed(1)
    expected = model.generate(prompts, guidance_scale=1.7, negative_prompt_ids=ids, **options)
    for use_cache in (True, False):
        transform = UnbatchedClassifierFreeGuidanceLogitsProcessor(1.7, model, ids, use_cache=use_cache)
        for _ in range(2):  # one object serves several calls
            torch.manual_seed(1)
            assert model.generate(prompts, logits_processor=[transform], **options).tolist() == expected.tolist()


def test_guidance_needs_a_prompt_for_each_row(models: dict[str, PreTrainedModel]) -> None:
    transform = UnbatchedClassifierFreeGuidanceLogitsProcessor(1.7, models["gpt_neo"], torch.ones(3, 2).long())
    with pytest.raises(ValueError, match="2 rows needs an unconditional prompt; got 3"):
        transform(torch.ones(2, 2).long(), torch.zeros(2, 97))
    with pytest.raises(ValueError, match="guidance_scale must be a number above 0"):
        UnbatchedClassifierFreeGuidanceLogitsProcessor(0.0, models["gpt_neo"])


def test_scores_that_do_not_belong_to_the_texts_are_refused(models: dict[str, PreTrainedModel]) -> None:
    model, asked = models["gpt_neo"], {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 3}
    output = model.generate(torch.tensor([[5, 6]]), num_beams=3, num_return_sequences=2, pad_token_id=0, **asked)
    with pytest.raises(ValueError, match=r"one call of generate.*pass beam_indices too"):
        model.compute_transition_scores(output.sequences, output.scores)
    with pytest.raises(ValueError, match="output_scores=True"):
        model.compute_transition_scores(output.sequences, ())
    by_name = model.compute_transition_scores(
        sequences=output.sequences, scores=output.scores, beam_indices=output.beam_indices, normalize_logits=False
    )
    assert by_name.shape == (2, 3)
