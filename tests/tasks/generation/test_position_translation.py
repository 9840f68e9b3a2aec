"""Translation at all positions at once: the losses are PyTorch's, the texts those of the outputs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sacrebleu
import torch
from flax import nnx
from tiny_runs import changed

from instructrec_jax.backbones.backbone_config import BackboneConfig
from instructrec_jax.data.batch import lay_out, lengths_of
from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.example import Example
from instructrec_jax.data.loader import pack
from instructrec_jax.data.packing import unpacked
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.distributed.mesh_config import MeshConfig
from instructrec_jax.evaluation.evaluation_config import EvaluationConfig
from instructrec_jax.files import read_json, read_jsonl, write_jsonl
from instructrec_jax.runs import model as models
from instructrec_jax.runs.config import Config, load, to_yaml
from instructrec_jax.tasks import PositionTranslationConfig
from instructrec_jax.tasks.base import LossInputs, TaskContext
from instructrec_jax.tasks.generation.position_translation import NOTHING, SPECIAL, ctc_losses
from instructrec_jax.tasks.generation.writing_config import split
from instructrec_jax.train import train
from instructrec_jax.training.training_config import CheckpointConfig, OptimizerConfig, TrackingConfig

PAIRS = [
    Example(instruction="translate", input=f"the {a} {b}", output=f"{x}{y}", id=f"{a}-{b}")
    for a, x in (("old", "旧的"), ("new", "新的"), ("dull", "闷"), ("bright", "亮亮的"))
    for b, y in (("film", "电影"), ("book", "书"))
]


@pytest.fixture
def context(tokenizer: Any) -> TaskContext:
    return TaskContext(tokenizer, 64)


def learnt(**settings: Any) -> Any:
    return PositionTranslationConfig(**settings).learn(PAIRS)


def test_ctc_is_pytorch_s_in_packed_rows() -> None:
    """Rows hold several texts; targets repeat tokens, are empty but for one, or as long as the text allows."""
    rng = np.random.default_rng(0)
    outputs, longest = 5, 6
    layout = [[(7, [1, 1, 2]), (4, [3]), (9, [1, 2, 3, 4, 1, 1])], [(12, [2, 2, 2, 2, 2, 2]), (3, [4, 1, 2])]]
    rows, length = len(layout), 24
    logits = rng.normal(size=(rows, length, outputs)).astype(np.float32) * 2
    segment_ids, positions = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.int32)
    targets, sizes = np.zeros((rows, 4, longest), np.int32), np.zeros((rows, 4), np.int32)
    spans = []
    for row, texts in enumerate(layout):
        start = 0
        for number, (size, target) in enumerate(texts):
            segment_ids[row, start : start + size] = number + 1
            positions[row, start : start + size] = np.arange(size)
            targets[row, number, : len(target)], sizes[row, number] = target, len(target)
            spans.append((row, number, start, size, target))
            start += size
    weights = rng.normal(size=(rows, 4)).astype(np.float32)

    def total(logits: jax.Array) -> Any:
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        each = ctc_losses(log_probs, *map(jnp.asarray, (segment_ids, positions, targets, sizes)), blank=0)
        return jnp.sum(each * weights), each

    (_, each), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(jnp.asarray(logits))
    theirs = torch.tensor(logits, requires_grad=True)
    expected = np.zeros((rows, 4))
    loss = torch.zeros(())
    for row, number, start, size, target in spans:
        log_probs = torch.log_softmax(theirs[row, start : start + size], -1)[:, None]
        one = torch.nn.functional.ctc_loss(
            log_probs, torch.tensor([target]), torch.tensor([size]), torch.tensor([len(target)]), reduction="none"
        )[0]
        expected[row, number] = float(one)
        loss = loss + one * float(weights[row, number])
    loss.backward()
    np.testing.assert_allclose(each, expected, rtol=1e-5, atol=1e-5)
    assert theirs.grad is not None
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=1e-5)


@pytest.mark.parametrize("form", ["aligned", "ctc"])
def test_loss_and_packing(form: Any, checkpoint: Path) -> None:
    config = Config(task=learnt(form=form), data=DataConfig(batch_size=8, max_length=64))
    config = changed(config, backbone__path=str(checkpoint), backbone__dtype="float32")
    task: Any = models.open_task(config, checkpoint)
    model = models.load_model(config, task, checkpoint, make_mesh(MeshConfig(), jax.devices()[:1]))
    encoded = task.encode(PAIRS)
    parts = task.gather(encoded, np.random.default_rng(0))

    @jax.jit
    def run(params: Any, batch: Any) -> Any:
        network = nnx.merge(model.graphdef, params)
        total, weight = task.loss(network, batch, LossInputs())
        return total, weight, network.head(network.hidden(batch))

    lengths, _ = lengths_of(parts.texts)
    alone = run(model.params, lay_out(parts, unpacked(lengths, 64)))
    packed = run(model.params, pack(parts, (64, 128), 1).batch)
    np.testing.assert_allclose(packed[0], alone[0], rtol=1e-5)
    expected = 0.0
    for row, e in enumerate(encoded):
        logits = torch.tensor(np.asarray(alone[2])[row, : len(e.text.tokens)])
        if form == "ctc":
            each = torch.nn.functional.ctc_loss(
                torch.log_softmax(logits, -1)[:, None],
                torch.tensor(e.target.tokens[None]).long(),
                torch.tensor([len(logits)]),
                torch.tensor([len(e.target.tokens)]),
                reduction="sum",
            )
        else:
            labels = torch.full((len(logits),), NOTHING).long()
            labels[: len(e.target.tokens)] = torch.tensor(e.target.tokens).long()
            each = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        expected += float(each)
    assert float(alone[0]) == pytest.approx(expected, rel=1e-5)
    places = sum(len(e.text.tokens) for e in encoded)
    assert float(alone[1]) == (sum(len(e.target.tokens) for e in encoded) if form == "ctc" else places)


def test_texts_depend_on_the_source_alone(context: TaskContext) -> None:
    case = PAIRS[0]
    longer = replace(case, output="电影" * 9)
    for form in ("aligned", "ctc"):
        task = learnt(form=form, length_ratio=1.5).build(context)
        a, b = task.encode([case, longer])
        assert a.text.tokens.tolist() == b.text.tokens.tolist()
        size = len(context.tokenizer(str(case.input))["input_ids"])
        assert len(a.text.tokens) == -(-size * 3 // 2)
        assert context.counts == {"translations with more tokens than positions (excess not trained on)": 1}
        context.counts.clear()
    assert (
        len(a.target.tokens) == 4 and len(np.unique(np.flatnonzero(np.diff(a.text.tokens)))) == size - 1
    )  # each repeated


def test_outputs_become_texts(context: TaskContext) -> None:
    task = learnt().build(context)
    assert task.decode(np.array([5, 5, 1, 0, 7])) == [5, 5, 1]
    ctc = learnt(form="ctc").build(context)
    assert ctc.decode(np.array([0, 5, 5, 0, 5, 1, 7, 7, 0])) == [5, 5, 1, 7] and ctc.decode(np.array([0, 0])) == []
    assert split("a  b\n", "character") == ["a", " ", "b"] and split(" a  b", "word") == ["a", "b"]


def test_the_vocabulary_is_that_of_training(context: TaskContext, tmp_path: Path) -> None:
    config = learnt(max_vocabulary=3)
    assert config.vocabulary == ["的", "书", "亮"] and config.complete and not PositionTranslationConfig().complete
    task = config.build(context)
    (e,) = task.encode([replace(PAIRS[0], output="的龙书")])
    assert [task.labels[i] for i in e.target.tokens] == ["的", SPECIAL[1], "书"]
    odd = PositionTranslationConfig(vocabulary=[" ", ":", "null", "#", "🙂", "é"])
    (tmp_path / "config.yaml").write_text(to_yaml(Config(task=odd)), encoding="utf-8")
    assert load(tmp_path / "config.yaml").task == odd


@pytest.mark.parametrize("form", ["aligned", pytest.param("ctc", marks=pytest.mark.slow)])
def test_eight_pairs_are_learnt(form: Any, checkpoint: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", [e.to_record() for e in PAIRS])
    files = [SourceConfig(path=str(tmp_path / "pairs.jsonl"))]
    config = Config(
        run_dir=str(tmp_path / "run"),
        steps=150,
        backbone=BackboneConfig(path=str(checkpoint), dtype="float32"),
        task=PositionTranslationConfig(form=form),
        data=DataConfig(train=files, test=files, batch_size=8, max_length=64),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        evaluation=EvaluationConfig(every=0),
        checkpoint=CheckpointConfig(every=150),
        tracking=TrackingConfig(log_every=150, tensorboard=False),
    )
    run = train(config)
    written = read_jsonl(run / "predictions.jsonl")
    assert [r["prediction"] for r in written] == [e.output for e in PAIRS]
    result = read_json(run / "evaluation.json")
    rows = {row["name"]: row["values"] for row in result["rows"]}
    assert rows["after tuning"]["token accuracy"] == 1 and rows["before tuning"]["token accuracy"] < 0.5
    texts = [r["prediction"] for r in written]
    streams = [[r["reference"][0] for r in written]]
    assert rows["after tuning"]["BLEU"] == pytest.approx(
        sacrebleu.corpus_bleu(texts, streams, tokenize="zh").score / 100
    )
    assert "tok:zh" in result["protocol"] and "的" in result["report"]
    assert "translation of the most similar source" in rows


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"length_ratio": 0.5}, "task.length_ratio"),
        ({"vocabulary": ["a", "a"]}, "task.vocabulary"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], words: str, context: TaskContext) -> None:
    with pytest.raises(ValueError, match=words):
        PositionTranslationConfig(**{"vocabulary": ["a"]} | settings).build(context)


def test_an_example_without_a_translation_is_named(context: TaskContext) -> None:
    with pytest.raises(ValueError, match="example 'x7'"):
        learnt().build(context).encode([Example(instruction="a film", id="x7")])
