"""Examples given from Python as data: `train_run(settings, train=[Example(...), ...])`.

They become JSON lines in RUN_DIR/given, which the config names as ordinary sources. `tune` reads them from memory and
writes them when the run starts; the other verbs read the files.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from instructrec_jax.data.data_config import Split
from instructrec_jax.data.example import BadExample, Example, show
from instructrec_jax.data.fields import FieldMapper, FieldsConfig
from instructrec_jax.data.listed import listed
from instructrec_jax.data.rows import Rows
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.files import as_json, write_jsonl
from instructrec_jax.remote import BUCKETS, is_url, run_folder
from instructrec_jax.runs.config import Config

FOLDER = "given"  # in the run directory
Given = Mapping[Split, "GivenRows"]
GivenRecords = Iterable[Example | Mapping[str, object]]


@dataclass(frozen=True)
class GivenRows(Rows):
    """Records in memory, as they are read back from their JSON lines. Errors name one as `train[3]`."""

    split: Split
    records: Sequence[dict[str, object]]

    @property
    def columns(self) -> None:
        return None

    def __len__(self) -> int:
        return len(self.records)

    def row(self, index: int) -> dict[str, object]:
        return self.records[index]

    def where(self, index: int) -> str:
        return f"{self.split}[{index}]"


def with_given(config: Config, records: Mapping[Split, GivenRecords | None]) -> tuple[Config, Given]:
    """(the config with RUN_DIR/given/SPLIT.jsonl as the source of each given split, the rows of these files).

    Records have the `fields` and the task of the split's first source in the config, or of data.train's; `Example`s
    have the names of their own fields.

    Args:
      records: of each split; None: the config's own sources.

    Raises ValueError for an empty list, for values that are neither `Example`s nor records, and for a mixture of both;
    BadExample (a ValueError) for an example that JSON lines cannot hold.
    """
    given: dict[Split, GivenRows] = {}
    sources = _sources(config)
    for split, some in records.items():
        if some is None:
            continue
        given_records = _records(split, some)
        source = SourceConfig(path=given_path(config.run_dir, split))
        if isinstance(given_records[0], Example):
            examples = [each for each in given_records if isinstance(each, Example)]
            source = replace(source, fields=fields_of_examples(split, examples))
            mapper = FieldMapper(source.fields)
            rows = [record_of(example, mapper, f"{split}[{number}]") for number, example in enumerate(examples)]
        else:
            own = [*sources[split], *config.data.train]
            source = replace(source, fields=own[0].fields, task=own[0].task) if own else source
            rows = [_record(each, f"{split}[{number}]") for number, each in enumerate(given_records)]
        given[split] = GivenRows(split, rows)
        sources[split] = [source]
    return _with_sources(config, sources), given


def given_file(run_dir: Path, split: Split) -> Path:
    return run_dir / FOLDER / f"{split}.jsonl"


def given_path(run_dir: str, split: Split) -> str:
    """The path or URL of a given file in the settings."""
    return f"{run_dir.rstrip('/')}/{FOLDER}/{split}.jsonl" if is_url(run_dir) else str(given_file(Path(run_dir), split))


def write_given(run_dir: Path, given: Given) -> None:
    """Writes the files; each replaces an earlier one as a whole."""
    for split, rows in given.items():
        write_jsonl(given_file(run_dir, split), rows.records)


def delete_given(run_dir: Path, config: Config) -> None:
    """Deletes an earlier run's files, except those that are sources of `config`."""
    sources = _sources(config)
    kept = {_place(source.path).resolve() for own in sources.values() for source in own}
    for split in sources:
        path = given_file(run_dir, split)
        if path.resolve() not in kept:
            path.unlink(missing_ok=True)


def _place(path: str) -> Path:
    """The local place of a file that may lie in a run directory."""
    in_bucket = path.startswith(tuple(f"{name}://" for name in BUCKETS))
    return run_folder(path) if in_bucket else Path(path)


def relocated(config: Config, run_dir: Path) -> Config:
    """The config of a run in `run_dir`, which may have been moved: its given files lie there."""
    sources = _sources(config)
    then = {given_path(config.run_dir, split): str(given_file(run_dir, split)) for split in sources}

    def moved(source: SourceConfig) -> SourceConfig:
        return replace(source, path=then.get(source.path, source.path))

    return _with_sources(config, {split: [moved(source) for source in own] for split, own in sources.items()})


def _sources(config: Config) -> dict[Split, list[SourceConfig]]:
    return {"train": config.data.train, "validation": config.data.validation, "test": config.data.test}


def _with_sources(config: Config, sources: Mapping[Split, list[SourceConfig]]) -> Config:
    train, validation, test = sources["train"], sources["validation"], sources["test"]
    return replace(config, data=replace(config.data, train=train, validation=validation, test=test))


def fields_of_examples(split: Split, examples: Sequence[Example]) -> FieldsConfig:
    """The fields that read examples; without a target if no example has one.

    Raises BadExample for an example without a target beside others with one (a conversation needs none).
    """
    if all(example.output is None for example in examples):
        return FieldsConfig(output=None)
    for number, example in enumerate(examples):
        if example.output is None and not example.messages:
            detail = f"other examples of {split} have an output, but this one has none: it can only be predicted."
            raise BadExample("output", "missing target", detail, f"{split}[{number}]")
    return FieldsConfig()


def record_of(example: Example, mapper: FieldMapper, where: str) -> dict[str, object]:
    """The record of an example, from which `mapper` reads the same example. Raises BadExample if there is none."""
    record = example.to_record()
    if words := record.pop("words", None):
        record["input"] = words
    found = _record(record, where)
    try:
        read = mapper(found)
    except BadExample as error:
        raise error.at(where) from None
    wrong = [name for name in Example.__slots__ if name != "where" and getattr(read, name) != getattr(example, name)]
    if wrong:
        detail = f"found {show(getattr(example, wrong[0]))}, which JSON lines give back as "
        raise BadExample(wrong[0], "wrong type", f"{detail}{show(getattr(read, wrong[0]))}.", where)
    return found


def _records(split: Split, records: GivenRecords) -> list[Example | Mapping[str, object]]:
    kinds = "a list of `Example`s, or of records such as {'text': ..., 'label': ...}"
    if isinstance(records, str | Path):
        raise ValueError(f"{split} is the path {str(records)!r}, but should be {kinds}. Set data.{split} to a path.")
    found = listed(records, split, (Example, Mapping), kinds, single=False)
    if not found:
        raise ValueError(f"{split} is empty, but should be {kinds}.")
    for number, each in enumerate(found):
        if isinstance(each, Example) != isinstance(found[0], Example):
            raise ValueError(f"{split} mixes `Example`s and records, from {split}[{number}] on: give one kind.")
    return cast(list[Example | Mapping[str, object]], found)


def _record(record: object, where: str) -> dict[str, object]:
    found = as_json(record, where)
    assert isinstance(found, dict)
    return found
