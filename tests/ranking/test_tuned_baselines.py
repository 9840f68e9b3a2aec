import itertools

import numpy as np
import pytest

from instructrec_jax.ranking.baselines import BPR, EASE, CoOccurrence, ItemKNN
from instructrec_jax.ranking.tuned_baselines import KNN_GRID, TUNED, tuned

ITEMS = 20


@pytest.fixture
def parts() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Users of two kinds, each with ten items of its own: what they train on, and two later ones."""
    rng = np.random.default_rng(0)
    whole = [rng.permutation(10)[:7] + 10 * (user % 2) for user in range(60)]
    return [items[:5] for items in whole], [items[5:] for items in whole]


def test_settings_are_tuned_on_validation_items(parts: tuple[list[np.ndarray], list[np.ndarray]]) -> None:
    train, validation = parts
    grid = {"regularization": (100.0, 0.03), "size": (4,)}
    found = tuned(BPR, grid, train, validation, ITEMS, most=1_000_000)
    assert (found.size, found.regularization) == (4, 0.03)
    fitted = BPR(size=4, regularization=0.03).fit(train, ITEMS)
    np.testing.assert_array_equal(found.factors, fitted.factors)  # on all training items, and the same each time
    nothing = [np.empty(0, np.int32)] * len(train)
    assert tuned(BPR, grid, train, nothing, ITEMS).regularization == 100.0
    whole = [np.concatenate(both) for both in zip(train, validation, strict=True)]
    late = tuned(BPR, grid, [*train, *nothing], [*nothing, *whole], ITEMS)  # users of their own to validate on
    assert late.regularization == 0.03


def test_each_setting_has_its_best_value() -> None:
    """Items in circles, 0 → 1 → … → 9 → 0 and likewise 10 to 19: only the last item tells the next one."""
    rng = np.random.default_rng(1)
    circles = [(rng.integers(10) + np.arange(7)) % 10 + 10 * (user % 2) for user in range(40)]
    train, validation = [items[:5] for items in circles], [items[5:] for items in circles]
    found = tuned(CoOccurrence, KNN_GRID, train, validation, ITEMS)
    settings = [dict(zip(KNN_GRID, values, strict=True)) for values in itertools.product(*KNN_GRID.values())]
    histories, positives = [items[:6] for items in circles], np.array([items[6] for items in circles])

    def right(model: CoOccurrence) -> float:
        scores = model.score(histories)
        for case, history in enumerate(histories):
            scores[case, history] = -1
        return float((scores.argmax(1) == positives).mean())

    assert right(found) == max(right(CoOccurrence(**one).fit(train, ITEMS)) for one in settings) == 1.0


def test_every_tuned_baseline_has_its_name_and_knows_something(
    parts: tuple[list[np.ndarray], list[np.ndarray]],
) -> None:
    train, validation = parts
    for name, fit in TUNED.items():
        model = fit(train, validation, ITEMS)
        assert model.name == name
        scores = model.score(train)
        means = np.stack([scores[:, :10].mean(1), scores[:, 10:].mean(1)])  # of the items of each kind of users
        assert (means.argmax(0) == np.arange(len(train)) % 2).all(), name
        assert fit([], [], ITEMS).score([[1]]).shape == (1, ITEMS)
    assert {type(TUNED[name](train, validation, ITEMS)) for name in (EASE.name, ItemKNN.name)} == {EASE, ItemKNN}
