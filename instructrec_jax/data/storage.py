"""Where prepared data are kept, and what identifies the files that they come from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import xxhash

from instructrec_jax.data.parallel import default_workers
from instructrec_jax.files import cache_folder
from instructrec_jax.remote import shown

MEMORY = "memory"  # the setting that keeps nothing on disk
BESIDE = ".instructrec"  # the folder beside the data
KEPT_FROM = 1000  # rows: fewer are prepared again faster than looked for
PARALLEL_FROM = 60_000  # rows: for fewer, starting processes costs more than they save
_BLOCK = 1 << 24
_PACKAGE = Path(__file__).parent.parent


@dataclass(frozen=True)
class Storage:
    """The settings `data.store` and `data.workers`.

    Attributes:
      store: a folder; `memory`; None: beside the data.
      workers: number of processes; None: one per core.
      divided: whether each host may keep a share of the rows, see `data.shares`.
    """

    store: str | None = MEMORY
    workers: int | None = None
    divided: bool = False

    def folder(self, data: Path | None) -> Path | None:
        """The folder of the stores of some data.

        Args:
          data: the file or folder that holds them; None: they have no place of their own (a hub's data set).
        """
        if self.store == MEMORY:
            return None
        if self.store is not None:
            return Path(self.store).expanduser()
        return data.parent / BESIDE if data is not None else cache_folder()

    @property
    def kept_from(self) -> int:
        """The number of rows from which a store is written to disk: any, in a folder that the user chose."""
        return 0 if self.store is not None else KEPT_FROM

    def processes(self, rows: int) -> int:
        if self.workers is not None:
            return self.workers
        return default_workers() if rows >= PARALLEL_FROM else 1


def digest_of(files: Sequence[Path]) -> list[str]:
    """The XXH3 hash (128 bits, hex) of each file's bytes. Raises ValueError for a file that cannot be read."""
    return [_digest(file) for file in files]


def _digest(file: Path) -> str:
    found = xxhash.xxh3_128()
    try:
        with open(file, "rb", buffering=0) as stream:
            while block := stream.read(_BLOCK):
                found.update(block)
    except OSError as error:
        raise ValueError(f"file {shown(file)}: cannot be read ({error}).") from error
    return str(found.hexdigest())


@cache
def code_version(*rooms: str) -> str:
    """A hash of this package's source in some rooms and of the libraries that render and tokenize texts.

    So whatever is prepared by other code is prepared again, and nobody has to remember a version number.
    """
    found = xxhash.xxh3_128()
    for file in sorted(path for room in rooms for path in (_PACKAGE / room).rglob("*.py")):
        found.update(str(file.relative_to(_PACKAGE)).encode())
        found.update(file.read_bytes())
    for name in ("transformers", "tokenizers", "jinja2", "numpy"):
        found.update(f"{name} {version(name)}".encode())
    return str(found.hexdigest())


def digest_of_texts(texts: Iterable[str]) -> str:
    found = xxhash.xxh3_128()
    for text in texts:
        found.update(text.encode() + b"\x00")
    return str(found.hexdigest())
