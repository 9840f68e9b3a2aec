"""What an evaluation measures is what the other verbs answer, for every task that one of them answers for.

Hybrids and two stages are compared in test_evaluate.py.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import SUBJECTS, examples, task_config
from tiny_runs import untrained_run

from instructrec_jax import evaluate
from instructrec_jax.answering.classifier import Classifier, open_tagger
from instructrec_jax.answering.desk import tagged
from instructrec_jax.answering.language_model import LanguageModel
from instructrec_jax.answering.recommender import Recommender
from instructrec_jax.answering.requests import Request
from instructrec_jax.data.example import Example
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.files import read_jsonl, write_jsonl
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.metrics.uncertainty import probabilities
from instructrec_jax.runs.run import Run, require_finished
from instructrec_jax.service.answerers import Predicting
from instructrec_jax.tasks import (
    DialogueConfig,
    QuestionAnsweringConfig,
    SummarizationConfig,
    TokenClassificationConfig,
    TranslationConfig,
)

WRITING = {
    "question_answering": QuestionAnsweringConfig,
    "summarization": SummarizationConfig,
    "translation": TranslationConfig,
    "dialogue": DialogueConfig,
}
RANKING = ("retrieval", "sequence", "reranker", "language_model_ranking")


def measured(path: Path, cases: list[Example]) -> list[dict[str, Any]]:
    """The predictions of an evaluation."""
    run = Run.open(path)
    return list(run.task.score(run.predictor, run.task.encode(cases)).predictions)


@pytest.mark.parametrize("kind", RANKING)
def test_rankings(kind: str, checkpoint: Path, language_models: dict[str, Path], tmp_path: Path) -> None:
    """A ranking of candidates is the ranking of the catalogue, without what is no candidate."""
    cases = examples(kind, 12)
    network = language_models["llama"] if kind == "language_model_ranking" else checkpoint
    run = untrained_run(tmp_path / "run", task_config(kind, tmp_path / "catalogue"), network, 64)
    requests = [Request(prompt=e.instruction, history=[f"id:{item}" for item in e.history]) for e in cases]
    answers = Recommender(run).recommend(requests, k=12, evidence=False)
    for said, answer in zip(measured(run, cases), answers, strict=True):
        assert answer.error is None
        ranked = [r.item for r in answer.recommendations]
        assert [item for item in ranked if item in said["prediction"]] == [i for i in said["prediction"] if i in ranked]
        assert len(set(ranked) & set(said["prediction"])) >= 5


def test_labels(checkpoint: Path, tmp_path: Path) -> None:
    cases = examples("classification", 12)
    run = untrained_run(tmp_path / "run", task_config("classification", tmp_path), checkpoint, 64)
    model = Classifier([run])
    shares = model.members_of([model.encode(e.instruction, "here") for e in cases])[0]
    said = measured(run, cases)
    assert [model.labels[number] for number in shares.argmax(-1)] == [record["prediction"] for record in said]
    np.testing.assert_allclose(shares.max(-1), [record["probability"] for record in said], atol=1e-6)


def test_slots(checkpoint: Path, tmp_path: Path) -> None:
    task = TokenClassificationConfig(labels=["B-subject", "O"])
    run = untrained_run(tmp_path / "run", task, checkpoint, 64)
    texts = [e.instruction for e in examples("classification", 12)]
    cases = [
        Example(instruction=t, output=tuple("B-subject" if w in SUBJECTS else "O" for w in t.split())) for t in texts
    ]
    tagger = open_tagger(run)
    for text, record in zip(texts, measured(run, cases), strict=True):
        marked = [word for word, tag in zip(text.split(), record["prediction"], strict=True) if tag == "B-subject"]
        assert tagged(tagger, text, "here") == ({"subject": ", ".join(dict.fromkeys(marked))} if marked else {})


@pytest.mark.parametrize("kind", ["classification", "retrieval"])
def test_ensembles(kind: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `evaluate --average` writes is what predict, watch, assist, recommend and the service answer."""
    data = tmp_path / "test.jsonl"
    cases = examples(kind, 12)
    write_jsonl(data, [example.to_record() for example in cases])
    sources = {f"data__{split}": [SourceConfig(path=str(data))] for split in ("validation", "test")}
    task = task_config(kind, tmp_path / "catalogue")
    changes = sources | {"backbone__random_init": True}
    runs = [untrained_run(tmp_path / f"run{seed}", task, checkpoint, 64, seed=seed, **changes) for seed in range(2)]
    folder = tmp_path / "E"
    evaluate.main(
        [*map(str, runs), "--average", "probability", "--calibrate", "--weights", "tuned", "--out", str(folder)]
    )
    printed = capsys.readouterr().out
    for shown in ("ensemble", "run0 (1)", "run1 (2)", "mean member", "Paired differences", "tuned on"):
        assert shown in printed
    table = json.loads((folder / "evaluation.json").read_text())
    values = {row["name"]: row["values"] for row in table["rows"]}
    metric = Run.open(folder).task.metric
    alone = [values[name][metric] for name in ("run0 (1)", "run1 (2)")]
    assert values["mean member"][metric] == pytest.approx(np.mean(alone))
    said = read_jsonl(folder / "predictions.jsonl")
    require_finished(folder, None)
    if kind == "retrieval":
        requests = [Request(prompt=e.instruction, history=[f"id:{item}" for item in e.history]) for e in cases]
        answers = Recommender(folder).recommend(requests, k=10, evidence=True)
        ranked = [[r.item for r in answer.recommendations] for answer in answers]
        predicted = [[item.id for item in answer.items] for answer in Run.open(folder).predict(cases)]
        for case, record in enumerate(said):
            competing = [item for item in record["prediction"] if item in ranked[case]]
            assert ranked[case][: len(competing)] == competing == predicted[case][: len(competing)]
        return
    predicted = Run.open(folder).predict([e.instruction for e in cases])
    model = Classifier([folder])
    shares = probabilities(model.mean(model.logits([model.encode(e.instruction, "here") for e in cases])))
    served = Predicting(Run.open(folder, fixed_shapes=True)).answer([[e.instruction] for e in cases])
    for answer, own, record, response in zip(predicted, shares, said, served, strict=True):
        assert answer.label == record["prediction"] == model.labels[int(own.argmax())]
        assert answer.probabilities[answer.label] == pytest.approx(record["probability"], abs=1e-5)
        assert own.max() == pytest.approx(record["probability"], abs=1e-5)
        assert record["prediction"] in str(response)


def test_an_ensemble_is_asked_for_by_name(checkpoint: Path, tmp_path: Path) -> None:
    run = untrained_run(tmp_path / "run", task_config("classification", tmp_path), checkpoint, 64)
    for arguments, message in (
        ([run, run], "several runs need --average"),
        ([run, "--average", "logit"], "at least two runs"),
        ([run, "--weights", "tuned"], "for an ensemble"),
        ([run, "--calibrate"], "data.validation"),
        ([run, run, "--average", "logit", "--out", run], "choose another --out"),
        ([run, tmp_path, "--average", "logit"], "not a run directory"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate.main([*map(str, arguments), *([] if "--out" in arguments else ["--out", str(tmp_path / "E")])])


@pytest.mark.parametrize("kind", list(WRITING))
def test_texts(kind: str, language_models: dict[str, Path], tmp_path: Path) -> None:
    task: Any = WRITING[kind](template="plain", max_new_tokens=4)
    run = untrained_run(tmp_path / "run", task, language_models["llama"], 64)
    cases = [
        Example(instruction=f"the {word} film", input="a good book", output=("old book",), id=word) for word in SUBJECTS
    ]
    said = LanguageModel(run).generate(cases, GenerationConfig(max_new_tokens=4))
    assert [answer.text.strip() for answer in said] == [record["prediction"] for record in measured(run, cases)]
