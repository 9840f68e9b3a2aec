"""Base of the tasks that generate text: trained as language models, scored on the generated text.

Each is a language model (`tasks.generation.language_model`) with its own `judge`: question answering, summarization,
translation, dialogue.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from instructrec_jax.backbones.folder import read_config
from instructrec_jax.backbones.reading import answer_limit, input_limit
from instructrec_jax.data.example import Example
from instructrec_jax.data.mapped import Mapped
from instructrec_jax.data.prompts import references, render
from instructrec_jax.inference.decoding import check_prompts
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.metrics.bootstrap import CorpusMetric
from instructrec_jax.metrics.language import KANA, has_cjk
from instructrec_jax.tasks.answers import CaseRecord, Shown, ShownOutput
from instructrec_jax.tasks.base import Encoded, TaskContext, examples_of
from instructrec_jax.tasks.generation.language_model import LanguageModelTask
from instructrec_jax.tasks.generation.writing_config import WritingConfig
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.scores import Scores, owners_of, unless_unfit

Rule = Callable[[Sequence[Example]], list[str]]


@dataclass
class Judgement:
    """Scores of generated texts.

    Attributes:
      metrics: name -> value over all cases.
      cases: name -> float [cases].
      main: the key of `cases` that each record has.
      protocol: how the metrics were measured.
      segments: subgroup -> numbers of its cases.
      corpus: metrics that are not means over cases, for their intervals.
      owners: int64 [cases], see `Scores.owners`; None where cases are independent.
    """

    metrics: dict[str, float]
    cases: dict[str, np.ndarray]
    main: str
    protocol: str = ""
    segments: dict[str, np.ndarray] = field(default_factory=dict)
    corpus: dict[str, CorpusMetric] = field(default_factory=dict)
    owners: np.ndarray | None = None


def by_language(examples: Sequence[Example], texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Language -> numbers of its examples; empty with a single language.

    The language is `origin.language`, else that of the example's text in `texts`: Japanese (kana), Chinese or other.
    """
    names = [
        e.origin.get("language") or ("ja" if KANA.search(text) else "zh" if has_cjk(text) else "other")
        for e, text in zip(examples, texts, strict=True)
    ]
    groups = {name: np.flatnonzero([n == name for n in names]) for name in sorted(set(names))}
    return groups if len(groups) > 1 else {}


def with_one_answer(example: Example) -> Example:
    """The example with only the first of several acceptable answers, which is trained on."""
    return replace(example, output=example.output[0]) if isinstance(example.output, tuple) else example


def scores_of_texts(
    examples: Sequence[Example], asked: Callable[[Example], str], answers: Sequence[str], found: Judgement
) -> Scores:
    """A judgement as scores, with a record per case.

    Args:
      asked: example -> its readable prompt.
    """

    def record(e: Example, said: str, score: float) -> dict[str, object]:
        shown = {"id": e.id, "input": asked(e), "prediction": said, "reference": references(e)}
        return shown | {found.main: float(score)}

    return Scores(
        found.metrics,
        found.cases,
        Mapped(record, examples, answers, found.cases[found.main]),
        segments=found.segments,
        protocol=found.protocol,
        compared=[found.main],
        corpus=found.corpus,
    ).owned_by(owners_of(examples) if found.owners is None else found.owners)


def shown_text(record: CaseRecord, measure: str, empty: str = "") -> Shown:
    """Such a record as `Task.shown` gives it: the first of its references; `empty` for a text without words.

    Args:
      measure: the record's field with its metric.
    """
    answer: ShownOutput = {"text": record["prediction"] or empty, "score": record[measure], "measure": measure}
    return {"instruction": record["input"], "wanted": record["reference"][0] or empty, "answers": [answer]}


class WritingTask(LanguageModelTask):
    """Checkpoints are selected by the loss; rows are `compared` on the generated text."""

    config: WritingConfig

    def __init__(self, config: WritingConfig, context: TaskContext):
        super().__init__(config, context)
        # built here to check the settings before anything runs
        self.generation = GenerationConfig(max_new_tokens=config.max_new_tokens, beams=config.beams, batch_size=16)

    def judge(self, examples: Sequence[Example], answers: Sequence[str]) -> Judgement:
        """Scores generated answers."""
        raise TypeError(f"{type(self).__name__} has no judge().")

    def require_packages(self) -> None:
        """Raise ValueError where a package that `judge` needs is not installed."""

    def rules(self, train: Sequence[Example]) -> dict[str, Rule]:
        """Baselines by name: a function from examples to answers."""
        return {}

    def trained_form(self, example: Example) -> Example:
        """The example as used in training and for prompts."""
        return with_one_answer(example)

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        for number, example in enumerate(examples):
            if not references(example):
                raise ValueError(f"example {example.id or number!r} has no answer: add it, or remove the row.")
        trained = [replace(self.trained_form(e), id=e.id or str(number)) for number, e in enumerate(examples)]
        own = {id(one): example for one, example in zip(trained, examples, strict=True)}
        return [replace(e, example=own[id(e.example)]) for e in super().encode(trained)]

    def check(self, encoded: Sequence[Encoded]) -> None:
        super().check(encoded)
        self.require_packages()
        assert self.context.folder is not None
        network = read_config(self.context.folder)
        check_prompts(
            [text.tokens for text in self.asked(encoded)],
            [f"the prompt of example {e.example.id or number!r}" for number, e in enumerate(encoded)],
            self.generation,
            max_length=input_limit(network),
            max_answer=answer_limit(network),
            encoder_decoder=self.is_pair,
        )

    def score(self, predict: Predict, encoded: Sequence[Encoded]) -> Scores:
        known = super().score(predict, encoded)
        answers = self.generated(predict, encoded)
        found = self._judged(encoded, [answer.text for answer in answers])
        way = f"{self.config.beams} beams" if self.config.beams > 1 else "greedy decoding"
        return replace(
            found,
            predictions=Mapped(lambda record, said: record | said.to_record(), found.predictions, answers),
            metrics=found.metrics | known.metrics,
            cases=known.cases | found.cases,
            corpus={**known.corpus, **found.corpus},
            owners={**known.owners, **found.owners},
            protocol=f"generated with {way}, at most {self.config.max_new_tokens} tokens; {found.protocol}",
        )

    def _judged(self, encoded: Sequence[Encoded], answers: Sequence[str]) -> Scores:
        examples = examples_of(encoded)
        found = self.judge(examples, answers)
        return scores_of_texts(examples, lambda e: render(self.trained_form(e)), answers, found)

    def baselines(self, train: Sequence[Encoded], test: Sequence[Encoded]) -> dict[str, Scores]:
        rules = self.rules(examples_of(train))
        return {name: unless_unfit(partial(self._baseline, rule, test)) for name, rule in rules.items()}

    def _baseline(self, rule: Rule, test: Sequence[Encoded]) -> Scores:
        return self._judged(test, [text.strip() for text in rule(examples_of(test))])

    def shown(self, record: CaseRecord) -> Shown:
        return shown_text(record, self.case_measure)
