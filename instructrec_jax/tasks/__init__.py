"""One file per task; importing the package registers all of them as choices of `--task.type`."""

from instructrec_jax.tasks.generation.dialogue import DialogueConfig
from instructrec_jax.tasks.generation.image_tokenization import ImageTokenizationConfig
from instructrec_jax.tasks.generation.language_model import LanguageModelConfig
from instructrec_jax.tasks.generation.position_translation import PositionTranslationConfig
from instructrec_jax.tasks.generation.preference import PreferenceConfig
from instructrec_jax.tasks.generation.question_answering import QuestionAnsweringConfig
from instructrec_jax.tasks.generation.summarization import SummarizationConfig
from instructrec_jax.tasks.generation.text_to_image import TextToImageConfig
from instructrec_jax.tasks.generation.transcription import TranscriptionConfig
from instructrec_jax.tasks.generation.translation import TranslationConfig
from instructrec_jax.tasks.multitask import MultitaskConfig
from instructrec_jax.tasks.ranking.generative import GenerativeConfig
from instructrec_jax.tasks.ranking.language_model_ranking import LanguageModelRankingConfig
from instructrec_jax.tasks.ranking.reranker import RerankerConfig
from instructrec_jax.tasks.ranking.retrieval import RetrievalConfig
from instructrec_jax.tasks.ranking.sequence import SequenceConfig
from instructrec_jax.tasks.text.choice import ChoiceConfig
from instructrec_jax.tasks.text.classification import ClassificationConfig, MultilabelConfig
from instructrec_jax.tasks.text.contrastive import ContrastiveConfig
from instructrec_jax.tasks.text.extractive_summarization import ExtractiveSummarizationConfig
from instructrec_jax.tasks.text.masked_lm import MaskedLMConfig
from instructrec_jax.tasks.text.regression import RegressionConfig
from instructrec_jax.tasks.text.setfit import SetFitConfig
from instructrec_jax.tasks.text.similarity import SimilarityConfig
from instructrec_jax.tasks.text.span import SpanConfig
from instructrec_jax.tasks.text.token_classification import TokenClassificationConfig

__all__ = [
    "ChoiceConfig",
    "ClassificationConfig",
    "ContrastiveConfig",
    "DialogueConfig",
    "ExtractiveSummarizationConfig",
    "GenerativeConfig",
    "ImageTokenizationConfig",
    "LanguageModelConfig",
    "LanguageModelRankingConfig",
    "MaskedLMConfig",
    "MultilabelConfig",
    "MultitaskConfig",
    "PositionTranslationConfig",
    "PreferenceConfig",
    "QuestionAnsweringConfig",
    "RegressionConfig",
    "RerankerConfig",
    "RetrievalConfig",
    "SequenceConfig",
    "SetFitConfig",
    "SimilarityConfig",
    "SpanConfig",
    "SummarizationConfig",
    "TextToImageConfig",
    "TokenClassificationConfig",
    "TranscriptionConfig",
    "TranslationConfig",
]
