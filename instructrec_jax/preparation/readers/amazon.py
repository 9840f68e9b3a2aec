"""Amazon reviews and product metadata (McAuley lab) of 2014, 2018 and 2023: one record per line, gzipped or not.

    2014, 2018   reviewerID, asin, overall, unixReviewTime    meta_NAME.json    asin, title, brand, category, price
    2023         user_id, parent_asin, rating, timestamp      meta_NAME.jsonl   parent_asin, title, store, categories

The metadata have errors: products without a title or with a script as title, duplicate products. Each is a bad line,
and so is a review of a product without valid metadata.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from instructrec_jax.preparation.readers.interactions import gather
from instructrec_jax.preparation.readers.items import Items, plain
from instructrec_jax.preparation.readers.lines import BadLines, as_id, csv_rows, json_records, only, pick
from instructrec_jax.ranking.catalogue import Catalogue, Interactions

LAYOUTS = (
    ("user_id", "parent_asin", "rating", "timestamp"),  # 2023
    ("reviewerID", "asin", "overall", "unixReviewTime"),  # 2014, 2018
)
_ENDINGS = (".json", ".jsonl")
_TAG = re.compile(r"<[a-zA-Z/!][^>]*>")
_PRICE = re.compile(r"\$?\s*(\d{1,3}(?:,\d{3})*|\d+)(\.\d+)?")


def read_amazon(source: str | Path, bad: BadLines | None = None) -> tuple[Catalogue, Interactions]:
    """Reads a folder with one file of reviews and one meta_* file, or a file of reviews beside a meta_* file.

    Reviews may also be the rating-only CSV of 2023. Of several meta_* files, the one with the category of the reviews
    is read. Facts: categories (list of texts), brand (2023: the store), price (a number, or None unless there is
    exactly one).
    """
    source, bad = Path(source), bad or BadLines()
    folder = source.parent if source.is_file() else source
    metas = [p for p in sorted(folder.glob("meta_*")) if p.name.removesuffix(".gz").endswith(_ENDINGS)]
    what = "of reviews (if there are several, set `--source` to the file)"
    reviews = source if source.is_file() else only(folder, (*_ENDINGS, ".csv"), what, metas)
    fitting = [p for p in metas if reviews.name.removeprefix("reviews_").startswith(_category(p))]
    meta = max(fitting or (metas if len(metas) == 1 else []), key=lambda p: len(_category(p)), default=None)
    if meta is None:
        raise ValueError(
            f"{folder} has no product metadata for {reviews.name} (looked for meta_*.json and meta_*.jsonl, also .gz). "
            "The backbone reads items as text: put the metadata with the titles beside the reviews."
        )
    catalogue = read_meta(meta, bad)
    return catalogue, gather(_reviews(reviews, bad), reviews, catalogue, bad)


def read_meta(path: Path, bad: BadLines, names: Mapping[str, str] | None = None) -> Catalogue:
    """The catalogue of a meta_* file of any year.

    names: asin → item id in the catalogue; other products are skipped. None: all products, by asin.
    """
    items = Items(path, bad, ("categories", "brand"))
    for line, record in json_records(path, bad, python_dicts=True):
        asin = as_id(record.get("parent_asin") or record.get("asin"))
        if names is not None and asin not in names:
            continue
        title = record.get("title")
        if title is not None and not isinstance(title, str):
            bad(path, line, f"the title of item {asin!r} is {title!r}, not text")
            continue
        title = " ".join(_TAG.sub(" ", plain(title or "")).split())
        if "getTime()" in title:
            bad(path, line, f"the title of item {asin!r} is JavaScript code")
            continue
        facts = {
            "categories": _categories(record),
            "brand": _line(record.get("brand") or record.get("store")),
            "price": _price(record.get("price")),
        }
        items.add(line, asin if names is None else names[asin], title, facts)
    return items.catalogue()


def _reviews(path: Path, bad: BadLines) -> Iterator[tuple[int, tuple[str, str, object, object]]]:
    if path.name.removesuffix(".gz").endswith(".csv"):
        for line, (user, item, rating, when) in pick(csv_rows(path), path, LAYOUTS[0], bad):
            yield line, (user, item, rating, when)
        return
    layout = None
    for line, record in json_records(path, bad, python_dicts=True):
        if layout is None:
            layout = next((keys for keys in LAYOUTS if set(keys) <= set(record)), None)
        if layout is None:
            expected = " or ".join(", ".join(keys) for keys in LAYOUTS)
            bad(path, line, f"not a review: expected the keys {expected}; found {', '.join(map(str, record))}")
            continue
        values = [record.get(key) for key in layout]
        yield line, (as_id(values[0]), as_id(values[1]), values[2], values[3])


def _category(meta: Path) -> str:
    return meta.name.removeprefix("meta_").split(".")[0]


def _categories(record: Mapping[str, object]) -> list[str]:
    """The categories of a product: named category in 2018; in 2014 the first of several paths."""
    listed = record.get("categories") or record.get("category") or []
    if isinstance(listed, list) and listed and isinstance(listed[0], list):
        listed = listed[0]
    listed = listed if isinstance(listed, list) else [listed]
    names = (_line(entry) for entry in listed if isinstance(entry, str) and not _TAG.search(entry))
    return [name for name in dict.fromkeys(names) if name]


def _price(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    match = _PRICE.fullmatch(str(value).strip())
    return float(match[0].lstrip("$").replace(",", "")) if match else None


def _line(value: object) -> str | None:
    """The text in one line; None for other values and for HTML markup, which some brands are."""
    if not isinstance(value, str) or _TAG.search(value):
        return None
    return " ".join(plain(value).split()).strip(" .") or None
