"""Vectors of texts (embeddings) by the backbone of an opened run or of a HuggingFace folder.

As sentence-transformers computes them: default prompt, pooling, projection and normalization as the folder declares,
else the family's pooling; longer texts than `max_seq_length` are cut at their end. A run whose own head maps texts to
vectors (retrieval, similarity) uses that head.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.adapters.dual_encoder import RetrievalHead, unit_length
from instructrec_jax.adapters.heads import pool_segments
from instructrec_jax.backbones.backbone_config import BackboneConfig
from instructrec_jax.backbones.folder import find_family, read_config, read_pooling
from instructrec_jax.backbones.reading import input_limit
from instructrec_jax.backbones.sentence_vectors import read_projection
from instructrec_jax.data.batch import Batch, Text
from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.packing import length_buckets, max_segments
from instructrec_jax.distributed.mesh import DeviceMesh, data_shards
from instructrec_jax.evaluation.predictor import Rows, make_predict, texts_of_every_shape
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.model import SplitModel, backbone_folder
from instructrec_jax.tasks import LanguageModelConfig, RegressionConfig
from instructrec_jax.tasks.base import Task, TaskContext
from instructrec_jax.tasks.prediction import Run
from instructrec_jax.tasks.texts import tokenize
from instructrec_jax.training.state import Tree

MANY = 256  # texts from which on each length has one batch shape


def settings_of(folder: str) -> Config:
    """Settings that open a HuggingFace folder or hub id for its backbone alone, in full length."""
    network = read_config(backbone_folder(folder))
    encoder = find_family(network.model_type).kind == "encoder"
    pooling = read_pooling(backbone_folder(folder))
    return Config(
        backbone=BackboneConfig(path=folder),
        task=RegressionConfig() if encoder else LanguageModelConfig(),
        data=DataConfig(max_length=pooling.max_length or input_limit(network)),
    )


@dataclass(frozen=True)
class Embedder:
    """Texts -> their vectors, see `embedder`.

    Attributes:
      limit: the most tokens of a text.
    """

    context: TaskContext
    few: Run
    many: Run
    limit: int

    def tokens(self, texts: Sequence[str]) -> list[Text]:
        """The tokens that the network reads. Raises ValueError for no texts, or a text without tokens."""
        if not texts:
            raise ValueError("no texts to encode.")
        found = tokenize(texts, [f"text {number}" for number in range(len(texts))], self.context)
        return [each for each in found if each is not None]

    def vectors(self, tokens: Sequence[Text]) -> np.ndarray:
        """float32 [texts, width], in the order of the texts."""
        run = self.many if len(tokens) > MANY else self.few
        return np.stack(run(tokens)).astype(np.float32)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return self.vectors(self.tokens(texts))

    def every_shape(self, mesh: DeviceMesh) -> Iterator[list[Text]]:
        """Texts for each batch shape of `few`, where its `Rows` are "ladder"."""
        return texts_of_every_shape(self.tokens(["a"])[0], length_buckets(self.limit), data_shards(mesh))


def embedder(
    model: SplitModel,
    task: Task,
    folder: Path,
    mesh: DeviceMesh,
    size: Rows | None = None,
    same: Run | None = None,
) -> Embedder:
    """Opens a model for vectors of texts.

    Args:
      size: of batches; None: "fitting" for few texts, "full" for many.
      same: computes the same vectors already; None: nothing does.

    Raises ValueError for a network of images alone.
    """
    if task.context.pixels is not None:
        raise ValueError(f"{folder} holds a network of images, but vectors are those of texts (see docs/images.md).")
    spec = read_pooling(folder)
    longest = min(task.context.max_length, spec.max_length or task.context.max_length)
    context = replace(task.context, truncate="right", max_length=longest, prompt=spec.prompt, counts={})
    # a retrieval head has its own projection, and a run directory keeps only the declaration of the folder's
    own_head = isinstance(model.network.head, RetrievalHead)
    projection = None if own_head or spec.projection is None else jnp.asarray(read_projection(spec.projection))

    @jax.jit
    def step(params: Tree, batch: Batch) -> jax.Array:
        network = nnx.merge(model.graphdef, params)
        hidden, segment_ids = network.hidden(batch), batch.texts.segment_ids
        segments = max_segments(hidden.shape[1])
        if isinstance(network.head, RetrievalHead):
            return network.head(hidden, segment_ids, segments)
        vectors = pool_segments(hidden, segment_ids, spec.mode, segments).astype(jnp.float32)
        vectors = vectors if projection is None else vectors @ projection
        return unit_length(vectors) if spec.normalize else vectors

    if same is not None:
        return Embedder(context, same, same, longest)
    few, many = (
        make_predict(step, model.params, mesh=mesh, buckets=length_buckets(longest), per_token=False, size=each)
        for each in ((size, size) if size else ("fitting", "full"))
    )
    return Embedder(context, few, many, longest)
