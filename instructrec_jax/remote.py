"""Files behind URLs: `s3://`, `gs://`, `hf://`, `https://` and what else fsspec opens without another package.

A remote file is downloaded once into the cache folder (XDG_CACHE_HOME, else ~/.cache) and read there, so that every
reader works on local files. Its folder is named by the URL and by what the server says of the content (ETag, size,
time), so another content is another download. Credentials are those of the environment, as s3fs, gcsfs and
huggingface_hub read them.

`shown` turns the place of such a copy back into its URL, for messages; the query of a URL is left out, because it may
hold a signature.
"""

import json
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NoReturn
from urllib.parse import urlsplit

import fsspec
import xxhash

from instructrec_jax.extras import require
from instructrec_jax.files import cache_folder, replacing, try_lock

log = logging.getLogger(__name__)

# Scheme -> the package that opens it, where a base installation may lack it.
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "hf": None, "http": "aiohttp", "https": "aiohttp", "memory": None}
BUCKETS = ("s3", "gs", "memory")  # can be listed and written
DOWNLOADS, RUNS = "downloads", "runs"  # in the cache folder
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_CHANGES = (
    *("etag", "content-md5", "md5hash", "digest", "last-modified", "lastmodified", "updated", "mtime", "created"),
    *("blob_id", "xet_hash", "generation", "versionid"),
)
_SAID_FROM = 100 << 20  # bytes: a download that takes a while is announced


def is_url(path: str | os.PathLike[str]) -> bool:
    return _SCHEME.match(os.fspath(path)) is not None


def scheme(url: str) -> str:
    """Raises ValueError for a scheme that is not known, and for one whose package is not installed."""
    found = _SCHEME.match(url)
    name = found[1] if found else ""
    if name not in PACKAGES:
        raise ValueError(
            f"{plain(url)}: {name}:// is not known; expected {', '.join(f'{each}://' for each in PACKAGES)}."
        )
    if package := PACKAGES[name]:
        require(package, f"{name}:// ({plain(url)})")
    return name


def plain(url: str) -> str:
    """The URL without its query and password, which may be secrets."""
    if not url.startswith(("http://", "https://")):
        return url
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@contextmanager
def explained(url: str, doing: str = "read") -> Iterator[None]:
    """Errors of the file systems' libraries as a ValueError that names the URL."""
    try:
        yield
    except (ValueError, KeyboardInterrupt):
        raise
    except FileNotFoundError:
        raise ValueError(f"{plain(url)}: there is no such file, folder or bucket.") from None
    except Exception as error:  # each library has classes of its own
        problem = " ".join(str(error).split())[:300] or "no reason given"
        remedy = "Check the URL, the credentials in the environment and the network"
        raise ValueError(f"{plain(url)}: cannot be {doing} ({type(error).__name__}: {problem}). {remedy}.") from error


def filesystem(url: str) -> fsspec.AbstractFileSystem:
    """Raises ValueError as `scheme`, or if the library refuses the credentials."""
    name = scheme(url)
    with explained(url):
        return fsspec.filesystem(name)


# ---------------------------------------------------------------- downloads


@dataclass(frozen=True)
class RemoteFile:
    """A file of a server, and what the server says of its content.

    Attributes:
      identity: text that changes with the content; None: the server says nothing.
    """

    url: str
    size: int | None
    identity: str | None

    @property
    def name(self) -> str:
        return PurePosixPath(urlsplit(plain(self.url)).path).name


def find_remote(url: str) -> list[RemoteFile]:
    """The file, the files directly inside the folder, or those of the pattern, sorted by name; empty without any.

    `http://` and `https://` name one file: a web server has no folders.
    """
    files, name = filesystem(url), scheme(url)
    with explained(url):
        files.invalidate_cache()
        if name in ("http", "https"):
            return [_remote(url, files.info(url))]
        if any(sign in url for sign in "*?["):
            found = files.glob(url, detail=True)
            return [
                _remote(f"{name}://{path.lstrip('/')}", found[path]) for path in sorted(found) if _is_file(found[path])
            ]
        if not files.exists(url):
            return []
        info = files.info(url)
        if _is_file(info):
            return [_remote(url, info)]
        listed = {each["name"]: each for each in files.ls(url, detail=True)}
        return [
            _remote(f"{name}://{path.lstrip('/')}", listed[path]) for path in sorted(listed) if _is_file(listed[path])
        ]


def _is_file(info: dict[str, object]) -> bool:
    return info.get("type") == "file" and not str(info["name"]).endswith("/")


def _remote(url: str, info: dict[str, object]) -> RemoteFile:
    size = info.get("size")
    return RemoteFile(url, size if isinstance(size, int) else None, change_of(info) or None)


def change_of(info: dict[str, object]) -> str:
    """What a server says of the content of a file, which changes with it; "" if it says nothing."""
    says = {key: str(value) for key, value in sorted(info.items()) if key.lower() in _CHANGES and value}
    return json.dumps([info.get("size"), says]) if says else ""


def fetched(file: RemoteFile) -> Path:
    """The local copy of a remote file, downloaded unless it is there.

    Raises ValueError if the file cannot be read; OSError with a remedy if the copy cannot be written.
    """
    key = xxhash.xxh3_128((file.url + "\x00" + (file.identity or str(time.time_ns()))).encode()).hexdigest()
    root = cache_folder() / DOWNLOADS / key
    copy = root / _as_path(plain(file.url))
    if copy.is_file():
        return copy
    with alone(root):
        if not copy.is_file():  # another process may have just downloaded it
            _download(file, copy)
    return copy


def _download(file: RemoteFile, copy: Path) -> None:
    if file.size is not None and file.size >= _SAID_FROM:
        log.warning("downloading %s (%.1f GB) to %s", plain(file.url), file.size / 1e9, copy)
    files = filesystem(file.url)
    with replacing(copy) as stream, explained(file.url):
        files.get_file(file.url, stream.name)
        size = os.stat(stream.name).st_size
        if file.size not in (None, size) and not file.url.startswith("http"):  # a web server may compress on the way
            raise ValueError(f"{file.url}: {size:,} bytes arrived of {file.size:,}: start again.")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Waits until no other process downloads into a folder; where the file system has no locks, several may."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "ab") as file:
        try:
            while not try_lock(file):
                time.sleep(0.2)
        except OSError:
            pass
        yield


def _as_path(url: str) -> Path:
    name, _, rest = url.partition("://")
    parts = rest.split("/")
    if not all(parts) or {".", ".."} & set(parts):
        raise ValueError(f"{url}: a part of this path is empty or made of dots: name it otherwise.")
    return Path(name, *parts)


@lru_cache(maxsize=4096)
def shown(path: str | Path) -> str:
    """A path for messages: the URL of a local copy, else the path itself."""
    try:
        parts = Path(path).relative_to(cache_folder() / DOWNLOADS).parts
    except ValueError:
        return str(path)
    return f"{parts[1]}://{'/'.join(parts[2:])}" if len(parts) > 2 else str(path)


# ---------------------------------------------------------------- run directories


def cache_place(room: str, url: str) -> Path:
    """The place of a URL in a folder of the cache. Raises ValueError for a URL with empty parts."""
    return cache_folder() / room / _as_path(url.rstrip("/"))


def run_folder(run_dir: str | Path) -> Path:
    """The folder of a run directory; of one in a bucket, its working copy (see `runs.bucket`).

    Raises ValueError for a URL that is no bucket, or whose package is not installed.
    """
    if not is_url(run_dir):
        return Path(run_dir)
    url = str(run_dir)
    if scheme(url) not in BUCKETS:
        raise ValueError(f"{plain(url)} cannot be a run directory: name a folder, or a bucket by s3:// or gs://.")
    return cache_place(RUNS, url)


def url_of_run(folder: Path) -> str | None:
    """The bucket of a working copy; None for another folder."""
    try:
        name, *parts = folder.relative_to(cache_folder() / RUNS).parts
    except ValueError:
        return None
    return f"{name}://{'/'.join(parts)}"


def with_urls(text: str) -> str:
    """A text for people, in which working copies are named by their buckets."""
    root = re.escape(str(cache_folder() / RUNS))
    return re.sub(rf"{root}/({'|'.join(BUCKETS)})/", r"\1://", text)


def local_file(path: str | Path) -> Path:
    """A local path as it is (~ expanded); of a URL of one file, its local copy. Raises ValueError as `find_remote`."""
    if not is_url(path):
        return Path(path).expanduser()
    found = find_remote(str(path))
    if len(found) != 1:
        _no_file(str(path))
    return fetched(found[0])


def _no_file(url: str) -> NoReturn:
    raise ValueError(f"{plain(url)}: there is no such file.")
