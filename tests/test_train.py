"""Whole runs: streams, skipped rows, frozen backbones, summaries and reports."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import SUBJECTS, assert_close
from tiny_runs import changed, final_parameters, rows, tiny_run, write_settings

from instructrec_jax import train
from instructrec_jax.adapters.losses import squared_error
from instructrec_jax.data.batch import BatchTexts, Text
from instructrec_jax.data.loader import pack, to_devices
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.distributed.mesh import make_mesh, parameter_shardings
from instructrec_jax.distributed.mesh_config import MeshConfig
from instructrec_jax.evaluation.report import write_report
from instructrec_jax.files import read_json, read_jsonl, write_json, write_jsonl
from instructrec_jax.runs import data as run_data
from instructrec_jax.runs import model as models
from instructrec_jax.runs.config import Config, main_guard, to_dict
from instructrec_jax.tasks.base import Model, Task
from instructrec_jax.tasks.targets import TextTargets
from instructrec_jax.training.checkpoint import Checkpoints
from instructrec_jax.training.interrupt import Interrupt, Interrupted
from instructrec_jax.training.optimizer import make_optimizer
from instructrec_jax.training.state import create_state, state_shardings
from instructrec_jax.training.step import make_train_step
from instructrec_jax.training.training_config import OptimizerConfig, ProfileConfig


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Simulates SIGTERM during the loop's next step."""
    seen = iter(range(steps))

    def requested(self: Interrupt) -> str | None:
        return None if next(seen, None) is not None else "SIGTERM"

    monkeypatch.setattr(Interrupt, "requested", property(requested), raising=False)
    monkeypatch.setattr(Interrupt, "__init__", lambda self: setattr(self, "_before", {}))


def test_a_stream_trains_and_goes_on_where_it_stopped(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """7 examples remain of each epoch of 24, so that batches cross the ends of epochs."""
    config = tiny_run("classification", checkpoint, tmp_path, steps=7, evaluation__every=0, data__test=[])
    config = changed(config, data__validation=[], data__batch_size=7, data__on_bad_example="skip")
    folder = tmp_path / "stream"
    records = read_jsonl(config.data.train[0].path)
    records[3]["output"] = "cooking"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", records)
    source = SourceConfig(path=str(folder), kind="datasets", streaming=True, shuffle_block=10)
    config = changed(config, data__train=[source])
    train.train(config)
    other = changed(config, run_dir=str(tmp_path / "other"))
    with monkeypatch.context() as patched:
        stop_after(patched, 4)
        with pytest.raises(Interrupted, match="SIGTERM: saved step"):
            train.train(other)
    assert Checkpoints(Path(other.run_dir)).steps()[-1] < 7
    train.train(other)
    assert rows(other.run_dir) == rows(config.run_dir)
    assert_close(final_parameters(other.run_dir, 7), final_parameters(config.run_dir, 7), atol=0)
    for run in (config, other):
        (skipped,) = read_jsonl(Path(run.run_dir) / "skipped.jsonl")
        assert "row 3" in skipped["where"] and skipped["field"] == "output"


def test_train_run_takes_settings_in_any_form_and_opens_the_run(
    finished: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Config] = []
    monkeypatch.setattr(train, "train", lambda config, given: started.append(config) or Path(finished.run_dir))
    file = write_settings(finished, tmp_path / "settings.yaml")
    for settings in (finished, file, str(file), to_dict(finished)):
        run = train.train_run(settings)
        assert run.path == Path(finished.run_dir) and run.trained and run.kind == "classification"
    assert started == [finished] * 4


def test_bad_rows_are_counted_and_kept(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_run("classification", checkpoint, tmp_path, steps=2)
    file = Path(config.data.train[0].path)
    good = file.read_text().splitlines()
    bad = ["{torn", json.dumps({"instruction": "a film", "output": "cooking"}), json.dumps({"instruction": " "})]
    file.write_text("\n".join([good[0], *bad, *good[1:]]) + "\n")
    with pytest.raises(ValueError, match=r"(?s)line 2.*line 3.*cooking.*line 4.*on_bad_example: skip"):
        train.train(config)
    assert not Path(config.run_dir).exists()
    train.train(changed(config, data__on_bad_example="skip"))
    said = capsys.readouterr()
    assert "3 bad rows" in said.err
    assert [line.split("  ")[0] for line in said.out.splitlines()[-2:]] == ["Measured on", "Next"]
    assert "\n\nResult       macro_f1 " in said.out
    skipped = read_jsonl(Path(config.run_dir) / "skipped.jsonl")
    assert [row["where"].split(", ")[-1] for row in skipped] == ["line 2", "line 3", "line 4"]
    assert read_json(Path(config.run_dir) / "summary.json")["facts"]["examples"].startswith("24 examples")


def test_a_run_explains_itself(finished: Config, tmp_path: Path, charts_are_drawn: None) -> None:
    run = Path(finished.run_dir)
    facts = read_json(run / "summary.json")["facts"]
    assert facts["devices"] == "8 × cpu, mesh data 8"
    parameters = sum(leaf.size for leaf in jax.tree.leaves(final_parameters(run, 6)))
    assert facts["parameters"] == f"{parameters:,} trained, 0 frozen"
    assert facts["steps"] == "6 × 8 examples" and "3.0 steps" in facts["examples"]
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    page = write_report(copy).read_text()
    assert (run / "report.html").stat().st_size > 1000
    assert all(text in page for text in ("before tuning", "after tuning", "most frequent label", "data:image"))
    train_rows = [row for row in rows(run) if row["kind"] == "train"]
    assert [row["step"] for row in train_rows] == [1, 2, 3, 4, 5, 6]
    assert train_rows[-1]["loss"] < train_rows[0]["loss"]
    tokens = sum(len(text.text.tokens) for text in encoded_training(finished))
    assert train_rows[2]["tokens"] == tokens and train_rows[5]["tokens"] == 2 * tokens
    assert {path.name for path in (run / "backbone").iterdir()} >= {"config.json", "tokenizer.json"}


def encoded_training(config: Config) -> list[Any]:
    task = models.open_task(config, Path(config.backbone.path))
    return run_data.RunData(config).cases(task, "train")


def test_a_frozen_backbone_is_restored_too(checkpoint: Path, tmp_path: Path) -> None:
    config = tiny_run("regression", checkpoint, tmp_path, steps=2, backbone__freeze=["^backbone/"])
    train.train(config)
    after = final_parameters(config.run_dir, 2)
    task = models.open_task(config, checkpoint)
    before = jax.device_get(models.load_model(config, task, checkpoint, make_mesh(MeshConfig())).params)
    assert_close(after["backbone"], before["backbone"], atol=0)
    assert np.abs(after["head"]["output"]["kernel"] - before["head"]["output"]["kernel"]).max() > 0
    assert "0 frozen" not in read_json(Path(config.run_dir) / "summary.json")["facts"]["parameters"]


@pytest.mark.slow  # tests/training/test_step.py has the same of single steps
def test_accumulation_and_meshes_give_the_same_run(checkpoint: Path, tmp_path: Path) -> None:
    """Retrieval couples the examples of a batch; two micro-batches on 2 x 2 x 2 devices give the same batch."""
    config = tiny_run("retrieval", checkpoint, tmp_path, steps=3, data__validation=[], data__test=[])
    train.train(config)
    other = changed(config, run_dir=str(tmp_path / "other"), accumulation=2, mesh=MeshConfig(2, 2, 2))
    train.train(other)
    for mine, theirs in zip(rows(other.run_dir), rows(config.run_dir), strict=True):
        assert mine.pop("kind") == theirs.pop("kind") and mine == pytest.approx(theirs, rel=1e-4)


class _WordCounts(nnx.Module):
    """A number from a text's tokens: ŷ = Σ_t w[token t]."""

    def __init__(self, vocabulary: int):
        self.weights = nnx.Param(jnp.zeros(vocabulary), axes=("vocab",))

    def __call__(self, tokens: jax.Array, segment_ids: jax.Array, segments: int) -> jax.Array:
        member = segment_ids[:, None, :] == 1 + jnp.arange(segments)[:, None]
        return jnp.sum(member * self.weights[...][tokens][:, None, :], -1)


class _WordCountTask(Task):
    """Regression without a backbone."""

    def loss(self, model: Any, batch: Any, inputs: Any) -> tuple[jax.Array, jax.Array]:
        answers = model.head(batch.texts.tokens, batch.texts.segment_ids, batch.own.weights.shape[1])
        return jnp.sum(squared_error(answers, batch.own.targets) * batch.own.weights), jnp.sum(batch.own.weights)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_network_without_a_backbone_trains_on_the_same_step(accumulation: int) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    task, model = _WordCountTask(), Model(None, _WordCounts(16))
    graphdef, state = nnx.split(model)
    settings = OptimizerConfig(learning_rate=0.1, schedule="constant", warmup=0.0, weight_decay=0.0)
    optimizer = make_optimizer(settings, 100)
    whole = create_state(nnx.to_pure_dict(state), optimizer, seed=0)
    shardings = state_shardings(whole, parameter_shardings(mesh, model), mesh)
    whole = jax.device_put(whole, shardings)
    step = make_train_step(task, graphdef, optimizer, mesh=mesh, shardings=shardings, accumulation=accumulation)
    rng = np.random.default_rng(0)
    truth = rng.normal(size=16).astype(np.float32)
    for _ in range(100):
        texts = [Text(rng.integers(0, 16, rng.integers(1, 6)).astype(np.int32)) for _ in range(32)]
        targets = np.array([truth[text.tokens].sum() for text in texts], np.float32)
        parts = BatchTexts(texts, TextTargets(targets, np.ones(32, np.float32)))
        whole, _ = step(whole, to_devices(pack(parts, (32,), 4 * accumulation).batch, mesh))
    assert set(whole.params) == {"head"}
    np.testing.assert_allclose(whole.params["head"]["weights"], truth, atol=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"data__train": []}, "data.train"),
        ({"data__batch_size": 0}, "data.batch_size.* 1"),
        ({"data__max_length": 2}, "data.max_length.* 2.* 3"),
        ({"data__max_length": 3}, r"\d+ tokens.*data.max_length.* 3.*data.truncate"),
        ({"data__max_length": 65}, "data.max_length.*64"),
        ({"mesh": MeshConfig(tensor=3)}, "mesh.tensor"),
        ({"checkpoint__every": 0}, "checkpoint.every"),
        ({"tracking__log_every": 0}, "tracking.log_every"),
        ({"evaluation__patience": 0}, "evaluation.patience"),
        ({"evaluation__patience": 3, "data__validation": []}, "evaluation.patience.*data.validation"),
        ({"evaluation__every": -1}, "evaluation.every"),
        ({"optimizer__warmup": 1.5}, "optimizer.warmup"),
        ({"optimizer__max_nonfinite": 0}, "optimizer.max_nonfinite"),
        ({"seed": -1}, "seed"),
        ({"backbone__path": ""}, "backbone.path"),
        ({"task__labels": SUBJECTS[:4]}, "output"),
    ],
)
def test_a_run_that_cannot_begin_says_why_and_leaves_nothing(
    changes: dict[str, Any], message: str, finished: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = changed(finished, run_dir=str(tmp_path / "run"), **changes)
    with pytest.raises(SystemExit) as ended, pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.argv", ["train"])
        main_guard(lambda _: train.train(config))
    assert ended.value.code == 2
    assert not Path(config.run_dir).exists()
    with pytest.raises(ValueError, match=message):
        train.train(config)


def without(name: str) -> Any:
    return lambda folder: [path.unlink() for path in folder.glob(name)]


def with_setting(**settings: Any) -> Any:
    return lambda folder: write_json(folder / "config.json", read_json(folder / "config.json") | settings)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("config.json"), "config.json"),
        (without("tokenizer*"), "tokenizer"),
        (without("*.safetensors"), "model.safetensors"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (with_setting(model_type="gpt9"), "model_type 'gpt9'.*bert"),
        (with_setting(vocab_size=20), "20"),
        (with_setting(intermediate_size=65), "config.json"),
    ],
)
def test_a_broken_backbone_is_named(damage: Any, message: str, finished: Config, tmp_path: Path) -> None:
    folder = tmp_path / "backbone"
    shutil.copytree(finished.backbone.path, folder)
    damage(folder)
    with pytest.raises(ValueError, match=message):
        train.train(changed(finished, run_dir=str(tmp_path / "run"), backbone__path=str(folder)))
    assert not (tmp_path / "run").exists()


def test_few_examples_are_enough(finished: Config, tmp_path: Path) -> None:
    """One example in a batch of eight is repeated eight times, since epochs follow each other."""
    file = tmp_path / "one.jsonl"
    write_jsonl(file, read_jsonl(finished.data.train[0].path)[:1])
    one = [SourceConfig(path=str(file))]
    config = changed(finished, run_dir=str(tmp_path / "电影 🎬"), steps=1, data__train=one, data__test=one)
    train.train(changed(config, data__validation=[], evaluation__every=0))
    facts = read_json(Path(config.run_dir) / "summary.json")["facts"]
    assert facts["examples"].startswith("1 examples") and facts["examples"].endswith("0.1 steps per epoch")
    assert (Path(config.run_dir) / "report.html").stat().st_size > 1000


# ------------------------------------------------------------------ profiling


@pytest.mark.slow  # tests/training/test_profiling.py has what is traced when
def test_the_steps_asked_for_are_traced(checkpoint: Path, tmp_path: Path) -> None:
    config = tiny_run("classification", checkpoint, tmp_path, steps=4, data__validation=[], data__test=[])
    train.train(changed(config, profile=ProfileConfig("2..3")))
    run = Path(config.run_dir)
    traces = [path.name for path in (run / "profile").rglob("*") if path.is_file()]
    assert any(name.endswith(".xplane.pb") for name in traces) and any("perfetto" in name for name in traces)
    lines = [row for row in read_jsonl(run / "metrics.jsonl") if row["kind"] == "train"]
    parts = ("input_share", "checkpoint_share", "logging_share", "step_share")
    assert all(sum(row[part] for part in parts) == pytest.approx(1) for row in lines if row["step_share"] > 0)
    assert all("mfu" not in row for row in lines)  # the peak of this CPU is unknown


@pytest.mark.parametrize("steps", ["", "3..2", "0..2", "a", "1-3", "5..7"])  # the run has 6
def test_steps_to_trace_that_are_none(steps: str, checkpoint: Path, tmp_path: Path) -> None:
    config = tiny_run("classification", checkpoint, tmp_path)
    with pytest.raises(ValueError, match="profile.steps"):
        train.train(changed(config, profile=ProfileConfig(steps)))
    assert not Path(config.run_dir).exists()


def test_freed_memory_goes_back_after_each_compilation_and_evaluation(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[None] = []
    monkeypatch.setattr(train, "release_freed_memory", lambda: calls.append(None))
    config = tiny_run("classification", checkpoint, tmp_path, steps=4, data__test=[])
    train.train(config)
    compiled = "".join(capsys.readouterr()).count("compiling the step for")
    evaluations = sum(row["kind"] == "evaluation" for row in rows(config.run_dir))
    assert compiled >= 1 and evaluations == 2 and len(calls) == compiled + evaluations
