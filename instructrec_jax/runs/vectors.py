"""Vectors of texts (embeddings) by the backbone of an opened run or of a HuggingFace folder.

As sentence-transformers computes them: default prompt, pooling, projection and normalization as the folder declares,
else the family's pooling; longer texts than `max_seq_length` are cut at their end. A run whose own head maps texts to
vectors (retrieval, similarity) uses that head.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
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
from instructrec_jax.data.batch import Batch
from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.packing import length_buckets, max_segments
from instructrec_jax.distributed.mesh import DeviceMesh
from instructrec_jax.evaluation.predictor import make_predict
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.model import SplitModel, backbone_folder
from instructrec_jax.tasks import LanguageModelConfig, RegressionConfig
from instructrec_jax.tasks.base import Task
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


def embedder(model: SplitModel, task: Task, folder: Path, mesh: DeviceMesh) -> Callable[[Sequence[str]], np.ndarray]:
    """A function: texts -> their vectors, float32 [texts, width], in the order of the texts.

    It raises ValueError for no texts, or a text without tokens.
    """
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

    def encode(texts: Sequence[str]) -> np.ndarray:
        if not texts:
            raise ValueError("no texts to encode.")
        found = tokenize(texts, [f"text {number}" for number in range(len(texts))], context)
        tokens = [each for each in found if each is not None]
        buckets, full = length_buckets(longest), len(texts) > MANY
        run = make_predict(step, model.params, mesh=mesh, buckets=buckets, per_token=False, full=full)
        return np.stack(run(tokens)).astype(np.float32)

    return encode
