"""Vectors of texts and pictures (embeddings) by the backbone of an opened run or of a HuggingFace folder.

As sentence-transformers computes them: default prompt, pooling, projection and normalization as the folder declares,
else the family's pooling; longer texts than `max_seq_length` are cut at their end. A run whose own head maps texts to
vectors (retrieval, similarity) uses that head.

The vector of a picture is what a head reads of it (see `vision.VisionEncoder.vectors`). Of a pair of networks (CLIP,
SigLIP) texts and pictures have unit vectors in the space where these are compared.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.adapters.dual_encoder import RetrievalHead, unit_length
from instructrec_jax.adapters.heads import pool_segments
from instructrec_jax.adapters.pair_head import PairHead
from instructrec_jax.backbones.backbone_config import BackboneConfig
from instructrec_jax.backbones.folder import find_family, read_config, read_pooling
from instructrec_jax.backbones.reading import input_limit
from instructrec_jax.backbones.sentence_vectors import read_projection
from instructrec_jax.backbones.towers import TextTower
from instructrec_jax.data.batch import Batch, Text
from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.media.picture import Picture, Sound
from instructrec_jax.data.media.text_images import TextImages
from instructrec_jax.data.media.thumbnails import blank_picture
from instructrec_jax.data.packing import length_buckets, max_segments
from instructrec_jax.distributed.mesh import DeviceMesh, data_shards
from instructrec_jax.evaluation.predictor import Rows, make_predict, texts_of_every_shape
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.model import SplitModel, backbone_folder
from instructrec_jax.tasks import ContrastiveConfig, LanguageModelConfig, RegressionConfig, TextToImageConfig
from instructrec_jax.tasks.base import Task, TaskContext
from instructrec_jax.tasks.prediction import Run
from instructrec_jax.tasks.task_config import TaskConfig
from instructrec_jax.tasks.text.contrastive import ContrastiveTask
from instructrec_jax.tasks.texts import tokenize
from instructrec_jax.training.state import Tree

ONE_PICTURE = 8  # tokens of a row for one picture
MANY = 256  # texts from which on each length has one batch shape


def settings_of(folder: str) -> Config:
    """Settings that open a HuggingFace folder or hub id for its backbone alone, in full length (or to draw)."""
    here = backbone_folder(folder)
    network = read_config(here, images=True)
    family = find_family(network.model_type)
    kind = "drawing" if family.draws else family.kind
    pooling = read_pooling(here)
    longest = {"image": ONE_PICTURE, "image_text": input_limit(network) + 1}
    tasks: dict[str, type[TaskConfig]] = {
        "image": RegressionConfig,
        "encoder": RegressionConfig,
        "image_text": ContrastiveConfig,
        "drawing": TextToImageConfig,
    }
    return Config(
        backbone=BackboneConfig(path=folder),
        task=tasks.get(kind, LanguageModelConfig)(),
        data=DataConfig(max_length=longest.get(kind) or pooling.max_length or input_limit(network)),
    )


@dataclass(frozen=True)
class Embedder:
    """Texts and pictures -> their vectors, see `embedder`.

    Attributes:
      limit: the most tokens of a text.
      captions: of a pair of networks: texts and their names -> tokens; None: any other network.
    """

    context: TaskContext
    few: Run
    many: Run
    limit: int
    captions: Callable[[Sequence[str], Sequence[str]], list[Text | None]] | None = None

    def tokens(self, given: Sequence[str | Picture]) -> list[Text]:
        """What the network reads, in the order of the texts and pictures.

        Raises ValueError for none, a text without tokens, a picture that cannot be read, and where the network reads
        no texts, or no pictures.
        """
        if not given:
            raise ValueError("no texts to encode.")
        strings = {number: each for number, each in enumerate(given) if isinstance(each, str)}
        names = [f"text {number}" for number in strings]
        read = self.context.pixels
        if strings and read is not None and self.captions is None:
            raise ValueError(f"{names[0]} has words, but the network reads {read.kind.noun}s alone.")
        if self.captions is not None:
            texts = self.captions(list(strings.values()), names)
        else:
            texts = tokenize(list(strings.values()), names, self.context) if strings else []
        found = dict(zip(strings, texts, strict=True))
        for number, each in enumerate(given):
            if not isinstance(each, str):
                found[number] = self._picture(each, f"picture {number}")
        return [text for number in range(len(given)) if (text := found[number]) is not None]

    def _picture(self, picture: Picture, name: str) -> Text:
        read = self.context.pixels
        if read is None:
            raise ValueError(f"{name} is a picture, but the network reads texts alone.")
        try:
            read(picture)  # it is kept until the batch is made
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        return Text(np.zeros(read.vectors, np.int32), images=TextImages.alone([picture], read))

    def vectors(self, tokens: Sequence[Text]) -> np.ndarray:
        """float32 [texts, width], in the order of the texts."""
        run = self.many if len(tokens) > MANY else self.few
        seen = [text.images is not None for text in tokens]
        found: dict[int, np.ndarray] = {}
        for side in sorted(set(seen)):  # a batch of texts computes no pictures
            own = [number for number, each in enumerate(seen) if each == side]
            outputs = run([tokens[number] for number in own])
            found |= zip(own, outputs if self.captions is None else [each[int(side)] for each in outputs], strict=True)
        return np.stack([found[number] for number in range(len(tokens))]).astype(np.float32)

    def __call__(self, given: Sequence[str | Picture]) -> np.ndarray:
        return self.vectors(self.tokens(given))

    def every_shape(self, mesh: DeviceMesh) -> Iterator[list[Text]]:
        """Texts, and pictures, for each batch shape of `few`, where its `Rows` are "ladder"."""
        read = self.context.pixels
        samples: list[str | Picture] = [] if read is not None and self.captions is None else ["a"]
        samples += [] if read is None else [blank_picture()]
        for sample in samples:
            yield from texts_of_every_shape(self.tokens([sample])[0], length_buckets(self.limit), data_shards(mesh))


def embedder(
    model: SplitModel,
    task: Task,
    folder: Path,
    mesh: DeviceMesh,
    size: Rows | None = None,
    same: Run | None = None,
) -> Embedder:
    """Opens a model for vectors of texts, or of pictures.

    Args:
      size: of batches; None: "fitting" for few texts, "full" for many.
      same: computes the same vectors already; None: nothing does.

    Raises ValueError for a network of sounds, and for one that reads pictures between words.
    """
    read = task.context.pixels
    if task.context.image_tokens is not None:
        raise ValueError(f"{folder} holds a network that reads pictures between words, which gives no vectors of them.")
    if read is not None and read.kind is Sound:
        raise ValueError(f"{folder} holds a network of sounds, but vectors are those of texts and pictures.")
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
        if isinstance(network.head, PairHead):
            return network.head(hidden, segment_ids, batch.images, segments)
        if isinstance(network.head, RetrievalHead):
            return network.head(hidden, segment_ids, segments)
        pooled = pool_segments(hidden, segment_ids, spec.mode, segments)
        if isinstance(network.backbone, TextTower):
            pooled = network.backbone.pool(pooled)
        vectors = pooled.astype(jnp.float32)
        vectors = vectors if projection is None else vectors @ projection
        return unit_length(vectors) if spec.normalize else vectors

    if same is not None:
        return Embedder(context, same, same, longest)
    few, many = (
        make_predict(step, model.params, mesh=mesh, buckets=length_buckets(longest), per_token=False, size=each)
        for each in ((size, size) if size else ("fitting", "full"))
    )
    return Embedder(context, few, many, longest, task.captions if isinstance(task, ContrastiveTask) else None)
