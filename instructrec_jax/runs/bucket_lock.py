"""The lock of a run directory in a bucket: an object that names its holder, which renews it."""

import json
import logging
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from datetime import datetime
from typing import TypedDict

from fsspec import AbstractFileSystem

from instructrec_jax.remote import explained

log = logging.getLogger(__name__)
LOCK = ".lock"
BEAT, STALE = 15.0, 60.0  # seconds between renewals, and without one until another process may take the lock


class Beat(TypedDict):
    """`.lock` in the bucket."""

    pid: int
    host: str
    since: str
    token: str
    beat: float


class BucketLock:
    """The lock of the run in `url`."""

    def __init__(self, url: str, files: AbstractFileSystem) -> None:
        self.url, self.files, self.place = url, files, f"{url}/{LOCK}"
        self.token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._since = datetime.now().astimezone().isoformat(timespec="seconds")

    def take(self) -> None:
        """Waits up to a minute to see whether a holder still runs.

        Raises ValueError, naming the holder, if it does, and if the bucket cannot be written.
        """
        with explained(self.url, "used as run_dir"):
            self._take()
        self._beating.start()

    def release(self) -> None:
        """Gives the lock back, if it was taken."""
        if self._beating.ident is None:
            return
        self._stop.set()
        self._beating.join()
        with suppress(Exception):  # it expires
            if self._is_mine():
                self.files.rm_file(self.place)

    def check(self) -> None:
        """Raises ValueError if another process took the lock over."""
        if not self._is_mine():
            raise ValueError(f"another process took {self.url} over: stop this one.")

    def _take(self) -> None:
        known: Beat | None = None
        deadline = 0.0
        while True:
            try:
                return self._create()
            except Exception as error:  # FileExistsError, or what the library makes of a condition that does not hold
                found = self.holder()
                if found is None and not isinstance(error, FileExistsError):
                    raise
            if found is None:
                continue
            if known is None:
                known, deadline = found, time.monotonic() + STALE
            elif found["beat"] != known["beat"] or found["token"] != known["token"]:
                raise ValueError(
                    f"{self.url} is in use by {_named(found)}. Wait for it, stop it, or choose another run_dir."
                )
            if _is_dead(found) or time.monotonic() > deadline:
                with suppress(FileNotFoundError):
                    self.files.rm_file(self.place)
                continue
            if deadline - time.monotonic() > STALE - 1:
                still = "waiting up to %d s to see whether it still runs"
                log.warning(f"%s was held by %s: {still}.", self.url, _named(found), STALE)
            time.sleep(1)

    def training(self) -> str | None:
        """The process that trains in the bucket, as its lock says; None without one."""
        with explained(self.url):
            found = self.holder()
        alive = found is not None and not _is_dead(found) and time.time() - found["beat"] < STALE
        return _named(found) if found is not None and alive else None

    def _create(self) -> None:
        self.files.pipe_file(self.place, self._beat_bytes(), mode="create")

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            try:
                self.check()
                self.files.pipe_file(self.place, self._beat_bytes())
            except Exception as error:  # a network fails in many ways, and may be back soon
                log.warning("the lock of %s could not be renewed: %s", self.url, error)

    def _beat_bytes(self) -> bytes:
        beat = Beat(pid=os.getpid(), host=socket.gethostname(), since=self._since, token=self.token, beat=time.time())
        return json.dumps(beat).encode()

    def holder(self) -> Beat | None:
        """Who holds it, or held it and was lost."""
        self.files.invalidate_cache()
        try:
            found: Beat = json.loads(self.files.cat_file(self.place))
        except FileNotFoundError:
            return None
        return found

    def _is_mine(self) -> bool:
        found = self.holder()
        return found is not None and found["token"] == self.token


def _named(beat: Beat) -> str:
    return f"process {beat['pid']} on {beat['host']}, since {beat['since']}"


def _is_dead(beat: Beat) -> bool:
    """Whether it is known that a process has ended; of other machines nothing is known."""
    if beat["host"] != socket.gethostname():
        return False
    try:
        os.kill(beat["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
