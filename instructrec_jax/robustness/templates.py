"""Templates with slots, `{first_name} likes {thing}.`, filled from lists of words."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence

from instructrec_jax.augmentation.augmenter import random_numbers
from instructrec_jax.robustness.lists import Lists

_SLOT = re.compile(r"\{(\w+)\}")


def filled(template: object, slots: Mapping[object, object], lists: Lists, count: int, key: str) -> list[str]:
    """The texts of a template, or of each of several: all of them, or `count` drawn with the key, without repeats.

    Args:
      slots: name -> words; first_name, city and country are those of the language where they are not given.

    Raises ValueError for a slot without words, one that no template has, and a template that is no text.
    """
    given = template if isinstance(template, list) else [template]
    templates = [each for each in given if isinstance(each, str) and each.strip()]
    if not templates or len(templates) < len(given):
        raise ValueError(f"template should be a text or a list of texts, but is {template!r:.60}.")
    used = {name for each in templates for name in _SLOT.findall(each)}
    if unused := [name for name in slots if name not in used]:
        raise ValueError(f"slots has {unused[0]!r}, which no template has: write {{{unused[0]}}} into one.")
    found = []
    for each in templates:
        names = list(dict.fromkeys(_SLOT.findall(each)))
        words = [_words(name, slots, lists) for name in names]
        most = -(-count // len(templates))
        for choice in _choices(words, most, f"{key} {each}"):
            values = dict(zip(names, choice, strict=True))
            found.append(_SLOT.sub(lambda place, values=values: values[place[1]], each))  # type: ignore[misc]
    return list(dict.fromkeys(found))[:count]


def _words(name: str, slots: Mapping[object, object], lists: Lists) -> Sequence[str]:
    words = slots.get(name, lists.slot(name))
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise ValueError(f"the slot {{{name}}} has no words: list them as slots.{name}.")
    return words


def _choices(words: Sequence[Sequence[str]], most: int, key: str) -> list[tuple[str, ...]]:
    """All combinations; more than `most`: that many different ones, drawn with the key."""
    total = math.prod(map(len, words))
    if total <= most:
        return list(itertools.product(*words))
    draw = random_numbers(key)
    numbers: dict[int, None] = {}
    while len(numbers) < most:
        numbers[int(draw() * total)] = None
    found = []
    for number in numbers:
        choice = []
        for each in words:
            number, place = divmod(number, len(each))
            choice.append(each[place])
        found.append(tuple(choice))
    return found
