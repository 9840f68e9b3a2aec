"""The data of a run: each source is opened and parsed once, its examples are encoded once, then batched."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from instructrec_jax.data.batch import BatchTexts, lengths_of
from instructrec_jax.data.data_config import Split
from instructrec_jax.data.example import Example
from instructrec_jax.data.hold_out import SEEN, UNSEEN, check_hold_out, is_held_out
from instructrec_jax.data.kinds import register_kind
from instructrec_jax.data.loader import HostBatch, Loader, RowLoader, StreamLoader
from instructrec_jax.data.mixture import Mixture
from instructrec_jax.data.packing import length_buckets
from instructrec_jax.data.skipped import SkippedRow, listing
from instructrec_jax.data.sources import ListSource, open_sources
from instructrec_jax.data.stream import StreamSource
from instructrec_jax.evaluation.evaluator import segments
from instructrec_jax.preparation.interaction_rows import KIND, InteractionRows
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.given import Given
from instructrec_jax.tasks.base import Encoded, Task
from instructrec_jax.tasks.encoding import check_usable, encode_usable

register_kind(KIND, InteractionRows)


class RunData:
    """The sources of data.train, data.validation and data.test, each opened on first use.

    Args:
      given: rows of splits in memory, in place of their file; see `runs.given`.

    Attributes:
      config: the settings, completed with those that the task reads from data.train (such as label names).
    """

    def __init__(self, config: Config, given: Given | None = None):
        self._given = given or {}
        self._opened: dict[Split, Mixture | StreamSource] = {}
        self._unusable: dict[str, SkippedRow] = {}  # by file and line
        self.config = config
        if not config.task.complete and config.data.train:
            if isinstance(self.source("train"), StreamSource):
                raise ValueError("task.labels cannot be read from a stream: list them, or set streaming: false.")
            self.config = replace(config, task=config.task.learn(self.examples("train")))

    def source(self, split: Split) -> Mixture | StreamSource:
        """The opened sources of a split. Raises ValueError if the split lists none."""
        if split not in self._opened:
            sources = getattr(self.config.data, split)
            if not sources:
                raise ValueError(f"data.{split} lists no sources: name at least one file or data set.")
            if any(not source.path for source in sources):
                raise ValueError(f"data.{split} has a source without path: name a file, a folder or a data set.")
            data = self.config.data
            self._opened[split] = open_sources(
                sources,
                labels=getattr(self.config.task, "labels", None),
                numbers=self.config.task.reads_numbers,
                on_bad_example=data.on_bad_example,
                temperature=data.temperature,
                size_cap=data.size_cap,
                seed=self.config.seed,
                given=self._given.get(split),
            )
        return self._opened[split]

    @property
    def skipped(self) -> list[SkippedRow]:
        """Rows of the opened sources that `on_bad_example: skip` left out: unreadable or unusable for the task."""
        unreadable = [row for source in self._opened.values() for row in source.skipped]
        return [*unreadable, *self._unusable.values()]

    def encode(self, task: Task, examples: Sequence[Example]) -> list[Encoded]:
        """Encodes examples. An example that the task cannot use is an error or skipped, by `data.on_bad_example`."""
        encoded, bad = encode_usable(task, examples, self.config.data.on_bad_example)
        self._unusable.update({row.where: row for row in bad})
        if bad and len(bad) == len(examples):
            raise ValueError(f"none of {len(bad):,} examples is usable.\n{listing(bad)}")
        return some_left(encoded)

    def examples(self, split: Split) -> list[Example]:
        """All examples of a split, in order."""
        opened = self.source(split)
        if isinstance(opened, StreamSource):
            raise ValueError(
                f"data.{split} is a stream and cannot be evaluated on: set streaming: false for its source."
            )
        return [opened[i] for i in range(len(opened))]

    def cases(self, task: Task, split: Split) -> list[Encoded]:
        """All examples of a split, in order, encoded; empty if it lists no sources.

        Held-out examples stay in data.test only. data.validation is reduced to `evaluation.max_examples` examples,
        sampled with the run's seed.
        """
        if not getattr(self.config.data, split):
            return []
        examples = self.examples(split)
        if split == "test":
            check_hold_out(examples, self.config.data.hold_out, "data.test")
            return self.encode(task, examples)
        kept = [e for e in examples if not is_held_out(e, self.config.data.hold_out)]
        if not kept:
            raise ValueError(f"data.hold_out removes every example of data.{split}: hold out less.")
        most = self.config.evaluation.max_examples
        if split == "validation" and most is not None and most < len(kept):
            drawn = np.random.default_rng(self.config.seed).choice(len(kept), most, replace=False)
            kept = [kept[i] for i in sorted(drawn)]
        return self.encode(task, kept)

    def case_groups(self, cases: Sequence[Encoded]) -> dict[str, list[Encoded]]:
        """Cases by reported segment: seen and unseen with `data.hold_out`, else by `segment_by`."""
        hold_out, segment_by = self.config.data.hold_out, self.config.evaluation.segment_by
        if not hold_out:
            return segments(cases, segment_by)
        if segment_by is not None:
            raise ValueError(
                "evaluation.segment_by cannot be combined with data.hold_out, whose segments are seen and unseen."
            )
        groups: dict[str, list[Encoded]] = {SEEN: [], UNSEEN: []}
        for e in cases:
            groups[UNSEEN if is_held_out(e.example, hold_out) else SEEN].append(e)
        return {name: own for name, own in groups.items() if own}

    def training(self, task: Task, row_multiple: int) -> "TrainingData":
        """Encodes data.train and batches it.

        Args:
          row_multiple: the number of rows of a batch is a multiple of this.
        """
        check_batch(self.config, task, row_multiple)
        opened = self.source("train")
        if isinstance(opened, StreamSource):
            return _stream_batches(self.config, task, opened, row_multiple)
        per_source = []
        for source in opened.sources:
            examples = [source[i] for i in range(len(source))]
            kept = [e for e in examples if not is_held_out(e, self.config.data.hold_out)]
            if len(kept) < len(examples):
                task.context.count("training examples held out", len(examples) - len(kept))
            per_source.append(self.encode(task, kept) if kept else [])
        encoded = [e for each in per_source for e in each]
        if not encoded:
            raise ValueError("data.hold_out removes every example of data.train: hold out less.")
        task.prepare(encoded)
        mixture = _remixed(self.config, opened, per_source)
        return _batches(self.config, task, encoded, mixture, row_multiple)


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
      packing: rows and padding of an epoch, as text for the summary (empty if each batch is packed by itself).
    """

    fingerprint: str
    batches: Callable[[int, int, dict[str, object] | None], Iterator[HostBatch]]
    step_size: str
    encoded: list[Encoded] = field(default_factory=list)
    tokens: int = 0
    epoch_steps: float = 0.0
    packing: str = ""

    def describe(self) -> str:
        if not self.encoded:
            return "a stream of unknown size"
        examples = f"{len(self.encoded):,} examples with {self.tokens:,} tokens{self.packing}"
        return f"{examples}; {self.epoch_steps:,.1f} steps per epoch"


def _remixed(config: Config, opened: Mixture, per_source: Sequence[Sequence[Encoded]]) -> Mixture:
    """The mixture of the usable examples: some may have been dropped, held out or split into several."""
    if [len(each) for each in per_source] == [len(source) for source in opened.sources]:
        return opened
    left, weights = [], []
    for each, source, setting in zip(per_source, opened.sources, config.data.train, strict=True):
        if each:
            left.append(ListSource([e.example for e in each], source.name, source.task))
            weights += [] if setting.weight is None else [setting.weight]
    return Mixture(
        left,
        weights=weights or None,
        temperature=config.data.temperature,
        size_cap=config.data.size_cap,
        seed=config.seed,
    )


def _batches(
    config: Config,
    task: Task,
    encoded: list[Encoded],
    mixture: Mixture,
    row_multiple: int,
) -> TrainingData:
    size, rows = config.data.examples_per_step, config.data.batch_rows

    def gather(indices: np.ndarray, rng: np.random.Generator) -> BatchTexts:
        return task.gather([encoded[i] for i in indices], rng)

    lengths, target_lengths = lengths_of([e.text for e in encoded])
    tokens = int(lengths.sum()) + (0 if target_lengths is None else int(target_lengths.sum()))
    if size is not None:
        shape = (size, buckets(config), row_multiple, config.seed, target_buckets(task))
        loader: Loader | RowLoader = Loader(mixture.order, gather, *shape)
        step_size, epoch_steps, packing = f"{size} examples", len(encoded) / size, ""
    else:
        assert rows is not None
        length, target_length = config.data.max_length, task.max_target_length if target_lengths is not None else None
        row_shape = (rows, length, config.seed, target_lengths, target_length)
        loader = RowLoader(mixture.order, gather, lengths, *row_shape)
        room = f"{length:,}" + (f" + {target_length:,}" if target_length else "")
        step_size, epoch_steps = f"{rows} rows of {room} tokens", len(loader.epoch(0)) / rows
        packing = f" packed into {len(loader.epoch(0)):,} rows of {room} ({1 - loader.real_share():.1%} padding)"
    return TrainingData(
        fingerprint=mixture.fingerprint,
        batches=lambda start, stop, _: loader.batches(start, stop),
        step_size=step_size,
        encoded=encoded,
        tokens=tokens,
        epoch_steps=epoch_steps,
        packing=packing,
    )


def _stream_batches(config: Config, task: Task, opened: StreamSource, row_multiple: int) -> TrainingData:
    if config.data.hold_out:
        raise ValueError("data.hold_out does not work with a stream: set streaming: false, or filter the data first.")
    if config.data.batch_rows is not None:
        raise ValueError(
            "data.batch_rows packs whole epochs, but data.train is a stream, whose length is unknown: set "
            "data.batch_size instead, or streaming: false."
        )

    def gather(examples: list[Example], rng: np.random.Generator) -> BatchTexts:
        return task.gather(some_left(encode_usable(task, examples, "error")[0]), rng)

    opened.check = partial(check_usable, task)
    size = config.data.examples_per_step or 0
    shape = (size, buckets(config), row_multiple, config.seed, target_buckets(task))
    return TrainingData(opened.name, StreamLoader(opened, gather, *shape).batches, f"{size} examples")


def check_batch(config: Config, task: Task, row_multiple: int) -> None:
    """Checks data.batch_size and data.batch_rows: at most one is set, and the task and mesh support the rows."""
    size, rows = config.data.batch_size, config.data.batch_rows
    if size is not None and rows is not None:
        raise ValueError(
            f"data.batch_size ({size} examples) and data.batch_rows ({rows} packed rows) are both set: set one of "
            "them, and leave out the other."
        )
    if rows is None:
        return
    if task.couples_examples:
        raise ValueError(
            f"the task {config.task.name} compares the examples of a batch with each other, so its batch size is a "
            "number of examples: set data.batch_size instead of data.batch_rows."
        )
    if rows % row_multiple:
        shards = row_multiple // config.accumulation
        raise ValueError(
            f"data.batch_rows is {rows}, but must be a multiple of {row_multiple}: {shards} data-parallel devices x "
            f"accumulation {config.accumulation}."
        )


def some_left(encoded: list[Encoded]) -> list[Encoded]:
    if not encoded:
        raise ValueError("data.truncate: drop removed every example: all texts are longer than data.max_length.")
    return encoded


def buckets(config: Config) -> tuple[int, ...]:
    return length_buckets(config.data.max_length)


def target_buckets(task: Task) -> tuple[int, ...]:
    """Row lengths for target texts; empty for a task without target texts."""
    return length_buckets(task.max_target_length) if task.max_target_length else ()
