"""Reasons for a recommendation: the catalogue's facts that an item shares with the instruction or the history."""

import re
from collections import Counter

from instructrec_jax.data.example import Example
from instructrec_jax.ranking.catalogue import Catalogue

SHOWN = 4  # maximum facts of a reason
RECENT = 10  # last items of the history that a reason compares with


def facts_of(catalogue: Catalogue, item: int) -> list[str]:
    """The texts in an item's columns other than title and text, in order: genres, themes, director ..."""
    found: list[str] = []
    for column in catalogue.facts.values():
        value = column[item]
        values = value if isinstance(value, list) else [value]
        found += [text for text in values if isinstance(text, str)]
    return list(dict.fromkeys(found))


def asked_for(example: Example) -> list[str]:
    """The facts that a generated instruction asks for: origin["asked"], separated by commas."""
    return [fact for fact in example.origin.get("asked", "").split(", ") if fact]


def reason(catalogue: Catalogue, item: int, example: Example) -> str:
    """The item's facts that match the request; "" for none.

    These are the facts that the instruction asks for: those that it was generated from, else those that it contains
    literally. Without any, they are the facts that the item shares with at least two history items.
    """
    facts = facts_of(catalogue, item)
    asked = asked_for(example) or [fact for fact in facts if _names(example.instruction, fact)]
    if asked:
        return ", ".join([fact for fact in facts if fact in asked][:SHOWN])
    seen = [catalogue.index[x] for x in example.history[-RECENT:] if x in catalogue.index]
    shared = Counter(fact for other in seen for fact in facts_of(catalogue, other))
    often = sorted((fact for fact in facts if shared[fact] > 1), key=lambda fact: -shared[fact])
    return f"in common with the history: {', '.join(often[:SHOWN])}" if often else ""


def _names(text: str, fact: str) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(fact)}(?!\w)", text, re.IGNORECASE))
