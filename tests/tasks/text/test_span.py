"""Extractive answers: windows lose nothing, the loss is PyTorch's, and the answer is the context's own text."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from tiny_runs import changed
from tokenizers import processors
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, PreTrainedTokenizerFast

from instructrec_jax.backbones.backbone_config import BackboneConfig
from instructrec_jax.data.batch import lay_out, lengths_of
from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.example import Example
from instructrec_jax.data.loader import pack
from instructrec_jax.data.packing import unpacked
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.evaluation.evaluation_config import EvaluationConfig
from instructrec_jax.export import main as export
from instructrec_jax.files import read_json, read_jsonl, write_jsonl
from instructrec_jax.runs import model as models
from instructrec_jax.runs.config import Config
from instructrec_jax.tasks import SpanConfig
from instructrec_jax.tasks.base import LossInputs, TaskContext
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.text.span import best_span
from instructrec_jax.train import train
from instructrec_jax.training.training_config import CheckpointConfig, OptimizerConfig, TrackingConfig

WORDS = "the a film book good bad dull bright about old new long short".split()


@pytest.fixture(scope="module")
def pair_tokenizer(tokenizer: Any) -> PreTrainedTokenizerFast:
    """That of the other tests, which puts [SEP] between a question and its context."""
    from tokenizers import Tokenizer

    core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    ids = [(token, core.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    names = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


@pytest.fixture(scope="module")
def folder(checkpoint: Path, pair_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import shutil

    target = tmp_path_factory.mktemp("pairs") / "bert"
    shutil.copytree(checkpoint, target)
    pair_tokenizer.save_pretrained(target)
    return target


def cases(count: int, seed: int = 0) -> list[Example]:
    """The one word of a text of 9 to 30 words that names a subject."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        words = [str(w) for w in rng.choice(WORDS, rng.integers(8, 30))]
        place, subject = int(rng.integers(0, len(words))), str(rng.choice(["love", "war", "space"]))
        start = len(" ".join(words[:place])) + (place > 0)
        text = " ".join([*words[:place], subject, *words[place:]])
        origin = {"answer_start": str(start)}
        made.append(Example(instruction="what", input=text, output=subject, id=f"s{number}", origin=origin))
    return made


def task_of(tokenizer: Any, length: int = 64, **settings: Any) -> Any:
    lower = settings.pop("lower_case", False)
    return SpanConfig(**{"stride": 8} | settings).build(TaskContext(tokenizer, length, lower_case=lower))


def test_windows_cover_the_context_and_mark_the_answer(pair_tokenizer: Any) -> None:
    task = task_of(pair_tokenizer, 24)
    for case in cases(20):
        windows = task.encode([case])
        covered = np.zeros(len(case.input or ""), bool)
        marked = []
        for e in windows:
            assert len(e.text.tokens) <= 24 and e.text.tokens[0] == pair_tokenizer.cls_token_id
            for begin, end in e.target.offsets[e.target.offsets[:, 0] >= 0]:
                covered[begin:end] = True
            if e.target.start:
                begin, end = e.target.offsets[e.target.start, 0], e.target.offsets[e.target.end, 1]
                marked.append((begin, (case.input or "")[begin:end]))
        assert covered[[c != " " for c in case.input or ""]].all()
        assert marked and set(marked) == {(int(case.origin["answer_start"]), case.output)}
    assert any(len(task.encode([case])) > 2 for case in cases(20))


def test_the_answer_is_the_context_s_own_text_in_lower_case_too(pair_tokenizer: Any) -> None:
    """ "İ" becomes two characters in lower case; offsets are those of the text as it was."""
    task = task_of(pair_tokenizer, lower_case=True)
    case = Example(instruction="What?", input="İ The İOLD Film", output="OLD", id="x")
    (e,) = task.encode([case])
    logits = np.full((len(e.text.tokens), 2), -5.0)
    logits[e.target.start, 0] = logits[e.target.end, 1] = 5
    scores = task.score(Predict(lambda texts, *_: [logits]), [e])
    assert scores.predictions[0]["prediction"] == "OLD" and scores.metrics["exact_match"] == 1


def test_loss_is_pytorch_s_and_packing_changes_nothing(folder: Path, pair_tokenizer: Any) -> None:
    config = Config(task=SpanConfig(stride=8), data=DataConfig(batch_size=8, max_length=64))
    config = changed(config, backbone__path=str(folder), backbone__dtype="float32")
    task: Any = models.open_task(config, folder)
    from instructrec_jax.distributed.mesh import make_mesh
    from instructrec_jax.distributed.mesh_config import MeshConfig

    model = models.load_model(config, task, folder, make_mesh(MeshConfig(), jax.devices()[:1]))
    encoded = task.encode(cases(8))
    parts = task.gather(encoded, np.random.default_rng(0))

    @jax.jit
    def loss(params: Any, batch: Any) -> Any:
        def mean(params: Any) -> Any:
            network = nnx.merge(model.graphdef, params)
            total, weight = task.loss(network, batch, LossInputs())
            return total / weight, weight

        return jax.value_and_grad(mean, has_aux=True)(params)

    lengths, _ = lengths_of(parts.texts)
    (packed, weight), gradients = loss(model.params, pack(parts, (64, 128), 1).batch)
    (alone, _), others = loss(model.params, lay_out(parts, unpacked(lengths, 64)))
    assert float(weight) == len(encoded) and float(packed) == pytest.approx(float(alone), abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients, others)

    @jax.jit
    def logits_of(params: Any, batch: Any) -> Any:
        return task.predict(nnx.merge(model.graphdef, params), batch)

    logits = np.asarray(logits_of(model.params, lay_out(parts, unpacked(lengths, 64))))
    expected = []
    for row, e in enumerate(encoded):
        values = torch.tensor(logits[row, : len(e.text.tokens)])
        for side, place in ((0, e.target.start), (1, e.target.end)):
            found = torch.nn.functional.cross_entropy(values[None, :, side], torch.tensor([place]))
            expected.append(float(found))
    assert float(packed) == pytest.approx(np.mean(expected), abs=1e-5)


def test_best_span_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    context = "one two three four five six"
    ends = np.cumsum([len(w) + 1 for w in context.split()]) - 1
    offsets = np.array([[-1, -1], *zip(np.r_[0, ends[:-1] + 1], ends, strict=True), [-1, -1]])
    for most in (1, 3, 9):
        logits = rng.normal(size=(8, 2))
        best = max(
            (logits[i, 0] + logits[j, 1], int(offsets[i, 0]), int(offsets[j, 1]))
            for i in range(1, 7)
            for j in range(i, min(7, i + most))
        )
        assert best_span(logits, offsets, most) == (pytest.approx(best[0]), *best[1:])


def test_no_answer(pair_tokenizer: Any) -> None:
    """It wins by the threshold, over all windows; unanswerable questions are right when nothing is said."""
    task = task_of(pair_tokenizer, 24, no_answer=True, no_answer_threshold=1.0)
    case = replace(cases(1)[0], output=None)
    windows = task.encode([case])
    assert len(windows) > 1 and all((e.target.start, e.target.end) == (0, 0) for e in windows)

    def scores(nothing: float) -> Any:
        def predict(texts: Any, *_: object) -> list[np.ndarray]:
            logits = [np.zeros((len(text.tokens), 2)) for text in texts]
            for each in logits:
                each[0] = nothing / 2
            return logits

        return task.score(Predict(predict), windows)

    assert scores(0.9).predictions[0]["prediction"] != "" and scores(0.9).metrics["f1"] == 0
    assert scores(1.1).predictions[0]["prediction"] == "" and scores(1.1).metrics["f1"] == 1
    assert len(scores(1.1).cases["f1"]) == 1
    (shown,) = task.showcase(Predict(lambda texts, *_: [np.eye(len(t.tokens), 2) for t in texts]), windows)
    assert shown["wanted"] == "(no answer)" and shown["instruction"] == case.instruction


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        ({"input": None}, {}, "example 'x7'.*context"),
        ({"output": None}, {}, "example 'x7'.*task.no_answer"),
        ({"output": "music"}, {}, "example 'x7'.*'music'.*on_missing_answer"),
        ({"instruction": "very " * 40}, {}, r"example 'x7'.*data.max_length.*24.*task.stride"),
        ({"input": "\u200d"}, {"on_missing_answer": "skip", "no_answer": True}, "tokenizer"),
    ],
)
def test_a_bad_example_is_named(
    changes: dict[str, Any], settings: dict[str, Any], words: str, pair_tokenizer: Any
) -> None:
    if "no_answer" in settings:
        changes = changes | {"output": None}
    with pytest.raises(ValueError, match=words):
        task_of(pair_tokenizer, 24, **settings).encode([replace(cases(1)[0], id="x7", **changes)])


def test_answers_that_are_missing_are_counted(pair_tokenizer: Any) -> None:
    task = task_of(pair_tokenizer, on_missing_answer="skip")
    good, bad = cases(2)
    assert {e.example.id for e in task.encode([good, replace(bad, output="music")])} == {good.id}
    assert sum(task.context.counts.values()) == 1
    several = replace(good, output=("music", str(good.output)))
    assert task.encode([several])[0].target.start > 0  # the first answer that is there


def test_a_run_finds_answers_and_opens_in_transformers(folder: Path, tmp_path: Path) -> None:
    files = {}
    for seed, (split, count) in enumerate({"train": 64, "validation": 8, "test": 12}.items()):
        write_jsonl(tmp_path / f"{split}.jsonl", [e.to_record() for e in cases(count, seed)])
        files[split] = [SourceConfig(path=str(tmp_path / f"{split}.jsonl"))]
    config = Config(
        run_dir=str(tmp_path / "run"),
        steps=60,
        backbone=BackboneConfig(path=str(folder), dtype="float32"),
        task=SpanConfig(stride=8),
        data=DataConfig(**files, batch_rows=8, max_length=64),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        evaluation=EvaluationConfig(every=60),
        checkpoint=CheckpointConfig(every=60),
        tracking=TrackingConfig(log_every=60, tensorboard=False),
    )
    run = train(config)
    rows = {row["name"]: row["values"] for row in read_json(run / "evaluation.json")["rows"]}
    assert rows["after tuning"]["f1"] > rows["before tuning"]["f1"] and rows["after tuning"]["f1"] > 0.6
    assert "sentence closest to the question" in rows
    written = read_jsonl(run / "predictions.jsonl")
    assert len(written) == 12 and rows["after tuning"]["f1"] == pytest.approx(np.mean([r["f1"] for r in written]))
    assert all(r["prediction"] in str(e.input) for r, e in zip(written, cases(12, 2), strict=True))
    export([str(run), "--format", "hf", "--out", str(tmp_path / "hf")])
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "hf").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    for record, case in zip(written, cases(12, 2), strict=True):
        inputs = tokenizer(case.instruction, case.input, return_tensors="pt", return_offsets_mapping=True)
        offsets = inputs.pop("offset_mapping")[0].numpy().astype(np.int32)
        inside = np.array([part == 1 for part in inputs.sequence_ids(0)])
        offsets = np.where(inside[:, None] & (offsets[:, 1:] > offsets[:, :1]), offsets, -1)
        if len(offsets) > 64:
            continue  # several windows
        with torch.no_grad():
            out = model(**inputs)
        logits = torch.stack([out.start_logits[0], out.end_logits[0]], -1).numpy()
        _, start, end = best_span(logits, offsets, 30)
        assert str(case.input)[start:end] == record["prediction"]
