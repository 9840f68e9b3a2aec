"""Readers of public recommendation data: a folder in → (Catalogue, Interactions).

MovieLens (Harper & Konstan 2015): the csv layout (latest-small, 20m, 25m, 32m), the `::` layout (1m, 10m) and
the layout of 100k. RecBole: its atomic files `NAME.inter` and `NAME.item`, tab-separated under a header of
`name:type`. Any file may be gzipped (`.gz`).

Items carry their text from titles and genres; tags are left alone, since they serve as requests elsewhere.
"""

import csv
import gzip
import math
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from instructrec_jax.recommendation.catalogue import Catalogue, Interactions

Row = tuple[int, list[str]]  # line number from 1, fields

# The order of the 19 flags in ml-100k's u.item.
GENRES_100K = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror "
    "Musical Mystery Romance Sci-Fi Thriller War Western"
).split()
_NO_GENRES = ("(no genres listed)", "unknown", "")

_YEAR = re.compile(r"\s*\((\d{4})(?:[-–]\s*(?:\d{4})?)?\)\s*(?:\((?:TV|V|VG|mini)\))?\s*$")
_ARTICLE = re.compile(
    r"^(a\.k\.a\.\s+)?(.+), (The|A|An|Le|La|Les|L'|Un|Une|Una|Il|Lo|Gli|El|Los|Las|"
    r"Der|Die|Das|Ein|Eine|De|Het|Den|Det)$"
)


@dataclass
class BadLines:
    """What to do with lines that cannot be used: stop at the first, or leave them out and keep a list."""

    skip: bool = False
    skipped: list[str] = field(default_factory=list)

    def __call__(self, path: Path, line: int, why: str) -> None:
        if not self.skip:
            raise ValueError(
                f"{path}:{line}: {why}. Repair the file, or leave such lines out with `--on_bad_line skip`."
            )
        self.skipped.append(f"{path.name}:{line}: {why}")


def read_movielens(folder: str | Path, bad: BadLines | None = None) -> tuple[Catalogue, Interactions]:
    """Read a MovieLens folder of any layout. Facts: year (int or None), genres (list of texts)."""
    folder, bad = Path(folder), bad or BadLines()
    layouts = {
        "csv": ("movies.csv", "ratings.csv"),
        "dat": ("movies.dat", "ratings.dat"),
        "100k": ("u.item", "u.data"),
    }
    for layout, names in layouts.items():
        movies, ratings = (_with_gz(folder / name) for name in names)
        if not (movies and ratings):
            continue
        if layout == "csv":
            films = _pick(_csv_rows(movies), movies, ("movieId", "title", "genres"), bad)
            catalogue = _films(((n, f[0], f[1], f[2].split("|")) for n, f in films), movies, bad)
            rows = _pick(_csv_rows(ratings), ratings, ("userId", "movieId", "rating", "timestamp"), bad)
        elif layout == "dat":
            films = _sized(_split_rows(movies, "::", _encoding(movies)), movies, 3, bad)
            catalogue = _films(((n, f[0], f[1], f[2].split("|")) for n, f in films), movies, bad)
            rows = _sized(_split_rows(ratings, "::"), ratings, 4, bad)
        else:
            films = _sized(_split_rows(movies, "|", _encoding(movies)), movies, 5 + len(GENRES_100K), bad)
            catalogue = _films(_flagged(films, movies, bad), movies, bad)
            rows = _sized(_split_rows(ratings, "\t"), ratings, 4, bad)
        return catalogue, _interactions(rows, ratings, catalogue, bad)
    looked_for = "; ".join(" and ".join(names) for names in layouts.values())
    raise ValueError(f"{folder} is no MovieLens folder. Looked for {looked_for} (or the same with .gz).")


def read_recbole(
    folder: str | Path,
    bad: BadLines | None = None,
    *,
    title_column: str | None = None,
    text_columns: Sequence[str] | None = None,
) -> tuple[Catalogue, Interactions]:
    """Read RecBole atomic files: NAME.inter (user_id, item_id, rating?, timestamp?), NAME.item (title, ...).

    title_column: default is the column called title, name, ..._title or ..._name, in this order.
    text_columns: what joins the title in an item's text, default genres, categories and brand where there are
    such columns. All columns but id and title become facts: float → number, genres and categories → list, the
    rest text; None where empty.
    """
    folder, bad = Path(folder), bad or BadLines()
    inter, item = _only(folder, ".inter"), _only(folder, ".item")
    catalogue = _recbole_items(item, bad, title_column, text_columns)

    rows = _split_rows(inter, "\t")
    types = _header(inter, rows)
    names = list(types)
    if missing := [name for name in ("user_id", "item_id") if name not in types]:
        raise ValueError(f"{inter} has no column {missing[0]!r}; its header has {', '.join(names)}.")
    wanted = [names.index(name) if name in types else None for name in ("user_id", "item_id", "rating", "timestamp")]
    picked = (
        (number, [fields[column] if column is not None else None for column in wanted])
        for number, fields in _sized(rows, inter, len(names), bad)
    )
    return catalogue, _interactions(picked, inter, catalogue, bad)


def split_title(raw: str) -> tuple[str, int | None]:
    """("The Matrix", 1999) from "Matrix, The (1999)"; other titles in brackets stay."""
    year = _YEAR.search(raw)
    title = raw[: year.start()] if year else raw
    parts = re.split(r"\(([^()]*)\)", title)  # odd entries stood in brackets
    turned = [_ARTICLE.sub(_article_first, part.strip()) for part in parts]
    for index, part in enumerate(parts):
        turned[index] = f"({turned[index]})" if index % 2 else part.replace(part.strip(), turned[index], 1)
    return "".join(turned).strip(), int(year[1]) if year else None


def item_text(title: str, year: int | None, details: Mapping[str, Any]) -> str:
    """What a backbone reads: "The Matrix (1999). Genres: Action, Sci-Fi." Empty details are left out."""
    sentences = [f"{title} ({year})" if year else title]
    for label, value in details.items():
        text = ", ".join(value) if isinstance(value, list) else "" if value is None else str(value)
        sentences += [f"{label}: {text}"] if text else []
    return " ".join(sentence if sentence[-1] in ".!?" else sentence + "." for sentence in sentences)


def _article_first(match: re.Match[str]) -> str:
    alias, title, article = match.groups()
    return f"{alias or ''}{article}{'' if article.endswith(chr(39)) else ' '}{title}"


# --- items ---


def _films(rows: Iterable[tuple[int, str, str, list[str]]], path: Path, bad: BadLines) -> Catalogue:
    """The catalogue of (line, id, raw title, genres)."""
    titles: dict[str, str] = {}
    years: list[int | None] = []
    genres: list[list[str]] = []
    for line, item, raw, listed in rows:
        title, year = split_title(raw)
        if why := _item_fault(item, title, titles):
            bad(path, line, why)
            continue
        titles[item] = title
        years.append(year)
        genres.append([genre for genre in listed if genre not in _NO_GENRES])
    _require(titles, path)
    texts = [item_text(t, y, {"Genres": g}) for t, y, g in zip(titles.values(), years, genres, strict=True)]
    return Catalogue(list(titles), list(titles.values()), texts, {"year": years, "genres": genres})


def _flagged(rows: Iterable[Row], path: Path, bad: BadLines) -> Iterator[tuple[int, str, str, list[str]]]:
    """u.item rows: id | title | release date | video release date | address | 19 genre flags."""
    for line, fields in rows:
        if not set(fields[5:]) <= {"0", "1"}:
            bad(path, line, f"genre flags must be 0 or 1, found {' '.join(fields[5:])!r}")
            continue
        genres = [genre for genre, flag in zip(GENRES_100K, fields[5:], strict=True) if flag == "1"]
        yield line, fields[0], fields[1], genres


def _recbole_items(
    path: Path, bad: BadLines, title_column: str | None, text_columns: Sequence[str] | None
) -> Catalogue:
    rows = _split_rows(path, "\t", _encoding(path))
    types = _header(path, rows)
    names = list(types)
    if "item_id" not in types:
        raise ValueError(f"{path} has no column 'item_id'; its header has {', '.join(names)}.")
    if title_column is None:
        patterns = ("title", "name", ".*_title", ".*_name")
        found = [name for pattern in patterns for name in names if re.fullmatch(pattern, name)]
        if not found:
            raise ValueError(
                f"{path} has no title: its columns are {', '.join(names)}. The backbone reads items as text; "
                "say which column names them with `--title_column`."
            )
        title_column = found[0]
    if text_columns is None:
        text_columns = [n for n in names if n in ("genre", "genres", "class", "category", "categories", "brand")]
    if unknown := [name for name in (title_column, *text_columns) if name not in types]:
        raise ValueError(f"{path} has no column {unknown[0]!r}; its header has {', '.join(names)}.")

    year_column = next((name for name in ("release_year", "year") if name in types), None)
    fact_names = [name for name in names if name not in ("item_id", title_column, year_column)]
    facts: dict[str, list[Any]] = {name: [] for name in fact_names}
    years: list[int | None] = []
    titles: dict[str, str] = {}
    texts: list[str] = []
    for line, fields in _sized(rows, path, len(names), bad):
        row = dict(zip(names, fields, strict=True))
        title, year = split_title(row[title_column])
        if why := _item_fault(row["item_id"], title, titles):
            bad(path, line, why)
            continue
        if year is None and year_column and re.fullmatch(r"\d{4}(\.0+)?", row[year_column]):
            year = int(row[year_column][:4])
        try:
            values = {name: _fact(row[name], types[name], name) for name in fact_names}
        except ValueError as error:
            bad(path, line, str(error))
            continue
        for name, value in values.items():
            facts[name].append(value)
        titles[row["item_id"]] = title
        years.append(year)
        texts.append(item_text(title, year, {_label(n): values[n] for n in text_columns if n in values}))
    _require(titles, path)
    renamed = {
        "genre": "genres",
        "class": "genres",
        "id": "item_id",
        "title": "item_title",
        "text": "item_text",
    }
    for old, new in renamed.items():
        if old in facts and new not in facts:
            facts[new] = facts.pop(old)
    if any(years):
        facts["year"] = years
    return Catalogue(list(titles), list(titles.values()), texts, facts)


def _label(column: str) -> str:
    known = {"genre": "Genres", "class": "Genres", "category": "Categories"}
    return known.get(column, column.replace("_", " ").capitalize())


def _fact(raw: str, kind: str, column: str) -> Any:
    if kind == "token_seq" and _label(column) in ("Genres", "Categories"):
        parts = [] if raw in _NO_GENRES else raw.split(",") if "," in raw else raw.split()
        return [part.strip(" '\"[]") for part in parts]
    if not raw:
        return None
    if kind == "float":
        try:
            number = float(raw)
        except ValueError:
            raise ValueError(f"{column} is {raw!r}, not a number") from None
        return number if math.isfinite(number) else None
    return raw  # other sequences are running text (descriptions, authors)


def _item_fault(item: str, title: str, known: Mapping[str, str]) -> str | None:
    if not item.strip():
        return "empty item id"
    if item in known:
        return f"item {item!r} a second time"
    if not title:
        return f"item {item!r} has no title"
    if "\n" in title:
        return f"the title of item {item!r} runs over several lines (a quote that is never closed?)"
    if "\x00" in item + title:
        return f"item {item!r} holds a NUL character, a sign of a damaged file"
    return None


def _require(titles: Mapping[str, str], path: Path) -> None:
    if not titles:
        raise ValueError(f"{path} holds no usable item.")


# --- interactions ---


def _interactions(
    rows: Iterable[tuple[int, Sequence[str | None]]], path: Path, catalogue: Catalogue, bad: BadLines
) -> Interactions:
    """Columns from (line, [user, item, rating or None, timestamp or None]); None: no such column."""
    users: dict[str, int] = {}
    # array.array keeps 25 million rows at a few bytes each, where lists of objects would take gigabytes
    user, item, rating, timestamp = array("i"), array("i"), array("f"), array("d")
    index = catalogue.index
    for line, (user_id, item_id, stars, time) in rows:
        if not user_id:
            bad(path, line, "empty user id")
            continue
        if item_id not in index:
            bad(path, line, f"item {item_id!r} is not in the item file")
            continue
        try:
            values = [None if raw is None else float(raw) for raw in (stars, time)]
        except ValueError:
            bad(path, line, f"rating {stars!r} or timestamp {time!r} is not a number")
            continue
        if not all(value is None or math.isfinite(value) for value in values):
            bad(path, line, f"rating {stars!r} or timestamp {time!r} is not finite")
            continue
        user.append(users.setdefault(user_id, len(users)))
        item.append(index[item_id])
        if values[0] is not None:
            rating.append(values[0])
        if values[1] is not None:
            timestamp.append(values[1])
    if not user:
        raise ValueError(f"{path} holds no usable interaction.")
    return Interactions(
        list(users),
        np.array(user, np.int32),
        np.array(item, np.int32),
        np.array(timestamp, np.float64) if timestamp else None,
        np.array(rating, np.float32) if rating else None,
    )


# --- files ---


def _with_gz(path: Path) -> Path | None:
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def _only(folder: Path, ending: str) -> Path:
    found = [p for p in sorted(folder.glob("*")) if p.name.removesuffix(".gz").endswith(ending) and p.is_file()]
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise ValueError(
            f"{folder} must hold exactly one *{ending} file (or .gz) to be read as RecBole atomic files, "
            f"found {names}. Files already split into parts are not read: give the whole one."
        )
    return found[0]


def _raw_lines(path: Path) -> Iterator[bytes]:
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
        yield from file


def _encoding(path: Path) -> str:
    """utf-8, or latin-1 if the file is not valid UTF-8 (ml-1m and ml-100k are latin-1, ml-10m UTF-8)."""
    try:
        for line in _raw_lines(path):
            line.decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def _lines(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    for number, line in enumerate(_raw_lines(path), 1):
        try:
            text = line.decode(encoding)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}:{number}: not {encoding} ({error}). Convert the file to UTF-8.") from None
        yield text.removeprefix("\ufeff") if number == 1 else text


def _csv_rows(path: Path) -> Iterator[Row]:
    reader = csv.reader(_lines(path), strict=True)  # strict: a quote left open is an error, not a long field
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: not CSV ({error}).") from None


def _split_rows(path: Path, separator: str, encoding: str = "utf-8") -> Iterator[Row]:
    for number, line in enumerate(_lines(path, encoding), 1):
        if text := line.rstrip("\r\n"):
            yield number, text.split(separator)


def _sized(rows: Iterable[Row], path: Path, count: int, bad: BadLines) -> Iterator[Row]:
    for number, fields in rows:
        if len(fields) == count:
            yield number, fields
        else:
            bad(path, number, f"expected {count} fields, found {len(fields)}")


def _pick(rows: Iterator[Row], path: Path, names: Sequence[str], bad: BadLines) -> Iterator[Row]:
    """The named columns of rows under a header row."""
    _, header = next(rows, (0, []))
    if missing := [name for name in names if name not in header]:
        raise ValueError(f"{path} has no column {missing[0]!r}; its header is {','.join(header)!r}.")
    columns = [header.index(name) for name in names]
    for number, fields in _sized(rows, path, len(header), bad):
        yield number, [fields[column] for column in columns]


def _header(path: Path, rows: Iterator[Row]) -> dict[str, str]:
    """Column → type of a RecBole header such as `user_id:token<TAB>rating:float`."""
    _, header = next(rows, (0, []))
    types = {column.rpartition(":")[0]: column.rpartition(":")[2] for column in header}
    wrong = [name for name, kind in types.items() if kind not in ("token", "token_seq", "float", "float_seq")]
    if wrong or len(types) != len(header) or not header:
        raise ValueError(
            f"{path}:1: expected a RecBole header of name:type with tabs between (types token, token_seq, "
            f"float, float_seq), each name once; found {' '.join(header)!r}."
        )
    return types
