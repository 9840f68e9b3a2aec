"""Items added to a catalogue after training, which a run knows by their texts and pictures alone."""

import base64
from collections.abc import Mapping
from pathlib import Path

from instructrec_jax.data.example import BadExample, suggest
from instructrec_jax.data.media.picture_references import PictureFolder, folders_of, read_pictures
from instructrec_jax.data.rows import open_rows
from instructrec_jax.preparation.readers.items import IN_TEXT, damage, item_text, label, split_title
from instructrec_jax.ranking.catalogue import Catalogue, Fact
from instructrec_jax.ranking.item_pictures import COLUMN

OWN = ("id", "title", "text", "year")


def with_new_items(catalogue: Catalogue, file: str | Path) -> Catalogue:
    """The catalogue with the items of a file appended.

    A record has `title` (such as "Moon (2009)"); optional: `id` (default new-1, new-2, ...), `text` (default: title and
    kinds, in the format of the readers) and the catalogue's facts. In CSV, semicolons separate the values of a list.
    The paths of a column `image` start in the file's folder.

    Raises ValueError, naming file and line, for a missing title, a duplicate id, an unknown column, a fact of the wrong
    type or a picture that is not there.
    """
    rows = open_rows(str(file))
    ids, titles, texts = list(catalogue.ids), list(catalogue.titles), list(catalogue.texts)
    facts = {name: list(column) for name, column in catalogue.facts.items()}
    kinds: dict[str, type | None] = {
        name: next((type(x) for x in column if x is not None), None) for name, column in facts.items()
    }
    known = set(ids)
    (folder,) = folders_of([Path(file)])
    for index in range(len(rows)):
        where = rows.where(index)
        try:
            record = {name: value for name, value in rows.row(index).items() if value not in (None, "")}
        except BadExample as error:
            error.where = error.where or where
            raise
        for name in record:
            if name not in OWN and name not in facts:
                listed = ", ".join(dict.fromkeys([*OWN[:3], *facts]))
                hint = suggest(str(name), [*OWN, *facts])
                raise ValueError(f"{where}: unknown column {name!r}; an item has {listed}.{hint}")
        title, year = _title(record, where)
        item = str(record.get("id", f"new-{index + 1}"))
        if item in known:
            raise ValueError(f"{where}: duplicate id {item!r}: give the item another one.")
        known.add(item)
        own = {name: _fact(name, record.get(name), kind, where) for name, kind in kinds.items() if name != COLUMN}
        if COLUMN in facts:
            own[COLUMN] = _picture(record.get(COLUMN), folder, where)
        if "year" in own and own["year"] is None:
            own["year"] = year
        when = own.get("year", year)
        details = {label(name): own[name] for name in own if name.lower() in IN_TEXT}
        named = f"{title} ({when})" if when else title
        text = str(record["text"]) if "text" in record else item_text(named, None, details)
        if why := damage(item + title + text):
            raise ValueError(f"{where}: the item holds {why}.")
        ids.append(item)
        titles.append(title)
        texts.append(text)
        for name, value in own.items():
            facts[name].append(value)
    return Catalogue(ids, titles, texts, facts)


def _title(record: Mapping[str, object], where: str) -> tuple[str, int | None]:
    title, year = split_title(str(record.get("title", "")))
    if not title.strip():
        raise ValueError(f"{where}: an item needs a title.")
    given = record.get("year", year)
    if given is None:
        return title, None
    try:
        if isinstance(given, int | float | str):
            return title, int(given)
    except (ValueError, OverflowError):
        pass  # not a number, NaN or infinity
    raise ValueError(f"{where}: year must be a whole number, but is {given!r}.")


def _picture(value: object, folder: PictureFolder, where: str) -> Fact:
    """The picture as a data URI, since paths of the catalogue start elsewhere; None for an item without one."""
    try:
        found = read_pictures(value, folder, COLUMN)
    except BadExample as error:
        raise error.at(where) from None
    if len(found) > 1:
        raise ValueError(f"{where}: an item has one picture, but here are {len(found)}.")
    return f"data:image;base64,{base64.b64encode(found[0].read()).decode()}" if found else None


def _fact(name: str, value: object, kind: type | None, where: str) -> Fact:
    """The value converted to the type of the catalogue's column, because CSV cells are texts."""
    if value is None or kind is None:
        return None
    if kind is list:
        if isinstance(value, str):
            return [part.strip() for part in value.split(";") if part.strip()]
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            return value
    elif kind in (int, float) and isinstance(value, str):
        try:
            return int(value) if kind is int else float(value)
        except ValueError:
            pass  # the error below names the fact and the line
    elif isinstance(value, str | int | float):
        if isinstance(value, kind):
            return value
        if kind is str:
            return str(value)
        if kind is float:
            return float(value)
    raise ValueError(f"{where}: {name} must be {kind.__name__}, as in the catalogue, but is {value!r}.")
