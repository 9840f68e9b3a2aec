"""A run that was stopped, by whatever means, ends like one that never was; and nothing is overwritten unasked."""

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import Setup, assert_close
from tiny_runs import changed, final_parameters, rows, start, tiny_run, verb, write_examples, write_settings

from instructrec_jax import train
from instructrec_jax.files import read_json, read_jsonl, write_jsonl
from instructrec_jax.runs.config import Config, load, main_guard
from instructrec_jax.runs.directory import LEFT_BY_RUNS
from instructrec_jax.training.checkpoint import Checkpoints, abstract
from instructrec_jax.training.interrupt import Interrupt
from instructrec_jax.training.progress import Progress
from instructrec_jax.training.training_config import CheckpointConfig

STEPS = 40


def eventful_run(checkpoint: Path, folder: Path) -> Config:
    """Dropout, evaluations, best checkpoints and remembered item vectors, none of them in step with the others."""
    return tiny_run(
        "retrieval",
        checkpoint,
        folder,
        steps=STEPS,
        task__softmax="full",
        task__refresh_every=3,
        evaluation__every=7,
        checkpoint__every=4,
        tracking__log_every=3,
    )


@pytest.fixture(scope="module")
def uninterrupted(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = eventful_run(checkpoint, tmp_path_factory.mktemp("uninterrupted"))
    train.train(config)
    return config


def wait_for(condition: Callable[[], Any], process: Any) -> bool:
    """Whether the condition came true before the process ended."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.001)
    return False


def test_stopped_at_any_moment(uninterrupted: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SIGKILL twice, once in the middle of a save, then SIGTERM; the same command each time."""
    config = changed(uninterrupted, run_dir=str(tmp_path / "run"))
    command = verb("train", "--config_path", write_settings(config, tmp_path / "settings.yaml"))
    run_dir = Path(config.run_dir)
    saved, metrics = run_dir / "checkpoints", run_dir / "metrics.jsonl"

    def half_written() -> bool:
        names = [path.name for path in saved.glob("*")]
        return any(name.isdigit() for name in names) and any("tmp" in name for name in names)

    def lines(count: int) -> Callable[[], bool]:
        return lambda: metrics.exists() and len(metrics.read_bytes().splitlines()) >= count

    moments = {
        "the run directory is half made": (run_dir / "config.yaml").exists,
        "a checkpoint is half written": half_written,
    }
    for name, moment in moments.items():
        process = start(command, tmp_path / "compiled")
        assert wait_for(moment, process), f"the run ended before {name}\n{process.communicate()[0]}"
        process.kill()
        process.communicate()

    process = start(command, tmp_path / "compiled")
    assert wait_for(lines(11), process), process.communicate()[0]
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    step = Checkpoints(run_dir).steps()[-1]
    assert process.returncode == 0 and f"SIGTERM: saved step {step} of {STEPS}." in output, output
    assert "resuming from step" in output and "Run the same command" in output
    assert 0 < step < STEPS and not (run_dir / "report.html").exists()

    train.train(config)
    assert f"resuming from step {step}" in capsys.readouterr().err
    assert rows(run_dir) == rows(uninterrupted.run_dir)
    assert_close(final_parameters(run_dir, STEPS), final_parameters(uninterrupted.run_dir, STEPS), atol=0)
    for name in ("evaluation.json", "examples.json"):
        assert read_json(run_dir / name) == read_json(Path(uninterrupted.run_dir) / name)
    assert all(path.name.isdigit() for path in saved.iterdir())
    assert Checkpoints(run_dir).best_step() == Checkpoints(Path(uninterrupted.run_dir)).best_step()


def test_opens_on_another_mesh(checkpoint: Path, tmp_path: Path) -> None:
    first = Setup("classification", checkpoint, tmp_path)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    checkpoints.save(1, first.state, Progress("data"), {}, None)
    checkpoints.close()
    expected = jax.device_get(first.state)
    for sizes in ((2, 2, 2), (1, 8, 1), (1, 1, 1)):
        other = Setup("classification", checkpoint, tmp_path, mesh=sizes)
        read = Checkpoints(tmp_path).restore(1, abstract(other.state, other.shardings))
        for (path, mine), theirs, sharding in zip(
            jax.tree_util.tree_flatten_with_path(read)[0],
            jax.tree.leaves(expected),
            jax.tree.leaves(other.shardings),
            strict=True,
        ):
            assert mine.sharding == sharding
            np.testing.assert_array_equal(jax.device_get(mine), theirs, err_msg=jax.tree_util.keystr(path))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_other_settings_are_refused_by_name(finished: Config) -> None:
    before = snapshot(Path(finished.run_dir))
    with pytest.raises(ValueError, match=r"(?s)optimizer\.learning_rate: 0\.003 then, 0\.1 now.*--overwrite true"):
        train.train(changed(finished, optimizer__learning_rate=0.1))
    assert snapshot(Path(finished.run_dir)) == before


def fail(*_: object) -> float:
    raise OSError("the disk is full")


def test_an_evaluation_that_fails_loses_no_step_and_its_settings_may_change(finished: Config, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    config = changed(finished, run_dir=str(run_dir), steps=2, checkpoint__every=5, evaluation__every=1)
    with pytest.raises(ValueError, match=r"evaluation.metric is 'acuracy'.*accuracy"):
        train.train(changed(config, evaluation__metric="acuracy"))
    assert not (run_dir / "config.yaml").exists()
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(ValueError, match=r"(?s)disk.*step 1.*--evaluation.every 0"),
    ):
        patch.setattr(train, "chosen_metric", fail)
        train.train(config)
    assert Checkpoints(run_dir).steps() == [1]
    train.train(changed(config, evaluation__metric="accuracy"))
    assert load(run_dir / "config.yaml").evaluation.metric == "accuracy"
    assert Checkpoints(run_dir).steps()[-1] == 2


def test_a_prolonged_run_ends_like_one_that_was_as_long_from_the_start(
    finished: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the learning rate does not depend on the number of steps; the evaluations may change on the way too."""
    constant = {"optimizer__schedule": "constant", "optimizer__warmup": 0.0, "data__test": [], "checkpoint__every": 9}
    long = changed(finished, run_dir=str(tmp_path / "long"), steps=4, **constant)
    short = changed(long, run_dir=str(tmp_path / "short"), steps=2)
    for config in (long, short, changed(short, steps=4)):
        train.train(config)
    assert "steps 2 -> 4;" in capsys.readouterr().err
    assert rows(short.run_dir) == rows(long.run_dir)
    assert_close(final_parameters(short.run_dir, 4), final_parameters(long.run_dir, 4), atol=0)
    assert read_json(tmp_path / "short" / "run.json")["status"] == "finished"


@pytest.mark.slow
def test_another_metric_begins_to_compare_anew(finished: Config, tmp_path: Path) -> None:
    """Accuracies lie below the losses that came before them; none of those is the best any more."""
    config = changed(finished, run_dir=str(tmp_path / "run"), steps=2, data__test=[], evaluation__every=1)
    train.train(config)
    train.train(changed(config, steps=4, evaluation__metric="macro_f1"))
    kept = Checkpoints(tmp_path / "run")
    progress = kept.progress(4)
    assert progress.best_step in (3, 4) and str(progress.measure).startswith("macro_f1")
    assert kept.best_step() == progress.best_step


def test_ctrl_c_saves_the_step_and_ends_with_status_130(
    finished: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = changed(finished, run_dir=str(tmp_path / "run"), evaluation__every=0)
    after = Interrupt.after

    def press(self: Interrupt, step: int) -> bool:
        if step == 3:
            signal.raise_signal(signal.SIGINT)
        return after(self, step)

    monkeypatch.setattr(Interrupt, "after", press)
    monkeypatch.setattr("sys.argv", ["train"])
    with pytest.raises(SystemExit) as ended:
        main_guard(lambda _: train.main(["--config_path", str(write_settings(config, tmp_path / "x.yaml"))]))
    assert ended.value.code == 130
    assert "Interrupted: saved step 3 of 6. Run the same command to resume." in capsys.readouterr().err
    assert Checkpoints(tmp_path / "run").steps()[-1] == 3
    assert read_json(tmp_path / "run" / "run.json")["status"] == "begun"


def test_other_data_are_refused(finished: Config, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished.run_dir, run_dir)
    train_file = Path(finished.data.train[0].path)
    kept = train_file.read_bytes()
    before = snapshot(run_dir)
    try:
        write_examples(train_file, "classification", 24, seed=9)
        with pytest.raises(ValueError, match="training data changed.*--overwrite true"):
            train.train(changed(finished, run_dir=str(run_dir)))
    finally:
        train_file.write_bytes(kept)
    assert snapshot(run_dir) | {".lock": before[".lock"]} == before


def test_overwrite_starts_anew_and_deletes_only_what_runs_leave(finished: Config, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished.run_dir, run_dir)
    assert {path.name for path in run_dir.iterdir()} <= set(LEFT_BY_RUNS)
    (run_dir / "notes.txt").write_text("mine")
    other = changed(finished, run_dir=str(run_dir), steps=2, overwrite=True)
    with pytest.raises(ValueError, match="not a HuggingFace checkpoint"):  # what cannot begin deletes nothing
        train.train(changed(other, backbone__path=str(tmp_path)))
    assert Checkpoints(run_dir).steps()[-1] == 6
    train.train(other)
    assert Checkpoints(run_dir).steps() == [2]
    assert [row["step"] for row in rows(run_dir) if row["kind"] == "train"] == [1, 2]
    assert (run_dir / "notes.txt").read_text() == "mine"
    assert not load(run_dir / "config.yaml").overwrite


def test_overwrite_begins_anew_over_a_run_of_another_version(finished: Config, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished.run_dir, run_dir)
    settings = (run_dir / "config.yaml").read_text()
    (run_dir / "config.yaml").write_text(settings + "gone_since: 1\n")
    again = changed(finished, run_dir=str(run_dir), steps=2)
    with pytest.raises(ValueError, match="config.yaml.*gone_since.*--overwrite true"):
        train.train(again)
    train.train(changed(again, overwrite=True))
    assert Checkpoints(run_dir).steps() == [2]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("files", [{"thesis.tex": "text"}, {"config.yaml": "port: 80", "thesis.tex": "text"}])
def test_another_folder_is_refused_and_untouched(
    overwrite: bool, files: dict[str, str], finished: Config, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="Choose another run_dir"):
        train.train(changed(finished, run_dir=str(tmp_path), overwrite=overwrite))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_patience_ends_the_run_at_the_best(checkpoint: Path, tmp_path: Path) -> None:
    """The learning rate is too small to change any answer, so no evaluation is better than the first."""
    config = tiny_run(
        "classification", checkpoint, tmp_path, steps=50, evaluation__patience=2, optimizer__learning_rate=1e-9
    )
    train.train(config)
    evaluations = [row["step"] for row in rows(config.run_dir) if row["kind"] == "evaluation"]
    assert evaluations == [2, 4, 6]
    assert Checkpoints(Path(config.run_dir)).best_step() == 6  # the latest of equal ones
    assert Checkpoints(Path(config.run_dir)).steps() == [4, 6]
    train.train(config)  # starting it again trains no further
    assert Checkpoints(Path(config.run_dir)).steps() == [4, 6]


@pytest.mark.parametrize(("greater", "best", "kept"), [(True, 20, [20, 30, 70, 80]), (False, 10, [10, 40, 70, 80])])
def test_keeps_the_last_and_the_best_over_restarts(greater: bool, best: int, kept: list[int], tmp_path: Path) -> None:
    """Also the latest of equal ones, and none for a step without a metric or with NaN."""
    metrics = {10: 0.1, 20: 0.9, 30: 0.8, 40: 0.2, 50: None, 60: float("nan"), 70: 0.5, 80: 0.5}
    for step, metric in metrics.items():
        checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep_last=2, keep_best=2), greater)
        checkpoints.save(step, {"x": np.full(3, step)}, Progress("data", best_value=0.0, best_step=best), {}, metric)
        checkpoints.close()
    assert Checkpoints(tmp_path).steps() == kept
    assert Checkpoints(tmp_path).best_step() == best


def test_the_latest_of_equal_metrics_is_kept(tmp_path: Path) -> None:
    for step, metric in {1: 0.5, 2: 0.5, 3: 0.5, 4: 0.1}.items():
        checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep_last=1))
        checkpoints.save(step, {"x": np.zeros(3)}, Progress("data"), {}, metric)
        checkpoints.close()
    assert Checkpoints(tmp_path).steps() == [3, 4]


@pytest.mark.slow
def test_a_metric_that_counts_mistakes_is_best_when_low(checkpoint: Path, tmp_path: Path) -> None:
    """mse is regression's own metric, pearson is not: the best checkpoint follows the one that was chosen."""
    config = tiny_run("regression", checkpoint, tmp_path, evaluation__metric="pearson", evaluation__every=1)
    train.train(config)
    values = [row["pearson"] for row in rows(config.run_dir) if row["kind"] == "evaluation"]
    assert len(set(values)) > 1
    assert Checkpoints(Path(config.run_dir)).best_step() == 1 + int(np.argmax(values))


def test_updates_that_are_not_finite_end_the_run(
    finished: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = changed(
        finished,
        run_dir=str(tmp_path / "run"),
        steps=20,
        optimizer__max_nonfinite=3,
        optimizer__clip_norm=None,
        optimizer__learning_rate=1e30,
        evaluation__every=0,
    )
    monkeypatch.setattr("sys.argv", ["train"])
    with pytest.raises(SystemExit) as ended:
        main_guard(lambda _: train.train(config))
    assert ended.value.code == 2
    message = capsys.readouterr().err.split("error: ")[1]
    assert "3 updates in a row" in message and "Lower optimizer.learning_rate" in message
    assert "Traceback" not in message
    parameters = final_parameters(config.run_dir, Checkpoints(Path(config.run_dir)).steps()[-1])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(parameters))
    assert read_jsonl(Path(config.run_dir) / "metrics.jsonl")[-1]["skipped_updates"] == 3


def test_a_run_that_never_had_a_finite_loss_is_no_success(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer steps than optimizer.max_nonfinite: targets whose square is beyond float32, let past their check."""
    monkeypatch.setattr("instructrec_jax.tasks.text.regression.LARGEST", 1e38)
    config = tiny_run("regression", checkpoint, tmp_path, steps=2, evaluation__every=0)
    extreme = [row | {"output": row["output"] * 1e30} for row in read_jsonl(tmp_path / "train.jsonl")]
    write_jsonl(tmp_path / "train.jsonl", extreme)
    with pytest.raises(FloatingPointError, match="2 steps"):
        train.train(config)
