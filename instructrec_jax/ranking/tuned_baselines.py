"""Baselines with settings tuned on validation items, so that a run is not compared with weak ones."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from instructrec_jax.ranking.baselines import BPR, EASE, Baseline, CoOccurrence, ItemKNN
from instructrec_jax.ranking.fusion import BLOCK, mask, ndcg_at

B = TypeVar("B", bound=Baseline)
Grid = Mapping[str, Sequence[object]]

# Values in the order in which they are tried; the first one of each setting is where the search starts.
BPR_GRID: Grid = {"regularization": (0.03, 0.1, 0.3), "size": (64, 8)}
KNN_GRID: Grid = {
    "decay": (0.8, 0.5, 0.3, 0.95),
    "window": (10, 3, 1, 30),
    "backwards": (0.5, 0.0, 1.0),
    "divide_by": ("target", "source"),
}
ITEM_KNN_GRID: Grid = {"decay": (0.8, 1.0, 0.5), "shrink": (10.0, 0.0, 100.0), "neighbors": (100, 20, 500)}
EASE_GRID: Grid = {"decay": (0.8, 1.0, 0.5), "regularization": (250.0, 50.0, 1000.0)}
DECAY = "decay"  # weights of a history's items, which no fit depends on
FEW_INTERACTIONS = 20_000  # of randomly drawn users, for tuning what is slow to fit
CASES = 3  # last validation items of a user that are cases
MOST_CASES = 3_000  # of randomly drawn users


def tuned(
    make: Callable[..., B],
    grid: Grid,
    train: Sequence[ArrayLike],
    validation: Sequence[ArrayLike],
    num_items: int,
    *,
    most: int | None = None,
    seed: int = 0,
) -> B:
    """A baseline fitted to `train`, with the settings of `grid` tuned on validation items.

    One setting after the other is set to its best value, the others being as they are. Tuning maximizes NDCG@10 over
    all unseen items, on up to three last validation items of each user. Without validation items, settings are the
    first ones of the grid.

    Args:
      make: settings by name -> the baseline.
      train, validation: item numbers of each user, oldest first; either may be empty.
      most: interactions, of users drawn by `seed`, that tuning fits to and measures on; None: all of `train`. At most
        `MOST_CASES` cases are measured.
    """
    known, held_out = ([np.asarray(items, np.int64) for items in part] for part in (train, validation))
    users = np.random.default_rng(seed).permutation(len(known))
    if most is not None:
        total = np.cumsum([len(known[user]) + len(held_out[user]) for user in users])
        users = users[: max(1, int(np.searchsorted(total, most, side="right")))]
    cases = [case for user in users for case in _cases(known[user], held_out[user])][:MOST_CASES]
    chosen = {name: values[0] for name, values in grid.items()}
    if cases:
        latest: dict[tuple[object, ...], B] = {}  # the last one fitted, because decays are settings of scoring alone

        def quality(settings: dict[str, object]) -> float:
            key = tuple(value for name, value in settings.items() if name != DECAY)
            if key not in latest:
                latest.clear()
                latest[key] = make(**settings).fit(known if most is None else [known[u] for u in users], num_items)
            model = latest[key]
            vars(model).update({DECAY: settings[DECAY]} if DECAY in settings else {})
            return _quality(model, cases)

        for name, values in grid.items():
            found = {value: quality(chosen | {name: value}) for value in values}
            chosen[name] = max(values, key=found.__getitem__)
    return make(**chosen).fit(train, num_items)


def _cases(known: np.ndarray, held_out: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """(history, next item) of a user's last validation items."""
    whole = np.concatenate([known, held_out])
    return [(whole[:n], int(whole[n])) for n in range(max(1, len(known), len(whole) - CASES), len(whole))]


def _quality(model: Baseline, cases: Sequence[tuple[np.ndarray, int]]) -> float:
    """Mean NDCG@10."""
    gains = []
    for start in range(0, len(cases), BLOCK):
        histories, positives = zip(*cases[start : start + BLOCK], strict=True)
        seen = [history[history != item] for history, item in zip(histories, positives, strict=True)]
        gains.append(ndcg_at(mask(model.score(histories), seen), positives))
    return float(np.concatenate(gains).mean())


def _tuned_knn(train: Sequence[ArrayLike], validation: Sequence[ArrayLike], num_items: int) -> CoOccurrence:
    """coKNN, with the Markov chain (window 1, backwards 0) and that over a window (backwards 0) among its settings."""
    found = tuned(CoOccurrence, KNN_GRID, train, validation, num_items)
    found.name = "coKNN-tuned"
    return found


TUNED: Mapping[str, Callable[[Sequence[ArrayLike], Sequence[ArrayLike], int], Baseline]] = {
    "coKNN-tuned": _tuned_knn,
    ItemKNN.name: partial(tuned, ItemKNN, ITEM_KNN_GRID),
    EASE.name: partial(tuned, EASE, EASE_GRID),
    BPR.name: partial(tuned, BPR, BPR_GRID, most=FEW_INTERACTIONS),
}
"""Name -> a function of training and validation items of each user and the number of items: the fitted baseline."""


def tuned_fits(
    train: Sequence[ArrayLike], validation: Sequence[ArrayLike], num_items: int
) -> dict[str, Callable[[], Baseline]]:
    """Name of each tuned baseline -> a function that fits it; EASE is left out where items are too many for it."""
    names = [name for name in TUNED if name != EASE.name or num_items <= EASE.MOST_ITEMS]
    return {name: partial(TUNED[name], train, validation, num_items) for name in names}
