"""`scripts/generate_interactions.py`: the sizes asked for, long tails, the same bytes for the same seed."""

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instructrec_jax.preparation.readers import read_movielens

SCRIPT = Path(__file__).parents[1] / "scripts" / "generate_interactions.py"
spec: Any = importlib.util.spec_from_file_location("generate_interactions", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


def test_long_tails_of_the_sizes_asked_for(tmp_path: Path) -> None:
    assert script.write(tmp_path, 30_000, 300, 1_000, 0) == 30_000
    catalogue, found = read_movielens(tmp_path)
    assert (len(catalogue), len(found.user_ids), len(found)) == (1_000, 300, 30_000)
    of_users, of_items = np.bincount(found.user), np.sort(np.bincount(found.item, minlength=1_000))
    assert of_users.min() >= 20 and of_users.max() > 4 * np.median(of_users)
    assert of_items[-100:].sum() > 0.5 * len(found)  # a tenth of the items has most of the ratings
    assert len(set(zip(found.user.tolist(), found.item.tolist(), strict=True))) > 0.95 * len(found)
    assert found.timestamp is not None and (np.diff(found.timestamp)[np.diff(found.user) == 0] >= 0).all()


def test_users_prefer_a_few_genres(tmp_path: Path) -> None:
    script.write(tmp_path, 10_000, 100, 20_000, 3)
    catalogue, found = read_movielens(tmp_path)
    kinds = [title.rpartition(" ")[2] for title in catalogue.titles]
    shares = []
    for user in range(100):
        own = Counter(kinds[item] for item in found.item[found.user == user].tolist())
        shares.append(sum(count for _, count in own.most_common(3)) / sum(own.values()))
    assert np.median(shares) > 0.35  # of 50 kinds


def test_bytes_depend_on_the_settings_alone(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        script.write(tmp_path / name, 3_000, 50, 200, seed)
    a, b, c = ((tmp_path / name / "ratings.csv").read_bytes() for name in "abc")
    assert a == b != c


def test_too_few_items_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--items 30"):
        script.write(tmp_path, 10_000, 100, 30, 0)
    with pytest.raises(ValueError, match="--interactions"):
        script.write(tmp_path, 10, 100, 30, 0)
