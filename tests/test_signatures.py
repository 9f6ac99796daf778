"""Constructors and forward passes take what is documented: names, order and defaults, row by row."""

import inspect
import json
from pathlib import Path

import pytest

import triptych

SIGNATURES = json.loads((Path(__file__).parent / "signatures.json").read_text())
# The documented classes that the package offers so far; the others come with their families.
OFFERED = (
    "FlaxGPTNeoForCausalLM",
    "FlaxGPTNeoModel",
    "FuyuConfig",
    "FuyuForCausalLM",
    "FuyuImageProcessor",
    "FuyuProcessor",
    "GPTNeoConfig",
    "GPTNeoForCausalLM",
    "GPTNeoForQuestionAnswering",
    "GPTNeoForSequenceClassification",
    "GPTNeoForTokenClassification",
    "GPTNeoModel",
    "OpenAIGPTConfig",
    "OpenAIGPTDoubleHeadsModel",
    "OpenAIGPTForSequenceClassification",
    "OpenAIGPTLMHeadModel",
    "OpenAIGPTModel",
    "OpenAIGPTTokenizer",
    "OpenAIGPTTokenizerFast",
    "TFOpenAIGPTDoubleHeadsModel",
    "TFOpenAIGPTForSequenceClassification",
    "TFOpenAIGPTLMHeadModel",
    "TFOpenAIGPTModel",
)
METHODS = {"init": ("__init__",), "call": ("call", "__call__")}  # the others have their own name
STARS = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def parameters(class_: type, method: str) -> list[dict[str, str]]:
    name = next(name for name in METHODS.get(method, (method,)) if hasattr(class_, name))
    rows = []
    for parameter in list(inspect.signature(getattr(class_, name)).parameters.values())[1:]:
        row = {"name": STARS.get(parameter.kind, "") + parameter.name}
        if parameter.default is not inspect.Parameter.empty:
            row["default"] = repr(parameter.default)
        rows.append(row)
    return rows


def test_the_table_of_offered_classes_is_complete():
    assert set(OFFERED) == set(SIGNATURES) & set(triptych.__all__)


@pytest.mark.parametrize(("name", "method"), [(name, method) for name in OFFERED for method in SIGNATURES[name]])
def test_parameters_are_the_documented_ones_in_order_with_their_defaults(name, method):
    assert parameters(getattr(triptych, name), method) == SIGNATURES[name][method]
