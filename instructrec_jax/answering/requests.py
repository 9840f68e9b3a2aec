"""Requests and answers of `recommend`, and their files."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from instructrec_jax.answering.evidence import Evidence, line
from instructrec_jax.answering.titles import Titles
from instructrec_jax.data.example import BadExample, show, suggest
from instructrec_jax.data.media.picture import Picture
from instructrec_jax.data.media.picture_references import NO_FILES, PictureFolder, folders_of, read_pictures
from instructrec_jax.data.rows import open_rows
from instructrec_jax.files import write_jsonl, write_text

COLUMNS = ("id", "user", "rank", "item", "title", "score", "evidence", "prompt", "notes", "error")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request. At least one of user, history, instruction, prompt and image is needed.

    Attributes:
      user: id of a user of the prepared folder, whose items (of all splits) begin the history.
      history: titles or ids, oldest first; one text may contain several, separated by semicolons.
      prompt: instead of the instruction: the model's whole input text, as in training and test examples.
      image: a picture that the items' pictures should be like; in records a path beside the file, or base64.
      exclude: titles of items to leave out.
      where: conditions on the catalogue's facts (see `filters`).
      k: number of items; None: the call's `k`.
      id: any JSON value, returned with the answer.
    """

    user: str | None = None
    history: Sequence[str] = ()
    instruction: str = ""
    prompt: str = ""
    image: Picture | None = None
    exclude: Sequence[str] = ()
    where: Sequence[str] = ()
    k: int | None = None
    id: object = None

    def __post_init__(self) -> None:
        for name in ("history", "exclude", "where"):
            object.__setattr__(self, name, _texts(vars(self), name))  # one text is a list of one

    @classmethod
    def from_record(cls, record: Mapping[str, object], folder: PictureFolder = NO_FILES) -> "Request":
        """A request from a record of a file.

        Args:
          folder: where the path of a picture starts; by default pictures are base64.

        Raises ValueError for unknown fields, wrong types and a picture that is not there.
        """
        known = list(cls.__dataclass_fields__)
        for name in record:
            if name not in known:
                raise ValueError(
                    f"unknown field {name!r}; a request has {', '.join(known)}.{suggest(str(name), known)}"
                )
        given = {name: value for name, value in record.items() if value not in (None, "", [])}
        if isinstance(user := given.get("user"), int) and not isinstance(user, bool):
            given["user"] = str(user)
        return cls(
            user=_text(given, "user"),
            instruction=_text(given, "instruction") or "",
            prompt=_text(given, "prompt") or "",
            image=read_image(given.get("image"), folder),
            history=_texts(given, "history"),
            exclude=_texts(given, "exclude"),
            where=_texts(given, "where"),
            k=_count(given, "k"),
            id=given.get("id"),
        )


def read_image(value: object, folder: PictureFolder) -> Picture | None:
    """The picture of a request. Raises ValueError for a URL, a missing file, or several pictures."""
    if isinstance(value, Picture):
        return value
    try:
        found = read_pictures(value, folder)
    except BadExample as error:
        raise ValueError(f"image: {error.detail}") from None
    if len(found) > 1:
        raise ValueError(f"image must be one picture, but here are {len(found)}.")
    return found[0] if found else None


def _text(given: Mapping[str, object], name: str) -> str | None:
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} must be a text, but is {show(value)}.")
    return value


def _texts(given: Mapping[str, object], name: str) -> tuple[str, ...]:
    value = given.get(name, [])
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple) or not all(isinstance(text, str) for text in listed):
        raise ValueError(f"{name} must be a text or a list of texts, but is {show(value)}.")
    return tuple(listed)


def _count(given: Mapping[str, object], name: str) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
        if number == int(number):
            return int(number)
    except (ValueError, OverflowError):
        pass  # not a number, NaN or infinity
    raise ValueError(f"{name} must be a whole number, but is {show(value)}.")


@dataclass(frozen=True)
class Recommendation:
    """One recommended item."""

    item: str
    title: str
    """with its year, if known"""
    score: float
    rank: int
    evidence: Sequence[Evidence] = ()

    def to_record(self) -> dict[str, object]:
        evidence = [{"kind": e.part.kind, "text": e.part.text, "contribution": e.contribution} for e in self.evidence]
        return {"rank": self.rank, "item": self.item, "title": self.title, "score": self.score, "evidence": evidence}


@dataclass
class Answer:
    """The answer to a request: recommendations, or an error.

    Attributes:
      prompt: the text that the model read.
      history: names of the items of the history, oldest first.
      notes: remarks on the interpretation of the request.
    """

    id: object = None
    user: str | None = None
    prompt: str = ""
    history: list[str] = field(default_factory=list)
    recommendations: list[Recommendation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str | None = None

    def to_record(self) -> dict[str, object]:
        record: dict[str, object] = {"id": self.id} | ({} if self.user is None else {"user": self.user})
        if self.error is not None:
            return record | {"error": self.error}
        recommendations = [r.to_record() for r in self.recommendations]
        said = {"prompt": self.prompt, "history": self.history}
        return record | said | {"recommendations": recommendations, "notes": self.notes}


def split_titles(titles: Titles, texts: Sequence[str]) -> list[str]:
    """The titles between semicolons, unless the whole text is a title."""
    found = []
    for text in texts:
        match = None if ";" not in text else titles.find(text)
        whole = match is None or (match.items and not match.close)
        found += [text.strip()] if whole else [part.strip() for part in text.split(";")]
    return [text for text in found if text]


def read_requests(file: str | Path) -> list[Request | Answer]:
    """The requests of a JSONL, JSON, CSV, TSV or Parquet file; an invalid record becomes an answer with an `error`.

    The default `id` is the record's number, from 1; an unreadable record has none.

    Raises ValueError for an unreadable file, and for a table with unknown columns.
    """
    rows, (folder,) = open_rows(str(file)), folders_of([Path(file)])
    found: list[Request | Answer] = []
    is_table = Path(str(file).removesuffix(".gz")).suffix in (".csv", ".tsv", ".parquet")
    for index in range(len(rows)):
        name: object = None
        try:
            record = rows.row(index)
            name = record["id"] if record.get("id") not in (None, "") else index + 1
            if is_table:
                _check_columns(record, file)
                record = {key: _cells(value) if key == "where" else value for key, value in record.items()}
            found.append(Request.from_record({**record, "id": name}, folder))
        except _BadTable:
            raise
        except BadExample as error:
            found.append(Answer(id=name, error=f"{rows.where(index)}: {error.detail}"))
        except ValueError as error:
            found.append(Answer(id=name, error=f"{rows.where(index)}: {error}"))
    return found


class _BadTable(ValueError):
    """A table whose columns are not those of requests."""


def _check_columns(record: Mapping[str, object], file: str | Path) -> None:
    known = list(Request.__dataclass_fields__)
    needed = ("user", "history", "instruction", "prompt", "image")
    for name in record:
        if name not in known:
            hint = suggest(str(name), known)
            raise _BadTable(f"{file}: unknown column {name!r}; a request has {', '.join(known)}.{hint}")
    if not set(needed) & set(record):
        raise _BadTable(f"{file} has the columns {', '.join(record)}; a request needs one of {', '.join(needed)}.")


def _cells(value: object) -> object:
    return [part.strip() for part in value.split(";") if part.strip()] if isinstance(value, str) else value


def check_out(file: Path) -> None:
    """Raises ValueError if the file for answers exists or has an unknown suffix."""
    if file.suffix not in (".jsonl", ".csv"):
        raise ValueError(f"--out {file}: the suffix must be .jsonl (one request per line) or .csv (one item per line).")
    if file.exists():
        raise ValueError(f"{file} exists already: choose another --out.")


def write_answers(file: Path, answers: Sequence[Answer]) -> None:
    """Writes JSONL with a record per request, or CSV with a line per item (and per request without items)."""
    if file.suffix == ".jsonl":
        write_jsonl(file, (answer.to_record() for answer in answers))
        return
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows(row for answer in answers for row in _rows(answer))
    write_text(file, text.getvalue())


def _rows(answer: Answer) -> Iterator[list[object]]:
    name = answer.id if isinstance(answer.id, str | int | float) else json.dumps(answer.id, ensure_ascii=False)
    around = [name, answer.user], [answer.prompt, " ".join(answer.notes), answer.error]
    if not answer.recommendations:
        yield [*around[0], *[None] * 5, *around[1]]
    for r in answer.recommendations:
        yield [*around[0], r.rank, r.item, r.title, r.score, line(r.evidence), *around[1]]
