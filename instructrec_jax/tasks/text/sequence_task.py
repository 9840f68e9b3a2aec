"""What classification and regression of texts share: one vector of outputs per text."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from instructrec_jax.adapters.checkpoint_heads import Source, task_head
from instructrec_jax.adapters.soft_targets import KIND_OF, SoftOutputs
from instructrec_jax.arrays import Array
from instructrec_jax.backbones.layers import DropoutKeys
from instructrec_jax.data.batch import Batch, BatchTexts
from instructrec_jax.data.example import Example
from instructrec_jax.data.mapped import Mapped
from instructrec_jax.data.packing import max_segments
from instructrec_jax.data.prompts import render
from instructrec_jax.tasks.base import Encoded, LossInputs, Model, Network, Task, TaskContext, name_of
from instructrec_jax.tasks.images import read_images
from instructrec_jax.tasks.objective import Choice, Objective, Reading, contrast, one_of, refuse_word
from instructrec_jax.tasks.prediction import WINDOW, Predict
from instructrec_jax.tasks.scores import Scores, unless_unfit
from instructrec_jax.tasks.targets import TextTargets
from instructrec_jax.tasks.text.text_config import SentencePairs
from instructrec_jax.tasks.texts import knows_pairs, tokenize_examples


class SequenceTask(Task):
    """Base of classification, multilabel and regression: one vector of outputs per text."""

    gathers_alone = True
    reads_unlabeled = True
    needs_pooler = True
    labels: list[str]  # name of each output

    def __init__(self, sentence_pairs: SentencePairs, context: TaskContext):
        self.context = context
        # transformers' heads on images pass by the pooler
        self.needs_pooler = context.pixels is None
        self.reads_pairs = sentence_pairs == "auto" and context.kind == "encoder" and knows_pairs(context.tokenizer)

    def target(self, example: Example, name: str) -> object:
        """The target of an example, which errors call `name`."""
        raise TypeError(f"{type(self).__name__} has no target().")

    def truth(self, encoded: Sequence[Encoded]) -> np.ndarray:
        """The targets as an array: int32 [examples], float32 [examples, labels] or float32 [examples]."""
        raise TypeError(f"{type(self).__name__} has no truth().")

    def losses(self, outputs: Array, targets: Array) -> jax.Array:
        """Losses [...] of outputs [..., outputs] and targets."""
        raise TypeError(f"{type(self).__name__} has no losses().")

    def model(self, source: Source) -> Model:
        kind = "sequence" if self.context.pixels is None else "image"
        return Model(source.backbone, task_head(source, kind, labels=self.labels))

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        names = [name_of(example, number) for number, example in enumerate(examples)]
        if self.context.pixels is None:
            texts = tokenize_examples(examples, names, self.context, pairs=self.reads_pairs)
        else:
            texts = list(read_images(examples, names, self.context, self.context.pixels))
        return [
            Encoded(text, self.target(example, name), example)
            for text, example, name in zip(texts, examples, names, strict=True)
            if text is not None
        ]

    unit = "logit"  # of the outputs

    def objectives(self, predict: Predict, encoded: Encoded, choice: Choice) -> list[Objective]:
        """The logit of a label (by default the largest), less that of another; of regression the number."""
        refuse_word(choice)
        predicted = int(np.argmax(self.outputs(predict, [encoded])[0]))
        target, against = contrast(choice, self.labels, predicted, "label")
        weights = one_of(len(self.labels), target, against)
        other = None if against is None else self.labels[against]
        return [Objective(self.labels[target], other, self.unit, lambda _: weights, self._readings)]

    def _readings(self, example: Example) -> list[Reading]:
        pair = self.reads_pairs and example.instruction and example.input and not example.messages
        strings = [example.instruction, str(example.input)] if pair else [render(example)]
        return [Reading.whole(string.lower() if self.context.lower_case else string) for string in strings]

    def of_words(self, name: str, measure: Callable[[], Scores]) -> dict[str, Scores]:
        """A baseline on words; none where the network reads images."""
        return {name: unless_unfit(measure)} if self.context.pixels is None else {}

    def outputs(self, predict: Predict, encoded: Sequence[Encoded]) -> np.ndarray:
        """The head's outputs, float [cases, outputs], as the run's calibration changes them."""
        return np.stack([np.array(output) for _, output in predict.over(encoded)])

    def gather(self, encoded: Sequence[Encoded], rng: np.random.Generator) -> BatchTexts:
        weights = np.ones(len(encoded), np.float32)
        return BatchTexts([e.text for e in encoded], TextTargets(self.truth(encoded), weights))

    def _outputs(self, model: Network, batch: Batch, dropout: DropoutKeys | None) -> jax.Array:
        hidden = model.hidden(batch, dropout)
        segments = max_segments(hidden.shape[1])
        return model.head(model.backbone, hidden, batch.texts.segment_ids, segments, dropout=dropout)

    def loss(self, model: Network, batch: Batch[TextTargets], inputs: LossInputs) -> tuple[jax.Array, jax.Array]:
        losses = self.losses(self._outputs(model, batch, inputs.dropout), batch.own.targets)
        return jnp.sum(losses * batch.own.weights), jnp.sum(batch.own.weights)

    def soft_outputs(self, model: Network, batch: Batch[TextTargets], inputs: LossInputs) -> list[SoftOutputs]:
        values = self._outputs(model, batch, inputs.dropout)
        targets = None if self.outputs_are == "numbers" else batch.own.targets
        return [SoftOutputs(KIND_OF[str(self.outputs_are)], values, batch.own.weights, targets=targets)]

    def features(self, model: Network, batch: Batch) -> jax.Array:
        hidden = model.hidden(batch)
        segments = max_segments(hidden.shape[1])
        return model.head.pooled(model.backbone, hidden, batch.texts.segment_ids, segments).astype(jnp.float32)

    def predict(self, model: Network, batch: Batch) -> jax.Array:
        """float32 [rows, segments, outputs]."""
        return self._outputs(model, batch, None).astype(jnp.float32)

    def draw(self, model: Network, batch: Batch, dropout: DropoutKeys) -> jax.Array:
        return self._outputs(model, batch, dropout).astype(jnp.float32)


def texts_of(encoded: Sequence[Encoded]) -> Sequence[str]:
    return Mapped(lambda e: render(e.example), encoded)


def in_blocks(function: Callable[[Sequence[str]], np.ndarray], encoded: Sequence[Encoded]) -> np.ndarray:
    """float64 [cases, ...]: a function of the texts of cases; few are in memory."""
    texts = texts_of(encoded)
    return np.concatenate([function(texts[first : first + WINDOW]) for first in range(0, len(texts), WINDOW)])
