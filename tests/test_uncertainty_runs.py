"""A run that is calibrated, abstains and gives prediction sets: the same numbers in every verb, and loud when stale.

(`instructrec_jax.runs.abstention`, `instructrec_jax.runs.domain_scores`, `instructrec_jax.runs.kept_calibration`,
`instructrec_jax.evaluation.doubts`, `instructrec_jax.answering.uncertainty_arguments` too)
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy
import yaml
from desk_actions import ACTIONS, INTENTS
from helpers import examples, task_config
from safetensors.numpy import load_file, save_file
from tiny_runs import changed, tiny_run, untrained_run

from instructrec_jax import assist, evaluate, predict, watch
from instructrec_jax.answering.classifier import Classifier
from instructrec_jax.answering.desk import Desk
from instructrec_jax.answering.ensembles import How, make_ensemble, open_ensemble
from instructrec_jax.answering.model_card import model_card
from instructrec_jax.answering.uncertainty_report import calibrate, read_texts
from instructrec_jax.data.example import Example
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.distributed.compilations import Compilations
from instructrec_jax.explanation.explain import Explainer
from instructrec_jax.files import read_jsonl, write_json, write_jsonl
from instructrec_jax.metrics.calibration import expected_calibration_error
from instructrec_jax.metrics.out_of_domain import SCORES, vector_statistics
from instructrec_jax.runs.run import Run, open_member
from instructrec_jax.service.answerers import Predicting
from instructrec_jax.service.warm_up import compile_task
from instructrec_jax.tasks import ClassificationConfig
from instructrec_jax.tasks.recalibration import Recalibration
from instructrec_jax.train import train

STRANGE = ["very not dull long short bright", "!!! 123 ???", "你好 🎬"]


def made(seed: int, count: int, noise: float = 0.3) -> list[Example]:
    """Intents by their word; a share of the labels is drawn, so that no run is always right."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        intent = INTENTS[number % 3]
        text = " ".join([*rng.choice("the a film book old new".split(), 3), intent[4:]])
        label = INTENTS[rng.integers(3)] if rng.random() < noise else intent
        found.append(Example(instruction=text, output=label, id=f"{seed}-{number}"))
    return found


@pytest.fixture(scope="module")
def trained(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("intents")
    sources = {}
    for seed, (split, count) in enumerate({"train": 96, "validation": 60, "test": 60}.items()):
        file = folder / f"{split}.jsonl"
        write_jsonl(file, [example.to_record() for example in made(seed, count)])
        sources[f"data__{split}"] = [SourceConfig(path=str(file))]
    config = tiny_run("classification", checkpoint, folder / "unused", steps=30, evaluation__every=30)
    task = ClassificationConfig(labels=INTENTS)
    config = changed(
        config, run_dir=str(folder / "run"), task=task, data__batch_size=16, checkpoint__every=30, **sources
    )
    train(config)
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of its own."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def content(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def logits_of(opened: Run, texts: list[str]) -> np.ndarray:
    """What the network says, without any calibration."""
    asker = opened.asker()
    encoded = asker.encode([asker.example(text_record(text), "here") for text in texts])[0]
    return np.stack([np.array(z) for z in opened.plain_predictor([e.text for e in encoded])]).astype(np.float64)


def text_record(text: str) -> dict[str, object]:
    return {"instruction": text}


def test_a_calibration_is_what_every_verb_answers_with(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [example.instruction for example in made(7, 12)]
    before = logits_of(Run.open(run), texts)
    evaluate.main([str(run), "--calibrate", "--no_baselines"])
    printed = capsys.readouterr()
    kept = content(run / "calibration.json")
    assert "without calibration" in printed.out and "Calibration (temperature)" in printed.err
    assert kept["after"]["nll"] <= kept["before"]["nll"] and kept["cases"] == 60 and kept["checkpoint"] == 30
    shares = scipy.special.softmax(before * kept["scale"][0], -1)
    assert abs(kept["scale"][0] - 1) > 0.05  # else nothing is tested

    opened = Run.open(run)
    answers = opened.predict(texts)
    np.testing.assert_allclose([[*a.probabilities.values()] for a in answers], shares, atol=1e-5)
    assert [a.label for a in answers] == [INTENTS[k] for k in before.argmax(-1)]  # as without it
    served = Predicting(Run.open(run, fixed_shapes=True)).answer([texts])[0]
    assert [a["prediction"] for a in served.answers] == [a.label for a in answers]
    np.testing.assert_allclose([[*a["probabilities"].values()] for a in served.answers], shares, atol=1e-5)
    model = Classifier([run])
    np.testing.assert_allclose(model.members_of([model.encode(t, "") for t in texts])[0], shares, atol=1e-5)
    (tmp_path / "actions.yaml").write_text(ACTIONS, encoding="utf-8")
    desk = Desk(run, tmp_path / "actions.yaml")
    np.testing.assert_allclose(
        [a["confidence"] for a in desk.answer([("", t) for t in texts])], shares.max(-1), atol=1e-5
    )
    (explained,) = Explainer(opened, ["occlusion"]).explain(texts[:1])
    assert explained.target == answers[0].label and explained.value == pytest.approx(before[0].max(), abs=1e-4)

    # the table has both, and off is off
    rows = {row["name"]: row["values"] for row in content(run / "evaluation" / "evaluation.json")["rows"]}
    said = read_jsonl(run / "evaluation" / "predictions.jsonl")
    confidence, right = [r["probability"] for r in said], [r["prediction"] == r["reference"] for r in said]
    assert rows["tuned"]["ece"] == pytest.approx(expected_calibration_error(confidence, right))
    assert rows["tuned"]["accuracy"] == rows["without calibration"]["accuracy"]
    plain = Run.open(run, ["--evaluation.calibration", "false"])
    raw = [[*a.probabilities.values()] for a in plain.predict(texts)]
    np.testing.assert_allclose(raw, scipy.special.softmax(before, -1), atol=1e-5)
    assert "Calibration (temperature)" in (run / "report.html").read_text()


def test_a_calibration_for_something_else_is_named(run: Path) -> None:
    calibrate(Run.open(run), "temperature")
    file = run / "calibration.json"
    kept = content(file)
    for change, named in (
        ({"checkpoint": 20}, "step 20.*evaluate .* --calibrate temperature.*calibration false"),
        ({"weights": "0f"}, "other weights"),
        ({"labels": INTENTS[::-1]}, "fitted for the labels"),
        ({"scale": [1.0, 2.0], "bias": [0.0, 0.0], "way": "per_class"}, "2 scales for 3 labels"),
        ({"scale": [-1.0]}, "calibration.json: the scales"),
        ({"scale": "all"}, "calibration.json: scale"),
        ({"way": "isotonic"}, "calibration.json: way"),
    ):
        write_json(file, kept | change)
        with pytest.raises(ValueError, match=named):
            Run.open(run).predict("the film love")
        assert Run.open(run, ["--evaluation.calibration", "false"]).predict("the film love")[0].label
    file.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="calibration.json"):
        Run.open(run).predict("the film love")


def test_a_calibration_of_each_label(run: Path) -> None:
    kept = calibrate(Run.open(run), "per_class")
    assert len(kept["scale"]) == 3 and kept["after"]["nll"] <= kept["before"]["nll"]
    found = Run.open(run).calibration
    assert found == Recalibration("per_class", tuple(kept["scale"]), tuple(kept["bias"]))
    again = calibrate(Run.open(run), "per_class")  # is fitted to the outputs of the network, not to calibrated ones
    np.testing.assert_allclose(again["scale"], kept["scale"], atol=1e-4)


def test_what_cannot_be_calibrated_is_named(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    regression = untrained_run(tmp_path / "numbers", task_config("regression", tmp_path), checkpoint, 64)
    with pytest.raises(ValueError, match="regression"):
        calibrate(Run.open(regression), "temperature")
    with pytest.raises(ValueError, match="data.validation"):
        calibrate(Run.open(run, ["--data.validation", "[]"]), "temperature")
    with pytest.raises(ValueError, match="evaluation.calibration"):
        calibrate(Run.open(run, ["--evaluation.calibration", "false"]), "temperature")
    labels = Run.open(str(checkpoint), Run.open(run).config)
    with pytest.raises(ValueError, match="not one"):
        calibrate(labels, "temperature")


def test_labels_of_which_several_may_hold(checkpoint: Path, tmp_path: Path) -> None:
    source = {"data__validation": [SourceConfig(path=str(tmp_path / "validation.jsonl"))]}
    path = untrained_run(tmp_path / "run", task_config("multilabel", tmp_path), checkpoint, 64, **source)
    opened, cases = Run.open(path), examples("multilabel", 200)
    z = opened.task.outputs(opened.plain_predictor, opened.task.encode(cases)).astype(np.float64)
    loud = float(3 / z.std())  # an untrained head says next to nothing
    opened.__dict__["plain_predictor"] = Recalibration("temperature", (loud,), (0.0,)).behind(opened.plain_predictor)
    chosen = np.random.default_rng(0).random(z.shape) < scipy.special.expit(loud * (z - z.mean(0)) / 2)
    labels = np.array(opened.task.labels)
    said = [replace(case, output=tuple(labels[own])) for case, own in zip(cases, chosen, strict=True)]
    write_jsonl(tmp_path / "validation.jsonl", [example.to_record() for example in said])
    kept = calibrate(opened, "per_class")
    assert kept["after"]["nll"] < kept["before"]["nll"]
    found = [[*a.probabilities.values()] for a in opened.predict(cases[:9])]
    wanted = scipy.special.expit(loud * z[:9] * kept["scale"] + kept["bias"])
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_members_of_an_ensemble_are_calibrated_and_so_is_their_average(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    calibrate(Run.open(run), "per_class")
    texts = [example.instruction for example in made(7, 6)]
    each = [np.array([[*a.probabilities.values()] for a in Run.open(path).predict(texts)]) for path in (run, other)]
    make_ensemble([open_member(path, (), None) for path in (run, other)], tmp_path / "E", How("probability"))
    mean = np.array([[*a.probabilities.values()] for a in Run.open(tmp_path / "E").predict(texts)])
    np.testing.assert_allclose(mean, np.mean(each, 0), atol=1e-5)
    kept = calibrate(Run.open(tmp_path / "E"), "temperature")
    found = np.array([[*a.probabilities.values()] for a in Run.open(tmp_path / "E").predict(texts)])
    wanted = mean ** kept["scale"][0]
    np.testing.assert_allclose(found, wanted / wanted.sum(-1, keepdims=True), atol=1e-5)
    model = Classifier([tmp_path / "E"])
    logits = model.mean(model.logits([model.encode(text, "") for text in texts]))
    np.testing.assert_allclose(scipy.special.softmax(logits, -1), found, atol=1e-5)
    assert Classifier([run, other]).run.calibration is None  # an average made in memory has none of its own
    calibrate(Run.open(other), "temperature")
    with pytest.raises(ValueError, match="other.*calibration changed"):
        Run.open(tmp_path / "E")


# ---------------------------------------------------------------- prediction sets


@pytest.mark.parametrize("kind", ["lac", "aps"])
def test_prediction_sets_are_those_of_the_validation_cases(kind: Any, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "sets.jsonl"
    test = str(run.parent / "asked.jsonl")
    write_jsonl(test, [{"instruction": e.instruction} for e in made(2, 20)])
    predict.main([str(run), "--input", test, "--out", str(out), "--coverage", "0.8", "--sets", kind])
    opened = Run.open(run)
    rows = read_jsonl(out)
    same = opened.predict([e.instruction for e in made(2, 20)], coverage=0.8, sets=kind)
    assert [row["prediction_set"] for row in rows] == [[*a.prediction_set] for a in same]
    cases = opened.data.cases(opened.task, "validation")
    shares = scipy.special.softmax(opened.task.outputs(opened.predictor, cases).astype(np.float64), -1)
    own = np.sort([1 - p[e.target.label] for p, e in zip(shares, cases, strict=True)])
    threshold = own[int(np.ceil(61 * 0.8)) - 1]
    for row in rows:
        ordered = sorted(row["probabilities"], key=lambda label: -row["probabilities"][label])
        if kind == "lac":
            near = [k for k in ordered if abs(1 - row["probabilities"][k] - threshold) < 1e-5]
            wanted = [k for k in ordered if 1 - row["probabilities"][k] <= threshold]
            assert near or row["prediction_set"] == wanted
        assert row["prediction_set"] == ordered[: len(row["prediction_set"])]
    assert len({len(row["prediction_set"]) for row in rows}) > 1


def test_coverage_is_reported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main([str(run), "--coverage", "0.8", "--no_baselines"])
    found = content(run / "uncertainty.json")["coverage"]
    low, high = found["interval"]
    assert low < found["covered"] < high and found["validation_cases"] == 60 and found["cases"] == 60
    weights = [own["cases"] for own in found["labels"].values()]
    assert np.average([own["covered"] for own in found["labels"].values()], weights=weights) == pytest.approx(
        found["covered"]
    )
    assert "Prediction sets (lac)" in capsys.readouterr().err and "Prediction sets" in (run / "report.html").read_text()


def test_a_calibration_stays_in_the_report_when_more_is_measured(run: Path) -> None:
    evaluate.main([str(run), "--calibrate", "--no_baselines"])
    fitted = content(run / "uncertainty.json")
    evaluate.main([str(run), "--coverage", "0.8", "--no_baselines"])
    both = content(run / "uncertainty.json")
    assert both["calibration"] == fitted["calibration"] and both["tables"][0] == fitted["tables"][0]
    assert [each["title"] for each in both["tables"]] == ["Calibration (temperature)", "Prediction sets (lac)"]
    assert "Calibration (temperature)" in model_card(run)
    evaluate.main([str(run), "--coverage", "0.8", "--no_baselines", "--evaluation.calibration", "false"])
    assert "calibration" not in content(run / "uncertainty.json")


def test_a_coverage_that_cannot_be_is_named(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs at least 99 cases"):
        Run.open(run).predict("the film", coverage=0.99)
    with pytest.raises(ValueError, match="between 0 and 1"):
        Run.open(run).predict("the film", coverage=1.5)
    with pytest.raises(ValueError, match="data.validation"):
        Run.open(run, ["--data.validation", "[]"]).predict("the film", coverage=0.9)
    numbers = untrained_run(tmp_path / "numbers", task_config("regression", tmp_path), checkpoint, 64)
    with pytest.raises(ValueError, match="--coverage.*regression"):
        Run.open(numbers).predict("the film", coverage=0.9)


# ---------------------------------------------------------------- abstention


@pytest.mark.parametrize("score", SCORES)
def test_abstention_is_the_same_everywhere(score: str, run: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["abstain"] = {"score": score, "keep": 0.9}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    opened = Run.open(run)
    assert opened.abstention is not None and (opened.config.abstain.score, opened.config.abstain.keep) == (score, 0.9)
    texts = [*(e.instruction for e in made(7, 8)), *STRANGE]
    answers = opened.predict(texts)
    assert [a.abstained for a in answers] == [a.scope_score < opened.abstention.threshold for a in answers]
    served = Predicting(Run.open(run, fixed_shapes=True)).answer([texts])[0].answers
    assert [a["abstained"] for a in served] == [a.abstained for a in answers]
    np.testing.assert_allclose(
        [a["scope_score"] for a in served], [a.scope_score for a in answers], rtol=1e-4, atol=1e-4
    )
    (tmp_path / "actions.yaml").write_text(ACTIONS, encoding="utf-8")
    desk = Desk(run, tmp_path / "actions.yaml").answer([("", text) for text in texts])
    assert [a["out_of_scope"] for a in desk] == [a.abstained for a in answers]
    np.testing.assert_allclose([a["scope_score"] for a in desk], [a.scope_score for a in answers], rtol=1e-4, atol=1e-4)
    records = [{"text": t, "entity": "x", "time": 1_700_000_000 + n} for n, t in enumerate(texts)]
    write_jsonl(tmp_path / "feed.jsonl", records)
    values = json.dumps({label: number for number, label in enumerate(INTENTS)})
    scores, out = tmp_path / "scores.jsonl", tmp_path / "alerts.jsonl"
    given = [str(run), "--input", str(tmp_path / "feed.jsonl"), "--values", values, "--band", "0.1", "1.9"]
    watch.main([*given, "--scores", str(scores), "--out", str(out)])
    assert [row["abstained"] for row in read_jsonl(scores)] == [a.abstained for a in answers]

    cases = opened.data.cases(opened.task, "validation")
    own = opened.abstention.of(cases, opened.task.outputs(opened.predictor, cases))[0]
    assert (own >= opened.abstention.threshold).mean() == pytest.approx(0.9)
    evaluate.main([str(run), "--no_baselines"])
    gained = content(run / "uncertainty.json")["abstention"]
    assert gained["score"] == score and 0 < gained["answered"] <= 1 and gained["aurc_of_errors_last"] <= gained["aurc"]


def test_statistics_of_training_vectors_are_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["--abstain.score", "knn", "--abstain.keep", "0.9"]
    first = Run.open(run, settings)
    threshold = first.abstention.threshold  # type: ignore[union-attr]
    file = run / "out_of_domain" / "training_vectors.safetensors"
    train = first.data.train(first.task)
    wanted = vector_statistics(first.domain_scores.vectors([e.text for e in train]), first.task.truth(train))
    kept = load_file(file)
    np.testing.assert_allclose(kept["precision"], wanted.precision, rtol=1e-3)
    np.testing.assert_allclose(kept["vectors"], wanted.vectors, atol=1e-5)
    assert kept["means"].dtype == kept["precision"].dtype == np.float64

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("computed again")

    copy = Path(shutil.copytree(run, run.with_name("moved")))
    with monkeypatch.context() as patch:
        patch.setattr("instructrec_jax.runs.domain_scores.vector_statistics", never)
        for path in (run, copy):
            assert Run.open(path, settings).abstention.threshold == threshold  # type: ignore[union-attr]
        save_file(kept, file, {"depends_on": "other weights"})
        with pytest.raises(AssertionError, match="again"):
            _ = Run.open(run, settings).abstention
        file.write_bytes(b"\x00" * 40)
        with pytest.raises(AssertionError, match="again"):
            _ = Run.open(run, settings).abstention
    assert Run.open(run, settings).abstention is not None and load_file(file).keys() == kept.keys()


def test_a_service_compiles_what_abstention_needs(run: Path) -> None:
    opened = Run.open(run, ["--abstain.score", "mahalanobis", "--abstain.keep", "0.9"], fixed_shapes=True)
    assert not opened.domain_scores.reads_vectors
    model = Predicting(opened)
    assert opened.domain_scores.reads_vectors
    compile_task(opened)
    with Compilations() as compilations:
        model.answer([STRANGE, ["the film"] * 5])
    assert not compilations.count


def test_what_cannot_abstain_is_named(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    numbers = untrained_run(tmp_path / "numbers", task_config("regression", tmp_path), checkpoint, 64)
    with pytest.raises(ValueError, match="abstain.score.*regression"):
        Run.open(numbers, ["--abstain.score", "knn", "--abstain.keep", "0.9"]).predict("the film")
    with pytest.raises(ValueError, match="data.train"):
        settings = ["--abstain.score", "knn", "--abstain.threshold", "0", "--data.train", "[]"]
        Run.open(run, settings).predict("the film")
    both = Classifier([run, run]).run
    with pytest.raises(ValueError, match="ensemble"):
        _ = both.domain_scores.statistics
    with pytest.raises(ValueError, match="abstain.keep"):
        Run.open(run, ["--abstain.score", "knn"]).predict("the film")


def test_a_tuned_threshold_is_of_one_calibration(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inside, outside, actions = (tmp_path / name for name in ("in.txt", "out.txt", "actions.yaml"))
    inside.write_text("\n".join(e.instruction for e in made(7, 30)))
    outside.write_text("\n".join(STRANGE * 3), encoding="utf-8")
    actions.write_text(ACTIONS, encoding="utf-8")
    assist.main(
        [str(run), "--tune_threshold", str(inside), str(outside), "--score", "knn", "--false_positive_rate", "0.4"]
    )
    told = json.loads(capsys.readouterr().out)
    desk = Desk(run, actions)
    answered = desk.answer([("", line) for line in outside.read_text(encoding="utf-8").split("\n")])
    assert np.mean([not a["out_of_scope"] for a in answered]) == pytest.approx(told["fpr"])
    assert set(content(run / "assist" / "roc.json")) == {"max_probability", "negative_energy", "knn"}
    calibrate(Run.open(run), "temperature")
    with pytest.raises(ValueError, match="tuned for another checkpoint or calibration"):
        Desk(run, actions)
    assert Desk(run, actions, threshold=0.5, score="max_probability").threshold == 0.5


# ---------------------------------------------------------------- other domains


def test_other_domains_are_told_apart(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts, records = tmp_path / "other.txt", tmp_path / "more.jsonl"
    texts.write_text("\n".join(STRANGE), encoding="utf-8")
    write_jsonl(records, [{"instruction": text} for text in STRANGE * 2])
    evaluate.main([str(run), "--out_of_domain", str(texts), str(records), "--no_baselines"])
    found = content(run / "uncertainty.json")["out_of_domain"]
    assert set(found) == {str(texts), str(records)} and all(set(each) == set(SCORES) for each in found.values())
    for name in SCORES:
        value, low, high = found[str(texts)][name]["auroc"]
        assert low <= value <= high and value == pytest.approx(found[str(records)][name]["auroc"][0], abs=1e-6)
    opened = Run.open(run)
    cases = [e.instruction for e in made(2, 60)]
    best = [scipy.special.softmax(logits_of(opened, each), -1).max(-1) for each in (cases, STRANGE)]
    wanted = (best[0][:, None] > best[1]).mean()
    assert found[str(texts)]["max_probability"]["auroc"][0] == pytest.approx(wanted, abs=1e-3)
    assert "Other domains" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("empty.txt", b"", "no texts"),
        ("blank.txt", b"\n \n", "no texts"),
        ("bad.txt", b"\xff\xfe", "UTF-8"),
        ("broken.jsonl", b'{"instruction": "a"}\n{"instruct\n', "broken.jsonl.*line 2"),
        ("empty.jsonl", b"", "empty.jsonl"),
        ("other.jsonl", b'{"number": 1}\n', "other.jsonl.*line 1"),
        ("long.txt", b"a film " * 200, "long.txt.*max_length"),
        ("missing.jsonl", None, "missing.jsonl"),
    ],
)
def test_files_of_other_domains_that_cannot_be_read_are_named(
    name: str, content: bytes | None, named: str, run: Path, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, OSError), match=named):
        read_texts(Run.open(run), tmp_path / name)


def test_options_of_an_ensemble(run: Path, tmp_path: Path) -> None:
    options: Any = SimpleNamespace(
        average="probability", weights="equal", calibrate="per_class", paths=[run, run], step=None
    )
    with pytest.raises(ValueError, match="--calibrate temperature"):
        open_ensemble(options, tmp_path / "E", [])
