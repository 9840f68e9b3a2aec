"""The progress of a run: the JSON part of a checkpoint, beside the arrays."""

import json
import math
import zlib
from dataclasses import asdict, dataclass, replace
from typing import NotRequired, Self, TypedDict

from instructrec_jax.data.file_stream import Position
from instructrec_jax.files import check_type


class _Fields(TypedDict):
    """The fields of the JSON; fields that version 0.1 did not write are NotRequired."""

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
    """The progress of a run at a step.

    Attributes:
      data: fingerprint of the training data.
      tokens: tokens trained on so far, without padding.
      stream: position in the data, for streams.
      best_value, best_step: the best evaluation so far, the latest among equals; None: no evaluation yet.
      stale: evaluations since the last improvement of the metric.
      measure: what `best_value` measures: the metric and its cases. None: unknown (version 0.1).
    """

    data: str
    tokens: int = 0
    stream: Position | None = None
    best_value: float | None = None
    best_step: int | None = None
    stale: int = 0
    measure: str | None = None

    def trained(self, tokens: int, stream: Position | None) -> Self:
        """The progress after one more step on `tokens` tokens."""
        return replace(self, tokens=self.tokens + tokens, stream=stream)

    def evaluated(self, step: int, value: float, *, greater: bool) -> Self:
        """The progress after an evaluation. An equal value moves `best_step`, as in `Checkpoints`, but stays stale."""
        if _better(value, self.best_value, greater):
            return replace(self, best_value=value, best_step=step, stale=0)
        return replace(self, best_step=step if value == self.best_value else self.best_step, stale=self.stale + 1)

    def measured_as(self, measure: str) -> Self:
        """The progress with this measure; the best evaluation of another measure is dropped."""
        if self.measure not in (None, measure):
            return replace(self, measure=measure, best_value=None, best_step=None, stale=0)
        return replace(self, measure=measure)

    def out_of_patience(self, patience: int | None) -> bool:
        """Whether to stop early: `patience` evaluations without an improvement."""
        return patience is not None and self.stale >= patience

    def to_json(self) -> dict[str, object]:
        """A JSON object with a checksum."""
        fields = asdict(self)
        return fields | {"checksum": _checksum(fields)}

    @classmethod
    def from_json(cls, value: object, where: str) -> Self:
        """The inverse of `to_json`; also reads version 0.1.

        Raises ValueError, naming `where` and the field, for a malformed or damaged value.
        """
        kept: _Fields = check_type(value, _Fields, where)
        fields: dict[str, object] = {**kept}
        checksum = fields.pop("checksum", None)
        if (checksum is not None or "measure" in fields) and checksum != _checksum(fields):
            raise ValueError(f"{where}: checksum does not match the other fields: the file is damaged.")
        best_value, best_step = kept["best_value"], kept["best_step"]
        numbers = {"tokens": kept["tokens"], "stale": kept["stale"], "best_step": best_step or 0}
        for name, number in numbers.items():
            if number < 0:
                raise ValueError(f"{where}: {name} should be 0 or more, but is {number}: the file is damaged.")
        if (best_value is None) != (best_step is None) or not math.isfinite(best_value or 0):
            raise ValueError(
                f"{where}: best_value {best_value} contradicts best_step {best_step}: the file is damaged."
            )
        return cls(
            data=kept["data"],
            tokens=kept["tokens"],
            stream=kept["stream"],
            best_value=best_value,
            best_step=best_step,
            stale=kept["stale"],
            measure=kept.get("measure"),
        )


def _better(new: float, old: float | None, greater: bool) -> bool:
    if old is None or not math.isfinite(new):
        return old is None and math.isfinite(new)
    return new > old if greater else new < old


def _checksum(fields: dict[str, object]) -> str:
    return f"{zlib.crc32(json.dumps(fields, sort_keys=True).encode()):08x}"
