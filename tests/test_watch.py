"""The financial watch on a tiny run and on a stream with planted events."""

import importlib.util
import io
import json
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import entropy as scipy_entropy
from tiny_runs import changed, tiny_run

from instructrec_jax import watch as verb
from instructrec_jax.answering.classifier import Classifier
from instructrec_jax.answering.records import Skipped
from instructrec_jax.answering.rolling import Band
from instructrec_jax.backbones.folder import read_config
from instructrec_jax.data.example import Example
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.files import read_jsonl, write_jsonl
from instructrec_jax.tasks import ClassificationConfig
from instructrec_jax.tasks.averaging import Mixture
from instructrec_jax.train import train

SCRIPT = Path(__file__).parents[1] / "scripts" / "synthetic_headlines.py"
spec: Any = importlib.util.spec_from_file_location("synthetic_headlines", SCRIPT)
headlines = importlib.util.module_from_spec(spec)
sys.modules["synthetic_headlines"] = headlines
spec.loader.exec_module(headlines)

START = datetime(2030, 1, 1, tzinfo=UTC)
LABELS = ["negative", "neutral", "positive"]
WORDS = {"positive": ["good", "bright"], "negative": ["bad", "dull"], "neutral": ["old", "new"]}


def sentence(rng: np.random.Generator, label: str) -> str:
    return " ".join(["the", str(rng.choice(["film", "book", "music"])), str(rng.choice(WORDS[label]))])


@pytest.fixture(scope="module")
def run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network trained to distinguish good from bad words."""
    folder = tmp_path_factory.mktemp("watch")
    rng = np.random.default_rng(0)
    sources = {}
    for split, count in (("train", 192), ("validation", 24), ("test", 24)):
        chosen = [LABELS[i] for i in rng.integers(0, 3, count)]
        made = [Example(instruction=sentence(rng, label), output=label).to_record() for label in chosen]
        write_jsonl(folder / f"{split}.jsonl", made)
        sources[split] = [SourceConfig(path=str(folder / f"{split}.jsonl"))]
    config = tiny_run("classification", checkpoint, folder / "unused", steps=60, evaluation__every=60)
    config = changed(
        config,
        run_dir=str(folder / "run"),
        task=ClassificationConfig(labels=LABELS),
        data__train=sources["train"],
        data__validation=sources["validation"],
        data__test=sources["test"],
        data__batch_size=16,
        checkpoint__every=60,
    )
    train(config)
    return folder / "run"


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three entities; from day 20 on, "b" has only bad news."""
    rng = np.random.default_rng(1)
    made = []
    for number in range(240):
        day, entity = number / 6, "abc"[number % 3]
        label = "negative" if entity == "b" and day >= 20 else ["positive", "negative", "neutral"][number // 3 % 3]
        time = START + timedelta(days=day)
        made.append({"time": time.isoformat(), "entity": entity, "text": sentence(rng, label), "label": label})
    path = tmp_path_factory.mktemp("stream") / "headlines.jsonl"
    write_jsonl(path, made)
    return path


def test_an_ensemble_takes_labels_by_name(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    turned = tmp_path / "turned"
    shutil.copytree(run, turned)
    text = (turned / "config.yaml").read_text()
    assert "- negative\n" in text
    listed = (
        text.replace("- negative\n", "- x\n").replace("- positive\n", "- negative\n").replace("- x\n", "- positive\n")
    )
    (turned / "config.yaml").write_text(listed)  # the same network calls good what was bad
    both = Classifier([run, turned])
    members = both.members_of([both.encode("the film good", "here")])
    np.testing.assert_allclose(members[1, 0], members[0, 0][::-1], atol=1e-6)
    assert members[0, 0].argmax() == 2 and both.members == 2
    drawn = Classifier([run, run], draws=2)  # each run draws its own
    four = drawn.members_of([drawn.encode("the film good", "here")])
    assert four.shape == (4, 1, 3) and len({float(member.max()) for member in four}) == drawn.members == 4


def test_draws_need_dropout(run: Path, tmp_path: Path) -> None:
    dry = tmp_path / "dry"
    shutil.copytree(run, dry)
    config = read_config(dry / "backbone")
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    config.save_pretrained(dry / "backbone")
    classifier = Classifier([dry], draws=2)
    with pytest.raises(ValueError, match="--draws"):
        classifier.members_of([classifier.encode("the film good", "here")])
    with pytest.raises(ValueError, match="--draws"):
        Classifier([run], draws=1)


def test_runs_of_other_tasks_and_labels(run: Path, finished: Any) -> None:
    with pytest.raises(ValueError, match="labels"):
        Classifier([run, Path(finished.run_dir)])
    with pytest.raises(ValueError, match="checkpoints"):
        Classifier([run / "checkpoints"])


# ------------------------------------------------------------------ the verb


def go(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[str, str]:
    capsys.readouterr()
    verb.main([str(argument) for argument in arguments])
    out = capsys.readouterr()
    return out.out, out.err


SETTINGS = ("--window", "7d", "--band", "-0.4", "0.4", "--least", "5")


def test_a_planted_crossing_is_found(
    run: Path, stream: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, scores = tmp_path / "alerts.jsonl", tmp_path / "scores.jsonl"
    _, told = go(capsys, run, "--input", stream, "--out", out, "--scores", scores, *SETTINGS)
    (alert,) = read_jsonl(out)
    assert "240 records, 1 alerts." in told
    assert alert["entity"] == "b" and alert["direction"] == "below" and alert["score"] < -0.4
    assert START + timedelta(days=20) < datetime.fromisoformat(alert["time"]) < START + timedelta(days=26)
    assert all(m["label"] == "negative" for m in alert["moved_by"])

    records = pd.DataFrame(read_jsonl(scores))
    truth = [record["label"] for record in read_jsonl(stream)]
    assert np.mean(records.label == truth) > 0.95  # the network was trained
    given = pd.DataFrame(records.probabilities.tolist())
    np.testing.assert_allclose(records.value, given.positive - given.negative, atol=1e-12)
    np.testing.assert_allclose(records.entropy, scipy_entropy(given.to_numpy(), axis=-1), atol=1e-9)
    for _, group in records.groupby("entity"):
        index = pd.DatetimeIndex(group.time)
        rolling = pd.Series(group.value.to_numpy(), index).rolling(timedelta(days=7))
        np.testing.assert_allclose(group.score, rolling.mean(), atol=1e-9)
        assert group.records.tolist() == rolling.count().tolist()
    with pytest.raises(ValueError, match="--out"):
        go(capsys, run, "--input", stream, "--out", out)


def test_draws_weights_and_values(run: Path, stream: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shorter = tmp_path / "shorter.jsonl"
    write_jsonl(shorter, read_jsonl(stream)[:60])

    def scored(name: str, *more: Any) -> pd.DataFrame:
        file = tmp_path / f"{name}.jsonl"
        go(capsys, run, "--input", shorter, "--scores", file, *SETTINGS, "--draws", 4, *more)
        return pd.DataFrame(read_jsonl(file))

    first, again, other = scored("first"), scored("again", "--batch", 7), scored("other", "--seed", 1)
    np.testing.assert_allclose(first.value, again.value, atol=1e-5)  # independent of the batch size
    assert np.abs(first.value - other.value).max() > 1e-4
    assert (first.mutual_information > 0).all()

    certain = scored("certain", "--weight", "certainty", "--values", '{"negative": -2}')
    given = pd.DataFrame(certain.probabilities.tolist())
    np.testing.assert_allclose(certain.value, given.positive - 2 * given.negative, atol=1e-9)
    certainty = 1 - certain.entropy / np.log(3)
    of_a = (certain.entity == "a") & (pd.to_datetime(certain.time) < pd.Timestamp(START + timedelta(days=7)))
    last = np.average(certain.value[of_a], weights=certainty[of_a])
    assert certain.score[of_a].iloc[-1] == pytest.approx(last, abs=1e-9)


def test_stdin_csv_and_other_names(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"the film bad,甲公司,{1714527000 + 60 * n}" for n in range(3)]
    table = tmp_path / "news.csv"
    table.write_text("\n".join(["headline,ticker,when", *lines]) + "\n", encoding="utf-8")
    names = ("--text_field", "headline", "--entity_field", "ticker", "--time_field", "when")
    out, _ = go(capsys, run, "--input", table, *names)
    alert = json.loads(out)
    assert alert["entity"] == "甲公司" and alert["records"] == 3 and alert["time"] == "2024-05-01T01:32:00+00:00"
    assert alert["moved_by"][0]["where"].startswith(f"{table}, line ")


def test_bad_records(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {"text": "the film bad", "entity": "a", "time": "2024-05-01"}
    bad: list[tuple[Any, str]] = [
        ("{", "malformed line"),
        ([1], "JSON object"),
        ({**good, "text": None}, "empty field"),
        ({**good, "text": 5}, "wrong type"),
        ({"text": "x", "entty": "a", "time": 1}, "'entity'.*entty"),
        ({**good, "time": "soon"}, "bad time"),
        ({**good, "time": "2024-04-30"}, "too late"),
        ({**good, "entity": 1.5}, "wrong type"),
        ({**good, "text": "a film " * 40}, "unusable text.*max_length"),
    ]
    lines = [json.dumps(good), *(line if isinstance(line, str) else json.dumps(line) for line, _ in bad), ""]

    def feed(chosen: list[str]) -> None:
        stdin = io.TextIOWrapper(io.BytesIO("\n".join(chosen).encode()))
        monkeypatch.setattr(sys, "stdin", stdin)

    for line, (_, message) in zip(lines[1:], bad, strict=False):
        feed([lines[0], line])
        with pytest.raises(ValueError, match=f"stdin, line 2.*{message}"):
            go(capsys, run)
    feed(lines)
    _, told = go(capsys, run, "--on_bad_record", "skip")
    assert "1 records, 0 alerts." in told and f"{len(bad)} bad records" in told
    assert "UTC" in told


def test_options_that_cannot_be(run: Path, finished: Any, stream: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in [
        ((run, "--band", "-1", "1"), "--band"),
        ((run, "--values", '{"good": 1}'), "--values.*'good'"),
        ((run, "--values", "good"), "--values.*JSON"),
        ((finished.run_dir,), "--values"),
        ((run, "--timezone", "Mars"), "Mars"),
        ((run, "--window", "soon"), "'soon'"),
    ]:
        with pytest.raises(ValueError, match=message):
            go(capsys, *arguments, "--input", stream)


# ------------------------------------------------------------------ the synthetic stream


class Oracle:
    """Replaces a classifier: knows the label of each template."""

    labels, members, mixture = LABELS, 1, Mixture.equal("probability", 1)
    run = SimpleNamespace(abstention=None)

    def encode(self, text: str, where: str) -> Any:
        return text

    def logits(self, encoded: Sequence[str], numbers: Any = None) -> np.ndarray:
        def label(text: str) -> str:
            near = {
                label: max(len(set(text.split()) & set(t.split())) for t in templates)
                for label, templates in headlines.TEMPLATES.items()
            }
            return max(near, key=near.__getitem__)

        return np.array([[[0.0 if label(text) == name else -np.inf for name in LABELS] for text in encoded]])

    def shares(self, logits: np.ndarray) -> np.ndarray:
        return np.exp(logits)

    def mean(self, logits: np.ndarray) -> np.ndarray:
        return logits[0]


@pytest.mark.parametrize("bad", ["{", json.dumps({"text": "x", "entity": "a", "time": 20}), None])
def test_readings_before_a_bad_record_are_delivered(bad: str | None, tmp_path: Path) -> None:
    good = [{"text": f"t{n}", "entity": "a", "time": f"2024-05-0{n}"} for n in (3, 1, 2)]
    lines = [*map(json.dumps, good), bad or '{"text": "x"}', json.dumps(good[0])]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    oracle: Any = Oracle()
    feed = verb.Feed(oracle, {n: n for n in ("text", "entity", "time")}, UTC, timedelta(days=9), Skipped(False))
    found = []
    with pytest.raises(ValueError, match=r"a\.jsonl, line 4"):
        for reading in feed(str(tmp_path / "a.jsonl")):
            found.append(reading.text)
    assert found == ["t1", "t2", "t3"]


@pytest.mark.parametrize("flat", [False, True])
def test_planted_events_are_found_and_nothing_else(flat: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, planted = tmp_path / "headlines.jsonl", tmp_path / "events.json"
    arguments = ["--out", file, "--events", planted, *(["--flat"] if flat else [])]
    monkeypatch.setattr(sys, "argv", ["synthetic_headlines.py", *map(str, arguments)])
    headlines.main()
    records = read_jsonl(file)
    assert all(record["synthetic"] for record in records)
    oracle: Any = Oracle()
    feed = verb.Feed(oracle, {n: n for n in ("text", "entity", "time")}, UTC, timedelta(0), Skipped(False))
    found = list(verb.watch(oracle, feed(str(file)), timedelta(days=7), Band(-0.5, 0.5, 0.1, 20)))
    assert [scored["label"] for scored, _ in found] == [record["label"] for record in records]
    alerts = [alert for _, alert in found if alert is not None]
    events = json.loads(planted.read_text())
    assert len(alerts) == len(events) == (0 if flat else 2)
    for alert, event in zip(alerts, events, strict=True):
        assert alert["entity"] == event["company"]
        assert alert["direction"] == {"negative": "below", "positive": "above"}[event["label"]]
        assert event["from"] < alert["time"] < event["to"]
