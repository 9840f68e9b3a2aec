"""Ensembles of tiny runs: opened like a run, averaged as NumPy averages, and loud about what cannot be averaged.

(`instructrec_jax.answering.ensembles` too)
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import scipy
from helpers import SUBJECTS, examples, task_config
from tiny_runs import untrained_run

from instructrec_jax import compress, export, predict, train
from instructrec_jax.adapters.mixture import MixtureHead
from instructrec_jax.answering.ensembles import How, alone_of, ensemble_of, make_ensemble, shown
from instructrec_jax.answering.language_model import LanguageModel
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.files import write_jsonl
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.runs.ensemble import FILE, averaged_as, mixture_of, read_ensemble
from instructrec_jax.runs.run import Run, open_member, require_finished
from instructrec_jax.service.engine import Engine
from instructrec_jax.service.settings import EngineSettings
from instructrec_jax.tasks import ClassificationConfig
from instructrec_jax.tasks.averaging import Judged, Mixture, log_loss, mixed
from instructrec_jax.tasks.prediction import Predict

LENGTH = 64


def member(folder: Path, kind: str, network: Path, seed: int, **changes: Any) -> Path:
    """A run with a head of its own, and the same validation cases as the others."""
    data = folder / f"{kind}.jsonl"
    if not data.exists():
        write_jsonl(data, [example.to_record() for example in examples(kind, 12)])
    changes = {"seed": seed, "data__validation": [SourceConfig(path=str(data))], "data__store": "off"} | changes
    return untrained_run(folder / f"{kind}-{seed}", task_config(kind, folder / "catalogue"), network, LENGTH, **changes)


def members(folder: Path, kind: str, network: Path, count: int = 2) -> list[Path]:
    return [member(folder, kind, network, seed) for seed in range(count)]


Pair = Callable[[str], Run]


@pytest.fixture(scope="module")
def pair_of(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two opened runs of a kind of task as an ensemble, made once."""
    known: dict[str, Run] = {}

    def pair(kind: str) -> Run:
        if kind not in known:
            folder, drawn = tmp_path_factory.mktemp(kind), kind in ("similarity", "retrieval")  # their heads are not
            paths = [member(folder, kind, checkpoint, seed, backbone__random_init=drawn) for seed in range(2)]
            known[kind] = ensemble_of([Run.open(path) for path in paths])
        return known[kind]

    return pair


def make(paths: Sequence[Path], out: Path, average: Any = "probability", **how: Any) -> Run:
    make_ensemble([open_member(path, (), None) for path in paths], out, How(average, **how))
    return Run.open(out)


# ---------------------------------------------------------------- averages


@pytest.mark.parametrize(
    "kind", ["classification", "multilabel", "regression", "token_classification", "span", "extractive_summarization"]
)
def test_outputs_are_the_mean_of_the_members(kind: str, pair_of: Pair) -> None:
    run = pair_of(kind)
    cases = run.task.encode(examples(kind, 12))
    own = [[output for _, output in alone_of(run, number).over(cases)] for number in range(2)]
    axis = 0 if kind == "span" else -1

    def shares(z: np.ndarray) -> np.ndarray:
        if kind == "regression":
            return z
        return scipy.special.expit(z) if kind == "multilabel" else scipy.special.softmax(z, axis)

    for number, (_, output) in enumerate(run.predictor.over(cases)):
        each = np.stack([outputs[number] for outputs in own]).astype(np.float64)
        assert np.ptp(each, 0).max() > 1e-3  # the members differ
        wanted = np.mean([shares(z) for z in each], 0)
        np.testing.assert_allclose(shares(output.astype(np.float64)), wanted, atol=1e-6)


@pytest.mark.parametrize("kind", ["similarity", "retrieval", "sequence", "reranker"])
def test_rankings_are_the_mean_of_the_members(kind: str, pair_of: Pair) -> None:
    run = pair_of(kind)
    cases = run.task.encode(examples(kind, 4))

    def scores(predict: Predict) -> np.ndarray:
        if kind == "similarity":
            return np.stack(run.task._logits(predict, cases))
        return run.task.all_scores(predict, cases)(slice(0, len(cases)))

    z = np.stack([scores(alone_of(run, number)) for number in range(2)]).astype(np.float64)
    assert np.ptp(z, 0).max() > 1e-3
    found = scipy.special.softmax(scores(run.predictor), -1)
    np.testing.assert_allclose(found, scipy.special.softmax(z, -1).mean(0), atol=1e-6)
    for average, wanted in (("logit", z), ("rank", 1 / (60 + scipy.stats.rankdata(-z, axis=-1)))):
        again = replace(run, mixture=Mixture.equal(average, 2))
        again.__dict__["predictor"] = replace(run.predictor, average=averaged_as("scores", again))
        np.testing.assert_allclose(scores(again.predictor), wanted.mean(0), atol=1e-6)


def test_repeated_candidates_count_once(pair_of: Pair) -> None:
    run = pair_of("reranker")
    cases = run.task.encode(examples("reranker", 2))
    twice = np.array([[3, 1, 3], [2, 2, 0]])
    found = run.task.listed_scores(run.predictor, cases, twice)
    np.testing.assert_allclose(found[0, [0, 1]], run.task.listed_scores(run.predictor, cases[:1], twice[:1, :2])[0])
    assert found[0, 0] == found[0, 2]


@pytest.mark.parametrize("kind", ["classification", "token_classification", "span"])
def test_three_times_one_run_is_that_run(kind: str, pair_of: Pair) -> None:
    first = pair_of(kind).members[0]
    cases = first.task.encode(examples(kind, 6))
    same = ensemble_of([first] * 3)
    for (_, found), (_, wanted) in zip(same.predictor.over(cases), first.predictor.over(cases), strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-6)
    assert [type(answer) for answer in first.task.answers(same.predictor, cases)] == [
        type(answer) for answer in first.task.answers(first.predictor, cases)
    ]


def test_labels_in_another_order_are_taken_by_name(pair_of: Pair, checkpoint: Path, tmp_path: Path) -> None:
    first = pair_of("classification").members[0]
    labels = ClassificationConfig(labels=SUBJECTS[::-1])
    turned = Run.open(untrained_run(tmp_path / "turned", labels, checkpoint, LENGTH, seed=1))
    cases = first.task.encode(examples("classification", 4))
    texts = [e.text for e in cases]
    z = np.stack([np.stack(first.predictor(texts)), np.stack(turned.predictor(texts))[:, ::-1]])
    wanted = mixed("labels", z, Mixture.equal("probability", 2))
    for runs, order in (([first, turned], slice(None)), ([turned, first], slice(None, None, -1))):
        found = np.stack([output for _, output in ensemble_of(runs).predictor.over(cases)])
        np.testing.assert_allclose(found[:, order], wanted, atol=2e-6)


def test_members_may_read_texts_in_other_ways(pair_of: Pair, checkpoint: Path, tmp_path: Path) -> None:
    """A member with another data.max_length reads and cuts the text itself, where outputs belong to texts."""
    first = pair_of("classification").members[0]
    changes = {"data__max_length": 6, "data__truncate": "right"}
    short = Run.open(member(tmp_path, "classification", checkpoint, 1, **changes))
    run = ensemble_of([first, short])
    cases = examples("classification", 6)
    own = [np.stack(m.predictor([e.text for e in m.task.encode(cases)])) for m in run.members]
    found = np.stack([output for _, output in run.predictor.over(run.task.encode(cases))])
    np.testing.assert_allclose(found, mixed("labels", own, Mixture.equal("probability", 2)), atol=1e-5)
    with pytest.raises(TypeError, match="run each of them"):
        run.predictor([e.text for e in run.task.encode(cases)])


# ---------------------------------------------------------------- language models


def test_next_token_probabilities_are_averaged(language_models: dict[str, Path], tmp_path: Path) -> None:
    kind, llama = "language_model", language_models["llama"]
    paths = [member(tmp_path, kind, llama, 0), member(tmp_path, kind, llama, 1, backbone__random_init=True)]
    run = make(paths, tmp_path / "E")
    cases = run.task.encode(examples(kind, 6))
    judged = [m.task.judged(m.predictor, cases) for m in run.members]
    found = run.task.judged(run.predictor, cases)
    mean = np.mean([np.exp(each.outputs[:, 0]) for each in judged], 0)
    np.testing.assert_allclose(np.exp(found.outputs[:, 0]), mean, rtol=1e-4)
    assert np.ptp([each.outputs[:, 0] for each in judged], 0).max() > 0.1
    assert isinstance(run.model.network.head, MixtureHead)
    scores = run.task.score(run.predictor, cases)
    assert scores.metrics["loss"] == pytest.approx(-np.log(mean).mean(), rel=1e-4)


@pytest.mark.parametrize(("network", "beams"), [("llama", 3), ("gpt2", 1)])
def test_one_language_model_twice_writes_the_same(
    network: str, beams: int, language_models: dict[str, Path], tmp_path: Path
) -> None:
    path = member(tmp_path, "language_model", language_models[network], 0)
    make([path, path], tmp_path / "E")
    asked, config = ["the film", "a good book about love"], GenerationConfig(max_new_tokens=6, beams=beams)
    written = [LanguageModel(each).generate(asked, config) for each in (path, tmp_path / "E")]
    assert [each.text for each in written[0]] == [each.text for each in written[1]]
    for one, other in zip(*written, strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, rel=1e-4)


def test_the_engine_of_the_service_writes_the_same(language_models: dict[str, Path], tmp_path: Path) -> None:
    path = member(tmp_path, "language_model", language_models["llama"], 0)
    make([path, path], tmp_path / "E")
    found = []
    for each in (path, tmp_path / "E"):
        model = LanguageModel(each)
        engine = Engine(model.writer, model.params, EngineSettings(slots=2, capacity=64, chunk=8, queue=4))
        prompt = model.read("a good book about love", "here", raw=False).tokens
        stream = engine.submit(prompt, GenerationConfig(max_new_tokens=5))
        found.append([piece.text for piece in stream])
        engine.close()
    assert found[0] == found[1]


def test_weights_of_language_models(language_models: dict[str, Path], tmp_path: Path) -> None:
    kind, llama = "language_model", language_models["llama"]
    paths = [member(tmp_path, kind, llama, 0), member(tmp_path, kind, llama, 1, backbone__random_init=True)]
    run = make(paths, tmp_path / "E", weights="tuned")
    cases = run.data.cases(run.task, "validation")
    tuned = log_loss(run.task.judged(run.predictor, cases))
    each = [log_loss(m.task.judged(m.predictor, cases)) for m in run.members]
    assert tuned <= min(each) + 1e-4
    with pytest.raises(ValueError, match="temperatures"):
        make(paths, tmp_path / "F", calibrate=True)
    with pytest.raises(ValueError, match="--average probability only"):
        make(paths, tmp_path / "F", "logit", weights="tuned")


# ---------------------------------------------------------------- weights and temperatures


@pytest.mark.parametrize(
    "kind",
    [
        "classification",
        "multilabel",
        "token_classification",
        "span",
        "extractive_summarization",
        "similarity",
        "retrieval",
    ],
)
def test_weights_and_temperatures_come_from_validation(kind: str, pair_of: Pair, tmp_path: Path) -> None:
    run = pair_of(kind)
    make_ensemble(run.members, tmp_path / "E", How("probability", "tuned", calibrate=True))
    kept = read_ensemble(tmp_path / "E")
    assert kept is not None and kept["validation_cases"] > 0 and str(run.members[0].path) in shown(kept)
    tuned = mixture_of(kept, tmp_path)
    assert sum(tuned.weights) == pytest.approx(1)
    cases = run.data.cases(run.task, "validation")
    judged = [run.task.judged(alone_of(run, number), cases) for number in range(2)]
    outputs, right = np.stack([each.outputs for each in judged]), judged[0].right
    losses = [
        log_loss(Judged(mixed("labels", outputs, mixture), right))
        for mixture in (tuned, Mixture.equal("probability", 2))
    ]
    assert losses[0] < losses[1]


def test_numbers_are_tuned_by_squared_error(pair_of: Pair, tmp_path: Path) -> None:
    run = pair_of("regression")
    make_ensemble(run.members, tmp_path / "E", How("probability", "tuned"))
    kept = read_ensemble(tmp_path / "E")
    assert kept is not None and [each["temperature"] for each in kept["members"]] == [1, 1]
    with pytest.raises(ValueError, match="no temperature"):
        make_ensemble(run.members, tmp_path / "F", How("probability", calibrate=True))


def test_without_validation_nothing_is_tuned(checkpoint: Path, tmp_path: Path) -> None:
    paths = [member(tmp_path, "classification", checkpoint, seed, data__validation=[]) for seed in range(2)]
    assert make(paths, tmp_path / "E").mixture == Mixture.equal("probability", 2)
    with pytest.raises(ValueError, match="data.validation, which lists no sources"):
        make(paths, tmp_path / "F", weights="tuned")
    assert not (tmp_path / "F").exists()


# ---------------------------------------------------------------- what is refused


@pytest.fixture
def pair(pair_of: Pair, tmp_path: Path) -> list[Path]:
    """Copies of two runs, which a test may damage."""
    return [Path(shutil.copytree(run.path, tmp_path / run.path.name)) for run in pair_of("classification").members]


def test_runs_that_cannot_be_averaged(pair: list[Path], checkpoint: Path, tmp_path: Path) -> None:
    labels = untrained_run(tmp_path / "labels", ClassificationConfig(labels=["x", "y"]), checkpoint, LENGTH)
    masked = [member(tmp_path, "masked_lm", checkpoint, seed) for seed in range(2)]
    tags = [member(tmp_path, "token_classification", checkpoint, 0)]
    tags.append(member(tmp_path, "token_classification", checkpoint, 1, data__max_length=32))
    for paths, average, message in (
        ([pair[0], labels], "probability", "labels are"),
        ([pair[0], tags[0]], "probability", "their tasks are"),
        (masked, "probability", "no common form"),
        (pair, "rank", "choose probability or logit"),
        (tags, "probability", "data.max_length differs"),
        (pair[:1], "probability", "at least two runs"),
    ):
        with pytest.raises(ValueError, match=message):
            make(paths, tmp_path / "E", average)
        assert not (tmp_path / "E").exists()


def test_language_models_share_a_tokenizer(language_models: dict[str, Path], tmp_path: Path) -> None:
    paths = members(tmp_path, "language_model", language_models["llama"])
    file = paths[1] / "backbone" / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(ValueError, match="the tokenizer differs"):
        ensemble_of([Run.open(path) for path in paths])
    (tmp_path / "t5").mkdir()
    both = [Run.open(path) for path in members(tmp_path / "t5", "language_model", language_models["t5"])]
    with pytest.raises(ValueError, match="encoder–decoders"):
        ensemble_of(both)


def test_a_member_that_is_gone_is_named(pair: list[Path], tmp_path: Path) -> None:
    make(pair, tmp_path / "E")
    (pair[1] / "config.yaml").rename(pair[1] / "config.old")
    for opened in (Run.open, lambda path: require_finished(path, None)):
        with pytest.raises(ValueError, match=f"the member .*{pair[1].name} of the ensemble"):
            opened(tmp_path / "E")
    shutil.rmtree(pair[1])
    with pytest.raises(ValueError, match=f"the member .*{pair[1].name} of the ensemble"):
        Run.open(tmp_path / "E")


def test_a_checkpoint_that_is_gone_is_named(pair: list[Path], tmp_path: Path) -> None:
    make(pair, tmp_path / "E")
    (pair[1] / "checkpoints" / "1").rename(pair[1] / "checkpoints" / "2")
    run = Run.open(tmp_path / "E")
    with pytest.raises(ValueError, match=f"{pair[1].name} has no checkpoint of step 1"):
        _ = run.predictor


def test_damaged_files_are_named(pair: list[Path], tmp_path: Path) -> None:
    make(pair, tmp_path / "E")
    file = tmp_path / "E" / FILE
    kept = json.loads(file.read_text())
    for damage in (
        lambda k: k["members"].pop(),
        lambda k: k["members"][0].update(weight=2.0),
        lambda k: k["members"][0].update(weight="much"),
        lambda k: k["members"][0].update(temperature=0),
        lambda k: k.update(average="mode"),
        lambda k: k.update(temperature=-1),
        lambda k: k["members"][0].pop("run"),
    ):
        bad = json.loads(json.dumps(kept))
        damage(bad)
        file.write_text(json.dumps(bad))
        with pytest.raises(ValueError, match=FILE):
            Run.open(tmp_path / "E")
    file.write_text("{")
    with pytest.raises(ValueError, match=FILE):
        Run.open(tmp_path / "E")


def test_what_an_ensemble_is_not(pair: list[Path], tmp_path: Path) -> None:
    run = make(pair, tmp_path / "E")
    with pytest.raises(ValueError, match="ensemble already"):
        open_member(tmp_path / "E", (), None)
    with pytest.raises(ValueError, match="leave out --step"):
        Run.open(tmp_path / "E", step=1)
    with pytest.raises(ValueError, match="a setting of its members"):
        Run.open(tmp_path / "E", ["--backbone.dtype", "bfloat16"])
    with pytest.raises(ValueError, match="name one of its members"):
        _ = run.model
    with pytest.raises(ValueError, match="is a run directory: choose another --out"):
        make(pair, pair[0])
    assert run.checkpoint is None and run.trained


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        (compress, ["E", "--out", "out"]),
        (export, ["E", "--out", "out"]),
        (export, ["E", "--out", "out", "--format", "orbax"]),
        (predict, ["E", "--vectors", "--input", "classification.jsonl", "--out", "out.npy"]),
        (train, ["--init_from", "E", "--run_dir", "out", "--task.type", "classification"]),
    ],
)
def test_verbs_that_need_one_network_say_so(
    verb: Any, arguments: list[str], pair: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(pair, Path("E"))
    write_jsonl("classification.jsonl", [{"instruction": "a film"}])
    before = {str(path) for path in tmp_path.rglob("*")}
    with pytest.raises(ValueError, match="E is an ensemble of 2 networks.*name one of its members"):
        verb.main(arguments)
    assert {str(path) for path in tmp_path.rglob("*")} == before


def test_a_diverged_member_is_named(pair: list[Path], tmp_path: Path) -> None:
    run = make(pair, tmp_path / "E")
    params = run.members[1].model.params
    run.members[1].model.params = jax.tree.map(lambda x: x * np.nan, params)
    with pytest.raises(ValueError, match=f"{pair[1].name} are not numbers"):
        list(run.predictor.over(run.task.encode(examples("classification", 2))))
