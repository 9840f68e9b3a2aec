"""Each task is explained by every method that its network allows, or says by name that it cannot be."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import task_cases
from explained_runs import run_of
from task_cases import CASES, SLOW, examples_of

from instructrec_jax.explanation.explain import Explainer, Explanation, methods_of
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.generation import written_objectives
from instructrec_jax.tasks.objective import Choice

networks = task_cases.networks  # a fixture
CANNOT = {
    "classification, whisper": "a run that reads sounds",
    "transcription": "a run that reads sounds",
    "masked_lm": "predicts nothing",
    "image_tokenization": "predicts nothing|cannot explain",
    **dict.fromkeys(("span", "extractive_summarization"), "cannot explain the task"),
    **dict.fromkeys(("position_translation", "position_translation, ctc"), "cannot explain the task"),
    **{
        name: "cannot explain the task"
        for name in CASES
        if name.startswith(("text_to_image", "preference", "generative"))
    },
    "multitask": "cannot explain the task",
}
QUICK = ("classification, vit", "contrastive", "language_model, llava", "span")


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=SLOW) for name in CASES])
def test_explained_or_named(name: str, networks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written_objectives, "EXPLAINED", 2)
    run = Run.open(run_of(name, networks, tmp_path))
    records = [replace(e, output=e.output if name == "contrastive" else None) for e in examples_of(name)[2:4]]
    choice = Choice(target="item-2" if name.startswith(("reranker", "language_model_ranking")) else None)
    if name in CANNOT:
        with pytest.raises(ValueError, match=CANNOT[name]):
            Explainer(run, methods_of(run), most=16).explain(records, choice)
        return
    explainer = Explainer(run, methods_of(run), most=16)
    if not name.startswith(("sequence", "choice", "language_model_ranking")):
        assert {"integrated", "gradient", "occlusion"} <= {*explainer.methods}
    found = explainer.explain(records, choice)
    assert len(found) >= 2 * len(explainer.methods)
    for first in range(0, len(found), len(explainer.methods)):
        assert_sensible(found[first : first + len(explainer.methods)])


def assert_sensible(same: list[Explanation]) -> None:
    """The explanations of one number by all methods."""
    value = same[0].value
    for each in same:
        scores = [score for score in each.parts if score is not None]
        assert each.words or each.pictures or each.history, "nothing is explained"
        assert each.value == pytest.approx(value, abs=1e-4) and np.isfinite([each.value, *scores]).all()
        assert each.words == same[0].words and len(each.parts) == len(same[0].parts)
        if each.method == "rollout":
            assert min(scores) >= 0 and sum(scores) <= 1 + 1e-5
        else:
            assert any(scores), each.method
        if each.method == "integrated":
            assert each.converged == (each.completeness_error <= 0.01)
