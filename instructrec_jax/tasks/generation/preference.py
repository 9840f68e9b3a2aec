"""Learning from preferences: which of several answers to an instruction is better.

An example has the preferred answer (`output`) and worse ones (`candidates`). Its texts are the prompt with each answer;
the losses of `adapters.preferences` compare their log-probabilities, and those that the network gave them before
training. These are computed once, at the start, and kept in the state's buffers, so there is no second network.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from instructrec_jax.adapters import losses
from instructrec_jax.adapters.preferences import LOSSES, has_reference, preference_losses
from instructrec_jax.adapters.soft_targets import SoftOutputs
from instructrec_jax.arrays import Array
from instructrec_jax.backbones.layers import DropoutKeys
from instructrec_jax.data.batch import Batch, BatchTexts, PerExample, PerToken, Text, TextNumbers, end_to_end
from instructrec_jax.data.codec import storable
from instructrec_jax.data.example import Example
from instructrec_jax.data.mapped import Mapped
from instructrec_jax.data.prompts import answer, question, shown_input
from instructrec_jax.tasks.answers import CaseRecord
from instructrec_jax.tasks.averaging import Judged
from instructrec_jax.tasks.base import (
    Encoded,
    LossInputs,
    Network,
    Task,
    TaskContext,
    examples_of,
    in_microbatches,
    name_of,
)
from instructrec_jax.tasks.generation.answer_likelihood import LikelihoodTask, Whole
from instructrec_jax.tasks.generation.language_model import output_layer
from instructrec_jax.tasks.generation.writing_config import PreferenceConfig
from instructrec_jax.tasks.prediction import WINDOW, Predict
from instructrec_jax.tasks.scores import Scores, owners_of
from instructrec_jax.tasks.texts import too_long

ONCE = 2**31  # steps between computations of the reference: only at the start
Rows = tuple["Batch[None]", Array, Array]  # texts, labels and weights of their tokens


@storable
@dataclass(frozen=True)
class Compared:
    """The answers of an example, the preferred one first.

    Attributes:
      tokens: int32, the tokens of all answers end to end; of a decoder with the prompt before each.
      scored: int32, 1 for the tokens of answers.
      lengths: int32 [answers].
    """

    tokens: np.ndarray
    scored: np.ndarray
    lengths: np.ndarray

    def key(self, source: np.ndarray) -> int:
        """A number of 63 bits that identifies prompt and answers."""
        parts = (source.tobytes(), self.tokens.tobytes(), self.lengths.tobytes())
        return int.from_bytes(hashlib.blake2b(b"|".join(parts), digest_size=8).digest()) >> 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AnswerLists:
    """The texts of each example's answers, the preferred one's first.

    Attributes:
      labels, weights: the next token, and 1 where it belongs to an answer.
      answers: [examples, answers], their texts.
      present: bool [examples, answers], False where a shorter list ends.
      numbers: int32 [examples], the examples' rows in the buffer "reference".
    """

    labels: PerToken
    weights: PerToken
    answers: TextNumbers
    present: PerExample
    numbers: PerExample


class PreferenceTask(LikelihoodTask):
    """See the module."""

    config: PreferenceConfig
    couples_examples = True  # an example's texts may lie in several micro-batches
    gathers_alone = False
    greater_is_better = True
    metric = "accuracy"
    refreshes = "log-probabilities of the reference"

    def __init__(self, config: PreferenceConfig, context: TaskContext):
        if config.loss not in LOSSES:
            raise ValueError(f"task.loss is {config.loss!r}, but should be one of {', '.join(LOSSES)}.")
        if not (np.isfinite(config.beta) and config.beta > 0):
            raise ValueError(f"task.beta should be positive, but is {config.beta}.")
        if config.train_on != "completions" or config.label_smoothing or config.z_loss:
            raise ValueError("task.train_on, label_smoothing and z_loss do not belong to preference: leave them out.")
        if context.pixels is not None:
            raise ValueError("preference compares answers to texts, but the network reads images: use a text network.")
        super().__init__(config, context)
        self.refresh_every = ONCE if has_reference(config.loss) else 0
        self._train: Sequence[Encoded] = ()
        self._keys, self._most = np.empty(0, np.int64), 2

    # ------------------------------------------------------------ texts

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        encoded = []
        for number, example in enumerate(examples):
            name, answers = name_of(example, number), _answers(example)
            if len(answers) < 2:
                raise ValueError(
                    f"{name} has no answer to compare with: preference needs the better answer in output and at least "
                    "one other in candidates (fields.output: chosen, fields.candidates: rejected)."
                )
            asked = replace(question(example), candidates=(), id=example.id or str(number))
            texts = self._answers(asked, answers)
            if self._is_long(texts, name):
                continue
            if not self.is_pair:
                texts = self._fitting(texts)
            text = self._source(asked) if self.is_pair else Text(texts[0][0])
            lengths = np.array([len(tokens) for tokens, _ in texts], np.int32)
            tokens, scored = (np.concatenate(column).astype(np.int32) for column in zip(*texts, strict=True))
            encoded.append(Encoded(text, Compared(tokens, scored, lengths), example))
        return encoded

    def _is_long(self, texts: Sequence[Whole], name: str) -> bool:
        """Whether data.truncate drops the example: its longest text is longer than the limit.

        Raises ValueError for a long answer of an encoder–decoder, which is not cut: the end would be missing.
        """
        length = max(len(tokens) for tokens, _ in texts)
        most = self._longest_target if self.is_pair else self.context.max_length
        if length <= most or not self.is_pair and self.context.truncate != "drop":
            return False
        if self.context.truncate == "drop":
            return too_long(length, name, self.context) == "drop"
        raise ValueError(
            f"an answer of {name} has {length} tokens, but task.max_target_length is {most}: raise it, or set "
            "data.truncate to drop."
        )

    def check(self, encoded: Sequence[Encoded]) -> None:
        """Nothing is left to check: `encode` reads all answers."""

    def prepare(self, train: Sequence[Encoded]) -> None:
        self._train = train
        keys = np.fromiter((e.target.key(e.text.tokens) for e in train), np.int64, len(train))
        self._keys = np.unique(keys)
        self._most = max([2, *(len(e.target.lengths) for e in train)])

    def gather(self, encoded: Sequence[Encoded], rng: np.random.Generator) -> BatchTexts:
        texts: list[Text] = []
        labels, weights = [], []
        counts = np.array([len(e.target.lengths) for e in encoded])
        for e in encoded:
            ends = np.cumsum(e.target.lengths)[:-1]
            for tokens, scored in zip(np.split(e.target.tokens, ends), np.split(e.target.scored, ends), strict=True):
                texts.append(self._text(e.text, tokens))
                labels.append(tokens if self.is_pair else np.append(tokens[1:], 0))
                weights.append(scored if self.is_pair else np.append(scored[1:], 0))
        most = max(self._most, counts.max())
        first = (np.cumsum(counts) - counts)[:, None]
        present = np.arange(most) < counts[:, None]
        return BatchTexts(
            texts,
            AnswerLists(
                end_to_end(labels),
                end_to_end(weights),
                np.where(present, first + np.arange(most), first),
                present,
                self._rows_of(encoded),
            ),
        )

    def _text(self, source: Text, tokens: np.ndarray) -> Text:
        return replace(source, target=np.append(self._start, tokens[:-1])) if self.is_pair else Text(tokens)

    def _rows_of(self, encoded: Sequence[Encoded]) -> np.ndarray:
        """int32 [examples], their places in the reference; 0 where the loss has none.

        Raises ValueError for an example that training did not begin with, as those of a stream.
        """
        if not self.refresh_every:
            return np.zeros(len(encoded), np.int32)
        keys = np.array([e.target.key(e.text.tokens) for e in encoded], np.int64)
        places = np.searchsorted(self._keys, keys)
        known = self._keys[np.minimum(places, len(self._keys) - 1)] == keys if len(self._keys) else keys < 0
        if not known.all():
            raise ValueError(
                f"task.loss {self.config.loss} needs the reference's log-probabilities of all training examples before "
                "the first step, which a stream does not have: set streaming: false, or task.loss to orpo."
            )
        return places.astype(np.int32)

    # ------------------------------------------------------------ loss

    def buffer_shapes(self, hidden_size: int) -> dict[str, tuple[int, ...]]:
        return {"reference": (max(1, len(self._keys)), self._most)} if self.refresh_every else {}

    def refresh(self, predict: Predict) -> dict[str, np.ndarray]:
        """ "reference": log-probabilities of the training answers, float32 [examples, answers]."""
        if not self.refresh_every:
            return {}
        found = np.zeros(self.buffer_shapes(0)["reference"], np.float32)
        for first in range(0, len(self._train), WINDOW):
            some = [self._train[i] for i in range(first, min(first + WINDOW, len(self._train)))]
            for row, values in zip(self._rows_of(some), self._log_probabilities(predict, some), strict=True):
                found[row, : len(values)] = values[:, 0]
        return {"reference": found}

    def loss(self, model: Network, batch: Batch, inputs: LossInputs) -> tuple[jax.Array, jax.Array]:
        """Sums over the examples; see `adapters.preferences`.

        The loss depends on the network through the answers' log-probabilities π alone, so its gradient is
        Σ ∂L/∂π · ∂π/∂θ: a sum of tokens' cross-entropies with the weights −∂L/∂π, which knows no logits of all tokens.
        Under accumulation the log-probabilities of the whole batch come first.
        """
        own, shape = batch.own, batch.text_numbers.shape
        rows: Rows = (batch.without_own, own.labels, own.weights)
        hidden = model.hidden(batch, inputs.dropout) if inputs.microbatches == 1 else None

        def read(model: Network, texts: "Batch[None]", dropout: DropoutKeys | None) -> jax.Array:
            return model.hidden(texts, dropout) if hidden is None else hidden

        def sums_of(model: Network, rows: Rows, dropout: DropoutKeys | None) -> jax.Array:
            texts, labels, weights = rows
            return segment_sums(model, read(model, texts, dropout), texts, labels, weights)

        sums, tokens = jnp.moveaxis(in_microbatches(sums_of, model, rows, inputs), -1, 0).reshape(2, -1)
        reference = inputs.buffers["reference"][own.numbers] if self.refresh_every else None

        def total_of(sums: jax.Array) -> jax.Array:
            each = (sums[own.answers], tokens[own.answers], reference, own.present, self.config.beta)
            return preference_losses(self.config.loss, *each).sum()

        total, slopes = jax.value_and_grad(total_of)(sums)
        each_token = _of_segments(slopes.reshape(shape), batch.outputs.segment_ids) * own.weights

        def slope_of(model: Network, rows: Rows, dropout: DropoutKeys | None) -> jax.Array:
            texts, labels, weights = rows
            found = losses.linear_cross_entropy(
                read(model, texts, dropout), labels=labels, weights=-weights, **output_layer(model)
            )
            return jnp.full(len(labels), found / len(labels))

        slope = in_microbatches(slope_of, model, (batch.without_own, own.labels, each_token), inputs).sum()
        return total + slope - jax.lax.stop_gradient(slope), jnp.float32(len(own.numbers))

    def soft_outputs(self, model: Network, batch: Batch, inputs: LossInputs) -> list[SoftOutputs]:
        return list(Task.soft_outputs(self, model, batch, inputs))  # a list of answers has no outputs to copy

    # ------------------------------------------------------------ scores

    def unanswered(self, example: Example) -> Example:
        return replace(question(example), output="a", candidates=("b",))

    def _log_probabilities(self, predict: Predict, encoded: Sequence[Encoded]) -> list[np.ndarray]:
        """float64 [answers, 2] of each example: log-probabilities and tokens."""
        asked = [[(replace(question(e.example), candidates=()), _answers(e.example))] for e in encoded]
        return [values for (values,) in self.log_likelihoods(predict, asked, end=True)]

    def score(self, predict: Predict, encoded: Sequence[Encoded]) -> Scores:
        """How often, and by how much, the mean log-probability of a token is higher in the preferred answer."""
        found: list[np.ndarray] = []
        for first in range(0, len(encoded), WINDOW):
            found += self._log_probabilities(predict, encoded[first : first + WINDOW])
        return _scores(encoded, [values[:, 0] / values[:, 1] for values in found], "mean log-probability of a token")

    def judged(self, predict: Predict, encoded: Sequence[Encoded]) -> Judged:
        return Task.judged(self, predict, encoded)

    def baselines(self, train: Sequence[Encoded], test: Sequence[Encoded]) -> dict[str, Scores]:
        """The longest answer, and the shortest one: people often prefer long answers."""

        def by(sign: int) -> Scores:
            lengths: Callable[[Encoded], np.ndarray] = lambda e: sign * np.log([len(a) for a in _answers(e.example)])  # noqa: E731
            scores = _scores(test, Mapped(lengths, test), "characters")
            return replace(scores, metrics={"accuracy": scores.metrics["accuracy"]})

        return {"longest answer": by(1), "shortest answer": by(-1)}


def _answers(example: Example) -> list[str]:
    """The preferred answer and the others, without repetitions of it."""
    best = answer(example)
    return [*([] if best is None else [best]), *dict.fromkeys(each for each in example.candidates if each != best)]


def segment_sums(model: Network, hidden: jax.Array, texts: Batch[Any], labels: Array, weights: Array) -> jax.Array:
    """float32 [rows, segments, 2]: each text's log-probability and number of scored tokens. It has no gradient."""
    still = jax.tree.map(lambda x: jax.lax.stop_gradient(x) if isinstance(x, jax.Array) else x, output_layer(model))
    cost, _ = losses.token_losses(jax.lax.stop_gradient(hidden), labels=labels, weights=weights, **still)
    segments = texts.text_numbers.shape[1]
    inside = texts.outputs.segment_ids[..., None] == jnp.arange(1, segments + 1)
    return jnp.einsum("rls,rlk->rsk", inside.astype(jnp.float32), jnp.stack([-cost, weights], -1))


def _of_segments(values: jax.Array, segment_ids: Array) -> jax.Array:
    """[rows, segments] -> [rows, length]: the value of each token's text; 0 for padding."""
    padded = jnp.pad(values, ((0, 0), (1, 0)))
    return jnp.take_along_axis(padded, segment_ids, axis=1)


def _scores(encoded: Sequence[Encoded], values: Sequence[np.ndarray], way: str) -> Scores:
    """Accuracy (ties count half) over the pairs of an example, and the margin to the mean of its other answers.

    Args:
      values: float [answers] of each example, the preferred one's first.
    """
    pairs = [each[0] - each[1:] for each in values]
    cases = {
        "accuracy": np.array([np.mean((each > 0) + 0.5 * (each == 0)) for each in pairs]),
        "margin": np.array([each.mean() for each in pairs]),
    }

    def record(e: Encoded, each: np.ndarray, margin: float) -> CaseRecord:
        answers = _answers(e.example)
        said = {"reference": answers[0], "preferred": answers[int(np.argmax(each))], "margin": float(margin)}
        return {"id": e.example.id, "input": shown_input(e.example), **said}

    records = Mapped(record, encoded, values, cases["margin"])
    metrics = {name: float(each.mean()) for name, each in cases.items()}
    return Scores(metrics, cases, records, protocol=f"pairs of answers, by {way}").owned_by(
        owners_of(examples_of(encoded))
    )
