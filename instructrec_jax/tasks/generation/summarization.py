"""Summarisation: ROUGE beside the first sentences, and summaries of a length that is asked for."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from instructrec_jax.data.example import Example
from instructrec_jax.metrics.language import has_cjk, units
from instructrec_jax.metrics.text import ROUGE_WORDS, require_rouge, rouge
from instructrec_jax.tasks.base import TaskConfig, TaskContext
from instructrec_jax.tasks.generation.written_answers import (
    Judgement,
    WritingConfig,
    WritingTask,
    references,
    with_one_answer,
)

# After a full stop of Latin, Arabic or Indic script a sentence goes on unless a space follows; Chinese ones need none.
SENTENCE = re.compile(r"(?<=[.!?\u061f\u06d4\u0964])\s+|(?<=[。！？])\s*|\n+")


@TaskConfig.register_subclass("summarization")
@dataclass
class SummarizationConfig(WritingConfig):
    """Write a summary of `input`."""

    lead: int = 1  # sentences that the simple method takes from the beginning
    say_length: bool = False  # ask for about as many words as the (first) reference has, in training and in tests

    def build(self, context: TaskContext) -> "SummarizationTask":
        return SummarizationTask(self, context)


def sentences(text: str) -> list[str]:
    return [part.strip() for part in SENTENCE.split(text) if part.strip()]


def lead(text: str, count: int) -> str:
    """The first sentences of a text."""
    return join(sentences(text)[:count])


def join(parts: Sequence[str]) -> str:
    return joint(parts).join(parts)


def joint(parts: Sequence[str]) -> str:
    """What stands between sentences: nothing where they are Chinese."""
    return "" if any(map(has_cjk, parts)) else " "


def ask_length(example: Example) -> Example:
    """The instruction, and how long the summary is to be: the first reference's length, to the next five."""
    wanted = references(example)[0]
    count = max(5, 5 * round(units(wanted) / 5))
    said = f"用大约{count}个字。" if has_cjk(example.instruction) else f"Use about {count} words."
    return replace(example, instruction=f"{example.instruction} {said}".strip())


def judge_summaries(examples: Sequence[Example], answers: Sequence[str]) -> Judgement:
    wanted = [references(e) for e in examples]
    cases = {name: np.array(values) for name, values in rouge(answers, wanted).items()}
    metrics = {name: float(values.mean()) for name, values in cases.items()}
    lengths = np.array([units(text) / max(1, units(each[0])) for text, each in zip(answers, wanted, strict=True)])
    metrics["length ratio"] = float(lengths.mean())
    protocol = (
        f"{ROUGE_WORDS}; F-measure of the reference that gives the most; length ratio = words ÷ words of the first "
        "reference"
    )
    return Judgement(metrics, cases, "rougeL", protocol)


class SummarizationTask(WritingTask):
    config: SummarizationConfig

    def __init__(self, config: SummarizationConfig, context: TaskContext):
        super().__init__(config, context)
        if config.lead < 1:
            raise ValueError(f"task.lead should be at least 1, but is {config.lead}.")

    def learnt(self, example: Example) -> Example:
        return with_one_answer(ask_length(example) if self.config.say_length else example)

    def require_packages(self) -> None:
        require_rouge("task.type summarization")

    def judge(self, examples: Sequence[Example], answers: Sequence[str]) -> Judgement:
        return judge_summaries(examples, answers)

    def rules(self, train: Sequence[Example]) -> dict[str, Callable[[Sequence[Example]], list[str]]]:
        def first(examples: Sequence[Example]) -> list[str]:
            return [lead(e.input or e.instruction, self.config.lead) for e in examples]

        return {f"lead-{self.config.lead}": first}
