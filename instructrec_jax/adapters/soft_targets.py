"""What a student learns from its teachers: their outputs in place of labels (Hinton et al., 2015)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp

from instructrec_jax.adapters.losses import chunk_size
from instructrec_jax.arrays import Array

Kind = Literal["classes", "labels", "numbers"]
KIND_OF: dict[str, Kind] = {"labels": "classes", "decisions": "labels", "numbers": "numbers"}  # by Task.outputs_are


@dataclass(frozen=True)
class SoftOutputs:
    """The outputs that a loss compares with targets, before the comparison.

    Attributes:
      kind: "classes": logits of a softmax over the last axis; "labels": logits of independent labels; "numbers".
      values: float [..., classes], or [..., 1] of numbers; with `table` the inputs [rows, length, h] of an output
        layer over a vocabulary, whose logits would be too large an array.
      weights: float [...], the w of the loss Σ w ℓ / Σ w: with the same sum, so that both can be mixed.
      table, bias, scale, soft_cap: of the output layer, see `losses.linear_cross_entropy`.
      targets: the right class, int [...], or whether each label is right, [..., labels]; -1: unknown. None: all are.
    """

    kind: Kind
    values: jax.Array
    weights: Array
    table: jax.Array | None = None
    bias: jax.Array | None = None
    scale: float = 1.0
    soft_cap: float | None = None
    targets: Array | None = None

    @property
    def classes(self) -> int:
        return int(self.values.shape[-1] if self.table is None else self.table.shape[0])

    def logits(self) -> jax.Array:
        """float32 [..., classes]."""
        if self.table is None:
            return self.values.astype(jnp.float32)
        x = (self.values * self.scale).astype(self.values.dtype)
        z = jnp.einsum("rch,vh->rcv", x, self.table.astype(x.dtype), preferred_element_type=jnp.float32)
        z = z if self.bias is None else z + self.bias
        return z if self.soft_cap is None else self.soft_cap * jnp.tanh(z / self.soft_cap)


def soft_loss(student: SoftOutputs, teachers: Sequence[SoftOutputs], temperature: float) -> jax.Array:
    """Σ w d of a student's outputs z and those z₁ … z_K of its teachers, a float32 scalar.

        classes:  d = T² KL(p̄ ‖ softmax(z / T)),  p̄ = 1/K Σ softmax(z_k / T)
        labels:   the same with sigmoids, of each label and its complement; the mean over labels
        numbers:  d = (z - 1/K Σ z_k)²; T has no effect

    With T = temperature (Hinton et al., 2015, "Distilling the Knowledge in a Neural Network", section 2: T² keeps the
    gradients' size when T changes). The KL divergence differs from their cross-entropy by the entropy of p̄, which has
    no gradient, and is zero for a student like its teacher. Logits over a vocabulary are computed in chunks of
    positions, again in the backward pass.

    Raises ValueError for outputs of different sizes.
    """
    for teacher in teachers:
        if teacher.classes != student.classes:
            raise ValueError(
                f"distil: the teacher has {teacher.classes:,} outputs, but this run {student.classes:,}: use a "
                "teacher of the same task, labels, catalogue and vocabulary."
            )

    def far(own: SoftOutputs, theirs: Sequence[SoftOutputs]) -> jax.Array:
        return distance(own, theirs, temperature)

    return _summed(student, teachers, far)


def agreement_loss(one: SoftOutputs, other: SoftOutputs) -> jax.Array:
    """Σ w d of two outputs z and z' of the same network, a float32 scalar; both have a gradient.

        classes:  d = ½ (KL(p ‖ p') + KL(p' ‖ p)),  p = softmax(z)
        labels:   the same with sigmoids, of each label and its complement; the mean over labels
        numbers:  d = (z - z')²

    Source: Liang et al., 2021, "R-Drop", equation 2. A KL divergence is no distance of numbers, so the squared
    difference stands in its place.
    """
    return _summed(one, [other], lambda own, theirs: disagreement(own, theirs[0]))


def disagreement(one: SoftOutputs, other: SoftOutputs) -> jax.Array:
    """d of `agreement_loss`, float32 [...]."""
    own, theirs = one.logits(), other.logits()
    if one.kind == "numbers":
        return jnp.square(own - theirs)[..., 0]
    if one.kind == "labels":  # a softmax over (z, 0) for each label
        own, theirs = (jnp.stack([z, jnp.zeros_like(z)], -1) for z in (own, theirs))
    log_p, log_q = jax.nn.log_softmax(own), jax.nn.log_softmax(theirs)
    divergence = 0.5 * jnp.sum((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q), -1)
    return divergence.mean(-1) if one.kind == "labels" else divergence


def _summed(
    student: SoftOutputs,
    teachers: Sequence[SoftOutputs],
    far: Callable[[SoftOutputs, Sequence[SoftOutputs]], jax.Array],
) -> jax.Array:
    """Σ w far(student, teachers), in chunks of positions where there is a table."""
    if student.table is None:
        return jnp.sum(student.weights * far(student, teachers))
    rows, length = student.weights.shape
    size = chunk_size(rows, length, student.classes, None)
    count = -(-length // size)

    def padded(x: Array) -> jax.Array:
        wide = jnp.pad(jnp.asarray(x), ((0, 0), (0, count * size - length), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(wide.reshape(rows, count, size, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def one(total: jax.Array, part: tuple[jax.Array, jax.Array, list[jax.Array]]) -> tuple[jax.Array, None]:
        weights, values, theirs = part
        each = [replace(teacher, values=own) for teacher, own in zip(teachers, theirs, strict=True)]
        found = far(replace(student, values=values), each)
        return total + jnp.sum(weights * found), None

    parts = (padded(student.weights), padded(student.values), [padded(teacher.values) for teacher in teachers])
    return jax.lax.scan(one, jnp.zeros(()), parts)[0]


def distance(student: SoftOutputs, teachers: Sequence[SoftOutputs], temperature: float) -> jax.Array:
    """d of `soft_loss`, float32 [...]."""
    own, theirs = student.logits(), [jax.lax.stop_gradient(teacher.logits()) for teacher in teachers]
    if student.kind == "numbers":
        return jnp.square(own - sum(theirs) / len(theirs))[..., 0]
    if student.kind == "labels":  # a softmax over (z, 0) for each label
        own, *theirs = (jnp.stack([z, jnp.zeros_like(z)], -1) for z in (own, *theirs))
    log_q = jax.nn.log_softmax(own / temperature)
    log_p = [jax.nn.log_softmax(z / temperature) for z in theirs]
    mean = jax.nn.logsumexp(jnp.stack(log_p), 0) - jnp.log(len(log_p))
    divergence = temperature**2 * jnp.sum(jnp.exp(mean) * (mean - log_q), -1)
    return divergence.mean(-1) if student.kind == "labels" else divergence
