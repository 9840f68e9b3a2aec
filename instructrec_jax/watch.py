"""Watch a stream of news with a tuned classifier: `python -m instructrec_jax.watch RUN [RUN2 ...]`.

    watch RUN --input headlines.jsonl --out alerts.jsonl        records with text, entity, time
    tail -f feed.jsonl | watch RUN --window 3d --band -0.5 0.5  line by line, alerts on the terminal
    watch RUN --draws 8 ...                                     uncertainty by Monte Carlo dropout
    watch RUN RUN2 RUN3 ...                                     uncertainty by an ensemble

Each record gets a label; each entity a rolling score, the mean value of the labels of its records in the window. An
alert is raised when the score leaves the band, once for each time.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

import numpy as np

from instructrec_jax.answering.classifier import Classifier
from instructrec_jax.answering.records import (
    InOrder,
    Skipped,
    blocks,
    duration,
    name_of,
    read_records,
    time_of,
    value_of,
)
from instructrec_jax.answering.rolling import Band, Opinion, Watch
from instructrec_jax.data.example import BadExample, suggest
from instructrec_jax.files import append_jsonl, write_text
from instructrec_jax.metrics.uncertainty import entropy, mutual_information
from instructrec_jax.runs.config import main_guard
from instructrec_jax.tasks.base import Encoded

VALUES = {"positive": 1.0, "neutral": 0.0, "negative": -1.0}
Weight = Literal["equal", "certainty"]


@dataclass(frozen=True)
class Reading:
    """A record of the stream, ready for the model."""

    number: int
    where: str
    entity: str
    time: datetime
    text: str
    encoded: list[Encoded]


class Feed:
    """Readings of a stream in the order of their time; a bad record is an error, or counted in `skipped`.

    Args:
      fields: names of the fields "text", "entity" and "time".
      zone: of times that name none; `unzoned` counts them.
      late: how much older than a record before it a record may be.
    """

    def __init__(
        self, classifier: Classifier, fields: Mapping[str, str], zone: tzinfo, late: timedelta, skipped: Skipped
    ):
        self.classifier, self.fields, self.zone, self.skipped = classifier, fields, zone, skipped
        self.order: InOrder[Reading] = InOrder(late)
        self.unzoned = 0

    def __call__(self, source: str) -> Iterator[Reading]:
        for number, (where, record) in enumerate(read_records(source)):
            try:
                if isinstance(record, BadExample):
                    raise record
                reading, zoned = self._read(number, where, record)
                ready = self.order.take(reading, self.fields["time"])
            except BadExample as error:
                self.skipped.add(error, where)
                continue
            self.unzoned += not zoned
            yield from ready
        yield from self.order.rest()

    def _read(self, number: int, where: str, record: Mapping[str, Any]) -> tuple[Reading, bool]:
        found = {name: value_of(record, field, f"--{name}_field") for name, field in self.fields.items()}
        entity = name_of(found["entity"], self.fields["entity"])
        time, zoned = time_of(found["time"], self.fields["time"], self.zone)
        if not isinstance(found["text"], str):
            raise BadExample(self.fields["text"], "wrong type", f"expected a text, found {found['text']!r:.60}.")
        encoded = self.classifier.encode(found["text"], where)
        return Reading(number, where, entity, time, found["text"], encoded), zoned


def label_values(labels: list[str], given: Mapping[str, float] | None) -> np.ndarray:
    """float64 [labels]: what each label counts in the score. Raises ValueError where one is missing or unknown."""
    values = {label: VALUES[label.casefold()] for label in labels if label.casefold() in VALUES} | dict(given or {})
    for label in values:
        if label not in labels:
            raise ValueError(f"--values: {label!r} is none of the run's labels {labels}.{suggest(label, labels)}")
    if missing := [label for label in labels if label not in values]:
        example = json.dumps({label: 0 for label in labels}, ensure_ascii=False)
        raise ValueError(f"--values says nothing of {missing}: give each label a number, --values '{example}'.")
    return np.array([values[label] for label in labels], float)


def opinions(classifier: Classifier, values: np.ndarray, weight: Weight, block: list[Reading]) -> list[Opinion]:
    """Labels a block of readings."""
    members = classifier.members_of([each.encoded for each in block], [each.number for each in block])
    means, unsure, informed = members.mean(0), entropy(members.mean(0)), mutual_information(members)
    found = []
    for place, each in enumerate(block):
        mean = means[place]
        told: dict[str, Any] = {
            "where": each.where,
            "time": each.time.isoformat(),
            "text": each.text,
            "label": classifier.labels[int(mean.argmax())],
            "value": float(mean @ values),
            "probabilities": dict(zip(classifier.labels, mean.tolist(), strict=True)),
            "entropy": float(unsure[place]),
        }
        if classifier.members > 1:
            told["mutual_information"] = float(informed[place])
        certainty = max(0.0, 1 - float(unsure[place]) / np.log(len(values)))
        found.append(
            Opinion(
                each.entity,
                each.time,
                members[:, place] @ values,
                told["value"],
                certainty if weight == "certainty" else 1.0,
                told,
                told["entropy"],
                float(informed[place]),
            )
        )
    return found


def watch(
    classifier: Classifier,
    readings: Iterator[Reading],
    window: timedelta,
    band: Band,
    *,
    values: Mapping[str, float] | None = None,
    weight: Weight = "equal",
    batch: int = 64,
    live: bool = False,
) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Of each reading its record (label, probabilities, the entity's score after it), and the alert it raised or None.

    Args:
      readings: in the order of their time, see `Feed`.
      values: label -> what it counts; None: positive 1, neutral 0, negative -1.
      weight: of a record in the score: "equal", or "certainty", 1 − entropy / log(labels).
      batch: records labelled at a time, at most.
      live: label what has come in, without waiting for a full batch.

    Raises:
      ValueError: labels without a value, or a band that no score can leave.
    """
    numbers = label_values(classifier.labels, values)
    if band.high >= numbers.max() and band.low <= numbers.min():
        raise ValueError(
            f"--band {band.low:g} {band.high:g}: scores lie between {numbers.min():g} and {numbers.max():g}, so none "
            "ever leaves it."
        )
    watching = Watch(window, band)
    for block in blocks(readings, batch, live=live):
        for opinion in opinions(classifier, numbers, weight, block):
            told, alert = watching.add(opinion)
            yield {"entity": opinion.entity} | opinion.told | told, alert


def main(args: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m instructrec_jax.watch", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories of one classification task")
    parser.add_argument("--input", default="-", help="JSONL, CSV ... file; default: stdin, a JSON object a line")
    parser.add_argument("--out", type=Path, help="JSONL file for the alerts; default: stdout")
    parser.add_argument("--scores", type=Path, help="JSONL file for every record's label and the score after it")
    for name in ("text", "entity", "time"):
        parser.add_argument(f"--{name}_field", default=name, metavar="NAME", help=f"default: {name}")
    parser.add_argument("--timezone", default="UTC", help="of times that name none, such as Asia/Shanghai; default UTC")
    parser.add_argument("--late", default="0s", help="how late a record may come, such as 1h; later ones are bad")
    parser.add_argument("--window", default="7d", help="how far back a score looks: 36h, 7d, 2w; default 7d")
    parser.add_argument(
        "--band", nargs=2, type=float, default=(-0.4, 0.4), metavar=("LOW", "HIGH"), help="default: -0.4 0.4"
    )
    parser.add_argument(
        "--hysteresis", type=float, default=0.1, help="how far back inside a score must come to alert anew; default 0.1"
    )
    parser.add_argument("--least", type=int, default=3, help="records in the window that a score needs; default 3")
    parser.add_argument("--values", help='what labels count, JSON; default: {"positive": 1, "neutral": 0, ...}')
    parser.add_argument("--weight", choices=("equal", "certainty"), default="equal", help="of records in a score")
    parser.add_argument("--draws", type=int, default=0, help="passes with dropout for each record; default: none")
    parser.add_argument("--seed", type=int, default=0, help="of the dropout")
    parser.add_argument("--instruction", default="", help="what stood before the texts in training, if anything")
    parser.add_argument("--batch", type=int, default=64, help="records labelled at a time, at most")
    parser.add_argument("--on_bad_record", choices=("error", "skip"), default="error", help="skip: count and go on")
    options = parser.parse_intermixed_args(args)

    low, high = options.band
    band = Band(low, high, options.hysteresis, options.least)
    window, late = duration(options.window), duration(options.late)
    values = None if options.values is None else _values(options.values)
    if options.batch < 1:
        raise ValueError(f"--batch is {options.batch}, but should be at least 1.")
    for out in (options.out, options.scores):
        if out is not None and out.exists():
            raise ValueError(f"{out} exists already: choose another file.")
    try:
        zone = ZoneInfo(options.timezone)
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(f"--timezone: there is no {options.timezone!r}; write UTC or Europe/Berlin, say.") from error
    classifier = Classifier(options.runs, draws=options.draws, seed=options.seed, instruction=options.instruction)
    fields = {name: getattr(options, f"{name}_field") for name in ("text", "entity", "time")}
    skipped = Skipped(options.on_bad_record == "skip")
    feed = Feed(classifier, fields, zone, late, skipped)
    live = options.input == "-"
    found = watch(
        classifier,
        feed(options.input),
        window,
        band,
        values=values,
        weight=options.weight,
        batch=options.batch,
        live=live,
    )
    for out in (options.out, options.scores):
        if out is not None:
            write_text(out, "")  # so that there is a file where nothing happened
    records, alerts = 0, 0
    for scored in blocks(found, 1 if live else options.batch):
        raised = [alert for _, alert in scored if alert is not None]
        records, alerts = records + len(scored), alerts + len(raised)
        if options.scores is not None:
            append_jsonl(options.scores, [record for record, _ in scored])
        if options.out is not None and raised:
            append_jsonl(options.out, raised)
        for alert in raised if options.out is None else ():
            print(json.dumps(alert, ensure_ascii=False), flush=True)
    notes = [f"{records:,} records, {alerts:,} alerts."]
    if feed.unzoned:
        notes.append(f"{feed.unzoned:,} times named no time zone: they were read as {options.timezone}.")
    if classifier.cut:
        notes.append(f"{classifier.cut:,} texts were longer than the run's data.max_length, and cut.")
    print("\n".join(note for note in [*notes, skipped.summary()] if note), file=sys.stderr)


def _values(text: str) -> dict[str, float]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f'--values is not JSON ({error}): write --values \'{{"good": 1, "bad": -1}}\'.') from None
    if not isinstance(values, dict) or not all(
        isinstance(v, int | float) and not isinstance(v, bool) and np.isfinite(v) for v in values.values()
    ):
        raise ValueError(f"--values should be labels with numbers, but is {text}.")
    return {label: float(value) for label, value in values.items()}


if __name__ == "__main__":
    main_guard(main)
