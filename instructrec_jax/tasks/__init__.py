"""One file a task family; importing the package registers them all as choices of `--task.type`."""

from instructrec_jax.tasks.choice import ChoiceConfig
from instructrec_jax.tasks.classification import ClassificationConfig, MultilabelConfig, RegressionConfig
from instructrec_jax.tasks.dialogue import DialogueConfig
from instructrec_jax.tasks.extractive_summarization import ExtractiveSummarizationConfig
from instructrec_jax.tasks.language_model import LanguageModelConfig
from instructrec_jax.tasks.language_model_ranking import LanguageModelRankingConfig
from instructrec_jax.tasks.masked_lm import MaskedLMConfig
from instructrec_jax.tasks.multitask import MultitaskConfig
from instructrec_jax.tasks.position_translation import PositionTranslationConfig
from instructrec_jax.tasks.question_answering import QuestionAnsweringConfig
from instructrec_jax.tasks.reranker import RerankerConfig
from instructrec_jax.tasks.retrieval import RetrievalConfig
from instructrec_jax.tasks.sequence import SequenceConfig
from instructrec_jax.tasks.similarity import SimilarityConfig
from instructrec_jax.tasks.span import SpanConfig
from instructrec_jax.tasks.summarization import SummarizationConfig
from instructrec_jax.tasks.token_classification import TokenClassificationConfig
from instructrec_jax.tasks.translation import TranslationConfig

__all__ = [
    "ChoiceConfig",
    "ClassificationConfig",
    "DialogueConfig",
    "ExtractiveSummarizationConfig",
    "LanguageModelConfig",
    "LanguageModelRankingConfig",
    "MaskedLMConfig",
    "MultilabelConfig",
    "MultitaskConfig",
    "PositionTranslationConfig",
    "QuestionAnsweringConfig",
    "RegressionConfig",
    "RerankerConfig",
    "RetrievalConfig",
    "SequenceConfig",
    "SimilarityConfig",
    "SpanConfig",
    "SummarizationConfig",
    "TokenClassificationConfig",
    "TranslationConfig",
]
