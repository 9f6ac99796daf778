# Every public name, listed once. The package reads this list and imports a name's module when the name is first used.
from .auto import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from .configuration import PretrainedConfig
from .generation.configuration import GenerationConfig
from .generation.streamers import TextIteratorStreamer, TextStreamer
from .modeling_torch import PreTrainedModel
from .models.gpt2.tokenization import GPT2Tokenizer
from .models.gpt2.tokenization_fast import GPT2TokenizerFast
from .models.gpt_neo.configuration import GPTNeoConfig
from .models.gpt_neo.modeling_torch import (
    GPTNeoForCausalLM,
    GPTNeoForQuestionAnswering,
    GPTNeoForSequenceClassification,
    GPTNeoForTokenClassification,
    GPTNeoModel,
    GPTNeoPreTrainedModel,
)

__version__: str
