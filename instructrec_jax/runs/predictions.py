"""Predictions of an opened run for texts and records without targets.

The rows are mapped by the run's own `data.train.fields`; answers in them are ignored. Each row gets the answer that an
evaluation would write for it, since both come from `Task.answers`.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, cast

from instructrec_jax.data.example import BadExample, Example, check_example
from instructrec_jax.data.fields import FieldMapper, FieldsConfig
from instructrec_jax.data.listed import check_type, listed
from instructrec_jax.data.masked import ExampleMask
from instructrec_jax.data.media.picture_references import NO_FILES, PictureFolder
from instructrec_jax.data.skipped import SkippedRow
from instructrec_jax.data.usual_columns import RecordMapper
from instructrec_jax.extras import require
from instructrec_jax.runs.abstention import Judge
from instructrec_jax.runs.config import Config
from instructrec_jax.tasks.answers import Answer
from instructrec_jax.tasks.base import Encoded, Task, pieces
from instructrec_jax.tasks.encoding import encode_usable
from instructrec_jax.tasks.prediction import Predict

if TYPE_CHECKING:
    import pandas

Record = str | Mapping[str, object] | Example
INPUTS = ("instruction", "input", "messages", "system", "tools", "candidates", "history", "image", "audio")
DROPPED = "text too long"
ANYWHERE = PictureFolder(Path(), (Path("/"),))  # a caller from Python names pictures, as any file
HINT = "Correct the row; `predict --on_bad_row skip` leaves such rows out and lists them."

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predictions(Sequence[Answer]):
    """The answers to records, in their order; see `tasks.answers` for their types."""

    records: Sequence[Mapping[str, object]]
    answers: Sequence[Answer]

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, index: int | slice) -> "Answer | Predictions":  # type: ignore[override]
        if isinstance(index, slice):
            return Predictions(self.records[index], self.answers[index])
        return self.answers[index]

    def __iter__(self) -> Iterator[Answer]:
        return iter(self.answers)

    def __repr__(self) -> str:
        shown = [f"  {answer!r}," for answer in self.answers[:5]]
        more = [f"  ... {len(self) - 5:,} more"] if len(self) > 5 else []
        return "\n".join(["Predictions([", *shown, *more, "])"])

    def to_records(self) -> list[dict[str, object]]:
        """Each record with its prediction, as `python -m instructrec_jax.predict` writes it."""
        return [joined(record, answer) for record, answer in zip(self.records, self.answers, strict=True)]

    def to_pandas(self) -> "pandas.DataFrame":
        """A row per record: its own fields and the prediction's."""
        require("pandas", "Predictions.to_pandas()")
        import pandas  # an extra

        return pandas.DataFrame(self.to_records())


def joined(record: Mapping[str, object], answer: Answer) -> dict[str, object]:
    """A record with its prediction. Raises ValueError where both have a field of the same name."""
    found = answer.to_record()
    if both := [name for name in found if name in record]:
        raise ValueError(f"the input has a column {both[0]!r}, which predictions write too: rename it.")
    return {**record, **found}


def fields_of(config: Config) -> FieldsConfig:
    """The fields of data.train's first source, without the target."""
    own = config.data.train[0].fields if config.data.train else FieldsConfig()
    return without_target(own)


def source_task(config: Config) -> str:
    """The task name of data.train's examples, where its only source sets one."""
    return config.data.train[0].task if len(config.data.train) == 1 else ""


def without_target(own: FieldsConfig) -> FieldsConfig:
    of_target = own.origin is not None and own.origin == (own.output or "").split(".")[0]  # where an answer starts
    origin = "origin" if of_target else own.origin
    return replace(own, output=None, output_type="auto", label_names={}, origin=origin)


def only_column(own: FieldsConfig) -> str:
    """The column that a plain text fills: the only one that the fields read beside defaults.

    Raises ValueError where they read several.
    """
    default = {each.name: each.default for each in fields(FieldsConfig)}
    chosen = {name: value for name in INPUTS if (value := getattr(own, name)) not in (None, default[name])}
    mapper = FieldMapper(own)
    columns = {column for name in chosen if (recipe := mapper.recipes[name]) for column in recipe.columns}
    if not columns:
        return "instruction"
    if len(columns) > 1:
        listed = ", ".join(sorted(columns))
        raise ValueError(f"the run reads several columns ({listed}): give records with these fields instead of texts.")
    return columns.pop()


def _of_row(detail: str) -> str:
    """An error's detail without the number that the example has only here."""
    return re.sub(r"\bexample ('?)\d+\1(?!\w)", "the row", detail)


def rows_of(records: Sequence[Record], own: FieldsConfig) -> list[Mapping[str, object] | Example]:
    """Records with a plain text in the only column that the fields read; see `only_column`."""
    column = only_column(own) if any(isinstance(record, str) for record in records) else ""
    return [{column: record} if isinstance(record, str) else record for record in records]


def where_of(number: int, wheres: Sequence[str] | None) -> str:
    """Where a record stands, for errors: `wheres` has its place in a file; None: its number."""
    return f"record {number}" if wheres is None else wheres[number]


@dataclass(frozen=True)
class Asker:
    """Answers rows with a run's task.

    Attributes:
      mapper: row -> example.
      k: items of a ranking.
      mask: replaces personal data in a record that is an `Example` (the mapper does it in others); None: nothing does.
      images: `images` of data.train's first source, for the pictures of files.
      judge: adds prediction sets and abstention to the answers; None: neither is asked for.
    """

    task: Task
    predict: Predict
    mapper: RecordMapper
    k: int = 10
    mask: Callable[[Example], Example] | None = None
    images: str = ""
    judge: Judge | None = None

    def __post_init__(self) -> None:
        if not self.task.has_answers:
            raise ValueError("the run's task predicts nothing for new texts, but gives their vectors (--vectors).")
        check_type(self.k, "k", (Integral,), "a number of items")
        if self.k < 1:
            raise ValueError(f"k must be at least 1, but is {self.k}.")

    def example(
        self, record: Record, where: str, columns: Sequence[str] | None = None, folder: PictureFolder = NO_FILES
    ) -> Example:
        """The example of a record, with some target, whose pictures lie in `folder`. Raises BadExample."""
        try:
            if isinstance(record, Example):
                found = record if self.mask is None else self.mask(record)
            elif isinstance(record, Mapping):
                found = self.mapper(record, columns, folder)
            else:
                raise BadExample("record", "wrong type", f"expected a text or a record, found {record!r:.60}.")
            return replace(self.task.unanswered(found), where=where)
        except BadExample as error:
            raise error.at(where) from None
        except ValueError as error:
            raise BadExample("", "unusable for the task", str(error), where) from None

    def encode(self, examples: Sequence[Example], *, skip: bool = False) -> tuple[list[Encoded], list[SkippedRow]]:
        """(the examples encoded, their ids the numbers of the given ones; the skipped ones).

        Raises BadExample for an example that the task cannot use, unless `skip`.
        """
        numbered = [replace(example, id=str(number)) for number, example in enumerate(examples)]
        try:
            encoded, skipped = encode_usable(self.task, numbered, "skip" if skip else "error", HINT)
        except BadExample as error:
            raise BadExample(error.field, error.reason, _of_row(error.detail), error.where) from None
        skipped = [replace(row, detail=_of_row(row.detail)) for row in skipped]
        encoded = [e for e in encoded if e.example.id.isdecimal()]  # not the earlier turns of a conversation
        there, listed = {int(e.example.id) for e in encoded}, {row.where for row in skipped}
        for number, example in enumerate(examples):
            if number not in there and example.where not in listed:
                limit = f"longer than data.max_length ({self.task.context.max_length} tokens)"
                row = SkippedRow(example.where, "", DROPPED, f"{limit}, and data.truncate is drop.")
                if not skip:
                    raise BadExample(row.field, row.reason, row.detail, row.where)
                skipped.append(row)
        return encoded, skipped

    def answers(
        self, examples: Sequence[Example], *, skip: bool = False
    ) -> tuple[list[Answer | None], list[SkippedRow]]:
        """(the answer to each example; None for the skipped ones, which are listed). Raises as `encode`."""
        encoded, skipped = self.encode(examples, skip=skip)
        found: list[Answer | None] = [None] * len(examples)
        for own, said in zip(pieces(encoded), self.answer(encoded), strict=True):
            found[int(own[0].example.id)] = said
        return found, skipped

    def answer(self, encoded: Sequence[Encoded]) -> Sequence[Answer]:
        """The answers to encoded examples, one for each entry of `pieces(encoded)`."""
        if not encoded:
            return []
        if self.judge is not None:
            return self.judge.answers(self.predict, encoded)
        return self.task.answers(self.predict, encoded, self.k)


def with_targets(records: object, mapper: RecordMapper, mask: ExampleMask | None) -> list[Example]:
    """The examples of `Example`s or records. Raises ValueError for one without a target."""
    wanted = "the path of a file, or a list of `Example`s or of records with their targets"
    given = cast(list[Example | Mapping[str, object]], listed(records, "records", (Mapping, Example), wanted))
    if not given:
        raise ValueError(f"records is empty, but should be {wanted}.")
    examples = []
    for number, row in enumerate(given):
        try:
            if isinstance(row, Example):
                example = row if mask is None else mask(row)
            else:
                example = mapper(row, folder=ANYWHERE)
            examples.append(replace(check_example(example), where=f"record {number}"))
        except BadExample as error:
            raise error.at(f"record {number}") from None
    return examples
