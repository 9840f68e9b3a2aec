"""A customer-service desk: the intent, slots, action and reply for each request."""

import hashlib
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from instructrec_jax.answering.classifier import Classifier, encode_one, open_tagger
from instructrec_jax.answering.out_of_scope import Threshold, read_threshold, write_threshold
from instructrec_jax.answering.records import blocks, read_records, stdin, value_of
from instructrec_jax.data.example import BadExample, suggest
from instructrec_jax.metrics.out_of_domain import OF_LOGITS, ScoreName
from instructrec_jax.metrics.uncertainty import probabilities
from instructrec_jax.parsing import read_yaml
from instructrec_jax.runs.abstention import Abstention, abstention_of
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.base import Encoded

BATCH = 64  # requests per batch
Requests = Iterator[tuple[str, str]]  # (where, text)
ASK = "ask"  # the action of a reply that asks for a missing slot
EDGES = ".,;:!?\"'()[]。，；：！？「」“”"  # stripped from the ends of a slot's value


@dataclass(frozen=True)
class Action:
    """The action and reply for an intent.

    Attributes:
      reply: the parsed template: (text, slot after it or None) pairs.
      requires: slot -> the question that asks for it.
    """

    name: str
    reply: Sequence[tuple[str, str | None]]
    requires: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Actions:
    """An actions file.

    Attributes:
      hand_over: for requests out of scope and intents without an action.
      slots: slot -> pattern; its group is the value, else the whole match.
    """

    hand_over: Action
    intents: Mapping[str, Action]
    slots: Mapping[str, re.Pattern[str]]


def read_actions(file: Path, labels: Sequence[str], tagged: Sequence[str] = ()) -> Actions:
    """Reads an actions file (YAML; see docs/customer_service.md).

    Args:
      labels: the run's intents.
      tagged: the slots of a tagging run, in addition to those with patterns in the file.

    Raises:
      ValueError: names the file and key of an unknown key, intent or slot, an invalid pattern, or a reply with a slot
        that is not required.
    """
    top = _mapping(read_yaml(file), f"{file}", ("hand_over", "intents", "slots"))
    patterns = {name: _pattern(text, f"{file}, slots.{name}") for name, text in _texts(top, "slots", file).items()}
    known = sorted({*patterns, *tagged})
    if "hand_over" not in top:
        raise ValueError(f"{file}: hand_over is missing: the action for requests out of scope.")
    intents = top.get("intents") or {}
    if not isinstance(intents, dict) or not intents:
        raise ValueError(f"{file}: intents must be a mapping of intents, each with an action and a reply.")
    for name in intents:
        if name not in labels:
            raise ValueError(
                f"{file}: {name!r} is not one of the run's {len(labels)} intents.{suggest(str(name), labels)}"
            )
    return Actions(
        _action(top["hand_over"], f"{file}, hand_over", []),
        {name: _action(tree, f"{file}, intents.{name}", known) for name, tree in intents.items()},
        patterns,
    )


def _mapping(tree: object, place: str, known: Sequence[str]) -> dict[str, object]:
    if not isinstance(tree, dict):
        raise ValueError(f"{place}: expected `name: value` lines with {', '.join(known)}, but found {tree!r:.60}.")
    for name in tree:
        if name not in known:
            raise ValueError(
                f"{place}: unknown key {name!r}; choose from {', '.join(known)}.{suggest(str(name), known)}"
            )
    return tree


def _texts(tree: Mapping[str, object], name: str, place: str | Path) -> dict[str, str]:
    found = tree.get(name) or {}
    if not isinstance(found, dict) or not all(isinstance(x, str) for pair in found.items() for x in pair):
        raise ValueError(f"{place}: {name} must map names to texts, but is {found!r:.60}.")
    return found


def _pattern(text: str, place: str) -> re.Pattern[str]:
    try:
        found = re.compile(text)
    except re.error as error:
        raise ValueError(f"{place}: {text!r} is not a regular expression ({error}).") from None
    if found.groups > 1:
        raise ValueError(f"{place}: {text!r} has {found.groups} groups; at most one group can mark the value.")
    return found


def _action(tree: object, place: str, slots: Sequence[str]) -> Action:
    entry = _mapping(tree, place, ("action", "reply", "requires"))
    action, reply = _text(entry, "action", place), _text(entry, "reply", place)
    requires = _texts(entry, "requires", place)
    for name in requires:
        if name not in slots:
            known = ", ".join(slots) or "none"
            raise ValueError(f"{place}: requires the unknown slot {name!r}; slots: {known}.{suggest(name, slots)}")
    try:
        pieces = list(string.Formatter().parse(reply))
    except ValueError as error:
        raise ValueError(f"{place}: the reply is not a template ({error}); write {{{{ and }}}} for braces.") from None
    for _, slot, spec, conversion in pieces:
        if slot is None:
            continue
        if spec or conversion:
            raise ValueError(f"{place}: braces in the reply can contain only a slot's name, as in {{{slot}}}.")
        if slot not in requires:
            raise ValueError(
                f"{place}: the reply uses the slot {slot!r}, which may be missing: add it to requires, with a question "
                f"that asks for it. requires has: {', '.join(requires) or 'none'}.{suggest(slot, list(requires))}"
            )
    return Action(action, [(text, slot) for text, slot, *_ in pieces], requires)


def _text(entry: Mapping[str, object], name: str, place: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place}: {name} must be a text, but is {value!r}.")
    return value


class Response(TypedDict):
    """The action and reply for an intent; with the action `ASK`, the required slots that are missing."""

    action: str
    reply: str
    missing: NotRequired[list[str]]


def respond(actions: Actions, intent: str | None, slots: Mapping[str, str]) -> Response:
    """The response for an intent; None: out of scope."""
    action = actions.hand_over if intent is None else actions.intents.get(intent, actions.hand_over)
    missing = [slot for slot in action.requires if slot not in slots]
    if missing:
        return {"action": ASK, "reply": action.requires[missing[0]], "missing": missing}
    reply = "".join(text + ("" if slot is None else slots[slot]) for text, slot in action.reply)
    return {"action": action.name, "reply": reply}


# ---------------------------------------------------------------- slots


def matched(patterns: Mapping[str, re.Pattern[str]], text: str) -> dict[str, str]:
    """Slot -> value by regular expressions; several distinct values of a slot are joined by commas."""
    found = {name: [m[m.re.groups] for m in pattern.finditer(text)] for name, pattern in patterns.items()}
    return _joined(found)


def tagged_slots(labels: Sequence[str]) -> list[str]:
    """The slots of a tagging run's labels (B-date, I-date -> date). Raises ValueError if there are none."""
    kinds = sorted({label[2:] for label in labels if label[:2] == "B-" and len(label) > 2})
    if not kinds:
        raise ValueError(
            f"--slots: the run's labels {list(labels)} mark no slots; expected BIO labels such as B-date, I-date, O."
        )
    return kinds


def tagged(tagger: Run, text: str, where: str) -> dict[str, str]:
    """Slot -> value by a token_classification run with BIO labels; spans are decoded by seqeval."""
    from seqeval.metrics.sequence_labeling import get_entities

    words = text.split()
    encoded = encode_one(tagger.task, text, (tagger.task.labels[0],) * len(words), where=where)
    (logits,) = tagger.predictor([encoded.text])
    numbers = logits[encoded.target.first > 0].argmax(-1)
    tags = [tagger.task.labels[number] for number in np.asarray(numbers)]
    found: dict[str, list[str]] = {}
    for kind, first, last in get_entities(tags):
        found.setdefault(kind, []).append(" ".join(words[first : last + 1]).strip(EDGES))
    return _joined(found)


def _joined(found: Mapping[str, Sequence[str | None]]) -> dict[str, str]:
    values = {name: list(dict.fromkeys(value for value in each if value)) for name, each in found.items()}
    return {name: ", ".join(each) for name, each in values.items() if each}


# ---------------------------------------------------------------- desk


class Answered(Response):
    """The answer to a request. "confidence" is the intent's probability; "scope_score" is compared with a threshold."""

    text: str
    intent: str
    confidence: float
    out_of_scope: bool
    scope_score: float
    slots: dict[str, str]


class Desk:
    """An intent classifier with its actions, opened to answer requests.

    Args:
      run: run directory of a classification task whose labels are the intents, or that run, opened.
      actions: the actions file, see docs/customer_service.md.
      slots: run directory of a token_classification task with BIO labels; its slots override those of patterns.
      threshold: a request with a lower score is out of scope; None: as the run's settings (`abstain`) say, else its
        tuned threshold, if any.
      score: the score compared with `threshold`; None: that of the settings, as tuned, or "max_probability".
      instruction: the instruction before each request in training, if any.

    Raises:
      ValueError: runs of other tasks, an invalid actions file, or a threshold tuned for another score.
    """

    def __init__(
        self,
        run: str | Path | Run,
        actions: str | Path,
        *,
        slots: str | Path | Run | None = None,
        threshold: float | None = None,
        score: ScoreName | None = None,
        instruction: str = "",
    ):
        self.classifier = Classifier([run], instruction=instruction)
        self.tagger = None if slots is None else open_tagger(slots if isinstance(slots, Run) else Path(slots))
        found = [] if self.tagger is None else tagged_slots(self.tagger.task.labels)
        self.actions: Actions = read_actions(Path(actions), self.classifier.labels, found)
        tuned = self.classifier.run.path / "assist" / "threshold.json"
        opened = self.classifier.run
        self.scores = opened.domain_scores
        self.abstention: Abstention | None = None
        self.score: ScoreName = score or "max_probability"
        if threshold is not None:
            self.abstention = abstention_of(self.scores, self.score, threshold, None)
        elif opened.abstention is not None:
            if score not in (None, opened.abstention.score):
                raise ValueError(
                    f"{opened.path} abstains by {opened.abstention.score} (abstain.score), not by {score}: give "
                    "--threshold, too, or leave out --score."
                )
            self.abstention = opened.abstention
        elif kept := read_threshold(tuned, lambda: threshold_identity(opened)):
            if score not in (None, kept["score"]):
                raise ValueError(
                    f"{tuned} was tuned for {kept['score']}, not for {score}: tune again, or leave out --score."
                )
            self.abstention = abstention_of(self.scores, kept["score"], kept["threshold"], None)
        if self.abstention is not None:
            self.score = self.abstention.score

    @property
    def threshold(self) -> float | None:
        """A request with a lower score is out of scope; None: none is."""
        return None if self.abstention is None else self.abstention.threshold

    def answer(self, requests: Sequence[tuple[str, str]]) -> list[Answered]:
        """Answers (where, text) pairs. Raises BadExample, naming `where`, for an unusable text."""
        encoded = [self.classifier.encode(text, where) for where, text in requests]
        logits = self.classifier.mean(self.classifier.logits(encoded))
        shares = probabilities(logits)
        if self.abstention is None:
            scores, abstained = self.scores.score(self.score, encoded, logits), np.zeros(len(encoded), bool)
        else:
            scores, abstained = self.abstention.of(encoded, logits)
        answers: list[Answered] = []
        for (where, text), share, score, outside in zip(requests, shares, scores, abstained.tolist(), strict=True):
            intent = self.classifier.labels[int(share.argmax())]
            slots = matched(self.actions.slots, text)
            if self.tagger is not None:
                slots |= tagged(self.tagger, text, where)
            answers.append(
                {
                    "text": text,
                    "intent": intent,
                    "confidence": float(share.max()),
                    "out_of_scope": outside,
                    "scope_score": float(score),
                    "slots": slots,
                    **respond(self.actions, None if outside else intent, slots),
                }
            )
        return answers

    def answers(self, requests: Requests, *, live: bool = False) -> Iterator[Answered]:
        """Answers in the order of the requests; those before an unusable request come first, then its error.

        Args:
          live: answer available requests without waiting for a full batch.
        """
        for block in blocks(requests, BATCH, live=live):
            try:
                answered = self.answer(block)
            except BadExample:
                for request in block:
                    yield from self.answer([request])
            else:
                yield from answered


def tune_threshold(
    run: str | Path,
    inside: Requests,
    outside: Requests,
    *,
    score: ScoreName = "max_probability",
    rate: float = 0.05,
    instruction: str = "",
) -> Threshold:
    """Tunes a run's out-of-scope threshold: the lowest with a false-positive rate of at most `rate`.

    Writes threshold.json, roc.json (of `score`, and of the scores of logits) and roc.png to RUN/assist; returns the
    content of threshold.json.
    """
    classifier = Classifier([Path(run)], instruction=instruction)
    scores, names = classifier.run.domain_scores, tuple(dict.fromkeys([*OF_LOGITS, score]))

    def measured(requests: Requests, name: str) -> list[np.ndarray]:
        found = []
        for block in blocks(requests, BATCH):
            encoded: list[Encoded] = [classifier.encode(text, where) for where, text in block]
            logits = classifier.mean(classifier.logits(encoded))
            found.append([scores.score(each, encoded, logits) for each in names])
        if not found:
            raise ValueError(f"there are no requests {name}: tuning needs requests in and out of scope.")
        return [np.concatenate(each) for each in zip(*found, strict=True)]

    both = zip(measured(inside, "in scope"), measured(outside, "out of scope"), strict=True)
    kept = Path(run) / "assist"
    return write_threshold(kept, dict(zip(names, both, strict=True)), score, rate, threshold_identity(classifier.run))


def threshold_identity(run: Run) -> str:
    """What a tuned threshold depends on: the weights and the calibration."""
    return hashlib.sha256(f"{run.weights_digest()} {run.calibration!r}".encode()).hexdigest()


def read_requests(source: str, field: str | None = None) -> Requests:
    """(where, text) of a file or stdin ("-"): one request per line of .txt and stdin, else a field of records.

    Args:
      field: name of the field; None: "text", or "instruction" in records without it.

    Raises BadExample for a record without a text. Blank lines are skipped.
    """
    if source == "-" or source.endswith(".txt"):
        data = stdin() if source == "-" else open(source, "rb")
        with data:
            for number, line in enumerate(data, 1):
                where = f"{'stdin' if source == '-' else source}, line {number}"
                try:
                    text = line.decode("utf-8-sig").strip()
                except UnicodeDecodeError as error:
                    raise BadExample("", "not UTF-8", f"{error}: save it as UTF-8.", where) from None
                if text:
                    yield where, text
        return
    for where, record in read_records(source):
        if isinstance(record, BadExample):
            raise record
        name = field or ("instruction" if "text" not in record and "instruction" in record else "text")
        try:
            value = value_of(record, name, "--text_field")
            if not isinstance(value, str):
                raise BadExample(name, "wrong type", f"expected a text, found {value!r:.60}.")
        except BadExample as error:
            error.where = where
            raise
        yield where, value
