"""The one place that writes a file safely, and reads back what it wrote.

A whole file is written beside its final name, forced to disk and moved into place, so that a reader (or a run
that starts after a crash) finds the old file or the new one, never half of one. Rows are appended in one
write, so that a killed process leaves at most one torn last line.

JSON has no NaN and no infinity. They are written as null, because a run whose loss became NaN must still be
able to say so; what reads null back shows it as missing.
"""

import errno
import json
import logging
import math
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

logger = logging.getLogger(__name__)
_HALF_PAIR = re.compile("[\ud800-\udfff]")


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file as UTF-8 with newlines as they stand, making its folder; returns its path.

    Raises OSError with a remedy when the disk refuses, ValueError when the text is not valid Unicode.
    """
    try:
        content = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{path}: the text cannot be written as UTF-8 ({error}).") from None
    with replacing(Path(path)) as file:
        file.write(content)
    return Path(path)


def write_json(path: str | Path, value: Any) -> Path:
    """Write one JSON value, indented; NaN and infinity become null. Returns the path."""
    return write_text(path, _dump(value, path, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    """The JSON value of a file; a broken file names itself. A missing one is a FileNotFoundError."""
    return _load(Path(path).read_bytes(), str(path))


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write one JSON object a line as a whole file, consuming `rows` once; returns how many."""
    count = 0
    with replacing(Path(path)) as file:
        for row in rows:
            file.write(_line(row, path))
            count += 1
    return count


def append_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Append one JSON object a line and force them to disk, making the file if needed; returns how many.

    A torn last line left by a killed process is removed first (with a warning), so that it never ends up in
    the middle of the file.
    """
    path = Path(path)
    lines = [_line(row, path) for row in rows]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:
            end = _mend(file, path)
            try:
                file.write(b"".join(lines))
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(path, end)  # a disk that is full took a part of it
                raise
    except OSError as error:
        _explain(error, path)
    return len(lines)


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, as dictionaries.

    One torn last line (no newline at its end, not JSON: its writer was killed) is left out with a warning.
    Any other line that is not a JSON object is a ValueError that names the file and the line. A missing file
    is a FileNotFoundError.
    """
    rows = []
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            where = f"{path}, line {number}"
            try:
                row = _load(raw, where)
                if not isinstance(row, dict):
                    raise ValueError(f"{where}: expected a JSON object, found {raw[:40]!r}.")
            except ValueError:
                if raw.endswith(b"\n"):
                    raise
                logger.warning("%s: left out a half-written last line; its writer was killed.", where)
                break
            rows.append(row)
    return rows


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when the block ends well, and vanishes otherwise."""
    # A dot file with its own name per writer; not `tempfile`, whose files only their owner may read.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        # An OSError with another file's name comes from where the rows are read, not from here.
        ours = {None, str(temporary), *map(str, path.parents)}
        if isinstance(error, OSError) and error.filename in ours:
            _explain(error, path)
        raise


def _mend(file: BinaryIO, path: Path) -> int:
    """Make an open file end with a newline, dropping a torn last line; returns its length in bytes."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return 0
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return size
    file.seek(0)
    content = file.read()
    last = content[content.rfind(b"\n") + 1 :]
    try:
        _load(last, str(path))
    except ValueError:
        logger.warning("%s: removed a half-written last line; its writer was killed.", path)
        return file.truncate(size - len(last))
    file.write(b"\n")
    return size + 1


def _line(row: Mapping[str, Any], path: str | Path) -> bytes:
    return _dump(dict(row), path).encode("utf-8") + b"\n"


def _dump(value: Any, path: str | Path, indent: int | None = None) -> str:
    try:
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
        except (TypeError, ValueError):  # most values are plain, and looking through each costs more than writing it
            value = _plain(value)
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the value to write has no place in JSON ({error}).") from None
    # Half of a surrogate pair has no UTF-8 form, but does have an escaped one.
    return text if _is_unicode(text) else json.dumps(value, allow_nan=False, indent=indent)


def _is_unicode(text: str) -> bool:
    return _HALF_PAIR.search(text) is None


def _plain(value: Any) -> Any:
    """The same value in JSON's own types: NumPy scalars are numbers, paths text, NaN and infinity None."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _load(raw: bytes, where: str) -> Any:
    def refuse(word: str) -> NoReturn:
        raise ValueError(f"{word} is not JSON")

    try:
        return json.loads(raw.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error}). Repair or remove it.") from None


def _explain(error: OSError, path: Path) -> NoReturn:
    """The same kind of OSError, with the path and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "the disk is full. Free some space or choose a folder on another disk, then start again"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "writing there is not allowed. Choose a folder that you can write to"
    elif error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        remedy = "a file stands where a folder is needed, or the other way round. Choose another path"
    else:
        remedy = "check the path and the disk, then start again"
    raise OSError(error.errno, f"could not write ({error.strerror}): {remedy}", str(path)) from error
