"""Training examples behind an answer: scores against brute force, planted duplicates, and what is refused.

Gradients are those of `instructrec_jax.explanation.example_gradients`, kept by
`instructrec_jax.explanation.kept_gradients`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import task_cases
from flax import nnx
from helpers import examples, task_config
from tiny_runs import tiny_run, untrained_run

from instructrec_jax import explain as verb
from instructrec_jax.adapters.adapter_config import LoraConfig
from instructrec_jax.data.batch import lay_out, lengths_of
from instructrec_jax.data.example import BadExample
from instructrec_jax.data.packing import fit
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.explanation.training_examples import TrainingExamples, target_of
from instructrec_jax.files import read_jsonl, write_jsonl
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.answers import NumberAnswer, TextAnswer
from instructrec_jax.tasks.base import LossInputs
from instructrec_jax.train import train
from instructrec_jax.training.state import merge_params, split_params

networks = task_cases.networks  # a fixture


@pytest.fixture(scope="module")
def trained(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classification of 24 examples, with the checkpoints of steps 2, 4 and 6."""
    config = tiny_run("classification", checkpoint, tmp_path_factory.mktemp("trained"), evaluation__compare=False)
    return train(replace(config, checkpoint=replace(config.checkpoint, keep_last=3)))


def whole_gradients(run: Run, step: int, encoded: Any) -> np.ndarray:
    """float64 [examples, parameters]: of each example alone, in a batch of its own, by the loss of training."""
    opened = replace(run, step=step)
    params, frozen = split_params(opened.model.params, opened.model.is_frozen)

    @jax.jit
    def gradient(batch: Any) -> Any:
        def loss(params: Any) -> Any:
            with run.mesh.tracing():
                model = nnx.merge(opened.model.graphdef, merge_params(params, frozen))
                return run.task.loss(model, batch, LossInputs())[0]

        return jax.grad(loss)(params)

    found = []
    for e in encoded:
        texts = run.task.gather([e], np.random.default_rng(0))
        plan = fit(lengths_of(texts.texts)[0], 32)
        leaves = jax.tree.leaves(gradient(lay_out(texts, replace(plan, rows=8))))
        found.append(np.concatenate([np.asarray(leaf, np.float64).reshape(-1) for leaf in leaves]))
    return np.stack(found)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_whole_gradients_are_brute_force(trained: Path, similarity: Any) -> None:
    run = Run.open(trained)
    finder = TrainingExamples(run, similarity, dimension=0, batch=5)
    assert list(finder.weights) == [2, 4, 6]
    asked = [finder.asker.example({"instruction": text}, text) for text in ("a good film about war", "love")]
    queries = finder.queries(asked, [None, "love"])
    assert queries[0][0].example.output == run.predict("a good film about war")[0].label  # type: ignore[union-attr]
    expected: Any = 0.0
    for step, weight in finder.weights.items():
        rows, of_queries = (whole_gradients(run, step, e) for e in (finder.train, [own[0] for own in queries]))
        if similarity == "cosine":
            rows, of_queries = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (rows, of_queries))
        expected = expected + weight * of_queries @ rows.T
    if similarity == "cosine":
        expected = expected / sum(finder.weights.values())
    found = finder.scores(queries)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    (one, _) = finder.explain(["a good film about war", "love"], 3)
    np.testing.assert_allclose([e.score for e in one.examples], np.sort(found[0])[::-1][:3], rtol=1e-4)
    assert all(e.score < 0 for e in one.against) and one.training_examples == 24


def test_planted_duplicates_are_found_first(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finder = TrainingExamples(Run.open(trained), dimension=512)
    planted = [e.example for e in finder.train]
    texts = [e.instruction for e in planted]
    unique = [n for n, text in enumerate(texts) if texts.count(text) == 1]
    assert len(unique) >= 20
    asked = [replace(planted[n], where="query") for n in unique]
    scores = finder.scores(finder.queries(asked, [e.output for e in asked]))
    assert np.mean(scores.argmax(1) == unique) >= 0.95
    every = finder.run.path.glob("gradients/*/step-*/part-0.safetensors")
    kept = [path for path in every if 0 < path.stat().st_size - 24 * 512 * 4 < 1000]  # not the whole ones
    assert len(kept) == 3

    def fails(*_: Any) -> Any:
        raise AssertionError("computed again")

    again = TrainingExamples(Run.open(trained), dimension=512)
    queries = again.queries(asked[:1], ["love"])
    of_queries = again.scores(queries)
    kept[0].write_bytes(kept[0].read_bytes()[:100])  # damaged: computed again
    np.testing.assert_array_equal(again.scores(queries), of_queries)
    assert kept[0].stat().st_size > 24 * 512 * 4


def test_the_verb_shows_and_writes(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(trained), "a good film about war", "--examples", "2", "--projection", "512", "--step", "6"]
    verb.main(arguments)
    said = capsys.readouterr().out
    assert "training examples behind" in said and "train.jsonl, line" in said and "cosine" in said
    verb.main([*arguments, "--out", str(tmp_path / "out.jsonl"), "--target", "war"])
    (record,) = read_jsonl(tmp_path / "out.jsonl")
    found: Any = record["examples"]
    assert record["target"] == "war" and record["checkpoints"] == [6]
    assert [each["score"] for each in found] == sorted((each["score"] for each in found), reverse=True)
    for more, error in [
        (["--examples", "0"], "at least 1"),
        (["--target", "peace"], "peace"),
        (["--counterfactual"], "give one of"),
        (["--to", "war"], "--to belongs"),
        (["--word", "war"], "--against and --word"),
        (["--projection", "100"], "a multiple of 32"),
        (["--batch", "0"], "--batch"),
    ]:
        with pytest.raises(ValueError, match=error):
            verb.main([*arguments, *more])


def test_lora_has_gradients_of_what_is_trained(checkpoint: Path, tmp_path: Path) -> None:
    lora = tiny_run("classification", checkpoint, tmp_path, steps=2, lora=LoraConfig(rank=2), evaluation__compare=False)
    finder = TrainingExamples(Run.open(train(lora)), dimension=0)
    asked = [replace(e.example, where="query") for e in finder.train[:4]]
    queries = finder.queries(asked, [e.output for e in asked])
    names = split_params(finder.run.model.params, finder.run.model.is_frozen)[0]
    assert set(names) == {"backbone", "head"}
    count = sum(leaf.size for leaf in jax.tree.leaves(names))
    assert count < 0.2 * sum(leaf.size for leaf in jax.tree.leaves(finder.run.model.params))
    assert finder.scores(queries).argmax(1).tolist() == [0, 1, 2, 3]


SLOW_KINDS = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("token_classification", "multitask")]


@pytest.mark.parametrize("kind", ["sequence", "language_model", *SLOW_KINDS])
def test_other_tasks_find_their_own_examples(kind: str, networks: Any, tmp_path: Path) -> None:
    network = networks["llama" if kind == "language_model" else "bert", False]
    write_jsonl(tmp_path / "train.jsonl", (e.to_record() for e in examples(kind, 24)))
    sources = {"data__train": [SourceConfig(path=str(tmp_path / "train.jsonl"))]}
    # else training examples of `sequence` have losses of earlier items beside, which the answer does not have
    last = {"supervise": "last"} if kind == "sequence" else {}
    task = task_config(kind, tmp_path / "catalogue", **last)
    folder = untrained_run(tmp_path / "run", task, network, 128 if kind == "language_model" else 64, **sources)
    finder = TrainingExamples(Run.open(folder), dimension=1024)
    asked = [replace(e.example, where="query") for e in finder.train[:6]]
    queries = finder.queries(asked, [e.output for e in asked])
    scores = finder.scores(queries)
    first = scores.argmax(1).tolist()
    assert [scores[n, n] == pytest.approx(scores[n].max(), abs=1e-6) for n in range(6)] == [True] * 6, first
    target = "good" if kind == "language_model" else None  # an untrained network writes nothing
    (behind,) = finder.explain([replace(asked[1], output=None)], 2, target)
    assert len(behind.examples) == 2 and behind.target


def test_what_has_no_gradient_of_its_own_is_refused(networks: Any, tmp_path: Path) -> None:
    folder = untrained_run(tmp_path / "run", task_config("similarity", tmp_path), networks["bert", False], 64)
    with pytest.raises(ValueError, match="compares the examples of a batch"):
        TrainingExamples(Run.open(folder))
    with pytest.raises(ValueError, match="no run directory"):
        TrainingExamples(replace(Run.open(folder), trained=False))
    for answer, error in [(NumberAnswer(1.0), "predicted number"), (TextAnswer(""), "writes nothing")]:
        with pytest.raises(ValueError, match=error):
            target_of(answer)


def test_a_record_that_cannot_be_answered_is_named(trained: Path) -> None:
    finder = TrainingExamples(Run.open(trained), dimension=512)
    for text in ("", "film " * 100):
        with pytest.raises(BadExample, match="record 1"):
            finder.explain(["好 film 🎬", text], 1)
