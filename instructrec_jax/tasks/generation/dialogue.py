"""Dialogue: generate the next turn. Training learns all turns of the assistant, each after the turns before it.

Evaluation generates the last turn of a conversation with a decoder, each turn of the assistant with an
encoder–decoder.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from instructrec_jax.data.example import Example
from instructrec_jax.data.fingerprints import fingerprint
from instructrec_jax.data.prompts import question, references, render
from instructrec_jax.metrics.text import OF_ONE, bleu, distinct, require_bleu, resampled_bleu, sentence_chrf
from instructrec_jax.tasks.base import Encoded
from instructrec_jax.tasks.generation.nearest_answer import nearest_answers
from instructrec_jax.tasks.generation.written_answers import Judgement, WritingTask


class DialogueTask(WritingTask):
    """Scored by BLEU, sentence chrF and distinct-n."""

    case_measure = "sentence chrF"

    @property
    def gathers_alone(self) -> bool:  # type: ignore[override]
        return not self.is_pair  # a turn is an example that no other process knows

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """For an encoder–decoder, one example per turn of the assistant, since its decoder reads a single turn."""
        return super().encode([turn for e in examples for turn in turns(e)] if self.is_pair else examples)

    def require_packages(self) -> None:
        require_bleu("task.type dialogue")

    def judge(self, examples: Sequence[Example], answers: Sequence[str]) -> Judgement:
        targets = [references(e) for e in examples]
        score, signature = bleu(answers, targets)
        cases = {"sentence chrF": np.array(sentence_chrf(answers, targets))}
        metrics = {
            "BLEU": score,
            "sentence chrF": float(cases["sentence chrF"].mean()),
            "distinct-1": distinct(answers, 1),
            "distinct-2": distinct(answers, 2),
        }
        corpus = {"BLEU": resampled_bleu(answers, targets)}
        return Judgement(metrics, cases, "sentence chrF", f"{OF_ONE}; BLEU {signature}", corpus=corpus)

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


def turns(example: Example) -> list[Example]:
    """The conversation up to each trained turn of the assistant; the last one is the example itself."""
    said = [n for n, turn in enumerate(question(example).messages) if turn.role == "assistant" and turn.learn]
    name = f"{example.id}, " if example.id else ""
    # The turns of a conversation are not independent cases: see `owners_of`.
    own = {"conversation": example.id or fingerprint([example]), **example.origin}
    earlier = [
        replace(example, messages=example.messages[: n + 1], output=None, id=f"{name}turn {n + 1}", origin=own)
        for n in said
    ]
    return [*earlier, replace(example, origin=own)]
