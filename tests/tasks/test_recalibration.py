"""Calibrations fitted on validation cases: compared with torch and scikit-learn, and their properties."""

from typing import Any

import numpy as np
import pytest
import scipy
import torch
from sklearn.linear_model import LogisticRegression

from instructrec_jax.metrics.calibration import Way
from instructrec_jax.metrics.uncertainty import probabilities
from instructrec_jax.tasks.averaging import Judged, log_loss
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.recalibration import FOLDS, Recalibration, _Fitting, fit_recalibration, quality

LABELS = ["a", "b", "c", "d"]


def cases(count: int = 300, temperature: float = 3.0, seed: int = 0) -> Judged:
    """Labels that follow softmax(z / temperature), so z itself is overconfident."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(count, 4)) * temperature * 1.5
    right = (z / temperature + rng.gumbel(size=z.shape)).argmax(-1)
    return Judged(z.astype(np.float32).astype(np.float64), right)


def decisions(count: int = 300, seed: int = 0) -> Judged:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(count, 4)) * 4
    right = rng.random(z.shape) < scipy.special.expit(z * [0.3, 0.5, 0.5, 1.0] + [1, 0, -1, 0])
    return Judged(np.stack([0 * z.ravel(), z.ravel()], -1), right.astype(np.int64).ravel())


def applied(found: Recalibration, judged: Judged) -> Judged:
    return Judged(found(judged.outputs), judged.right)


def test_the_temperature_is_the_one_that_made_the_labels() -> None:
    judged = cases(20_000)
    found = fit_recalibration("temperature", "labels", judged, LABELS)
    assert 1 / found.scale[0] == pytest.approx(3.0, rel=0.05)
    after = quality(applied(found, judged))
    assert after["ece"] < 0.02 < quality(judged)["ece"] and after["nll"] < quality(judged)["nll"]


@pytest.mark.parametrize("seed", range(5))
def test_a_temperature_changes_no_prediction(seed: int) -> None:
    judged = cases(seed=seed, temperature=[0.2, 0.5, 1, 3, 9][seed])
    found = fit_recalibration("temperature", "labels", judged, LABELS)
    near = np.nextafter(np.float32(1), np.float32(2))
    z = np.concatenate([judged.outputs.astype(np.float32), np.array([[1, near, 0, 1]], np.float32)])
    np.testing.assert_array_equal(found(z).argmax(-1), z.argmax(-1))
    np.testing.assert_array_equal(probabilities(found(z)).argmax(-1), z.argmax(-1))


@pytest.mark.parametrize("way", ["temperature", "per_class"])
@pytest.mark.parametrize("kind", ["labels", "decisions"])
@pytest.mark.parametrize("seed", range(4))
def test_the_log_loss_never_grows(way: Way, kind: Any, seed: int) -> None:
    judged = cases(60, [0.5, 1, 2, 8][seed], seed) if kind == "labels" else decisions(60, seed)
    found = fit_recalibration(way, kind, judged, LABELS)
    if kind == "labels":
        after = applied(found, judged)
    else:
        z = found(judged.outputs[:, 1].reshape(-1, 4)).ravel()
        after = Judged(np.stack([0 * z, z], -1), judged.right)
    assert log_loss(after) <= log_loss(judged)


def test_a_scale_and_bias_for_each_label_are_those_of_torch() -> None:
    """With the pull that was chosen; the loss is convex, so any optimizer finds the same."""
    judged = cases(400)
    judged = Judged(judged.outputs * [1, 2, 0.5, 1] + [0, 1, 0, -2], judged.right)
    fitting = _Fitting.of("labels", judged, 4, 3.0)
    scale, bias = fitting.fit(np.arange(400), 10.0)
    z, right = torch.tensor(judged.outputs), torch.tensor(judged.right)
    both = torch.tensor([[1 / 3.0] * 4, [0.0] * 4], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([both], max_iter=1000, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimizer.zero_grad()
        pulled = 10.0 * (((3.0 * both[0] - 1) ** 2).sum() + (both[1] ** 2).sum()) / 800
        loss = torch.nn.functional.cross_entropy(z * both[0] + both[1], right) + pulled
        loss.backward()
        return loss

    optimizer.step(closure)
    np.testing.assert_allclose([scale, bias], both.detach().numpy(), atol=2e-4)


def test_decisions_without_a_pull_are_platt_scaling() -> None:
    judged = decisions(2000)
    scale, bias = _Fitting.of("decisions", judged, 4, 2.0).fit(np.arange(2000), 1e-9)
    z, truth = judged.outputs[:, 1].reshape(-1, 4), judged.right.reshape(-1, 4)
    for label in range(4):
        wanted = LogisticRegression(C=np.inf, tol=1e-8).fit(z[:, [label]], truth[:, label])
        assert (scale[label], bias[label]) == pytest.approx((wanted.coef_[0, 0], wanted.intercept_[0]), abs=2e-3)


def test_few_cases_are_pulled_to_the_temperature() -> None:
    """What made the labels is a temperature, so the fit with few cases stays near it, and is no worse on others."""
    few, many = cases(60), cases(5000, seed=9)
    one = fit_recalibration("temperature", "labels", few, LABELS)
    each = fit_recalibration("per_class", "labels", few, LABELS)
    free, shift = _Fitting.of("labels", few, 4, 1 / one.scale[0]).fit(np.arange(60), 1e-9)
    loose = Recalibration("per_class", tuple(free.tolist()), tuple(shift.tolist()))
    assert log_loss(applied(each, many)) < log_loss(applied(loose, many))
    assert np.abs(np.array(each.scale) / one.scale[0] - 1).max() < np.abs(free / one.scale[0] - 1).max()


def test_labels_with_too_few_cases_are_named() -> None:
    judged = cases()
    judged = Judged(judged.outputs, np.where(judged.right == 2, 0, judged.right))
    with pytest.raises(ValueError, match=rf"per_class needs {FOLDS} .* c \(0\): .*temperature"):
        fit_recalibration("per_class", "labels", judged, LABELS)
    never = decisions()
    right = never.right.reshape(-1, 4).copy()
    right[:, 1] = 1
    with pytest.raises(ValueError, match=r"b \(0\)"):
        fit_recalibration("per_class", "decisions", Judged(never.outputs, right.ravel()), LABELS)


def test_cases_without_a_best_temperature_are_named() -> None:
    z = np.eye(4)[np.arange(40) % 4] * 5
    for right in (np.arange(40) % 4, (np.arange(40) + 1) % 4):  # all right: T -> 0; all wrong: T -> infinity
        with pytest.raises(ValueError, match="no temperature"):
            fit_recalibration("temperature", "labels", Judged(z, right), LABELS)
    with pytest.raises(ValueError, match="not finite"):
        fit_recalibration("temperature", "labels", Judged(np.where(z == 5, np.nan, z), np.zeros(40, int)), LABELS)


@pytest.mark.parametrize(
    "broken",
    [
        ("temperature", (0.0,), (0.0,)),
        ("temperature", (float("nan"),), (0.0,)),
        ("temperature", (1.0,), (0.5,)),
        ("per_class", (1.0, 2.0), (0.0,)),
        ("per_class", (), ()),
    ],
)
def test_numbers_that_are_no_calibration_are_named(broken: Any) -> None:
    with pytest.raises(ValueError, match="scales"):
        Recalibration(*broken)


def test_it_stands_behind_a_model_and_behind_the_average_of_an_ensemble() -> None:
    found = Recalibration("per_class", (2.0, 1.0), (0.0, 1.0))
    one: Any = Predict(lambda texts, own=None, dropout=None: [np.array([1.0, 2.0])] * len(texts))
    texts: Any = ["x", "y"]
    np.testing.assert_array_equal(found.behind(one)(texts), [[2, 3], [2, 3]])
    several = Predict(one.run, members=(one, one), average=lambda said: np.mean(said, 0))
    np.testing.assert_array_equal(found.behind(several).average([np.array([0.0, 2.0]), np.array([2.0, 2.0])]), [2, 3])
    assert found.behind(several).members == (one, one)
