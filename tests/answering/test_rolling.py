"""Rolling scores, bands and alerts against brute force and pandas."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from instructrec_jax.answering.rolling import Band, Opinion, Watch, contributions, rolling_score

START = datetime(2030, 1, 1, tzinfo=UTC)


def opinion(entity: str, day: float, value: float, weight: float = 1.0, members: Sequence[float] = ()) -> Opinion:
    values = np.array(members or [value])
    time = START + timedelta(days=day)
    return Opinion(entity, time, values, value, weight, {"text": f"{entity} {day}"}, 0.5, 0.1)


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
