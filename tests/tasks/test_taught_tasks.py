"""Distillation, for every registered task: see test_properties.py."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_properties
from flax import nnx
from helpers import assert_close
from test_properties import CASES, SLOW, Built, after_one_step, alone, buffers_of, packed, texts_of

from instructrec_jax.data.batch import lay_out, lengths_of
from instructrec_jax.data.loader import to_devices
from instructrec_jax.data.packing import unpacked
from instructrec_jax.tasks.base import LossInputs
from instructrec_jax.training.distillation import DistilConfig, Teachers, distilled

networks = test_properties.networks  # a fixture


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
    batch = packed(made, texts_of(made.task, made.encoded)).batch
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
    has_backbone, couples = name != "sequence", False
    found = {}
    for how, devices, accumulation in (("plain", 1, 1), ("packed", 1, 1), ("in micro-batches", 1, 2), ("spread", 8, 1)):
        made = alone(name, networks, tmp_path, dropout=True, lora=False, devices=devices)
        couples = made.task.couples_examples
        teachers = taught(name, made, moved, hidden=0.3 if has_backbone and not couples else 0.0)
        texts = texts_of(made.task, made.encoded)
        batch = packed(made, texts, {"plain": 1, "packed": 1, "in micro-batches": 2, "spread": 4}[how]).batch
        if how == "plain":
            lengths, targets = lengths_of(texts.texts)
            batch = lay_out(texts, unpacked(lengths, made.config.data.max_length, 1, None if targets is None else 32))
        found[how] = after_one_step(made, batch, accumulation, teachers)
    assert abs(found["plain"][0] - after_one_step(made, batch)[0]) > 1e-4, "the teachers have an effect"
    total, weight, params = found.pop("plain")
    for how, other in found.items():
        assert other[0] == pytest.approx(total, rel=2e-5), how
        assert other[1] == pytest.approx(weight), how
        assert_close(other[2], params, atol=2e-5)
