"""Conditions on a catalogue's facts: `genre=Horror`, `year>1990`, `director!=Ridley Scott`.

    name = value, name != value     texts, ignoring case; a list equals each of its values
    name > value, >=, <, <=         numbers

Names may be singular or plural (genre, genres). An item without the fact satisfies only `!=`.
"""

import difflib
import operator
import re
from collections.abc import Callable, Sequence

import numpy as np

from instructrec_jax.data.example import suggest
from instructrec_jax.ranking.catalogue import Catalogue

_CONDITION = re.compile(r"\s*(?P<name>[^=<>!]+?)\s*(?P<sign>>=|<=|!=|==?|>|<)\s*(?P<value>.*?)\s*", re.DOTALL)
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
MOST_LISTED = 8


def matching(catalogue: Catalogue, conditions: Sequence[str]) -> np.ndarray:
    """bool [items]: whether an item satisfies all conditions.

    Raises ValueError for an invalid condition, an unknown fact, a value of the wrong type, or a text that no item has,
    with the nearest valid one.
    """
    masks = [_matching(catalogue, condition) for condition in conditions]
    return np.logical_and.reduce(masks) if masks else np.ones(len(catalogue), bool)


def _matching(catalogue: Catalogue, condition: str) -> np.ndarray:
    parts = _CONDITION.fullmatch(condition)
    if parts is None or not parts["value"]:
        raise ValueError(
            f"condition {condition!r}: write name=value, name!=value, or for numbers name>value, >=, <, <= (in quotes, "
            "because shells redirect with > and <)."
        )
    name, sign, value = fact_name(catalogue, parts["name"], condition), parts["sign"].replace("==", "="), parts["value"]
    column = catalogue.facts[name]
    present = [x for x in column if x is not None]
    numeric = bool(present) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in present)
    if sign in _COMPARE or numeric:
        if present and not numeric:
            kind = "a list" if isinstance(present[0], list) else "not a number"
            raise ValueError(f"condition {condition!r}: {name} is {kind}, so only = and != apply.")
        number = _number(value, condition, name)
        equal = np.array([x is not None and x == number for x in column], bool)
        if sign in ("=", "!="):
            return equal if sign == "=" else ~equal
        return np.array([isinstance(x, int | float) and _COMPARE[sign](x, number) for x in column], bool)
    asked = value.casefold()
    equal = np.array([asked in _texts(x) for x in column], bool)
    if not equal.any():
        values = {text for x in present for text in (x if isinstance(x, list) else [str(x)]) if text is not None}
        known = {text.casefold(): text for text in sorted(map(str, values))}
        near = difflib.get_close_matches(asked, known, 1)
        hint = f' Did you mean "{known[near[0]]}"?' if near else ""
        if not near and 0 < len(values) <= MOST_LISTED:
            hint = f" Choose from {', '.join(sorted(known.values()))}."
        raise ValueError(f"condition {condition!r}: no item has the {name} {value!r}.{hint}")
    return equal if sign == "=" else ~equal


def fact_name(catalogue: Catalogue, name: str, condition: str) -> str:
    """The fact of a name, ignoring case and plural."""
    known = {fact.casefold(): fact for fact in catalogue.facts}
    asked = name.casefold()
    for form in (asked, asked + "s", asked.removesuffix("s"), asked.removesuffix("y") + "ies"):
        if form in known:
            return known[form]
    if not known:
        raise ValueError(f"condition {condition!r}: the items of this catalogue have titles and texts, but no facts.")
    listed = ", ".join(catalogue.facts)
    raise ValueError(f"condition {condition!r}: unknown fact {name!r}; choose from {listed}.{suggest(asked, known)}")


def _number(value: str, condition: str, name: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise ValueError(f"condition {condition!r}: {name} is a number, but {value!r} is not.")
    return number


def _texts(value: object) -> list[str]:
    if value is None:
        return []
    return [str(x).casefold() for x in value] if isinstance(value, list) else [str(value).casefold()]
