"""Copies of data files with placeholders in place of personal data: `prepare mask`."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from instructrec_jax.data.example import BadExample, suggest
from instructrec_jax.data.rows import find_files, open_files
from instructrec_jax.files import write_jsonl
from instructrec_jax.masking.masker import Masker
from instructrec_jax.preparation.own_config import MaskFilesConfig


@dataclass(frozen=True)
class Masked:
    """What `mask_files` did.

    Attributes:
      rows, changed: all rows, and those with personal data.
      counts: kind of personal data -> number of places.
    """

    rows: int
    changed: int
    counts: dict[str, int]

    def describe(self, out: str) -> str:
        found = ", ".join(f"{kind} {count:,}" for kind, count in self.counts.items()) or "nothing"
        return f"wrote {out}: {self.rows:,} rows, {self.changed:,} of them with personal data\nmasked: {found}"


def mask_files(config: MaskFilesConfig) -> Masked:
    """Masks the texts of all rows; each row has a numbering of its own, so its columns share their placeholders.

    The file appears once it is whole. Only one row is in memory at a time.

    Raises ValueError: invalid settings, an unreadable file, a damaged row (whose values the error does not show).
    """
    out, files = Path(config.out), [file for path in config.files for file in find_files(path)]
    if not files:
        raise ValueError("name one or more data files: prepare mask FILE... --out masked.jsonl.")
    if out.suffix != ".jsonl":
        raise ValueError(f"--out {config.out or 'is missing'}: name the .jsonl file to write.")
    if out.resolve() in [file.resolve() for file in files]:
        raise ValueError(f"--out {out} is one of the files to read: choose another name.")
    if out.exists() and not config.overwrite:
        raise ValueError(f"{out} exists: choose another --out, or set --overwrite true.")
    masker, rows = Masker(config), open_files(files)
    counts, changed = Counter[str](), 0

    def masked() -> Iterator[dict[str, object]]:
        nonlocal changed
        known: set[str] = set()
        for index in range(len(rows)):
            try:
                row = rows.row(index)
            except BadExample as error:
                where = rows.where(index)
                raise ValueError(f"{where}: {error.reason}; it is not shown here: look it up in the file.") from None
            known |= row.keys()
            session = masker.session()
            yield {name: session.mask_value(x) if name in (config.columns or row) else x for name, x in row.items()}
            counts.update(session.counts)
            changed += bool(session.counts)
        for name in config.columns:
            if name not in known:
                hint = suggest(name, sorted(known))
                there = ", ".join(sorted(known))
                raise ValueError(f"--columns: no row has a column {name!r}; there are {there}.{hint}")

    return Masked(write_jsonl(out, masked()), changed, dict(sorted(counts.items())))
