"""The records that `explain` is asked about."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from instructrec_jax.answering.prediction_files import pictures_of
from instructrec_jax.answering.records import read_records
from instructrec_jax.data.example import Example
from instructrec_jax.data.media.picture import picture_of
from instructrec_jax.data.media.picture_references import PictureFolder
from instructrec_jax.runs.predictions import Record
from instructrec_jax.runs.run import Run


def _one_record(text: str | None, image: Path | None) -> Record:
    """A text, a picture, or a text with a picture. Raises ValueError for a picture that cannot be read."""
    if image is None:
        return text or ""
    try:
        return Example(instruction=text or "", output=None, images=(picture_of(image),))
    except OSError as error:
        raise ValueError(f"--image {image} cannot be read ({error.strerror or error}).") from error


@dataclass(frozen=True)
class Asking:
    """The records that are asked about.

    Attributes:
      wheres: where each stands in a file; None: they stand in none.
      folders: where the pictures of each lie; None: in any file.
    """

    records: list[Record]
    wheres: list[str] | None = None
    folders: list[PictureFolder] | None = None


def records_of(options: argparse.Namespace, run: Run) -> Asking:
    """The records that the options name; none of --faithful.

    Raises BadExample for an unreadable one, and ValueError for a picture that cannot be read.
    """
    if options.faithful:
        return Asking([])
    if options.input is None:
        return Asking([_one_record(options.text, options.image)])
    return _records_in(options.input, run.asker().images)


def _records_in(source: Path, images: str) -> Asking:
    """The records of a file. Raises BadExample for an unreadable one.

    Args:
      images: another folder of pictures than that of the file, see `Asker.images`.
    """
    pictures = pictures_of(source, images)
    found: list[Record] = []
    wheres: list[str] = []
    for where, record in read_records(str(source)):
        if isinstance(record, Exception):
            raise record
        found.append(record)
        wheres.append(where)
    if not found:
        raise ValueError(f"{source} has no records.")
    return Asking(found, wheres, [pictures.of(where) for where in wheres])
