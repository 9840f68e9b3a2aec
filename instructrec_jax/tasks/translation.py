"""Translation by a language model, decoder or encoder–decoder: BLEU and chrF."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from instructrec_jax.data.example import Example
from instructrec_jax.metrics.text import bleu, chrf, sentence_chrf
from instructrec_jax.tasks.base import TaskConfig, TaskContext
from instructrec_jax.tasks.nearest import nearest_answers
from instructrec_jax.tasks.writing import Judgement, WritingConfig, WritingTask, references


@TaskConfig.register_subclass("translation")
@dataclass
class TranslationConfig(WritingConfig):
    """Write `input` in another language."""

    def build(self, context: TaskContext) -> "TranslationTask":
        return TranslationTask(self, context)


def judge_translations(answers: Sequence[str], wanted: Sequence[Sequence[str]]) -> Judgement:
    """Corpus BLEU and chrF with sacrebleu's signatures; chrF of each case."""
    (bleu_score, bleu_signature), (chrf_score, chrf_signature) = bleu(answers, wanted), chrf(answers, wanted)
    cases = {"sentence chrF": np.array(sentence_chrf(answers, wanted))}
    metrics = {"BLEU": bleu_score, "chrF": chrf_score, "sentence chrF": float(cases["sentence chrF"].mean())}
    return Judgement(metrics, cases, "sentence chrF", f"BLEU {bleu_signature}, chrF {chrf_signature}")


def nearest_translation(train: Sequence[Example]) -> Callable[[Sequence[Example]], list[str]]:
    sources = [e.input or e.instruction for e in train]
    known = [references(e)[0] for e in train]
    return lambda examples: nearest_answers(sources, known, [e.input or e.instruction for e in examples])


class TranslationTask(WritingTask):
    def judge(self, examples: Sequence[Example], answers: Sequence[str]) -> Judgement:
        return judge_translations(answers, [references(e) for e in examples])

    def rules(self, train: Sequence[Example]) -> dict[str, Callable[[Sequence[Example]], list[str]]]:
        return {"translation of the most similar source": nearest_translation(train)}
