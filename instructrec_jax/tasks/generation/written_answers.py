"""What the tasks that write have in common: a language model's training, and scores of the texts that it writes.

Each of them is a language model (`tasks.language_model`) with a `judge` of its own: question answering, summarisation,
translation, dialogue.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from instructrec_jax.backbones.folder import read_config
from instructrec_jax.backbones.reading import input_limit
from instructrec_jax.data.example import Example
from instructrec_jax.data.prompts import answer, render, tokenize_pieces
from instructrec_jax.inference.decoding import check_prompts
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.metrics.bootstrap import CorpusMetric
from instructrec_jax.metrics.language import KANA, has_cjk
from instructrec_jax.tasks.base import Encoded, Predict, Scores, TaskContext, owners_of, unless_unfit
from instructrec_jax.tasks.generation.language_model import LanguageModelConfig, LanguageModelTask
from instructrec_jax.tasks.texts import cut, too_long


@dataclass
class WritingConfig(LanguageModelConfig):
    """Settings of a task whose answers are written to be scored."""

    max_new_tokens: int = 64  # tokens of a written answer, where it is scored
    beams: int = 1  # answers that beam search follows side by side; 1: the likeliest token each time


@dataclass
class Judgement:
    """Scores of written texts.

    Attributes:
      metrics: name -> value over all cases.
      cases: name -> float [cases].
      main: which of `cases` is a case's score.
      protocol: how it was measured.
      segments: name -> numbers of cases.
      corpus: metrics that are no means over cases, for their intervals.
      owners: see `Scores.owners`; int64 [cases], or None where each case stands alone.
    """

    metrics: dict[str, float]
    cases: dict[str, np.ndarray]
    main: str
    protocol: str = ""
    segments: dict[str, np.ndarray] = field(default_factory=dict)
    corpus: dict[str, CorpusMetric] = field(default_factory=dict)
    owners: np.ndarray | None = None


def references(example: Example) -> list[str]:
    """All acceptable answers, at least one."""
    if isinstance(example.output, tuple):
        return list(example.output)
    said = answer(example)
    return [] if said is None else [said]


def by_language(examples: Sequence[Example], texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Numbers of the examples of each language, where there are several.

    It is `origin.language`, else whether the example's own of the `texts` is written in Japanese (kana) or in Chinese.
    """
    names = [
        e.origin.get("language") or ("ja" if KANA.search(text) else "zh" if has_cjk(text) else "other")
        for e, text in zip(examples, texts, strict=True)
    ]
    groups = {name: np.flatnonzero([n == name for n in names]) for name in sorted(set(names))}
    return groups if len(groups) > 1 else {}


def with_one_answer(example: Example) -> Example:
    """Of several acceptable answers the first, which is the one that is learnt."""
    return replace(example, output=example.output[0]) if isinstance(example.output, tuple) else example


def scores_of_texts(
    examples: Sequence[Example], asked: Sequence[str], answers: Sequence[str], found: Judgement
) -> Scores:
    """A judgement as scores, with a record of each case.

    Args:
      asked: what the answers answer, as people are shown it.
    """
    records = [
        {"id": e.id, "input": text, "prediction": said, "reference": references(e), "score": float(score)}
        for e, text, said, score in zip(examples, asked, answers, found.cases[found.main], strict=True)
    ]
    return Scores(
        found.metrics,
        found.cases,
        records,
        segments=found.segments,
        protocol=found.protocol,
        compared=[found.main],
        corpus=found.corpus,
    ).owned_by(owners_of(examples) if found.owners is None else found.owners)


def shown_text(record: Mapping[str, Any], empty: str = "") -> dict[str, Any]:
    """Such a record as `Task.shown` gives it: the first of its references; `empty` for a text without words."""
    answer = {"text": record["prediction"] or empty, "score": record["score"]}
    return {"instruction": record["input"], "wanted": record["reference"][0] or empty, "answers": [answer]}


class WritingTask(LanguageModelTask):
    """Trained and stopped by the loss; `compared` by what it writes."""

    writes = True
    config: WritingConfig

    def __init__(self, config: WritingConfig, context: TaskContext):
        super().__init__(config, context)
        # built here, so that a setting out of range is an error before anything runs
        self.generation = GenerationConfig(max_new_tokens=config.max_new_tokens, beams=config.beams, batch_size=16)

    def judge(self, examples: Sequence[Example], answers: Sequence[str]) -> Judgement:
        raise TypeError(f"{type(self).__name__} has no judge().")

    def rules(self, train: Sequence[Example]) -> dict[str, Callable[[Sequence[Example]], list[str]]]:
        """Simple methods by name: examples -> answers."""
        return {}

    def learnt(self, example: Example) -> Example:
        """The example as it is trained on and asked."""
        return with_one_answer(example)

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        for number, example in enumerate(examples):
            if not references(example):
                raise ValueError(f"example {example.id or number!r} has no answer: fill it in, or remove the row.")
        learnt = [replace(self.learnt(e), id=e.id or str(number)) for number, e in enumerate(examples)]
        own = {id(one): example for one, example in zip(learnt, examples, strict=True)}
        return [replace(e, example=own[id(e.example)]) for e in super().encode(learnt)]

    def asked(self, encoded: Sequence[Encoded]) -> list[np.ndarray]:
        """The prompts to write from: int32 [tokens] each, as long as data.max_length allows."""
        if self.is_pair:
            return [e.text.tokens for e in encoded]
        examples = [self.learnt(e.example) for e in encoded]
        prompts = []
        for e, tokens in zip(
            encoded, tokenize_pieces([[(self._prompt(x), False)] for x in examples], self.tokenizer), strict=True
        ):
            ids, name = tokens.ids, f"the prompt of example {e.example.id!r}"
            if len(ids) > self.context.max_length:
                if too_long(len(ids), name, self.context) != "left":
                    raise ValueError(
                        f"{name} has {len(ids)} tokens, but data.max_length is {self.context.max_length}: raise it, or "
                        "set --data.truncate left, which keeps the end, where the answer begins."
                    )
                ids = ids[cut([1] * tokens.opening + [0] * (len(ids) - tokens.opening), name, self.context)]
            prompts.append(ids)
        return prompts

    def check(self, encoded: Sequence[Encoded]) -> None:
        super().check(encoded)
        assert self.context.folder is not None
        check_prompts(
            self.asked(encoded),
            [f"the prompt of example {e.example.id or number!r}" for number, e in enumerate(encoded)],
            self.generation,
            max_length=input_limit(read_config(self.context.folder)),
            encoder_decoder=self.is_pair,
        )

    def score(self, predict: Predict, encoded: Sequence[Encoded]) -> Scores:
        known = super().score(predict, encoded)
        answers = predict.write(self.asked(encoded), self.generation)
        found = self._judged(encoded, answers)
        way = f"{self.config.beams} beams" if self.config.beams > 1 else "the likeliest token each time"
        return replace(
            found,
            metrics=found.metrics | known.metrics,
            cases=known.cases | found.cases,
            owners={**known.owners, **found.owners},
            protocol=f"written by {way}, at most {self.config.max_new_tokens} tokens; {found.protocol}",
        )

    def _judged(self, encoded: Sequence[Encoded], answers: Sequence[str]) -> Scores:
        answers = [text.strip() for text in answers]
        examples = [e.example for e in encoded]
        asked = [render(self.learnt(example)) for example in examples]
        return scores_of_texts(examples, asked, answers, self.judge(examples, answers))

    def baselines(self, train: Sequence[Encoded], test: Sequence[Encoded]) -> dict[str, Scores]:
        examples = [e.example for e in test]
        rules = self.rules([e.example for e in train])
        return {
            name: unless_unfit(lambda rule=rule: self._judged(test, rule(examples)))  # type: ignore[misc]
            for name, rule in rules.items()
        }

    def shown(self, record: Mapping[str, Any]) -> dict[str, Any]:
        return shown_text(record)
