"""A task's head on a checkpoint: the checkpoint's own where it has one that fits, else a new one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
from flax import nnx

from instructrec_jax.adapters.heads import build_head
from instructrec_jax.adapters.lora import LoraConfig
from instructrec_jax.backbones.folder import PoolingSpec, declared_head
from instructrec_jax.backbones.reading import LoadReport, load_head


@dataclass
class Source:
    """What a model is made from.

    Attributes:
      path: the checkpoint's folder, or None: parameters are drawn.
      backbone: the loaded network.
      config: of transformers.
      pooling: how the checkpoint turns hidden states into one vector.
      report: what was read; `task_head` adds the head's part.
      lora: settings of the LoRA matrices that the network was given, if any.
      notes: sentences for the start-up summary.
    """

    path: str | None
    backbone: nnx.Module
    config: Any
    pooling: PoolingSpec
    report: LoadReport
    rngs: nnx.Rngs
    dtype: Any
    shardings: Callable[..., jax.sharding.Sharding] | None = None
    lora: LoraConfig | None = None
    notes: list[str] = field(default_factory=list)


def task_head(source: Source, kind: str, labels: list[str] | None = None) -> Any:
    """A SequenceHead, TokenHead or MaskedLMHead in the family's shape.

    Args:
      kind: "sequence", "token", "span" or "mlm".
      labels: one name an output (None for "span" and "mlm").

    Raises:
      ValueError: the checkpoint's head has the same labels in another order.
    """
    outputs = 2 if kind == "span" else source.config.vocab_size if labels is None else len(labels)

    def build(key: jax.Array) -> nnx.Module:
        return build_head(source.config, kind, outputs, dtype=source.dtype, rngs=nnx.Rngs(params=key))

    if source.path is None or (labels is not None and not _labels_fit(source, kind, labels)):
        return build(source.rngs.params())
    head, report = load_head(source.path, kind, build, rngs=source.rngs, shardings=source.shardings)
    source.report = source.report + report
    if not report.initialised:
        source.notes.append(f"the checkpoint's own {kind} head is tuned further")
    return head


def _labels_fit(source: Source, kind: str, labels: list[str]) -> bool:
    if declared_head(source.config) != kind:
        return False
    theirs = [source.config.id2label[i] for i in sorted(source.config.id2label)]
    named = not all(name.startswith("LABEL_") for name in theirs)
    if named and sorted(theirs) == sorted(labels) and theirs != labels:
        raise ValueError(f"the checkpoint's head has the same labels in another order: set task.labels to {theirs}.")
    fits = theirs == labels if named else len(theirs) == len(labels)
    if not fits:
        source.notes.append(f"the checkpoint's head has the labels {theirs[:5]}, so a new one is trained")
    return fits
