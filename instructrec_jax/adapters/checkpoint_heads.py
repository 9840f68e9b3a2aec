"""A task's head: the checkpoint's own if it has a suitable one, otherwise a new one."""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from instructrec_jax.adapters.adapter_config import LoraConfig
from instructrec_jax.adapters.dual_encoder import RetrievalHead
from instructrec_jax.adapters.heads import build_head
from instructrec_jax.backbones.folder import PoolingSpec, Projection, declared_head
from instructrec_jax.backbones.reading import LoadReport, load_head
from instructrec_jax.backbones.sentence_vectors import read_projection
from instructrec_jax.hf_types import PretrainedConfig


@dataclass
class Source:
    """The parts from which a model is built.

    Attributes:
      path: the checkpoint's folder, or None for randomly initialized parameters.
      backbone: the loaded network.
      config: the config of transformers.
      pooling: the checkpoint's pooling of hidden states into one vector.
      report: the loaded tensors; `task_head` adds the head's.
      rngs: its "params" stream initializes new parameters.
      dtype: of the activations.
      shardings: shardings of parameters, see `backbones.reading`.
      lora: settings of the network's LoRA, if it has one.
      notes: sentences for the start-up summary.
    """

    path: str | None
    backbone: nnx.Module
    config: PretrainedConfig
    pooling: PoolingSpec
    report: LoadReport
    rngs: nnx.Rngs
    dtype: DTypeLike
    shardings: Callable[..., jax.sharding.Sharding] | None = None
    lora: LoraConfig | None = None
    notes: list[str] = field(default_factory=list)


def vector_head(source: Source, size: int | None, pooling: str | None, temperature: float) -> RetrievalHead:
    """A retrieval head, with the checkpoint's own projection if it has one.

    Args:
      size: width of the vectors; None: the checkpoint's.
      pooling: mode of the pooling; None: the checkpoint's.

    Raises:
      ValueError: the checkpoint's projection has another size, see `vector_size`, or does not fit the network.
    """
    declared, hidden = source.pooling.projection, source.config.get_text_config().hidden_size
    if declared is not None and declared.inputs != hidden:
        raise ValueError(f"{declared.folder}: in_features is {declared.inputs}, but the network's width is {hidden}.")
    head = RetrievalHead(
        hidden,
        vector_size(size, declared),
        pooling=pooling or source.pooling.mode,
        temperature=temperature,
        rngs=source.rngs,
        dtype=source.dtype,
    )
    if declared is not None and source.path is not None and head.projection is not None:
        head.projection[...] = jnp.asarray(read_projection(declared))
        source.notes.append("the projection is the checkpoint's own")
    return head


def vector_size(size: int | None, declared: Projection | None) -> int | None:
    """Width of a retrieval head's projection (None: it has none), from task.projection and the checkpoint's.

    Raises ValueError if they differ.
    """
    if declared is None:
        return size
    if size not in (None, declared.outputs):
        raise ValueError(
            f"task.projection is {size}, but the projection in {declared.folder} has {declared.outputs} outputs: set "
            "task.projection to null."
        )
    return declared.outputs


def task_head(source: Source, kind: str, labels: list[str] | None = None) -> nnx.Module:
    """A SequenceHead, TokenHead, SpanHead or MaskedLMHead in the family's shape.

    Args:
      kind: "sequence", "token", "span" or "mlm".
      labels: one name per output (None for "span" and "mlm").

    Raises:
      ValueError: the checkpoint's head has the same labels in another order.
    """
    outputs = 2 if kind == "span" else source.config.get_text_config().vocab_size if labels is None else len(labels)

    def build(key: jax.Array) -> nnx.Module:
        return build_head(source.config, kind, outputs, dtype=source.dtype, rngs=nnx.Rngs(params=key))

    if source.path is None or (labels is not None and not _labels_fit(source, kind, labels)):
        return build(source.rngs.params())
    head, report = load_head(source.path, kind, build, rngs=source.rngs, shardings=source.shardings)
    source.report = source.report + report
    if not report.initialized:
        source.notes.append(f"the {kind} head is the checkpoint's own")
    return head


def _labels_fit(source: Source, kind: str, labels: list[str]) -> bool:
    if declared_head(source.config) != kind:
        return False
    by_number = source.config.id2label or {}
    theirs = [name for _, name in sorted(by_number.items())]
    named = not all(name.startswith("LABEL_") for name in theirs)
    if named and sorted(theirs) == sorted(labels) and theirs != labels:
        raise ValueError(
            f"task.labels has the labels of the checkpoint's head in another order: set task.labels to {theirs}."
        )
    fits = theirs == labels if named else len(theirs) == len(labels)
    if not fits:
        source.notes.append(f"new head: the checkpoint's head has other labels ({', '.join(map(str, theirs[:5]))})")
    return fits
