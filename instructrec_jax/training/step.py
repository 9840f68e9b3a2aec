"""The sharded training step: one for every backbone, head and task.

Why our own and not optax.apply_if_finite: it checks only the gradients, and applies them after N non-finite ones in a
row. This step also checks the loss; a skipped step leaves parameters, moments, schedule and log sums unchanged, and the
loop stops after `optimizer.max_nonfinite` of them (`Meter.watch`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from instructrec_jax.backbones.layers import DropoutKeys, dropout_keys
from instructrec_jax.data.batch import Batch, Rows
from instructrec_jax.distributed.mesh import DeviceMesh, replicated
from instructrec_jax.tasks.base import LossInputs, Model, Task, microbatches
from instructrec_jax.training.distillation import Arrays, Loss, Teachers, distilled
from instructrec_jax.training.robust_training import climbed, random_noise, robust_loss
from instructrec_jax.training.semi_supervised import (
    Noted,
    RememberingState,
    Unlabeled,
    factor_of,
    nothing_noted,
    remembered,
    unlabeled_loss,
)
from instructrec_jax.training.state import TrainState, Tree, merge_params
from instructrec_jax.training.training_config import RobustTrainingConfig, SemiSupervisedConfig

Sums = tuple[jax.Array, jax.Array, Noted, Tree]
# (trained parameters, noise on word embeddings, batch, micro-batches) -> (Σ w ℓ, (Σ w, what is noted))
TotalLoss = Callable[[Tree, jax.Array | None, Batch, int], tuple[jax.Array, tuple[jax.Array, Noted]]]
T = TypeVar("T")
# arbitrary: they separate the dropout keys of targets and of unlabeled views from those of texts
TARGET_SEED, WEAK_SEED, STRONG_SEED = np.uint32(0x5BD1E995), np.uint32(0x2C1B3C6D), np.uint32(0x297A2D39)


def batch_dropout_keys(seed: jax.Array, batch: Batch) -> DropoutKeys:
    """One hash per token of (step, number of the text in the global batch, position in the text).

    So a token's dropout bits do not depend on packing, micro-batches or devices. Tokens of targets have separate keys,
    from another seed.
    """

    def keys(seed: jax.Array, rows: Rows) -> DropoutKeys:
        segment = jnp.maximum(rows.segment_ids - 1, 0)
        numbers = jnp.take_along_axis(batch.text_numbers, segment, axis=1)
        return dropout_keys(seed, numbers, rows.positions)

    if batch.targets is None:
        return keys(seed, batch.texts)
    return replace(keys(seed, batch.texts), target=keys(seed ^ TARGET_SEED, batch.targets))


def make_train_step(
    task: Task,
    graphdef: nnx.GraphDef[Model],
    optimizer: optax.GradientTransformation,
    *,
    mesh: DeviceMesh,
    shardings: TrainState,
    accumulation: int = 1,
    teachers: Teachers | None = None,
    semi_supervised: SemiSupervisedConfig | None = None,
    robust_training: RobustTrainingConfig | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Compiles (state, batch) -> (state, the window's sums); the new state reuses the memory of the old one.

    The loss is Σ w ℓ / Σ w over the whole batch, so k micro-batches (`accumulation`) or d devices give the result of
    one batch on one device, up to rounding.

    Args:
      teachers: frozen networks that the loss also compares with, see `distillation.distilled`.
      semi_supervised: how it also learns from the unlabeled examples of a batch; None: it has none.
      robust_training: how noise is made to matter less; None: not at all.
    """
    robust = None if robust_training is None or robust_training.method == "none" else robust_training
    semi = None if semi_supervised is None or semi_supervised.method == "none" else semi_supervised
    gradients = _make_gradients(task, graphdef, mesh, accumulation, teachers, semi, robust)

    def train_step(
        state: TrainState, batch: Batch, arrays: Sequence[Arrays] = ()
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        total, weight, noted, grads = gradients(state, batch, jax.random.bits(key, dtype=jnp.uint32), arrays)
        grad_norm = optax.tree.norm(grads)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        finite = jnp.isfinite(total) & jnp.isfinite(grad_norm)

        def keep(new: T, old: T) -> T:
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        sums = {"loss": total, "weight": weight, "grad_norm": grad_norm, "steps": jnp.ones(()), **noted.sums}
        # A skipped update leaves no trace in the averages either; it is only counted.
        window = {name: state.window[name] + jnp.where(finite, value, 0) for name, value in sums.items()}
        params = keep(optax.apply_updates(state.params, updates), state.params)
        new = replace(
            state,
            params=params,
            optimizer=keep(optimizer_state, state.optimizer),
            step=state.step + 1,
            window=window,
            skipped=state.skipped + ~finite,
            skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
        )
        if semi is not None and isinstance(state, RememberingState) and isinstance(new, RememberingState):
            teacher, marginals = keep(remembered(semi, state, params, noted), (state.teacher, state.marginals))
            new = replace(new, teacher=teacher, marginals=marginals)
        return new, window | {"skipped": new.skipped, "skipped_in_a_row": new.skipped_in_a_row}

    step = jax.jit(
        train_step,
        in_shardings=(shardings, None) if teachers is None else (shardings, None, None),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    return step if teachers is None else TaughtStep(step, teachers.arrays)


@dataclass(frozen=True)
class TaughtStep:
    """A compiled step with the arrays of its teachers as the last argument, called as one without."""

    step: jax.stages.Wrapped
    arrays: Sequence[Arrays]

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        return self.step(state, batch, self.arrays)

    def trace(self, state: TrainState, batch: Batch) -> jax.stages.Traced:
        return self.step.trace(state, batch, self.arrays)

    def lower(self, state: TrainState, batch: Batch) -> jax.stages.Lowered:
        return self.step.lower(state, batch, self.arrays)


def _make_gradients(
    task: Task,
    graphdef: nnx.GraphDef[Model],
    mesh: DeviceMesh,
    accumulation: int,
    teachers: Teachers | None,
    semi: SemiSupervisedConfig | None,
    robust: RobustTrainingConfig | None,
) -> Callable[[TrainState, Batch, jax.Array, Sequence[Arrays]], Sums]:
    """(state, batch, dropout seed, teachers' arrays) -> (Σ w ℓ, Σ w, what is noted, gradient of Σ w ℓ / Σ w)."""

    def plain(model: Model, batch: Batch, inputs: LossInputs) -> tuple[jax.Array, jax.Array]:
        return task.loss(task.view(model), batch, inputs)

    def gradients(state: TrainState, batch: Batch, seed: jax.Array, arrays: Sequence[Arrays]) -> Sums:
        loss: Loss = plain
        student = nnx.merge(graphdef, merge_params(state.params, state.frozen))
        if teachers is not None:
            with mesh.tracing():
                loss = distilled(task, teachers, arrays, student, batch, state.buffers)
        if robust is not None and robust.method != "freelb":
            loss = robust_loss(robust, task, loss)
        unlabeled = None if semi is None else _unlabeled(semi, task, graphdef, mesh, student, state, batch)

        def total_loss(
            params: Tree, noise: jax.Array | None, batch: Batch, count: int
        ) -> tuple[jax.Array, tuple[jax.Array, Noted]]:
            model = nnx.merge(graphdef, merge_params(params, state.frozen))
            keys = batch_dropout_keys(seed, batch)
            inputs = LossInputs(keys if noise is None else replace(keys, shift=noise), state.buffers, count)
            with mesh.tracing():
                total, weight = loss(model, replace(batch, unlabeled=None), inputs)
                if unlabeled is None:
                    return total, (weight, Noted({}))
                more, noted = unlabeled_loss(unlabeled, model, batch, inputs, *_view_keys(unlabeled, batch, seed))
                return total + more, (weight, noted)

        sums_of = _sums_of(total_loss, robust, student, state, seed)
        if accumulation == 1 or task.couples_examples:  # a coupled loss splits the batch itself
            total, weight, noted, grads = sums_of(batch, accumulation)
        else:
            noted = Noted({}) if unlabeled is None else nothing_noted(unlabeled.marginals)
            start = (jnp.zeros(()), jnp.zeros(()), noted, jax.tree.map(jnp.zeros_like, state.params))

            def add(sums: Sums, microbatch: Batch) -> tuple[Sums, None]:
                return jax.tree.map(jnp.add, sums, sums_of(microbatch, 1)), None

            (total, weight, noted, grads), _ = jax.lax.scan(add, start, microbatches(batch, accumulation))
        scale = 1 / jnp.maximum(weight, 1e-9)
        return total, weight, noted, jax.tree.map(lambda g: g * scale, grads)

    return gradients


def _sums_of(
    total_loss: TotalLoss, robust: RobustTrainingConfig | None, student: Model, state: TrainState, seed: jax.Array
) -> Callable[[Batch, int], Sums]:
    """(batch or micro-batch, micro-batches in which its loss runs the network) -> its sums and gradients."""
    gradient = jax.value_and_grad(total_loss, has_aux=True)

    def once(batch: Batch, count: int) -> Sums:
        (total, (weight, noted)), grads = gradient(state.params, None, batch, count)
        return total, weight, noted, grads

    if robust is None or robust.method != "freelb":
        return once
    both = jax.value_and_grad(total_loss, argnums=(0, 1), has_aux=True)

    def climbing(batch: Batch, count: int) -> Sums:
        def at(noise: jax.Array) -> tuple[Sums, jax.Array]:
            (total, (weight, noted)), (grads, slope) = both(state.params, noise, batch, count)
            return (total, weight, noted, grads), slope

        return climbed(robust, batch, random_noise(robust, student, batch, batch_dropout_keys(seed, batch)), at)

    return climbing


def _view_keys(unlabeled: Unlabeled, batch: Batch, seed: jax.Array) -> tuple[DropoutKeys | None, DropoutKeys]:
    """The dropout keys of the weak view (None: without dropout) and of the strong one."""
    views = batch.unlabeled
    assert views is not None
    strong = batch_dropout_keys(seed ^ STRONG_SEED, views.strong)
    is_noisy = unlabeled.method == "pi_model"
    return batch_dropout_keys(seed ^ WEAK_SEED, views.weak) if is_noisy else None, strong


def _unlabeled(
    config: SemiSupervisedConfig,
    task: Task,
    graphdef: nnx.GraphDef[Model],
    mesh: DeviceMesh,
    student: Model,
    state: TrainState,
    batch: Batch,
) -> Unlabeled:
    """What the loss of unlabeled examples needs, of the state and the whole batch."""
    assert config.method != "none" and isinstance(state, RememberingState)
    own = state.params
    if config.teacher_decay:
        own = jax.tree.map(lambda kept, now: kept.astype(now.dtype), state.teacher, state.params)
    teacher = nnx.merge(graphdef, jax.lax.stop_gradient(merge_params(own, state.frozen)))
    with mesh.tracing():
        factor = factor_of(config, task, student, batch, LossInputs(buffers=state.buffers), state.step)
    return Unlabeled(config, config.method, task, teacher, state.marginals, factor)


def make_predict_step(task: Task, graphdef: nnx.GraphDef[Model], mesh: DeviceMesh) -> Callable[..., jax.Array]:
    """Compiles (params, batch) -> the task's predictions for each text (or token) of the batch.

    A third argument, a seed (uint32), turns on dropout, with the dropout bits of a training step with this seed.
    """

    @jax.jit
    def predict_step(params: Tree, batch: Batch, seed: jax.Array | None = None) -> jax.Array:
        with mesh.tracing():
            model = task.view(nnx.merge(graphdef, params))
            if seed is None:
                return task.predict(model, batch)
            return task.draw(model, batch, batch_dropout_keys(seed, batch))

    return predict_step


def make_feature_step(
    task: Task, graphdef: nnx.GraphDef[Model], mesh: DeviceMesh
) -> Callable[[Tree, Batch], jax.Array]:
    """Compiles (params, batch) -> what the task's head reads of each text, see `Task.features`."""

    @jax.jit
    def feature_step(params: Tree, batch: Batch) -> jax.Array:
        with mesh.tracing():
            return task.features(task.view(nnx.merge(graphdef, params)), batch)

    return feature_step
