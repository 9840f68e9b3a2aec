"""The records that `explain` is asked about, and the files that it writes."""

from collections.abc import Sequence
from pathlib import Path

from instructrec_jax.answering.prediction_files import pictures_of
from instructrec_jax.answering.records import read_records
from instructrec_jax.data.example import Example
from instructrec_jax.data.media.picture import picture_of
from instructrec_jax.data.media.picture_references import PictureFolder
from instructrec_jax.data.media.pixels import PixelReader
from instructrec_jax.explanation.explain import Explanation
from instructrec_jax.explanation.page import page_of
from instructrec_jax.files import jsonl_writer, write_text
from instructrec_jax.runs.predictions import Record


def one_record(text: str | None, image: Path | None) -> Record:
    """A text, a picture, or a text with a picture. Raises ValueError for a picture that cannot be read."""
    if image is None:
        return text or ""
    try:
        return Example(instruction=text or "", output=None, images=(picture_of(image),))
    except OSError as error:
        raise ValueError(f"--image {image} cannot be read ({error.strerror or error}).") from error


def records_of(source: Path, images: str) -> tuple[list[Record], list[PictureFolder]]:
    """The records of a file, and where the pictures of each lie. Raises BadExample for an unreadable one.

    Args:
      images: another folder of pictures than that of the file, see `Asker.images`.
    """
    pictures = pictures_of(source, images)
    found: list[Record] = []
    folders: list[PictureFolder] = []
    for where, record in read_records(str(source)):
        if isinstance(record, Exception):
            raise record
        found.append(record)
        folders.append(pictures.of(where))
    if not found:
        raise ValueError(f"{source} has no records.")
    return found, folders


def check_ending(out: Path | None) -> None:
    """Raises ValueError for a file to write that is neither .jsonl nor .html."""
    if out is not None and out.suffix not in (".jsonl", ".html"):
        raise ValueError(f"--out {out} should end in .jsonl or .html.")


def write(out: Path, explanations: Sequence[Explanation], reader: PixelReader | None) -> None:
    """A record per explanation or, of a file .html, a page of heat maps. reader: of the run's pictures."""
    if out.suffix == ".html":
        write_text(out, page_of(explanations, reader))
        return
    with jsonl_writer(out) as line:
        for explanation in explanations:
            line(explanation.to_record())
