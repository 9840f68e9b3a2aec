"""The financial watch: times, order, windows and bands against brute force; a stream with planted events."""

import importlib.util
import io
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from scipy.stats import entropy as scipy_entropy
from tiny_runs import changed, tiny_run

from instructrec_jax import watch as verb
from instructrec_jax.answering.classifier import Classifier
from instructrec_jax.answering.records import InOrder, Skipped, blocks, duration, time_of
from instructrec_jax.answering.rolling import Band, Opinion, Watch, contributions, rolling_score
from instructrec_jax.backbones.folder import read_config
from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.data.sources import SourceConfig
from instructrec_jax.files import read_jsonl, write_jsonl
from instructrec_jax.metrics.uncertainty import mutual_information, negative_energy
from instructrec_jax.tasks import ClassificationConfig
from instructrec_jax.train import train

SCRIPT = Path(__file__).parents[1] / "scripts" / "synthetic_headlines.py"
spec: Any = importlib.util.spec_from_file_location("synthetic_headlines", SCRIPT)
headlines = importlib.util.module_from_spec(spec)
sys.modules["synthetic_headlines"] = headlines
spec.loader.exec_module(headlines)

START = datetime(2030, 1, 1, tzinfo=UTC)
LABELS = ["negative", "neutral", "positive"]
WORDS = {"positive": ["good", "bright"], "negative": ["bad", "dull"], "neutral": ["old", "new"]}


def opinion(entity: str, day: float, value: float, weight: float = 1.0, members: Sequence[float] = ()) -> Opinion:
    values = np.array(members or [value])
    time = START + timedelta(days=day)
    return Opinion(entity, time, values, value, weight, {"text": f"{entity} {day}"}, 0.5, 0.1)


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


# ------------------------------------------------------------------ scores, windows, bands


def brute_force(opinions: list[Opinion], window: timedelta, band: Band) -> list[tuple[float, str | None]]:
    """Brute force at each record: the score, and the direction of an alert."""
    found: list[tuple[float, str | None]] = []
    sides: dict[str, str | None] = {}
    for number, now in enumerate(opinions):
        inside = [
            o for o in opinions[: number + 1] if o.entity == now.entity and now.time - window < o.time <= now.time
        ]
        score = sum(o.weight * o.value for o in inside) / sum(o.weight for o in inside)
        before = sides.get(now.entity) if len(inside) > 1 else None
        side = before
        if len(inside) >= band.least:
            upper = band.high - (band.hysteresis if before == "above" else 0)
            lower = band.low + (band.hysteresis if before == "below" else 0)
            side = "above" if score > upper else "below" if score < lower else None
        sides[now.entity] = side
        found.append((score, side if side != before else None))
    return found


@pytest.mark.parametrize("hysteresis", [0.0, 0.1, 0.4])
def test_scores_and_alerts_equal_brute_force(hysteresis: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instructrec_jax.answering.rolling.SWEEP", 7)  # removing idle entities changes nothing
    rng = np.random.default_rng(0)
    days = np.sort(rng.uniform(0, 120, 600)).round(2)  # equal times are among them
    opinions = [
        opinion(str(rng.choice(list("abcdefgh"))), day, float(rng.uniform(-1, 1)), float(rng.uniform(0.1, 1)))
        for day in days
    ]
    band = Band(-0.2, 0.2, hysteresis, 3)
    watching = Watch(timedelta(days=3), band)
    found = [watching.add(each) for each in opinions]
    expected = brute_force(opinions, timedelta(days=3), band)
    np.testing.assert_allclose([told["score"] for told, _ in found], [score for score, _ in expected], atol=1e-12)
    directions = [None if alert is None else alert["direction"] for _, alert in found]
    assert directions == [direction for _, direction in expected]
    assert {"above", "below"} < set(directions)


def test_rolling_scores_are_those_of_pandas() -> None:
    rng = np.random.default_rng(1)
    opinions = [opinion("a", float(day), float(rng.normal())) for day in np.sort(rng.uniform(0, 60, 200))]
    watching = Watch(timedelta(days=5), Band(-9, 9, 0, 1))
    found = [watching.add(each)[0] for each in opinions]
    series = pd.Series([o.value for o in opinions], pd.DatetimeIndex([o.time for o in opinions]))
    rolling = series.rolling(timedelta(days=5))
    np.testing.assert_allclose([told["score"] for told in found], rolling.mean().to_numpy(), atol=1e-12)
    assert [told["records"] for told in found] == rolling.count().astype(int).tolist()


def test_an_alert_is_raised_once_for_each_crossing() -> None:
    def directions(values: list[float], days: Sequence[float] | None = None) -> list[str | None]:
        watching = Watch(timedelta(days=1.5), Band(-0.5, 0.5, 0.2, 1))  # of daily records, the last two
        times = range(len(values)) if days is None else days
        alerts = [watching.add(opinion("a", float(day), value))[1] for day, value in zip(times, values, strict=True)]
        return [alert and alert["direction"] for alert in alerts]

    assert directions([0, 1, 1, 1, 1]) == [None, None, "above", None, None]
    # 0.4 is inside the band, but not by the hysteresis; 0.2 is
    assert directions([1, 1, -0.2, 1, 1]) == ["above", None, None, None, None]
    assert directions([1, 1, -0.6, 1, 1]) == ["above", None, None, None, "above"]
    assert directions([1, 1, -3, -1]) == ["above", None, "below", None]  # across the band
    assert directions([-1, -1, -1], [0, 1, 9]) == ["below", None, "below"]  # after a window without records


def test_too_few_records_raise_nothing() -> None:
    watching = Watch(timedelta(days=7), Band(-0.4, 0.4, 0.1, 3))
    alerts = [watching.add(opinion("a", day, -1))[1] for day in range(4)]
    assert [alert is None for alert in alerts] == [True, True, False, True]


def test_an_alert_says_what_moved_the_score_and_how_sure_it_is() -> None:
    watching = Watch(timedelta(days=7), Band(-0.4, 0.4, 0.1, 4))
    values = [-0.2, -1.0, 0.3, -0.9]
    members = [[-0.4, 0.0], [-1.0, -1.0], [0.2, 0.4], [-1.0, -0.8]]
    for day, (value, each) in enumerate(zip(values, members, strict=True)):
        told, alert = watching.add(opinion("公司 🚀", day, value, members=each))
    assert told["score"] == pytest.approx(-0.45) and alert is not None
    assert alert["entity"] == "公司 🚀" and alert["direction"] == "below" and alert["band"] == [-0.4, 0.4]
    assert alert["records"] == 4 and alert["since"] == START.isoformat()
    assert alert["time"] == (START + timedelta(days=3)).isoformat()
    assert [m["text"] for m in alert["moved_by"]] == ["公司 🚀 1", "公司 🚀 3", "公司 🚀 0"]  # 2 moved it up
    assert [m["contribution"] for m in alert["moved_by"]] == pytest.approx([-0.25, -0.225, -0.05])
    scores = np.mean(members, 0)
    assert alert["uncertainty"]["score_std"] == pytest.approx(scores.std())
    assert alert["uncertainty"]["agreement"] == np.mean(scores < -0.4) == 0.5
    assert alert["uncertainty"]["entropy"] == 0.5 and alert["uncertainty"]["mutual_information"] == pytest.approx(0.1)


def test_contributions_add_up_to_the_score() -> None:
    values, weights = np.array([1.0, -1.0, 0.5]), np.array([0.2, 1.0, 0.4])
    added = contributions(values, weights, 0.25)
    assert added.sum() == pytest.approx(np.average(values, weights=weights) - 0.25)
    assert added[1] == pytest.approx(-1.25 / 1.6)
    assert rolling_score(np.array([0.7]), np.array([0.0])) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.4, -0.4), "--band"),
        ((-0.4, float("nan")), "--band"),
        ((-1, 1, 3.0), "--hysteresis"),
        ((-1, 1, 0, 0), "--least"),
    ],
)
def test_bands_that_are_none(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Band(*arguments)


# ------------------------------------------------------------------ times and order


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2024-05-01T09:30:00+08:00", "2024-05-01T01:30:00+00:00"),
        ("2024-05-01T01:30:00Z", "2024-05-01T01:30:00+00:00"),
        ("2024-05-01 09:30", "2024-05-01T07:30:00+00:00"),  # Berlin, in summer
        ("2024-05-01", "2024-04-30T22:00:00+00:00"),
        ("20240501", "2024-04-30T22:00:00+00:00"),
        (1714527000, "2024-05-01T01:30:00+00:00"),
        ("1714527000.5", "2024-05-01T01:30:00.500000+00:00"),
        (20240501, "2024-04-30T22:00:00+00:00"),  # a day, not 235 days after 1970
        (20240501.0, "2024-04-30T22:00:00+00:00"),
        (-1000000000, "1938-04-24T22:13:20+00:00"),
        ("20240501T0930", "2024-05-01T07:30:00+00:00"),
    ],
)
def test_times(value: Any, expected: str) -> None:
    assert time_of(value, "time", ZoneInfo("Europe/Berlin"))[0].isoformat() == expected


NO_TIMES = ["yesterday", "2024-13-01", 1714527000000, True, float("nan"), [1], "0001-01-01", "1714527000000"]
AMBIGUOUS = [
    0,
    1,
    2024,
    "2024",
    202405,
    "202405",
    20241301,
    2024050109,
    202405010930,
    "20240501093000",
    1e30,
    "9" * 5000,
]


@pytest.mark.parametrize("value", NO_TIMES + AMBIGUOUS)
def test_times_that_are_none(value: Any) -> None:
    with pytest.raises(BadExample, match="'when'"):
        time_of(value, "when", UTC)


def test_durations() -> None:
    assert [duration(t) for t in ("90s", "30m", "36h", "7d", "0.5w")] == [
        timedelta(seconds=90),
        timedelta(minutes=30),
        timedelta(hours=36),
        timedelta(days=7),
        timedelta(days=3.5),
    ]
    for text in ("7", "d", "-1d", "7 days", "99999w"):
        with pytest.raises(ValueError):
            duration(text)


def test_late_records_are_sorted_within_the_watermark() -> None:
    order: InOrder[Opinion] = InOrder(timedelta(days=2))
    days = [1, 3, 2, 2, 5, 4, 9]
    found = [o for number, day in enumerate(days) for o in order.take(opinion("a", day, number), "time")]
    assert [(o.time - START).days for o in found] == [1, 2, 2, 3, 4, 5]
    assert [o.value for o in found if (o.time - START).days == 2] == [2, 3]  # in order of arrival
    with pytest.raises(BadExample, match="--late.*2 days"):
        order.take(opinion("a", 6.9, 0), "time")
    assert [(o.time - START).days for o in [*order.take(opinion("a", 7, 0), "time"), *order.rest()]] == [7, 9]


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_what_came_before_an_error_is_delivered(live: bool, size: int) -> None:
    def feed() -> Iterator[int]:
        yield from range(5)
        raise ValueError("record 6")

    got: list[int] = []
    with pytest.raises(ValueError, match="record 6"):
        for block in blocks(feed(), size, live=live):
            assert 0 < len(block) <= size
            got += block
    assert got == [0, 1, 2, 3, 4]


def test_live_blocks_hold_nothing_back() -> None:
    """The second item is produced only after the first was consumed."""
    taken = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        assert taken.wait(5)
        yield from (2, 3)

    found = []
    for block in blocks(items(), 8, live=True):
        found += block
        taken.set()
    assert found == [1, 2, 3]
    assert list(blocks(iter(range(5)), 2)) == [[0, 1], [2, 3], [4]]

    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(blocks(failing(), 1, live=True))


def test_a_program_ends_while_its_input_is_still_open() -> None:
    code = (
        "from instructrec_jax.answering.records import blocks, read_records\n"
        "print(next(blocks(read_records('-'), 8, live=True)), flush=True)\n"
        "raise SystemExit(3)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write('{"text": "你好"}\n'.encode())
    process.stdin.flush()
    assert "stdin, line 1" in process.stdout.readline().decode()
    assert process.wait(30) == 3
    process.stdin.close()


# ------------------------------------------------------------------ uncertainty


def test_uncertainty_of_members() -> None:
    rng = np.random.default_rng(0)
    members = rng.dirichlet(np.ones(3), (6, 4))
    expected = scipy_entropy(members.mean(0), axis=-1) - scipy_entropy(members, axis=-1).mean(0)
    np.testing.assert_allclose(mutual_information(members), expected)
    np.testing.assert_allclose(mutual_information(members[:1].repeat(3, 0)), 0, atol=1e-12)
    logits = rng.normal(size=(5, 4))
    np.testing.assert_allclose(negative_energy(logits), np.log(np.exp(logits).sum(-1)))


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

    labels, members = LABELS, 1

    def encode(self, text: str, where: str) -> Any:
        return text

    def members_of(self, encoded: Sequence[str], numbers: Any = None) -> np.ndarray:
        def label(text: str) -> str:
            near = {
                label: max(len(set(text.split()) & set(t.split())) for t in templates)
                for label, templates in headlines.TEMPLATES.items()
            }
            return max(near, key=near.__getitem__)

        return np.array([[[float(label(text) == name) for name in LABELS] for text in encoded]])


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
