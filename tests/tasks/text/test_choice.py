"""Choosing by likelihood: the numbers are those of the teacher-forced loss of each candidate by itself."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_runs import changed

from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.example import Example, Message
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.distributed.mesh_config import MeshConfig
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.runs import data as run_data
from instructrec_jax.runs import model as models
from instructrec_jax.runs.config import Config
from instructrec_jax.tasks import ChoiceConfig, LanguageModelConfig

CASES = [
    Example(
        instruction="what is it", input="an old film", output="war", candidates=("love", "war", "space crime"), id="a"
    ),
    Example(instruction="which", output="very long book", candidates=("very long book", "bad"), id="b"),
    Example(
        instruction="",
        messages=(Message("system", "new or old"), Message("user", "good")),
        output="not good",
        candidates=("bright", "not good", "dull", "about love"),
        id="c",
    ),
]


def opened(folder: Path, task: Any, devices: int = 1) -> tuple[Any, Any]:
    config = changed(
        Config(task=task, data=DataConfig(batch_size=8, max_length=64)),
        backbone__path=str(folder),
        backbone__dtype="float32",
    )
    made: Any = models.open_task(config, folder)
    mesh = make_mesh(MeshConfig(fsdp=devices), jax.devices()[:devices])
    model = models.load_model(config, made, folder, mesh)
    return made, predictor(made, model.graphdef, mesh, run_data.buckets(config))(model.params)


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_likelihoods_are_those_of_each_answer_alone(kind: str, alpha: float, language_models: dict[str, Path]) -> None:
    task, predict = opened(language_models[kind], ChoiceConfig(template="plain", alpha=alpha), devices=2)
    scores = task.score(predict, task.encode(CASES))
    plain, predict_plain = opened(language_models[kind], LanguageModelConfig(template="plain"))
    for case, record in zip(CASES, scores.predictions, strict=True):
        answers = [replace(case, output=text, candidates=()) for text in case.candidates]
        alone = plain.score(predict_plain, plain.encode(answers)).predictions
        expected = {
            text: row["mean_log_probability"] * row["tokens"] / row["tokens"] ** alpha
            for text, row in zip(case.candidates, alone, strict=True)
        }
        assert record["candidates"] == pytest.approx(expected, abs=1e-4)
        assert record["prediction"] == max(expected, key=lambda text: expected[text])
        values = np.array(list(expected.values()))
        assert record["probability"] == pytest.approx(np.exp(values.max()) / np.exp(values).sum(), abs=1e-4)
        assert record["reference"] == case.output
    right = [r["prediction"] == r["reference"] for r in scores.predictions]
    assert scores.metrics["accuracy"] == pytest.approx(np.mean(right)) and f"** {alpha:g}" in scores.protocol


def test_calibration_subtracts_what_an_empty_question_says(language_models: dict[str, Path]) -> None:
    config = ChoiceConfig(template="plain", labels=["love", "war_film"], verbalizers={"love": "about love"})
    cases = [Example(instruction="a film", output="love"), Example(instruction="old", output="war_film")]
    task, predict = opened(language_models["llama"], config)
    raw = task.score(predict, task.encode(cases)).predictions
    empty = task.score(predict, task.encode([Example(instruction="N/A", output="love")])).predictions[0]["candidates"]
    other, predict = opened(language_models["llama"], replace(config, calibrate=True))
    found = other.score(predict, other.encode(cases))
    for before, after in zip(raw, found.predictions, strict=True):
        expected = {name: value - empty[name] for name, value in before["candidates"].items()}
        assert after["candidates"] == pytest.approx(expected, abs=1e-4)
    assert "macro_f1" in found.metrics and "minus that after 'N/A'" in found.protocol
    learnt = task.tokenizer.decode(task.encode(cases)[1].text.tokens)
    assert "wa ##r" in learnt and "_" not in learnt  # the label's words are learnt


def test_training_learns_the_right_answer_only(language_models: dict[str, Path]) -> None:
    task, _ = opened(language_models["llama"], ChoiceConfig(template="plain"))
    plain, _ = opened(language_models["llama"], LanguageModelConfig(template="plain"))
    for e, other in zip(task.encode(CASES), plain.encode(CASES), strict=True):
        np.testing.assert_array_equal(e.text.tokens, other.text.tokens)
        np.testing.assert_array_equal(e.target.labels, other.target.labels)
        np.testing.assert_array_equal(e.target.supervised, other.target.supervised)


def test_baselines(language_models: dict[str, Path]) -> None:
    task, _ = opened(language_models["llama"], ChoiceConfig(template="plain"))
    encoded = task.encode(CASES)
    rows = task.baselines(encoded, encoded)
    assert rows["chance"].metrics["accuracy"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 4) / 3)
    assert "TF-IDF cosine" in rows


def test_an_answer_that_is_no_candidate_is_named(language_models: dict[str, Path]) -> None:
    task, _ = opened(language_models["llama"], ChoiceConfig(template="plain"))
    with pytest.raises(ValueError, match="example 'a'.*'music'.*candidates"):
        task.encode([replace(CASES[0], output="music")])
    with pytest.raises(ValueError, match="task.alpha"):
        opened(language_models["llama"], ChoiceConfig(alpha=float("nan")))
