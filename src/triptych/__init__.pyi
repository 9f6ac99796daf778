# Every public name, listed once. The package reads this list and imports a name's module when it is first used.
from .auto import (
    AutoConfig as AutoConfig,
    AutoModel as AutoModel,
    AutoModelForCausalLM as AutoModelForCausalLM,
    AutoModelForQuestionAnswering as AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification as AutoModelForSequenceClassification,
    AutoModelForTokenClassification as AutoModelForTokenClassification,
    AutoTokenizer as AutoTokenizer,
)
from .configuration import PretrainedConfig as PretrainedConfig
from .generation.configuration import GenerationConfig as GenerationConfig
from .generation.streamers import TextIteratorStreamer as TextIteratorStreamer, TextStreamer as TextStreamer
from .modeling_torch import PreTrainedModel as PreTrainedModel
from .models.gpt2.tokenization import GPT2Tokenizer as GPT2Tokenizer
from .models.gpt2.tokenization_fast import GPT2TokenizerFast as GPT2TokenizerFast
from .models.gpt_neo.configuration import GPTNeoConfig as GPTNeoConfig
from .models.gpt_neo.modeling_torch import (
    GPTNeoForCausalLM as GPTNeoForCausalLM,
    GPTNeoForQuestionAnswering as GPTNeoForQuestionAnswering,
    GPTNeoForSequenceClassification as GPTNeoForSequenceClassification,
    GPTNeoForTokenClassification as GPTNeoForTokenClassification,
    GPTNeoModel as GPTNeoModel,
    GPTNeoPreTrainedModel as GPTNeoPreTrainedModel,
)

__version__: str
