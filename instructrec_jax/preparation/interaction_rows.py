"""Examples made from interactions.parquet when they are read, in place of a JSON line each.

    data.train: [{kind: interactions, path: data/ml, split: train}]        the folder that `prepare` wrote

Row i is the record that `prepare` would have written as line i + 1 of instructions/SPLIT.jsonl, from the same settings
(card.json): where a user's items are comes from one pass over the column of users, so memory holds two numbers a user
and a few row groups, however many interactions there are. Rows in order are cheapest: the examples of a user and the
row group are at hand. A pickled object is the path; another process opens the file itself.
"""

import os
from collections import OrderedDict
from dataclasses import fields
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from instructrec_jax.files import check_type
from instructrec_jax.parsing import open_parquet
from instructrec_jax.preparation.splits import sizes_by_count
from instructrec_jax.preparation.wording.grammar import (
    ExampleWriter,
    GrammarConfig,
    every_position_gives,
    example_counts,
)
from instructrec_jax.ranking.catalogue import SPLITS, Catalogue, load_card

KIND = "interactions"
GROUPS = 8  # row groups in memory: of a million interactions each, 64 MB
BATCH = 1_000_000  # users read at a time while counting


class InteractionRows:
    """The examples of one split of a prepared folder, as `data.rows.Rows`.

    Raises:
      ValueError: not a prepared folder, an unknown split, or settings whose examples cannot be counted in advance.
    """

    columns = None

    def __init__(self, folder: str, split: str) -> None:
        if split not in SPLITS:
            raise ValueError(f"source {folder}: unknown split {split!r}; the splits are {', '.join(SPLITS)}.")
        self.folder, self.split = Path(folder).expanduser(), split
        self.card = load_card(self.folder)
        self.config = grammar_of(self.card, str(self.folder))
        self.path = self.folder / "interactions.parquet"
        starts, train, validation = _users(self.path, self.card)
        counts = np.diff(starts)
        examples = example_counts(train, validation, counts - train - validation, split, self.config)
        self.starts = starts  # int64 [users + 1]: each user's first interaction
        self.sizes = np.stack([train, validation]).astype(np.int32)  # of each user, in train and in validation
        self.ends = np.cumsum(examples)  # int64 [users]: examples up to and with each user's
        self.stat = _identity(self.path)
        if not len(self):
            raise ValueError(f"source {folder}: the split {split} has no examples.")
        self._last: tuple[int, list[dict[str, object]]] = (-1, [])

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def names(self) -> list[str]:
        return [str(self.path)]

    @property
    def sources(self) -> list[str]:
        return [str(self.folder / name) for name in ("interactions.parquet", "items.parquet", "card.json")]

    def __getstate__(self) -> dict[str, object]:
        """What another process needs: no open file and nothing that can be read again."""
        left_out = ("file", "writer", "groups")
        return {k: v for k, v in self.__dict__.items() if k not in left_out} | {"_last": (-1, [])}

    def row(self, index: int) -> dict[str, object]:
        user = int(np.searchsorted(self.ends, index, side="right"))
        if self._last[0] != user:
            self._last = (user, self._records(user))
        records = self._last[1]
        return records[index - (int(self.ends[user]) - len(records))]

    def where(self, index: int) -> str:
        return f"{self.path}, example {index + 1} of {self.split}"

    def _records(self, user: int) -> list[dict[str, object]]:
        """All examples of a user."""
        start, stop = int(self.starts[user]), int(self.starts[user + 1])
        user_id, items = self._items(start, stop)
        sequences = np.split(items, np.cumsum(self.sizes[:, user]))
        before = int(self.ends[user - 1]) if user else 0
        return [e.to_record() for e in self.writer.of_user(user, user_id, sequences, before) if e is not None]

    @cached_property
    def writer(self) -> ExampleWriter:
        return ExampleWriter(Catalogue.load(self.folder), self.split, self.config)

    # -------------------------------------------------------------- the file

    @cached_property
    def file(self) -> pq.ParquetFile:
        if _identity(self.path) != self.stat:
            raise ValueError(f"file {self.path}: it changed while in use; start again.")
        return open_parquet(self.path)

    @cached_property
    def groups(self) -> "OrderedDict[int, tuple[pa.Array, np.ndarray]]":
        """Row group -> (user ids, item numbers), the last used ones."""
        return OrderedDict()

    @cached_property
    def group_ends(self) -> np.ndarray:
        sizes = [self.file.metadata.row_group(number).num_rows for number in range(self.file.num_row_groups)]
        return np.cumsum(sizes)

    def _items(self, start: int, stop: int) -> tuple[str, np.ndarray]:
        """The user of these interactions, and their items, int32 [stop - start]."""
        parts, user_id = [], ""
        for number in range(
            int(np.searchsorted(self.group_ends, start, side="right")),
            int(np.searchsorted(self.group_ends, stop - 1, side="right")) + 1,
        ):
            users, items = self._group(number)
            first = int(self.group_ends[number]) - len(items)
            user_id = user_id or users[max(start - first, 0)].as_py()
            parts.append(items[max(start - first, 0) : stop - first])
        return user_id, np.concatenate(parts)

    def _group(self, number: int) -> tuple[pa.Array, np.ndarray]:
        if number in self.groups:
            self.groups.move_to_end(number)
            return self.groups[number]
        table = self.file.read_row_group(number, columns=["user", "item"])
        users, items = (_encoded(table.column(name)) for name in ("user", "item"))
        import pyarrow.compute as pc  # takes a sixth of a second

        numbers = pc.index_in(items.dictionary, value_set=pa.array(self.writer.catalogue.ids, pa.string()))
        if numbers.null_count:
            unknown = items.dictionary[pc.index(pc.is_null(numbers), True).as_py()].as_py()
            raise ValueError(f"{self.path}, row group {number + 1}: item {unknown!r} is not in items.parquet.")
        self.groups[number] = users, numbers.to_numpy()[items.indices.to_numpy()].astype(np.int32)
        while len(self.groups) > GROUPS:
            self.groups.popitem(last=False)
        return self.groups[number]


def grammar_of(card: dict[str, object], folder: str) -> GrammarConfig:
    """The settings of the instructions, from the card of a prepared folder. Raises ValueError for unusable ones."""
    settings = check_type(card.get("settings"), dict[str, object], f"{folder}/card.json, settings")
    names = {field.name for field in fields(GrammarConfig)}
    if missing := names - set(settings):
        raise ValueError(f"{folder}/card.json has no setting {sorted(missing)[0]!r}: prepare the data again.")
    config = GrammarConfig(**{name: settings[name] for name in names})  # type: ignore[arg-type]
    if why := why_not_on_demand(config, settings.get("teacher") is not None):
        raise ValueError(
            f"source {folder}: {why}, so its examples cannot be made from the interactions: read "
            f"{folder}/instructions/*.jsonl, or prepare it with other settings."
        )
    return config


def why_not_on_demand(config: GrammarConfig, has_teacher: bool) -> str | None:
    """Why examples cannot be made when they are read; None if they can."""
    if config.templates is not None:
        return "it was prepared with templates of your own"
    if has_teacher:
        return "a teacher has reworded its requests"
    if not every_position_gives(config):
        return f"some examples of the forms {', '.join(config.forms)} may lack facts"
    return None


def _users(path: Path, card: dict[str, object]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each user's first interaction int64 [users + 1], and its interactions in train and in validation [users]."""
    settings = check_type(card["settings"], dict[str, object], "card.json, settings")
    how = str(settings["split"])
    cuts = None
    if how == "global_time":
        cuts = [check_type(card.get(name), float, f"card.json, {name}") for name in ("validation_from", "test_from")]
    starts: list[np.ndarray] = []
    parts: list[tuple[int, np.ndarray, np.ndarray]] = []  # of each batch: first user, early and middle entries of each
    last, count, rows = None, 0, 0
    for batch in open_parquet(path).iter_batches(BATCH, columns=["user"] + (["timestamp"] if cuts else [])):
        users = _encoded(pa.chunked_array([batch.column("user")]))
        codes = users.indices.to_numpy()
        new = np.append(last is None or users[0].as_py() != last, codes[1:] != codes[:-1])
        starts.append(rows + np.flatnonzero(new))
        if cuts:
            times, place = batch.column("timestamp").to_numpy(), np.cumsum(new) - int(new[0])
            early, middle = times < cuts[0], (times >= cuts[0]) & (times < cuts[1])
            parts.append((count - 1 + int(new[0]), np.bincount(place[early]), np.bincount(place[middle])))
        last, count, rows = users[-1].as_py(), count + int(new.sum()), rows + len(codes)
    edges = np.concatenate([*starts, [rows]])
    if expected := check_type(card.get("users"), int, f"{path.parent}/card.json, users"):
        if count != expected:
            raise ValueError(
                f"{path}: {count:,} users in a row, but {expected:,} in card.json: the interactions of a user must "
                "stand together, oldest first. Prepare the data again."
            )
    if not cuts:
        train, validation = sizes_by_count(
            np.diff(edges), how, float(str(settings["validation"])), float(str(settings["test"]))
        )
        return edges, train, validation
    train, validation = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for first, early, middle in parts:
        train[first : first + len(early)] += early
        validation[first : first + len(middle)] += middle
    return edges, train, validation


def _encoded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    found = encoded.unify_dictionaries().combine_chunks()
    if found.null_count:
        raise ValueError("interactions.parquet holds an empty user or item: prepare the data again.")
    return found


def _identity(path: Path) -> tuple[int, int]:
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns
