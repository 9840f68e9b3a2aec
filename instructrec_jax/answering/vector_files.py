"""Vectors of the rows of a file, window by window, resumed like predictions."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from instructrec_jax.answering import prediction_files
from instructrec_jax.answering.output_formats import VECTOR, coded
from instructrec_jax.answering.partial_files import Share
from instructrec_jax.answering.prediction_files import (
    ALONE,
    Counts,
    Row,
    check_out,
    each_row,
    joined_rows,
    pictures_of,
    process_file,
)
from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.data.media.picture import Picture
from instructrec_jax.data.prompts import render
from instructrec_jax.data.skipped import SkippedRow
from instructrec_jax.data.usual_columns import RecordMapper

VECTOR_FORMATS = (".npy", ".parquet")
Encode = Callable[[Sequence[str | Picture]], np.ndarray]


@dataclass(frozen=True)
class VectorAnswer:
    """A vector, as the partial file holds it."""

    coded: str

    def to_record(self) -> dict[str, object]:
        return {VECTOR: self.coded}


def write_vectors(
    encode: Encode,
    mapper: RecordMapper,
    source: Path,
    out: Path,
    *,
    asked: dict[str, object],
    skip: bool = False,
    share: Share = ALONE,
    images: str = "",
) -> Counts:
    """Writes the float32 vectors of a file's rows: .npy [rows, width], or .parquet with the rows' columns and `vector`.

    A row has a text, or one picture. Arguments as in `predict_file`; `images`: the folder of pictures, see
    `PictureFolders`. Row n of a .npy is the vector of row n, so `skip` needs .parquet.

    Raises:
      BadExample (a ValueError): a row without text or picture, or with both. Earlier windows are kept.
      ValueError: as `predict_file`; `skip` with .npy.
    """
    check_out(source, out, VECTOR_FORMATS)
    with_columns, pictures = out.suffix == ".parquet", pictures_of(source, images)
    if skip and not with_columns:
        raise ValueError(
            f"--on_bad_row skip needs --out FILE.parquet: {out} has vectors alone, which could not be told apart if "
            "rows were left out."
        )

    def answer(rows: Iterable[Row], columns: Sequence[str] | None) -> tuple[list[dict[str, object]], list[SkippedRow]]:
        kept: list[tuple[str, dict[str, object]]] = []
        texts: list[str | Picture] = []

        def read(where: str, row: dict[str, object]) -> None:
            texts.append(_encodable(mapper(row, columns, pictures.of(where))))
            kept.append((where, row if with_columns else {}))

        rejected = each_row(read, rows, skip=skip)
        vectors, unusable = _encoded(encode, texts, [where for where, _ in kept], skip=skip)
        answers = [None if vector is None else VectorAnswer(coded(vector)) for vector in vectors]
        records, unwritable = joined_rows(kept, answers, out.suffix, skip=skip)
        return records, [*rejected, *unusable, *unwritable]

    asked = asked | {"vectors": True, "skip": skip}
    return process_file(answer, source, out, asked=asked, share=share, window=prediction_files.WINDOW, vectors=True)


def _encodable(example: Example) -> str | Picture:
    """The text of an example, or its picture. Raises BadExample for both, and for several pictures."""
    said = render(example)
    if not example.images:
        return said
    if said or len(example.images) > 1:
        what = "words beside a picture" if said else f"{len(example.images)} pictures"
        raise BadExample("image", "several things", f"the row has {what}, but a vector is of one text or one picture.")
    return example.images[0]


def _encoded(
    encode: Encode, texts: Sequence[str | Picture], places: Sequence[str], *, skip: bool
) -> tuple[list[np.ndarray | None], list[SkippedRow]]:
    """(the vector of each text; None for the ones that have none, which are listed)."""
    if not texts:
        return [], []
    try:
        return list(encode(texts)), []
    except ValueError as error:
        problem = error
    rejected: dict[int, SkippedRow] = {}
    for number, (text, where) in enumerate(zip(texts, places, strict=True)):  # finds the text that caused it
        try:
            encode([text])
        except ValueError as error:
            bad = BadExample("", "unusable text", re.sub(r"^(text|picture) 0:? ", "", str(error)), where)
            if not skip:
                raise bad from None
            rejected[number] = SkippedRow(where, bad.field, bad.reason, bad.detail)
    if not rejected:
        raise problem
    left = [text for number, text in enumerate(texts) if number not in rejected]
    found: Iterator[np.ndarray] = iter(encode(left) if left else [])
    return [None if number in rejected else next(found) for number in range(len(texts))], list(rejected.values())
