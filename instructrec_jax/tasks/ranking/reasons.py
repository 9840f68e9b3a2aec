"""Why an item answers an instruction, in the catalogue's own words: the facts that it shares with what was asked."""

import re
from collections import Counter

from instructrec_jax.data.example import Example
from instructrec_jax.ranking.catalogue import Catalogue

SHOWN = 4  # facts that a reason names
RECENT = 10  # items of the history that a reason looks at


def facts_of(catalogue: Catalogue, item: int) -> list[str]:
    """The texts in an item's columns beside its title and text, in order: genres, themes, a director ..."""
    found: list[str] = []
    for column in catalogue.facts.values():
        value = column[item]
        values = value if isinstance(value, list) else [value]
        found += [text for text in values if isinstance(text, str)]
    return list(dict.fromkeys(found))


def asked_for(example: Example) -> list[str]:
    """The facts that an instruction was made of, where the example says so: origin["asked"], with commas between."""
    return [fact for fact in example.origin.get("asked", "").split(", ") if fact]


def reason(catalogue: Catalogue, item: int, example: Example) -> str:
    """Facts of an item that speak for it, or "" for none that one could name.

    These are the facts that the instruction asks for: those that it was made of, else those that it names word by word.
    An instruction without such words is judged by the facts that the item shares with at least two items of its
    history.
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
