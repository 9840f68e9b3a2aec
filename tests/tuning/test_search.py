"""Searches: real trainings once, and a stand-in for `train` that writes the files which a search reads."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import changed, tiny_run, write_settings

from instructrec_jax.files import read_json
from instructrec_jax.runs.config import Config, load
from instructrec_jax.tasks.search_space import Options, Range
from instructrec_jax.tuning import trials
from instructrec_jax.tuning.search import AT_RANDOM, search
from instructrec_jax.tuning.search_table import written
from instructrec_jax.tuning.trials import evaluations, read_trial, run_of

# metric: highest for a learning rate of 1e-3 and rank 4; rank 16 fails
STAND_IN = """
import json, math, sys, time
from pathlib import Path
import yaml
settings = yaml.safe_load(Path(sys.argv[1]).read_text())
rate, rank = float(settings["optimizer"]["learning_rate"]), settings["lora"]["rank"]
run = Path(settings["run_dir"])
run.mkdir(parents=True, exist_ok=True)
assert settings["data"]["test"] == [] and not settings["evaluation"]["compare"]
if rank == 16:
    sys.exit("error: rank 16 does not fit.")
(run / "whole").write_text(json.dumps({"metric": "accuracy", "greater_is_better": True}))
(run / "whole").rename(run / "summary.json")
(run / "metrics.jsonl").write_text("")
for step in (2, 4, 6):
    value = step / 10 - abs(math.log10(rate) + 3) / 10 - abs(rank - 4) / 100
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"kind": "evaluation", "step": step, "accuracy": value}) + "\\n")
    time.sleep(SLOW)
    if step == 2 and (run.parents[1] / "preempted").exists():
        (run.parents[1] / "preempted").unlink()
        sys.exit(0)
(run / "run.json").write_text(json.dumps({"format": 2, "status": "finished", "overwrite": False}))
"""
SPACE = {"optimizer.learning_rate": Range(1e-5, 1e-1, log=True), "lora.rank": Options((2, 4, 8))}


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, slow: float = 0.0) -> None:
    script = folder / "stand_in.py"
    script.write_text(f"SLOW = {slow}\n{STAND_IN}")
    monkeypatch.setattr(trials, "TRAIN", (sys.executable, str(script)))
    monkeypatch.setattr(trials, "POLL", 0.01)


@pytest.fixture
def settings(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    stand_in(tmp_path, monkeypatch)
    return tiny_run("classification", checkpoint, tmp_path, lora__rank=2)


def test_a_search_is_a_function_of_its_seed_and_resumes(settings: Config, tmp_path: Path) -> None:
    whole = search(settings, SPACE, tmp_path / "whole", trials=AT_RANDOM + 3)
    assert whole.given is not None and whole.given.changes == {"optimizer.learning_rate": 3e-3, "lora.rank": 2}
    search(settings, SPACE, tmp_path / "parts", trials=2)
    begun = read_trial(tmp_path / "parts", 1)
    assert begun is not None
    begun.state = "running"  # as if it had been killed
    trials.keep(tmp_path / "parts", begun)
    parts = search(settings, SPACE, tmp_path / "parts", trials=AT_RANDOM + 3)
    assert [trial.changes for trial in parts.trials] == [trial.changes for trial in whole.trials]
    assert [trial.evaluations for trial in parts.trials] == [trial.evaluations for trial in whole.trials]
    other = search(settings, SPACE, tmp_path / "other", trials=3, seed=1)
    assert [trial.changes for trial in other.trials[1:]] != [trial.changes for trial in whole.trials[1:3]]

    values = [whole.value(trial) for trial in whole.trials if trial.state == "finished"]
    assert whole.value(whole.best) == max(values) > whole.value(whole.given)
    left = [number for number in range(AT_RANDOM + 3) if run_of(tmp_path / "whole", number).exists()]
    assert left == [whole.best.number]

    said = written(whole, settings, tmp_path / "whole")
    best = load(tmp_path / "whole" / "best.yaml")
    assert best == changed(
        settings,
        optimizer__learning_rate=whole.best.changes["optimizer.learning_rate"],
        lora__rank=whole.best.changes["lora.rank"],
    )
    assert f"as given: {whole.value(whole.given):.4f}" in said
    rows = (tmp_path / "whole" / "trials.md").read_text().splitlines()[2:]
    shown = [float(row.split("|")[2]) for row in rows if "stopped" not in row]
    assert shown == sorted(shown, reverse=True) and len(rows) == AT_RANDOM + 3

    with pytest.raises(ValueError, match="other settings.*choose another --out"):
        search(changed(settings, seed=1), SPACE, tmp_path / "whole", trials=2)


def test_trials_below_the_median_are_stopped(settings: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, slow=0.5)
    found = search(settings, SPACE, tmp_path / "out", trials=8, seed=3)
    assert all(trial.state == "finished" for trial in found.trials[:4])
    stopped = [trial for trial in found.trials if trial.state == "stopped"]
    assert stopped
    for trial in stopped:
        step = trial.evaluations[-1][0]
        before = sorted(
            max(value for at, value in each.evaluations if at <= step)
            for each in found.trials[: trial.number]
            if each.state == "finished"
        )
        assert step < 6 and trial.best(greater=True)[1] < before[len(before) // 2]


def test_a_failed_trial_is_named_and_the_search_goes_on(settings: Config, tmp_path: Path) -> None:
    space = {"lora.rank": Options((16, 2))}
    found = search(settings, space, tmp_path / "out", trials=5)
    assert {trial.state for trial in found.trials} == {"finished", "failed"}
    assert all(trial.note == "error: rank 16 does not fit." for trial in found.trials if trial.state == "failed")
    assert "failed" in written(found, settings, tmp_path / "out")
    given = changed(settings, lora__rank=16)
    for _ in range(2):  # a second call tries again
        with pytest.raises(ValueError, match=r"as given cannot be trained: error: rank 16 does not fit.*0\.txt"):
            search(given, space, tmp_path / "again", trials=2)


def test_a_loss_is_searched_for_its_lowest_value(
    settings: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same search with the signs of all values turned round."""
    highest = search(settings, SPACE, tmp_path / "highest", trials=AT_RANDOM + 1)
    script = tmp_path / "stand_in.py"
    turned = (
        script.read_text()
        .replace('_better": True', '_better": False')
        .replace('"accuracy": value', '"accuracy": -value')
    )
    script.write_text(turned)
    capsys.readouterr()
    lowest = search(settings, SPACE, tmp_path / "lowest", trials=AT_RANDOM + 1)
    assert [trial.changes for trial in lowest.trials] == [trial.changes for trial in highest.trials]
    assert lowest.best.number == highest.best.number and lowest.value(lowest.best) == -highest.value(highest.best)
    assert (
        lowest.given is not None and f"trial 0: {lowest.value(lowest.given):.4f} at step 6" in capsys.readouterr().err
    )


def test_settings_that_cannot_be_compared(settings: Config, tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], int, str]] = [
        ({"data__validation": []}, 2, "data.validation"),
        ({"evaluation__every": 0}, 2, "evaluation.every is 0"),
        ({"evaluation__every": 7}, 2, "evaluation.every is 7 and steps is 6"),
        ({}, 0, "--trials should be at least 1"),
    ]
    for changes, count, said in wrong:
        with pytest.raises(ValueError, match=said):
            search(changed(settings, **changes), SPACE, tmp_path / "out", trials=count)
    assert not (tmp_path / "out").exists()


def test_an_incomplete_line_is_left_for_later(tmp_path: Path) -> None:
    row = json.dumps({"kind": "evaluation", "step": 2, "accuracy": 0.5})
    nothing = json.dumps({"kind": "evaluation", "step": 3, "accuracy": None})
    (tmp_path / "metrics.jsonl").write_text(f"{row}\n{nothing}\n{row[:20]}")
    assert list(evaluations(tmp_path, "accuracy")) == [(2, 0.5)]


def test_a_damaged_trial_is_named(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"number": 0}', '{"number": 0, "changes": {}, "other": 1}'):
        (tmp_path / "trials").mkdir(exist_ok=True)
        (tmp_path / "trials" / "0.json").write_text(text)
        with pytest.raises(ValueError, match=r"0\.json"):
            read_trial(tmp_path, 0)


def test_a_training_that_others_end_is_not_finished(settings: Config, tmp_path: Path) -> None:
    """SIGTERM to the training alone, which ends with status 0 after a save."""
    out = tmp_path / "tuned"
    out.mkdir()
    (out / "preempted").touch()
    with pytest.raises(KeyboardInterrupt):
        search(settings, SPACE, out, trials=2)
    ended = read_trial(out, 0)
    assert ended is not None and ended.state == "running"
    done = search(settings, SPACE, out, trials=2)
    assert [len(trial.evaluations) for trial in done.trials] == [3, 3]
    assert [trial.state for trial in done.trials] == ["finished"] * 2


def test_real_trials_and_an_interruption(checkpoint: Path, tmp_path: Path) -> None:
    """A search that is ended by SIGTERM in a training goes on, and its best settings train."""
    config = tiny_run("classification", checkpoint, tmp_path, steps=40, evaluation__every=10, checkpoint__every=40)
    file = write_settings(config, tmp_path / "settings.yaml")
    out = tmp_path / "tuned"
    command = [sys.executable, "-m", "instructrec_jax.tune", str(file), "--trials", "2", "--out", str(out)]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    begun = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    metrics = run_of(out, 0) / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and '"step": 10' in metrics.read_text():
            break
        time.sleep(0.1)
    begun.send_signal(signal.SIGTERM)
    assert begun.wait(60) == 130
    ended = read_trial(out, 0)
    assert ended is not None and ended.state in ("running", "finished")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    kept = [read_json(out / "trials" / f"{number}.json", dict[str, object]) for number in range(2)]
    assert [each["state"] for each in kept] == ["finished"] * 2
    assert [step for step, _ in kept[0]["evaluations"]] == [10, 20, 30, 40]
    assert "Result       macro_f1" in done.stdout and "evaluation.compare is false" in (out / "logs/0.txt").read_text()
    assert load(out / "best.yaml").data.test == config.data.test
