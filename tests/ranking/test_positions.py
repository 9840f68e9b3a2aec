"""How much a reranker depends on the order of its candidates: scorers whose dependence is known."""

import numpy as np
import pytest

from instructrec_jax.ranking.positions import position_report


def test_position_report_of_a_scorer_that_likes_the_front() -> None:
    """Items are worth their number; whatever is listed first gets a bonus that moves it up by `bonus` places."""
    rng = np.random.default_rng(0)
    count, size, bonus = 400, 5, 2
    wanted = np.full(count, 2)  # of the items 0 to 4 always the third
    candidates = np.tile([0, 1, 3, 4], (count, 1))

    def score(listed: np.ndarray) -> np.ndarray:
        return listed + (bonus + 0.5) * (np.arange(size) == 0)

    found = position_report(score, wanted, candidates, orders=6, seed=int(rng.integers(9)))
    # Listed first, the wanted item is worth 4.5: rank 1. Elsewhere 4 and 3 are before it, and what comes first if that
    # is 0 (2.5) or 1 (3.5): rank 3, or 4 in two of four equally likely cases.
    assert found.hits_by_position.tolist() == [1, 0, 0, 0, 0]
    shift = found.rank_by_position
    assert shift[1:].mean() - shift[0] == pytest.approx(2.5, abs=0.1) and found.top_changes > 0.9
    assert "HR@1" in str(found) and len(str(found).splitlines()) == 2 + size


def test_position_report_of_a_scorer_that_does_not_care() -> None:
    rng = np.random.default_rng(1)
    wanted, candidates = np.zeros(50, int), np.tile(np.arange(1, 6), (50, 1))
    worth = np.array([3.0, 1, 3, 2, 0, 1])  # the best two are equal
    found = position_report(lambda listed: worth[listed], wanted, candidates, orders=4, seed=int(rng.integers(9)))
    assert found.top_changes == 0
    np.testing.assert_allclose(found.hits_by_position, 0.5)
    np.testing.assert_allclose(found.rank_by_position, 0)
    with pytest.raises(ValueError, match="task.orders"):
        position_report(lambda listed: worth[listed], wanted, candidates, orders=1)
