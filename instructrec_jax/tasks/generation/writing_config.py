"""The settings of tasks that write."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from instructrec_jax.adapters.adapter_config import PreferenceLoss
from instructrec_jax.data.example import Example
from instructrec_jax.data.prompts import references
from instructrec_jax.data.templates import TemplateName
from instructrec_jax.tasks.task_config import TaskConfig

# Named, because --help shows a setting's comment only where its type is a plain name.
TrainOn = Literal["completions", "all"]
Unit = Literal["character", "word"]
Form = Literal["aligned", "ctc"]


@TaskConfig.register_subclass("language_model")
@dataclass
class LanguageModelConfig(TaskConfig):
    """Generate the answer to an instruction."""

    task_class = "generation.language_model:LanguageModelTask"
    answers_are_text: ClassVar[bool] = True
    asks_about_images: ClassVar[bool] = True
    train_on: TrainOn = "completions"  # completions: the assistant's turns with end tokens; all: every token (decoders)
    template: TemplateName = "auto"  # auto: the tokenizer's chat template, else alpaca (encoder–decoders: plain)
    enable_thinking: bool | None = None  # passed to the tokenizer's chat template; null: its default
    date: str = "2024-07-26"  # fixed date for the tokenizer's chat template, for reproducible runs
    label_smoothing: float = 0.0  # probability mass spread over all tokens (training only)
    z_loss: float = 0.0  # weight of logsumexp(logits)² in the training loss; 1e-4 stabilizes large models
    max_target_length: int | None = None  # encoder–decoders: maximum tokens of an answer; null: data.max_length


@dataclass
class WritingConfig(LanguageModelConfig):
    """Settings of a task that is scored on generated text."""

    max_new_tokens: int = 64  # maximum tokens of a generated answer in evaluation
    beams: int = 1  # beam width; 1: greedy decoding


@TaskConfig.register_subclass("question_answering")
@dataclass
class QuestionAnsweringConfig(WritingConfig):
    """Generate the answer to a question, from a context (`input`) or closed-book."""

    task_class = "generation.question_answering:QuestionAnsweringTask"
    max_new_tokens: int = 32  # maximum tokens of a generated answer in evaluation


@TaskConfig.register_subclass("summarization")
@dataclass
class SummarizationConfig(WritingConfig):
    """Generate a summary of `input`."""

    task_class = "generation.summarization:SummarizationTask"
    lead: int = 1  # number of sentences of the lead baseline
    say_length: bool = False  # state the first reference's length in the instruction, in training and evaluation


@TaskConfig.register_subclass("translation")
@dataclass
class TranslationConfig(WritingConfig):
    """Translate `input`."""

    task_class = "generation.translation:TranslationTask"
    augmented_by: ClassVar[tuple[str, ...]] = ("synonyms", "typos", "paraphrase")


@TaskConfig.register_subclass("transcription")
@dataclass
class TranscriptionConfig(WritingConfig):
    """Write the words of a sound."""

    task_class = "generation.transcription:TranscriptionTask"
    reads_sounds: ClassVar[bool] = True
    augmented_by: ClassVar[tuple[str, ...]] = ()


@TaskConfig.register_subclass("dialogue")
@dataclass
class DialogueConfig(WritingConfig):
    """Generate the last turn of a conversation (`messages`); train on all turns of the assistant."""

    task_class = "generation.dialogue:DialogueTask"


@TaskConfig.register_subclass("preference")
@dataclass
class PreferenceConfig(LanguageModelConfig):
    """Prefer one answer to others (DPO, IPO, ORPO): output is the better answer, candidates are the worse ones."""

    task_class = "generation.preference:PreferenceTask"
    asks_about_images: ClassVar[bool] = False

    loss: PreferenceLoss = "dpo"  # dpo: over a list, its softmax form; ipo; orpo: without a reference
    beta: float = 0.1  # strength of the reference (dpo, ipo), or weight of the odds ratio (orpo)

    def text_fields(self, task: str) -> tuple[str, ...]:
        return ("output", "candidates")


@TaskConfig.register_subclass("text_to_image")
@dataclass
class TextToImageConfig(LanguageModelConfig):
    """Draw what an instruction says: write the codes of an image tokenizer."""

    task_class = "generation.text_to_image:TextToImageTask"
    answers_are_text: ClassVar[bool] = False
    asks_about_images: ClassVar[bool] = False
    draws_texts: ClassVar[bool] = True
    template: TemplateName = "plain"  # how a prompt is written; plain: the instruction alone
    tokenizer: str = ""  # folder of an image tokenizer; "": the copy in the folder of the backbone, run or export
    blank_prompts: float = 0.1  # share of prompts that training leaves blank, for guidance; 0: none
    guidance_scale: float = 3.0  # of evaluations: above 1, pictures are closer to the prompt and vary less
    temperature: float = 1.0  # of evaluations
    judge: str = ""  # folder of a CLIP or SigLIP that finds the captions of pictures in evaluations; "": none

    def text_fields(self, task: str) -> tuple[str, ...]:
        return ()


@TaskConfig.register_subclass("image_tokenization")
@dataclass
class ImageTokenizationConfig(TaskConfig):
    """Learn to write images as codes, and to draw them from these (an image tokenizer)."""

    task_class = "generation.image_tokenization:ImageTokenizationTask"
    reads_images: ClassVar[bool] = True
    draws_images: ClassVar[bool] = True


@TaskConfig.register_subclass("position_translation")
@dataclass
class PositionTranslationConfig(TaskConfig):
    """Translate `input` (else the instruction) with a classifier over the target vocabulary at every position."""

    task_class = "generation.position_translation:PositionTranslationTask"
    form: Form = "aligned"  # aligned: token i at position i, by cross-entropy; ctc: any positions in order
    unit: Unit = "character"  # token of the translation
    vocabulary: list[str] = field(default_factory=list)  # output tokens; []: the most frequent tokens of data.train
    max_vocabulary: int = 8000  # maximum size of a vocabulary from data.train
    length_ratio: float = 2.0  # positions per token of the source
    augmented_by: ClassVar[tuple[str, ...]] = ("synonyms", "typos", "paraphrase")

    def text_fields(self, task: str) -> tuple[str, ...]:
        return ("output",)

    @property
    def complete(self) -> bool:
        return bool(self.vocabulary)

    def learn(self, examples: Sequence[Example]) -> "PositionTranslationConfig":
        counts = Counter(token for e in examples for text in references(e) for token in split(text, self.unit))
        known = sorted(counts, key=lambda token: (-counts[token], token))
        return replace(self, vocabulary=known[: self.max_vocabulary])


def split(text: str, unit: Unit) -> list[str]:
    """The tokens of a translation. For characters, any white space is one space."""
    words = text.split()
    return words if unit == "word" else list(" ".join(words))
