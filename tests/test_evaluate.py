"""evaluate gives the run's own numbers, which follow from its predictions by hand counts."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import task_config
from tiny_runs import tiny_run, write_settings

from instructrec_jax import evaluate
from instructrec_jax.answering import comparison
from instructrec_jax.answering.comparison import Beside
from instructrec_jax.answering.recommender import Recommender
from instructrec_jax.answering.requests import Request
from instructrec_jax.files import read_json, read_jsonl
from instructrec_jax.ranking import fusion
from instructrec_jax.ranking.catalogue import Catalogue, Splits
from instructrec_jax.ranking.fusion import GRID
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.run import Run
from instructrec_jax.train import train


def numbers(folder: str | Path, name: str) -> dict[str, float]:
    return next(row["values"] for row in read_json(Path(folder) / "evaluation.json")["rows"] if row["name"] == name)


def test_a_run_is_reproduced(finished: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main([finished.run_dir, "--out", str(tmp_path)])
    said = capsys.readouterr().out
    *_, split, command = said.splitlines()
    assert "\n\nResult       macro_f1 " in said and split == "Measured on  test (12 cases)"
    assert command.startswith("Next ") and finished.run_dir in command
    assert numbers(tmp_path, "tuned") == numbers(finished.run_dir, "after tuning")
    for name in ("most frequent label", "TF-IDF + logistic regression"):
        assert numbers(tmp_path, name) == numbers(finished.run_dir, name)


def test_predictions_add_up_to_the_metrics(finished: Config) -> None:
    predictions = read_jsonl(Path(finished.run_dir) / "predictions.jsonl")
    assert [p["id"] for p in predictions] == [f"test-{number}" for number in range(12)]
    references = {row["id"]: row["output"] for row in read_jsonl(finished.data.test[0].path)}
    assert all(p["reference"] == references[p["id"]] for p in predictions)
    said = numbers(finished.run_dir, "after tuning")
    assert said["accuracy"] == pytest.approx(sum(p["reference"] == p["prediction"] for p in predictions) / 12)
    f1 = []
    for label in finished.task.labels:  # type: ignore[attr-defined]
        hits = sum(p["reference"] == p["prediction"] == label for p in predictions)
        either = sum((p["reference"] == label) + (p["prediction"] == label) for p in predictions)
        f1.append(2 * hits / either if either else 0.0)
    assert said["macro_f1"] == pytest.approx(sum(f1) / len(f1))


def test_a_folder_gives_the_numbers_before_tuning(finished: Config, checkpoint: Path, tmp_path: Path) -> None:
    settings = write_settings(finished, tmp_path / "settings.yaml")
    out = tmp_path / "out"
    evaluate.main([str(checkpoint), "--config_path", str(settings), "--out", str(out), "--no_baselines"])
    assert numbers(out, "untuned") == numbers(finished.run_dir, "before tuning")
    assert len(read_json(out / "evaluation.json")["rows"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.test", "[]"], "data.test.*--split validation"),
        (["--step", "5"], r"checkpoint of step 5.*\[.*6\]"),
        (["--data.test", "[{path: nowhere.jsonl}]"], "nowhere.jsonl"),
        (["--evaluation.metric", "acuracy"], "evaluation.metric.*accuracy"),
    ],
)
def test_what_is_missing_is_named(arguments: list[str], message: str, finished: Config, tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        evaluate.main([finished.run_dir, "--out", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


def test_a_path_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        evaluate.main([str(tmp_path / "nowhere")])


def test_other_devices_than_the_run_had(finished: Config, tmp_path: Path) -> None:
    """Any mesh gives the same numbers; the run's own mesh need not fit the evaluating machine."""
    arguments: list[Any] = ["--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2", "--no_baselines"]
    evaluate.main([finished.run_dir, "--out", str(tmp_path), *arguments])
    assert numbers(tmp_path, "tuned") == pytest.approx(numbers(finished.run_dir, "after tuning"))
    with pytest.raises(ValueError, match="mesh.tensor"):
        evaluate.main([finished.run_dir, "--out", str(tmp_path), "--mesh.tensor", "3"])
    of_a_pod = tmp_path / "of_a_pod"
    shutil.copytree(finished.run_dir, of_a_pod)
    settings = of_a_pod / "config.yaml"
    settings.write_text(settings.read_text().replace("fsdp: 1", "fsdp: 128"))
    evaluate.main([str(of_a_pod), "--no_baselines"])
    assert numbers(of_a_pod / "evaluation", "tuned") == pytest.approx(numbers(finished.run_dir, "after tuning"))


# ------------------------------------------------------------------ other rankers, and hybrids with them


@pytest.fixture(scope="module")
def rankers(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Config]:
    """Finished runs of a dual encoder and a sequence model on the same catalogue and cases."""
    folder = tmp_path_factory.mktemp("rankers")
    dual = tiny_run("retrieval", checkpoint, folder, task__protocols=["full", "uni5"])
    task = task_config("sequence", folder / "catalogue", protocols=["full", "uni5"])
    sequence = replace(dual, run_dir=str(folder / "sequence"), task=task)
    catalogue = Catalogue.load(folder / "catalogue")
    sequences, nothing = [np.arange(start, start + 5) % 12 for start in range(9)], [np.empty(0, np.int32)] * 9
    Splits([f"u{n}" for n in range(9)], sequences, nothing, nothing).save(folder / "catalogue", catalogue)
    train(dual)
    train(sequence)
    return dual, sequence


def test_other_runs_and_hybrids_share_the_table(rankers: tuple[Config, Config], tmp_path: Path) -> None:
    dual, sequence = rankers
    arguments = ["--beside", sequence.run_dir, "--hybrid", sequence.run_dir, "coKNN"]
    evaluate.main([dual.run_dir, "--out", str(tmp_path), *arguments])
    rows = {row["name"]: row["values"] for row in read_json(tmp_path / "evaluation.json")["rows"]}
    assert rows["sequence"] == pytest.approx(numbers(sequence.run_dir, "after tuning"))
    assert rows["tuned"] == pytest.approx(numbers(dual.run_dir, "after tuning"))
    mixed = {name: values for name, values in rows.items() if name.startswith("hybrid with")}
    assert [name.split(" (")[0] for name in mixed] == ["hybrid with sequence", "hybrid with coKNN"]
    assert all(set(values) == set(rows["tuned"]) for values in mixed.values())
    others = {"hybrid with sequence": rows["sequence"], "hybrid with coKNN": rows["coKNN"]}
    for name, values in mixed.items():  # all weight on one side gives that side's row
        weight = float(name.split("weight ")[1].rstrip(")"))
        if weight in (0, 1):
            alone = rows["tuned"] if weight == 0 else others[name.split(" (")[0]]
            assert values["NDCG@10"] == pytest.approx(alone["NDCG@10"])


def test_the_weight_of_a_hybrid_is_tuned_on_validation_alone(rankers: tuple[Config, Config], tmp_path: Path) -> None:
    dual, sequence = rankers

    def weight(out: str, *arguments: str) -> str:
        evaluate.main([dual.run_dir, "--no_baselines", "--hybrid", "popularity", "--out", out, *arguments])
        rows = read_json(Path(out) / "evaluation.json")["rows"]
        return next(row["name"] for row in rows if row["name"].startswith("hybrid"))

    as_it_is = weight(str(tmp_path / "a"))
    other_test = [{"path": dual.data.train[0].path}]
    assert weight(str(tmp_path / "b"), "--data.test", str(other_test)) == as_it_is
    with pytest.raises(ValueError, match="data.validation"):
        weight(str(tmp_path / "c"), "--data.validation", "[]")


def test_hybrids_that_cannot_be(rankers: tuple[Config, Config], finished: Config, tmp_path: Path) -> None:
    dual, _ = rankers
    with pytest.raises(ValueError, match="coknn"):
        evaluate.main([dual.run_dir, "--hybrid", "coknn", "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="task classification"):
        evaluate.main([finished.run_dir, "--hybrid", "coKNN", "--out", str(tmp_path)])


# ------------------------------------------------------------------ two stages


def test_a_second_run_reranks_the_first_runs_results(rankers: tuple[Config, Config], tmp_path: Path) -> None:
    """Retrieving the whole catalogue with all weight on the second run gives the second run's ranking."""
    dual, sequence = rankers
    evaluate.main([dual.run_dir, "--out", str(tmp_path), "--no_baselines", "--rerank", sequence.run_dir])
    rows = {row["name"]: row["values"] for row in read_json(tmp_path / "evaluation.json")["rows"]}
    (name,) = (name for name in rows if "reranked by sequence" in name)
    weight = float(name.split("weight ")[1].rstrip(")"))
    ends = {0.0: rows["tuned"], 1.0: numbers(sequence.run_dir, "after tuning")}
    assert set(rows[name]) == set(rows["tuned"])
    if weight in ends:
        assert rows[name]["NDCG@10"] == pytest.approx(ends[weight]["NDCG@10"])


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_what_is_not_retrieved_stays_behind(
    weight: float, rankers: tuple[Config, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dual, sequence = rankers
    monkeypatch.setattr(fusion, "best_place", lambda _: GRID.index(weight))
    evaluate.main(
        [dual.run_dir, "--out", str(tmp_path), "--no_baselines", "--rerank", sequence.run_dir, "--retrieve", "3"]
    )
    rows = {row["name"]: row["values"] for row in read_json(tmp_path / "evaluation.json")["rows"]}
    two, first = rows[f"3 best reranked by sequence (weight {weight:.2f})"], rows["tuned"]
    assert two["HR@3"] == pytest.approx(first["HR@3"])  # the same three
    assert two["HR@5"] == pytest.approx(first["HR@5"]) and two["HR@10"] == pytest.approx(first["HR@10"])  # in order
    if weight == 0:
        assert two["NDCG@10"] == pytest.approx(first["NDCG@10"])


def test_two_stages_that_cannot_be(rankers: tuple[Config, Config], finished: Config, tmp_path: Path) -> None:
    dual, sequence = rankers
    with pytest.raises(ValueError, match="task classification"):
        evaluate.main([finished.run_dir, "--rerank", dual.run_dir, "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="--retrieve"):
        evaluate.main([dual.run_dir, "--rerank", sequence.run_dir, "--retrieve", "0", "--out", str(tmp_path)])


# ------------------------------------------------------------------ what is measured is what is served


@pytest.mark.parametrize("kind", ["alone", "hybrid", "baseline", "rerank"])
def test_recommend_answers_with_the_rankings_that_evaluate_measured(
    kind: str, rankers: tuple[Config, Config], tmp_path: Path
) -> None:
    """recommend answers each row's predictions, with the weight that evaluate wrote to the run directory."""
    dual, sequence = rankers
    other = {"hybrid": sequence.run_dir, "baseline": "coKNN", "rerank": sequence.run_dir}.get(kind)
    flag = "--rerank" if kind == "rerank" else "--hybrid"
    run = Run.open(dual.run_dir)
    cases = run.data.cases(run.task, "test")
    fused = [] if other is None else [other]
    beside = Beside(
        hybrids=fused if flag == "--hybrid" else (), rerankers=[Path(f) for f in fused if flag == "--rerank"]
    )
    rows = comparison.evaluate(run, tmp_path, beside=replace(beside, retrieve=5, baselines=False))
    measured = [record["prediction"][:5] for record in rows[-1].scores[""].predictions]
    name = {"rerank": other} if flag == "--rerank" else {"hybrid": other}
    model = Recommender(dual.run_dir, **({} if other is None else name))  # type: ignore[arg-type]
    asked = [Request(prompt=e.example.instruction, history=[f"id:{item}" for item in e.example.history]) for e in cases]
    answers = model.recommend(asked, k=5, evidence=False)
    for case, said, answer in zip(cases, measured, answers, strict=True):
        if set(case.example.history) & {case.example.output}:
            continue  # an evaluation ranks the target even if it was seen
        assert [r.item for r in answer.recommendations] == said
