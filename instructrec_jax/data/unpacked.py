"""The plain bytes of a data file: of the file itself, or of a temporary copy where it is compressed or UTF-16.

Compression is recognized by the first bytes, not by the name. A copy is made as a stream, lies in the folder for
temporary files (environment variable TMPDIR), and is deleted when it is no longer used; those of killed processes are
deleted by the next process that makes one.
"""

import atexit
import codecs
import gzip
import os
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from instructrec_jax.files import try_lock
from instructrec_jax.remote import shown

BOM = codecs.BOM_UTF8
CHUNK = 1 << 20
_PREFIX, _LOCK = "instructrec-unpacked-", "lock"
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_ARCHIVES = {b"PK\x03\x04": "a zip archive", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"7z\xbc\xaf": "a 7z archive"}
_WIDE = {  # UTF-32 first: its mark starts with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class PlainFile:
    """Random reads of a file's plain bytes. It can be pickled: the other process opens the same file or copy.

    Attributes:
      source: the file; of a URL, its local copy.
      file: the file as the user named it.
      path: where the plain bytes are; lives as long as this object in the process that made it.

    Args:
      text: whether UTF-16 and UTF-32 with a byte-order mark become UTF-8.

    Raises ValueError for a file that is empty, cannot be read or unpacked, or of a compression that is not known.
    """

    def __init__(self, file: Path, *, text: bool) -> None:
        self.source, self.file = file, shown(file)
        try:
            with open(file, "rb") as stream:
                head = stream.read(8)
            self.path = _unpack(self, head, text)
            self.size = self.path.stat().st_size
            if not self.size:
                raise ValueError(f"file {self.file}: it is empty; remove it from the sources or fill it.")
            self._identity = _identity(os.stat(self.path))
        except OSError as error:
            raise ValueError(f"file {self.file}: cannot be read ({error}).") from error

    def open(self) -> BinaryIO:
        return open(self.path, "rb")

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` to before `end`. Raises ValueError if the file has changed or was deleted."""
        try:
            handle = _opened(self.path, self._identity)
        except FileNotFoundError:
            raise ValueError(f"file {self.file}: it was deleted while in use; start again.") from None
        if _identity(os.fstat(handle.fileno())) != self._identity:
            raise ValueError(f"file {self.file}: it changed while in use; start again.")
        data = os.pread(handle.fileno(), end - start, start)  # safe when threads share the file
        if len(data) != end - start:
            raise ValueError(f"file {self.file}: read only {len(data)} of {end - start} bytes; start again.")
        return data


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns


def _unpack(owner: PlainFile, head: bytes, text: bool) -> Path:
    """The path of the plain bytes; a copy is deleted together with its owner."""
    file = owner.source
    for magic, kind in _ARCHIVES.items():
        if head.startswith(magic):
            raise ValueError(f"file {owner.file}: it is {kind}: unpack it, or compress it as .gz or .zst.")
    chunks = None
    if head.startswith(_GZIP):
        chunks = _chunks(file, lambda path: gzip.open(path, "rb"))
    elif head.startswith(_ZSTD):
        chunks = _chunks(file, lambda path: pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
    if chunks is not None:
        first = next(chunks, b"")
        if first.startswith((_GZIP, _ZSTD)):
            raise ValueError(f"file {owner.file}: it is compressed twice: unpack it once.")
        coding = _coding(first) if text else None
        parts = _with(first, chunks)
    else:
        coding = _coding(head) if text else None
        if coding is None:
            return file
        parts = _chunks(file, lambda path: open(path, "rb"))
    return _copied(owner, parts if coding is None else _as_utf8(parts, coding, file))


def _coding(head: bytes) -> str | None:
    return next((coding for mark, coding in _WIDE.items() if head.startswith(mark)), None)


def _with(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _chunks(file: Path, opener: Callable[[Path], Any]) -> Iterator[bytes]:
    try:
        with opener(file) as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        message = f"cannot be unzipped ({error}); the file is damaged or incomplete: download or compress it again."
        raise ValueError(f"file {shown(file)}: {message}") from error


def _as_utf8(chunks: Iterator[bytes], coding: str, file: Path) -> Iterator[bytes]:
    """UTF-8 of UTF-16 or UTF-32. Halves of surrogate pairs pass, so that only their lines are bad."""
    decoder = codecs.getincrementaldecoder(coding)("surrogatepass")
    name, place = coding.upper(), 0
    try:
        for chunk in chunks:
            yield decoder.decode(chunk).encode("utf-8", "surrogatepass")
            place += len(chunk)
        decoder.decode(b"", final=True)
    except UnicodeError as error:
        message = f"not {name} text ({error}, near byte {place:,}), although its first bytes say so"
        raise ValueError(f"file {shown(file)}: {message}: save it as UTF-8.") from None


def _copied(owner: PlainFile, chunks: Iterator[bytes]) -> Path:
    folder = _own_folder(os.getpid(), tempfile.gettempdir())
    handle, name = tempfile.mkstemp(dir=folder)
    weakref.finalize(owner, _delete, Path(name), os.getpid())
    with os.fdopen(handle, "wb") as stream:
        for chunk in chunks:
            try:
                stream.write(chunk)
                stream.flush()
            except OSError as error:
                remedy = "set TMPDIR to a folder with more space, or unpack the file yourself"
                message = f"cannot be unpacked to {folder.parent} ({error.strerror}): {remedy}"
                raise ValueError(f"file {owner.file}: {message}.") from None
    return Path(name)


def _delete(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child only shares the copy
        path.unlink(missing_ok=True)
        _opened.cache_clear()  # an open file would keep the space on the disk; others are opened again when read


@lru_cache(maxsize=1)
def _own_folder(process: int, parent: str) -> Path:
    """A folder for the copies of this process, locked until it ends. Deletes those of processes that were killed."""
    for folder in Path(parent).glob(f"{_PREFIX}*"):
        with suppress(OSError), open(folder / _LOCK, "rb") as file:
            if try_lock(file):
                shutil.rmtree(folder, ignore_errors=True)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        lock = open(folder / _LOCK, "wb")
        atexit.register(_remove, folder, lock, process)
        try:
            if try_lock(lock) and folder.exists():
                return folder  # otherwise, another process has just taken it for that of a killed one
        except OSError:
            return folder  # no locks in the file system: nobody else gets one either


def _remove(folder: Path, lock: BinaryIO, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
    lock.close()


@lru_cache(maxsize=64)
def _opened(path: Path, identity: tuple[int, int]) -> BinaryIO:
    """One of the open files; what falls out of the cache is closed when no thread reads it."""
    return open(path, "rb", buffering=0)
