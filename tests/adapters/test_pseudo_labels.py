"""What one view learns from another, against NumPy in float64, formula by formula."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from instructrec_jax.adapters.pseudo_labels import Marginals, learned
from instructrec_jax.adapters.soft_targets import SoftOutputs

RNG = np.random.default_rng(0)
ROWS, SEGMENTS, CLASSES = 6, 5, 5
WEAK, STRONG = (2 * RNG.normal(size=(ROWS, SEGMENTS, CLASSES)) for _ in range(2))
WEIGHTS = (RNG.random((ROWS, SEGMENTS)) < 0.8).astype(np.float64)
TRUTH = RNG.integers(-1, CLASSES, (ROWS, SEGMENTS))
PREDICTED, LABELED = RNG.dirichlet(np.ones(CLASSES)), RNG.dirichlet(np.ones(CLASSES))
CONFIDENCE = 0.7


def outputs(values: np.ndarray, kind: Any = "classes", targets: np.ndarray | None = TRUTH) -> SoftOutputs:
    return SoftOutputs(kind, jnp.asarray(values, jnp.float32), jnp.asarray(WEIGHTS, jnp.float32), targets=targets)


def marginals() -> Marginals:
    return Marginals(jnp.float32(PREDICTED), jnp.float32(CONFIDENCE), jnp.float32(LABELED))


def expected(
    method: str, threshold: float, temperature: float = 1.0, *, align: bool = False, per_class: bool = False
) -> dict[str, float]:
    found = dict.fromkeys(("loss", "used", "known", "right", "threshold"), 0.0)
    for row in range(ROWS):
        for place in range(SEGMENTS):
            p, q = softmax(WEAK[row, place]), softmax(STRONG[row, place])
            if align:
                p = p * LABELED / PREDICTED
                p = p / p.sum()
            guess = int(p.argmax())
            least = CONFIDENCE * PREDICTED[guess] / PREDICTED.max() if per_class else threshold
            counts = method == "pi_model" or p.max() >= least
            if method == "pi_model":
                loss = ((p - q) ** 2).mean()
            elif method == "uda":
                sharp = p ** (1 / temperature)
                sharp = sharp / sharp.sum()
                loss = (sharp * (np.log(sharp) - np.log(q))).sum()
            else:
                loss = -np.log(q[guess])
            w = WEIGHTS[row, place]
            found["loss"] += w * counts * loss
            found["used"] += w * counts
            found["known"] += w * counts * (TRUTH[row, place] >= 0)
            found["right"] += w * counts * (TRUTH[row, place] == guess)
            found["threshold"] += w * least
    return found


@pytest.mark.parametrize(
    ("method", "threshold", "more"),
    [
        ("self_training", 0.0, {}),
        ("self_training", 0.5, {}),
        ("fixmatch", 0.8, {}),
        ("fixmatch", 0.8, {"align": True}),
        ("fixmatch", 0.0, {"per_class": True}),
        ("fixmatch", 0.0, {"align": True, "per_class": True}),
        ("uda", 0.6, {"temperature": 0.4}),
        ("uda", 0.6, {"temperature": 0.4, "align": True}),
        ("pi_model", 0.0, {}),
    ],
)
def test_classes(method: Any, threshold: float, more: dict[str, Any]) -> None:
    found = learned(method, outputs(WEAK), outputs(STRONG), threshold=threshold, marginals=marginals(), **more)
    wanted = expected(method, threshold, **more)
    if method != "pi_model" and threshold:
        assert 0 < wanted["used"] < WEIGHTS.sum(), "some count, some do not"
    for name, value in wanted.items():
        assert float(getattr(found, name)) == pytest.approx(value, rel=2e-5, abs=1e-6), name


def test_independent_labels_are_decisions_between_two_classes() -> None:
    targets = RNG.integers(-1, 2, (ROWS, SEGMENTS, CLASSES)).astype(np.float32)
    found = learned("fixmatch", outputs(WEAK, "labels", targets), outputs(STRONG, "labels"), threshold=0.9)
    p, own = 1 / (1 + np.exp(-WEAK)), log_softmax(np.stack([STRONG, 0 * STRONG], -1), -1)
    sure = np.maximum(p, 1 - p) >= 0.9
    each = -np.where(p > 0.5, own[..., 0], own[..., 1]) * sure
    assert float(found.loss) == pytest.approx((WEIGHTS * each.mean(-1)).sum(), rel=1e-5)
    known = sure & (targets >= 0)
    assert float(found.known) == pytest.approx((WEIGHTS * known.mean(-1)).sum(), rel=1e-5)
    assert float(found.right) == pytest.approx((WEIGHTS * (known & ((p > 0.5) == targets)).mean(-1)).sum(), rel=1e-5)


def test_numbers_are_compared_by_their_distance() -> None:
    one, other = (outputs(x[..., :1], "numbers", None) for x in (WEAK, STRONG))
    found = learned("pi_model", one, other)
    wanted = (WEIGHTS * ((WEAK - STRONG) ** 2)[..., 0]).sum()
    assert float(found.loss) == pytest.approx(wanted, rel=1e-5)
    assert float(found.used) == pytest.approx(WEIGHTS.sum()) and float(found.known) == 0


@pytest.mark.parametrize("method", ["self_training", "fixmatch", "uda", "pi_model"])
def test_the_weak_view_has_no_gradient(method: Any) -> None:
    def loss(weak: jax.Array, strong: jax.Array) -> jax.Array:
        return learned(method, outputs(weak), outputs(strong), temperature=0.5).loss  # type: ignore[arg-type]

    weak, strong = jax.grad(loss, (0, 1))(jnp.float32(WEAK), jnp.float32(STRONG))
    assert not np.any(weak) and np.abs(strong).max() > 1e-3
