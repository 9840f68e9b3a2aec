"""`prepare inspect`: from data files to a configuration that trains on them."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.data.fields import FieldMapper, FieldsConfig, look_up
from instructrec_jax.files import write_jsonl, write_text
from instructrec_jax.preparation.inspection.columns import Column, Row, profile, read_rows, steps
from instructrec_jax.preparation.inspection.guessing import TIMES, Guess, Setting, Table, guess, order_of_times
from instructrec_jax.preparation.inspection.sizing import length_settings, open_network, rate_settings, step_settings
from instructrec_jax.preparation.inspection.splitting import SPLITS, Parts, divide, labels_of
from instructrec_jax.preparation.inspection.writing import configuration


@dataclass(kw_only=True)
class InspectConfig:
    """Look at the columns of data files and write a configuration that trains on them."""

    out: str = ""
    """the YAML file to write; the splits go to a folder beside it (my.yaml: my.data/)"""
    files: list[str] = field(default_factory=list)
    """data files: jsonl, json, csv, tsv or parquet, also .gz; given without --files"""
    backbone: str | None = None
    """HuggingFace folder or hub id; by default all-MiniLM-L6-v2; language models have no default"""
    target: str | None = None
    """column to learn to predict, where several may be meant"""
    seed: int = 0
    """of the splits"""
    validation: float = 0.1
    """share of the rows for validation"""
    test: float = 0.1
    """share of the rows for test"""
    overwrite: bool = False
    """replace `out` and its folder of splits"""


@dataclass(frozen=True)
class Inspected:
    """What was found, for printing. settings: the YAML file."""

    settings: Path
    guess: Guess
    parts: Parts
    notes: tuple[str, ...]

    def describe(self) -> str:
        """The findings, and the next command."""
        fields = ", ".join(
            f"{name}: {setting.value}" for name, setting in self.guess.fields.items() if name != "ignore"
        )
        counts = ", ".join(f"{len(self.parts.rows[name]):,} {name}" for name in SPLITS)
        return "\n".join(
            [
                f"task    {self.guess.type} ({self.guess.task['type'].why})",
                f"fields  {fields}",
                f"rows    {counts} ({self.parts.why})",
                *(f"note    {note}" for note in self.notes),
                f"written {self.settings}",
                "",
                f"next: python -m instructrec_jax.train --config_path {shlex.quote(str(self.settings))}",
            ]
        )


def inspect(config: InspectConfig) -> Inspected:
    """Writes the configuration and the splits.

    Raises:
      ValueError: files that cannot be read, an existing `out`, or data that no task fits; says what to add.
    """
    out, data = _check(config)
    network = open_network(config.backbone)
    rows, files = read_rows(config.files)
    columns = profile(rows)
    found = guess(Table(columns, len(rows), network.kind, config.target, config.files))
    kept, notes = _usable(rows, columns, found)
    examples = _examples(rows, files, kept, found)
    rows = [rows[i] for i in kept]
    parts = divide(
        rows,
        found,
        files=[files[i] for i in kept],
        times=_times({name: columns[name] for name in columns if name.lower() in TIMES}, kept),
        seed=config.seed,
        validation=config.validation,
        test=config.test,
    )
    if empty := [name for name in SPLITS if not parts.rows[name]]:
        raise ValueError(f"no rows are left for {empty[0]}: add rows, or change --validation and --test.")
    if parts.left_out:
        notes += (f"{parts.left_out:,} rows were left out: their inputs are also in a validation or test file.",)
    found = _with_labels(found, rows, parts)
    sizes = {
        **step_settings(len(parts.rows["train"]), found, network),
        **rate_settings(network),
        **length_settings(examples, found, network),
    }
    for split in SPLITS:
        if parts.rows[split]:
            write_jsonl(data / f"{split}.jsonl", [rows[number] for number in parts.rows[split]])
    text = configuration(out, config.files, found, network, parts, data, sizes, notes)
    return Inspected(write_text(out, text), found, parts, notes)


def split_arguments(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """(files, options with their values) of a command line: arguments without dashes are files."""
    files, options, rest = [], [], list(args)
    while rest:
        arg = rest.pop(0)
        if not arg.startswith("--"):
            files.append(arg)
            continue
        options.append(arg)
        options += [rest.pop(0)] if rest and "=" not in arg and arg != "--help" else []
    return files, options


def _check(config: InspectConfig) -> tuple[Path, Path]:
    """The YAML file and the folder of splits. Raises ValueError for settings that cannot work."""
    if not config.files:
        raise ValueError("name one or more data files: prepare inspect FILE... --out my.yaml.")
    out = Path(config.out)
    if out.suffix not in (".yaml", ".yml"):
        raise ValueError(f"--out {config.out or 'is missing'}: name the .yaml file to write.")
    data = out.with_name(f"{out.stem}.data")
    for path in (out, data):
        if path.exists() and not config.overwrite:
            raise ValueError(f"{path} already exists. Choose another --out, or replace it with `--overwrite true`.")
    for name in ("validation", "test"):
        if not 0 < getattr(config, name) < 0.5:
            raise ValueError(f"--{name} must lie between 0 and 0.5, but is {getattr(config, name)}.")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"--out {out}: {parent} is not a folder that can be written to.")
    return out, data


def _usable(rows: Sequence[Row], columns: Mapping[str, Column], found: Guess) -> tuple[list[int], tuple[str, ...]]:
    """(numbers of the rows with text and target, a note on the others)."""
    needed = list(dict.fromkeys([*found.inputs, found.target]))

    def blank_in(row: Row) -> list[str]:
        """Columns without a value; an empty list may be a target (no label, no answer)."""
        blank = [name for name in needed if _is_blank(look_up(row, name))]
        return [n for n in blank if not (n == found.target and found.blank_targets and look_up(row, n) == [])]

    all_blank = [blank_in(row) for row in rows]
    blank = {name: sum(name in each for each in all_blank) for name in needed}
    kept = [i for i, each in enumerate(all_blank) if not each]
    if len(kept) == len(rows):
        return kept, ()
    listed = ", ".join(f"{count:,} in {name!r}" for name, count in blank.items() if count)
    return kept, (f"{len(rows) - len(kept):,} of {len(rows):,} rows were left out: blank cells ({listed}).",)


def _is_blank(value: object) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in ("", "nan")
    return not isinstance(value, str | int | float | list | dict) or value in ([], {})


def _examples(rows: Sequence[Row], files: Sequence[str], kept: Sequence[int], found: Guess) -> list[Example]:
    """The kept rows as training reads them. Raises BadExample for one that it would refuse."""
    fields = FieldsConfig(**{name: setting.value for name, setting in found.fields.items()})  # type: ignore[arg-type]
    mapper = FieldMapper(fields, numbers=lambda task: found.type == "regression")
    examples = []
    for number in steps(kept, "checking rows"):
        try:
            examples.append(mapper(rows[number]))
        except BadExample as error:
            raise error.at(f"{files[number]}, row {files[: number + 1].count(files[number])}") from None
    return examples


def _times(columns: Mapping[str, Column], kept: Sequence[int]) -> list[float] | None:
    """The time of each kept row, if one of the columns has a time in all of them, and different ones."""
    for name, column in columns.items():
        own = Column(name, [column.values[row] for row in kept])
        if (found := order_of_times(own)) is not None and len(set(found)) > 2:
            return found
    return None


def _with_labels(found: Guess, rows: Sequence[Row], parts: Parts) -> Guess:
    """The guess, with the labels listed if training does not have all of them."""
    if not found.trains_labels:
        return found
    known = {label for number in parts.rows["train"] for label in labels_of(rows[number], found)}
    every = {label for split in SPLITS for number in parts.rows[split] for label in labels_of(rows[number], found)}
    if every <= known:
        return found
    if "label_names" in found.fields:
        names = found.fields["label_names"].value
        every = set(names.values()) if isinstance(names, dict) else every
    task = {**found.task, "labels": Setting(sorted(every), f"{len(every - known)} of them have no training rows")}
    return Guess(task, found.fields, found.inputs, found.target, found.blank_targets)
