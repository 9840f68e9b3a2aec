"""Summarization: ROUGE, a lead-n baseline, and instructions that state the length."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from instructrec_jax.data.example import Example
from instructrec_jax.data.prompts import references
from instructrec_jax.metrics.language import has_cjk, units
from instructrec_jax.metrics.text import ROUGE_WORDS, require_rouge, rouge
from instructrec_jax.tasks.base import TaskContext
from instructrec_jax.tasks.generation.writing_config import SummarizationConfig
from instructrec_jax.tasks.generation.written_answers import Judgement, WritingTask, with_one_answer

# A full stop of Latin, Arabic or Indic script ends a sentence only before a space; a Chinese one always does.
SENTENCE = re.compile(r"(?<=[.!?\u061f\u06d4\u0964])\s+|(?<=[。！？])\s*|\n+")


def sentences(text: str) -> list[str]:
    """The non-empty sentences of a text."""
    return [part.strip() for part in SENTENCE.split(text) if part.strip()]


def lead(text: str, count: int) -> str:
    """The first sentences of a text."""
    return join(sentences(text)[:count])


def join(parts: Sequence[str]) -> str:
    """Sentences as one text."""
    return joint(parts).join(parts)


def joint(parts: Sequence[str]) -> str:
    """The separator of sentences: none in Chinese text."""
    return "" if any(map(has_cjk, parts)) else " "


def ask_length(example: Example) -> Example:
    """The example with the summary's length in its instruction: the first reference's, rounded to five words."""
    count = max(5, 5 * round(units(references(example)[0]) / 5))
    said = f"用大约{count}个字。" if has_cjk(example.instruction) else f"Use about {count} words."
    return replace(example, instruction=f"{example.instruction} {said}".strip())


def judge_summaries(examples: Sequence[Example], answers: Sequence[str]) -> Judgement:
    """ROUGE of each case against its best reference, and the mean length ratio."""
    targets = [references(e) for e in examples]
    cases = {name: np.array(values) for name, values in rouge(answers, targets).items()}
    metrics = {name: float(values.mean()) for name, values in cases.items()}
    lengths = np.array([units(text) / max(1, units(each[0])) for text, each in zip(answers, targets, strict=True)])
    metrics["length ratio"] = float(lengths.mean())
    protocol = (
        f"{ROUGE_WORDS}; F-measure against the best reference; length ratio = words ÷ words of the first reference"
    )
    return Judgement(metrics, cases, "rougeL", protocol)


class SummarizationTask(WritingTask):
    """Scored by ROUGE."""

    case_measure = "rougeL"

    config: SummarizationConfig

    def __init__(self, config: SummarizationConfig, context: TaskContext):
        super().__init__(config, context)
        if config.lead < 1:
            raise ValueError(f"task.lead should be at least 1, but is {config.lead}.")

    def trained_form(self, example: Example) -> Example:
        return with_one_answer(ask_length(example) if self.config.say_length else example)

    def require_packages(self) -> None:
        require_rouge("task.type summarization")

    def judge(self, examples: Sequence[Example], answers: Sequence[str]) -> Judgement:
        return judge_summaries(examples, answers)

    def rules(self, train: Sequence[Example]) -> dict[str, Callable[[Sequence[Example]], list[str]]]:
        def first(examples: Sequence[Example]) -> list[str]:
            return [lead(e.input or e.instruction, self.config.lead) for e in examples]

        return {f"lead-{self.config.lead}": first}
