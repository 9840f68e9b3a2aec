"""Translation without a decoder: an encoder with a linear classifier over the target vocabulary at every position.

With `aligned`, position i predicts token i of the translation, by cross-entropy: word order is predicted independently
at each position. With `ctc`, the source is lengthened and positions may be blank, so that tokens need no fixed position
(Libovický & Helcl, 2018, "End-to-End Non-Autoregressive Neural Machine Translation with Connectionist Temporal
Classification").
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from instructrec_jax.adapters import losses
from instructrec_jax.adapters.checkpoint_heads import Source, task_head
from instructrec_jax.adapters.soft_targets import SoftOutputs
from instructrec_jax.arrays import Array
from instructrec_jax.data.batch import Batch, BatchTexts, PerText, PerToken, Text, end_to_end
from instructrec_jax.data.codec import storable
from instructrec_jax.data.example import Example
from instructrec_jax.data.prompts import references
from instructrec_jax.metrics.classification import classification_metrics, classification_report
from instructrec_jax.tasks.answers import CaseRecord, Shown, TextAnswer
from instructrec_jax.tasks.base import Encoded, LossInputs, Model, Network, Task, TaskContext, examples_of, name_of
from instructrec_jax.tasks.generation.translation import judge_translations, nearest_translation
from instructrec_jax.tasks.generation.writing_config import PositionTranslationConfig, split
from instructrec_jax.tasks.generation.written_answers import scores_of_texts, shown_text
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.scores import Scores
from instructrec_jax.tasks.texts import tokenize

NOTHING, UNKNOWN = 0, 1  # the head's first outputs: end (or blank), and unknown token
SPECIAL = ("<nothing>", "<unknown>")
REPORTED = 30  # most frequent tokens, listed in the report
NEVER = -1e30  # log-probability of the impossible; -inf would make gradients NaN


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AlignedTokens:
    """int32 [tokens]: the output at each position."""

    labels: PerToken


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Translations:
    """The translation of each text.

    Attributes:
      targets: int32 [texts, tokens].
      sizes: int32 [texts], tokens of each.
      weights: float32 [texts], 0 for a translation that has no alignment.
    """

    targets: PerText
    sizes: PerText
    weights: PerText


@storable
@dataclass(frozen=True)
class TranslationTarget:
    """int32 [tokens]: the translation, as output numbers of the head."""

    tokens: np.ndarray


class PositionTranslationTask(Task):
    """An encoder that predicts a token or nothing at every position."""

    reads = "fields"
    metric = "sentence chrF"
    case_measure = "sentence chrF"
    per_token = True

    def __init__(self, config: PositionTranslationConfig, context: TaskContext):
        self.config, self.context = config, context
        if context.kind != "encoder":
            raise ValueError("task.type position_translation needs an encoder: use translation for language models.")
        if not math.isfinite(config.length_ratio) or config.length_ratio < 1:
            raise ValueError(f"task.length_ratio should be at least 1, but is {config.length_ratio}.")
        if not config.vocabulary or len(set(config.vocabulary)) != len(config.vocabulary):
            raise ValueError("task.vocabulary should list at least one token and no duplicates.")
        self.labels = [*SPECIAL, *config.vocabulary]
        self.numbers = {token: number for number, token in enumerate(self.labels) if number > UNKNOWN}
        self._longest = 8  # maximum tokens of a translation in a batch

    def model(self, source: Source) -> Model:
        return Model(source.backbone, task_head(source, "token", labels=self.labels))

    # ---------------------------------------------------------------- host

    def encode(self, examples: Sequence[Example]) -> list[Encoded[TranslationTarget]]:
        names = [name_of(example, number) for number, example in enumerate(examples)]
        for example, name in zip(examples, names, strict=True):
            if not references(example):
                raise ValueError(f"{name} has no translation: add it, or remove the row.")
        texts = tokenize([example.input or example.instruction for example in examples], names, self.context)
        encoded = []
        for example, text in zip(examples, texts, strict=True):
            if text is None:
                continue
            tokens = split(references(example)[0], self.config.unit)
            target = np.array([self.numbers.get(token, UNKNOWN) for token in tokens], np.int32)
            longer = self._lengthened(text)
            if not self._fits(target, len(longer.tokens)):
                self.context.count("translations with more tokens than positions (excess not trained on)")
            encoded.append(Encoded(longer, TranslationTarget(target), example))
        return encoded

    def _lengthened(self, text: Text) -> Text:
        """The source with `length_ratio` positions per token: repeated tokens (ctc), or mask tokens behind (aligned).

        The number of positions depends on the source alone, so the translation's length does not leak.
        """
        size = len(text.tokens)
        positions = min(math.ceil(size * self.config.length_ratio), self.context.max_length)
        if self.config.form == "ctc":
            places = np.arange(positions) * size // positions
            return Text(text.tokens[places], None if text.types is None else text.types[places])
        tokenizer = self.context.tokenizer
        mask = next(
            i for i in (tokenizer.mask_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id) if i is not None
        )
        more = np.full(max(0, positions - size), mask, np.int32)
        types = None if text.types is None else np.append(text.types, np.zeros_like(more))
        return Text(np.append(text.tokens, more), types)

    def _fits(self, target: np.ndarray, positions: int) -> bool:
        if self.config.form == "aligned":
            return len(target) <= positions
        return (
            len(target) + int((target[1:] == target[:-1]).sum()) <= positions
        )  # repeated tokens need a blank between them

    def prepare(self, train: Sequence[Encoded[TranslationTarget]]) -> None:
        self._longest = self._room(train)

    def _room(self, encoded: Sequence[Encoded[TranslationTarget]]) -> int:
        """The longest translation in tokens, rounded up to a multiple of eight; at least `_longest`."""
        return max([self._longest, *(-(-len(e.target.tokens) // 8) * 8 for e in encoded)])

    def gather(self, encoded: Sequence[Encoded[TranslationTarget]], rng: np.random.Generator) -> BatchTexts:
        texts = [e.text for e in encoded]
        if self.config.form == "aligned":
            labels = []
            for e in encoded:
                each = np.full(len(e.text.tokens), NOTHING, np.int32)
                kept = e.target.tokens[: len(each)]
                each[: len(kept)] = kept
                labels.append(each)
            return BatchTexts(texts, AlignedTokens(end_to_end(labels)))
        targets = np.zeros((len(encoded), self._room(encoded)), np.int32)
        for row, e in enumerate(encoded):
            targets[row, : len(e.target.tokens)] = e.target.tokens
        fits = np.array([self._fits(e.target.tokens, len(e.text.tokens)) for e in encoded], np.float32)
        sizes = np.array([len(e.target.tokens) for e in encoded], np.int32)
        return BatchTexts(texts, Translations(targets, sizes, fits))

    # ---------------------------------------------------------------- device

    def loss(
        self, model: Network, batch: Batch[AlignedTokens | Translations], inputs: LossInputs
    ) -> tuple[jax.Array, jax.Array]:
        """The mean over positions for aligned, over tokens of the translations for ctc."""
        hidden = model.head.transform(model.hidden(batch, inputs.dropout), inputs.dropout)
        output = model.head.output
        texts, own = batch.texts, batch.own
        if isinstance(own, AlignedTokens):
            weights = jnp.asarray(texts.segment_ids > 0, jnp.float32)
            table = {"table": output.kernel[...].T, "bias": output.bias[...]}
            return losses.linear_cross_entropy(hidden, labels=own.labels, weights=weights, **table), weights.sum()
        log_probs = jax.nn.log_softmax(output(hidden).astype(jnp.float32), axis=-1)
        each = ctc_losses(log_probs, texts.segment_ids, texts.positions, own.targets, own.sizes, blank=NOTHING)
        return jnp.sum(each * own.weights), jnp.sum(own.sizes * own.weights)

    def soft_outputs(
        self, model: Network, batch: Batch[AlignedTokens | Translations], inputs: LossInputs
    ) -> list[SoftOutputs]:
        """The output at each position. For ctc the positions of a text share the weight of its translation's tokens."""
        hidden = model.head.transform(model.hidden(batch, inputs.dropout), inputs.dropout)
        output, own, segments = model.head.output, batch.own, jnp.asarray(batch.texts.segment_ids)
        weights = jnp.asarray(segments > 0, jnp.float32)
        if isinstance(own, Translations):
            sizes = jnp.sum(segments[:, None] == 1 + jnp.arange(own.sizes.shape[1])[:, None], -1)
            share = own.sizes * own.weights / jnp.maximum(sizes, 1)
            weights = weights * jnp.take_along_axis(share, jnp.maximum(segments - 1, 0), axis=1)
        return [SoftOutputs("classes", hidden, weights, output.kernel[...].T, output.bias[...])]

    def predict(self, model: Network, batch: Batch) -> jax.Array:
        """int32 [rows, length]: the most likely output at each position."""
        return model.head(model.hidden(batch)).argmax(-1).astype(jnp.int32)

    # ---------------------------------------------------------------- scores

    def decode(self, outputs: np.ndarray) -> list[int]:
        """The tokens of a text's outputs [positions]: up to the first end; with ctc, collapsed runs without blanks."""
        if self.config.form == "aligned":
            ends = np.flatnonzero(outputs == NOTHING)
            return outputs[: ends[0] if len(ends) else None].tolist()
        first = np.append(True, outputs[1:] != outputs[:-1])
        return outputs[first & (outputs != NOTHING)].tolist()

    def unanswered(self, example: Example) -> Example:
        return replace(example, output=".")

    def answers(self, predict: Predict, encoded: Sequence[Encoded[TranslationTarget]], k: int = 10) -> list[TextAnswer]:
        return [TextAnswer(self._text(tokens)) for tokens in self._written(predict, encoded)]

    def _written(self, predict: Predict, encoded: Sequence[Encoded[TranslationTarget]]) -> list[list[int]]:
        return [self.decode(outputs) for _, outputs in predict.over(encoded)]

    def _text(self, tokens: Sequence[int]) -> str:
        joint = "" if self.config.unit == "character" else " "
        return joint.join(self.labels[i] for i in tokens if i != UNKNOWN).strip()

    def score(self, predict: Predict, encoded: Sequence[Encoded[TranslationTarget]]) -> Scores:
        written = self._written(predict, encoded)
        texts = [self._text(tokens) for tokens in written]
        scores = self._scores(encoded, texts)
        targets, found = zip(*self._places(encoded, written), strict=True)
        by_place = classification_metrics(targets, found)
        frequent = [token for token, _ in Counter(targets).most_common(REPORTED)]
        _, report = classification_report(
            [t if t in frequent else "<other>" for t in targets], [t if t in frequent else "<other>" for t in found]
        )
        places = {"token accuracy": by_place["accuracy"], "token macro_f1": by_place["macro_f1"]}
        return replace(
            scores,
            metrics=scores.metrics | places,
            report=f"Tokens by position in the first reference: the {len(frequent)} most frequent\n{report}",
            protocol=f"{self.config.form}, all positions at once; {scores.protocol}",
        )

    def _places(
        self, encoded: Sequence[Encoded[TranslationTarget]], written: Sequence[list[int]]
    ) -> Iterator[tuple[str, str]]:
        """(token of the first reference, predicted token at its position) of all positions."""
        for e, tokens in zip(encoded, written, strict=True):
            for place, target in enumerate(e.target.tokens.tolist()):
                yield self.labels[target], self.labels[tokens[place] if place < len(tokens) else NOTHING]

    def _scores(self, encoded: Sequence[Encoded[TranslationTarget]], texts: list[str]) -> Scores:
        examples = examples_of(encoded)
        found = judge_translations(texts, [references(e) for e in examples])
        return scores_of_texts(examples, lambda e: e.input or e.instruction, texts, found)

    def baselines(
        self, train: Sequence[Encoded[TranslationTarget]], test: Sequence[Encoded[TranslationTarget]]
    ) -> dict[str, Scores]:
        nearest = nearest_translation(examples_of(train))
        return {"translation of the most similar source": self._scores(test, nearest(examples_of(test)))}

    def shown(self, record: CaseRecord) -> Shown:
        return shown_text(record, self.case_measure)


def ctc_losses(
    log_probs: jax.Array,
    segment_ids: Array,
    positions: Array,
    targets: Array,
    sizes: Array,
    *,
    blank: int,
) -> jax.Array:
    """−log p(target) of each text in packed rows, summed over all alignments (Graves et al., 2006).

    One pass over the positions of a row, which restarts where a text begins.

    Args:
      log_probs: float32 [rows, length, outputs].
      segment_ids, positions: int32 [rows, length], as in every batch.
      targets: int32 [rows, segments, longest], of which the first `sizes` (int32 [rows, segments]) count.

    Returns: float32 [rows, segments]; 0 for an empty segment, very large for a text that is too short.
    """
    rows, length = segment_ids.shape
    number = jnp.maximum(segment_ids - 1, 0)
    here = jnp.take_along_axis(targets, number[..., None], axis=1)  # [rows, length, longest]
    size = jnp.take_along_axis(sizes, number, axis=1)
    states = 2 * targets.shape[-1] + 1  # blank, token, blank, token, ..., blank
    label = jnp.full((rows, length, states), blank).at[..., 1::2].set(here)
    emitted = jnp.take_along_axis(log_probs, label, axis=-1)
    # transitions that skip the blank
    skips = jnp.zeros_like(label, bool).at[..., 3::2].set(here[..., 1:] != here[..., :-1])
    begins = (positions == 0) & (segment_ids > 0)
    following = jnp.pad(segment_ids[:, 1:], ((0, 0), (0, 1)))
    ends = (segment_ids > 0) & (following != segment_ids)

    def step(before: jax.Array, place: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        emitted, skips, begins, size = place
        one = jnp.pad(before[:, :-1], ((0, 0), (1, 0)), constant_values=NEVER)
        two = jnp.where(skips, jnp.pad(before[:, :-2], ((0, 0), (2, 0)), constant_values=NEVER), NEVER)
        start = jnp.where(jnp.arange(states) < 2, 0.0, NEVER)
        reached = jnp.where(begins[:, None], start, jnp.logaddexp(jnp.logaddexp(before, one), two))
        after = jnp.maximum(reached + emitted, NEVER)
        last = jnp.take_along_axis(after, 2 * size[:, None], axis=1)[:, 0]
        token = jnp.take_along_axis(after, jnp.maximum(2 * size[:, None] - 1, 0), axis=1)[:, 0]
        return after, jnp.where(size > 0, jnp.logaddexp(last, token), last)

    by_place = [jnp.moveaxis(x, 1, 0) for x in (emitted, skips, begins, size)]
    _, total = jax.lax.scan(step, jnp.full((rows, states), NEVER), tuple(by_place))
    found = jnp.where(ends, -jnp.moveaxis(total, 0, 1), 0)  # [rows, length]
    member = segment_ids[:, None] == 1 + jnp.arange(targets.shape[1])[None, :, None]
    return jnp.sum(jnp.where(member, found[:, None], 0), axis=-1)
