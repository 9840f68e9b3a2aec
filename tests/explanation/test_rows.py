"""Explanations of several texts that share rows are those of each text alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import task_cases
from explained_runs import run_of
from task_cases import SLOW, _moved, examples_of

from instructrec_jax.explanation import gradients
from instructrec_jax.explanation.explain import Explainer, Explanation, methods_of
from instructrec_jax.explanation.rows import packed
from instructrec_jax.inference.writer import Generated
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.generation import written_objectives
from instructrec_jax.tasks.objective import Choice

networks = task_cases.networks  # a fixture
SHARED = ("classification", "token_classification", "retrieval", "language_model", "language_model, encoder–decoder")
ALIKE = ("multilabel", "regression", "similarity", "reranker", "language_model, gpt2", "classification, vit")
SAID = Generated("good film", "stop", 0.0)
TOLERANCE = 1e-5  # of the largest score: sums are added in another order


def assert_same(together: Explanation, alone: Explanation) -> None:
    assert (together.method, together.target, together.words) == (alone.method, alone.target, alone.words)
    assert (together.steps, together.unread) == (alone.steps, alone.unread)
    mine, theirs = (np.array([each.value, *each.parts], np.float64) for each in (together, alone))  # None: NaN
    np.testing.assert_allclose(mine, theirs, atol=TOLERANCE * max(1.0, np.nanmax(np.abs(theirs))))


@pytest.mark.parametrize(
    ("name", "lora"),
    [
        ("classification", False),
        *((name, True) for name in SHARED),
        *(pytest.param(name, False, marks=SLOW) for name in SHARED[1:]),
        *(pytest.param(name, lora, marks=SLOW) for name in ALIKE for lora in (False, True)),
    ],
)
def test_rows_change_nothing(
    name: str, lora: bool, networks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(written_objectives, "EXPLAINED", 2)
    run = Run.open(run_of(name, networks, tmp_path, **({"lora__rank": 2} if lora else {})))
    run.model.params = jax.tree_util.tree_map_with_path(_moved, run.model.params)  # LoRA's b begins at zero
    records = [replace(e, output=None) for e in examples_of(name)[:4]]
    choice = Choice(target="item-2" if name == "reranker" else None)
    explainer = Explainer(run, methods_of(run), most=8)  # rounding may decide whether there are more
    if run.task.writes:  # random networks may write nothing
        predict = replace(explainer.asker.predict, write=lambda prompts, *_, **__: [SAID] * len(prompts))
        explainer.asker = replace(explainer.asker, predict=predict)
    together = explainer.explain(records, choice)
    alone = [each for record in records for each in explainer.explain([record], choice)]
    assert len(together) == len(alone) >= 4 * len(explainer.methods)
    for mine, theirs in zip(together, alone, strict=True):
        assert_same(mine, theirs)
    asked = [each for e in records for each in explainer.of_example(explainer.asker.example(e, "here"), choice)]
    assert len(packed(run, asked)) < len(asked)  # they do share rows


def test_integrals_that_have_converged_take_no_more_steps(
    networks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps double for the other texts of a row only."""
    run, records = Run.open(run_of("classification", networks, tmp_path)), examples_of("classification")
    errors = [each.completeness_error for each in Explainer(run, most=8).explain(records)]
    middle = float(np.median(errors))
    monkeypatch.setattr(gradients, "TOLERANCE", middle)
    found = Explainer(run, most=16).explain(records)
    assert [each.steps for each in found] == [8 if error <= middle else 16 for error in errors]
    assert {each.steps for each in found} == {8, 16}
