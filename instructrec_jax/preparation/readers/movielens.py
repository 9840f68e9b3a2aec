"""MovieLens (Harper & Konstan 2015): the csv layout (latest-small, 20m, 25m, 32m), the `::` layout (1m, 10m) and
the layout of 100k.

The text of a film has title and genres, but no tags, which serve as requests (`tags.py`).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from instructrec_jax.preparation.readers.blocks import Layout, text_blocks
from instructrec_jax.preparation.readers.interactions import gather, gather_blocks
from instructrec_jax.preparation.readers.items import NO_GENRES, Items
from instructrec_jax.preparation.readers.lines import (
    BadLines,
    Row,
    csv_rows,
    encoding_of,
    pick,
    places,
    sized,
    split_rows,
    with_gz,
)
from instructrec_jax.ranking.catalogue import Catalogue, Interactions

# The order of the 19 flags in ml-100k's u.item.
GENRES_100K = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror "
    "Musical Mystery Romance Sci-Fi Thriller War Western"
).split()


def read_movielens(folder: str | Path, bad: BadLines | None = None) -> tuple[Catalogue, Interactions]:
    """Reads a MovieLens folder of any layout. Facts: year (int or None), genres (list of texts)."""
    folder, bad = Path(folder), bad or BadLines()
    layouts = {
        "csv": ("movies.csv", "ratings.csv"),
        "dat": ("movies.dat", "ratings.dat"),
        "100k": ("u.item", "u.data"),
    }
    for layout, names in layouts.items():
        movies, ratings = (with_gz(folder / name) for name in names)
        if not (movies and ratings):
            continue
        if layout == "csv":
            films = pick(csv_rows(movies), movies, ("movieId", "title", "genres"), bad)
            catalogue = _films(((n, f[0], f[1], f[2].split("|")) for n, f in films), movies, bad)
            _, header = next(csv_rows(ratings), (0, []))
            user, item, rating, time = places(header, ratings, ("userId", "movieId", "rating", "timestamp"))
            blocks = text_blocks(ratings, Layout(len(header), (user, item, rating, time)), bad)
            return catalogue, gather_blocks(blocks, ratings, catalogue, bad, rated=True, timed=True)
        if layout == "dat":
            films = sized(split_rows(movies, "::", encoding_of(movies)), movies, 3, bad)
            catalogue = _films(((n, f[0], f[1], f[2].split("|")) for n, f in films), movies, bad)
            rows = sized(split_rows(ratings, "::"), ratings, 4, bad)
        else:
            films = sized(split_rows(movies, "|", encoding_of(movies)), movies, 5 + len(GENRES_100K), bad)
            catalogue = _films(_flagged(films, movies, bad), movies, bad)
            rows = sized(split_rows(ratings, "\t"), ratings, 4, bad)
        return catalogue, gather(rows, ratings, catalogue, bad)
    looked_for = "; ".join(" and ".join(names) for names in layouts.values())
    raise ValueError(f"{folder} is not a MovieLens folder. Looked for {looked_for} (or the same with .gz).")


def _films(rows: Iterable[tuple[int, str, str, list[str]]], path: Path, bad: BadLines) -> Catalogue:
    """The catalogue of (line, id, raw title, genres)."""
    films = Items(path, bad, ("genres",), dated=True)
    for line, item, raw, listed in rows:
        films.add(line, item, raw, {"genres": [genre for genre in listed if genre not in NO_GENRES]})
    return films.catalogue()


def _flagged(rows: Iterable[Row], path: Path, bad: BadLines) -> Iterator[tuple[int, str, str, list[str]]]:
    """u.item rows: id | title | release date | video release date | address | 19 genre flags."""
    for line, fields in rows:
        if not set(fields[5:]) <= {"0", "1"}:
            bad(path, line, f"genre flags must be 0 or 1, found {' '.join(fields[5:])!r}")
            continue
        genres = [genre for genre, flag in zip(GENRES_100K, fields[5:], strict=True) if flag == "1"]
        yield line, fields[0], fields[1], genres
