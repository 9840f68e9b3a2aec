"""Generative question answering: exact match and F1 as in SQuAD, in any language."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from instructrec_jax.data.example import Example
from instructrec_jax.data.prompts import references
from instructrec_jax.metrics.answers import exact_match, f1
from instructrec_jax.tasks.generation.written_answers import Judgement, WritingTask, by_language
from instructrec_jax.tasks.scores import owners_of


def judge_answers(examples: Sequence[Example], answers: Sequence[str], targets: Sequence[Sequence[str]]) -> Judgement:
    """Exact match and F1, each case against its best reference; F1 also per language.

    Args:
      targets: references of each case; "" for a question without answer.
    """
    pairs = list(zip(answers, targets, strict=True))
    cases = {
        "exact_match": np.array([exact_match(text, each) for text, each in pairs]),
        "f1": np.array([f1(text, each) for text, each in pairs]),
    }
    languages = by_language(examples, [e.instruction for e in examples])
    metrics = {name: float(values.mean()) for name, values in cases.items()}
    metrics |= {f"f1 ({name})": float(cases["f1"][inside].mean()) for name, inside in languages.items()}
    owners = owners_of(examples, shared_input=True)  # several questions about one text
    return Judgement(metrics, cases, "f1", "answers normalized as in SQuAD", languages, owners=owners)


class QuestionAnsweringTask(WritingTask):
    """Scored by exact match and F1."""

    case_measure = "f1"

    def judge(self, examples: Sequence[Example], answers: Sequence[str]) -> Judgement:
        return judge_answers(examples, answers, [references(e) for e in examples])

    def rules(self, train: Sequence[Example]) -> dict[str, Callable[[Sequence[Example]], list[str]]]:
        (most, _), *_ = Counter(references(e)[0] for e in train).most_common(1)
        return {"most frequent answer": lambda examples: [most] * len(examples)}
