"""Records of JSONL, JSON, CSV, TSV, Parquet, WebDataset and parallel text files, plain or compressed, by number.

`open_rows(path)` indexes the records; `rows.row(i)` reads one from the file, or from the local copy of a URL (see
`remote`). A damaged record raises `BadExample` when it is read; an unreadable file raises `ValueError` at once. Memory
holds the places of records, not the records, and rows can be pickled: each process opens the files anew.
"""

import glob
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np

from instructrec_jax.data.parquet_rows import ParquetRows
from instructrec_jax.data.tar_rows import TarRows
from instructrec_jax.data.text_rows import ParallelRows, TextRows
from instructrec_jax.data.unpacked import PlainFile
from instructrec_jax.remote import fetched, find_remote, is_url, local_file, plain, shown

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".tar")
PACKED = (".gz", ".zst", ".zstd")
KINDS = f"{', '.join(SUFFIXES)}, each but .tar optionally with .gz or .zst"


class Rows(Protocol):
    """Records by number. `columns`: all columns of the file where `row` gives a subset of them; else None."""

    @property
    def columns(self) -> Sequence[str] | None: ...

    def __len__(self) -> int: ...

    def row(self, index: int) -> dict[str, object]:
        """Raises `BadExample` when the record is damaged."""

    def where(self, index: int) -> str:
        """File and line (or row), for messages."""


def open_rows(path: str, columns: set[str] | None = None) -> "ChainedRows":
    """The records of a file, of all data files directly inside a folder (sorted by name), or of a glob pattern.

    Each may be a URL.

    Args:
      columns: the columns to read (Parquet only); None: all.

    Raises:
      ValueError: no such file, an unknown format, or an empty or damaged file.
    """
    return open_files(find_files(path), columns)


def open_files(files: Sequence[Path], columns: set[str] | None = None) -> "ChainedRows":
    """The records of some files, one file after another; see `open_rows`."""
    return ChainedRows([_open_file(file, columns) for file in files])


def open_parallel(path: str, targets: str) -> "ParallelRows":
    """The lines of two text files: {"instruction": line n of `path`, "output": line n of `targets`}.

    Raises:
      ValueError: a file is missing or empty, or the line counts differ.
    """
    files = [local_file(name) for name in (path, targets)]
    if not all(file.is_file() for file in files):
        raise ValueError(f"path {path} with targets {targets}: both must be text files.")
    return ParallelRows(*(TextRows(PlainFile(file, text=True)) for file in files))


def find_files(path: str) -> list[Path]:
    """The files of `open_rows`, remote ones downloaded. Raises ValueError if there are none."""
    if is_url(path):
        return _find_remote(path)
    place = Path(path).expanduser()
    if not path or "\x00" in path:
        raise ValueError(f"path {path!r}: name a data file, a folder or a pattern such as data/*.jsonl.")
    if place.is_file():
        return [place]
    if place.is_dir():
        if any((place / name).exists() for name in ("dataset_info.json", "dataset_dict.json")):
            raise ValueError(f"folder {path}: written by the `datasets` library; read it with `kind: datasets`.")
        files = sorted(file for file in place.iterdir() if file.is_file() and suffix_of(file) in SUFFIXES)
        files = [file for file in files if not file.name.startswith(".")]
        if not files:
            found = sorted(file.name for file in place.iterdir())
            listed = ", ".join(found[:10]) + (", ..." if len(found) > 10 else "") if found else "nothing"
            message = f"folder {path}: no data files directly inside it ({KINDS}); it holds {listed}."
            raise ValueError(f"{message} For files in subfolders, use a pattern: {path}/**/*.jsonl.")
        return files
    matches = sorted(glob.glob(str(place), recursive=True)) if glob.has_magic(path) else []
    files = [Path(match) for match in matches if Path(match).is_file()]
    if not files:
        here = "" if place.is_absolute() else f" (looked in {Path.cwd()})"
        raise ValueError(f"file {path}: there is no such file, folder or matching file{here}.{_meant(path)}")
    return files


def _find_remote(url: str) -> list[Path]:
    found = find_remote(url)
    if len(found) == 1 and found[0].url == url:
        return [fetched(found[0])]
    files = [file for file in found if suffix_of(Path(file.name)) in SUFFIXES and not file.name.startswith(".")]
    if not files:
        listed = ", ".join(file.name for file in found[:10]) + (", ..." if len(found) > 10 else "")
        holds = f"; files there: {listed}" if found else ", or no such file, folder or bucket"
        raise ValueError(f"{plain(url)}: no data files directly there ({KINDS}){holds}.")
    return [fetched(file) for file in files]


def _meant(path: str) -> str:
    """What somebody who wrote a path that does not exist probably meant."""
    several = path.replace(",", " ").split()
    if len(several) > 1 and any(Path(part).expanduser().exists() for part in several):
        return f" Name several files as a list: [{', '.join(several)}]."
    if path.count("/") == 1 and not Path(path).suffix and not path.startswith(("/", ".", "~")):
        return " Set kind: datasets for a data set of the HuggingFace hub."
    return ""


def suffix_of(file: Path) -> str:
    """The end of a file's name that says how it is read, without that of its compression."""
    name = file.name.lower()
    for ending in PACKED:
        name = name.removesuffix(ending)
    return Path(name).suffix


def _open_file(file: Path, columns: set[str] | None) -> Rows:
    suffix = suffix_of(file)
    if suffix not in SUFFIXES:
        message = f"file {shown(file)}: unknown format {suffix or '(no suffix)'}; expected {', '.join(SUFFIXES)}"
        raise ValueError(f"{message}, each optionally followed by .gz or .zst.")
    if suffix == ".tar":
        if file.name.lower().endswith(PACKED):
            raise ValueError(
                f"file {shown(file)}: a compressed .tar has no members that are read alone: decompress it."
            )
        return TarRows(file)
    plain = PlainFile(file, text=suffix != ".parquet")
    return ParquetRows(plain, columns) if suffix == ".parquet" else TextRows(plain, suffix)


class ChainedRows:
    """The rows of several files, one file after another."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])
        named = [part.columns for part in parts]
        known = [columns for columns in named if columns is not None]
        # All columns of files of one kind; in order, each once.
        self.columns = list(dict.fromkeys(chain(*known))) if len(known) == len(parts) else None
        self.last = parts[0]  # the file that was read last

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _find(self, index: int) -> tuple[Rows, int]:
        part = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[part], index - (int(self.ends[part - 1]) if part else 0)

    def row(self, index: int) -> dict[str, object]:
        part, inside = self._find(index)
        if part is not self.last:
            if isinstance(self.last, ParquetRows):
                self.last.close()  # of thousands of files, one is open
            self.last = part
        return part.row(inside)

    def where(self, index: int) -> str:
        part, inside = self._find(index)
        return part.where(inside)
