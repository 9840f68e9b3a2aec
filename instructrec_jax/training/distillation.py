"""Distillation: the loss of a student that learns from frozen teachers, within the one training step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import jax
import jax.numpy as jnp
from flax import nnx

from instructrec_jax.adapters.soft_targets import soft_loss
from instructrec_jax.backbones.layers import DropoutKeys
from instructrec_jax.data.batch import Batch, Rows
from instructrec_jax.tasks.base import LossInputs, Model, Network, Task
from instructrec_jax.training.state import Tree
from instructrec_jax.training.training_config import DistilConfig


class Arrays(TypedDict):
    """The parameters of a teacher, and the buffers of the loss that were computed with it."""

    params: Tree
    buffers: dict[str, jax.Array]


@dataclass(frozen=True)
class Teachers:
    """Frozen networks beside a step.

    Attributes:
      graphdefs: their structures.
      arrays: the last argument of the compiled step, and so neither constants of the
        program nor part of the state, its optimizer and its checkpoints.
    """

    config: DistilConfig
    graphdefs: Sequence[nnx.GraphDef[Model]]
    arrays: Sequence[Arrays]


class Remembered:
    """A network whose last hidden states of one batch are computed once, for its loss and its soft outputs."""

    def __init__(self, model: Network):
        self._model = model
        self._known: list[tuple[Rows, Rows | None, jax.Array]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)

    def hidden(self, batch: Batch, dropout: DropoutKeys | None = None) -> jax.Array:
        for texts, targets, hidden in self._known:
            if texts is batch.texts and targets is batch.targets:
                return hidden
        self._known.append((batch.texts, batch.targets, self._model.hidden(batch, dropout)))
        return self._known[-1][-1]


Loss = Callable[[Model, Batch, LossInputs], tuple[jax.Array, jax.Array]]


def distilled(
    task: Task,
    teachers: Teachers,
    arrays: Sequence[Arrays],
    model: Model,
    batch: Batch,
    buffers: Mapping[str, jax.Array],
) -> Loss:
    """The loss of a student: (1 - a) L + a Σ w d / Σ w + b H, as (that times Σ w, Σ w).

    L is the task's own loss, d the distance to the teachers' outputs (`adapters.soft_targets.soft_loss`), H the mean
    over the teachers of the mean squared distance of the last hidden states, over tokens and features (as in Sun et
    al., 2019, "Patient Knowledge Distillation", without their normalization), a = `weight` and b = `hidden`. Teachers
    run without dropout and without gradients.

    Args:
      arrays: those of `teachers`, as the step received them.
      model, batch, buffers: the student and the whole batch, of which the loss may receive micro-batches.
    """
    config, per_token = teachers.config, jnp.zeros(())
    networks = [nnx.merge(graphdef, own["params"]) for graphdef, own in zip(teachers.graphdefs, arrays, strict=True)]
    if config.hidden:  # Σ w does not depend on the network, whose arithmetic the compiler leaves out here
        weights = task.loss(task.view(model), batch, LossInputs(buffers=buffers))[1]
        per_token = config.hidden * weights / jnp.maximum(jnp.sum(batch.outputs.segment_ids > 0), 1)

    def loss(model: Model, batch: Batch, inputs: LossInputs) -> tuple[jax.Array, jax.Array]:
        # Losses that couple micro-batches take the network apart, so they need the network itself.
        once = inputs.microbatches == 1
        student = Remembered(model) if once else model
        theirs = [Remembered(network) if once else network for network in networks]
        total, weight = task.loss(task.view(student), batch, inputs)
        own = task.soft_outputs(task.view(student), batch, inputs)
        others = [
            task.soft_outputs(task.view(each), batch, LossInputs(None, kept["buffers"], inputs.microbatches))
            for each, kept in zip(theirs, arrays, strict=True)
        ]
        soft = [soft_loss(mine, given, config.temperature) for mine, *given in zip(own, *others, strict=True)]
        total = (1 - config.weight) * total + config.weight * sum(soft, jnp.zeros(()))
        if config.hidden:
            total = total + per_token * apart(student, theirs, batch, inputs.dropout)
        return total, weight

    return loss


def apart(student: Network, teachers: Sequence[Network], batch: Batch, dropout: DropoutKeys | None) -> jax.Array:
    """Σ over tokens of the mean squared distance of last hidden states, the mean over teachers.

    Raises ValueError for networks of different width.
    """
    mine, there = student.hidden(batch, dropout).astype(jnp.float32), batch.outputs.segment_ids > 0
    total = jnp.zeros(())
    for teacher in teachers:
        hidden = jax.lax.stop_gradient(teacher.hidden(batch).astype(jnp.float32))
        if hidden.shape != mine.shape:
            raise ValueError(
                f"distil.hidden compares hidden states, but the teacher has {hidden.shape[-1]:,} features and this "
                f"network {mine.shape[-1]:,}: leave it at 0."
            )
        total = total + jnp.sum(jnp.where(there, jnp.square(mine - hidden).mean(-1), 0))
    return total / len(teachers)


def check_distil(config: DistilConfig, task: Task, accumulation: int) -> None:
    """Raises ValueError for settings out of range, or without effect."""
    if not config.teachers:
        default = DistilConfig()
        given = [
            name for name in ("temperature", "weight", "hidden") if getattr(config, name) != getattr(default, name)
        ]
        if given:
            raise ValueError(f"distil.{given[0]} has no effect without distil.teachers: set them, or leave this out.")
        return
    if not 0 < config.temperature < float("inf"):
        raise ValueError(f"distil.temperature is {config.temperature}, but should be positive, such as 2.")
    if not 0 <= config.weight <= 1:
        raise ValueError(f"distil.weight is {config.weight}, but should be a share from 0 to 1.")
    if not 0 <= config.hidden < float("inf"):
        raise ValueError(f"distil.hidden is {config.hidden}, but should be at least 0.")
    if config.hidden and task.couples_examples and accumulation > 1:
        raise ValueError(
            "distil.hidden does not go with accumulation for a task whose loss depends on several examples: set "
            "accumulation: 1, or leave it at 0."
        )
