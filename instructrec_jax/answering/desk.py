"""What a customer-service desk does with a request once its intent is known: slots, an action, a reply."""

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from instructrec_jax.answering.classifier import Opened, encode_one
from instructrec_jax.data.example import suggest

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
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML: {error}") from error
    top = _mapping(tree, f"{file}", ("hand_over", "intents", "slots"))
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


def tagged(tagger: Opened, text: str, where: str) -> dict[str, str]:
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
