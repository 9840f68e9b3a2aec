"""Choosing a text by its likelihood: multiple choice, response selection, and labels known by the words for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from instructrec_jax.data.example import Example
from instructrec_jax.data.prompts import TemplateName, question
from instructrec_jax.inference.likelihood import normalized
from instructrec_jax.tasks.base import Encoded, Predict, Scores, TaskConfig, TaskContext, name_of
from instructrec_jax.tasks.generation.answer_likelihood import LikelihoodTask
from instructrec_jax.tasks.generation.language_model import LanguageModelConfig, LanguageModelTask, NextTokens, TrainOn
from instructrec_jax.tasks.text.option_scoring import (
    Options,
    OptionsConfig,
    check_options,
    option_baselines,
    option_scores,
    options_of,
    shown_options,
    with_candidates,
)

EMPTY = "N/A"  # a question without content (Zhao et al., 2021, "Calibrate Before Use")


@TaskConfig.register_subclass("choice")
@dataclass
class ChoiceConfig(OptionsConfig, LanguageModelConfig):
    """Choose the text (of candidates, or of the words for labels) that a language model finds likeliest."""

    alpha: float = 1.0  # log-likelihoods are divided by the number of tokens to this power; 0: not at all
    calibrate: bool = False  # subtract the log-likelihood after a question without content
    # Those of its ancestors again: --help finds comments along one line of ancestors only.
    labels: list[str] = field(default_factory=list)  # candidates of every example; []: each example's own
    verbalisers: dict[str, str] = field(default_factory=dict)  # what is said for a label; others: name, _ as space
    negatives: int = 0  # answers of other examples drawn, by seed, as candidates for examples that list none
    train_on: TrainOn = "completions"  # the answers and what ends them, or every token (decoders only)
    template: TemplateName = "auto"  # auto: the tokenizer's own; if it has none, alpaca, for encoder–decoders plain
    enable_thinking: bool | None = None  # told to the tokenizer's chat template; null: the template decides
    date: str = "2024-07-26"  # what the tokenizer's chat template takes for today, so that runs repeat
    label_smoothing: float = 0.0  # share of the target that is spread over all tokens (training only)
    z_loss: float = 0.0  # weight of logsumexp(logits) squared in the training loss; 1e-4 keeps large models stable
    max_target_length: int | None = None  # encoder–decoders: tokens an answer may have, EOS too; null: max_length

    def build(self, context: TaskContext) -> "ChoiceTask":
        return ChoiceTask(self, context)


@dataclass(frozen=True)
class ChoiceTarget(NextTokens):
    """What is learnt of the text, and what is chosen from."""

    options: Options


class ChoiceTask(LikelihoodTask):
    """Trains as a language model does, on the words of right answers."""

    greater_is_better = True
    metric = "accuracy"
    config: ChoiceConfig

    def __init__(self, config: ChoiceConfig, context: TaskContext):
        check_options(config)
        if not np.isfinite(config.alpha):
            raise ValueError(f"task.alpha should be a finite number, but is {config.alpha}.")
        super().__init__(config, context)
        self.encodes_together = config.negatives > 0

    def encode(self, examples: Sequence[Example]) -> list[Encoded[Any]]:
        examples = with_candidates(examples, self.config, self.context.seed)
        names = [name_of(example, number) for number, example in enumerate(examples)]
        options = [options_of(example, name, self.config) for example, name in zip(examples, names, strict=True)]
        learnt = [
            replace(question(e), output=o.said, id=e.id or str(number))
            for number, (e, o) in enumerate(zip(examples, options, strict=True))
        ]
        place = {id(example): number for number, example in enumerate(learnt)}
        encoded = []
        for e in LanguageModelTask.encode(self, learnt):
            number = place[id(e.example)]
            target = ChoiceTarget(e.target.labels, e.target.supervised, options[number])
            encoded.append(Encoded(e.text, target, examples[number]))
        return encoded

    def check(self, encoded: Sequence[Encoded[Any]]) -> None:
        for e in encoded:
            self.check_question(question(e.example), list(e.target.options.texts))

    def score(self, predict: Predict, encoded: Sequence[Encoded[Any]]) -> Scores:
        options = [e.target.options for e in encoded]
        logits = self._logits(predict, [e.example for e in encoded], options)
        if self.config.calibrate:
            texts = list(dict.fromkeys(option.texts for option in options))
            empty = [Example(instruction=EMPTY)] * len(texts)
            asked = [replace(options[0], names=each, texts=each) for each in texts]
            without = dict(zip(texts, self._logits(predict, empty, asked), strict=True))
            logits = [each - without[option.texts] for each, option in zip(logits, options, strict=True)]
        way = f"by log-likelihood / tokens ** {self.config.alpha:g}"
        way += f" less that after {EMPTY!r}" if self.config.calibrate else ""
        return option_scores(encoded, options, logits, self.config.labels, way)

    def _logits(self, predict: Predict, examples: Sequence[Example], options: Sequence[Options]) -> list[np.ndarray]:
        """float64 [candidates] of each example."""
        asked = [[(question(e), list(o.texts))] for e, o in zip(examples, options, strict=True)]
        found = self.log_likelihoods(predict, asked, end=True)
        return [normalized(values[0], self.config.alpha) for values in found]

    def baselines(self, train: Sequence[Encoded], test: Sequence[Encoded]) -> dict[str, Scores]:
        learnt, options = ([e.target.options for e in some] for some in (train, test))
        return option_baselines(train, learnt, test, options, self.config.labels)

    def shown(self, record: Mapping[str, Any]) -> dict[str, Any]:
        return shown_options(record)
