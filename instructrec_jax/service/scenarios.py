"""What a model answers groups of requests with: recommendations, a desk's replies, and a watched stream."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from zoneinfo import ZoneInfo

from instructrec_jax.answering.classifier import Classifier
from instructrec_jax.answering.desk import Answered, Desk
from instructrec_jax.answering.recommender import Recommender
from instructrec_jax.answering.records import duration, name_of, time_of
from instructrec_jax.answering.requests import Answer, Request
from instructrec_jax.answering.rolling import Band, Watch
from instructrec_jax.answering.watch import Reading, label_values, opinions
from instructrec_jax.data.example import BadExample, check_text
from instructrec_jax.runs.run import Run
from instructrec_jax.service.batching import each_by_itself, in_one_call
from instructrec_jax.service.errors import ServiceError
from instructrec_jax.service.settings import WatchConfig


@dataclass(frozen=True)
class Wishes:
    """Requests for recommendations, and the options that `Recommender.recommend` takes for all of them."""

    requests: list[Request]
    include_seen: bool = False
    skip_unknown: bool = False
    evidence: bool = True


@dataclass(frozen=True)
class Recommended:
    """The answers to the requests of `Wishes`, and the tokens of their prompts."""

    answers: list[Answer]
    tokens: int


class Recommending:
    """`Wishes` -> `Recommended`, as `Recommender.recommend`.

    Args:
      most: the largest k.
    """

    def __init__(self, recommender: Recommender, most: int):
        self.recommender, self.most = recommender, most

    def warm_up(self) -> None:
        """Builds what the first request would build: the indices of titles, and users."""
        self.recommender.titles.find("no such title")
        _ = self.recommender.users

    def answer(self, asked: list[Wishes]) -> list[Recommended | Exception]:
        found: dict[int, Recommended | Exception] = {}
        alike: dict[tuple[bool, bool, bool], list[int]] = {}
        for number, each in enumerate(asked):
            alike.setdefault((each.include_seen, each.skip_unknown, each.evidence), []).append(number)
        for numbers in alike.values():
            answers = each_by_itself([asked[number] for number in numbers], self._alike)
            found |= dict(zip(numbers, answers, strict=True))
        return [found[number] for number in range(len(asked))]

    def _alike(self, asked: list[Wishes]) -> list[Recommended | Exception]:
        """Answers requests with the same options."""
        return in_one_call(asked, self._read, self._compute)

    def _read(self, asked: Wishes) -> Wishes:
        items = len(self.recommender.catalogue)
        for number, request in enumerate(asked.requests):
            k = 10 if request.k is None else request.k
            if not 1 <= k <= min(items, self.most):
                what = f"the catalogue has {items:,} items" if items <= self.most else "limits.candidates"
                raise ServiceError(
                    422,
                    f"{_name(asked, number)}k is {k}, but must be from 1 to {min(items, self.most):,} ({what}).",
                    param="k",
                    code="invalid",
                )
        return asked

    def _compute(self, asked: list[Wishes]) -> list[Recommended | Exception]:
        options = asked[0]
        answers = iter(
            self.recommender.recommend(
                [request for each in asked for request in each.requests],
                include_seen=options.include_seen,
                skip_unknown=options.skip_unknown,
                evidence=options.evidence,
            )
        )
        found: list[Recommended | Exception] = []
        for each in asked:
            own = [next(answers) for _ in each.requests]
            bad = [_name(each, number) + _of_service(a.error) for number, a in enumerate(own) if a.error is not None]
            tokens = 0 if bad else self._tokens([answer.prompt for answer in own])
            found.append(ValueError(bad[0]) if bad else Recommended(own, tokens))
        return found

    def _tokens(self, prompts: Sequence[str]) -> int:
        tokenizer = self.recommender.first.task.context.tokenizer
        read = [prompt for prompt in prompts if prompt]  # none for a picture alone
        return sum(map(len, tokenizer(read, verbose=False)["input_ids"])) if read else 0

    # -------------------------------------------------------------- the catalogue

    @property
    def items(self) -> int:
        """Number of items."""
        return len(self.recommender.catalogue)

    def titles(self, typed: str, limit: int) -> list[dict[str, object]]:
        """Items whose titles continue what was typed, with their facts."""
        catalogue = self.recommender.catalogue
        return [
            {
                "id": catalogue.ids[item],
                "title": catalogue.name(item),
                "facts": {name: column[item] for name, column in catalogue.facts.items() if column[item] is not None},
            }
            for item in self.recommender.titles.complete(typed, limit)
        ]

    @cached_property
    def facts(self) -> list[dict[str, object]]:
        """The facts that conditions (`where`) may use, with their range, or their most frequent values."""
        return [_shown(name, column) for name, column in self.recommender.catalogue.facts.items()]


MOST_VALUES = 50  # values of a fact that are listed


def _shown(name: str, column: Sequence[object]) -> dict[str, object]:
    present = [value for value in column if value is not None]
    numbers = [value for value in present if isinstance(value, int | float) and not isinstance(value, bool)]
    if present and len(numbers) == len(present):
        return {"name": name, "kind": "number", "least": min(numbers), "most": max(numbers)}
    counts: dict[str, int] = {}
    for value in present:
        for text in value if isinstance(value, list) else [str(value)]:
            counts[text] = counts.get(text, 0) + 1
    common = sorted(counts, key=lambda text: (-counts[text], text))[:MOST_VALUES]
    kind = "list" if present and isinstance(present[0], list) else "text"
    return {"name": name, "kind": kind, "values": common, "distinct": len(counts)}


def _name(asked: Wishes, number: int) -> str:
    return f"request {number}: " if len(asked.requests) > 1 else ""


def _of_service(error: str) -> str:
    """An error that names fields in place of the options of a command line."""
    return re.sub(r"--(?=[a-z])", "", error)


# ---------------------------------------------------------------- customer service


class Assisting:
    """Texts -> the desk's answers, as `python -m instructrec_jax.assist`."""

    def __init__(self, desk: Desk):
        self.desk = desk

    def answer(self, asked: list[list[str]]) -> list[list[Answered] | Exception]:
        return each_by_itself(asked, self._answer)

    def _answer(self, asked: list[list[str]]) -> list[list[Answered]]:
        answers = iter(self.desk.answer([(f"text {n}", text) for texts in asked for n, text in enumerate(texts)]))
        return [[next(answers) for _ in texts] for texts in asked]


# ---------------------------------------------------------------- a watched stream


@dataclass(frozen=True)
class Watched:
    """The records of a request with labels and scores, the alerts that they raised, and the tokens that were read."""

    records: list[dict[str, object]]
    alerts: list[dict[str, object]]
    tokens: int


class Watching:
    """Records (text, entity, time) -> `Watched`, as `python -m instructrec_jax.watch`.

    The windows live in this process, for as long as it does. The records of an entity arrive in the order of their
    times. A request that cannot be answered in full changes no window.

    Args:
      most: records in all windows together.

    Raises ValueError for settings that `watch` refuses, such as a label without a value.
    """

    def __init__(self, run: Run, config: WatchConfig, *, instruction: str = "", most: int):
        self.classifier, self.most, self.weight = Classifier(run, instruction=instruction), most, config.weight
        self.values = label_values(self.classifier.labels, config.values)
        self.zone = ZoneInfo(config.timezone)
        low, high = config.band
        self.watch = Watch(duration(config.window), Band(low, high, config.hysteresis, config.least))

    def answer(self, asked: list[list[Mapping[str, object]]]) -> list[Watched | Exception]:
        return in_one_call(asked, self._read, self._compute)

    def _read(self, asked: list[Mapping[str, object]]) -> list[Reading]:
        return [self._reading(number, record) for number, record in enumerate(asked)]

    def _reading(self, number: int, record: Mapping[str, object]) -> Reading:
        where = f"record {number}"
        try:
            for name in ("text", "entity", "time"):
                if record.get(name) in (None, ""):
                    raise BadExample(name, "missing field", "a record has text, entity and time.")
            text, entity = check_text(record["text"], "text"), name_of(record["entity"], "entity")
            time, _ = time_of(record["time"], "time", self.zone)
        except BadExample as error:
            raise error.at(where) from None
        return Reading(number, where, entity, time, text, self.classifier.encode(text, where))

    def _compute(self, asked: list[list[Reading]]) -> list[Watched | Exception]:
        found = iter(opinions(self.classifier, self.values, self.weight, [each for some in asked for each in some]))
        answers: list[Watched | Exception] = []
        for readings in asked:
            own = [next(found) for _ in readings]
            try:
                self._check(readings)
            except (ValueError, ServiceError) as error:
                answers.append(error)
                continue
            records, alerts = [], []
            for opinion in own:
                told, alert = self.watch.add(opinion)
                records.append({"entity": opinion.entity, **opinion.told, **told})
                alerts += [] if alert is None else [alert]
            tokens = sum(len(each.encoded.text.tokens) for each in readings)
            answers.append(Watched(records, alerts, tokens))
        return answers

    def _check(self, readings: Sequence[Reading]) -> None:
        """Raises ValueError for a record that is older than its entity's last one, or for too many records."""
        newest: dict[str, datetime] = {}
        for each in readings:
            known = self.watch.entities.get(each.entity)
            last = newest.get(each.entity) or (known.window[-1].time if known else None)
            if last is not None and each.time < last:
                detail = (
                    f"{each.time.isoformat()} is older than the last record of {each.entity!r}, {last.isoformat()}."
                )
                raise BadExample("time", "too late", detail, each.where)
            newest[each.entity] = each.time
        if self._held() + len(readings) > self.most:
            self.watch.forget(max(newest.values()))
        if self._held() + len(readings) > self.most:
            raise ServiceError(
                429, f"the windows would hold more than {self.most:,} records (limits.records).", code="windows_full"
            )

    def _held(self) -> int:
        return sum(len(each.window) for each in self.watch.entities.values())
