"""Run directories in a bucket (`s3://`, `gs://`): a local working copy, and what carries it there and back.

Why a copy: a bucket has no rename, no append and no lock, and orbax writes to gs:// only. So training and all verbs
work on a folder in the cache, with the guarantees of a local disk, and a `Mirror` brings the bucket up to date: at the
start, when a checkpoint was saved, every half a minute, and at the end. What a kill at any moment leaves in the bucket
is a run that can be resumed on any machine:

    files       an object is put as a whole; lines of metrics.jsonl arrive before a later checkpoint does
    checkpoint  its files first, then `checkpoints/STEP.complete`, which lists them; without it the step does not exist
    deletions   last
    .lock       the holder, renewed every 15 seconds; who finds it unchanged for a minute may take it

The copy and the bucket are compared by what the server says of each object (ETag, size, time) and by the size and time
of each file, kept in the cache. Where both changed, the bucket wins.
"""

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypedDict, TypeVar

import jax
from fsspec.core import strip_protocol

from instructrec_jax.distributed.launch import is_first, once
from instructrec_jax.files import is_temporary, read_json, replacing, try_lock, write_json, write_text
from instructrec_jax.remote import alone, cache_place, change_of, explained, filesystem, is_url, run_folder, url_of_run
from instructrec_jax.runs.bucket_lock import LOCK, BucketLock

log = logging.getLogger(__name__)
T = TypeVar("T")
PARTS = ".parts/"  # the files of a checkpoint on their way to the first process
SYNCED = "synced.json"
CHECKPOINTS, COMPLETE = "checkpoints/", ".complete"
LOOK, PUSH, AGAIN = 0.5, 30.0, 15.0  # seconds between looks and pushes, and after one that failed
THREADS, ATTEMPTS = 8, 5


class Synced(TypedDict):
    """A file that is the same in the working copy and in the bucket.

    Attributes:
      identity: what the server says of the object.
      local: size and time (ns) of the file; None: not in the copy (the list of a checkpoint's files).
    """

    identity: str
    local: list[int] | None


# ---------------------------------------------------------------- doors


def local_run(path: str | Path) -> Path:
    """A run directory for reading: a local path as it is; of a URL, the working copy, brought up to date.

    Raises ValueError if the bucket cannot be read.
    """
    if not is_url(path):
        return Path(path)
    mirror = Mirror(str(path))
    once(mirror.pull)
    mirror.follow()
    return mirror.folder


def send(path: Path) -> None:
    """Uploads what a verb wrote into the working copy of a run; nothing for a local run."""
    if (url := url_of_run(path)) is not None:
        once(lambda: Mirror(url).push(checkpoints=False))


# ---------------------------------------------------------------- the mirror


class Mirror:
    """A run directory in a bucket and its working copy `folder`.

    `open` takes the lock and pulls; `start` keeps the bucket up to date from a thread; `close` pushes a last time. Only
    the first process calls these. Others, on other machines, `follow`, and it gets their files of a checkpoint through
    the bucket (`send`, `receive`).
    """

    def __init__(self, url: str) -> None:
        self.url, self.folder = url.rstrip("/"), run_folder(url)
        self.files = filesystem(url)
        self._root = str(strip_protocol(self.url)).rstrip("/") + "/"
        self._own = cache_place("mirrors", self.url)  # of all processes of this machine
        self.lock = BucketLock(self.url, self.files)
        self._done = threading.Event()
        self._following = threading.Thread(target=self._follow, daemon=True)

    # ------------------------------------------------------------ life of a training

    def open(self) -> None:
        """Raises ValueError if another process holds the run, or the bucket cannot be read or written."""
        self.lock.take()
        try:
            write_text(self._own / self.lock.token, "")
            self.pull()
            with explained(self.url, "written"):
                self._remove_partial()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """From now on the bucket follows the working copy."""
        self.push()
        self._following.start()

    def close(self) -> None:
        """Pushes a last time, if it was started, and gives the lock back. Raises OSError if that fails."""
        self._done.set()
        try:
            if self._following.ident is not None:
                self._following.join()
                self._finish()
        finally:
            (self._own / self.lock.token).unlink(missing_ok=True)
            self.lock.release()

    def _finish(self) -> None:
        try:
            self.push()
        except (OSError, ValueError) as error:
            raise OSError(
                f"the run could not be written to {self.url} ({error}). Nothing is lost: it lies in {self.folder}, and "
                "the same command on this machine brings it to the bucket."
            ) from error

    def _follow(self) -> None:
        pushed, steps = time.monotonic(), self._steps()
        while not self._done.wait(LOOK):
            try:
                now = self._steps()
                if now != steps or time.monotonic() - pushed > PUSH:
                    pushed = time.monotonic()
                    self.push()
                    steps = now
            except Exception as error:  # a network fails in many ways, and may be back soon
                log.warning("%s is not up to date: %s", self.url, error)
                self._done.wait(AGAIN)

    # ------------------------------------------------------------ other processes

    def follow(self) -> None:
        """In another process than the first: brings this machine's working copy up to date, unless both are one."""
        if not is_first() and not self._is_shared():
            self.pull()

    def _is_shared(self) -> bool:
        """Whether this process sees the working copy of the first one."""
        holder = self.lock.holder()
        return holder is not None and (self._own / holder["token"]).exists()

    def prepare(self, folder: Path) -> None:
        """Makes, on other machines, the folder that orbax awaits from the first process."""
        if not is_first() and not self._is_shared():
            (folder / "array_metadatas").mkdir(parents=True, exist_ok=True)

    def send(self, folder: Path) -> None:
        """Uploads this process's files of a checkpoint below `folder`, unless the first process sees them."""
        with explained(self.url, "written"):
            if is_first() or self._is_shared():
                return
            mine = f"process_{jax.process_index()}"
            for path in sorted(folder.rglob("*")):
                inside = path.relative_to(folder)
                if path.is_file() and any(part.endswith(mine) for part in inside.parts):
                    self.files.put_file(str(path), self._at(f"{PARTS}{inside.as_posix()}"))
                    path.unlink()

    def receive(self, folder: Path) -> None:
        """Downloads into `folder`, in the first process, what the others sent."""
        with explained(self.url):
            sent = [name for name in self._found() if name.startswith(PARTS)]
            for name in sent:
                with replacing(folder / name.removeprefix(PARTS)) as stream:
                    self.files.get_file(self._at(name), stream.name)
            self._delete(sent)

    # ------------------------------------------------------------ bucket -> working copy

    def pull(self) -> None:
        """Makes the working copy what the bucket holds, unless a training is at work in it.

        If the bucket did not change since the last time, the copy is as new or newer, and stays.
        """
        with alone(self._own), explained(self.url):
            for attempt in range(ATTEMPTS):
                try:
                    return self._pull()
                except FileNotFoundError:  # deleted after it was listed: a training is at work elsewhere
                    if attempt == ATTEMPTS - 1:
                        raise

    def _pull(self) -> None:
        if not _is_in_use(self.folder):
            remote, synced = self._listed(), self._synced()
            if {name: entry["identity"] for name, entry in synced.items()} == remote and self._is_whole(synced):
                return
            wanted = [name for name in remote if not _is_list(name)]
            local = _scan(self.folder)
            for name in set(local) - set(wanted):
                (self.folder / name).unlink()
            stale = [name for name in wanted if not self._is_same(name, remote[name], local, synced)]
            _each(self._download, stale)
            _remove_empty(self.folder)
            local = _scan(self.folder)
            self._keep({name: Synced(identity=remote[name], local=local.get(name)) for name in remote})

    def _listed(self) -> dict[str, str]:
        """What the server says of each object of the run, by its name; only of complete checkpoints."""
        names = {name: change_of(info) for name, info in self._found().items()}
        complete = {name.removesuffix(COMPLETE) for name in names if _is_list(name)}
        parts = set().union(*map(self._parts, complete)) if complete else set()
        return {
            name: identity
            for name, identity in sorted(names.items())
            if name in parts or _is_list(name) or not name.startswith((LOCK, PARTS, CHECKPOINTS))
        }

    def _parts(self, step: str) -> set[str]:
        """The names of the files of a checkpoint that was uploaded as a whole."""
        return set(json.loads(self.files.cat_file(self._at(f"{step}{COMPLETE}"))))

    def _is_whole(self, synced: dict[str, Synced]) -> bool:
        return all(entry["local"] is None or (self.folder / name).is_file() for name, entry in synced.items())

    @staticmethod
    def _is_same(name: str, identity: str, local: dict[str, list[int]], synced: dict[str, Synced]) -> bool:
        known = synced.get(name)
        return known is not None and known["identity"] == identity and local.get(name) == known["local"]

    def _download(self, name: str) -> None:
        with replacing(self.folder / name) as stream:
            self.files.get_file(self._at(name), stream.name)

    def _remove_partial(self) -> None:
        """Deletes what an interrupted upload of a checkpoint left."""
        known = self._listed()
        self._delete(name for name in self._found() if name.startswith((CHECKPOINTS, PARTS)) and name not in known)

    # ------------------------------------------------------------ working copy -> bucket

    def push(self, *, checkpoints: bool = True) -> None:
        """Uploads what changed in the working copy.

        Args:
          checkpoints: also those, and deletions; needs the lock.

        Raises ValueError if another process took the run over, or the bucket cannot be written.
        """
        with alone(self._own), explained(self.url, "written"):
            if checkpoints:
                self.lock.check()
            steps = self._steps()  # before the other files, so that the lines before a checkpoint are among them
            local, synced = _scan(self.folder), self._synced()
            gone = [name for name in synced if name.startswith(CHECKPOINTS) and _step_of(name) not in steps]
            if checkpoints and not steps:  # another run begins here: its settings never meet these checkpoints
                self._forget(gone, synced)
                gone = []
            others = [name for name in local if not name.startswith(CHECKPOINTS)]
            changed = [name for name in others if name not in synced or synced[name]["local"] != local[name]]
            _each(self._put, changed)
            self._note(changed, local, synced)
            if checkpoints:
                for step in steps:
                    self._push_step(step, local, synced)
                gone += [name for name in synced if not name.startswith(CHECKPOINTS) and name not in local]
                self._forget(gone, synced)

    def _push_step(self, step: str, local: dict[str, list[int]], synced: dict[str, Synced]) -> None:
        complete, inside = f"{CHECKPOINTS}{step}{COMPLETE}", f"{CHECKPOINTS}{step}/"
        if complete in synced:
            return
        files = [name for name in local if name.startswith(inside)]
        try:
            _each(self._put, files)
        except FileNotFoundError:
            if all((self.folder / name).is_file() for name in files):
                raise
            return  # deleted meanwhile, because newer ones are there
        self.files.pipe_file(self._at(complete), json.dumps(files).encode())
        self._note([*files, complete], local, synced)

    def _put(self, name: str) -> None:
        self.files.put_file(str(self.folder / name), self._at(name))

    def _note(self, names: Sequence[str], local: dict[str, list[int]], synced: dict[str, Synced]) -> None:
        """Keeps that these files were uploaded."""
        if names:
            found = self._found()
            synced |= {
                name: Synced(identity=change_of(found[name]), local=local.get(name)) for name in names if name in found
            }
            self._keep(synced)

    def _forget(self, names: Sequence[str], synced: dict[str, Synced]) -> None:
        if names:
            self._delete(sorted(names, key=lambda name: not name.endswith(COMPLETE)))  # the lists first
            for name in names:
                synced.pop(name, None)
            self._keep(synced)

    def _delete(self, names: Iterable[str]) -> None:
        for name in names:
            with suppress(FileNotFoundError):
                self.files.rm_file(self._at(name))

    # ------------------------------------------------------------ what is where

    def _at(self, name: str) -> str:
        return f"{self.url}/{name}"

    def _found(self) -> dict[str, dict[str, object]]:
        """All objects of the run, by their names."""
        self.files.invalidate_cache()
        found: dict[str, dict[str, object]] = self.files.find(self.url, detail=True)
        return {str(path).removeprefix(self._root): info for path, info in found.items()}

    def _steps(self) -> list[str]:
        """The complete checkpoints in the working copy: orbax renames a step to its number when it is."""
        folder = self.folder / CHECKPOINTS
        return (
            sorted((path.name for path in folder.iterdir() if path.name.isdigit()), key=int) if folder.is_dir() else []
        )

    def _synced(self) -> dict[str, Synced]:
        try:
            return read_json(self._own / SYNCED, dict[str, Synced])
        except (ValueError, OSError):
            return {}

    def _keep(self, synced: dict[str, Synced]) -> None:
        write_json(self._own / SYNCED, synced)


def _is_list(name: str) -> bool:
    return name.startswith(CHECKPOINTS) and name.endswith(COMPLETE) and name.count("/") == 1


def _step_of(name: str) -> str:
    return name.split("/")[1].removesuffix(COMPLETE)


def _scan(folder: Path) -> dict[str, list[int]]:
    """[size, time] of the files of a working copy, by their names; not of the lock and of unfinished ones."""
    found = {}
    for parent, folders, files in os.walk(folder):
        if parent == str(folder / "checkpoints"):
            folders[:] = [name for name in folders if name.isdigit()]
        for name in files:
            path = Path(parent, name)
            with suppress(FileNotFoundError):
                stat = path.stat()
                if not is_temporary(name) and path != folder / LOCK:
                    found[path.relative_to(folder).as_posix()] = [stat.st_size, stat.st_mtime_ns]
    return found


def _remove_empty(folder: Path) -> None:
    """An empty folder would be a checkpoint without files."""
    for path in sorted(folder.glob("checkpoints/*")):
        if path.is_dir() and not any(each.is_file() for each in path.rglob("*")):
            shutil.rmtree(path)


def _is_in_use(folder: Path) -> bool:
    try:
        with open(folder / LOCK, "rb") as file:
            return not try_lock(file, shared=True)
    except OSError:
        return False


def _each(do: Callable[[str], T], names: Sequence[str]) -> list[T]:
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(do, names))
