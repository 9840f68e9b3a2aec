"""Distillation within the step; the properties over all tasks are in tests/tasks/test_properties.py."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import tiny_config
from flax import nnx
from helpers import Setup
from scipy.special import log_softmax, softmax

from instructrec_jax.backbones.reading import build_backbone
from instructrec_jax.backbones.writing import save_pretrained
from instructrec_jax.data.loader import to_devices
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.tasks.base import LossInputs
from instructrec_jax.training.distillation import Teachers, check_distil, distilled
from instructrec_jax.training.state import create_state, state_shardings
from instructrec_jax.training.step import make_train_step
from instructrec_jax.training.training_config import DistilConfig


@pytest.fixture(scope="module")
def setup(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return Setup("classification", checkpoint, tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def teacher(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of more layers than the student."""
    folder = tmp_path_factory.mktemp("teacher")
    config = tiny_config(len(tokenizer), num_hidden_layers=3)
    save_pretrained(folder, build_backbone(config, rngs=nnx.Rngs(7)), config)
    tokenizer.save_pretrained(folder)
    return Setup("classification", folder, tmp_path_factory.mktemp("taught"))


def of(config: DistilConfig, *teachers: Any) -> Teachers:
    arrays = [{"params": each.model.params, "buffers": {}} for each in teachers]
    return Teachers(config, [each.model.graphdef for each in teachers], arrays)


def test_the_loss_of_the_step(setup: Any, teacher: Any) -> None:
    """(1 - a) L + a T² KL + b H against NumPy in float64, from what the networks predict; other numbers of layers."""
    batch, encoded = setup.batch(), setup.encoded
    config = DistilConfig(["a"], temperature=3.0, weight=0.7, hidden=0.4)
    teachers = of(config, teacher)
    found = distilled(setup.task, teachers, teachers.arrays, setup.model.network, batch, {})
    total, weight = found(setup.model.network, batch, LossInputs())
    texts = [each.text for each in encoded]
    predict = [predictor(s.task, s.model.graphdef, s.mesh, (64,))(s.model.params) for s in (setup, teacher)]
    z, t = (np.stack(each(texts)).astype(np.float64) for each in predict)
    labels = [setup.task.labels.index(each.example.output) for each in encoded]
    own = -log_softmax(z, -1)[np.arange(len(z)), labels]
    p = softmax(t / 3, -1)
    soft = 9 * (p * (np.log(p) - log_softmax(z / 3, -1))).sum(-1)
    states = [np.asarray(each.model.network.hidden(batch), np.float64) for each in (setup, teacher)]
    there = np.asarray(batch.texts.segment_ids) > 0
    hidden = np.square(states[0] - states[1]).mean(-1)[there].mean()
    assert float(weight) == len(encoded)
    assert float(total / weight) == pytest.approx((0.3 * own + 0.7 * soft).mean() + 0.4 * hidden, rel=1e-5)


def test_teachers_are_neither_trained_nor_in_the_state(setup: Any, teacher: Any) -> None:
    teachers = of(DistilConfig(["a"]), teacher)
    before = jax.device_get(teacher.model.params)
    optimizer = optax.adam(1e-3)
    state = create_state(jax.tree.map(jnp.copy, setup.model.params), optimizer, 0)
    shardings = state_shardings(state, setup.model.shardings, setup.mesh)
    how: Any = dict(mesh=setup.mesh, shardings=shardings, teachers=teachers)
    step: Any = make_train_step(setup.task, setup.model.graphdef, optimizer, **how)
    batch = to_devices(setup.batch(), setup.mesh)
    text = step.lower(state, batch).as_text()
    assert "dense<" not in "".join(line for line in text.splitlines() if "x32xf32" in line), "no weights as constants"
    new, _ = step(jax.device_put(state, shardings), batch)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(teacher.model.params))


def test_hidden_states_of_another_width_are_named(setup: Any, tokenizer: Any, tmp_path: Path) -> None:
    config = tiny_config(len(tokenizer), hidden_size=16)
    save_pretrained(tmp_path, build_backbone(config, rngs=nnx.Rngs(7)), config)
    tokenizer.save_pretrained(tmp_path)
    teachers = of(DistilConfig(["a"], hidden=1.0), Setup("classification", tmp_path, tmp_path))
    batch = setup.batch()
    loss = distilled(setup.task, teachers, teachers.arrays, setup.model.network, batch, {})
    with pytest.raises(ValueError, match="the teacher has 16 features and this network 32"):
        jax.eval_shape(lambda: loss(setup.model.network, batch, LossInputs()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(weight=0.9), "distil.weight has no effect without distil.teachers"),
        (dict(teachers=["a"], temperature=0.0), "distil.temperature is 0.0, but should be positive"),
        (dict(teachers=["a"], weight=1.5), "distil.weight is 1.5"),
        (dict(teachers=["a"], hidden=-1.0), "distil.hidden is -1.0"),
    ],
)
def test_settings_out_of_range_are_named(setup: Any, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_distil(DistilConfig(**settings), setup.task, 1)
