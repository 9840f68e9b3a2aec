"""One label per text by a linear layer on its unit vector: first a logistic regression, then learned with the backbone.

Kumar et al., 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution" (LP-FT): a head
that is new distorts the pretrained vectors in the first steps, one that fits them does not.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from instructrec_jax.adapters.checkpoint_heads import Source
from instructrec_jax.adapters.vector_classifier import VectorClassifier
from instructrec_jax.backbones.layers import DropoutKeys
from instructrec_jax.data.batch import Batch
from instructrec_jax.data.example import Example
from instructrec_jax.data.packing import max_segments
from instructrec_jax.tasks.base import Encoded, HeadIsFitted, Model, Network, TaskContext
from instructrec_jax.tasks.logistic import logistic_head
from instructrec_jax.tasks.objective import Reading
from instructrec_jax.tasks.text.classification import ClassificationTask, ClassTarget
from instructrec_jax.tasks.text.text_config import VectorClassificationConfig
from instructrec_jax.tasks.texts import rendered, with_default_prompt


class VectorClassificationTask(ClassificationTask):
    """Classification whose head reads pooled unit vectors, and starts from scikit-learn's logistic regression."""

    head_is_fitted: HeadIsFitted = "once"

    def __init__(self, config: VectorClassificationConfig, context: TaskContext):
        super().__init__(config, with_default_prompt(context))
        self.kind = config.name
        self.needs_pooler = False

    def model(self, source: Source) -> Model:
        if source.pooling.projection is not None:
            raise ValueError(
                f"{source.pooling.projection.folder} is a projection, which task.type {self.kind} does not tune: "
                "choose a sentence encoder without one (a folder 2_Dense), or task.type classification."
            )
        width = source.config.get_text_config().hidden_size
        head = VectorClassifier(width, len(self.labels), pooling=source.pooling.mode, rngs=source.rngs)
        return Model(source.backbone, head)

    def _readings(self, example: Example) -> list[Reading]:
        return super()._readings(example) if self.reads_pairs else rendered(self.context, example)

    def prepare(self, train: Sequence[Encoded[ClassTarget]]) -> None:
        """Raises ValueError for a label without examples."""
        counts = np.bincount(self.truth(train), minlength=len(self.labels))
        if missing := [self.labels[number] for number in np.flatnonzero(counts == 0)]:
            raise ValueError(
                f"data.train has no example of {', '.join(missing[:10])}: task.type {self.kind} fits its head on "
                "training examples of each label. Add some, or leave these labels out of task.labels."
            )

    def _vectors(self, model: Network, batch: Batch, dropout: DropoutKeys | None) -> jax.Array:
        hidden = model.hidden(batch, dropout)
        return model.head.vectors(hidden, batch.texts.segment_ids, max_segments(hidden.shape[1]))

    def _outputs(self, model: Network, batch: Batch, dropout: DropoutKeys | None) -> jax.Array:
        hidden = model.hidden(batch, dropout)
        return model.head(hidden, batch.texts.segment_ids, max_segments(hidden.shape[1]))

    def features(self, model: Network, batch: Batch) -> jax.Array:
        return self._vectors(model, batch, None)

    def fit(
        self, features: Callable[[], np.ndarray], train: Sequence[Encoded[ClassTarget]]
    ) -> dict[str, dict[str, np.ndarray]]:
        kernel, bias = logistic_head(features(), self.truth(train), len(self.labels))
        return {"output": {"kernel": kernel, "bias": bias}}
