"""Choosing a text by vector similarity: response selection, and labels by their names."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from instructrec_jax.adapters.checkpoint_heads import Source, vector_head
from instructrec_jax.adapters.losses import cross_entropy
from instructrec_jax.adapters.soft_targets import SoftOutputs
from instructrec_jax.backbones.layers import DropoutKeys
from instructrec_jax.data.batch import Batch, BatchTexts, PerExample, Text, TextNumbers
from instructrec_jax.data.codec import storable
from instructrec_jax.data.example import Example
from instructrec_jax.data.packing import max_segments
from instructrec_jax.data.prompts import render
from instructrec_jax.tasks.answers import CaseRecord, ChoiceAnswer, Shown
from instructrec_jax.tasks.averaging import Judged, padded
from instructrec_jax.tasks.base import Encoded, LossInputs, Model, Network, Task, TaskContext, in_microbatches, name_of
from instructrec_jax.tasks.objective import Choice, Objective, contrast, refuse_word
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.scores import Scores
from instructrec_jax.tasks.text.option_scoring import (
    Options,
    check_options,
    choices,
    option_baselines,
    option_scores,
    options_of,
    shown_options,
    with_candidates,
    without_answer,
)
from instructrec_jax.tasks.text.text_config import SimilarityConfig
from instructrec_jax.tasks.texts import rendered, tokenize, with_default_prompt


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Candidates:
    """The questions and candidates of a batch, and what each question compares.

    Attributes:
      queries: [examples], the texts of the questions.
      candidates: [candidates], the texts of the distinct candidates.
      allowed: bool [examples, candidates], those of each question.
      target: int32 [examples], the answer's place among the candidates.
    """

    queries: TextNumbers
    candidates: TextNumbers
    allowed: PerExample
    target: PerExample


@storable
@dataclass(frozen=True)
class SimilarityTarget:
    """The options, and the tokens of their texts (`candidates`)."""

    options: Options
    candidates: tuple[Text, ...]

    def tokens(self, text: str) -> Text:
        return self.candidates[self.options.texts.index(text)]


class SimilarityTask(Task):
    """Softmax over the example's own candidates or, where these are drawn (`negatives`), over the answers of the batch
    (in-batch negatives; Henderson et al., 2017, "Efficient Natural Language Response Suggestion").
    """

    couples_examples = True
    outputs_are = "scores"
    metric = "accuracy"

    def __init__(self, config: SimilarityConfig, context: TaskContext):
        check_options(config)
        self.config, self.context = config, with_default_prompt(context)
        self.encodes_together = config.negatives > 0
        self.reads_unlabeled = config.negatives == 0  # else candidates are the answers of a batch
        self._most = 1  # maximum candidates of a training example

    def model(self, source: Source) -> Model:
        head = vector_head(source, None, self.config.pooling, self.config.temperature)
        return Model(source.backbone, head)

    # ---------------------------------------------------------------- host

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        examples = with_candidates(examples, self.config, self.context.seed)
        names = [name_of(example, number) for number, example in enumerate(examples)]
        options = [options_of(example, name, self.config) for example, name in zip(examples, names, strict=True)]
        known: dict[str, Text] = {}
        new = list(dict.fromkeys(text for option in options for text in option.texts))
        for text, tokens in zip(new, tokenize(new, [f"the candidate {t!r}" for t in new], self.context), strict=True):
            if tokens is None:
                raise ValueError(
                    f"the candidate {text!r} is longer than data.max_length (candidates cannot be dropped): raise it."
                )
            known[text] = tokens
        listed = {texts: tuple(known[text] for text in texts) for texts in dict.fromkeys(o.texts for o in options)}
        texts = tokenize([render(example) for example in examples], names, self.context)
        return [
            Encoded(text, SimilarityTarget(option, listed[option.texts]), example)
            for text, option, example in zip(texts, options, examples, strict=True)
            if text is not None
        ]

    def prepare(self, train: Sequence[Encoded[SimilarityTarget]]) -> None:
        self._most = max(len(e.target.candidates) for e in train)

    def gather(self, encoded: Sequence[Encoded[SimilarityTarget]], rng: np.random.Generator) -> BatchTexts:
        """The questions, then each distinct candidate once. Held-out labels are left out: as constant negatives, the
        network would learn never to choose them."""
        options = [e.target.options for e in encoded]
        listed = [option.texts_but(self.context.held_out) if option.own else (option.said,) for option in options]
        texts = list(dict.fromkeys(text for each in listed for text in each))
        place = {text: number for number, text in enumerate(texts)}
        tokens = {text: e.target.tokens(text) for e, own in zip(encoded, listed, strict=True) for text in own}
        # unused slots keep the arrays' shapes equal in all batches
        room = self._room(options)
        slots = np.zeros(room, np.int64)
        slots[: len(texts)] = len(encoded) + np.arange(len(texts))
        allowed = np.zeros((len(encoded), room), bool)
        for row, (option, own) in enumerate(zip(options, listed, strict=True)):
            allowed[row, [place[text] for text in own] if option.own else slice(len(texts))] = True
        target = np.array([place[option.said] if option.right >= 0 else -1 for option in options], np.int32)
        return BatchTexts(
            [e.text for e in encoded] + [tokens[text] for text in texts],
            Candidates(np.arange(len(encoded)), slots, allowed, target),
        )

    def _room(self, options: Sequence[Options]) -> int:
        """Maximum number of distinct candidates in a batch."""
        if not options[0].own:
            return len(options)
        most = len(options) * max([self._most, *(len(option.texts) for option in options)])
        return min(most, len(self.config.labels)) if self.config.labels else most

    # ---------------------------------------------------------------- device

    def _vectors(self, model: Network, batch: Batch, dropout: DropoutKeys | None) -> jax.Array:
        hidden = model.hidden(batch, dropout)
        return model.head(hidden, batch.texts.segment_ids, max_segments(hidden.shape[1]))

    def loss(self, model: Network, batch: Batch[Candidates], inputs: LossInputs) -> tuple[jax.Array, jax.Array]:
        """Softmax cross-entropy of the answer among the candidates, over cosines divided by the temperature."""
        losses = cross_entropy(self._candidate_logits(model, batch, inputs), batch.own.target)
        return losses.sum(), jnp.float32(len(losses))

    def soft_outputs(self, model: Network, batch: Batch[Candidates], inputs: LossInputs) -> list[SoftOutputs]:
        logits = self._candidate_logits(model, batch, inputs)
        return [SoftOutputs("classes", logits, jnp.ones(len(logits)), targets=batch.own.target)]

    def _candidate_logits(self, model: Network, batch: Batch[Candidates], inputs: LossInputs) -> jax.Array:
        """[examples, candidates of the batch]."""
        vectors = in_microbatches(self._vectors, model, batch.without_own, inputs)
        vectors = vectors.reshape(-1, vectors.shape[-1])
        logits = model.head.scale() * vectors[batch.own.queries] @ vectors[batch.own.candidates].T
        return jnp.where(batch.own.allowed, logits, -1e9)

    def predict(self, model: Network, batch: Batch) -> jax.Array:
        """float32 [rows, segments, hidden]: vectors whose inner products are the logits."""
        return self._vectors(model, batch, None) * jnp.sqrt(model.head.scale())

    # ---------------------------------------------------------------- scores

    def unanswered(self, example: Example) -> Example:
        return without_answer(example, self.config)

    def without_target(self, encoded: Encoded[SimilarityTarget]) -> Encoded[SimilarityTarget]:
        target = encoded.target
        unknown = SimilarityTarget(replace(target.options, right=-1), target.candidates)
        return Encoded(encoded.text, unknown, encoded.example)

    def answers(
        self, predict: Predict, encoded: Sequence[Encoded[SimilarityTarget]], k: int = 10
    ) -> list[ChoiceAnswer]:
        return choices(encoded, [e.target.options for e in encoded], self._logits(predict, encoded))

    def objectives(self, predict: Predict, encoded: Encoded[SimilarityTarget], choice: Choice) -> list[Objective]:
        """The logit of a candidate (by default the closest), less that of another; their vectors are constants."""
        refuse_word(choice)
        options = encoded.target.options
        predicted = int(self._logits(predict, [encoded])[0].argmax())
        target, against = contrast(choice, options.names, predicted, "candidate")
        vectors = np.stack(predict(list(encoded.target.candidates)))
        weights = vectors[target] if against is None else vectors[target] - vectors[against]
        other = None if against is None else options.names[against]
        return [Objective(options.names[target], other, "logit", lambda _: weights, partial(rendered, self.context))]

    def score(self, predict: Predict, encoded: Sequence[Encoded[SimilarityTarget]]) -> Scores:
        options = [e.target.options for e in encoded]
        return option_scores(encoded, options, self._logits(predict, encoded), self.config.labels, "by cosine")

    def judged(self, predict: Predict, encoded: Sequence[Encoded[SimilarityTarget]]) -> Judged:
        return padded(self._logits(predict, encoded), [e.target.options.right for e in encoded])

    def _logits(self, predict: Predict, encoded: Sequence[Encoded[SimilarityTarget]]) -> list[np.ndarray]:
        """float64 [candidates] of each example."""
        return predict.averaged([self._cosines(each, encoded) for each in predict.each])

    def _cosines(self, predict: Predict, encoded: Sequence[Encoded[SimilarityTarget]]) -> list[np.ndarray]:
        options = [e.target.options for e in encoded]
        tokens = {t: each for e in encoded for t, each in zip(e.target.options.texts, e.target.candidates, strict=True)}
        place = {text: number for number, text in enumerate(tokens)}
        candidates = np.stack(predict(list(tokens.values()))).astype(np.float64)
        queries = np.stack([np.array(output) for _, output in predict.over(encoded)]).astype(np.float64)
        return [
            candidates[[place[text] for text in option.texts]] @ query
            for option, query in zip(options, queries, strict=True)
        ]

    def baselines(
        self, train: Sequence[Encoded[SimilarityTarget]], test: Sequence[Encoded[SimilarityTarget]]
    ) -> dict[str, Scores]:
        train_options, options = ([e.target.options for e in some] for some in (train, test))
        return option_baselines(train, train_options, test, options, self.config.labels)

    def shown(self, record: CaseRecord) -> Shown:
        return shown_options(record)
