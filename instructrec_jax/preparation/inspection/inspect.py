"""`prepare inspect`: from data files to a configuration that trains on them."""

import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.data.fields import FieldMapper, FieldsConfig, look_up
from instructrec_jax.files import jsonl_writer, write_text
from instructrec_jax.preparation.inspection.columns import TIMES, Profile, Row, RowStream, filled, profile, time_of
from instructrec_jax.preparation.inspection.guessing import AnswerPlace, answer_place, guess, with_answers
from instructrec_jax.preparation.inspection.sizing import length_settings, open_network, rate_settings, step_settings
from instructrec_jax.preparation.inspection.splitting import LEFT_OUT, SPLITS, Parts, Rows, divide
from instructrec_jax.preparation.inspection.table import Guess, Setting, Table
from instructrec_jax.preparation.inspection.writing import configuration
from instructrec_jax.preparation.own_config import InspectConfig

FEW = 50  # training rows of a label, on average, below which a fitted head is proposed


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
        counts = ", ".join(f"{self.parts.counts[name]:,} {name}" for name in SPLITS)
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
    """Writes the configuration and the splits. The rows are read three times: to guess, to check and to write them.

    Raises:
      ValueError: files that cannot be read, an existing `out`, or data that no task fits; says what to add.
    """
    out, data = _check(config)
    network = open_network(config.backbone)
    stream = RowStream(config.files)
    profiled = profile(stream, config.seed)
    sample = list(profiled.sample.values())
    found = guess(Table(profiled.columns, profiled.rows, sample, network.kind, config.target, config.files))
    checked = _checked(stream, profiled, found, config)
    found, notes = checked.guess, checked.notes
    parts = divide(checked.rows, files=config.files, validation=config.validation, test=config.test)
    if empty := [name for name in SPLITS if not parts.counts[name]]:
        raise ValueError(f"no rows are left for {empty[0]}: add rows, or change --validation and --test.")
    if parts.left_out:
        notes += (f"{parts.left_out:,} rows were left out: their inputs are also in a validation or test file.",)
    found = _with_labels(found, checked.rows, parts)
    if network.sentences:
        notes += _few_labels(found, checked.rows, parts)
    all_measured = len(checked.sample) == checked.rows.length
    sizes = {
        **step_settings(parts.counts["train"], found, network),
        **rate_settings(network),
        **length_settings(checked.sample, found, network, complete=all_measured),
    }
    _write_splits(data, stream, checked.usable, parts)
    text = configuration(out, config.files, found, network, parts, data, sizes, notes)
    return Inspected(write_text(out, text), found, parts, notes)


def _check(config: InspectConfig) -> tuple[Path, Path]:
    """The YAML file and the folder of splits. Raises ValueError for settings that cannot work."""
    if not config.files:
        raise ValueError("name one or more data files: prepare inspect FILE... --out my.yaml.")
    if twice := [file for file, count in Counter(config.files).items() if count > 1]:
        raise ValueError(f"{twice[0]} is named twice: name it once.")
    out = Path(config.out)
    if out.suffix not in (".yaml", ".yml"):
        raise ValueError(f"--out {config.out or 'is missing'}: name the .yaml file to write.")
    data = out.with_name(f"{out.stem}.data")
    for name in ("kind", "split", "fields", "template", "enable_thinking", "max_length"):
        if getattr(config, name) != getattr(InspectConfig(), name):
            raise ValueError(f"--{name} is for showing only: leave out --out, or change {name} in the file it writes.")
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


@dataclass(frozen=True)
class _Checked:
    """What reading all rows by the guess has found.

    Attributes:
      guess: with the settings that depend on all rows.
      usable: bool [all rows]: whether a row has text and target.
      rows: of the usable ones.
      sample: the usable ones of the sampled rows, as training reads them.
      notes: on the others.
    """

    guess: Guess
    usable: np.ndarray
    rows: Rows
    sample: list[Example]
    notes: tuple[str, ...]


def _checked(stream: RowStream, profiled: Profile, found: Guess, config: InspectConfig) -> _Checked:
    """Reads every row as training does. Raises BadExample for one that it would refuse."""
    fields = FieldsConfig(**{name: setting.value for name, setting in found.fields.items()})  # type: ignore[arg-type]
    mapper = FieldMapper(fields, numbers=lambda task: found.type == "regression")
    needed = list(dict.fromkeys([*found.inputs, found.target]))
    files = {file: number for number, file in enumerate(stream.opened)}
    times = {name: np.full(profiled.rows, np.nan) for name in profiled.columns if name.lower() in TIMES}
    usable, rows = np.zeros(profiled.rows, bool), Rows(profiled.rows, config.seed, found)
    blank, places = Counter[str](), Counter[AnswerPlace]()
    sample: list[Example] = []
    before: Counter[str] = Counter()  # rows of each file
    for number, (file, row) in enumerate(stream):
        before[file] += 1
        if blank_here := _blank_in(row, needed, found):
            blank.update(blank_here)
            continue
        usable[number] = True
        try:
            example = mapper(row)
        except BadExample as error:
            raise error.at(f"{file}, row {before[file]}") from None
        if number in profiled.sample:
            sample.append(example)
        rows.add(row, files[file])
        for name, own in times.items():
            moment = time_of(filled(row.get(name)))
            own[number] = np.nan if moment is None else moment
        if found.type == "span":
            places[answer_place(row, found)] += 1
    rows.finish(_times(times, usable))
    notes: tuple[str, ...] = ()
    if rows.length < profiled.rows:
        listed = ", ".join(f"{count:,} in {name!r}" for name in needed if (count := blank[name]))
        left = profiled.rows - rows.length
        notes = (f"{left:,} of {profiled.rows:,} rows were left out: blank cells ({listed}).",)
    found = with_answers(found, places) if found.type == "span" else found
    return _Checked(found, usable, rows, sample, notes)


def _blank_in(row: Row, needed: Sequence[str], found: Guess) -> list[str]:
    """Columns without a value; an empty list may be a target (no label, no answer)."""
    blank = [name for name in needed if _is_blank(look_up(row, name))]
    return [n for n in blank if not (n == found.target and found.blank_targets and look_up(row, n) == [])]


def _is_blank(value: object) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in ("", "nan")
    return not isinstance(value, str | int | float | list | dict) or value in ([], {})


def _times(columns: Mapping[str, np.ndarray], usable: np.ndarray) -> np.ndarray | None:
    """The time of each usable row, if one of the columns has a time in all of them, and different ones."""
    for column in columns.values():
        own = column[usable]
        if not np.isnan(own).any() and len(np.unique(own)) > 2:
            return own
    return None


def _write_splits(folder: Path, stream: RowStream, usable: np.ndarray, parts: Parts) -> None:
    with ExitStack() as files:
        writers = [files.enter_context(jsonl_writer(folder / f"{name}.jsonl")) for name in SPLITS if parts.counts[name]]
        split = iter(parts.split.tolist())
        for is_usable, (_, row) in zip(usable.tolist(), stream, strict=True):
            if is_usable and (number := next(split)) != LEFT_OUT:
                writers[number](row)


def _few_labels(found: Guess, rows: Rows, parts: Parts) -> tuple[str, ...]:
    """A proposal for few examples of each label."""
    if found.type != "classification" or "labels" in found.task:  # the proposal needs a row of each label
        return ()
    mean = parts.counts["train"] / len(rows.labels_in(parts.split == SPLITS.index("train")))
    if mean >= FEW:
        return ()
    return (
        f"a label has {mean:.0f} training rows on average: try task.type: vector_classification, too, which begins "
        "with a head fitted to the backbone's vectors instead of a random one.",
    )


def _with_labels(found: Guess, rows: Rows, parts: Parts) -> Guess:
    """The guess, with the labels listed if training does not have all of them."""
    if not found.trains_labels:
        return found
    known, every = rows.labels_in(parts.split == SPLITS.index("train")), rows.labels_in(parts.split != LEFT_OUT)
    if every <= known:
        return found
    if "label_names" in found.fields:
        names = found.fields["label_names"].value
        every = set(names.values()) if isinstance(names, dict) else every
    task = {**found.task, "labels": Setting(sorted(every), f"{len(every - known)} of them have no training rows")}
    return replace(found, task=task)
