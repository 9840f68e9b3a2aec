"""Distillation, for every registered task: see test_properties.py."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import task_cases
from flax import nnx
from task_cases import CASES, SLOW, Built, after_one_step, alone, buffers_of, packed, texts_of

from instructrec_jax.data.batch import lay_out, lengths_of
from instructrec_jax.data.loader import to_devices
from instructrec_jax.data.packing import unpacked
from instructrec_jax.distributed.mesh import data_shards
from instructrec_jax.tasks.base import LossInputs
from instructrec_jax.training.distillation import Teachers, distilled
from instructrec_jax.training.training_config import DistilConfig

networks = task_cases.networks  # a fixture


def taught(name: str, made: Built, other: Any, hidden: float = 0.0) -> Teachers:
    """Two teachers: the network itself, and one that differs by `other`, a function of its parameters."""
    params = [jax.tree.map(jnp.copy, made.model.params), other(made.model.params)]
    buffers = jax.tree.map(jnp.asarray, buffers_of(made))
    arrays = [{"params": each, "buffers": buffers} for each in params]
    return Teachers(DistilConfig(["a", "b"], hidden=hidden), [made.model.graphdef] * 2, arrays)


def moved(params: Any) -> Any:
    return jax.tree.map(lambda x: jax.device_put(x * (1 + 0.1 * jnp.sin(jnp.arange(x.size)).reshape(x.shape))), params)


TAUGHT = ("span", "language_model, encoder–decoder")  # the others with -m slow


@pytest.mark.parametrize("name", [name if name in TAUGHT else pytest.param(name, marks=SLOW) for name in CASES])
def test_teachers_like_the_student_teach_nothing(name: str, networks: Any, tmp_path: Path) -> None:
    """And what is compared weighs as much as the task's own loss."""
    made = alone(name, networks, tmp_path, dropout=False, lora=False)
    batch = packed(made, texts_of(made.task, made.encoded))
    teachers = taught(name, made, lambda params: params)

    def soft(params: Any, batch: Any, buffers: Any) -> Any:
        inputs = LossInputs(buffers=buffers)
        model = nnx.merge(made.model.graphdef, params)
        loss = distilled(made.task, teachers, teachers.arrays, model, batch, inputs.buffers)
        (total, weight), (own, _) = (each(model, batch, inputs) for each in (loss, made.task.loss))
        outputs = made.task.soft_outputs(made.task.view(model), batch, inputs)
        return total - own / 2, (weight, sum(jnp.sum(each.weights) for each in outputs))

    (value, (weight, compared)), gradients = jax.jit(jax.value_and_grad(soft, has_aux=True))(
        made.model.params, to_devices(batch, made.mesh), buffers_of(made)
    )
    assert float(compared) == pytest.approx(float(weight), rel=1e-5)
    assert float(value) == pytest.approx(0, abs=1e-4 * float(weight))
    for gradient in jax.tree.leaves(gradients):
        np.testing.assert_allclose(gradient / weight, 0, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["classification", *(pytest.param(name, marks=SLOW) for name in CASES if name != "classification")]
)
def test_distillation_packed_split_or_spread_as_one_batch(name: str, networks: Any, tmp_path: Path) -> None:
    """One text in a row on one device = several in a row, in two micro-batches on eight devices."""
    found = {}
    for parts, mesh in ((1, (1, 1, 1)), (2, CASES[name].mesh)):
        made = alone(name, networks, tmp_path, dropout=True, lora=False, mesh=mesh)
        hidden = 0.0 if name == "sequence" or made.task.couples_examples else 0.3
        texts = texts_of(made.task, made.encoded)
        lengths, targets = lengths_of(texts.texts)
        plain = unpacked(lengths, made.config.data.max_length, 1, None if targets is None else 32)
        batch = lay_out(texts, plain) if parts == 1 else packed(made, texts, parts * data_shards(made.mesh))
        found[parts] = after_one_step(made, batch, parts, taught(name, made, moved, hidden))
    assert abs(found[2][0] - after_one_step(made, batch, 2)[0]) > 1e-4, "the teachers have an effect"
    assert found[2][0] == pytest.approx(found[1][0], rel=2e-5)
    assert found[2][1] == pytest.approx(found[1][1])
    for one, other in zip(*(jax.tree.leaves(found[parts][2]) for parts in (1, 2)), strict=True):
        np.testing.assert_allclose(other, one, atol=2e-5, rtol=0)
