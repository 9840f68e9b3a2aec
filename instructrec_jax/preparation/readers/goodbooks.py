"""goodbooks-10k (Zając 2017): books.csv, ratings.csv, and optionally the readers' tags in book_tags.csv and tags.csv.

The columns with the book's number and Goodreads' number are `id` and `book_id` in the Kaggle release, `book_id` and
`goodreads_book_id` in the GitHub release. Both are read. Ratings have no times: the lines are in order of time.
"""

import re
from collections import Counter, defaultdict
from pathlib import Path

from instructrec_jax.preparation.readers.interactions import gather
from instructrec_jax.preparation.readers.items import Items
from instructrec_jax.preparation.readers.lines import BadLines, csv_rows, first_of, pick
from instructrec_jax.ranking.catalogue import Catalogue, Interactions

TAGS_OF_A_BOOK = 20
# Shelves that describe what a reader did with a book, not its content.
_SHELVES = re.compile(
    r"\b(to-?read|read|reading|re-?reads?|reread|own|owned|owns?|books?-i-own|favou?rites?|favs?|default|library|"
    r"kindle|e-?books?|audio-?books?|audible|audio|wish-?list|to-buy|bookshelf|shelf|shelves|finished|abandoned|dnf|"
    r"borrowed|tbr|maybe|\d-stars?)\b|^[\W\d_]*$|\d{4}"
)


def read_goodbooks(folder: str | Path, bad: BadLines | None = None) -> tuple[Catalogue, Interactions]:
    """Reads a goodbooks-10k folder.

    Facts: year, authors, language, average_rating and tags: the 20 most frequent that are not reading shelves ([]
    without files of tags). Texts hold title, year and authors, but no tags, which serve as requests.
    """
    folder, bad = Path(folder), bad or BadLines()
    books, ratings = first_of(folder, ["books.csv"]), first_of(folder, ["ratings.csv"])
    if books is None or ratings is None:
        lacks = " and ".join(name for name, path in (("books.csv", books), ("ratings.csv", ratings)) if path is None)
        raise ValueError(f"{folder} is not a goodbooks folder: it lacks {lacks} (or .gz).")
    _, header = next(csv_rows(books), (0, []))
    number, goodreads = ("id", "book_id") if "id" in header else ("book_id", "goodreads_book_id")
    tags = _tags(folder, bad)
    columns = (number, goodreads, "title", "authors", "original_publication_year", "language_code", "average_rating")
    items = Items(books, bad, ("authors",), dated=True)
    for line, (book, foreign, title, authors, year, language, average) in pick(csv_rows(books), books, columns, bad):
        facts = {
            "authors": [name.strip() for name in authors.split(",") if name.strip()],
            "language": language or None,
            "average_rating": float(average) if re.fullmatch(r"\d+(\.\d+)?", average) else None,
            "tags": tags.get(foreign, []),
        }
        items.add(line, book, title, facts, int(float(year)) if re.fullmatch(r"-?\d{1,4}(\.0*)?", year) else None)
    catalogue = items.catalogue()
    rows = pick(csv_rows(ratings), ratings, ("user_id", "book_id", "rating"), bad)
    return catalogue, gather(((line, (*fields, None)) for line, fields in rows), ratings, catalogue, bad, timed=False)


def _tags(folder: Path, bad: BadLines) -> dict[str, list[str]]:
    """Goodreads' book number → tags, most frequent first, with spaces for hyphens."""
    names, counts = first_of(folder, ["tags.csv"]), first_of(folder, ["book_tags.csv"])
    if names is None or counts is None:
        return {}
    words = {tag: name for _, (tag, name) in pick(csv_rows(names), names, ("tag_id", "tag_name"), bad)}
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for line, (book, tag, count) in pick(csv_rows(counts), counts, ("goodreads_book_id", "tag_id", "count"), bad):
        if tag not in words or not re.fullmatch(r"-?\d{1,9}", count):
            bad(counts, line, f"tag {tag!r} is not in {names.name}, or its count {count!r} is not a number")
        elif not _SHELVES.search(words[tag]):
            found[book][words[tag].strip("-").replace("-", " ")] += int(count)
    return {
        book: [tag for tag, _ in sorted(tags.items(), key=lambda pair: (-pair[1], pair[0]))[:TAGS_OF_A_BOOK]]
        for book, tags in found.items()
    }
