"""Sources of examples: files, HuggingFace `datasets`, `tensorflow-datasets`, lists and streams.

`open_sources` reads every row once, so that bad rows are reported before training starts.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypedDict

from instructrec_jax.data.column_names import is_usual
from instructrec_jax.data.example import (
    BadExample,
    Example,
    check_example,
    check_labels,
    is_blank,
)
from instructrec_jax.data.example_store import Opened, Origin, StoredExamples, read_examples
from instructrec_jax.data.fields import FieldMapper, FieldsConfig, no_numbers
from instructrec_jax.data.file_stream import FileStream
from instructrec_jax.data.fingerprints import digest_of_example, fingerprint
from instructrec_jax.data.hub import DatasetRows, TfdsRows, class_names, fingerprint_of, open_dataset, open_tfds
from instructrec_jax.data.masked import ExampleMask
from instructrec_jax.data.media.picture_references import NO_FOLDERS, PictureFolder, PictureFolders, folders_of
from instructrec_jax.data.mixed_stream import IndexedStream, MixedStream
from instructrec_jax.data.mixture import IndexableSource, Mixture, check_weights
from instructrec_jax.data.rows import Rows, find_files, open_files, open_parallel, suffix_of
from instructrec_jax.data.skipped import OnBadExample, SkippedRow
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.data.storage import Storage, digest_of
from instructrec_jax.data.stream import StreamSource
from instructrec_jax.data.unread import unread_note
from instructrec_jax.data.usual_columns import usual_fields, usual_note
from instructrec_jax.remote import local_file, shown


class RowsOfFiles(Rows, Protocol):
    """Rows of a kind that rooms above know. `names`: files that `where` names; `sources`: files that they come from."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def sources(self) -> Sequence[str]: ...


Kinds = Mapping[str, Callable[[str, str], RowsOfFiles]]

log = logging.getLogger(__name__)


class RowSource(StoredExamples):
    """The valid rows of a file or data set, by number, each parsed once; see `data.example_store`.

    `folder`: of the stores of what is made of them; None: in memory.
    """

    def __init__(self, examples: StoredExamples, name: str, task: str, folder: Path | None = None) -> None:
        super().__init__(examples.store, examples.names, examples.pictures)
        self.name, self.task, self.folder = name, task, folder
        if note := unread_note(name, self.unread, self.rows):
            log.warning(note)


def row_source(rows: Rows, mapper: FieldMapper, name: str, on_bad_example: OnBadExample = "error") -> RowSource:
    """Opened rows as a source, in memory. Raises ValueError for bad rows, or where no row is valid."""
    return RowSource(
        read_examples(Origin(), lambda: Opened(rows, mapper), name, on_bad_example, Storage()), name, mapper.task
    )


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
        for number, example in enumerate(self.examples):
            try:
                check_example(example)
                if labels is not None:
                    check_labels(example, labels)
            except BadExample as error:
                raise BadExample(error.field, error.reason, error.detail, f"{name}[{number}]") from None
        self.fingerprint = fingerprint(self.examples)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def digest(self, index: int) -> bytes:
        return digest_of_example(self.examples[index])


def open_sources(
    configs: Sequence[SourceConfig],
    *,
    labels: Sequence[str] | None = None,
    numbers: Callable[[str], bool] = no_numbers,
    on_bad_example: OnBadExample = "error",
    temperature: float = 1.0,
    size_cap: int | None = None,
    seed: int = 0,
    given: Rows | None = None,
    storage: Storage | None = None,
    task: object = None,
    kinds: Kinds | None = None,
    mask: ExampleMask | None = None,
    optional_output: bool = False,
) -> Mixture | StreamSource | MixedStream:
    """Opens and checks all sources: a `Mixture`, or a stream if one of them is read in order.

    Args:
      labels: unless empty, every output must be one of them.
      numbers: whether the task named so learns from numbers, which are then read from text cells.
      on_bad_example: `error`, or `skip` to list the bad rows in `.skipped`.
      temperature, size_cap: mixture of sources without weights; see `mixture.shares`.
      seed: of all shuffles.
      given: the rows of the only source, a file that does not exist yet.
      storage: where examples are kept; None: in memory.
      kinds: of sources that rooms above know: (path, split) -> their rows.
      task: the settings of the task, which `labels` and `numbers` come from, as JSON.
      mask: replaces personal data in each example; None: nothing is masked. optional_output: it may have no output.

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
    if streams and len(configs) > 1 and not all(weighted):
        hint = "give every source a weight, or set streaming: false."
        raise ValueError(f"source {streams[0].path}: a stream has no size, so its share must be given; {hint}")
    names = _names(configs)
    more = (task, kinds or {}, mask, optional_output)
    reading = _Reading(labels, numbers, on_bad_example, seed, given, storage or Storage(), *more)
    sources = [_open(config, name, reading) for config, name in zip(configs, names, strict=True)]
    if isinstance(sources[0], StreamSource) and len(sources) == 1:
        return sources[0]
    if streams:
        shares = [config.weight or 0 for config in configs]
        check_weights(shares)
        each = [
            source if isinstance(source, StreamSource) else IndexedStream(source, on_bad_example, seed, number)
            for number, source in enumerate(sources)
        ]
        return MixedStream(each, shares)
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
    storage: Storage
    task: object
    kinds: Kinds
    mask: ExampleMask | None
    optional_output: bool


def _open(config: SourceConfig, name: str, reading: _Reading) -> RowSource | StreamSource:
    _check(config, name, reading.on_bad_example)
    _mapper(config, config.fields, reading)  # a setting that cannot be is said before anything is read
    if config.streaming:
        return _stream(config, name, reading)
    key = {"labels": reading.labels, "task": reading.task, "named": config.task, "fields": asdict(config.fields)}
    key |= {"images": config.images} if config.images else {}
    if reading.mask is not None:
        key["mask"] = reading.mask.key()
    if reading.optional_output:
        key["optional_output"] = True
    if reading.given is not None:
        given = reading.given
        origin, opened = Origin(), partial(_usual, lambda columns: given, config, name, reading)
    elif config.targets:
        files = [local_file(each) for each in (config.path, config.targets)]
        there = all(file.is_file() for file in files)  # else opening them says what is missing
        known = {**key, "parallel": digest_of(files)} if there else None
        origin = Origin(files[0], known, [shown(file) for file in files])
        opened = partial(_parallel, config, reading)
    elif config.kind == "file":
        files = find_files(config.path)
        kinds = [suffix_of(file) for file in files]
        known = {**key, "files": digest_of(files), "kinds": kinds}
        origin = Origin(files[0], known, [shown(file) for file in files], folders_of(files, config.images))
        opened = partial(_usual, partial(open_files, files), config, name, reading)
    elif config.kind not in ("datasets", "tfds"):
        if config.kind not in reading.kinds:
            raise ValueError(f"source {name}: kind {config.kind} is not known here.")
        made = reading.kinds[config.kind](config.path, config.split)
        known = {**key, "kind": config.kind, "split": config.split, "files": digest_of(list(map(Path, made.sources)))}
        origin = Origin(Path(made.sources[0]), known, made.names)
        opened = partial(_usual, lambda columns: made, config, name, reading)
    elif config.kind == "tfds":
        origin, opened = Origin(names=[name]), partial(_tfds, config, name, reading)
    else:
        dataset = open_dataset(config.path, config.subset, config.split, streaming=False)
        place = Path(config.path).expanduser()
        known = {**key, "dataset": fingerprint_of(dataset)}
        folders = (PictureFolder(Path(config.images) if config.images else place if place.is_dir() else None),)
        origin = Origin(place if place.exists() else None, known, [name], folders)
        rows = partial(DatasetRows, dataset, name)
        opened = partial(_usual, rows, config, name, reading, dataset.features)
    examples = read_examples(origin, opened, name, reading.on_bad_example, reading.storage)
    for note in examples.notes:
        log.warning(note)
    kept = origin.key is not None
    return RowSource(examples, name, config.task, reading.storage.folder(origin.data) if kept else None)


def _usual(
    open_columns: Callable[[set[str]], Rows],
    config: SourceConfig,
    name: str,
    reading: _Reading,
    features: object = None,
) -> Opened:
    """Rows whose columns may have usual names."""
    fields, rows, note = with_usual_fields(open_columns, config.fields, name)
    return Opened(rows, _mapper(config, fields, reading, features), [note] if note else [])


def _parallel(config: SourceConfig, reading: _Reading) -> Opened:
    return Opened(open_parallel(config.path, config.targets), _mapper(config, config.fields, reading))


def _tfds(config: SourceConfig, name: str, reading: _Reading) -> Opened:
    data, features = open_tfds(config.path, config.split)
    records = TfdsRows(data, name)
    return _usual(lambda columns: records, config, name, reading, features)


def _mapper(config: SourceConfig, fields: FieldsConfig, reading: _Reading, features: object = None) -> FieldMapper:
    settings: _MapperSettings = {
        "task": config.task,
        "labels": reading.labels,
        "numbers": reading.numbers,
        "mask": reading.mask,
        "optional_output": reading.optional_output,
    }
    return FieldMapper(fields, class_names=class_names(features), **settings)


def _stream(config: SourceConfig, name: str, reading: _Reading) -> StreamSource:
    log.warning(
        "source %s is a stream: rows are checked when they are read and shuffled within blocks of %d rows, "
        "the size is unknown, and resuming is exact only if the data does not change. Set streaming: false to "
        "lift these limits.",
        name,
        config.shuffle_block,
    )
    pictures = NO_FOLDERS
    if config.kind == "file":
        files, fields = find_files(config.path), config.fields
        pictures = PictureFolders(tuple(map(shown, files)), folders_of(files, config.images))
        fields, _, note = with_usual_fields(partial(open_files, files[:1]), fields, name)
        if note:
            log.warning(note)
        dataset: Any = FileStream(files, FieldMapper(fields).columns())
    else:
        fields, dataset = config.fields, open_dataset(config.path, config.subset, config.split, streaming=True)
    mapper, block = _mapper(config, fields, reading, dataset.features), config.shuffle_block
    return StreamSource(
        dataset, mapper, name, reading.on_bad_example, shuffle_block=block, seed=reading.seed, pictures=pictures
    )


class _MapperSettings(TypedDict):
    task: str
    labels: Sequence[str] | None
    numbers: Callable[[str], bool]
    mask: ExampleMask | None
    optional_output: bool


def _check(config: SourceConfig, name: str, on_bad_example: str) -> None:
    if on_bad_example not in ("error", "skip"):
        raise ValueError(f"on_bad_example {on_bad_example!r}: must be error or skip.")
    if not config.path:
        raise ValueError("a source has no path: name a file, a folder or a data set.")
    idle = [("streaming", config.streaming and (config.kind == "tfds" or config.targets != ""))]
    idle += [("targets", config.targets != "" and config.kind != "file")]
    idle += [("subset", config.subset is not None and config.kind != "datasets")]
    idle += [("split", config.split != "train" and config.kind == "file")]
    for setting, used in idle:
        if used:
            hint = "drop it" + (" and set path to the file of the split" if setting == "split" else "")
            raise ValueError(f"source {name}: kind {config.kind} does not support {setting}; {hint}.")


def with_usual_fields(
    open_columns: Callable[[set[str]], Rows], fields: FieldsConfig, name: str
) -> tuple[FieldsConfig, Rows, str]:
    """(the fields, completed with columns of usual names; the rows with their columns; a note for the log, or "").

    Args:
      open_columns: opens the rows with the given columns, or with more.
    """
    needed = FieldMapper(fields).columns()
    rows = open_columns(needed)
    columns, row = peek(rows)
    if usual_fields(fields, columns, row) == fields:
        return fields, rows, ""
    if missing := [column for column in columns if column not in row]:  # left out when the rows were opened
        rows = open_columns(needed | {column for column in missing if is_usual(column)})
        columns, row = peek(rows)
    found = usual_fields(fields, columns, row)
    rows = open_columns(FieldMapper(found).columns()) if missing else rows
    return found, rows, usual_note(name, fields, found)


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
