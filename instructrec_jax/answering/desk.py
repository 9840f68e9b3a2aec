"""What a customer-service desk does with a request once its intent is known: slots, an action, a reply."""

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from instructrec_jax.answering.classifier import Classifier, encode_one, open_tagger
from instructrec_jax.answering.out_of_scope import ScoreName, scope_score, write_threshold
from instructrec_jax.answering.records import blocks, read_records, stdin, value_of
from instructrec_jax.data.example import BadExample, suggest
from instructrec_jax.files import read_json
from instructrec_jax.metrics.uncertainty import probabilities
from instructrec_jax.parsing import read_yaml
from instructrec_jax.runs.run import Run

BATCH = 64  # requests that are labelled at a time
Requests = Iterator[tuple[str, str]]  # (where, text)
ASK = "ask"  # the action of a reply that asks for a slot
EDGES = ".,;:!?\"'()[]。，；：！？「」“”"  # what is no part of a slot's value at its ends


@dataclass(frozen=True)
class Action:
    """What to do for an intent.

    Attributes:
      reply: the template in pieces: a text, and the slot after it or None.
      requires: slot -> the question that asks for it.
    """

    name: str
    reply: Sequence[tuple[str, str | None]]
    requires: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Actions:
    """An actions file.

    Attributes:
      hand_over: for requests out of scope, and for intents without an action of their own.
      slots: slot -> pattern; a group of it is the value, else the whole match.
    """

    hand_over: Action
    intents: Mapping[str, Action]
    slots: Mapping[str, re.Pattern[str]]


def read_actions(file: Path, labels: Sequence[str], tagged: Sequence[str] = ()) -> Actions:
    """Reads an actions file (YAML; see docs/customer_service.md).

    Args:
      labels: the intents that the run knows.
      tagged: the slots that a tagging run finds, beside those that the file has patterns for.

    Raises:
      ValueError: naming the file and the place, for an unknown key, intent or slot, a pattern that is none, a template
        with a slot that may be missing.
    """
    top = _mapping(read_yaml(file), f"{file}", ("hand_over", "intents", "slots"))
    patterns = {name: _pattern(text, f"{file}, slots.{name}") for name, text in _texts(top, "slots", file).items()}
    known = sorted({*patterns, *tagged})
    if "hand_over" not in top:
        raise ValueError(f"{file}: there is no hand_over: say what happens to a request that nobody understands.")
    intents = top.get("intents") or {}
    if not isinstance(intents, dict) or not intents:
        raise ValueError(f"{file}: intents should be names of intents, each with an action and a reply.")
    for name in intents:
        if name not in labels:
            raise ValueError(
                f"{file}: {name!r} is none of the run's {len(labels)} intents.{suggest(str(name), labels)}"
            )
    return Actions(
        _action(top["hand_over"], f"{file}, hand_over", []),
        {name: _action(tree, f"{file}, intents.{name}", known) for name, tree in intents.items()},
        patterns,
    )


def _mapping(tree: Any, place: str, known: Sequence[str]) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise ValueError(f"{place}: expected `name: value` lines with {', '.join(known)}, but found {tree!r:.60}.")
    for name in tree:
        if name not in known:
            raise ValueError(f"{place}: unknown key {name!r}; known are {', '.join(known)}.{suggest(str(name), known)}")
    return tree


def _texts(tree: Mapping[str, Any], name: str, place: Any) -> dict[str, str]:
    found = tree.get(name) or {}
    if not isinstance(found, dict) or not all(isinstance(x, str) for pair in found.items() for x in pair):
        raise ValueError(f"{place}: {name} should be names with texts, but is {found!r:.60}.")
    return found


def _pattern(text: str, place: str) -> re.Pattern[str]:
    try:
        found = re.compile(text)
    except re.error as error:
        raise ValueError(f"{place}: {text!r} is no regular expression ({error}).") from None
    if found.groups > 1:
        raise ValueError(f"{place}: {text!r} has {found.groups} groups; one at most says which part is the value.")
    return found


def _action(tree: Any, place: str, slots: Sequence[str]) -> Action:
    tree = _mapping(tree, place, ("action", "reply", "requires"))
    for name in ("action", "reply"):
        if not isinstance(tree.get(name), str) or not tree[name].strip():
            raise ValueError(f"{place}: {name} should be a text, but is {tree.get(name)!r}.")
    requires = _texts(tree, "requires", place)
    for name in requires:
        if name not in slots:
            known = ", ".join(slots) or "none"
            raise ValueError(f"{place}: requires the unknown slot {name!r}; known are {known}.{suggest(name, slots)}")
    try:
        pieces = list(string.Formatter().parse(tree["reply"]))
    except ValueError as error:
        raise ValueError(f"{place}: the reply is no template ({error}); write {{{{ and }}}} for braces.") from None
    for _, slot, spec, conversion in pieces:
        if slot is None:
            continue
        if spec or conversion:
            raise ValueError(f"{place}: only the name of a slot can stand in the reply's braces, as in {{{slot}}}.")
        if slot not in requires:
            raise ValueError(
                f"{place}: the reply names the slot {slot!r}, which may be missing: add it to requires, with the "
                f"question to ask for it. It has {', '.join(requires) or 'none'}.{suggest(slot, list(requires))}"
            )
    return Action(tree["action"], [(text, slot) for text, slot, *_ in pieces], requires)


def respond(actions: Actions, intent: str | None, slots: Mapping[str, str]) -> dict[str, Any]:
    """{"action", "reply"} for an intent (None: out of scope), and "missing" slots where the reply asks for one."""
    action = actions.hand_over if intent is None else actions.intents.get(intent, actions.hand_over)
    missing = [slot for slot in action.requires if slot not in slots]
    if missing:
        return {"action": ASK, "reply": action.requires[missing[0]], "missing": missing}
    reply = "".join(text + ("" if slot is None else slots[slot]) for text, slot in action.reply)
    return {"action": action.name, "reply": reply}


# ---------------------------------------------------------------- slots


def matched(patterns: Mapping[str, re.Pattern[str]], text: str) -> dict[str, str]:
    """Slot -> value by regular expressions; several different values of one slot stand between commas."""
    found = {name: [m[m.re.groups] for m in pattern.finditer(text)] for name, pattern in patterns.items()}
    return _joined(found)


def tagged_slots(labels: Sequence[str]) -> list[str]:
    """The slots that a tagging run's labels mark (B-date, I-date -> date). ValueError where they mark none."""
    kinds = sorted({label[2:] for label in labels if label[:2] == "B-" and len(label) > 2})
    if not kinds:
        raise ValueError(
            f"--slots: the run's labels {list(labels)} mark no slots: they should be B-date, I-date, O ..."
        )
    return kinds


def tagged(tagger: Run, text: str, where: str) -> dict[str, str]:
    """Slot -> value by a token_classification run whose labels are BIO tags, spans as seqeval reads them."""
    from seqeval.metrics.sequence_labeling import get_entities

    words = text.split()
    encoded = encode_one(tagger.task, text, (tagger.task.labels[0],) * len(words), where=where)
    (logits,) = tagger.predict([encoded.text])
    numbers = logits[encoded.target.first > 0].argmax(-1)
    tags = [tagger.task.labels[number] for number in np.asarray(numbers)]
    found: dict[str, list[str]] = {}
    for kind, first, last in get_entities(tags):
        found.setdefault(kind, []).append(" ".join(words[first : last + 1]).strip(EDGES))
    return _joined(found)


def _joined(found: Mapping[str, Sequence[str | None]]) -> dict[str, str]:
    values = {name: list(dict.fromkeys(value for value in each if value)) for name, each in found.items()}
    return {name: ", ".join(each) for name, each in values.items() if each}


# ---------------------------------------------------------------- an opened run that answers


class Desk:
    """A run with its actions, opened to answer requests.

    Args:
      run: run directory of a classification task whose labels are the intents.
      actions: the actions file, see docs/customer_service.md.
      slots: run directory of a token_classification task with BIO labels; its slots go before those of patterns.
      threshold: of the score, below which a request is out of scope; None: the one that was tuned for the run, if any.
      score: what is compared with `threshold`; None: as tuned, else "max_probability".
      instruction: what stood before each request in training, if anything.

    Raises:
      ValueError: runs of other tasks, a broken actions file, a threshold of another score than was tuned.
    """

    def __init__(
        self,
        run: str | Path,
        actions: str | Path,
        *,
        slots: str | Path | None = None,
        threshold: float | None = None,
        score: ScoreName | None = None,
        instruction: str = "",
    ):
        self.classifier = Classifier([Path(run)], instruction=instruction)
        self.tagger = None if slots is None else open_tagger(Path(slots))
        found = [] if self.tagger is None else tagged_slots(self.tagger.task.labels)
        self.actions: Actions = read_actions(Path(actions), self.classifier.labels, found)
        tuned = Path(run) / "assist" / "threshold.json"
        self.score: ScoreName = score or "max_probability"
        self.threshold = threshold
        if threshold is None and tuned.is_file():
            kept = read_json(tuned)
            if score not in (None, kept["score"]):
                raise ValueError(
                    f"{tuned} was tuned for {kept['score']}, not for {score}: tune anew, or leave --score."
                )
            self.score, self.threshold = kept["score"], kept["threshold"]

    def answer(self, requests: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """Answers (where, text) pairs: text, intent, confidence, out_of_scope, slots, action, reply (and missing).

        "confidence" is the intent's probability; "scope_score" what the threshold is compared with. Raises BadExample,
        naming where, for a text that the run cannot read.
        """
        logits = self.classifier.logits([self.classifier.encode(text, where) for where, text in requests])[0]
        shares, scores = probabilities(logits), scope_score(self.score, logits)
        answers = []
        for (where, text), share, score in zip(requests, shares, scores, strict=True):
            intent = self.classifier.labels[int(share.argmax())]
            outside = self.threshold is not None and bool(score < self.threshold)
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

    def answers(self, requests: Requests, *, live: bool = False) -> Iterator[dict[str, Any]]:
        """Answers in the order of the requests. Where one cannot be read, those before it come, and then the error.

        Args:
          live: answer what has come in, without waiting for a full batch.
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
) -> dict[str, Any]:
    """Chooses the threshold of a run: the lowest that takes `rate` at most of the requests out of scope.

    Writes threshold.json, roc.json (of both scores) and roc.png into RUN/assist; returns what threshold.json says.
    """
    classifier = Classifier([Path(run)], instruction=instruction)

    def logits(requests: Requests, name: str) -> np.ndarray:
        found = []
        for block in blocks(requests, BATCH):
            found.append(classifier.logits([classifier.encode(text, where) for where, text in block])[0])
        if not found:
            raise ValueError(f"there are no requests {name}: a threshold needs some of both kinds.")
        return np.concatenate(found)

    both = logits(inside, "in scope"), logits(outside, "out of scope")
    return write_threshold(Path(run) / "assist", *both, score, rate)


def read_requests(source: str, field: str | None = None) -> Requests:
    """(where, text) of a file or of stdin ("-"): one request a line of .txt and stdin, else a field of records.

    Args:
      field: None: "text", or "instruction" in records without it.

    Raises BadExample for a record without a text. Blank lines are passed over.
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
            text = value_of(record, name, "--text_field")
            if not isinstance(text, str):
                raise BadExample(name, "wrong type", f"expected a text, found {text!r:.60}.")
        except BadExample as error:
            error.where = where
            raise
        yield where, text
