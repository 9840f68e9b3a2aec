"""What a guess is made of: the table, the settings with their reasons, and the guess itself."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from instructrec_jax.preparation.inspection.columns import Column, Row


class Setting(NamedTuple):
    """A value, and why it was chosen ("": needs no reason)."""

    value: object
    why: str = ""


@dataclass(frozen=True)
class Guess:
    """Attributes:
    task, fields: settings by name.
    inputs: columns whose contents identify an example: equal ones never lie in two splits.
    target: column (or dotted path) of the target.
    blank_targets: whether a row may have no target.
    """

    task: Mapping[str, Setting]
    fields: Mapping[str, Setting]
    inputs: tuple[str, ...]
    target: str
    blank_targets: bool = False

    @property
    def type(self) -> str:
        return str(self.task["type"].value)

    @property
    def trains_labels(self) -> bool:
        return self.type in ("classification", "multilabel", "token_classification")


@dataclass(frozen=True)
class Table:
    """Attributes:
    columns: profiles by name.
    rows: number of rows.
    sample: some or all of them.
    kind: of the chosen backbone: encoder, decoder or encoder_decoder.
    target: column that the user named as target, or None.
    files: for the hint on interactions.
    """

    columns: Mapping[str, Column]
    rows: int
    sample: Sequence[Row] = ()
    kind: str = "encoder"
    target: str | None = None
    files: Sequence[str] = ()

    @property
    def writes(self) -> bool:
        """Whether the backbone writes text."""
        return self.kind != "encoder"

    def named(self, names: Sequence[str], *kinds: str) -> list[Column]:
        """The columns with one of the names, in the order of the names; of one of the kinds, if any are given."""
        by_name = {name.strip().lower(): column for name, column in self.columns.items()}
        found = [by_name[name] for name in dict.fromkeys(names) if name in by_name]
        return [column for column in found if not kinds or column.kind in kinds]


def need_writer(table: Table, why: str) -> None:
    """Raises ValueError unless the backbone writes text."""
    if not table.writes:
        raise ValueError(f"{why}: name a language model, --backbone PATH_OR_HUB_ID (for example Qwen/Qwen3-0.6B).")


def names_of(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(map(str, listed[:20])) + (", ..." if len(listed) > 20 else "")


def as_list(value: object) -> list[object]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
