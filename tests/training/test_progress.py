"""How far a run has come: which evaluation is the best, and what a damaged checkpoint says."""

import random
from dataclasses import replace

import pytest
from helpers import mutations

from instructrec_jax.training.progress import Progress


def evaluated(values: list[float], *, greater: bool = True) -> Progress:
    progress = Progress("data")
    for step, value in enumerate(values, 1):
        progress = progress.evaluated(step, value, greater=greater)
    return progress


@pytest.mark.parametrize(
    ("values", "greater", "best", "stale"),
    [
        ([0.1, 0.2], True, 2, 0),
        ([0.1, 0.2], False, 1, 1),
        ([0.5, 0.5, 0.5, 0.1], True, 3, 3),  # the latest of equal ones, none of which is better
        ([float("nan"), 0.5, float("nan"), 0.4], True, 2, 2),
        ([float("nan")], False, None, 1),
    ],
)
def test_the_best_evaluation(values: list[float], greater: bool, best: int | None, stale: int) -> None:
    progress = evaluated(values, greater=greater)
    assert (progress.best_step, progress.stale) == (best, stale)
    assert progress.out_of_patience(stale) and not progress.out_of_patience(stale + 1)
    assert not progress.out_of_patience(None)


def test_another_measure_forgets_the_best() -> None:
    progress = replace(evaluated([0.5, 0.4]), measure="accuracy")
    assert progress.measured_as("accuracy") == progress
    other = progress.measured_as("loss")
    assert (other.best_value, other.best_step, other.stale, other.measure) == (None, None, 0, "loss")


def test_json_and_back() -> None:
    progress = replace(evaluated([0.5]), tokens=7, stream={"epoch": 1}, measure="accuracy")
    assert Progress.from_json(progress.to_json(), "here") == progress
    first_version = {"tokens": 3, "stream": None, "best_value": 0.5, "best_step": 2, "stale": 1, "data": "x"}
    assert Progress.from_json(first_version, "here") == Progress("x", 3, None, 0.5, 2, 1)


def test_every_damage_is_named() -> None:
    whole = replace(evaluated([0.5]), tokens=7, stream={"epoch": 1}).to_json()
    refused = 0
    for value in mutations(whole, 500, random.Random(0)):
        try:
            assert Progress.from_json(value, "checkpoint 7") is not None
        except ValueError as error:
            refused += str(error).startswith("checkpoint 7: ")
        else:
            pytest.fail(f"accepted {value}")
    assert refused == 500
