"""Dialogue: write the next utterance. All turns of the assistant are learnt, each after what was said before it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from instructrec_jax.data.example import Example
from instructrec_jax.data.prompts import render
from instructrec_jax.metrics.text import bleu, distinct, sentence_chrf
from instructrec_jax.tasks.base import TaskConfig, TaskContext
from instructrec_jax.tasks.nearest import nearest_answers
from instructrec_jax.tasks.writing import Judgement, WritingConfig, WritingTask, references


@TaskConfig.register_subclass("dialogue")
@dataclass
class DialogueConfig(WritingConfig):
    """Write the last turn of a conversation (`messages`); every turn of the assistant is learnt."""

    def build(self, context: TaskContext) -> "DialogueTask":
        return DialogueTask(self, context)


class DialogueTask(WritingTask):
    def judge(self, examples: Sequence[Example], answers: Sequence[str]) -> Judgement:
        wanted = [references(e) for e in examples]
        score, signature = bleu(answers, wanted)
        cases = {"sentence chrF": np.array(sentence_chrf(answers, wanted))}
        metrics = {
            "BLEU": score,
            "sentence chrF": float(cases["sentence chrF"].mean()),
            "distinct-1": distinct(answers, 1),
            "distinct-2": distinct(answers, 2),
        }
        return Judgement(metrics, cases, "sentence chrF", f"BLEU {signature}")

    def rules(self, train: Sequence[Example]) -> dict[str, Callable[[Sequence[Example]], list[str]]]:
        said = [references(e)[0] for e in train]
        (most, _), *_ = Counter(said).most_common(1)
        asked = [render(e) for e in train]
        return {
            "most frequent reply": lambda examples: [most] * len(examples),
            "reply to the most similar dialogue": lambda examples: nearest_answers(
                asked, said, [render(e) for e in examples]
            ),
        }
