"""Sentences chosen by an encoder: what training wants, its loss, and what is chosen, by brute force."""

from itertools import combinations
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from rouge_score.rouge_scorer import RougeScorer
from tiny_runs import changed

from instructrec_jax.backbones.backbone_config import BackboneConfig
from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.example import Example
from instructrec_jax.data.loader import pack
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.evaluation.evaluation_config import EvaluationConfig
from instructrec_jax.files import read_json, read_jsonl, write_jsonl
from instructrec_jax.runs import model as models
from instructrec_jax.runs.config import Config
from instructrec_jax.tasks import ExtractiveSummarizationConfig
from instructrec_jax.tasks.base import LossInputs, TaskContext
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.train import train
from instructrec_jax.training.training_config import CheckpointConfig, OptimizerConfig, TrackingConfig

WORDS = "the a film book good bad dull bright about old new long short".split()


def texts(count: int = 12) -> list[Example]:
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        parts = [" ".join(rng.choice(WORDS, rng.integers(2, 5))) + "." for _ in range(number % 3 + 2)]
        wanted = " ".join(rng.permutation(parts[number % len(parts)].rstrip(".").split())) + " love"
        made.append(Example(instruction="sum up", input=" ".join(parts), output=(wanted, "war"), id=f"e{number}"))
    return made


def rouge(text: str, example: Example) -> float:
    """ROUGE-1 + ROUGE-2, each with the reference that gives the most."""
    scorer = RougeScorer(["rouge1", "rouge2"], use_stemmer=True)
    found = scorer.score_multi(list(example.output), text)  # type: ignore[arg-type]
    return found["rouge1"].fmeasure + found["rouge2"].fmeasure


@pytest.fixture
def context(tokenizer: Any) -> TaskContext:
    return TaskContext(tokenizer, 64)


def test_what_training_wants_is_the_best_of_all_choices(context: TaskContext) -> None:
    task = ExtractiveSummarizationConfig().build(context)
    for e in task.encode(texts()):
        values = [rouge(text, e.example) for text in e.target.texts]
        assert np.flatnonzero(e.target.target).tolist() == [int(np.argmax(values))]
    pairs = ExtractiveSummarizationConfig(sentences=2).build(context)
    two = Example(instruction="", input="old war. a dull book. new love. short film.", output="new love old war")
    (e,) = pairs.encode([two])
    best = max(combinations(range(4), 2), key=lambda p: rouge(" ".join(e.target.texts[n] for n in p), two_refs(two)))
    assert tuple(np.flatnonzero(e.target.target)) == best == (0, 2)
    (alone,) = pairs.encode([Example(instruction="", input="old war. a dull book.", output="old war")])
    assert alone.target.target.tolist() == [True, False]  # the second would make it worse


def two_refs(example: Example) -> Example:
    return Example(instruction="", output=(str(example.output),))


def test_tokens_know_their_sentence(context: TaskContext) -> None:
    task, tokenizer = ExtractiveSummarizationConfig().build(context), context.tokenizer
    for e in task.encode(texts()):
        for number, text in enumerate(e.target.texts):
            own = e.text.tokens[e.target.owners == number]
            assert own.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
        asked = e.text.tokens[e.target.owners < 0]
        assert set(tokenizer("sum up", add_special_tokens=False)["input_ids"]) <= set(asked.tolist())


def test_long_texts_keep_their_beginning(tokenizer: Any) -> None:
    long = [Example(instruction="sum up", input="old war. " * 9 + "new love.", output="new love", id="x")]
    with pytest.raises(ValueError, match=r"example 'x'.*data.max_length.*24"):
        ExtractiveSummarizationConfig().build(TaskContext(tokenizer, 24)).encode(long)
    cut = TaskContext(tokenizer, 24, "right")
    (e,) = ExtractiveSummarizationConfig().build(cut).encode(long)
    assert len(e.text.tokens) == 24 and 1 < len(e.target.texts) < 10 and cut.counts == {"texts cut": 1}
    drop = TaskContext(tokenizer, 24, "drop")
    assert ExtractiveSummarizationConfig().build(drop).encode(long) == [] and drop.counts == {"texts dropped": 1}
    with pytest.raises(ValueError, match="data.max_length"):
        ExtractiveSummarizationConfig().build(TaskContext(tokenizer, 5, "right")).encode(long)


@pytest.mark.parametrize(
    ("settings", "changes", "words"),
    [
        ({"sentences": 0}, {}, "task.sentences"),
        ({}, {"kind": "decoder"}, "summarization"),
        ({}, {"truncate": "left"}, "data.truncate"),
    ],
)
def test_settings_that_make_no_sense(settings: Any, changes: Any, words: str, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=words):
        ExtractiveSummarizationConfig(**settings).build(TaskContext(tokenizer, 64, **changes))


def test_bad_examples_are_named(context: TaskContext) -> None:
    task = ExtractiveSummarizationConfig().build(context)
    with pytest.raises(ValueError, match="example 'a'.*fields.input"):
        task.encode([Example(instruction="sum up", output="x", id="a")])
    with pytest.raises(ValueError, match="example 'b'.*summary"):
        task.encode([Example(instruction="sum up", input="old war.", id="b")])


def test_the_best_mean_is_chosen_in_the_order_of_the_text(context: TaskContext) -> None:
    task = ExtractiveSummarizationConfig(sentences=2).build(context)
    encoded = task.encode(texts())
    rng = np.random.default_rng(1)
    logits = [rng.normal(size=(len(e.text.tokens), 2)).astype(np.float32) for e in encoded]
    scores = task.score(Predict(lambda *_: logits), encoded)
    for e, values, record in zip(encoded, logits, scores.predictions, strict=True):
        means = [(values[:, 1] - values[:, 0])[e.target.owners == n].mean() for n in range(len(e.target.texts))]
        first, second = sorted(sorted(range(len(means)), key=lambda n: -means[n])[:2])
        assert record["prediction"] == f"{e.target.texts[first]} {e.target.texts[second]}"


def run_config(checkpoint: Path, folder: Path) -> Config:
    rows = [e.to_record() for e in texts()]
    for name, some in {"train": rows[:8], "test": rows[8:]}.items():
        write_jsonl(folder / f"{name}.jsonl", some)
    return Config(
        run_dir=str(folder / "run"),
        steps=2,
        backbone=BackboneConfig(path=str(checkpoint), dtype="float32"),
        task=ExtractiveSummarizationConfig(),
        data=DataConfig(
            train=[SourceConfig(path=str(folder / "train.jsonl"))],
            test=[SourceConfig(path=str(folder / "test.jsonl"))],
            batch_size=4,
            max_length=64,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        evaluation=EvaluationConfig(every=0),
        checkpoint=CheckpointConfig(every=2),
        tracking=TrackingConfig(log_every=1, tensorboard=False),
    )


def test_loss_is_the_mean_over_sentences_of_the_mean_over_tokens(checkpoint: Path, tmp_path: Path) -> None:
    config = run_config(checkpoint, tmp_path)
    task: Any = models.open_task(config, checkpoint)
    model = models.load_model(config, task, checkpoint, make_mesh(config.mesh, jax.devices()[:1]))
    encoded = task.encode(texts(6))
    parts = task.gather(encoded, np.random.default_rng(0))
    batch = pack(parts, (64,), 1).batch

    @jax.jit
    def run(params: Any, batch: Any) -> Any:
        network = nnx.merge(model.graphdef, params)
        return task.loss(network, batch, LossInputs()), task.predict(network, batch)

    (total, weight), logits = run(model.params, batch)
    # The same, text by text in rows of their own.
    expected, count = 0.0, 0
    for e in encoded:
        alone = pack(task.gather([e], np.random.default_rng(0)), (64,), 1).batch
        values = np.asarray(run(model.params, alone)[1], np.float64)[0, : len(e.text.tokens)]
        log_p = values - np.log(np.exp(values).sum(-1, keepdims=True))
        for n, wanted in enumerate(e.target.target):
            expected -= log_p[e.target.owners == n, int(wanted)].mean()
            count += 1
    assert float(weight) == pytest.approx(count) and float(total) == pytest.approx(expected, rel=1e-5)
    assert logits.shape[-1] == 2


def test_a_run_is_scored_as_rouge_score_does(checkpoint: Path, tmp_path: Path) -> None:
    run = train(run_config(checkpoint, tmp_path))
    written = read_jsonl(run / "predictions.jsonl")
    result = read_json(run / "evaluation.json")
    rows = {row["name"]: row["values"] for row in result["rows"]}
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    found = [scorer.score_multi(r["reference"], r["prediction"])["rougeL"].fmeasure for r in written]
    assert rows["after tuning"]["rougeL"] == pytest.approx(np.mean(found))
    leads = [scorer.score_multi(list(e.output), e.input.split(". ")[0])["rougeL"].fmeasure for e in texts()[8:]]  # type: ignore[arg-type,union-attr]
    assert rows["lead-1"]["rougeL"] == pytest.approx(np.mean(leads))
    assert "rougeL" in {d["metric"] for d in result["differences"]}
    for record, example in zip(written, texts()[8:], strict=True):
        assert record["prediction"] in str(example.input) and record["input"].endswith(str(example.input))
    again = train(changed(run_config(checkpoint, tmp_path), overwrite=True))
    assert read_jsonl(again / "predictions.jsonl") == written
