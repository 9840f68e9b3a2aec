"""Several tasks on one backbone: the same numbers as each of them alone with the same parameters."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import MIXED, SUBJECTS, Setup, examples, task_config
from tiny_runs import rows, tiny_run

from instructrec_jax.data.example import Example
from instructrec_jax.data.loader import pack
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.evaluate import main as evaluate
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.export import main as export
from instructrec_jax.files import read_json, read_jsonl, write_jsonl
from instructrec_jax.runs import model as models
from instructrec_jax.runs.config import Config, load, to_yaml
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks import (
    ChoiceConfig,
    ClassificationConfig,
    LanguageModelConfig,
    MultitaskConfig,
    RegressionConfig,
)
from instructrec_jax.tasks.base import LossInputs, TaskContext
from instructrec_jax.tasks.task_config import SubtaskConfig
from instructrec_jax.train import train


def test_loss_and_scores_are_those_of_each_task_alone(checkpoint: Path, tmp_path: Path) -> None:
    setup = Setup("multitask", checkpoint, tmp_path)
    params = setup.model.params
    batch = pack(setup.parts(), setup.buckets, 1).batch
    together = float_sums(setup.task, setup.model.graphdef, params, batch)
    predict = predictor(setup.task, setup.model.graphdef, setup.mesh, setup.buckets)(params)
    scores = setup.task.score(predict, setup.encoded)
    total = weight = 0.0
    for name, share in MIXED.items():
        alone = Setup(name, checkpoint, tmp_path)
        own = params | {"head": params["head"][name]}
        if not alone.task.needs_pooler:
            own = own | {"backbone": {k: v for k, v in own["backbone"].items() if k != "pooler"}}
        encoded = alone.task.encode([e for e in examples("multitask") if e.task == name])
        parts = alone.task.gather(encoded, np.random.default_rng(0))
        found = float_sums(alone.task, alone.model.graphdef, own, pack(parts, setup.buckets, 1).batch)
        total, weight = total + share * found[0], weight + share * found[1]
        its = alone.task.score(predictor(alone.task, alone.model.graphdef, setup.mesh, setup.buckets)(own), encoded)
        for metric, value in its.metrics.items():
            assert scores.metrics[f"{metric} ({name})"] == pytest.approx(value, abs=1e-5)
    np.testing.assert_allclose(together, (total, weight), rtol=1e-5)
    wanted = [scores.metrics[f"macro_f1 ({name})"] for name in ("classification", "token_classification")]
    assert scores.metrics["average"] == pytest.approx((sum(wanted) - scores.metrics["mse (regression)"]) / 3)
    assert {record["task"] for record in scores.predictions} == set(MIXED) and len(scores.predictions) == 32


def float_sums(task: Any, graphdef: Any, params: Any, batch: Any) -> tuple[float, float]:
    @jax.jit
    def loss(params: Any) -> Any:
        return task.loss(nnx.merge(graphdef, params), batch, LossInputs())

    total, weight = loss(params)
    return float(total), float(weight)


def test_a_batch_without_examples_of_a_task(checkpoint: Path, tmp_path: Path) -> None:
    """It has the same arrays, and that task no part in the loss."""
    setup = Setup("multitask", checkpoint, tmp_path)
    some = [e for e in setup.encoded if e.example.task == "classification"]
    batch = pack(setup.task.gather(some, np.random.default_rng(0)), setup.buckets, 1).batch
    assert jax.tree.structure(batch) == jax.tree.structure(pack(setup.parts(), setup.buckets, 1).batch)
    total, weight = float_sums(setup.task, setup.model.graphdef, setup.model.params, batch)
    assert weight == len(some) and np.isfinite(total)


def test_a_task_with_several_texts_an_example_keeps_them_all(checkpoint: Path, tmp_path: Path) -> None:
    tasks = [SubtaskConfig("film", task_config("reranker", tmp_path / "c", negatives=4))]
    tasks.append(SubtaskConfig("size", RegressionConfig()))
    context = TaskContext(Setup("regression", checkpoint, tmp_path).task.context.tokenizer, 64)
    task = MultitaskConfig(tasks).build(context)
    films = [replace(e, task="film") for e in examples("reranker", 5)]
    sizes = [replace(e, task="size") for e in examples("regression", 3)]
    mixed = [films[0], sizes[0], *films[1:], *sizes[1:]]
    texts = task.gather(task.encode(mixed), np.random.default_rng(0))
    alone = task.tasks["film"].gather(task.tasks["film"].encode(films), np.random.default_rng(0))
    assert len(texts.texts) == 5 * 5 + 3 and len(alone.texts) == 25
    own, film = texts.own.owner == 1, texts.own.subtasks["film"].targets
    assert film.sum() == film[own].sum() == 5
    found = [text.tokens.tolist() for text, mine in zip(texts.texts, own, strict=True) if mine]
    assert found == [text.tokens.tolist() for text in alone.texts]
    numbers = texts.own.subtasks["size"].targets[~own]
    np.testing.assert_array_equal(numbers, np.array([e.output for e in sizes], np.float32))


def test_examples_that_a_task_changes_keep_their_order(language_models: dict[str, Path], tmp_path: Path) -> None:
    """Drawn candidates and the turns of a conversation are examples of their own."""
    tasks = [
        SubtaskConfig("pick", ChoiceConfig(template="plain", negatives=2)),
        SubtaskConfig("size", RegressionConfig()),
    ]
    setup = Setup("regression", language_models["llama"], tmp_path)
    task = MultitaskConfig(tasks).build(setup.task.context)
    picks = [replace(e, task="pick") for e in examples("choice", 6)]
    sizes = [replace(e, task="size") for e in examples("regression", 3)]
    encoded = task.encode([*picks, *sizes])
    assert [e.example.id for e in encoded] == [*(e.id for e in picks), *(e.id for e in sizes)]


def mixed_run(checkpoint: Path, folder: Path, **changes: Any) -> Config:
    """Classification (labels to be learnt from the data) and regression, a source each."""
    config = tiny_run("classification", checkpoint, folder, **changes)
    sources: dict[str, list[SourceConfig]] = {}
    for split in ("train", "validation", "test"):
        subjects = read_jsonl(folder / f"{split}.jsonl")
        write_jsonl(folder / f"{split}_sizes.jsonl", [r | {"output": len(r["instruction"]) / 10} for r in subjects])
        sources[split] = [
            SourceConfig(path=str(folder / f"{split}.jsonl"), task="subject"),
            SourceConfig(path=str(folder / f"{split}_sizes.jsonl"), task="size"),
        ]
    tasks = [SubtaskConfig("subject", ClassificationConfig(), 2.0), SubtaskConfig("size", RegressionConfig())]
    return replace(config, task=MultitaskConfig(tasks), data=replace(config.data, **sources))


def test_a_run_from_train_to_export(checkpoint: Path, tmp_path: Path) -> None:
    config = mixed_run(checkpoint, tmp_path)
    run = train(config)
    learnt: Any = load(run / "config.yaml").task
    assert learnt.tasks[0].task.labels == sorted(SUBJECTS) and learnt.tasks[0].weight == 2.0
    result = read_json(run / "evaluation.json")
    assert {"average", "macro_f1 (subject)", "mse (size)"} <= set(result["metrics"])
    assert result["protocol"].startswith("24 cases")
    compared = {(d["name"], d["metric"]) for d in result["differences"]}
    assert ("after tuning − mean", "mse (size)") in compared
    assert ("after tuning − most frequent label", "accuracy (subject)") in compared  # macro F1 has no value a case
    written = read_jsonl(run / "predictions.jsonl")
    assert [r["task"] for r in written] == ["subject"] * 12 + ["size"] * 12
    evaluate([str(run), "--out", str(tmp_path / "again"), "--no_baselines"])
    again = read_json(tmp_path / "again" / "evaluation.json")["rows"][0]["values"]
    assert again == next(r["values"] for r in result["rows"] if r["name"] == "after tuning")
    with pytest.raises(ValueError, match="--part.*subject, size"):
        export([str(run), "--format", "hf", "--out", str(tmp_path / "none")])
    export([str(run), "--format", "hf", "--part", "subject", "--out", str(tmp_path / "hf")])
    alone = replace(config, task=learnt.tasks[0].task)
    task = models.open_task(alone, tmp_path / "hf")
    setup_mesh = Run.open(run).mesh
    model = models.load_model(alone, task, tmp_path / "hf", setup_mesh)
    cases = task.encode([Example.from_record(r) for r in read_jsonl(tmp_path / "test.jsonl")])
    scores = task.score(predictor(task, model.graphdef, setup_mesh, (32,))(model.params), cases)
    assert [p["prediction"] for p in scores.predictions] == [r["prediction"] for r in written[:12]]


def test_resume_is_exact(checkpoint: Path, tmp_path: Path) -> None:
    whole = train(mixed_run(checkpoint, tmp_path / "a", data__temperature=2.0, data__size_cap=20))
    (tmp_path / "b").mkdir()
    config = mixed_run(checkpoint, tmp_path / "b", data__temperature=2.0, data__size_cap=20)
    import instructrec_jax.runs.setup as module

    class Stopped(Exception):
        pass

    made = module.make_train_step

    def stopping(*args: Any, **kwargs: Any) -> Any:
        step, left = made(*args, **kwargs), [4]

        def run(*inputs: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Stopped
            return step(*inputs)

        return run

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(module, "make_train_step", stopping)
        train(config)
    assert [r for r in rows(train(config))] == rows(whole)


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ([SubtaskConfig("a", ClassificationConfig(labels=["x", "y"]))], "task.tasks"),
        ([SubtaskConfig("a", RegressionConfig()), SubtaskConfig("a", RegressionConfig())], "task.tasks"),
        ([SubtaskConfig("a", RegressionConfig(), 0.0), SubtaskConfig("b", RegressionConfig())], "'a'"),
    ],
)
def test_settings_that_are_no_tasks(tasks: Any, words: str, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=words):
        MultitaskConfig(tasks).build(TaskContext(tokenizer, 64))


def test_what_cannot_be_mixed(tokenizer: Any, tmp_path: Path) -> None:
    ranking = SubtaskConfig("films", task_config("retrieval", tmp_path / "catalogue"))
    with pytest.raises(ValueError, match="'films'.*retrieval"):
        MultitaskConfig([ranking, SubtaskConfig("b", RegressionConfig())]).build(TaskContext(tokenizer, 64))
    writing = SubtaskConfig("answer", LanguageModelConfig(template="plain"))
    context = TaskContext(tokenizer, 64, kind="encoder_decoder", decoder_start_token_id=0)
    context.tokenizer.eos_token = tokenizer.eos_token or "[SEP]"
    with pytest.raises(ValueError, match="'b'"):
        MultitaskConfig([writing, SubtaskConfig("b", RegressionConfig())]).build(context)


def test_an_example_of_no_task_is_named(checkpoint: Path, tmp_path: Path) -> None:
    setup = Setup("multitask", checkpoint, tmp_path)
    with pytest.raises(ValueError, match="example 'x7'.*'summary'.*task.tasks"):
        setup.task.encode([Example(instruction="a film", output="love", task="summary", id="x7")])


def test_settings_survive_yaml(tmp_path: Path) -> None:
    config = Config(task=MultitaskConfig([SubtaskConfig("a", ClassificationConfig(labels=["x", "y"]), 2.0)]))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load(tmp_path / "config.yaml") == config
