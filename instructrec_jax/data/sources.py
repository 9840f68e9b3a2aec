"""Sources of examples: files, HuggingFace `datasets`, `tensorflow-datasets`, lists and streams.

`open_sources` reads every row once, so that bad rows are reported before training starts.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, TypedDict

from tqdm import tqdm

from instructrec_jax.data.column_names import is_usual
from instructrec_jax.data.example import BadExample, Example, check_example, check_labels, fingerprint_bytes, is_blank
from instructrec_jax.data.fields import FieldMapper, FieldsConfig
from instructrec_jax.data.hub import DatasetRows, TfdsRows, class_names, open_dataset, open_tfds
from instructrec_jax.data.kinds import is_registered, open_kind
from instructrec_jax.data.labels import check_styles
from instructrec_jax.data.mixture import IndexableSource, Mixture
from instructrec_jax.data.rows import Rows, open_parallel, open_rows
from instructrec_jax.data.skipped import OnBadExample, SkippedRow, bad_rows, listing
from instructrec_jax.data.stream import StreamSource
from instructrec_jax.data.unread import unread_note
from instructrec_jax.data.usual_columns import usual_fields, usual_note

Kind = Literal["file", "datasets", "tfds", "interactions"]

log = logging.getLogger(__name__)


@dataclass
class SourceConfig:
    """One source of examples."""

    path: str = ""  # A data file, a folder, a pattern like data/*.jsonl, or the name of a data set.
    kind: Kind = "file"  # file: jsonl, json, csv, tsv, parquet (.gz); datasets: HuggingFace's; interactions: prepared.
    targets: str = ""  # file only: text file whose line n is the output for line n of path (train.en, train.zh).
    name: str = ""  # Name of the source in reports; empty: its path.
    subset: str | None = None  # datasets only: configuration of the data set, for example sst2 of glue.
    split: str = "train"  # not of files: train, test, and of data sets train[:1000] ...
    streaming: bool = False  # datasets only: read rows as they arrive instead of downloading them first.
    shuffle_block: int = 1000  # streaming only: shuffle within blocks of N rows; 1 keeps their order.
    fields: FieldsConfig = field(default_factory=FieldsConfig)  # Columns of each field of an example.
    task: str = ""  # Task name of all examples; empty: each record's own.
    weight: float | None = None  # Share in a mixture, relative to the others; null: by number of examples.


class RowSource:
    """The valid rows of a file or data set, by number, each parsed once when the source is opened.

    Args:
      on_bad_example: `error` raises for bad rows (the first 10), `skip` leaves them out and lists them in `skipped`.

    Raises:
      ValueError: bad rows, or no valid row.
    """

    def __init__(self, rows: Rows, mapper: FieldMapper, name: str, on_bad_example: OnBadExample = "error") -> None:
        self.rows, self.mapper, self.name, self.task = rows, mapper, name, mapper.task
        self.skipped: list[SkippedRow] = []
        self.examples: list[Example] = []
        digest, unread = hashlib.sha256(), Counter[str]()
        hide = len(rows) < 50_000
        for index in tqdm(range(len(rows)), desc=f"checking {name}", unit="row", disable=hide, leave=False):
            try:
                example = self._read(index, unread)
            except BadExample as error:
                self.skipped.append(SkippedRow(error.where, error.field, error.reason, error.detail))
                if on_bad_example == "error" and len(self.skipped) == 10:
                    break
                continue
            digest.update(fingerprint_bytes(example))
            self.examples.append(example)
        self.fingerprint = digest.hexdigest()
        if self.skipped and on_bad_example == "error":
            raise ValueError(bad_rows(name, self.skipped))
        if not self.examples:
            raise ValueError(f"source {name}: none of its {len(rows)} rows is valid.\n{listing(self.skipped)}")
        check_styles(mapper.answer_styles, name)
        if note := unread_note(name, unread, len(rows)):
            log.warning(note)

    def _read(self, index: int, unread: Counter[str]) -> Example:
        """One example; counts the unread fields of its record in `unread`."""
        try:
            row = self.rows.row(index)
            example = self.mapper(row, self.rows.columns)
            unread.update(self.mapper.unread(row, self.rows.columns))
            return replace(example, where=self.rows.where(index))
        except BadExample as error:
            raise error.at(self.rows.where(index)) from None

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


class ListSource:
    """Examples in memory as a source.

    Raises:
      ValueError: no examples. BadExample (a ValueError): an invalid example, or an output that is not a label.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        name: str = "examples",
        task: str = "",
        labels: Sequence[str] | None = None,
    ) -> None:
        if not examples:
            raise ValueError(f"source {name}: holds no examples.")
        self.examples, self.name, self.task = list(examples), name, task
        self.skipped: list[SkippedRow] = []
        digest = hashlib.sha256()
        for number, example in enumerate(self.examples):
            try:
                check_example(example)
                if labels is not None:
                    check_labels(example, labels)
            except BadExample as error:
                raise BadExample(error.field, error.reason, error.detail, f"{name}[{number}]") from None
            digest.update(fingerprint_bytes(example))
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


def open_sources(
    configs: Sequence[SourceConfig],
    *,
    labels: Sequence[str] | None = None,
    numbers: Callable[[str], bool] = lambda task: False,
    on_bad_example: OnBadExample = "error",
    temperature: float = 1.0,
    size_cap: int | None = None,
    seed: int = 0,
    given: Rows | None = None,
) -> Mixture | StreamSource:
    """Opens and checks all sources: a `Mixture`, or the stream if there is one.

    Args:
      labels: unless empty, every output must be one of them.
      numbers: whether the task named so learns from numbers, which are then read from text cells.
      on_bad_example: `error`, or `skip` to list the bad rows in `.skipped`.
      temperature, size_cap: mixture of sources without weights; see `mixture.shares`.
      seed: of all shuffles.
      given: the rows of the only source, a file that does not exist yet.

    Raises:
      ValueError: a source cannot be opened, rows are bad or missing, or settings contradict each other.
    """
    if not configs:
        raise ValueError("there are no sources: name at least one file or data set.")
    labels = labels or None
    weighted = [config.weight is not None for config in configs]
    if any(weighted) and not all(weighted):
        raise ValueError(f"source {configs[weighted.index(False)].path}: give a weight to every source or to none.")
    streams = [config for config in configs if config.streaming]
    if streams and len(configs) > 1:
        hint = "set streaming: false to mix it, or train on it alone."
        raise ValueError(f"source {streams[0].path}: a stream has no size and cannot be mixed with others; {hint}")
    names = _names(configs)
    reading = _Reading(labels, numbers, on_bad_example, seed, given)
    sources = [_open(config, name, reading) for config, name in zip(configs, names, strict=True)]
    if isinstance(sources[0], StreamSource):
        return sources[0]
    weights = [config.weight for config in configs if config.weight is not None] or None
    indexable: list[IndexableSource] = [source for source in sources if not isinstance(source, StreamSource)]
    return Mixture(indexable, weights=weights, temperature=temperature, size_cap=size_cap, seed=seed)


def _names(configs: Sequence[SourceConfig]) -> list[str]:
    names: list[str] = []
    for config in configs:
        parts = [config.path, config.subset, config.split if config.kind != "file" else None]
        name = config.name or "/".join(part for part in parts if part)
        names.append(f"{name} ({names.count(name) + 1})" if name in names else name)
    return names


@dataclass(frozen=True)
class _Reading:
    """How the rows of all sources are read; see `open_sources`."""

    labels: Sequence[str] | None
    numbers: Callable[[str], bool]
    on_bad_example: OnBadExample
    seed: int
    given: Rows | None


def _open(config: SourceConfig, name: str, reading: _Reading) -> RowSource | StreamSource:
    _check(config, name, reading.on_bad_example)
    fields, bad = config.fields, reading.on_bad_example

    def mapper(fields: FieldsConfig, features: object = None) -> FieldMapper:
        settings: _MapperSettings = {"task": config.task, "labels": reading.labels, "numbers": reading.numbers}
        return FieldMapper(fields, class_names=class_names(features), **settings)

    if (given := reading.given) is not None:
        fields, rows = with_usual_fields(lambda columns: given, fields, name)
        return RowSource(rows, mapper(fields), name, bad)
    if config.targets:
        return RowSource(open_parallel(config.path, config.targets), mapper(fields), name, bad)
    if config.kind == "file":
        fields, rows = with_usual_fields(partial(open_rows, config.path), fields, name)
        return RowSource(rows, mapper(fields), name, bad)
    if is_registered(config.kind):
        made = open_kind(config.kind, config.path, config.split)
        fields, rows = with_usual_fields(lambda columns: made, fields, name)
        return RowSource(rows, mapper(fields), name, bad)
    if config.kind == "tfds":
        data, features = open_tfds(config.path, config.split)
        records = TfdsRows(data, name)
        fields, rows = with_usual_fields(lambda columns: records, fields, name)
        return RowSource(rows, mapper(fields, features), name, bad)
    dataset = open_dataset(config.path, config.subset, config.split, config.streaming)
    if not config.streaming:
        fields, rows = with_usual_fields(partial(DatasetRows, dataset, name), fields, name)
        return RowSource(rows, mapper(fields, dataset.features), name, bad)
    log.warning(
        "source %s is a stream: rows are checked when they are read and shuffled within blocks of %d rows, "
        "the size is unknown, and resuming is exact only if the data does not change. Set streaming: false to "
        "lift these limits.",
        name,
        config.shuffle_block,
    )
    mapped, block = mapper(fields, dataset.features), config.shuffle_block
    return StreamSource(dataset, mapped, name, bad, shuffle_block=block, seed=reading.seed)


class _MapperSettings(TypedDict):
    task: str
    labels: Sequence[str] | None
    numbers: Callable[[str], bool]


def _check(config: SourceConfig, name: str, on_bad_example: str) -> None:
    if on_bad_example not in ("error", "skip"):
        raise ValueError(f"on_bad_example {on_bad_example!r}: must be error or skip.")
    if not config.path:
        raise ValueError("a source has no path: name a file, a folder or a data set.")
    idle = [("streaming", config.streaming and config.kind != "datasets")]
    idle += [("targets", config.targets != "" and config.kind != "file")]
    idle += [("subset", config.subset is not None and config.kind != "datasets")]
    idle += [("split", config.split != "train" and config.kind == "file")]
    for setting, used in idle:
        if used:
            hint = "drop it" + (" and set path to the file of the split" if setting == "split" else "")
            raise ValueError(f"source {name}: kind {config.kind} does not support {setting}; {hint}.")


def with_usual_fields(
    open_columns: Callable[[set[str]], Rows], fields: FieldsConfig, name: str
) -> tuple[FieldsConfig, Rows]:
    """The fields, completed with columns of usual names (which the log then says), and the rows with their columns.

    Args:
      open_columns: opens the rows with the given columns, or with more.
    """
    needed = FieldMapper(fields).columns()
    rows = open_columns(needed)
    columns, row = peek(rows)
    if usual_fields(fields, columns, row) == fields:
        return fields, rows
    if missing := [column for column in columns if column not in row]:  # left out when the rows were opened
        rows = open_columns(needed | {column for column in missing if is_usual(column)})
        columns, row = peek(rows)
    found = usual_fields(fields, columns, row)
    log.warning(usual_note(name, fields, found))
    return found, open_columns(FieldMapper(found).columns()) if missing else rows


def peek(rows: Rows, count: int = 20) -> tuple[list[str], dict[str, object]]:
    """(all columns of the first rows, their first values that are not blank). Damaged rows are left out."""
    row: dict[str, object] = {}
    for index in range(min(count, len(rows))):
        try:
            found = rows.row(index)
        except BadExample:
            continue
        row |= {column: value for column, value in found.items() if column not in row or is_blank(row[column])}
    return list(row if rows.columns is None else rows.columns), row
