"""Members of .zip and .tar files by name, read one at a time; nothing is ever unpacked to disk."""

import tarfile
import zipfile
from functools import lru_cache
from pathlib import Path

ARCHIVES = (".zip", ".tar")
LARGEST = 1 << 28  # bytes of a member: a .zip of a few bytes may claim any size


def archive_in(path: Path) -> tuple[Path, str] | None:
    """(the archive, the member) of a path like `shards/0.zip/cats/1.png`; None for a path into none."""
    for parent in path.parents:
        if parent.suffix.lower() in ARCHIVES and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return None


def read_member(archive: Path, member: str) -> bytes:
    """The bytes of a member. Raises ValueError for one that is not there, not a plain file, damaged, or too large."""
    places = members(archive)
    if member not in places:
        raise ValueError(f"{archive} has no file {member!r}: it has {', '.join(list(places)[:5]) or 'none'}.")
    start, size = places[member]
    if size > LARGEST:
        raise ValueError(f"{member} in {archive} has {size:,} bytes, more than the {LARGEST:,} that are read.")
    if archive.suffix.lower() == ".tar":
        with archive.open("rb") as opened:
            opened.seek(start)
            return opened.read(size)
    try:
        with _zip(archive, *_state(archive)).open(member) as opened:
            return opened.read(LARGEST + 1)[: size + 1]
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, OSError) as error:
        raise ValueError(f"{member} in {archive} cannot be read ({error}): write the archive again.") from error


def members(archive: Path) -> dict[str, tuple[int, int]]:
    """Name of each plain file of an archive, in its order -> (first byte in a .tar, number of bytes).

    Raises ValueError for a file that is no such archive, or is compressed as a whole.
    """
    return _members(archive, *_state(archive))


def _state(archive: Path) -> tuple[int, int]:
    found = archive.stat()
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=64)
def _members(archive: Path, changed: int, size: int) -> dict[str, tuple[int, int]]:
    if archive.suffix.lower() == ".zip":
        plain = [each for each in _zip(archive, changed, size).infolist() if not each.is_dir()]
        return {each.filename: (0, each.file_size) for each in plain}
    try:
        with tarfile.open(archive, "r:") as opened:
            plain_files = [each for each in opened if each.isreg() and not each.issparse()]
    except (tarfile.TarError, OSError, ValueError) as error:
        raise ValueError(
            f"{archive} cannot be read as a .tar ({error}): write it again, without compressing it as a whole."
        ) from error
    for each in plain_files:
        if each.offset_data + each.size > size:
            raise ValueError(f"{archive} ends inside of {each.name}: it is truncated; write it again.")
    return {each.name.removeprefix("./"): (each.offset_data, each.size) for each in plain_files}


@lru_cache(maxsize=64)
def _zip(archive: Path, changed: int, size: int) -> zipfile.ZipFile:
    """An open archive, which threads may share."""
    try:
        return zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ValueError(f"{archive} cannot be read as a .zip ({error}): write it again.") from error
