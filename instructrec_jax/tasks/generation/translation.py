"""Translation by a language model (decoder or encoder–decoder): BLEU and chrF."""

from collections.abc import Callable, Sequence

import numpy as np

from instructrec_jax.data.example import Example
from instructrec_jax.data.prompts import references
from instructrec_jax.metrics.text import OF_ONE, bleu, chrf, require_bleu, resampled_bleu, sentence_chrf
from instructrec_jax.tasks.generation.nearest_answer import nearest_answers
from instructrec_jax.tasks.generation.written_answers import Judgement, WritingTask, by_language


def judge_translations(answers: Sequence[str], targets: Sequence[Sequence[str]]) -> Judgement:
    """Corpus BLEU and chrF with sacrebleu's signatures, and chrF of each case."""
    (bleu_score, bleu_signature), (chrf_score, chrf_signature) = bleu(answers, targets), chrf(answers, targets)
    cases = {"sentence chrF": np.array(sentence_chrf(answers, targets))}
    metrics = {"BLEU": bleu_score, "chrF": chrf_score, "sentence chrF": float(cases["sentence chrF"].mean())}
    protocol = f"{OF_ONE}; BLEU {bleu_signature}, chrF {chrf_signature}"
    return Judgement(metrics, cases, "sentence chrF", protocol, corpus={"BLEU": resampled_bleu(answers, targets)})


def nearest_translation(train: Sequence[Example]) -> Callable[[Sequence[Example]], list[str]]:
    """Baseline: examples -> the translations of their most similar training sources."""
    sources = [e.input or e.instruction for e in train]
    known = [references(e)[0] for e in train]
    return lambda examples: nearest_answers(sources, known, [e.input or e.instruction for e in examples])


class TranslationTask(WritingTask):
    """Scored by BLEU and chrF."""

    case_measure = "sentence chrF"

    def require_packages(self) -> None:
        require_bleu("task.type translation")

    def judge(self, examples: Sequence[Example], answers: Sequence[str]) -> Judgement:
        """BLEU and chrF; with several target languages also BLEU of each, with its own tokenizer."""
        targets = [references(e) for e in examples]
        found = judge_translations(answers, targets)
        for name, inside in by_language(examples, [first for first, *_ in targets]).items():
            score, signature = bleu([answers[i] for i in inside], [targets[i] for i in inside])
            found.metrics[f"BLEU ({name})"] = score
            found.segments[name] = inside
            found.protocol += f", BLEU ({name}) {signature}"
        return found

    def rules(self, train: Sequence[Example]) -> dict[str, Callable[[Sequence[Example]], list[str]]]:
        return {"translation of the most similar source": nearest_translation(train)}
