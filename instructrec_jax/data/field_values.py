"""Values of columns as fields of an example: ids, names, numbers, provenance, and the error of a missing column."""

import json
from collections.abc import Mapping

from instructrec_jax.data.column_names import advice as advice_on
from instructrec_jax.data.example import BadExample, check_text, show, suggest

KEPT = "column "  # before the names of kept columns in Example.origin, where the other names have meanings


def missing_column(name: str, column: str, there: list[str]) -> BadExample:
    names = ", ".join(str(c) for c in there[:30]) + (", ..." if len(there) > 30 else "")
    close = suggest(column, [str(c) for c in there])
    fixed = f' A fixed text needs an equals sign, fields.{name}: "={column}".' if " " in column else ""
    if {"chosen", "rejected"} <= set(there) and name == column == "instruction":
        detail = "chosen and rejected hold no prompt of their own: add a column prompt, or write both as lists of "
        return BadExample(name, "missing column", f"{detail}{{role, content}}. Rejected answers are not trained on.")
    if {"prompt", "completion", "label"} <= set(there) and name == column:
        detail = (
            "label may say whether a completion is good: keep the good rows, then set fields to {instruction: prompt, "
        )
        return BadExample(name, "missing column", f"{detail}output: completion, ignore: [label]}}.")
    shown = advice_on(there) if name == column else ""
    advice = f"Name the right one in fields.{name}{shown and ', '}{shown}, or rename the column.{fixed}"
    detail = f"no column {column!r}; the record has {names or 'no columns'}.{close} {advice}"
    return BadExample(name, "missing column", detail)


def as_number(value: str) -> int | float | str:
    for kind in (int, float):
        try:
            return value if "_" in value else kind(value)  # Python reads 1_000 as a number, no one else does
        except ValueError:
            continue
    return value


def id_text(value: object, place: str) -> str:
    """An id, label or name as text; the file may have it as an integer."""
    if isinstance(value, float) and value.is_integer():  # a column of whole numbers with gaps
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise BadExample(place, "wrong type", f"expected text or an integer, found {show(value)}.")
    return check_text(value, place)


def record_id(value: object) -> str:
    """The name of a record as text, from a column of any type; "" if it is blank."""
    if value is None or value != value or isinstance(value, str) and not value.strip():  # NaN is not itself
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        return check_text(value if isinstance(value, str) else json.dumps(value, default=str), "id")
    except BadExample as error:
        hint = "To leave the column out, set fields.id to null."
        raise BadExample("id", error.reason, f"{error.detail} {hint}") from None


def kept_text(value: object, place: str) -> str:
    """A value of any type as text, for groups of examples with the same one; "" if it is blank."""
    if isinstance(value, bool):
        return str(value).lower()
    try:
        return record_id(value).strip()
    except BadExample as error:
        raise BadExample(place, error.reason, error.detail.partition(" To leave")[0]) from None


def own_words(listed: object) -> tuple[str, ...]:
    """The words of a list, if joining them with spaces is not reversible: see `Example.words`."""
    if not isinstance(listed, list | tuple) or not all(isinstance(word, str) for word in listed):
        return ()
    return () if " ".join(listed).split() == list(listed) else tuple(listed)


def origin_of(value: object, column: str) -> dict[str, str]:
    """The provenance as a dict: a text under its column's name, numbers as texts, of a list the first entry."""
    if value is None:
        return {}
    if isinstance(value, str) and column != "origin":
        return {column: value}
    if not isinstance(value, Mapping):
        hint = "set fields.origin to null if the column is unrelated."
        raise BadExample("origin", "wrong type", f"expected an object of texts, found {show(value)}; {hint}")
    first = {name: one[0] if isinstance(one, list | tuple) and one else one for name, one in value.items()}
    return {
        name: str(one) if isinstance(one, int) and not isinstance(one, bool) else one
        for name, one in first.items()
        if one is not None and one != []
    }
