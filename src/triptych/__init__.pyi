# Every public name, listed once. The package reads this list and imports a name's module when it is first used.
from .auto import (
    AutoConfig as AutoConfig,
    AutoImageProcessor as AutoImageProcessor,
    AutoModel as AutoModel,
    AutoModelForCausalLM as AutoModelForCausalLM,
    AutoModelForQuestionAnswering as AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification as AutoModelForSequenceClassification,
    AutoModelForTokenClassification as AutoModelForTokenClassification,
    AutoProcessor as AutoProcessor,
    AutoTokenizer as AutoTokenizer,
    FlaxAutoModel as FlaxAutoModel,
    FlaxAutoModelForCausalLM as FlaxAutoModelForCausalLM,
    TFAutoModel as TFAutoModel,
    TFAutoModelForCausalLM as TFAutoModelForCausalLM,
    TFAutoModelForSequenceClassification as TFAutoModelForSequenceClassification,
)
from .configuration import PretrainedConfig as PretrainedConfig
from .generation.configuration import GenerationConfig as GenerationConfig
from .generation.constraints import (
    Constraint as Constraint,
    ConstraintListState as ConstraintListState,
    DisjunctiveConstraint as DisjunctiveConstraint,
    PhrasalConstraint as PhrasalConstraint,
)
from .generation.explain_torch import ExplainedToken as ExplainedToken, explain as explain
from .generation.grammar_torch import GrammarLogitsProcessor as GrammarLogitsProcessor
from .generation.guidance_logits_torch import (
    UnbatchedClassifierFreeGuidanceLogitsProcessor as UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from .generation.logits_torch import (
    EncoderNoRepeatNGramLogitsProcessor as EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor as EncoderRepetitionPenaltyLogitsProcessor,
    ExponentialDecayLengthPenalty as ExponentialDecayLengthPenalty,
    ForcedBOSTokenLogitsProcessor as ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor as ForcedEOSTokenLogitsProcessor,
    ForceTokensLogitsProcessor as ForceTokensLogitsProcessor,
    HammingDiversityLogitsProcessor as HammingDiversityLogitsProcessor,
    InfNanRemoveLogitsProcessor as InfNanRemoveLogitsProcessor,
    LogitNormalization as LogitNormalization,
    LogitsProcessor as LogitsProcessor,
    LogitsProcessorList as LogitsProcessorList,
    LogitsWarper as LogitsWarper,
    MinLengthLogitsProcessor as MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor as MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor as NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor as NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor as PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor as RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor as SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor as SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor as SuppressTokensLogitsProcessor,
)
from .generation.outputs import (
    BeamSampleDecoderOnlyOutput as BeamSampleDecoderOnlyOutput,
    BeamSearchDecoderOnlyOutput as BeamSearchDecoderOnlyOutput,
    FlaxBeamSearchOutput as FlaxBeamSearchOutput,
    FlaxGreedySearchOutput as FlaxGreedySearchOutput,
    FlaxSampleOutput as FlaxSampleOutput,
    GenerateBeamDecoderOnlyOutput as GenerateBeamDecoderOnlyOutput,
    GenerateDecoderOnlyOutput as GenerateDecoderOnlyOutput,
    GreedySearchDecoderOnlyOutput as GreedySearchDecoderOnlyOutput,
    SampleDecoderOnlyOutput as SampleDecoderOnlyOutput,
    TFBeamSampleDecoderOnlyOutput as TFBeamSampleDecoderOnlyOutput,
    TFBeamSearchDecoderOnlyOutput as TFBeamSearchDecoderOnlyOutput,
    TFGreedySearchDecoderOnlyOutput as TFGreedySearchDecoderOnlyOutput,
    TFSampleDecoderOnlyOutput as TFSampleDecoderOnlyOutput,
)
from .generation.stopping_torch import (
    MaxLengthCriteria as MaxLengthCriteria,
    MaxTimeCriteria as MaxTimeCriteria,
    StoppingCriteria as StoppingCriteria,
    StoppingCriteriaList as StoppingCriteriaList,
    StopStringCriteria as StopStringCriteria,
)
from .generation.streamers import (
    BaseStreamer as BaseStreamer,
    TextIteratorStreamer as TextIteratorStreamer,
    TextStreamer as TextStreamer,
)
from .generation.warpers_torch import (
    EpsilonLogitsWarper as EpsilonLogitsWarper,
    EtaLogitsWarper as EtaLogitsWarper,
    MinPLogitsWarper as MinPLogitsWarper,
    TemperatureLogitsWarper as TemperatureLogitsWarper,
    TopKLogitsWarper as TopKLogitsWarper,
    TopPLogitsWarper as TopPLogitsWarper,
    TypicalLogitsWarper as TypicalLogitsWarper,
)
from .generation.watermarking import WatermarkingConfig as WatermarkingConfig
from .generation.watermarking_torch import (
    WatermarkDetector as WatermarkDetector,
    WatermarkDetectorOutput as WatermarkDetectorOutput,
    WatermarkLogitsProcessor as WatermarkLogitsProcessor,
)
from .modeling_flax import FlaxPreTrainedModel as FlaxPreTrainedModel
from .modeling_tf import TFPreTrainedModel as TFPreTrainedModel
from .modeling_torch import PreTrainedModel as PreTrainedModel
from .models.fuyu.collating import FuyuDataCollator as FuyuDataCollator
from .models.fuyu.configuration import FuyuConfig as FuyuConfig
from .models.fuyu.image_processing import FuyuBatchFeature as FuyuBatchFeature, FuyuImageProcessor as FuyuImageProcessor
from .models.fuyu.modeling_torch import (
    FuyuForCausalLM as FuyuForCausalLM,
    FuyuPreTrainedModel as FuyuPreTrainedModel,
)
from .models.fuyu.processing import FuyuBatchEncoding as FuyuBatchEncoding, FuyuProcessor as FuyuProcessor
from .models.gpt2.tokenization import GPT2Tokenizer as GPT2Tokenizer
from .models.gpt2.tokenization_fast import GPT2TokenizerFast as GPT2TokenizerFast
from .models.gpt_neo.configuration import GPTNeoConfig as GPTNeoConfig
from .models.gpt_neo.modeling_flax import (
    FlaxGPTNeoForCausalLM as FlaxGPTNeoForCausalLM,
    FlaxGPTNeoModel as FlaxGPTNeoModel,
    FlaxGPTNeoPreTrainedModel as FlaxGPTNeoPreTrainedModel,
)
from .models.gpt_neo.modeling_torch import (
    GPTNeoForCausalLM as GPTNeoForCausalLM,
    GPTNeoForQuestionAnswering as GPTNeoForQuestionAnswering,
    GPTNeoForSequenceClassification as GPTNeoForSequenceClassification,
    GPTNeoForTokenClassification as GPTNeoForTokenClassification,
    GPTNeoModel as GPTNeoModel,
    GPTNeoPreTrainedModel as GPTNeoPreTrainedModel,
)
from .models.llama.tokenization import LlamaTokenizer as LlamaTokenizer
from .models.llama.tokenization_fast import LlamaTokenizerFast as LlamaTokenizerFast
from .models.openai_gpt.configuration import OpenAIGPTConfig as OpenAIGPTConfig
from .models.openai_gpt.modeling_tf import (
    TFOpenAIGPTDoubleHeadsModel as TFOpenAIGPTDoubleHeadsModel,
    TFOpenAIGPTDoubleHeadsModelOutput as TFOpenAIGPTDoubleHeadsModelOutput,
    TFOpenAIGPTForSequenceClassification as TFOpenAIGPTForSequenceClassification,
    TFOpenAIGPTLMHeadModel as TFOpenAIGPTLMHeadModel,
    TFOpenAIGPTModel as TFOpenAIGPTModel,
    TFOpenAIGPTPreTrainedModel as TFOpenAIGPTPreTrainedModel,
)
from .models.openai_gpt.modeling_torch import (
    OpenAIGPTDoubleHeadsModel as OpenAIGPTDoubleHeadsModel,
    OpenAIGPTDoubleHeadsModelOutput as OpenAIGPTDoubleHeadsModelOutput,
    OpenAIGPTForSequenceClassification as OpenAIGPTForSequenceClassification,
    OpenAIGPTLMHeadModel as OpenAIGPTLMHeadModel,
    OpenAIGPTModel as OpenAIGPTModel,
    OpenAIGPTPreTrainedModel as OpenAIGPTPreTrainedModel,
)
from .models.openai_gpt.tokenization import OpenAIGPTTokenizer as OpenAIGPTTokenizer
from .models.openai_gpt.tokenization_fast import OpenAIGPTTokenizerFast as OpenAIGPTTokenizerFast
from .models.persimmon.configuration import PersimmonConfig as PersimmonConfig
from .models.persimmon.modeling_torch import (
    PersimmonForCausalLM as PersimmonForCausalLM,
    PersimmonModel as PersimmonModel,
    PersimmonPreTrainedModel as PersimmonPreTrainedModel,
)
from .outputs import (
    BaseModelOutput as BaseModelOutput,
    BaseModelOutputWithPast as BaseModelOutputWithPast,
    BaseModelOutputWithPastAndCrossAttentions as BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutput as CausalLMOutput,
    CausalLMOutputWithCrossAttentions as CausalLMOutputWithCrossAttentions,
    CausalLMOutputWithPast as CausalLMOutputWithPast,
    FlaxBaseModelOutput as FlaxBaseModelOutput,
    FlaxMaskedLMOutput as FlaxMaskedLMOutput,
    ModelOutput as ModelOutput,
    QuestionAnsweringModelOutput as QuestionAnsweringModelOutput,
    SequenceClassifierOutput as SequenceClassifierOutput,
    SequenceClassifierOutputWithPast as SequenceClassifierOutputWithPast,
    TFBaseModelOutput as TFBaseModelOutput,
    TFCausalLMOutput as TFCausalLMOutput,
    TFSequenceClassifierOutput as TFSequenceClassifierOutput,
    TokenClassifierOutput as TokenClassifierOutput,
)
from .tokenization.base import PreTrainedTokenizerBase as PreTrainedTokenizerBase
from .tokenization.batch_encoding import (
    BatchEncoding as BatchEncoding,
    CharSpan as CharSpan,
    TokenSpan as TokenSpan,
)
from .tokenization.fast import PreTrainedTokenizerFast as PreTrainedTokenizerFast
from .tokenization.options import (
    PaddingStrategy as PaddingStrategy,
    TensorType as TensorType,
    TruncationStrategy as TruncationStrategy,
)
from .tokenization.slow import PreTrainedTokenizer as PreTrainedTokenizer
from .tokenization.special_tokens import (
    AddedToken as AddedToken,
    SpecialTokensMixin as SpecialTokensMixin,
)

__version__: str
