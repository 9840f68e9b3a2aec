"""Settings of the data: sources, mixture and batches."""

from dataclasses import dataclass, field
from typing import Literal

from instructrec_jax.data.hold_out import HoldOutConfig
from instructrec_jax.data.skipped import OnBadExample
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.masking.masker import MaskConfig

# Named, because --help shows a setting's comment only where its type is a plain name.
Truncate = Literal["error", "left", "right", "drop"]
Split = Literal["train", "validation", "test"]
Sources = Literal["train", "validation", "test", "unlabeled"]  # the lists of sources

DEFAULT_BATCH_SIZE = 32


@dataclass
class DataConfig:
    """Where examples come from, and the shape of a batch."""

    train: list[SourceConfig] = field(default_factory=list)  # sources to train on, mixed by their weights
    validation: list[SourceConfig] = field(default_factory=list)  # evaluated during training; picks the best checkpoint
    test: list[SourceConfig] = field(default_factory=list)  # evaluated before and after tuning
    unlabeled: list[SourceConfig] = field(default_factory=list)  # examples without labels: see semi_supervised
    prepare: str | None = None  # name of a bundled demo, whose data is written to task.catalogue unless that exists
    temperature: float = 1.0  # tasks are mixed in proportion to size ** (1 / temperature)
    size_cap: int | None = None  # cap on a task's size when computing mixture weights; null: no cap
    batch_size: int | None = None  # examples per step, over all devices; null: 32, unless batch_rows is set
    batch_rows: int | None = None  # instead of batch_size: packed rows of max_length tokens per step, over all devices
    stream_window: int = 4096  # with batch_rows, examples of a stream that are packed together
    max_length: int = 128  # maximum tokens per text, special tokens included
    truncate: Truncate = "error"  # longer texts: error, cut on the left or right, or drop (cuts and drops are counted)
    on_bad_example: OnBadExample = "error"  # error: stop at a bad record; skip: leave it out and count it
    store: str | None = None  # folder of the prepared (tokenized) data; null: beside the data; memory: keep none
    workers: int | None = None  # processes that prepare data; null: one per core
    hold_out: HoldOutConfig = field(default_factory=HoldOutConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)

    @property
    def examples_per_step(self) -> int | None:
        """`batch_size` or its default; None where a batch is `batch_rows` rows."""
        return None if self.batch_rows is not None else self.batch_size or DEFAULT_BATCH_SIZE
