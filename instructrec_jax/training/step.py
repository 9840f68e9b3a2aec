"""The sharded training step: one for every backbone, head and task.

Why our own and not optax.apply_if_finite: that one looks at the gradients alone and, after so many bad ones in a row,
lets them through. Here the loss is looked at too, a bad step leaves the parameters, the moments, the schedule and the
sums of the log as they were, and the loop stops after `optimizer.max_nonfinite` of them (`Meter.watch`).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from instructrec_jax.backbones.layers import DropoutKeys, dropout_keys
from instructrec_jax.distributed.mesh import DeviceMesh, replicated
from instructrec_jax.tasks.base import LossInputs, Task, microbatches
from instructrec_jax.training.state import TrainState, Tree, merge_params

Arrays = dict[str, jax.Array]
TARGET_SEED = np.uint32(0x5BD1E995)  # any constant: the seeds of two steps differ by it once in 2**32 times


def batch_dropout_keys(seed: jax.Array, batch: Arrays) -> DropoutKeys:
    """One hash per token from (step, number of the text in the global batch, position in the text).

    So a token meets the same dropout bits however the batch is packed, split into micro-batches or spread over
    devices. The tokens of targets have keys of their own, made in the same way of another seed.
    """

    def keys(seed: jax.Array, side: str) -> DropoutKeys:
        segment = jnp.maximum(batch[f"{side}segment_ids"] - 1, 0)
        numbers = jnp.take_along_axis(batch["text_numbers"], segment, axis=1)
        return dropout_keys(seed, numbers, batch[f"{side}positions"])

    if "target_tokens" not in batch:
        return keys(seed, "")
    return replace(keys(seed, ""), target=keys(seed ^ TARGET_SEED, "target_"))


def make_train_step(
    task: Task,
    graphdef: Any,
    optimizer: optax.GradientTransformation,
    *,
    mesh: DeviceMesh,
    shardings: TrainState,
    accumulation: int = 1,
) -> Callable[[TrainState, Arrays], tuple[TrainState, dict[str, jax.Array]]]:
    """Compiles (state, batch) -> (state, the window's sums); the old state's memory is given to the new one.

    With `accumulation` k the rows are worked through in k micro-batches. The loss is Σ w ℓ / Σ w over the *whole*
    batch, so k micro-batches and d devices give what one on one device gives, to rounding.
    """

    def total_loss(params: Tree, state: TrainState, batch: Arrays, seed: jax.Array, count: int) -> Any:
        model = nnx.merge(graphdef, merge_params(params, state.frozen))
        keys = batch_dropout_keys(seed, batch)
        with mesh.tracing():
            total, weight = task.loss(task.view(model), batch, LossInputs(keys, state.buffers, count))
        return total, weight

    def gradients(state: TrainState, batch: Arrays, seed: jax.Array) -> tuple[jax.Array, jax.Array, Tree]:
        gradient = jax.value_and_grad(total_loss, has_aux=True)
        if accumulation == 1 or task.couples_examples:  # a coupled loss makes its micro-batches itself
            (total, weight), grads = gradient(state.params, state, batch, seed, accumulation)
        else:

            def add(sums: Any, microbatch: Arrays) -> tuple[Any, None]:
                (total, weight), grads = gradient(state.params, state, microbatch, seed, 1)
                return jax.tree.map(jnp.add, sums, (total, weight, grads)), None

            zeros = jax.tree.map(jnp.zeros_like, state.params)
            start = (jnp.zeros(()), jnp.zeros(()), zeros)
            (total, weight, grads), _ = jax.lax.scan(add, start, microbatches(batch, accumulation))
        scale = 1 / jnp.maximum(weight, 1e-9)
        return total, weight, jax.tree.map(lambda g: g * scale, grads)

    def train_step(state: TrainState, batch: Arrays) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        total, weight, grads = gradients(state, batch, jax.random.bits(key, dtype=jnp.uint32))
        grad_norm = optax.global_norm(grads)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        finite = jnp.isfinite(total) & jnp.isfinite(grad_norm)

        def keep(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        seen = {"loss": total, "weight": weight, "grad_norm": grad_norm, "steps": jnp.ones(())}
        # A skipped update leaves no trace in the averages either; it is counted by itself.
        window = {name: state.window[name] + jnp.where(finite, value, 0) for name, value in seen.items()}
        new = replace(
            state,
            params=keep(optax.apply_updates(state.params, updates), state.params),
            optimizer=keep(optimizer_state, state.optimizer),
            step=state.step + 1,
            window=window,
            skipped=state.skipped + ~finite,
            skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
        )
        return new, window | {"skipped": new.skipped, "skipped_in_a_row": new.skipped_in_a_row}

    return jax.jit(
        train_step,
        in_shardings=(shardings, None),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def make_predict_step(task: Task, graphdef: Any, mesh: DeviceMesh) -> Callable[..., jax.Array]:
    """Compiles (params, batch) -> the task's predictions for each text (or token) of the batch.

    With a third argument, a seed (uint32), dropout is on, with the bits that a training step of this seed has.
    """

    @jax.jit
    def predict_step(params: Tree, batch: Arrays, seed: jax.Array | None = None) -> jax.Array:
        with mesh.tracing():
            model = task.view(nnx.merge(graphdef, params))
            if seed is None:
                return task.predict(model, batch)
            return task.draw(model, batch, batch_dropout_keys(seed, batch))

    return predict_step
