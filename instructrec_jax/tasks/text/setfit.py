"""One label per text from few examples (SetFit): pairs tune the vectors of texts, a logistic head is fitted on them.

Tunstall et al., 2022, "Efficient Few-Shot Learning Without Prompts".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from instructrec_jax.adapters.losses import squared_error
from instructrec_jax.adapters.soft_targets import SoftOutputs
from instructrec_jax.data.batch import Batch, BatchTexts, PerExample, TextNumbers
from instructrec_jax.tasks.base import Encoded, LossInputs, Network, TaskContext, in_microbatches
from instructrec_jax.tasks.text.classification import ClassTarget
from instructrec_jax.tasks.text.text_config import SetFitConfig
from instructrec_jax.tasks.text.vector_classification import VectorClassificationTask


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LabelPairs:
    """The pairs of a batch.

    Attributes:
      firsts, seconds: [pairs], their texts.
      alike: float32 [pairs], 1 where both have the same label, else 0.
    """

    firsts: TextNumbers
    seconds: TextNumbers
    alike: PerExample


class SetFitTask(VectorClassificationTask):
    """Each example of a batch and a partner are a pair; half of the partners have the example's label.

    Partners are drawn from all training examples, as a function of the step; a text is its own partner only where no
    other has its label (its vectors then differ by dropout alone). The head has no part in the loss: `fit` makes it.
    """

    couples_examples = True
    gathers_alone = False
    head_is_fitted = "anew"
    reads_unlabeled = False  # its loss is of pairs with known labels

    def __init__(self, config: SetFitConfig, context: TaskContext):
        super().__init__(config, context)
        self._partners: _Partners | None = None

    # ---------------------------------------------------------------- host

    def prepare(self, train: Sequence[Encoded[ClassTarget]]) -> None:
        super().prepare(train)
        self._partners = _Partners(train, self.truth(train))

    def gather(self, encoded: Sequence[Encoded[ClassTarget]], rng: np.random.Generator) -> BatchTexts:
        partners = self._partners or _Partners(encoded, self.truth(encoded))
        count = len(encoded)
        alike = (rng.permutation(count) + rng.integers(2)) % 2 == 0  # half of them; of an odd number, either
        seconds = [partners.draw(e, bool(same), rng) for e, same in zip(encoded, alike, strict=True)]
        same = [a.target.label == b.target.label for a, b in zip(encoded, seconds, strict=True)]
        numbers = np.arange(count)
        pairs = LabelPairs(numbers, count + numbers, np.array(same, np.float32))
        return BatchTexts([e.text for e in (*encoded, *seconds)], pairs)

    # ---------------------------------------------------------------- device

    def loss(self, model: Network, batch: Batch, inputs: LossInputs) -> tuple[jax.Array, jax.Array]:
        """(cosine − [same label])², the loss of SetFit's pairs (sentence-transformers' CosineSimilarityLoss)."""
        vectors = in_microbatches(self._vectors, model, batch.without_own, inputs)
        vectors = vectors.reshape(-1, vectors.shape[-1])
        cosines = (vectors[batch.own.firsts] * vectors[batch.own.seconds]).sum(-1)
        losses = squared_error(cosines, batch.own.alike)
        return losses.sum(), jnp.float32(len(losses))

    def soft_outputs(self, model: Network, batch: Batch, inputs: LossInputs) -> list[SoftOutputs]:
        raise ValueError(
            "the pairs of task.type setfit have no outputs, which distil.teachers and robust_training.method: r_drop "
            "compare: leave them out."
        )


class _Partners:
    """Examples by label, from which partners are drawn."""

    def __init__(self, encoded: Sequence[Encoded[ClassTarget]], labels: np.ndarray):
        self.encoded = encoded
        self.order = np.argsort(labels, kind="stable")
        ends = np.cumsum(np.bincount(labels)).tolist()
        self.ranges = list(zip([0, *ends[:-1]], ends, strict=True))  # of each label in `order`

    def draw(self, e: Encoded[ClassTarget], alike: bool, rng: np.random.Generator) -> Encoded[ClassTarget]:
        """An example with the same label (another one, if there is one) or, of several labels, with another label."""
        start, end = self.ranges[e.target.label]
        others = len(self.order) - (end - start)
        if not alike and others:
            place = int(rng.integers(others))
            return self._at(place if place < start else place + end - start)
        if end - start == 1:
            return e
        first, second = (start + rng.choice(end - start, 2, replace=False)).tolist()
        found = self._at(first)
        return self._at(second) if found.example == e.example else found

    def _at(self, place: int) -> Encoded[ClassTarget]:
        return self.encoded[int(self.order[place])]
