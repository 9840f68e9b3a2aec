"""Items, interactions and the one layout in which prepared data lies on disk.

    FOLDER/items.parquet                            id, title, text, then one column per fact
    FOLDER/interactions.parquet                     user, item, timestamp?, rating?: by user, oldest first
    FOLDER/splits/{train,validation,test}.jsonl     {"user": ..., "items": [ids, oldest first]}
    FOLDER/instructions/{...}.jsonl                 `Example` records of the same three splits
    FOLDER/candidates/{protocol}.{split}.jsonl      {"user", "item", "candidates"}: see `candidates`, where asked for
    FOLDER/card.json                                source, counts, settings, content hash

In memory items are numbered 0 .. len(catalogue) - 1 in the order of items.parquet; ids are for files and
people.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from instructrec_jax.data.example import Example
from instructrec_jax.files import read_json, write_json, write_jsonl

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Catalogue:
    """The items. All lists have one entry per item."""

    ids: list[str]
    titles: list[str]
    """as people say them: "The Matrix", without the year"""
    texts: list[str]
    """what a backbone reads of an item"""
    facts: dict[str, list[Any]] = field(default_factory=dict)
    """further columns: a text, a number, a list of texts, or None per item; e.g. "year", "genres" """

    def __post_init__(self) -> None:
        columns: dict[str, list[Any]] = {"titles": self.titles, "texts": self.texts, **self.facts}
        for name, column in columns.items():
            if len(column) != len(self.ids):
                raise ValueError(f"catalogue column {name!r} has {len(column)} entries for {len(self.ids)} items.")
        if reserved := {"id", "title", "text"} & set(self.facts):
            raise ValueError(f"facts may not be called {sorted(reserved)}: these columns are the catalogue's own.")
        if len(self.index) != len(self.ids):
            twice = next(x for number, x in enumerate(self.ids) if self.index[x] != number)
            raise ValueError(f"item id {twice!r} occurs twice in the catalogue.")
        for name, texts in (("title", self.titles), ("text", self.texts)):
            if empty := [x for x, text in zip(self.ids, texts, strict=True) if not text.strip()]:
                raise ValueError(f"{len(empty)} item(s) without {name}, the first is {empty[0]!r}.")

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def index(self) -> dict[str, int]:
        """Item id → item number."""
        return {item: number for number, item in enumerate(self.ids)}

    def numbers(self, ids: Iterable[str]) -> np.ndarray:
        """Item numbers int32 [len(ids)] of item ids; an unknown id is an error."""
        try:
            return np.fromiter((self.index[item] for item in ids), np.int32)
        except KeyError as error:
            raise ValueError(f"item {error.args[0]!r} is not in the catalogue of {len(self)} items.") from None

    def name(self, number: int) -> str:
        """The title with its year where there is one: "The Matrix (1999)"."""
        year = self.facts["year"][number] if "year" in self.facts else None
        return f"{self.titles[number]} ({year})" if year else self.titles[number]

    def take(self, numbers: Sequence[int] | np.ndarray) -> "Catalogue":
        """The catalogue of these items, in this order."""

        def pick(column: list[Any]) -> list[Any]:
            return [column[number] for number in numbers]

        facts = {name: pick(column) for name, column in self.facts.items()}
        return Catalogue(pick(self.ids), pick(self.titles), pick(self.texts), facts)

    def fingerprint(self) -> str:
        """sha256 of ids and texts: equal when cached item vectors may be reused."""
        digest = hashlib.sha256()
        for item, text in zip(self.ids, self.texts, strict=True):
            digest.update(json.dumps([item, text]).encode())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write FOLDER/items.parquet."""
        columns = {"id": self.ids, "title": self.titles, "text": self.texts, **self.facts}
        pq.write_table(pa.table(columns), Path(folder) / "items.parquet")

    @staticmethod
    def load(folder: str | Path) -> "Catalogue":
        """Read FOLDER/items.parquet."""
        path = _existing(Path(folder) / "items.parquet")
        columns = pq.read_table(path).to_pydict()
        if missing := [name for name in ("id", "title", "text") if name not in columns]:
            raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(columns)}.")
        return Catalogue(columns.pop("id"), columns.pop("title"), columns.pop("text"), columns)


@dataclass(frozen=True)
class Interactions:
    """Who chose what when. The arrays have one entry per interaction."""

    user_ids: list[str]
    """user number → user id"""
    user: np.ndarray
    """int32, user number"""
    item: np.ndarray
    """int32, item number of the catalogue that goes with it"""
    timestamp: np.ndarray | None = None
    """float64, in the unit of the source, or None: then the order of entries is the order in time"""
    rating: np.ndarray | None = None
    """float32, or None"""

    def __len__(self) -> int:
        return len(self.user)

    def take(self, entries: np.ndarray) -> "Interactions":
        """The interactions at these positions (or under this boolean mask)."""

        def pick(column: np.ndarray | None) -> np.ndarray | None:
            return None if column is None else column[entries]

        return Interactions(
            self.user_ids, self.user[entries], self.item[entries], pick(self.timestamp), pick(self.rating)
        )

    def by_user(self) -> "Interactions":
        """Sorted by user, then time; entries of the same time keep their order."""
        keys = (self.user,) if self.timestamp is None else (self.timestamp, self.user)
        return self.take(np.lexsort(keys))  # lexsort is stable and takes its first key last

    def save(self, folder: str | Path, catalogue: Catalogue) -> None:
        """Write FOLDER/interactions.parquet."""
        columns: dict[str, Any] = {
            "user": pa.DictionaryArray.from_arrays(pa.array(self.user), pa.array(self.user_ids, pa.string())),
            "item": pa.DictionaryArray.from_arrays(pa.array(self.item), pa.array(catalogue.ids, pa.string())),
        }
        columns |= {} if self.timestamp is None else {"timestamp": self.timestamp}
        columns |= {} if self.rating is None else {"rating": self.rating}
        pq.write_table(pa.table(columns), Path(folder) / "interactions.parquet")

    @staticmethod
    def load(folder: str | Path, catalogue: Catalogue) -> "Interactions":
        """Read FOLDER/interactions.parquet; users are numbered in order of appearance."""
        path = _existing(Path(folder) / "interactions.parquet")
        table = pq.read_table(path)
        if missing := [name for name in ("user", "item") if name not in table.column_names]:
            raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(table.column_names)}.")
        optional = {
            name: table[name].to_numpy().astype(dtype) if name in table.column_names else None
            for name, dtype in (("timestamp", np.float64), ("rating", np.float32))
        }
        users = table["user"].to_pylist()
        numbers: dict[str, int] = {}
        user = np.fromiter((numbers.setdefault(u, len(numbers)) for u in users), np.int32, len(users))
        return Interactions(list(numbers), user, catalogue.numbers(table["item"].to_pylist()), **optional)


@dataclass(frozen=True)
class Splits:
    """Each user's interactions shared out to train, validation and test: item numbers int32, oldest first.

    The three lists have one array per user, empty where the user has nothing in that split. What a user did
    before a validation target is `train`; before a test target, `train` and `validation`.
    """

    user_ids: list[str]
    train: list[np.ndarray]
    validation: list[np.ndarray]
    test: list[np.ndarray]

    def __post_init__(self) -> None:
        if {len(self.train), len(self.validation), len(self.test)} != {len(self.user_ids)}:
            raise ValueError("splits need one array per user in each of train, validation and test.")

    def save(self, folder: str | Path, catalogue: Catalogue) -> None:
        """Write FOLDER/splits/*.jsonl."""
        for name in SPLITS:
            rows = (
                {"user": user, "items": [catalogue.ids[number] for number in items]}
                for user, items in zip(self.user_ids, getattr(self, name), strict=True)
                if len(items)
            )
            write_jsonl(Path(folder) / "splits" / f"{name}.jsonl", rows)

    @staticmethod
    def load(folder: str | Path, catalogue: Catalogue) -> "Splits":
        """Read FOLDER/splits/*.jsonl."""
        parts = {
            name: {
                row["user"]: catalogue.numbers(row["items"])
                for row in _read_jsonl(Path(folder) / "splits" / f"{name}.jsonl")
            }
            for name in SPLITS
        }
        users = list(dict.fromkeys(user for part in parts.values() for user in part))
        nothing = np.empty(0, np.int32)
        return Splits(users, *([parts[name].get(user, nothing) for user in users] for name in SPLITS))


def has_splits(folder: str | Path) -> bool:
    """Whether a catalogue's folder also holds who chose what."""
    return (Path(folder) / "splits" / "train.jsonl").is_file()


def load_examples(folder: str | Path, split: str) -> list[Example]:
    """The instruction examples of FOLDER/instructions/SPLIT.jsonl."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}.")
    path = Path(folder) / "instructions" / f"{split}.jsonl"
    return [Example.from_record(record) for record in _read_jsonl(path)]


def load_card(folder: str | Path) -> dict[str, Any]:
    """FOLDER/card.json."""
    return read_json(_existing(Path(folder) / "card.json"))


def save_prepared(
    folder: str | Path,
    catalogue: Catalogue,
    interactions: Interactions,
    splits: Splits,
    examples: Mapping[str, Iterable[Example]],
    *,
    source: str,
    settings: Mapping[str, Any],
    notes: Mapping[str, int | float] | None = None,
) -> dict[str, Any]:
    """Write the whole layout into FOLDER, which exists and is empty; returns the card.

    examples: per split, an iterable that is consumed once. source: what the data is called. settings: how it
    was prepared (JSON-able). notes: further counts, e.g. of what was left out.
    """
    folder = Path(folder)
    catalogue.save(folder)
    interactions.save(folder, catalogue)
    splits.save(folder, catalogue)
    counts = {
        name: write_jsonl(folder / "instructions" / f"{name}.jsonl", (x.to_record() for x in examples[name]))
        for name in SPLITS
    }
    users = len(np.unique(interactions.user))
    card = {
        "source": source,
        "users": users,
        "items": len(catalogue),
        "interactions": len(interactions),
        "density": len(interactions) / max(1, users * len(catalogue)),
        "examples": counts,
        **(notes or {}),
        "settings": dict(settings),
        "sha256": _content_hash(folder, catalogue, interactions),
    }
    write_json(folder / "card.json", card)
    return card


def _content_hash(folder: Path, catalogue: Catalogue, interactions: Interactions) -> str:
    """sha256 over the content, not over parquet bytes, which change with the version of the writer."""
    digest = hashlib.sha256(json.dumps([catalogue.titles, catalogue.facts], default=str).encode())
    digest.update(catalogue.fingerprint().encode())
    digest.update(json.dumps(interactions.user_ids).encode())
    for column in (interactions.user, interactions.item, interactions.timestamp, interactions.rating):
        digest.update(b"-" if column is None else column.tobytes())
    for name in SPLITS:
        for part in ("splits", "instructions"):
            with open(folder / part / f"{name}.jsonl", "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file. Any broken line is an error, the last one too: half a data set is none."""
    with open(_existing(path), encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: not JSON ({error}).") from None


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist: {path.parent} is not a prepared folder. "
            "Make one with `python -m instructrec_jax.prepare`."
        )
    return path
