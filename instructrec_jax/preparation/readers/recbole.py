"""RecBole's atomic files `NAME.inter` and `NAME.item`: tab-separated with a header of `name:type`."""

import math
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from instructrec_jax.preparation.readers.blocks import Layout, text_blocks
from instructrec_jax.preparation.readers.interactions import gather_blocks
from instructrec_jax.preparation.readers.items import (
    IN_TEXT,
    NO_GENRES,
    Items,
    find_title,
    label,
    require_columns,
)
from instructrec_jax.preparation.readers.lines import BadLines, Row, encoding_of, only, sized, split_rows
from instructrec_jax.preparation.readers.table import LOOKED_AT, choose, find_time, usual
from instructrec_jax.ranking.catalogue import Catalogue, Fact, Interactions

KINDS = ("token", "token_seq", "float", "float_seq")


def read_recbole(
    folder: str | Path,
    bad: BadLines | None = None,
    *,
    user_column: str | None = None,
    item_column: str | None = None,
    time_column: str | None = None,
    rating_column: str | None = None,
    title_column: str | None = None,
    text_columns: Sequence[str] | None = None,
) -> tuple[Catalogue, Interactions]:
    """Reads RecBole atomic files: NAME.inter (user_id, item_id, rating?, timestamp?), NAME.item (title, ...).

    All columns except id and title become facts: float → number, genres and categories → list, others → text; None
    for empty cells.

    Args:
      user_column, item_column, time_column, rating_column: fields of NAME.inter (RecBole's USER_ID_FIELD,
        ITEM_ID_FIELD, TIME_FIELD); by default the usual names (`table.USUAL`), and for the item otherwise the only
        field in both files. A time is a number or ISO 8601; "none": the lines are in order of time.
      title_column: by default the first of title, name, ..._title, ..._name.
      text_columns: added to the title in an item's text; by default genres, categories and brand, if they exist.
    """
    folder, bad = Path(folder), bad or BadLines()
    what = "of a RecBole data set (give the whole file, not files already split into parts)"
    inter, item = only(folder, [".inter"], what), only(folder, [".item"], what)
    names = list(_header(inter, split_rows(inter, "\t")))
    shared = _item_column(names, list(_header(item, split_rows(item, "\t", encoding_of(item)))), inter, item_column)
    catalogue = _items(item, bad, shared, title_column, text_columns)

    who = choose([name for name in names if name != shared], inter, "user", user_column)
    rating = usual(names, inter, "rating", rating_column)
    others = [name for name in names if name not in (who, shared, rating)]

    def place(name: str | None) -> int | None:
        return None if name is None else names.index(name)

    rows = split_rows(inter, "\t")
    next(rows)
    seen = islice(sized(rows, inter, len(names), BadLines(skip=True)), LOOKED_AT)
    some = [[fields[names.index(name)] for name in others] for _, fields in seen]
    time = find_time(others, inter, time_column, some)
    layout = Layout(len(names), (names.index(who), names.index(shared), place(rating), place(time)))
    blocks = text_blocks(inter, layout, bad, separator="\t")
    found = gather_blocks(blocks, inter, catalogue, bad, rated=rating is not None, timed=time is not None)
    return catalogue, found


def _item_column(inter: Sequence[str], item: Sequence[str], path: Path, asked: str | None) -> str:
    """The field with the item's id: `asked`, a field with a usual name, or the only field in both files."""
    both = [name for name in inter if name in item]
    found = usual(inter, path, "item", asked)
    if found is None and len(both) == 1:
        found = both[0]
    if found is None or found not in both:
        raise ValueError(
            f"{path} and its item file share no field with a usual name for the item: the fields are "
            f"{', '.join(inter)} and {', '.join(item)}. Set `--item_column`."
        )
    return found


def _items(
    path: Path, bad: BadLines, item_column: str, title_column: str | None, text_columns: Sequence[str] | None
) -> Catalogue:
    rows = split_rows(path, "\t", encoding_of(path))
    types = _header(path, rows)
    names = list(types)
    require_columns(text_columns or (), names, path)
    title_column = find_title([name for name in names if name != item_column], path, title_column)
    items = Items(path, bad, [name for name in names if name in IN_TEXT] if text_columns is None else text_columns)
    year_column = next((name for name in ("release_year", "year") if name in types), "")
    fact_names = [name for name in names if name not in (item_column, title_column, year_column)]
    for line, fields in sized(rows, path, len(names), bad):
        row = dict(zip(names, fields, strict=True))
        try:
            facts = {name: _fact(row[name], types[name], name) for name in fact_names}
        except ValueError as error:
            bad(path, line, str(error))
            continue
        year = re.fullmatch(r"(\d{4})(\.0+)?", row.get(year_column, ""))
        items.add(line, row[item_column], row[title_column], facts, int(year[1]) if year else None)
    return items.catalogue()


def _fact(raw: str, kind: str, column: str) -> Fact:
    if kind == "token_seq" and label(column) in ("Genres", "Categories"):
        parts = [] if raw in NO_GENRES else raw.split(",") if "," in raw else raw.split()
        return [part.strip(" '\"[]") for part in parts]
    if not raw:
        return None
    if kind == "float":
        try:
            number = float(raw)
        except ValueError:
            raise ValueError(f"{column} is {raw!r}, not a number") from None
        return number if math.isfinite(number) else None
    return raw  # other sequences are texts (descriptions, authors)


def _header(path: Path, rows: Iterator[Row]) -> dict[str, str]:
    """Column → type of a RecBole header such as `user_id:token<TAB>rating:float`."""
    _, header = next(rows, (0, []))
    types = {column.rpartition(":")[0]: column.rpartition(":")[2] for column in header}
    if not header or len(types) != len(header) or not set(types.values()) <= set(KINDS):
        raise ValueError(
            f"{path}:1: expected a RecBole header of distinct name:type separated by tabs (types {', '.join(KINDS)}); "
            f"found {' '.join(header)!r}."
        )
    return types
