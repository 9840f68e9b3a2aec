"""What few labels are worth: nested draws, arms that are those of scikit-learn, NumPy and training, and the table."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from helpers import SUBJECTS
from sklearn.linear_model import LogisticRegression
from tiny_runs import changed, tiny_run, write_settings

from instructrec_jax.answering.arguments import evaluate_parser
from instructrec_jax.augmentation.augmenter import AugmentConfig
from instructrec_jax.data.hold_out import HoldOutConfig
from instructrec_jax.data.prompts import render
from instructrec_jax.evaluate import main
from instructrec_jax.files import read_json, write_json, write_jsonl
from instructrec_jax.labeling import shots
from instructrec_jax.labeling.shots import ARMS, Arm, Measured, Plan, arm_config, drawn, measure, measured, plan_of
from instructrec_jax.labeling.shots_table import table_of
from instructrec_jax.labeling.simulate import interval
from instructrec_jax.runs.config import Config, ConfigError
from instructrec_jax.runs.data import RunData
from instructrec_jax.runs.run import Run, run_settings
from instructrec_jax.runs.vectors import settings_of
from instructrec_jax.tasks.logistic import STRENGTH
from instructrec_jax.train import train


@pytest.fixture
def settings(checkpoint: Path, tmp_path: Path) -> Config:
    """A classification whose training file has at least two examples of each label."""
    return tiny_run("classification", checkpoint, tmp_path, steps=2, task__labels=[])


@pytest.fixture
def plan(settings: Config, tmp_path: Path) -> Plan:
    return Plan(None, ["--config_path", str(write_settings(settings, tmp_path / "x.yaml"))], "test")


def test_draws_are_nested_and_a_function_of_the_seed() -> None:
    labels = np.random.default_rng(0).integers(0, 3, 60)
    for seed in range(3):
        few, more = (drawn(labels, ["a", "b", "c"], count, seed) for count in (2, 7))
        assert np.bincount(labels[few]).tolist() == [2] * 3 and np.bincount(labels[more]).tolist() == [7] * 3
        assert set(few) < set(more)
        assert np.array_equal(few, drawn(labels, ["a", "b", "c"], 2, seed))
    assert set(drawn(labels, ["a", "b", "c"], 2, 0)) != set(drawn(labels, ["a", "b", "c"], 2, 1))
    with pytest.raises(ValueError, match="--shots 50: data.train has .* of the label 'a'"):
        drawn(labels, ["a", "b", "c"], 50, 0)
    with pytest.raises(ValueError, match="--shots 1: data.train has 0 examples of the label 'd'"):
        drawn(labels, ["a", "b", "c", "d"], 1, 0)


def parts(plan: Plan, arm: Arm) -> tuple[list[Any], list[Any]]:
    """The examples that an arm learns from, and the cases."""
    data = RunData(plan.config())
    names = data.config.task.label_names or []
    source = data.examples("train")
    chosen = drawn(np.array([names.index(str(e.output)) for e in source]), names, arm.shots, arm.seed)
    return [source[int(number)] for number in chosen], list(data.examples("test"))


@pytest.mark.parametrize("name", ["logistic", "prototypes"])
def test_arms_on_frozen_vectors(name: Any, plan: Plan, checkpoint: Path, tmp_path: Path) -> None:
    arm = Arm(name, 2, 1)
    given, cases = parts(plan, arm)
    run = Run.open(checkpoint, settings_of(str(checkpoint)))
    vectors, asked = (run.encode([render(e) for e in some]) for some in (given, cases))
    labels = np.array([str(e.output) for e in given])
    if name == "logistic":
        guess = LogisticRegression(max_iter=1000, C=STRENGTH).fit(vectors, labels).predict(asked)
    else:
        units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (vectors, asked)]
        means = [units[0][labels == each].mean(0) for each in sorted(SUBJECTS)]
        cosines = np.stack([units[1] @ mean / np.linalg.norm(mean) for mean in means], 1)
        guess = np.array(sorted(SUBJECTS))[cosines.argmax(1)]
    found = measure(plan, arm, tmp_path / "work", train)
    assert found.accuracy == pytest.approx(np.mean(guess == [e.output for e in cases]))
    assert (found.examples, found.cases, found.steps) == (10, 12, 0)
    assert found.memory > 10**7 and found.seconds > 0 and not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    "name", ["setfit", *(pytest.param(n, marks=pytest.mark.slow) for n in ("head", "lora", "full", "fitted"))]
)
def test_a_trained_arm_is_that_training(name: Any, plan: Plan, tmp_path: Path) -> None:
    arm = Arm(name, 1, 0)
    found = measure(plan, arm, tmp_path / "work", train)
    file = tmp_path / "few.jsonl"
    write_jsonl(file, [e.to_record() for e in parts(plan, arm)[0]])
    config = arm_config(RunData(plan.config()).config, arm, file, tmp_path / "run")
    kinds = {"setfit": "setfit", "fitted": "vector_classification"}
    assert config.task.name == kinds.get(name, "classification")
    train(replace(config, data=replace(config.data, test=plan.config().data.test)))
    written: Any = read_json(tmp_path / "run" / "evaluation.json")
    tuned = next(row for row in written["rows"] if row["name"] == "after tuning")
    assert found.accuracy == tuned["values"]["accuracy"]
    assert (found.examples, found.steps) == (5, 2)


def test_arms_differ_in_what_they_train_alone(settings: Config, tmp_path: Path) -> None:
    names = get_args(shots.ArmName)[2:]
    made = {name: arm_config(settings, Arm(name, 1, 3), tmp_path / "x", tmp_path) for name in names}
    assert {(c.steps, c.seed, c.data.batch_size, c.data.batch_rows) for c in made.values()} == {(2, 3, 8, None)}
    trained = {name: (c.lora.rank, c.backbone.train_last) for name, c in made.items()}
    assert trained["head"] == (0, 0) and trained["lora"] == (8, None)
    assert trained["full"] == trained["fitted"] == trained["setfit"] == (0, None)
    assert made["full"].optimizer.learning_rate == settings.optimizer.learning_rate
    assert made["lora"].optimizer.learning_rate == shots.LORA_RATE
    heads = {name: c.optimizer.head_learning_rate for name, c in made.items()}
    assert heads == {"head": None, "lora": shots.HEAD_RATE, "full": shots.HEAD_RATE, "fitted": None, "setfit": None}


def test_finished_arms_are_read(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Arm] = []

    def fake(plan: Plan, arm: Arm, out: Path, train: Any) -> Measured:
        if len(calls) == 8:
            raise KeyboardInterrupt
        calls.append(arm)
        return fake_result(arm)

    monkeypatch.setattr(shots, "_in_a_process", fake)
    with pytest.raises(KeyboardInterrupt):
        measured(plan, [1, 2], 2, tmp_path / "out", train)
    monkeypatch.setattr(shots, "_in_a_process", lambda plan, arm, *_: replace(fake_result(arm), seconds=2.0))
    found = measured(plan, [1, 2], 2, tmp_path / "out", train)
    assert len(found) == 28 and sum(each.seconds == 1.0 for each in found) == 8 == len(set(calls))
    assert [each.arm for each in found if each.seconds == 1.0] == calls
    table = table_of(found)
    mean, low, high = interval([0.2, 0.21])
    assert table[0] == ("", "1 per label", "2 per label", "seconds at 2", "GB at 2")
    assert table[1][0] == ARMS["logistic"] and table[1][2] == f"{mean:.3f} ± {(high - low) / 2:.3f}"
    assert len(table) == 8 and table[1][3:] == ("2", "1.00")
    other = replace(plan, settings=[*plan.settings, "--steps", "9"])
    with pytest.raises(ValueError, match="results of other settings .*choose another --out"):
        measured(other, [1], 1, tmp_path / "out", train)
    place = tmp_path / "out" / "arms" / "full-1-0.json"
    write_json(place, read_json(place, dict) | {"data": "other"})
    with pytest.raises(ValueError, match="other training data"):
        measured(plan, [1], 1, tmp_path / "out", train)


def fake_result(arm: Arm) -> Measured:
    return Measured(arm, arm.shots / 10 + arm.seed / 100, 1.0, 1.0, 10**9, 12, 2, 5, "data")


def test_what_cannot_be_compared_is_named(finished: Config, settings: Config, tmp_path: Path) -> None:
    def refused(config: Config, match: str) -> None:
        file = write_settings(config, tmp_path / "other.yaml")
        with pytest.raises(ValueError, match=match):
            main([str(file), "--shots", "1", "--out", str(tmp_path / "out")])

    refused(
        tiny_run("regression", Path(settings.backbone.path), tmp_path),
        "classification or vector_classification or setfit, not",
    )
    refused(changed(settings, data__hold_out=HoldOutConfig(labels=["x"])), "data.hold_out holds some out")
    copied = [replace(each, augment=AugmentConfig(delete=0.1)) for each in settings.data.train]
    refused(changed(settings, data__train=copied), "a source has augment")
    with pytest.raises(ValueError, match="leave out --beside and --limit"):
        main([finished.run_dir, "--shots", "1", "--beside", finished.run_dir, "--no_baselines", "--limit", "3"])
    for bad in ("0", "-1"):
        with pytest.raises(ValueError, match="should be at least 1"):
            main([finished.run_dir, f"--shots={bad}", "--out", str(tmp_path / "out")])
    with pytest.raises(ConfigError, match="'one' should be whole numbers, such as 1,5,20"):
        evaluate_parser("").parse_args(["run", "--shots", "one"])
    assert not (tmp_path / "out" / "plan.json").exists()


def test_a_run_starts_from_its_pretrained_backbone(finished: Config, checkpoint: Path) -> None:
    options = Namespace(**vars(evaluate_parser("").parse_args([finished.run_dir, "--shots", "1,2"])))
    assert options.shots == [1, 2] and options.seeds == 5
    config = plan_of(options, []).config()
    assert config.backbone.path == run_settings(finished.run_dir).backbone.path == str(checkpoint)


@pytest.mark.slow
def test_the_verb_measures_in_processes(plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    main([plan.settings[1], "--shots", "1", "--seeds", "1", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "one seed; 2 steps" in printed and all(title in printed for title in ARMS.values())
    kept: Any = read_json(out / "shots.json")
    assert [each["arm"]["name"] for each in kept["arms"]] == [*ARMS] and not list((out / "work").iterdir())
    assert (out / "shots.md").read_text(encoding="utf-8").count("\n|") == 9
