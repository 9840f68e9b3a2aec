"""The loss of unlabeled examples within the step; the formulas are in tests/adapters/test_pseudo_labels.py."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import task_cases
from helpers import assert_close
from task_cases import SEED, SLOW, Built, alone, buffers_of, texts_of

from instructrec_jax.adapters.soft_targets import SoftOutputs
from instructrec_jax.data.batch import Batch, Rows, Views, lay_out, lengths_of
from instructrec_jax.data.loader import to_devices
from instructrec_jax.data.packing import Plan, fit, unpacked
from instructrec_jax.distributed.mesh import data_shards
from instructrec_jax.tasks.base import LossInputs
from instructrec_jax.training.semi_supervised import SUMS, check_semi_supervised, in_front, with_memory
from instructrec_jax.training.state import create_state, state_shardings
from instructrec_jax.training.step import make_train_step
from instructrec_jax.training.training_config import SemiSupervisedConfig

networks = task_cases.networks  # a fixture
HALF = task_cases.COUNT // 2
UDA = SemiSupervisedConfig("uda", threshold=0.01, temperature=0.7, weight=2.0, teacher_decay=0.5)
FIXMATCH = SemiSupervisedConfig("fixmatch", per_class_thresholds=True, align=True, momentum=0.5, ramp_up=3)
HOW = {
    "classification": FIXMATCH,
    "multilabel": UDA,
    "regression": SemiSupervisedConfig("pi_model", weight=0.1),
    "token_classification": FIXMATCH,
    "similarity": UDA,
    "reranker": SemiSupervisedConfig("self_training", teacher_decay=0.9),
    "reranker, listwise": SemiSupervisedConfig("pi_model", weight=3.0, teacher_decay=0.9),
    "retrieval": UDA,
    "retrieval, full": UDA,
    "multitask": SemiSupervisedConfig("pi_model"),
}


def views_of(made: Built) -> tuple[Any, Any, Any]:
    """The texts of labeled examples, and of a weak and a strong view of others, which has other words."""
    task, encoded = made.task, list(made.encoded)

    def changed(example: Any) -> Any:
        text = example.instruction.replace("good", "very").replace("film", "book").replace("the", "dull")
        more = "" if isinstance(example.output, tuple) and "other" in example.output else " short"
        return replace(example, instruction=text + more)

    weak = encoded[HALF:]
    strong = task.encode([changed(e.example) for e in weak])
    rng = np.random.default_rng
    return (
        texts_of(task, encoded[:HALF]),
        task.gather(weak, rng(SEED)),
        task.gather(strong, rng(SEED)),
    )


def plan_of(made: Built, lengths: np.ndarray, rows: int | None) -> Plan:
    """One text in a row, or (with a divisor of the number of rows) several."""
    if rows is None:
        return unpacked(lengths, made.config.data.max_length, 1)
    room = max(-(-2 * int(lengths.max()) // 8) * 8, 16)
    plan = fit(lengths, room)
    count = -(-plan.rows // rows) * rows
    return replace(plan, rows=count, row=plan.row * (count // plan.rows))


def batch_of(made: Built, rows: int | None) -> Batch:
    labeled, weak, strong = views_of(made)
    sizes = [lengths_of(each.texts)[0] for each in (labeled, weak, strong)]
    own = lay_out(labeled, plan_of(made, sizes[0], rows))
    plan = plan_of(made, np.maximum(*sizes[1:]), rows)
    return replace(own, unlabeled=Views(lay_out(weak, plan), lay_out(strong, plan)))


def after_steps(
    made: Built, batch: Batch, how: SemiSupervisedConfig, accumulation: int = 1, steps: int = 2
) -> tuple[dict[str, float], Any]:
    """(the sums of all steps, the state)."""
    # numbers of words and cosines over a temperature have gradients in the hundreds: parameters stay of size one
    large = any(kind in made.config.task.name for kind in ("regression", "similarity", "retrieval", "multitask"))
    optimizer = optax.sgd(0.001 if large else 0.3)
    params = jax.tree.map(jnp.copy, made.model.params)
    state = create_state(params, optimizer, SEED, is_frozen=made.model.is_frozen, buffers=buffers_of(made))
    state = with_memory(how, state, made.task)
    shardings = state_shardings(state, made.model.shardings, made.mesh)
    settings: Any = dict(mesh=made.mesh, shardings=shardings, accumulation=accumulation, semi_supervised=how)
    step: Any = make_train_step(made.task, made.model.graphdef, optimizer, **settings)
    state = jax.device_put(state, shardings)
    for _ in range(steps):
        state, sums = step(state, to_devices(batch, made.mesh))
    return {name: float(value) for name, value in sums.items()}, jax.device_get(state)


FAST = ("classification", "token_classification", "reranker, listwise")  # the others with -m slow


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=SLOW) for name in HOW])
def test_packed_split_and_spread_as_one_batch(name: str, networks: Any, tmp_path: Path) -> None:
    """One text in a row on one device = several in a row, in two micro-batches on eight devices; with LoRA."""
    found = {}
    for parts, mesh in ((1, (1, 1, 1)), (2, task_cases.CASES[name].mesh)):
        made = alone(name, networks, tmp_path, dropout=True, lora=True, mesh=mesh)
        batch = batch_of(made, None if parts == 1 else parts * data_shards(made.mesh))
        found[parts] = after_steps(made, batch, HOW[name], parts)
    (one, state), (other, split) = found[1], found[2]
    assert one["pseudo_used"] > 0 and one["unlabeled_loss"] > 1e-4
    for value in ("loss", "weight", *SUMS):
        assert other[value] == pytest.approx(one[value], rel=1e-4, abs=1e-5), value
    assert_close(split.params, state.params, atol=2e-5)
    assert_close(split.teacher, state.teacher, atol=2e-5)
    assert_close(split.marginals, state.marginals, atol=2e-5)


def test_hidden_labels_are_for_the_log_alone(networks: Any, tmp_path: Path) -> None:
    """Other labels of unlabeled examples: the same parameters, another accuracy; without them, none."""
    made = alone("classification", networks, tmp_path, dropout=True, lora=False)
    batch, found = batch_of(made, None), []
    views = batch.unlabeled
    assert views is not None

    def labeled(change: Any) -> Batch:
        own = [
            replace(each, own=replace(each.own, targets=change(each.own.targets)))
            for each in (views.weak, views.strong)
        ]
        return replace(batch, unlabeled=Views(*own))

    for change in (lambda x: x, lambda x: (x + 1) % 5, lambda x: 0 * x - 1):
        found.append(after_steps(made, labeled(change), replace(FIXMATCH, momentum=0.9)))
    (sums, state), *others = found
    for other, changed in others:
        jax.tree.map(np.testing.assert_array_equal, state, replace(changed, window=state.window))
        assert other["loss"] == sums["loss"] and other["pseudo_used"] == sums["pseudo_used"]
    assert sums["pseudo_right"] != others[0][0]["pseudo_right"]
    assert sums["pseudo_known"] > 0 == others[1][0]["pseudo_known"]


def test_the_step_adds_the_mean_over_all_unlabeled_examples(networks: Any, tmp_path: Path) -> None:
    """Σ w ℓ / Σ w + λ Σ m ℓ' / N; λ rises as exp(-5 (1 - step / ramp_up)²)."""
    made = alone("classification", networks, tmp_path, dropout=False, lora=False)
    batch = batch_of(made, None)
    plain = made.task.loss(made.task.view(made.model.network), replace(batch, unlabeled=None), LossInputs())
    for ramp, factor in ((0, 0.5), (4, 0.5 * np.exp(-5))):
        how = SemiSupervisedConfig("self_training", weight=0.5, ramp_up=ramp)
        sums, _ = after_steps(made, batch, how, steps=1)
        assert sums["unlabeled"] == HALF == sums["pseudo_used"]
        mean = float(plain[0] / plain[1]) + factor * sums["unlabeled_loss"] / HALF
        assert sums["loss"] / sums["weight"] == pytest.approx(mean, rel=1e-5)


def test_the_teacher_is_an_exponential_average(networks: Any, tmp_path: Path) -> None:
    """θ' ← d θ' + (1 - d) θ with d = min(decay, 1 - 1 / (step + 1)), of what is trained alone."""
    made = alone("classification", networks, tmp_path, dropout=False, lora=True)
    batch, how = batch_of(made, None), SemiSupervisedConfig("uda", threshold=0.0, teacher_decay=0.6)
    expected = None
    for steps in (1, 2, 3):
        _, state = after_steps(made, batch, how, steps=steps)
        decay = min(0.6, 1 - 1 / steps)
        own = jax.tree.map(np.float64, state.params)
        expected = own if expected is None else jax.tree.map(lambda o, n, d=decay: d * o + (1 - d) * n, expected, own)
        assert_close(state.teacher, expected, atol=1e-6)
    assert jax.tree.structure(state.teacher) == jax.tree.structure(state.params)
    own_loss = [after_steps(made, batch, replace(how, teacher_decay=decay), steps=3)[0] for decay in (0.0, 0.6)]
    assert own_loss[0]["loss"] != own_loss[1]["loss"], "the weak view is read with it"


def test_words_of_two_views_meet_wherever_their_tokens_are() -> None:
    """Row 0 has words at tokens 1, 2, 5 of one view and at 1, 4, 6 of the other."""

    def view(places: list[int]) -> tuple[SoftOutputs, Batch]:
        weights = np.zeros((1, 8), np.float32)
        weights[0, places] = 1
        values = np.zeros((1, 8, 1), np.float32)
        values[0, places, 0] = [10, 11, 12]
        rows = Rows(*[np.zeros((1, 8), np.int32)] * 3)
        batch = Batch(rows, np.zeros((1, 8), np.int32), np.zeros((1, 1), np.int32), None, None)
        return SoftOutputs("classes", jnp.asarray(values), weights, targets=values[..., 0]), batch

    for places in ([1, 2, 5], [1, 4, 6]):
        found = in_front(*view(places))
        assert found.values[0, :3, 0].tolist() == [10, 11, 12] == np.asarray(found.targets)[0, :3].tolist()
        assert found.weights[0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("classification", dict(method="none", weight=2.0), "semi_supervised.weight has no effect without"),
        ("classification", dict(method="fixmatch", temperature=0.5), "temperature has no effect with method: fixmatch"),
        ("classification", dict(method="pi_model", threshold=0.5), "threshold has no effect with method: pi_model"),
        ("classification", dict(per_class_thresholds=True, threshold=0.5), "threshold has no effect with per_class"),
        ("classification", dict(momentum=0.5), "momentum has no effect without align"),
        ("classification", dict(ratio=0.0), "semi_supervised.ratio is 0.0, but should be positive"),
        ("classification", dict(threshold=1.5), "semi_supervised.threshold is 1.5, but should be a probability"),
        ("classification", dict(teacher_decay=1.0), "semi_supervised.teacher_decay is 1.0"),
        ("regression", {}, "task.type regression predicts numbers, .* use pi_model"),
        ("multitask", {}, "task.type multitask regression predicts numbers"),
        ("multilabel", dict(align=True), "semi_supervised.align compares classes, but task.type multilabel"),
        (
            "retrieval",
            dict(per_class_thresholds=True),
            "per_class_thresholds compares classes, but task.type retrieval",
        ),
        ("span", {}, "task.type span does not learn from data.unlabeled"),
        ("setfit", {}, "task.type setfit does not learn from data.unlabeled"),
        ("language_model", {}, "task.type language_model does not learn"),
        ("sequence", {}, "task.type sequence does not learn"),
        ("classification, vit", {}, "reads images or sounds"),
    ],
)
def test_settings_that_cannot_be_are_named(
    name: str, settings: Any, message: str, networks: Any, tmp_path: Path
) -> None:
    made = alone(name, networks, tmp_path, dropout=False, lora=False)
    how = SemiSupervisedConfig(**({"method": "fixmatch"} | settings))
    with pytest.raises(ValueError, match=message):
        check_semi_supervised(how, made.task, made.config.task.name)
