"""Safe writing of files, and typed reading of JSON and JSON lines.

A file is written to a temporary file beside it, forced to disk and moved into place, so that a reader finds the old or
the new file, never half of one. Rows are appended in one write, so that a killed process leaves at most one incomplete
last line.

`read_json(path, Kind)` and `read_jsonl(path, Kind)` check the content against a type (such as a TypedDict); a damaged
file is a ValueError that names the file and the field. `sweep` deletes the temporary files of killed writers.

JSON has no NaN and no infinity. They are written as null, so that a run whose loss became NaN can still write its
metrics; readers show null as missing.
"""

import errno
import fcntl
import json
import logging
import math
import os
import re
import sys
import types
import typing
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO, NoReturn, Protocol, TypeGuard, TypeVar, cast

import numpy as np

logger = logging.getLogger(__name__)
T = TypeVar("T")
_HALF_PAIR = re.compile("[\ud800-\udfff]")


def write_text(path: str | Path, text: str) -> Path:
    """Writes a text file as UTF-8 without changing newlines, creating its folder; returns its path.

    Raises OSError with a remedy if writing fails, ValueError if the text is not valid Unicode.
    """
    try:
        content = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{path}: the text cannot be written as UTF-8 ({error}).") from None
    with replacing(Path(path)) as file:
        file.write(content)
    return Path(path)


def write_json(path: str | Path, value: object) -> Path:
    """Writes a JSON value, indented; NaN and infinity become null. Returns the path."""
    return write_text(path, _dump(value, path, indent=2) + "\n")


def as_json(value: object, where: str) -> object:
    """A value as it is read back after it was written as JSON. Raises ValueError, naming `where`, if it cannot be."""
    return json.loads(_dump(value, where))


@typing.overload
def read_json(path: str | Path) -> object: ...
@typing.overload
def read_json(path: str | Path, kind: type[T]) -> T: ...
def read_json(path: str | Path, kind: type[object] = object) -> object:
    """The JSON value of a file.

    Args:
      kind: expected type of the value, see `check_type`.

    Raises:
      ValueError: the file is not JSON, or its value has another type; names the file and the field.
      FileNotFoundError: there is no such file.
    """
    return check_type(_load(Path(path).read_bytes(), str(path)), kind, str(path))


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, object]]) -> int:
    """Writes a whole file with one JSON object per line, consuming `rows` once; returns the number of rows."""
    count = 0
    with jsonl_writer(path) as write:
        for row in rows:
            write(row)
            count += 1
    return count


@contextmanager
def jsonl_writer(path: str | Path) -> Iterator[Callable[[Mapping[str, object]], object]]:
    """A function that writes a row as a JSON line of a file, which replaces `path` when the block ends."""
    with replacing(Path(path)) as file:
        yield lambda row: file.write(_line(row, path))


def append_jsonl(path: str | Path, rows: Iterable[Mapping[str, object]]) -> int:
    """Appends one JSON object per line, forced to disk, creating the file if needed; returns the number of rows.

    An incomplete last line left by a killed process is removed first, with a warning.
    """
    path = Path(path)
    lines = [_line(row, path) for row in rows]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        with open(path, "a+b") as file:
            end = _mend(file, path)
            try:
                file.write(b"".join(lines))
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(path, end)  # a full disk may have taken a part of it
                raise
        if new:
            sync_folder(path.parent)
    except OSError as error:
        explain(error, path)
    return len(lines)


@typing.overload
def read_jsonl(path: str | Path) -> list[dict[str, object]]: ...
@typing.overload
def read_jsonl(path: str | Path, kind: type[T]) -> list[T]: ...
def read_jsonl(path: str | Path, kind: type[object] = object) -> Sequence[object]:
    """The rows of a JSON-lines file, as dictionaries.

    An incomplete last line (without newline, not JSON: its writer was killed) is left out with a warning.

    Raises:
      ValueError: another line is not a JSON object or not of the type `kind` (see `check_type`); names file and line.
      FileNotFoundError: there is no such file.
    """
    rows: list[object] = []
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
                logger.warning("%s: ignored an incomplete last line; the process that wrote it was killed.", where)
                break
            rows.append(check_type(row, kind, where))
    return rows


def check_type(value: object, kind: type[T], where: str) -> T:
    """Returns a JSON value after checking its type.

    Args:
      kind: object (anything), None, bool, int, float (also an int), str, Literal, list[X], dict[str, X], X | Y,
        tuple[X, Y] (a list of this length), or a TypedDict, whose fields may be NotRequired. Additional fields are
        allowed, because a later version may add some.
      where: the file, for the error.

    Raises:
      ValueError: the value has another type; names `where`, the field, the expected type and the value.
    """
    if problem := _type_problem(value, kind, ""):
        raise ValueError(f"{where}: {problem}. The file is damaged or not of this program: repair or remove it.")
    return cast(T, value)  # what was just checked


def _type_problem(value: object, kind: object, name: str) -> str | None:
    """The description of a type error, or None."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        problems = [_type_problem(value, each, name) for each in inside]
        if None in problems:
            return None
        if len(inside) == 2 and type(None) in inside:  # X | None: the problem inside X is more specific
            return problems[1 - inside.index(type(None))]
        return _named(name, " or ".join(_described(each) for each in inside), value)
    if origin in (typing.Required, typing.NotRequired):
        return _type_problem(value, inside[0], name)
    if _is_typeddict(kind):
        if not isinstance(value, dict):
            return _named(name, "an object", value)
        hints = typing.get_type_hints(kind, include_extras=True)
        for field, below in hints.items():
            if field in value:
                if problem := _type_problem(value[field], below, f"{name}.{field}" if name else field):
                    return problem
            elif field in kind.__required_keys__:
                return f"{f'{name}.{field}' if name else field} is missing"
        return None
    children: Iterable[tuple[str, object, object]] = ()
    if origin is dict and isinstance(value, dict):
        children = ((f"{name}[{key!r}]", below, inside[1]) for key, below in value.items())
    elif origin is list and isinstance(value, list):
        children = ((f"{name}[{i}]", below, inside[0]) for i, below in enumerate(value))
    elif origin is tuple and isinstance(value, list) and len(value) == len(inside):
        children = ((f"{name}[{i}]", below, each) for i, (below, each) in enumerate(zip(value, inside, strict=True)))
    elif not _is_plain(value, kind):
        return _named(name, _described(kind), value)
    return next(filter(None, (_type_problem(below, each, path) for path, below, each in children)), None)


class _TypedDictClass(Protocol):
    __required_keys__: frozenset[str]


def _is_typeddict(kind: object) -> TypeGuard[_TypedDictClass]:
    return typing.is_typeddict(kind)


def _is_plain(value: object, kind: object) -> bool:
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    if kind is object:
        return True
    if isinstance(value, bool):
        return kind is bool
    if kind is float:  # JSON's integers may be larger than any float
        return isinstance(value, float) or isinstance(value, int) and abs(value) <= sys.float_info.max
    if kind is None:
        return value is None
    return typing.get_origin(kind) is None and isinstance(kind, type) and isinstance(value, kind)


def _described(kind: object) -> str:
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return " or ".join(map(repr, inside))
    if origin is tuple:
        return f"a list of {len(inside)} values"
    names: dict[object, str] = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    names |= {int: "an integer", float: "a number", type(None): "null"}
    return "an object" if typing.is_typeddict(kind) else names.get(origin or kind, str(kind))


def _named(name: str, expected: str, value: object) -> str:
    return f"{name or 'the value'} should be {expected}, but is {json.dumps(value, default=str)[:60]}"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that replaces `path` when the block ends without an exception, and is deleted otherwise."""
    # A dot file with a unique name; not `tempfile`, whose files are readable by their owner only.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _opened_and_locked(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        # An OSError that names another file comes from the caller's block.
        ours = {None, str(temporary), *map(str, path.parents)}
        if isinstance(error, OSError) and error.filename in ours:
            explain(error, path)
        raise


def _opened_and_locked(temporary: Path) -> BinaryIO:
    """A new file that `sweep` leaves alone; made again if `sweep` met it between its creation and its lock."""
    while True:
        file = open(temporary, "wb")
        try:
            if try_lock(file) and os.fstat(file.fileno()).st_nlink > 0:
                return file
        except OSError:  # without locks in the file system, `sweep` deletes nothing either
            return file
        file.close()


def cache_folder() -> Path:
    """The folder of this package's caches: in XDG_CACHE_HOME, else in ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "instructrec_jax"


def sweep(folder: Path) -> None:
    """Deletes the temporary files in a folder (not below it) whose writers were killed."""
    for path in folder.glob(".*.tmp"):
        if not is_temporary(path.name):
            continue
        with suppress(OSError), open(path, "rb") as file:
            if try_lock(file):  # its writer is gone
                path.unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """Whether this is the name of a temporary file of `replacing`."""
    return re.fullmatch(r"\..+\.[0-9a-f]{32}\.tmp", name) is not None


def try_lock(file: IO[bytes] | IO[str], *, shared: bool = False) -> bool:
    """Locks an open file until it is closed or the process dies; False if another process holds the lock.

    Args:
      shared: several processes may hold this lock at once, as to find out whether another one holds the other kind.

    Raises OSError if the file system has no locks.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Forces a folder's entries to disk, so that a file moved into place survives a power failure."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return  # some network file systems cannot open folders, and need no sync
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def _mend(file: BinaryIO, path: Path) -> int:
    """Makes an open file end with a newline, dropping an incomplete last line; returns its length in bytes."""
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
        logger.warning("%s: removed an incomplete last line; the process that wrote it was killed.", path)
        return file.truncate(size - len(last))
    file.write(b"\n")
    return size + 1


def _line(row: Mapping[str, object], path: str | Path) -> bytes:
    return _dump(dict(row), path).encode("utf-8") + b"\n"


def _dump(value: object, path: str | Path, indent: int | None = None) -> str:
    try:
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
        except (TypeError, ValueError):  # converted only on failure, because most values need no conversion
            value = _plain(value)
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the value to write is not JSON-serializable ({error}).") from None
    # Half of a surrogate pair cannot be encoded as UTF-8, but can be escaped.
    return text if _is_unicode(text) else json.dumps(value, allow_nan=False, indent=indent)


def _is_unicode(text: str) -> bool:
    return _HALF_PAIR.search(text) is None


def _plain(value: object) -> object:
    """The value in JSON's types: NumPy scalars become numbers, paths texts, NaN and infinity None."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _load(raw: bytes, where: str) -> object:
    def refuse(word: str) -> NoReturn:
        raise ValueError(f"{word} is not JSON")

    try:
        return json.loads(raw.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error}). Repair or remove it.") from None


def explain(error: OSError, path: Path) -> NoReturn:
    """Raises an OSError with the same errno, the path and a remedy."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "the disk is full. Free some space or choose a folder on another disk, then start again"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "permission denied. Choose a writable folder"
    elif error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        remedy = "a file exists where a folder is needed, or a folder where a file is needed. Choose another path"
    else:
        remedy = "check the path and the disk, then start again"
    raise OSError(error.errno, f"could not write ({error.strerror}): {remedy}", str(path)) from error
