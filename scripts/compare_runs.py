"""Compares two groups of ranking runs (such as seeds) on the same test cases, by their predictions.jsonl.

    python scripts/compare_runs.py --runs runs/ml/ours_* --with runs/ml/sasrec_*

NDCG@10 of a case = sum over its positive items of rank r <= 10 of 1 / log2(r + 1), divided by the same sum for the best
ranking; for a group, the mean over its runs. The interval is a paired bootstrap over users with all their cases (over
cases if the predictions name no users), 10,000 resamples. It covers the choice of users, not of seeds; the standard
deviation over a group's runs is printed beside it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from instructrec_jax.files import read_jsonl
from instructrec_jax.metrics.bootstrap import paired_bootstrap

CUTOFF = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", type=Path, required=True, help="run directories of one group")
    parser.add_argument(
        "--with", nargs="+", type=Path, required=True, dest="others", help="run directories of the other group"
    )
    arguments = parser.parse_args()
    first, second = group(arguments.runs), group(arguments.others)
    mean, low, high = difference(first, second)
    for name, (_, values) in (("runs", first), ("with", second)):
        means = values.mean(1)
        spread = f"standard deviation {means.std(ddof=1):.4f}" if len(means) > 1 else "one run"
        print(f"{name}: NDCG@{CUTOFF} {means.mean():.4f} over {len(means)} run(s), {spread}: {np.round(means, 4)}")
    ratio = first[1].mean() / second[1].mean()
    print(
        f"difference {mean:+.4f} [{low:+.4f}, {high:+.4f}], ratio {ratio:.3f}, "
        f"{len(first[0])} cases of {len(set(owners(first[0])))} users"
    )


Group = tuple[list[tuple[str, str]], np.ndarray]  # (id, user) of each case, and NDCG float64 [runs, cases]


def difference(first: Group, second: Group) -> tuple[float, float, float]:
    """The difference of the groups' means, and its interval."""
    if first[0] != second[0]:
        raise SystemExit("the two groups of runs were not tested on the same cases in the same order.")
    numbers = np.unique(owners(first[0]), return_inverse=True)[1]
    return paired_bootstrap(first[1].mean(0), second[1].mean(0), owners=numbers)


def owners(cases: Sequence[tuple[str, str]]) -> list[str]:
    return [user or f"case {name}" for name, user in cases]


class Prediction(TypedDict):
    """A line of predictions.jsonl: a case, its positive items and the items in order of rank."""

    id: str
    user: NotRequired[str]  # missing where the cases name no users
    reference: list[str]
    prediction: list[str]


def group(runs: Sequence[Path]) -> Group:
    cases: list[tuple[str, str]] = []
    values = []
    for run in runs:
        rows = read_jsonl(run / "predictions.jsonl", Prediction)
        found = [(row["id"], row.get("user", "")) for row in rows]
        if cases and found != cases:
            raise SystemExit(f"{run} was tested on other cases than {runs[0]}.")
        cases = found
        values.append([ndcg(row["reference"], row["prediction"]) for row in rows])
    return cases, np.array(values)


def ndcg(positives: list[str], ranked: list[str]) -> float:
    gains = 1 / np.log2(np.arange(2, CUTOFF + 2))
    hits = np.isin(ranked[:CUTOFF], positives)
    return float(gains[: len(hits)] @ hits / gains[: len(positives)].sum())


if __name__ == "__main__":
    main()
