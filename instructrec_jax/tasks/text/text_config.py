"""The settings of tasks that read texts."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from instructrec_jax.augmentation.augmenter import METHODS
from instructrec_jax.data.example import Example
from instructrec_jax.data.prompts import answer
from instructrec_jax.tasks.generation.writing_config import LanguageModelConfig, TrainOn
from instructrec_jax.tasks.ranking.ranking_config import Pooling
from instructrec_jax.tasks.task_config import TaskConfig

# Named, because --help shows a setting's comment only where its type is a plain name.
SentencePairs = Literal["auto", "joined"]
OnMissingAnswer = Literal["error", "skip"]
ContrastiveLoss = Literal["auto", "softmax", "sigmoid"]

ONE_LABEL = ("classification", "vector_classification", "setfit")  # tasks that give each text one label


@dataclass
class LabelsConfig(TaskConfig):
    """Settings of a task with named labels."""

    labels: list[str] = field(default_factory=list)  # names in the order of the head's outputs; []: those of data.train

    @property
    def complete(self) -> bool:
        return bool(self.labels)

    @property
    def label_names(self) -> list[str]:
        return self.labels

    def learn(self, examples: Sequence[Example]) -> TaskConfig:
        outputs = (e.output if isinstance(e.output, tuple) else (e.output,) for e in examples)
        labels = sorted({str(label) for each in outputs for label in each if label is not None})
        if not labels:
            raise ValueError(
                f"none of the {len(examples):,} examples of data.train has an output: there are no labels."
            )
        return replace(self, labels=labels)


@TaskConfig.register_subclass("classification")
@dataclass
class ClassificationConfig(LabelsConfig):
    """Predict one label per text."""

    task_class = "text.classification:ClassificationTask"
    sentence_pairs: SentencePairs = "auto"  # auto: encode instruction and input as a text pair, if the tokenizer can
    reads_images: ClassVar[bool] = True


@TaskConfig.register_subclass("multilabel")
@dataclass
class MultilabelConfig(LabelsConfig):
    """Predict any number of labels per text."""

    task_class = "text.classification:MultilabelTask"
    threshold: float = 0.5  # minimum probability of a predicted label
    sentence_pairs: SentencePairs = "auto"  # auto: encode instruction and input as a text pair, if the tokenizer can
    reads_images: ClassVar[bool] = True


@TaskConfig.register_subclass("vector_classification")
@dataclass
class VectorClassificationConfig(ClassificationConfig):
    """Predict one label per text by its vector: a logistic regression starts the head, then all is trained (LP-FT)."""

    task_class = "text.vector_classification:VectorClassificationTask"
    sentence_pairs: SentencePairs = "joined"  # joined: one text, as sentence encoders read it
    reads_images: ClassVar[bool] = False


@TaskConfig.register_subclass("setfit")
@dataclass
class SetFitConfig(VectorClassificationConfig):
    """Predict one label per text from few examples: pairs of texts tune their vectors, then a head is fitted."""

    task_class = "text.setfit:SetFitTask"


@TaskConfig.register_subclass("regression")
@dataclass
class RegressionConfig(TaskConfig):
    """Predict a number per text (mean squared error)."""

    task_class = "text.regression:RegressionTask"
    answers_are_numbers: ClassVar[bool] = True
    reads_images: ClassVar[bool] = True
    sentence_pairs: SentencePairs = "auto"  # auto: encode instruction and input as a text pair, if the tokenizer can


@TaskConfig.register_subclass("token_classification")
@dataclass
class TokenClassificationConfig(LabelsConfig):
    """Predict a label for each word of `input` (else `instruction`); words are separated by spaces."""

    task_class = "text.token_classification:TokenClassificationTask"
    targets_are_places: ClassVar[bool] = True
    augmented_by: ClassVar[tuple[str, ...]] = (*METHODS, "mask_fill")
    tags_words: ClassVar[bool] = True


@TaskConfig.register_subclass("span")
@dataclass
class SpanConfig(TaskConfig):
    """Find the answer to a question (the instruction) in a context (`input`)."""

    task_class = "text.span:SpanTask"
    stride: int = 64  # tokens of overlap between windows of a long context
    max_answer_tokens: int = 30  # maximum tokens of an answer
    no_answer: bool = False  # allow examples without output, which the context does not answer
    no_answer_threshold: float = 0.0  # predict no answer where its score exceeds the best answer's by this much
    on_missing_answer: OnMissingAnswer = "error"  # an answer that is not in the context: stop, or skip and count

    targets_are_places: ClassVar[bool] = True
    augmented_by: ClassVar[tuple[str, ...]] = (*METHODS, "mask_fill")


@TaskConfig.register_subclass("extractive_summarization")
@dataclass
class ExtractiveSummarizationConfig(TaskConfig):
    """Select the sentences of `input` for a summary."""

    task_class = "text.extractive_summarization:ExtractiveSummarizationTask"
    sentences: int = 1  # number of sentences in a summary
    augmented_by: ClassVar[tuple[str, ...]] = (*METHODS, "mask_fill")

    def text_fields(self, task: str) -> tuple[str, ...]:
        return ("output",)


@TaskConfig.register_subclass("masked_lm")
@dataclass
class MaskedLMConfig(TaskConfig):
    """Predict masked tokens."""

    task_class = "text.masked_lm:MaskedLMTask"
    mask_rate: float = 0.15  # fraction of tokens to predict: of ten, 8 masked, 1 random, 1 unchanged


@dataclass
class OptionsConfig(TaskConfig):
    """Settings of a task that chooses a text."""

    labels: list[str] = field(default_factory=list)  # candidates of all examples; []: each example's own
    verbalizers: dict[str, str] = field(default_factory=dict)  # text of a label; default: its name with spaces for _
    negatives: int = 0  # random answers of other examples as candidates, for examples without any

    def text_fields(self, task: str) -> tuple[str, ...]:
        return () if self.labels else ("output", "candidates")

    def words(self, name: str) -> str:
        """The text of a candidate: a label's text, or the example's own candidate unchanged."""
        return self.verbalizers.get(name, name.replace("_", " ")) if self.labels else name

    @property
    def complete(self) -> bool:
        return bool(self.labels or self.negatives)

    @property
    def label_names(self) -> list[str]:
        return self.labels

    def learn(self, examples: Sequence[Example]) -> "OptionsConfig":
        """The config with the labels of the examples, if none of these lists candidates."""
        if any(e.candidates for e in examples):
            return self
        return replace(self, labels=sorted({said for e in examples if (said := answer(e)) is not None}))


@TaskConfig.register_subclass("similarity")
@dataclass
class SimilarityConfig(OptionsConfig):
    """Choose the candidate (or the label's name) whose vector is closest to the question's."""

    task_class = "text.similarity:SimilarityTask"
    pooling: Pooling | None = None  # null: the checkpoint's declared pooling
    temperature: float = 0.05  # initial temperature of the softmax (trained)


@TaskConfig.register_subclass("choice")
@dataclass
class ChoiceConfig(OptionsConfig, LanguageModelConfig):
    """Choose the candidate (or the label's name) with the highest likelihood under a language model."""

    task_class = "text.choice:ChoiceTask"
    alpha: float = 1.0  # log-likelihoods are divided by (number of tokens) ** alpha; 0: not normalized
    calibrate: bool = False  # subtract the log-likelihood after a content-free input
    train_on: TrainOn = "completions"  # completions: answers with their end tokens; all: every token (decoders only)


SLOT = "{label}"


@TaskConfig.register_subclass("contrastive")
@dataclass
class ContrastiveConfig(TaskConfig):
    """Match images and captions by the vectors of an image network and a text network (CLIP, SigLIP)."""

    task_class = "text.contrastive:ContrastiveTask"
    labels: list[str] = field(default_factory=list)  # names of classes; []: the targets are captions
    templates: list[str] = field(default_factory=lambda: [f"a photo of {SLOT}"])  # captions of a label, averaged
    loss: ContrastiveLoss = "auto"  # over the pairs of a batch: softmax as CLIP, sigmoid as SigLIP; auto: the network's
    compares_images: ClassVar[bool] = True
    augmented_by: ClassVar[tuple[str, ...]] = ()

    @property
    def label_names(self) -> list[str] | None:
        return self.labels or None

    def text_fields(self, task: str) -> tuple[str, ...]:
        return () if self.labels else ("output", "candidates")

    def captions(self, name: str) -> tuple[str, ...]:
        """The captions that stand for a label; a caption itself."""
        words = name.replace("_", " ")
        return tuple(each.replace(SLOT, words) for each in self.templates) if self.labels else (name,)
