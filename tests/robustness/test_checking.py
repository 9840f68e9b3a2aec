"""`evaluate --robust`: the table, robustness.json, the section of the report, and the exit status."""

import shutil
from pathlib import Path

import pytest

from instructrec_jax import evaluate
from instructrec_jax.evaluation.behavior import Behavior
from instructrec_jax.files import read_json, write_jsonl
from instructrec_jax.robustness import checking
from instructrec_jax.robustness.checking import behavior, checked
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.run import Run

SUITE = """
examples: 6
tests:
  - {name: <b>shouting</b>, kind: invariance, perturb: {case: {to: upper}}}
  - {name: never, kind: minimum, template: "a {x} film", slots: {x: [good, bad]}, expect: {output: love}}
  - {name: always, kind: minimum, examples: [a film], expect: {one_of: [love, war, space, crime, music]}}
adversarial: {budget: 30, examples: 3, similarity: 0.5}
"""


@pytest.fixture
def run_dir(finished: Config, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.run_dir, tmp_path / "run"))


def test_the_verb_tests_prints_and_reports(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = tmp_path / "mine.yaml"
    suite.write_text(SUITE, encoding="utf-8")
    evaluate.main([str(run_dir), "--no_baselines", "--robust", str(suite)])
    said = capsys.readouterr().out
    found = read_json(run_dir / "robustness.json", Behavior)
    assert found["suite"] == "mine" and found["examples"] == 6 and len(found["tests"]) == 3
    assert found["tests"][2]["failures"] == 0 and found["adversarial"]["budget"] == 30
    assert found["adversarial"]["mean_calls"] <= 30 and found["adversarial"]["encoder"] == "the run's own vectors"
    assert "Robustness: mine (en)" in said and "Budget: 30 texts an example" in said
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "<h2>Robustness</h2>" in page and "&lt;b&gt;shouting" in page and "Adversarial search" in page
    assert "<b>shouting" not in page


def test_bias_is_a_suite_by_name(run_dir: Path, tmp_path: Path) -> None:
    found = behavior(Run.open(run_dir), "bias", "test", tmp_path)
    assert isinstance(found, dict) and found["suite"] == "bias, English"
    by_name = {test["name"]: test for test in found["tests"]}
    assert by_name["names of women, Arab"]["cases"] == by_name["someone wrote it"]["cases"] == found["examples"] > 0
    assert by_name["he becomes she"]["unchanged"] == found["examples"]  # no text says he


def test_a_limit_ends_with_status_1(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = tmp_path / "mine.yaml"
    never = "tests: [{name: never, kind: minimum, examples: [a film, a book], expect: {not: [LABELS]}}]"
    labels = ", ".join(Run.open(run_dir).config.task.label_names or ())
    suite.write_text(never.replace("LABELS", labels), encoding="utf-8")
    arguments = [str(run_dir), "--no_baselines", "--robust", str(suite)]
    with pytest.raises(ValueError, match="--robust_limit is for behavioral tests: give --robust, too"):
        evaluate.main([str(run_dir), "--robust_limit", "1"])
    evaluate.main([*arguments, "--robust_limit", "1"])
    with pytest.raises(SystemExit) as caught:
        evaluate.main([*arguments, "--robust_limit", "20%"])
    assert caught.value.code == "failures above the limit:\nnever: 100.0% failures of 2 cases, limit 20.0%"
    assert (run_dir / "evaluation" / "evaluation.json").exists() and "100.0%!" in capsys.readouterr().out


def test_an_ensemble_of_a_run_with_itself_fails_as_the_run(run_dir: Path, tmp_path: Path) -> None:
    suite = tmp_path / "mine.yaml"
    suite.write_text(SUITE.partition("adversarial")[0], encoding="utf-8")
    twin = shutil.copytree(run_dir, tmp_path / "twin")
    out = tmp_path / "both"
    more = ["--no_baselines", "--robust", str(suite)]
    evaluate.main([str(run_dir), str(twin), "--average", "probability", "--out", str(out), *more])
    alone = behavior(Run.open(run_dir), str(suite), "test", tmp_path)
    together = read_json(out / "robustness.json", Behavior)
    assert isinstance(alone, dict)
    assert [each["failures"] for each in together["tests"]] == [each["failures"] for each in alone["tests"]]


def test_checklists_forms_and_wrong_suites(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.open(run_dir)
    rows = [{"test_name": "a", "type": "INV", "test_case": 0, "text": text} for text in ("a film", "a film")]
    write_jsonl(tmp_path / "tests.jsonl", rows)
    assert checked(run, f"checklist:{tmp_path}", "test", tmp_path, run_dir, 0.0) == []
    assert read_json(run_dir / "robustness.json", Behavior)["tests"][0]["cases"] == 1
    with pytest.raises(ValueError, match="nothing.yaml cannot be read"):
        evaluate.main([str(run_dir), "--robust", "nothing.yaml"])
    assert not (run_dir / "evaluation").exists()  # said before a long evaluation
    with pytest.raises(ValueError, match="--robust_limit is a share from 0 to 1, but is 20"):
        checked(run, "default", "test", tmp_path, run_dir, 20.0)


def test_left_out_and_several_processes(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.open(run_dir)
    suite = tmp_path / "mine.yaml"
    suite.write_text(
        "language: zh\nexamples: 2\ntests: [{name: a, kind: invariance, perturb: spaces}]", encoding="utf-8"
    )
    found = behavior(run, str(suite), "test", tmp_path)
    assert isinstance(found, dict) and found["language"] == "zh" and "adversarial" not in found
    monkeypatch.setattr(checking.Search, "run", lambda self: (_ for _ in ()).throw(checking.NotForThisRun("no labels")))
    suite.write_text(SUITE, encoding="utf-8")
    found = behavior(run, str(suite), "test", tmp_path)
    assert isinstance(found, dict) and found["left_out"] == [{"name": "adversarial search", "why": "no labels"}]
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(ValueError, match="--robust runs on one process"):
        behavior(run, "default", "test", tmp_path)
