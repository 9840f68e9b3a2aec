"""The batches of a run have at most two shapes, for every task."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import task_cases
from helpers import assert_close, examples
from task_cases import CASES, COUNT, Built, after_one_step, alone, examples_of
from tiny_runs import changed, final_parameters, rows, tiny_run

from instructrec_jax import train
from instructrec_jax.data.loader import Loader
from instructrec_jax.data.sources import ListSource
from instructrec_jax.distributed.mesh import data_shards, make_mesh
from instructrec_jax.evaluation import predictor as predictor_module
from instructrec_jax.files import read_jsonl, write_jsonl
from instructrec_jax.inference.writer import Generated
from instructrec_jax.runs import batch_shapes
from instructrec_jax.runs import model as models
from instructrec_jax.runs.batch_shapes import in_few_shapes
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.data import buckets, target_buckets
from instructrec_jax.tasks.encoded_store import EncodedExamples, encode_stored
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.training.checkpoint import Checkpoints
from instructrec_jax.training.interrupt import Interrupt, Interrupted
from instructrec_jax.training.step import make_predict_step

networks = task_cases.networks  # a fixture
STEPS, SIZE = 24, 3  # steps, and examples of a batch: no epoch is a whole number of batches


def of(name: str, networks: Any, folder: Path, **how: Any) -> tuple[Built, EncodedExamples]:
    made = alone(name, networks, folder, dropout=False, lora=False, **how)
    source = ListSource(examples_of(name), "f")
    encoded = encode_stored(made.task, source, np.arange(COUNT), "error")
    made.task.prepare(encoded)
    return made, encoded


def loader_of(made: Built, encoded: EncodedExamples, multiple: int, size: int = SIZE) -> Loader:
    def gather(indices: np.ndarray, rng: np.random.Generator) -> Any:
        return made.task.gather(encoded.take(indices), rng)

    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng(epoch).permutation(len(encoded))

    return Loader(order, gather, size, buckets(made.config), multiple, 0, target_buckets(made.task))


def compiled_for(batch: Any) -> Any:
    """What jit compiles a step for."""
    return jax.tree.structure(batch), tuple((x.shape, x.dtype) for x in jax.tree.leaves(batch))


@pytest.mark.parametrize("name", CASES)
def test_two_shapes_at_most_for_every_task(name: str, networks: Any, tmp_path: Path) -> None:
    made, encoded = of(name, networks, tmp_path, loaded=False)
    for multiple in (1, 4):
        check_shapes(made, encoded, multiple)


def check_shapes(made: Built, encoded: EncodedExamples, multiple: int) -> None:
    plain = loader_of(made, encoded, multiple)
    shaped = in_few_shapes(plain, made.task, encoded, STEPS)
    assert shaped.shapes is not None and len(shaped.shapes.shapes) <= 2
    found = [shaped.batch(step) for step in range(STEPS)]
    assert len({compiled_for(each.batch) for each in found}) <= 2
    assert {each.shape for each in found} <= {
        (s.rows, s.length, *([] if s.target_length is None else [s.target_length])) for s in shaped.shapes.shapes
    }
    for step in (0, shaped.shapes.largest_step):
        ours, theirs = found[step], plain.batch(step)
        assert ours.tokens == theirs.tokens, "padding is not counted"
        assert jax.tree.structure(ours.batch.own) == jax.tree.structure(theirs.batch.own)
        again = in_few_shapes(plain, made.task, encoded, STEPS).batch(step)
        jax.tree.map(np.testing.assert_array_equal, again.batch, ours.batch)  # as after a resume


@pytest.mark.parametrize(
    "name", ["classification", "retrieval, sampled", "similarity", "preference", "multitask", "reranker, listwise"]
)
def test_a_batch_learns_the_same_in_every_shape(name: str, networks: Any, tmp_path: Path) -> None:
    """Empty rows are no negatives and have no weight; on one device, and on eight with two micro-batches."""
    made, encoded = of(name, networks, tmp_path)
    step = 5
    total, weight, params = after_one_step(made, loader_of(made, encoded, 1, COUNT).batch(step).batch)
    spread, _ = of(name, networks, tmp_path, mesh=CASES[name].mesh)
    multiple = 2 * data_shards(spread.mesh)
    shaped = in_few_shapes(loader_of(spread, encoded, 2 * multiple, COUNT), spread.task, encoded, STEPS)
    batch = shaped.batch(step).batch
    assert (np.asarray(batch.texts.segment_ids).max(axis=1) == 0).any(), "a row is empty"
    found = after_one_step(spread, batch, accumulation=2)
    assert found[0] == pytest.approx(total, rel=2e-5) and found[1] == pytest.approx(weight)
    assert_close(found[2], params, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "known"), [("classification", True), ("masked_lm", True), ("retrieval, sampled", False)]
)
def test_lengths_are_read_where_they_are_known(
    name: str, known: bool, networks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are made beforehand only where a task draws other texts, and only so many."""
    monkeypatch.setattr(batch_shapes, "GATHERED", 7)
    made, encoded = of(name, networks, tmp_path, loaded=False)
    gathered: list[int] = []

    def counted(gather: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: (gathered.append(0), gather(*given))[1]

    monkeypatch.setattr(made.task, "gather", counted(made.task.gather))
    shaped = in_few_shapes(loader_of(made, encoded, 1), made.task, encoded, 50)
    assert len(gathered) == (0 if made.task.gathers_alone else 4 if known else 1 + 7)
    assert shaped.shapes is not None
    rows = [shaped.batch(step).shape[0] for step in range(50)]
    assert len(set(rows)) <= (2 if known else 3)


def test_a_long_run_is_planned_from_some_of_its_batches(
    networks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_shapes, "PLANNED_TEXTS", 5 * SIZE)
    made, encoded = of("classification", networks, tmp_path, loaded=False)
    shaped = in_few_shapes(loader_of(made, encoded, 1), made.task, encoded, 200)
    assert shaped.shapes is not None
    longest = int(encoded.lengths.max())
    assert any(shape.length >= longest for shape in shaped.shapes.shapes)
    assert len({shaped.batch(step).shape for step in range(200)}) <= 3


def test_what_was_cut_is_counted_once(networks: Any, tmp_path: Path) -> None:
    """Tasks that tokenize when a batch is made count cut texts, too; planning does not."""
    made, encoded = of("language_model_ranking", networks, tmp_path, loaded=False)
    made.task.context.counts["texts"] = 3
    in_few_shapes(loader_of(made, encoded, 1), made.task, encoded, STEPS)
    assert made.task.context.counts == {"texts": 3}


# ---------------------------------------------------------------- whole runs


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """As if SIGTERM arrived while the loop was at its next step."""
    seen = iter(range(steps))
    requested = property(lambda self: None if next(seen, None) is not None else "SIGTERM")
    monkeypatch.setattr(Interrupt, "requested", requested, raising=False)
    monkeypatch.setattr(Interrupt, "__init__", lambda self: setattr(self, "_before", {}))


def ragged_run(kind: str, checkpoint: Path, folder: Path, **changes: Any) -> Config:
    """Mostly short texts, and a few long ones."""
    config = tiny_run(kind, checkpoint, folder, steps=10, data__batch_size=4, data__max_length=64)
    rng = np.random.default_rng(0)
    records = [example.to_record() for example in examples(kind, 37)]
    for record in records:
        record["instruction"] += " very" * int(rng.choice([0, 0, 0, 0, 9]))
    write_jsonl(Path(config.data.train[0].path), records)
    return changed(config, **changes)


def test_a_ragged_run_compiles_its_step_twice_and_resumes_exactly(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = "classification"
    monkeypatch.setattr(train, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
    whole = ragged_run(kind, checkpoint, tmp_path, evaluation__every=5, checkpoint__every=5)
    traced: list[int] = []
    loss = type(models.open_task(whole, checkpoint)).loss
    monkeypatch.setattr(
        type(models.open_task(whole, checkpoint)), "loss", lambda *given: (traced.append(0), loss(*given))[1]
    )
    train.train(whole)
    assert len(traced) == 2, "the step was traced for two shapes"
    lines = read_jsonl(Path(whole.run_dir) / "metrics.jsonl")
    last = [line for line in lines if line["kind"] == "train"][-1]
    assert last["step_shapes"] == 2 and last["compilations"] >= 0
    assert "the step for 2 shapes of batches" in (Path(whole.run_dir) / "report.html").read_text()
    stopped = changed(whole, run_dir=str(tmp_path / "stopped"))
    with monkeypatch.context() as patched:
        stop_after(patched, 7)
        with pytest.raises(Interrupted, match="SIGTERM: saved step"):
            train.train(stopped)
    assert Checkpoints(Path(stopped.run_dir)).steps()[-1] < 10
    train.train(stopped)
    assert rows(stopped.run_dir) == rows(whole.run_dir)
    assert_close(final_parameters(stopped.run_dir, 10), final_parameters(whole.run_dir, 10), atol=0)


# ---------------------------------------------------------------- evaluation


@pytest.mark.filterwarnings("ignore:all predictions are 0", "ignore:invalid value")
@pytest.mark.parametrize("name", CASES)
def test_a_call_of_an_evaluation_has_one_shape_for_every_task(
    name: str, networks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is computed, and nothing is written: outputs are zeros of the shapes that they would have."""
    monkeypatch.setattr(predictor_module, "TOKENS_PER_BATCH", 256)  # several batches a call
    calls: list[set[Any]] = []

    def counting(step: Callable[..., Any]) -> Callable[..., Any]:
        def zeros(params: Any, batch: Any, *seed: Any) -> Any:
            calls[-1].add(compiled_for(batch))
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(step, params, batch, *seed))

        return zeros

    def opened(*given: Any) -> Callable[..., Any]:
        return counting(make_predict_step(*given))

    def noted(run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            calls.append(set())
            return run(*given)

        return call

    monkeypatch.setattr(predictor_module, "make_predict_step", opened)
    made_run = predictor_module.make_predict
    monkeypatch.setattr(predictor_module, "make_predict", lambda *a, **k: noted(made_run(*a, **k)))
    made = alone(name, networks, tmp_path, dropout=False, lora=False)
    predictor = predictor_module.predictor(made.task, made.model.graphdef, made.mesh, buckets(made.config))
    predict = silent(predictor(made.model.params))
    made.task.score(predict, 5 * made.encoded)
    assert all(len(shapes) == 1 for shapes in calls)
    assert calls or made.task.writes


def silent(predict: Predict) -> Predict:
    """Empty answers, and no items."""

    def write(prompts: Any, config: Any, images: Any = None) -> list[Generated]:
        return [Generated("", "eos", 0.0) for _ in prompts]

    def find(prompts: Any, trie: Any, beams: int, excluded: Any) -> tuple[np.ndarray, np.ndarray]:
        return np.full((len(prompts), beams), -1), np.full((len(prompts), beams), -np.inf)

    subtasks = {name: silent(each) for name, each in predict.subtasks.items()}
    return replace(predict, write=write, find=find, subtasks=subtasks)
