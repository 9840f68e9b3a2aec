"""What of a record nobody reads: one rule for every reader.

A field of a record is used, or named as ignored, or it is told of: as an error where it changes what the record means
(tools, a system prompt, pictures), else in a note that is printed once a source, with a count.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from instructrec_jax.data.example import BadExample, is_blank

# Columns that change what is asked. `datasets` fills absent ones with nulls, which say nothing.
MEANING = frozenset(
    "tools functions system system_prompt images image audios audio videos video documents chat_template_kwargs".split()
)


def unread_fields(record: Mapping[str, Any], used: Collection[str], ignored: Collection[str]) -> list[str]:
    """The fields that hold something, and are neither used nor ignored.

    Raises:
      BadExample: one of them changes what the record means.
    """
    found = [name for name, value in record.items() if name not in used and name not in ignored and not is_blank(value)]
    for name in found:
        if name in MEANING:
            detail = (
                "nothing reads this field, which may change what the record asks: name it in one of the settings "
                f"`fields`, or, to leave it out, set fields.ignore to [{name}]."
            )
            raise BadExample(name, "unread field", detail)
    return found


def unread_note(source: str, counts: Mapping[str, int], rows: int) -> str:
    """One line on what is not read of a source; "" where all is.

    Args:
      counts: in how many of the rows each unread field stands.
    """
    if not counts:
        return ""
    named = ", ".join(f"{name} ({number:,})" for name, number in counts.items())
    return (
        f"source {source}: of {rows:,} rows, these fields are not read (and so many rows have them): {named}. "
        "Name them in fields.ignore where that is meant."
    )


def check_ignored(names: Iterable[str], used: Collection[str]) -> frozenset[str]:
    """The names of `fields.ignore`. Raises ValueError for one that another setting reads."""
    for name in names:
        if name in used:
            raise ValueError(f"setting `fields.ignore`: {name!r} is read by another setting of `fields`; drop one.")
    return frozenset(names)
