"""Types of the verbs' options: what a text on the command line is read as."""

import argparse
import math
from pathlib import Path

from instructrec_jax.data.media.picture import Picture, picture_of
from instructrec_jax.remote import is_url, local_file


def input_file(text: str) -> Path:
    """The type of an option that names a file to read: a local path, or the local copy of a URL."""
    try:
        return local_file(text) if is_url(text) else Path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from error


def picture_file(text: str) -> Picture:
    """The type of an option that names a picture, wherever it lies."""
    if is_url(text):
        raise argparse.ArgumentTypeError("URLs of pictures are never fetched: download it and name its path")
    try:
        return picture_of(Path(text))
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise argparse.ArgumentTypeError(f"{text} cannot be read ({said})") from error


def run_path(text: str) -> Path:
    """The type of an option that names a run: its folder, or the working copy of one in a bucket."""
    if not is_url(text):
        return Path(text)
    from instructrec_jax.runs.bucket import local_run  # needs jax

    try:
        return local_run(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from error


def whole_numbers(text: str) -> list[int]:
    """The type of an option that lists whole numbers: "1,5,20"."""
    try:
        return [int(each) for each in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} should be whole numbers, such as 1,5,20") from error


def share(text: str) -> float:
    """A share such as 0.5% or 0.005."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no share: write 0.5% or 0.005")
    return value
