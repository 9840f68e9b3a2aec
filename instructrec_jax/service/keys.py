"""The keys of the service: random, shown once, kept as salted hashes in a file of their own.

A key is `irj-ID-SECRET` with 256 random bits as SECRET. Nobody can guess these, so one HMAC-SHA-256 hides them: the
slow hashes of passwords (scrypt, argon2) protect what people choose, and would cost each request 50 ms. ID finds the
key in the file; the comparison takes the same time for every SECRET, and an unknown ID costs as much as a known one.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypedDict

from instructrec_jax.files import read_json, try_lock, write_json

logger = logging.getLogger(__name__)
NAME = re.compile(r"[\w.@-]{1,40}", re.ASCII)
KEY = re.compile(r"irj-([0-9a-f]{12})-([0-9a-f]{64})")
ROLES = ("user", "metrics", "admin")
FOR_ALL = frozenset({"", "models", "openapi.json"})  # what a key may read whatever its routes are


class KeyRow(TypedDict):
    """A key in the file."""

    id: str
    name: str
    salt: str
    digest: str
    routes: list[str]
    models: list[str]
    roles: list[str]
    per_minute: int | None
    tokens_per_day: int | None
    created: str
    revoked: str | None


class KeyFile(TypedDict):
    keys: list[KeyRow]


@dataclass(frozen=True)
class Key:
    """What a caller may do.

    Attributes:
      id: what stands in the key itself, and finds it.
      name: what logs and metrics call it.
      salt, digest: of its secret, in hexadecimal digits.
      routes: names of routes (`chat`: /v1/chat/completions), or patterns of names (`*`) or of paths (`/v1/*`).
      models: names of models, or patterns.
      roles: user: the routes; metrics: the routes of monitoring; admin: everything.
      per_minute: requests per minute; None: any number.
      tokens_per_day: tokens read and written per day (UTC); None: any number.
      created, revoked: times in ISO 8601; revoked is None while the key is valid.
    """

    id: str
    name: str
    salt: str
    digest: str
    routes: tuple[str, ...] = ("*",)
    models: tuple[str, ...] = ("*",)
    roles: tuple[str, ...] = ("user",)
    per_minute: int | None = None
    tokens_per_day: int | None = None
    created: str = ""
    revoked: str | None = None

    def may_call(self, path: str, role: str = "user") -> bool:
        """Whether this key opens a route, given by its path, that needs a role."""
        if "admin" in self.roles:
            return True
        if role not in self.roles:
            return False
        name = route_name(path)
        return role != "user" or name in FOR_ALL or any(_fits(name, path, pattern) for pattern in self.routes)

    def may_use(self, model: str) -> bool:
        return "admin" in self.roles or any(fnmatchcase(model, pattern) for pattern in self.models)


def route_name(path: str) -> str:
    """The name of a route in a key: chat of /v1/chat/completions, recommend of /recommend, "" of /."""
    return path.removeprefix("/v1").strip("/").partition("/")[0]


def _fits(name: str, path: str, pattern: str) -> bool:
    return fnmatchcase(path if pattern.startswith("/") else name, pattern)


def unknown_routes(patterns: Sequence[str], paths: Sequence[str]) -> list[str]:
    """The patterns that fit none of the paths."""
    return [p for p in patterns if not any(_fits(route_name(path), path, p) for path in paths)]


# ---------------------------------------------------------------- the file


def read_keys(path: str | Path) -> list[Key]:
    """The keys of a file, revoked ones too. Raises ValueError if it is damaged or others may write it; OSError."""
    if stat.S_IMODE(os.stat(path).st_mode) & 0o022:
        raise ValueError(f"others may write {path}, and so give themselves keys: run `chmod 600 {path}`.")
    rows = read_json(path, KeyFile)["keys"]
    lists = ("routes", "models", "roles")
    return [Key(**{**row, **{name: tuple(row[name]) for name in lists}}) for row in rows]  # type: ignore[literal-required, arg-type]


def add_key(
    path: str | Path,
    name: str,
    *,
    routes: Sequence[str] = ("*",),
    models: Sequence[str] = ("*",),
    roles: Sequence[str] = ("user",),
    per_minute: int | None = None,
    tokens_per_day: int | None = None,
) -> str:
    """Adds a key to a file, creating it if needed, and returns the key, which is nowhere else.

    Raises ValueError for a bad name, role or limit, and for a name that a valid key has already.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a key: use up to 40 letters, digits, and . _ @ -.")
    if unknown := set(roles) - set(ROLES):
        raise ValueError(f"there is no role {min(unknown)!r}; the roles are: {', '.join(ROLES)}.")
    for option, number in (("per_minute", per_minute), ("tokens_per_day", tokens_per_day)):
        if number is not None and number < 1:
            raise ValueError(f"--{option} is {number}; it must be at least 1. `revoke` ends a key.")
    with _locked(Path(path)):
        keys = read_keys(path) if Path(path).exists() else []
        if any(key.name == name and not key.revoked for key in keys):
            raise ValueError(f"{path} has a key {name!r} already: revoke it first, or choose another name.")
        identity, secret, salt = secrets.token_hex(6), secrets.token_hex(32), secrets.token_hex(16)
        limits = {"per_minute": per_minute, "tokens_per_day": tokens_per_day}
        which = {"routes": tuple(routes), "models": tuple(models), "roles": tuple(roles)}
        digest = _digest(salt, secret)
        keys.append(Key(identity, name, salt, digest, **which, **limits, created=_now()))  # type: ignore[arg-type]
        _write(path, keys)
    return f"irj-{identity}-{secret}"


def revoke_key(path: str | Path, name: str) -> None:
    """Ends the valid key of a name. Raises ValueError if there is none."""
    with _locked(Path(path)):
        keys = read_keys(path)
        valid = [key.name for key in keys if not key.revoked]
        if name not in valid:
            raise ValueError(f"{path} has no valid key {name!r}; it has: {', '.join(valid) or 'none'}.")
        ended = [Key(**{**asdict(k), "revoked": _now()}) if k.name == name and not k.revoked else k for k in keys]
        _write(path, ended)


def _write(path: str | Path, keys: Sequence[Key]) -> None:
    before = os.umask(0o077)  # from its first byte on, nobody else reads the file
    try:
        write_json(path, {"keys": [asdict(key) for key in keys]})
    finally:
        os.umask(before)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits until no other process changes the file. Its own lock file, because each change replaces the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "ab") as file:
        while not try_lock(file):
            time.sleep(0.05)
        yield


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _digest(salt: str, secret: str) -> str:
    return hmac.new(bytes.fromhex(salt), secret.encode(), hashlib.sha256).hexdigest()


# ---------------------------------------------------------------- in the running service


class Keys:
    """The valid keys of a file, read again within a second after the file has changed.

    A file that cannot be read any more leaves the keys as they are, and the log has an error.

    Raises ValueError if there is no file, or no valid key in it.
    """

    def __init__(self, path: str | Path, clock: Callable[[], float] = time.monotonic):
        self.path, self._clock = Path(path), clock
        if not self.path.exists():
            raise ValueError(f"there is no file {path} (keys): `serve keys add NAME --keys {path}` makes it.")
        self._signature = self._signed()
        self._read()
        self._checked = clock()
        if not self._valid:
            raise ValueError(f"no key in {path} is valid: run `serve keys add NAME --keys {path}`.")

    def __iter__(self) -> Iterator[Key]:
        return iter(self._valid.values())

    def find(self, text: str) -> Key | None:
        """The valid key that this is; None: none."""
        if self._clock() - self._checked >= 1:
            self._checked = self._clock()
            self._refresh()
        parts = KEY.fullmatch(text)
        identity, secret = parts.groups() if parts else ("", "")
        key = self._valid.get(identity)
        same = hmac.compare_digest(_digest(key.salt if key else "00", secret), key.digest if key else "0" * 64)
        return key if same else None

    def _refresh(self) -> None:
        signature = self._signed()
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._read()
        except (OSError, ValueError):
            logger.error("%s cannot be read: the keys stay as they were. `serve keys list` has the reason.", self.path)

    def _read(self) -> None:
        self._valid = {key.id: key for key in read_keys(self.path) if not key.revoked}

    def _signed(self) -> tuple[int, ...]:
        try:
            found = os.stat(self.path)
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_ino, found.st_size, found.st_mode


class Strangers:
    """Requests without a valid key, counted by address: who tries many is told to wait, a valid key never is.

    A valid key passes whatever its address did, because many clients may share the address of a proxy.
    """

    MOST = 10_000  # addresses that are remembered; the one that was quiet longest is forgotten first

    def __init__(self, per_minute: int = 60, clock: Callable[[], float] = time.monotonic):
        if per_minute < 1:
            raise ValueError(f"limits.failed_keys must be at least 1, but is {per_minute}.")
        self.per_minute, self._clock = per_minute, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address -> (tries left, when that was)

    def take(self, address: str) -> int | None:
        """Counts a try. None, or the seconds until the next one is looked at."""
        now = self._clock()
        left, since = self._left.pop(address, (float(self.per_minute), now))
        left = min(self.per_minute, left + (now - since) * self.per_minute / 60)
        self._left[address] = (left - 1 if left >= 1 else left, now)
        if len(self._left) > self.MOST:
            self._left.popitem(last=False)
        return None if left >= 1 else int((1 - left) * 60 / self.per_minute) + 1


class Budgets:
    """What each key has left of its limits: in memory, so each replica of the service counts for itself."""

    def __init__(self, clock: Callable[[], float] = time.time):
        self._clock = clock
        self._requests: dict[str, tuple[float, float]] = {}  # id -> (requests left, when that was)
        self._tokens: dict[str, tuple[int, int]] = {}  # id -> (day, tokens used)

    def take(self, key: Key) -> tuple[str, int] | None:
        """Counts a request of a key. None, or (the limit that it exceeds, seconds until the next may come)."""
        now = self._clock()
        day, used = self._tokens.get(key.id, (0, 0))
        if key.tokens_per_day is not None and day == now // 86400 and used >= key.tokens_per_day:
            return "tokens_per_day", int(86400 - now % 86400) + 1
        if key.per_minute is None:
            return None
        left, since = self._requests.get(key.id, (float(key.per_minute), now))
        left = min(key.per_minute, left + max(0.0, now - since) * key.per_minute / 60)
        self._requests[key.id] = (left - 1 if left >= 1 else left, now)
        return None if left >= 1 else ("per_minute", int((1 - left) * 60 / key.per_minute) + 1)

    def spend(self, key: Key, tokens: int) -> None:
        """Counts the tokens of an answer that has ended."""
        today = int(self._clock() // 86400)
        day, used = self._tokens.get(key.id, (today, 0))
        self._tokens[key.id] = (today, tokens + (used if day == today else 0))
