"""One file per task, imported when it is built; importing the package registers their configs for `--task.type`."""

from instructrec_jax.tasks.generation.writing_config import (
    DialogueConfig,
    ImageTokenizationConfig,
    LanguageModelConfig,
    PositionTranslationConfig,
    PreferenceConfig,
    QuestionAnsweringConfig,
    SummarizationConfig,
    TextToImageConfig,
    TranscriptionConfig,
    TranslationConfig,
)
from instructrec_jax.tasks.ranking.ranking_config import (
    GenerativeConfig,
    LanguageModelRankingConfig,
    RerankerConfig,
    RetrievalConfig,
)
from instructrec_jax.tasks.ranking.sequence_settings import SequenceConfig
from instructrec_jax.tasks.task_config import MultitaskConfig
from instructrec_jax.tasks.text.text_config import (
    ChoiceConfig,
    ClassificationConfig,
    ContrastiveConfig,
    ExtractiveSummarizationConfig,
    MaskedLMConfig,
    MultilabelConfig,
    RegressionConfig,
    SetFitConfig,
    SimilarityConfig,
    SpanConfig,
    TokenClassificationConfig,
    VectorClassificationConfig,
)

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
    "VectorClassificationConfig",
    "SimilarityConfig",
    "SpanConfig",
    "SummarizationConfig",
    "TextToImageConfig",
    "TokenClassificationConfig",
    "TranscriptionConfig",
    "TranslationConfig",
]
