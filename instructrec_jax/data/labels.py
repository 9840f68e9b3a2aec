"""Labels compared in a normalized form: a CSV's "1.0" equals JSON's 1 and the setting's 1."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from instructrec_jax.data.example import BadExample, show

_NUMBER = re.compile(r"[+-]?(0|[1-9]\d{0,15})(\.\d+)?")  # 007 and 1e3 are names


def label_form(value: object) -> str | None:
    """The normalized form of a label; None for a value that cannot be a label.

    "1" for 1, 1.0, "1.0" and " 1"; "true" for True, "True" and "TRUE"; other texts are unchanged.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        text = value.strip()
        if text.casefold() in ("true", "false"):
            return text.casefold()
        if not _NUMBER.fullmatch(text):
            return value
        value = float(text) if "." in text else int(text)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value) if isinstance(value, int) else None


class Labels:
    """The labels of a task, with look-up by normalized form."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        counts = Counter(label_form(name) for name in self.names)
        self.by_form = {label_form(name): name for name in self.names if counts[label_form(name)] == 1}

    def find(self, value: object) -> str | None:
        """The label that equals a value of a file in normalized form, or None."""
        if isinstance(value, str) and value in self.names:
            return value
        return self.by_form.get(label_form(value)) if isinstance(value, str | int | float) else None


def named(value: object, names: Mapping[int, str], place: str) -> str:
    """The label name of a class number or name. Raises BadExample for any other value."""
    form = {"true": "1", "false": "0"}.get(str(label_form(value)), label_form(value))
    number = int(form) if form is not None and re.fullmatch(r"-?\d+", form) else None
    if number is not None and number in names:
        return names[number]
    if (name := Labels(names.values()).find(value)) is not None:
        return name
    detail = f"found {show(value)}; the labels are {', '.join(f'{k}: {v}' for k, v in list(names.items())[:20])}."
    raise BadExample(place, "unknown label", detail + withheld(number))


def withheld(number: int | None) -> str:
    """A hint where a class number is -1."""
    hint = " -1 usually marks a withheld label: choose another split, or set fields.output to null."
    return hint if number == -1 else ""


def chosen(value: object, candidates: Sequence[str], called: object, styles: Counter[str]) -> str:
    """The candidate that an answer refers to.

    Args:
      called: the record's labels of the candidates (["A", "B", ...] or ["1", "2", ...]); None: the record has none, so
        numbers count from 0 and letters from A.
      styles: updated counts of letter and number answers without such labels. `check_styles` refuses a source with
        both, because its numbers may count from 1.

    Raises:
      BadExample: an answer that is not a candidate, or labels that do not match the candidates.
    """
    if called is not None:
        listed = list(called) if isinstance(called, list | tuple) else []
        forms = [label_form(name) for name in listed]
        if len(forms) != len(candidates) or len(set(forms)) != len(forms) or None in forms:
            detail = f"{len(candidates)} candidates have the labels {show(called)}: each needs a distinct label."
            raise BadExample("candidates", "unknown label", detail)
        form = label_form(value.strip() if isinstance(value, str) else value)
        if form in forms:
            return candidates[forms.index(form)]
        names = ", ".join(map(str, listed))
        raise BadExample("output", "unknown label", f"found {show(value)}, but the candidates' labels are {names}.")
    form, number = label_form(value), None
    if form is not None and not isinstance(value, bool) and re.fullmatch(r"-?\d+", form):
        number, style = int(form), "numbers"
    elif isinstance(value, str) and re.fullmatch("[a-zA-Z]", value.strip()):
        number, style = ord(value.strip().lower()) - ord("a"), "letters"
    if number is None or not 0 <= number < len(candidates):
        detail = f"found {show(value)}, but there are {len(candidates)} candidates, counted from 0 or from A."
        raise BadExample("output", "unknown label", detail + withheld(number))
    styles[style] += 1
    return candidates[number]


def check_styles(styles: Counter[str], name: str) -> None:
    """Raises ValueError for a source whose answers mix letters and numbers."""
    if len(styles) > 1:
        raise ValueError(
            f"source {name}: {styles['letters']:,} letters and {styles['numbers']:,} numbers as answers. Numbers "
            "may count from 0 or from 1. Write all answers as letters, or add the candidates' labels to the records "
            "(choices.label beside choices.text) and set fields.candidates to choices.text."
        )
