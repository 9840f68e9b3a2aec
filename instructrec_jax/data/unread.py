"""Unread fields of records: one rule for every reader.

A field that is neither read nor ignored is reported: as an error if it changes the meaning of the record (tools, a
system prompt, pictures), otherwise in one note per source, with a count.
"""

from collections.abc import Collection, Iterable, Mapping

from instructrec_jax.data.example import BadExample, is_blank

# Columns that change the meaning of a record. (`datasets` fills missing columns with null, which counts as empty.)
MEANING = frozenset(
    "tools functions system system_prompt images image audios audio videos video documents chat_template_kwargs".split()
)


def unread_fields(record: Mapping[str, object], used: Collection[str], ignored: Collection[str]) -> list[str]:
    """The non-empty fields that are neither used nor ignored.

    Raises:
      BadExample: one of them changes the meaning of the record, see `MEANING`.
    """
    found = [name for name, value in record.items() if name not in used and name not in ignored and not is_blank(value)]
    for name in found:
        if name in MEANING:
            detail = (
                "this field is not read, but may change the meaning of the record: name it in one of the settings "
                f"`fields`, or set fields.ignore to [{name}] to leave it out."
            )
            raise BadExample(name, "unread field", detail)
    return found


def unread_note(source: str, counts: Mapping[str, int], rows: int) -> str:
    """One line on the unread fields of a source; "" for none.

    Args:
      counts: number of rows with each unread field.
    """
    if not counts:
        return ""
    named = ", ".join(f"{name} ({number:,})" for name, number in counts.items())
    return (
        f"source {source} ({rows:,} rows): unread fields, with the number of rows that have them: {named}. "
        "Name them in fields.ignore to silence this warning."
    )


def check_ignored(names: Iterable[str], used: Collection[str]) -> frozenset[str]:
    """The names of `fields.ignore`. Raises ValueError for one that another setting reads."""
    for name in names:
        if name in used:
            raise ValueError(f"setting `fields.ignore`: {name!r} is read by another setting of `fields`; drop one.")
    return frozenset(names)
