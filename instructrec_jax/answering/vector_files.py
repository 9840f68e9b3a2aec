"""Vectors of the rows of a file, window by window, resumed like predictions."""

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
    process_file,
)
from instructrec_jax.data.example import BadExample
from instructrec_jax.data.prompts import render
from instructrec_jax.data.skipped import SkippedRow
from instructrec_jax.data.usual_columns import RecordMapper

VECTOR_FORMATS = (".npy", ".parquet")
Encode = Callable[[Sequence[str]], np.ndarray]


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
) -> Counts:
    """Writes the float32 vectors of a file's rows: .npy [rows, width], or .parquet with the rows' columns and `vector`.

    Arguments as in `predict_file`. Row n of a .npy is the vector of row n, so `skip` needs .parquet.

    Raises:
      BadExample (a ValueError): a row without text. Earlier windows are kept.
      ValueError: as `predict_file`; `skip` with .npy.
    """
    check_out(source, out, VECTOR_FORMATS)
    with_columns = out.suffix == ".parquet"
    if skip and not with_columns:
        raise ValueError(
            f"--on_bad_row skip needs --out FILE.parquet: {out} has vectors alone, which could not be told apart if "
            "rows were left out."
        )

    def answer(rows: Iterable[Row], columns: Sequence[str] | None) -> tuple[list[dict[str, object]], list[SkippedRow]]:
        kept: list[tuple[str, dict[str, object]]] = []
        texts: list[str] = []

        def read(where: str, row: dict[str, object]) -> None:
            texts.append(render(mapper(row, columns)))
            kept.append((where, row if with_columns else {}))

        rejected = each_row(read, rows, skip=skip)
        vectors, unusable = _encoded(encode, texts, [where for where, _ in kept], skip=skip)
        answers = [None if vector is None else VectorAnswer(coded(vector)) for vector in vectors]
        records, unwritable = joined_rows(kept, answers, out.suffix, skip=skip)
        return records, [*rejected, *unusable, *unwritable]

    asked = asked | {"vectors": True, "skip": skip}
    return process_file(answer, source, out, asked=asked, share=share, window=prediction_files.WINDOW, vectors=True)


def _encoded(
    encode: Encode, texts: Sequence[str], places: Sequence[str], *, skip: bool
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
            bad = BadExample("", "unusable text", str(error).removeprefix("text 0 "), where)
            if not skip:
                raise bad from None
            rejected[number] = SkippedRow(where, bad.field, bad.reason, bad.detail)
    if not rejected:
        raise problem
    left = [text for number, text in enumerate(texts) if number not in rejected]
    found: Iterator[np.ndarray] = iter(encode(left) if left else [])
    return [None if number in rejected else next(found) for number in range(len(texts))], list(rejected.values())
