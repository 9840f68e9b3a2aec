"""The training examples of a run and their batches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from instructrec_jax.data.file_stream import Position
from instructrec_jax.data.fingerprints import fingerprint_of
from instructrec_jax.data.loader import HostBatch
from instructrec_jax.runs.unlabeled import UnlabeledBatches
from instructrec_jax.tasks.encoded_store import EncodedExamples


@dataclass(frozen=True)
class TrainingData:
    """The training examples and their batches.

    Attributes:
      fingerprint: changes when the examples change.
      batches: (start, stop, position of a stream) -> the batches of steps start to stop − 1.
      step_size: size of a batch, as text for the summary.
      encoded: all examples (empty for a stream).
      tokens: number of tokens of all texts and targets.
      epoch_steps: steps per epoch (0 for a stream).
      copies: how many of `encoded` are changed copies, see `data.augmented`.
      packing: rows and padding, as text for the summary (empty for a stream).
      batch_size: examples of a batch; None: it is rows.
      weak_share: share of a step's tokens that the network reads without learning from them.
      largest_step: a step whose batch has the largest shape.
    """

    fingerprint: str
    batches: Callable[[int, int, Position | None], Iterator[HostBatch]]
    step_size: str
    encoded: EncodedExamples = field(default_factory=lambda: EncodedExamples([]))
    tokens: int = 0
    epoch_steps: float = 0.0
    packing: str = ""
    copies: int = 0
    batch_size: int | None = None
    weak_share: float = 0.0
    largest_step: int = 0

    @property
    def examples_per_step(self) -> float:
        """The mean number of examples in a batch. Raises ValueError for rows of a stream, which has no such number."""
        if self.batch_size is not None:
            return self.batch_size
        if not self.epoch_steps:
            raise ValueError(
                "semi_supervised.ratio counts unlabeled examples for each labeled one, but data.train is a stream in "
                "data.batch_rows: set data.batch_size instead."
            )
        return (len(self.encoded) - self.copies) / self.epoch_steps

    def describe(self) -> str:
        if not len(self.encoded):
            return "a stream of unknown size"
        copies = f" ({self.copies:,} changed copies)" if self.copies else ""
        examples = f"{len(self.encoded):,} examples{copies} with {self.tokens:,} tokens{self.packing}"
        return f"{examples}; {self.epoch_steps:,.1f} steps per epoch"


def with_unlabeled(data: TrainingData, unlabeled: UnlabeledBatches) -> TrainingData:
    """The training data with unlabeled examples beside the labeled ones of each batch."""
    labeled = data.tokens / max(data.epoch_steps, 1e-9) if data.epoch_steps else 0.0

    def batches(start: int, stop: int, position: Position | None) -> Iterator[HostBatch]:
        return unlabeled.beside(data.batches(start, stop, position), start, stop)

    return replace(
        data,
        fingerprint=fingerprint_of([data.fingerprint.encode(), unlabeled.fingerprint.encode()]),
        batches=batches,
        step_size=f"{data.step_size} + {unlabeled.size} unlabeled of {len(unlabeled.order):,}",
        weak_share=unlabeled.weak_share(labeled),
    )
