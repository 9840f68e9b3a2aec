"""Watches a stream of records with classifiers: labels, rolling scores and alerts."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo

import numpy as np

from instructrec_jax.answering.classifier import Classifier
from instructrec_jax.answering.records import InOrder, Skipped, blocks, name_of, read_records, time_of, value_of
from instructrec_jax.answering.rolling import Band, Opinion, Watch, Weight
from instructrec_jax.data.example import BadExample, suggest
from instructrec_jax.metrics.uncertainty import entropy, mutual_information, probabilities
from instructrec_jax.tasks.base import Encoded

VALUES = {"positive": 1.0, "neutral": 0.0, "negative": -1.0}


@dataclass(frozen=True)
class Reading:
    """A parsed and encoded record of the stream."""

    number: int
    where: str
    entity: str
    time: datetime
    text: str
    encoded: Encoded


class Feed:
    """Reads a stream in time order; a bad record is raised, or counted in `skipped`.

    Args:
      fields: "text", "entity" and "time" -> name of the field.
      zone: time zone of times without one; `unzoned` counts them.
      late: how much older than an earlier record a record may be.
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
                if not self.skipped.skip:
                    yield from self.order.rest()  # records before the error are still processed
                self.skipped.add(error, where)
                continue
            self.unzoned += not zoned
            yield from ready
        yield from self.order.rest()

    def _read(self, number: int, where: str, record: Mapping[str, object]) -> tuple[Reading, bool]:
        found = {name: value_of(record, field, f"--{name}_field") for name, field in self.fields.items()}
        entity = name_of(found["entity"], self.fields["entity"])
        time, zoned = time_of(found["time"], self.fields["time"], self.zone)
        if not isinstance(found["text"], str):
            raise BadExample(self.fields["text"], "wrong type", f"expected a text, found {found['text']!r:.60}.")
        encoded = self.classifier.encode(found["text"], where)
        return Reading(number, where, entity, time, found["text"], encoded), zoned


def label_values(labels: list[str], given: Mapping[str, float] | None) -> np.ndarray:
    """float64 [labels]: value of each label in the score. Raises ValueError if one is missing or unknown."""
    values = {label: VALUES[label.casefold()] for label in labels if label.casefold() in VALUES} | dict(given or {})
    for label in values:
        if label not in labels:
            raise ValueError(f"--values: {label!r} is not one of the run's labels {labels}.{suggest(label, labels)}")
    if missing := [label for label in labels if label not in values]:
        example = json.dumps({label: 0 for label in labels}, ensure_ascii=False)
        raise ValueError(f"--values lacks {missing}: give each label a number, such as --values '{example}'.")
    return np.array([values[label] for label in labels], float)


def opinions(classifier: Classifier, values: np.ndarray, weight: Weight, block: list[Reading]) -> list[Opinion]:
    """Labels a block of readings. Where the run abstains, a record has the weight 0."""
    logits = classifier.logits([each.encoded for each in block], [each.number for each in block])
    members, means = classifier.shares(logits), probabilities(classifier.mean(logits))
    unsure, informed = entropy(means), mutual_information(members, classifier.mixture.weights)
    abstention = classifier.run.abstention
    verdicts = None if abstention is None else abstention.of([each.encoded for each in block], classifier.mean(logits))
    found = []
    for place, each in enumerate(block):
        mean, value, doubt = means[place], float(means[place] @ values), float(unsure[place])
        told: dict[str, object] = {
            "where": each.where,
            "time": each.time.isoformat(),
            "text": each.text,
            "label": classifier.labels[int(mean.argmax())],
            "value": value,
            "probabilities": dict(zip(classifier.labels, mean.tolist(), strict=True)),
            "entropy": doubt,
        }
        if classifier.members > 1:
            told["mutual_information"] = float(informed[place])
        weighs = max(0.0, 1 - doubt / np.log(len(values))) if weight == "certainty" else 1.0
        if verdicts is not None:
            told |= {"abstained": bool(verdicts[1][place]), "scope_score": float(verdicts[0][place])}
            weighs = 0.0 if told["abstained"] else weighs
        found.append(
            Opinion(
                each.entity,
                each.time,
                members[:, place] @ values,
                value,
                weighs,
                told,
                doubt,
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
) -> Iterator[tuple[dict[str, object], dict[str, object] | None]]:
    """Per reading: its record (label, probabilities, the entity's score), and the alert it raised or None.

    Args:
      readings: readings in time order, see `Feed`.
      values: label -> value in the score; None: positive 1, neutral 0, negative -1.
      weight: weight of a record in the score: "equal", or "certainty", 1 − entropy / log(labels).
      batch: largest batch of records.
      live: label available records without waiting for a full batch.

    Raises:
      ValueError: a label without a value, or a band that no score can leave.
    """
    numbers = label_values(classifier.labels, values)
    if band.high >= numbers.max() and band.low <= numbers.min():
        raise ValueError(
            f"--band {band.low:g} {band.high:g} contains all possible scores, {numbers.min():g} to {numbers.max():g}: "
            "narrow it."
        )
    watching = Watch(window, band)
    for block in blocks(readings, batch, live=live):
        for opinion in opinions(classifier, numbers, weight, block):
            told, alert = watching.add(opinion)
            yield {"entity": opinion.entity} | opinion.told | told, alert


def read_values(text: str) -> dict[str, float]:
    """The value of each label, from JSON. Raises ValueError unless all are finite numbers."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f'--values is not JSON ({error}): write --values \'{{"good": 1, "bad": -1}}\'.') from None
    if not isinstance(values, dict) or not all(
        isinstance(v, int | float) and not isinstance(v, bool) and abs(v) <= sys.float_info.max for v in values.values()
    ):
        raise ValueError(f"--values must map labels to finite numbers, but is {text}.")
    return {label: float(value) for label, value in values.items()}
