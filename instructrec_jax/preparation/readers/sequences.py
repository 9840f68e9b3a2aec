"""Sequences of item ids in order of time, without times.

- SASRec (Kang & McAuley 2018): one "user item" per line.
- P5 (Geng et al. 2022): `sequential_data.txt` with "user item item ..." per line; `user_sequence.txt` in OpenP5.
- TSV: "user<TAB>item item ..." per line.

None of these formats has item texts, so each needs a file of titles.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from instructrec_jax.parsing import json_value, text_lines
from instructrec_jax.preparation.readers.amazon import read_meta
from instructrec_jax.preparation.readers.interactions import gather
from instructrec_jax.preparation.readers.items import Items
from instructrec_jax.preparation.readers.lines import (
    BadLines,
    first_of,
    only,
    sized,
    split_rows,
)
from instructrec_jax.preparation.readers.table import USUAL, read_items
from instructrec_jax.ranking.catalogue import Catalogue, Interactions

ITEM_FILES = (
    "items.tsv",
    "items.txt",
    "items.csv",
    "items.jsonl",
    "items.parquet",
    "items.json",
    "item_plain_text.txt",
)


def read_sasrec(
    source: str | Path, bad: BadLines | None = None, *, items: str | Path | None = None
) -> tuple[Catalogue, Interactions]:
    """Reads "user item" lines from a file, or from the only .txt of a folder. items: see `read_titles`."""
    source, bad = Path(source), bad or BadLines()
    titles = _item_file(source, items)
    path = source if source.is_file() else only(source, [".txt"], 'of "user item" lines', [titles])
    catalogue = read_titles(titles, bad)
    pairs = sized(split_rows(path, None), path, 2, bad)
    rows = ((line, (user, item, None, None)) for line, (user, item) in pairs)
    return catalogue, gather(rows, path, catalogue, bad, rated=False, timed=False)


def read_p5(
    source: str | Path, bad: BadLines | None = None, *, items: str | Path | None = None
) -> tuple[Catalogue, Interactions]:
    """Reads a P5 or OpenP5 folder, or its sequence file.

    items: see `read_titles`. None: P5's `meta.json` and `datamaps.json` (item number → asin), if the folder has them:
    ids are then the item numbers, and titles, categories and brands come from the metadata.
    """
    source, bad = Path(source), bad or BadLines()
    folder = source.parent if source.is_file() else source
    path = source if source.is_file() else first_of(folder, ["sequential_data.txt", "user_sequence.txt"])
    if path is None:
        raise ValueError(f"{folder} is not a P5 folder: it has neither sequential_data.txt nor user_sequence.txt.")
    meta, maps = first_of(folder, ["meta.json"]), folder / "datamaps.json"
    if items is None and meta and maps.is_file():
        catalogue = read_meta(meta, bad, names=_item_numbers(maps))
    else:
        catalogue = read_titles(_item_file(source, items), bad)
    return catalogue, gather(_steps(path, None, bad), path, catalogue, bad, rated=False, timed=False)


def read_sequences(
    source: str | Path,
    bad: BadLines | None = None,
    *,
    items: str | Path | None = None,
    title_column: str | None = None,
    text_columns: list[str] | None = None,
) -> tuple[Catalogue, Interactions]:
    """Reads "user<TAB>item item ..." lines from a file, or from sequences.tsv in a folder.

    A first line that starts with "user" (or "user_id" ...) is a header. items: see `read_titles`.
    """
    source, bad = Path(source), bad or BadLines()
    path = source if source.is_file() else first_of(source, ["sequences.tsv", "sequences.txt"])
    if path is None:
        raise ValueError(f"{source} is neither a file nor a folder with sequences.tsv (or .gz).")
    catalogue = read_titles(_item_file(source, items), bad, title_column=title_column, text_columns=text_columns)
    return catalogue, gather(_steps(path, "\t", bad), path, catalogue, bad, rated=False, timed=False)


def read_titles(
    path: Path, bad: BadLines, *, title_column: str | None = None, text_columns: list[str] | None = None
) -> Catalogue:
    """The catalogue of an item file, in one of these formats:

    "id<TAB>title" lines without a header; a table with a header (see `table.read_items`); a JSON object of id → title;
    OpenP5's item_plain_text.txt: "id text" lines, where the text is the title or "title: ...; brand: ...; categories:
    ...".
    """
    bare = path.name.removesuffix(".gz")
    if bare == "item_plain_text.txt":
        return _plain_text(path, bad)
    if bare.endswith(".json"):
        return _title_map(path, bad)
    if bare.endswith((".csv", ".jsonl", ".parquet")):
        return read_items(path, bad, title_column=title_column, text_columns=text_columns)
    header = next(text_lines(path), "").rstrip("\r\n").split("\t")
    if header[0].lower().replace("_", "") in USUAL["id"] or {"title", "name"} & {name.lower() for name in header[1:]}:
        return read_items(path, bad, id_column=header[0], title_column=title_column, text_columns=text_columns)
    catalogue = Items(path, bad, ())
    for line, (item, title) in sized(split_rows(path, "\t"), path, 2, bad):
        catalogue.add(line, item, title, {})
    return catalogue.catalogue()


def _steps(path: Path, separator: str | None, bad: BadLines) -> Iterator[tuple[int, tuple[str, str, None, None]]]:
    """(line, (user, item, no rating, no time)) for every item of every line."""
    users: set[str] = set()
    for line, text in enumerate(text_lines(path), 1):
        if not text.strip():
            continue
        user, *rest = text.rstrip("\r\n").split(separator, 1)
        if line == 1 and user.strip().lower().replace("_", "") in USUAL["user"]:
            continue
        items = rest[0].split() if rest else []
        if user in users:
            bad(path, line, f"user {user!r} occurs twice")
        elif not items:
            bad(path, line, f"user {user!r} has no items (expected the user, then item ids)")
        else:
            users.add(user)
            for item in items:
                yield line, (user, item, None, None)


# --- titles ---


def _item_file(source: Path, items: str | Path | None) -> Path:
    if items is not None:
        if not Path(items).is_file():
            raise ValueError(f"the item file {items} does not exist.")
        return Path(items)
    folder = source.parent if source.is_file() else source
    found = first_of(folder, ITEM_FILES)
    if found is None:
        raise ValueError(
            f"{folder} has no file of item titles (looked for {', '.join(ITEM_FILES)}). The backbone reads items as "
            "text: give a file of `id<TAB>title` lines with `--items FILE`."
        )
    return found


def _title_map(path: Path, bad: BadLines) -> Catalogue:
    titles = _json_object(path)
    catalogue = Items(path, bad, ())
    for number, (item, title) in enumerate(titles.items(), 1):
        if isinstance(title, str):
            catalogue.add(number, item, title, {})
        else:
            bad(path, number, f"the title of item {item!r} is {title!r}, not text")
    return catalogue.catalogue()


def _plain_text(path: Path, bad: BadLines) -> Catalogue:
    catalogue = Items(path, bad, ("categories", "brand"))
    for line, (item, text) in sized(split_rows(path, None, most=1), path, 2, bad):
        named = dict(re.findall(r"(?:^|; )(title|brand|categories): (.*?)(?=; \w+: |;?\s*$)", text))
        catalogue.add(
            line,
            item,
            named["title"].strip() if "title" in named else text.strip(),
            {"categories": [c.strip() for c in named.get("categories", "").split(",") if c.strip()]}
            | {"brand": None if named.get("brand") in (None, "", "na") else named["brand"]},
        )
    return catalogue.catalogue()


def _item_numbers(path: Path) -> dict[str, str]:
    """asin → item number of a P5 datamaps.json."""
    maps = _json_object(path)
    for name, turned in (("id2item", True), ("item2id", False)):
        listed = maps.get(name)
        if isinstance(listed, dict):
            pairs = [(str(a), str(b)) for a, b in listed.items()]
            return {b: a for a, b in pairs} if turned else dict(pairs)
    raise ValueError(f"{path} has neither id2item nor item2id; its keys are {', '.join(maps)}.")


def _json_object(path: Path) -> dict[str, object]:
    try:
        value = json_value("".join(text_lines(path)))
    except ValueError as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path} is not JSON ({error}).") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold one JSON object of id → title.")
    return value
