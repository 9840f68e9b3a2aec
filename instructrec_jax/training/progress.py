"""How far a run has come, apart from its arrays: what a checkpoint keeps as JSON beside the state."""

import json
import math
import zlib
from dataclasses import asdict, dataclass, replace
from typing import NotRequired, Self, TypedDict

from instructrec_jax.files import check_type

StreamPosition = dict[str, object]
"""Where a stream was, as `StreamSource.get_state` gives it."""


class _Fields(TypedDict):
    """The fields of a checkpoint's progress; those that the first version did not write are NotRequired."""

    data: str
    tokens: int
    stream: dict[str, object] | None
    best_value: float | None
    best_step: int | None
    stale: int
    measure: NotRequired[str | None]
    checksum: NotRequired[str]


@dataclass(frozen=True)
class Progress:
    """What a run has done up to a step.

    Attributes:
      data: fingerprint of the training data.
      tokens: trained on so far, without padding.
      stream: position in the data where they are a stream.
      best_value, best_step: the best evaluation so far, the latest one among equals; None: none yet.
      stale: evaluations since the metric last became better.
      measure: what `best_value` is: the metric and the cases it was measured on. None: not known (the first version).
    """

    data: str
    tokens: int = 0
    stream: StreamPosition | None = None
    best_value: float | None = None
    best_step: int | None = None
    stale: int = 0
    measure: str | None = None

    def trained(self, tokens: int, stream: StreamPosition | None) -> Self:
        """After one more step, on so many tokens."""
        return replace(self, tokens=self.tokens + tokens, stream=stream)

    def evaluated(self, step: int, value: float, *, greater: bool) -> Self:
        """After an evaluation. Of equal values the latest is the best, as `Checkpoints` keeps it; it is not better."""
        if _better(value, self.best_value, greater):
            return replace(self, best_value=value, best_step=step, stale=0)
        return replace(self, best_step=step if value == self.best_value else self.best_step, stale=self.stale + 1)

    def measured_as(self, measure: str) -> Self:
        """The same, without its best evaluation where that was another measure."""
        if self.measure not in (None, measure):
            return replace(self, measure=measure, best_value=None, best_step=None, stale=0)
        return replace(self, measure=measure)

    def out_of_patience(self, patience: int | None) -> bool:
        """Whether `evaluation.patience` says to stop."""
        return patience is not None and self.stale >= patience

    def to_json(self) -> dict[str, object]:
        """As a JSON object with its own checksum."""
        fields = asdict(self)
        return fields | {"checksum": _checksum(fields)}

    @classmethod
    def from_json(cls, value: object, where: str) -> Self:
        """The inverse of `to_json`; also reads what the first version wrote.

        Raises ValueError, naming `where` and the field, where the value is not what a run writes.
        """
        kept: _Fields = check_type(value, _Fields, where)
        fields = dict(kept)
        checksum = fields.pop("checksum", None)
        if (checksum is not None or "measure" in fields) and checksum != _checksum(fields):
            raise ValueError(f"{where}: checksum does not fit the other fields: the file is damaged.")
        known = {name: fields[name] for name in cls.__dataclass_fields__ if name in fields}
        best_value, best_step = kept["best_value"], kept["best_step"]
        numbers = {"tokens": kept["tokens"], "stale": kept["stale"], "best_step": best_step or 0}
        for name, number in numbers.items():
            if number < 0:
                raise ValueError(f"{where}: {name} should be 0 or more, but is {number}: the file is damaged.")
        if (best_value is None) != (best_step is None) or not math.isfinite(best_value or 0):
            raise ValueError(
                f"{where}: best_value {best_value} and best_step {best_step} do not fit: the file is damaged."
            )
        return cls(**known)  # type: ignore[arg-type]


def _better(new: float, old: float | None, greater: bool) -> bool:
    if old is None or not math.isfinite(new):
        return old is None and math.isfinite(new)
    return new > old if greater else new < old


def _checksum(fields: dict[str, object]) -> str:
    return f"{zlib.crc32(json.dumps(fields, sort_keys=True).encode()):08x}"
