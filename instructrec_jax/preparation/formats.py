"""The settings of `prepare` for each format of raw data: `PrepareConfig` and those of the format's reader."""

from dataclasses import dataclass

from instructrec_jax.preparation import readers
from instructrec_jax.preparation.prepare_data import PrepareConfig
from instructrec_jax.preparation.readers import BadLines
from instructrec_jax.ranking.catalogue import Catalogue, Interactions

Data = tuple[Catalogue, Interactions]


@dataclass(kw_only=True)
class MovieLensConfig(PrepareConfig):
    """Read a MovieLens folder: ml-latest-small, ml-25m (csv), ml-1m, ml-10m (dat) or ml-100k."""

    noun: str = "film"
    """noun for items: film, game, book, product, item, or a noun defined in `templates`"""

    def read(self, bad: BadLines) -> Data:
        return readers.read_movielens(self.source, bad)


@dataclass(kw_only=True)
class RecBoleConfig(PrepareConfig):
    """Read a folder of RecBole atomic files: NAME.inter and NAME.item."""

    user_column: str | None = None
    """field of NAME.inter with the user; by default user_id, or another usual name"""
    item_column: str | None = None
    """field of both files with the item; by default item_id, another usual name, or the one field that both have"""
    time_column: str | None = None
    """field with the time, a number or ISO 8601; default timestamp, time ...; none: lines are in order of time"""
    rating_column: str | None = None
    """field with the rating; by default rating, overall, stars or score, if there is one"""
    title_column: str | None = None
    """column of the item file with the title; by default title, name, *_title or *_name"""
    text_columns: list[str] | str | None = None
    """columns added to the title in an item's text, as a,b; by default genres, categories and brand"""

    def read(self, bad: BadLines) -> Data:
        return readers.read_recbole(
            self.source,
            bad,
            user_column=self.user_column,
            item_column=self.item_column,
            time_column=self.time_column,
            rating_column=self.rating_column,
            title_column=self.title_column,
            text_columns=_names(self.text_columns),
        )


@dataclass(kw_only=True)
class SASRecConfig(PrepareConfig):
    """Read "user item" lines in order of time, as in SASRec, with a file of titles."""

    source: str
    """the file of "user item" lines, or a folder with one such .txt file"""
    k_core: int = 0
    """keep users and items with at least N interactions (0: all; such files are usually filtered already)"""
    items: str | None = None
    """file of `id<TAB>title` lines; by default items.tsv, items.txt ... beside the interactions"""

    def read(self, bad: BadLines) -> Data:
        return readers.read_sasrec(self.source, bad, items=self.items)


@dataclass(kw_only=True)
class P5Config(PrepareConfig):
    """Read P5's sequential_data.txt (with datamaps.json and meta.json) or OpenP5's user_sequence.txt."""

    k_core: int = 0
    """keep users and items with at least N interactions (0: all; such files are usually filtered already)"""
    items: str | None = None
    """file of titles: `id<TAB>title` lines, a JSON object, or item_plain_text.txt; by default one in the folder"""

    def read(self, bad: BadLines) -> Data:
        return readers.read_p5(self.source, bad, items=self.items)


@dataclass(kw_only=True)
class SequencesConfig(PrepareConfig):
    """Read "user<TAB>item item ..." lines with a table of items."""

    source: str
    """the file of sequences, or a folder with sequences.tsv"""
    k_core: int = 0
    """keep users and items with at least N interactions (0: all; such files are usually filtered already)"""
    items: str | None = None
    """table of items with ids and titles; by default items.tsv, items.csv ... beside the sequences"""
    title_column: str | None = None
    """column of the item table with the title; by default title, name, *_title or *_name"""
    text_columns: list[str] | str | None = None
    """columns added to the title in an item's text, as a,b; by default genres, categories and brand"""

    def read(self, bad: BadLines) -> Data:
        return readers.read_sequences(
            self.source, bad, items=self.items, title_column=self.title_column, text_columns=_names(self.text_columns)
        )


@dataclass(kw_only=True)
class AmazonConfig(PrepareConfig):
    """Read Amazon reviews of 2014, 2018 or 2023 with their product metadata (meta_NAME)."""

    source: str
    """folder with one file of reviews and its meta_* file, or the file of reviews"""
    noun: str = "product"
    """noun for items: film, game, book, product, item, or a noun defined in `templates`"""

    def read(self, bad: BadLines) -> Data:
        return readers.read_amazon(self.source, bad)


@dataclass(kw_only=True)
class GoodbooksConfig(PrepareConfig):
    """Read goodbooks-10k: books.csv, ratings.csv and, for the fact `tags`, book_tags.csv and tags.csv."""

    noun: str = "book"
    """noun for items: film, game, book, product, item, or a noun defined in `templates`"""

    def read(self, bad: BadLines) -> Data:
        return readers.read_goodbooks(self.source, bad)


@dataclass(kw_only=True)
class TableConfig(PrepareConfig):
    """Read interactions and items from tables: CSV, TSV, Parquet or JSON lines, with columns of any name."""

    source: str
    """the table of interactions, or a folder with interactions.* and items.*"""
    items: str | None = None
    """the table of items; by default items.* in the same folder"""
    user_column: str | None = None
    """column of the interactions with the user; by default user, user_id, userId ..."""
    item_column: str | None = None
    """column of the interactions with the item; by default item, item_id, asin ..."""
    time_column: str | None = None
    """column with the time, a number or ISO 8601; default timestamp, time ...; none: lines are in order of time"""
    rating_column: str | None = None
    """column with the rating; by default rating, overall, stars or score, if there is one"""
    id_column: str | None = None
    """column of the items with the item's id; by default id, item, item_id, asin ..."""
    title_column: str | None = None
    """column of the items with the title; by default title, name, *_title or *_name"""
    text_columns: list[str] | str | None = None
    """columns added to the title in an item's text, as a,b; by default genres, categories and brand"""

    def read(self, bad: BadLines) -> Data:
        return readers.read_table(
            self.source,
            bad,
            items=self.items,
            user_column=self.user_column,
            item_column=self.item_column,
            time_column=self.time_column,
            rating_column=self.rating_column,
            id_column=self.id_column,
            title_column=self.title_column,
            text_columns=_names(self.text_columns),
        )


def _names(columns: list[str] | str | None) -> list[str] | None:
    return [name.strip() for name in columns.split(",") if name.strip()] if isinstance(columns, str) else columns


SOURCES: dict[str, type[PrepareConfig]] = {
    "movielens": MovieLensConfig,
    "recbole": RecBoleConfig,
    "sasrec": SASRecConfig,
    "p5": P5Config,
    "sequences": SequencesConfig,
    "amazon": AmazonConfig,
    "goodbooks": GoodbooksConfig,
    "table": TableConfig,
}
