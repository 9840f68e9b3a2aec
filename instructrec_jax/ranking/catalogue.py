"""Items, interactions, and the layout of prepared data on disk.

    FOLDER/items.parquet                            id, title, text, then one column per fact
    FOLDER/interactions.parquet                     user, item, timestamp?, rating?: by user, oldest first
    FOLDER/splits/{train,validation,test}.jsonl     {"user": ..., "items": [ids, oldest first]}
    FOLDER/instructions/{...}.jsonl                 `Example` records of the same three splits; not where they are made
                                                    from the interactions when they are read
    FOLDER/candidates/{protocol}.{split}.jsonl      optional: {"user", "item", "candidates"}, see `candidates`
    FOLDER/card.json                                source, counts, settings, content hash

In memory, items are numbered 0 .. len(catalogue) - 1 in the order of items.parquet; ids occur in files and messages.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeGuard, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from instructrec_jax.data.example import BadExample, Example, show
from instructrec_jax.files import read_json, write_json, write_jsonl
from instructrec_jax.parsing import parquet_lists, read_json_lines, read_parquet

SPLITS = ("train", "validation", "test")
Fact = str | float | list[str] | None  # what an item's column holds: a text, a number, texts, or nothing
V = TypeVar("V")


@dataclass(frozen=True)
class Catalogue:
    """The items. All lists have one entry per item."""

    ids: list[str]
    titles: list[str]
    """without the year: "The Matrix" """
    texts: list[str]
    """input of the backbone"""
    facts: Mapping[str, Sequence[Fact]] = field(default_factory=dict)
    """further columns: a text, a number, a list of texts, or None per item; e.g. "year", "genres" """

    def __post_init__(self) -> None:
        columns: dict[str, Sequence[Fact]] = {"titles": self.titles, "texts": self.texts, **self.facts}
        for name, column in columns.items():
            if len(column) != len(self.ids):
                raise ValueError(f"catalogue column {name!r} has {len(column)} entries for {len(self.ids)} items.")
        if reserved := {"id", "title", "text"} & set(self.facts):
            raise ValueError(f"facts must not be named {sorted(reserved)}: these column names are reserved.")
        if len(self.index) != len(self.ids):
            twice = next(x for number, x in enumerate(self.ids) if self.index[x] != number)
            raise ValueError(f"item id {twice!r} occurs twice in the catalogue.")
        for name, texts in (("title", self.titles), ("text", self.texts)):
            if empty := [x for x, text in zip(self.ids, texts, strict=True) if not text.strip()]:
                raise ValueError(f"{len(empty)} item(s) have no {name}, first {empty[0]!r}.")

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def index(self) -> dict[str, int]:
        """Item id → item number."""
        return {item: number for number, item in enumerate(self.ids)}

    def numbers(self, ids: Iterable[str]) -> np.ndarray:
        """Item numbers int32 [len(ids)] of item ids. Raises ValueError for an unknown id."""
        try:
            return np.fromiter((self.index[item] for item in ids), np.int32)
        except KeyError as error:
            raise ValueError(f"item {error.args[0]!r} is not in the catalogue of {len(self)} items.") from None

    def drawn(self, key: str) -> str:
        """The id of an item, as a function of the key."""
        return self.ids[int.from_bytes(hashlib.sha256(key.encode(errors="replace")).digest()[:8], "big") % len(self)]

    def name(self, number: int) -> str:
        """The title with its year, if known: "The Matrix (1999)"."""
        year = self.facts["year"][number] if "year" in self.facts else None
        return f"{self.titles[number]} ({year})" if year else self.titles[number]

    def take(self, numbers: Sequence[int] | np.ndarray) -> "Catalogue":
        """A catalogue of the items with these numbers, in this order."""

        def pick(column: Sequence[V]) -> list[V]:
            return [column[number] for number in numbers]

        facts = {name: pick(column) for name, column in self.facts.items()}
        return Catalogue(pick(self.ids), pick(self.titles), pick(self.texts), facts)

    def fingerprint(self) -> str:
        """sha256 of ids and texts, the key of cached item vectors."""
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
        columns = parquet_lists(path)
        _require(path, columns, ("id", "title", "text"))
        if not columns["id"]:
            raise ValueError(f"{path} holds no items.")
        ids, titles, texts = (_checked_texts(path, name, columns.pop(name)) for name in ("id", "title", "text"))
        facts = {name: _checked_facts(path, name, column) for name, column in columns.items()}
        try:
            return Catalogue(ids, titles, texts, facts)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


@dataclass(frozen=True)
class Interactions:
    """Interactions of users with items. The arrays have one entry per interaction."""

    user_ids: list[str]
    """user number → user id"""
    user: np.ndarray
    """int32, user number"""
    item: np.ndarray
    """int32, item number in the catalogue"""
    timestamp: np.ndarray | None = None
    """float64, in the unit of the source; None: the entries are in order of time"""
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
        """Sorted by user, then time; the sort is stable. Without copies if it is sorted already."""
        later = self.user[1:] > self.user[:-1]
        same = self.user[1:] == self.user[:-1]
        if (later | (same if self.timestamp is None else same & (self.timestamp[1:] >= self.timestamp[:-1]))).all():
            return self
        keys = (self.user,) if self.timestamp is None else (self.timestamp, self.user)
        return self.take(np.lexsort(keys))  # lexsort is stable and takes its first key last

    def save(self, folder: str | Path, catalogue: Catalogue) -> None:
        """Write FOLDER/interactions.parquet."""
        columns: dict[str, pa.Array | np.ndarray] = {
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
        table = read_parquet(path)
        _require(path, table.column_names, ("user", "item"))
        users, items = (_texts(path, name, table.column(name)) for name in ("user", "item"))
        optional = {
            name: _numbers(path, name, table.column(name)).astype(dtype) if name in table.column_names else None
            for name, dtype in (("timestamp", np.float64), ("rating", np.float32))
        }
        if unknown := next((row for row, item in enumerate(items, 1) if item not in catalogue.index), None):
            raise ValueError(f"{path}, row {unknown}: item {items[unknown - 1]!r} is not in items.parquet.")
        numbers: dict[str, int] = {}
        user = np.fromiter((numbers.setdefault(u, len(numbers)) for u in users), np.int32, len(users))
        if blank := [u for u in numbers if not u.strip()]:
            raise ValueError(f"{path}, row {users.index(blank[0]) + 1}: the user is empty.")
        return Interactions(list(numbers), user, catalogue.numbers(items), **optional)


@dataclass(frozen=True)
class Splits:
    """Each user's interactions divided into train, validation and test: item numbers int32, oldest first.

    Each list has one array per user, which may be empty. The history of a validation target is `train`; of a test
    target, `train` and `validation`.
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
        parts = {name: _sequences(Path(folder) / "splits" / f"{name}.jsonl", catalogue) for name in SPLITS}
        users = list(dict.fromkeys(user for part in parts.values() for user in part))
        nothing = np.empty(0, np.int32)
        return Splits(users, *([parts[name].get(user, nothing) for user in users] for name in SPLITS))


def has_splits(folder: str | Path) -> bool:
    """Whether a catalogue's folder also has splits of interactions."""
    return (Path(folder) / "splits" / "train.jsonl").is_file()


def load_examples(folder: str | Path, split: str) -> list[Example]:
    """The instruction examples of FOLDER/instructions/SPLIT.jsonl."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}.")
    path = Path(folder) / "instructions" / f"{split}.jsonl"
    found = []
    for where, record in read_json_lines(_existing(path)):
        try:
            found.append(Example.from_record(record))
        except BadExample as error:
            raise BadExample(error.field, error.reason, error.detail, where) from None
    return found


def load_card(folder: str | Path) -> dict[str, object]:
    """FOLDER/card.json."""
    path = _existing(Path(folder) / "card.json")
    card = read_json(path)
    if not isinstance(card, dict):
        raise ValueError(f"{path}: expected a JSON object, found {show(card)}.")
    return card


def save_prepared(
    folder: str | Path,
    catalogue: Catalogue,
    interactions: Interactions,
    splits: Splits,
    examples: Mapping[str, Iterable[Example] | int],
    *,
    source: str,
    settings: Mapping[str, object],
    notes: Mapping[str, int | float | str] | None = None,
) -> dict[str, object]:
    """Writes the whole layout to FOLDER, which exists and is empty; returns the card.

    Args:
      examples: per split, an iterable that is consumed once; or the number of examples, which are not written.
      source: name of the data.
      settings: of the preparation, JSON-serializable.
      notes: further counts, e.g. of dropped records.
    """
    folder = Path(folder)
    catalogue.save(folder)
    interactions.save(folder, catalogue)
    splits.save(folder, catalogue)
    counts = {
        name: made
        if isinstance(made := examples[name], int)
        else write_jsonl(folder / "instructions" / f"{name}.jsonl", (x.to_record() for x in made))
        for name in SPLITS
    }
    users = len(np.unique(interactions.user))
    card: dict[str, object] = {
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
    """sha256 of the content, not of the Parquet bytes, which depend on the writer's version."""
    digest = hashlib.sha256(json.dumps([catalogue.titles, dict(catalogue.facts)], default=str).encode())
    digest.update(catalogue.fingerprint().encode())
    digest.update(json.dumps(interactions.user_ids).encode())
    for column in (interactions.user, interactions.item, interactions.timestamp, interactions.rating):
        digest.update(b"-" if column is None else np.ascontiguousarray(column).data)
    for name in SPLITS:
        for part in ("splits", "instructions"):
            if not (path := folder / part / f"{name}.jsonl").exists():
                continue  # made from the interactions
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _sequences(path: Path, catalogue: Catalogue) -> dict[str, np.ndarray]:
    """User id -> item numbers of a file of splits."""
    found: dict[str, np.ndarray] = {}
    for where, row in read_json_lines(_existing(path)):
        user, items = row.get("user"), row.get("items")
        if not isinstance(user, str) or not isinstance(items, list) or not all(isinstance(i, str) for i in items):
            raise ValueError(
                f'{where}: expected {{"user": text, "items": [texts]}}, found user {show(user)}, items {show(items)}.'
            )
        if user in found:
            raise ValueError(f"{where}: the user {user!r} occurs twice.")
        try:
            found[user] = catalogue.numbers(items)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return found


def _require(path: Path, columns: Iterable[str], names: Sequence[str]) -> None:
    if missing := [name for name in names if name not in columns]:
        raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(columns) or 'none'}.")


def _checked_texts(path: Path, name: str, column: Sequence[object]) -> list[str]:
    """Ids, titles or texts. Raises ValueError naming the row of one that is no text or blank."""
    found = []
    for row, value in enumerate(column, 1):
        if not isinstance(value, str):
            hint = f"; write the column as text ({value!r} as '{value}')" if isinstance(value, int) else ""
            raise ValueError(f"{path}, row {row}: {name} should be a text, but is {show(value)}{hint}.")
        if not value.strip() or "\x00" in value:
            what = "is empty" if not value.strip() else "holds a NUL character, so the file may be damaged"
            raise ValueError(f"{path}, row {row}: the {name} {what}.")
        found.append(value)
    return found


def _checked_facts(path: Path, name: str, column: Sequence[object]) -> list[Fact]:
    """A column of facts of one type: texts, numbers or lists of texts; None for an item without it.

    Raises ValueError naming the row of another value.
    """
    found: list[Fact] = []
    kind: type | None = None
    for row, value in enumerate(column, 1):
        if value is None:
            found.append(None)
            continue
        its = float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)
        if is_fact(value) and kind in (None, its):
            found.append(value)
        else:
            expected = "a text, a number or a list of texts" if kind is None else f"a {kind.__name__} like those before"
            raise ValueError(f"{path}, row {row}: the fact {name} should be {expected}, but is {show(value)}.")
        kind = its
    return found


def is_fact(value: object) -> TypeGuard[Fact]:
    """Whether a value is a text, a number, a list of texts or None."""
    if isinstance(value, list):
        return all(isinstance(entry, str) for entry in value)
    return value is None or isinstance(value, str | int | float) and not isinstance(value, bool)


def _texts(path: Path, name: str, column: pa.ChunkedArray) -> list[str]:
    """A column of texts without nulls, checked by its type (interactions are too many for a loop in Python)."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)) or column.null_count:
        _checked_texts(path, name, column.to_pylist())
        raise ValueError(f"{path}: column {name} should hold texts, but holds {kind}.")
    return column.to_pylist()


def _numbers(path: Path, name: str, column: pa.ChunkedArray) -> np.ndarray:
    """float64 [rows] of a column of finite numbers."""
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise ValueError(f"{path}, row 1: {name} should be a number, but the column is of {column.type}.")
    found = column.to_numpy().astype(np.float64)  # a null becomes NaN
    if len(bad := np.flatnonzero(~np.isfinite(found))):
        raise ValueError(f"{path}, row {bad[0] + 1}: {name} should be a finite number, but is {found[bad[0]]}.")
    return found


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist: {path.parent} is not a prepared folder. "
            "Create one with `python -m instructrec_jax.prepare`."
        )
    return path
