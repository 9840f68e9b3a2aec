"""The data of a run: each source is opened and parsed once, its examples are encoded once, then batched."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from instructrec_jax.augmentation.augmenter import AugmentConfig
from instructrec_jax.data.augmented import AugmentedSource, ExampleAugmenter, augmented
from instructrec_jax.data.batch import BatchTexts
from instructrec_jax.data.data_config import Sources
from instructrec_jax.data.example import Example
from instructrec_jax.data.fingerprints import digest_of_example
from instructrec_jax.data.hold_out import SEEN, UNSEEN, HoldOutConfig, check_hold_out, is_held_out
from instructrec_jax.data.loader import (
    ImageCounts,
    Loader,
    OwnRows,
    RowLoader,
    rows_here,
)
from instructrec_jax.data.masked import ExampleMask
from instructrec_jax.data.mixed_stream import MixedStream
from instructrec_jax.data.mixture import IndexableSource, Mixture, NumberedExamples, Versions
from instructrec_jax.data.packing import length_buckets
from instructrec_jax.data.skipped import SkippedRow
from instructrec_jax.data.sources import RowSource, open_sources
from instructrec_jax.data.storage import Storage
from instructrec_jax.data.stream import StreamSource
from instructrec_jax.data.stream_loader import StreamLoader, StreamRowLoader
from instructrec_jax.distributed.launch import say
from instructrec_jax.distributed.mesh import DeviceMesh
from instructrec_jax.evaluation.evaluator import segments
from instructrec_jax.preparation.interaction_rows import KIND, InteractionRows
from instructrec_jax.runs.batch_shapes import in_few_shapes
from instructrec_jax.runs.config import Config, to_dict
from instructrec_jax.runs.given import Given
from instructrec_jax.runs.training_data import TrainingData, with_unlabeled
from instructrec_jax.runs.unlabeled import UnlabeledSource, check_unlabeled, open_unlabeled
from instructrec_jax.tasks.base import Encoded, Task
from instructrec_jax.tasks.encoded_store import NONE, EncodedExamples, chosen, encode_stored, joined, token_key
from instructrec_jax.tasks.encoding import check_usable, encode_usable

Some = TypeVar("Some", bound=Sequence[Encoded])

MEASURED: tuple[Sources, ...] = ("validation", "test")
KINDS = {KIND: InteractionRows}  # of sources, beside files and data sets


class RunData:
    """The sources of data.train, data.validation and data.test, each opened on first use.

    Args:
      given: rows of splits in memory, in place of their file; see `runs.given`.

    Attributes:
      config: the settings, completed with those that the task reads from data.train (such as label names).
    """

    def __init__(self, config: Config, given: Given | None = None):
        self._given = given or {}
        self._opened: dict[Sources, Mixture | StreamSource | MixedStream] = {}
        self._unusable: dict[str, SkippedRow] = {}  # by file and line
        self.config = config
        if not config.task.complete and config.data.train:
            if not isinstance(self.source("train"), Mixture):
                raise ValueError("task.labels cannot be read from a stream: list them, or set streaming: false.")
            self.config = replace(config, task=config.task.learn(self.examples("train")))

    def source(self, split: Sources) -> Mixture | StreamSource | MixedStream:
        """The opened sources of a split. Raises ValueError if the split lists none."""
        if split not in self._opened:
            sources = getattr(self.config.data, split)
            if not sources:
                raise ValueError(f"data.{split} lists no sources: name at least one file or data set.")
            if any(not source.path for source in sources):
                raise ValueError(f"data.{split} has a source without path: name a file, a folder or a data set.")
            data = self.config.data
            if split not in ("train", "unlabeled") and any(source.augment != AugmentConfig() for source in sources):
                raise ValueError(
                    f"data.{split} has a source with augment, but only data.train is augmented: leave it out."
                )
            self._opened[split] = open_sources(
                sources,
                labels=getattr(self.config.task, "labels", None),
                numbers=self.config.task.reads_numbers,
                on_bad_example=data.on_bad_example,
                temperature=data.temperature,
                size_cap=data.size_cap,
                seed=self.config.seed,
                given=None if split == "unlabeled" else self._given.get(split),
                storage=self._storage(split),
                task=to_dict(self.config)["task"],
                kinds=KINDS,
                mask=example_mask(self.config),
                optional_output=split == "unlabeled",
            )
        return self._opened[split]

    @property
    def skipped(self) -> list[SkippedRow]:
        """Rows of the opened sources that `on_bad_example: skip` left out: unreadable or unusable for the task."""
        unreadable = [row for source in self._opened.values() for row in source.skipped]
        return [*unreadable, *self._unusable.values()]

    @property
    def counts(self) -> dict[Sources, list[int | None]]:
        """The number of examples of each source of the opened splits; None: of a stream."""
        return {
            split: list(map(len, source.sources)) if isinstance(source, Mixture) else [None]
            for split, source in self._opened.items()
        }

    def _storage(self, split: Sources) -> Storage:
        """Evaluations read all cases in every process; a batch of training is divided between them."""
        return Storage(self.config.data.store, self.config.data.workers, divided=split == "train")

    def encode(
        self, task: Task, split: Sources, examples: IndexableSource | Mixture, numbers: np.ndarray
    ) -> EncodedExamples:
        """Encodes the examples with these numbers, int64. One that the task cannot use is an error or skipped, by
        `data.on_bad_example`."""
        on_bad = self.config.data.on_bad_example
        settings = to_dict(self.config)["task"]
        encoded = encode_stored(
            task,
            examples,
            numbers,
            on_bad,
            name=f"data.{split}",
            folder=self._folder(examples),
            key=token_key(task, settings, examples.fingerprint, numbers, on_bad),
            storage=self._storage(split),
        )
        self._unusable.update({row.where: row for row in encoded.skipped})
        return encoded

    def _folder(self, examples: IndexableSource | Mixture) -> Path | None:
        """The folder of the stores of a source, or of the first source of a mixture."""
        source = examples.sources[0] if isinstance(examples, Mixture) else examples
        source = source.source if isinstance(source, UnlabeledSource) else source
        return source.folder if isinstance(source, RowSource) else None

    def examples(self, split: Sources) -> Mixture:
        """All examples of a split, in order; read one at a time."""
        opened = self.source(split)
        if not isinstance(opened, Mixture):
            raise ValueError(
                f"data.{split} is a stream and cannot be evaluated on: set streaming: false for its source."
            )
        return opened

    def cases(self, task: Task, split: Sources) -> EncodedExamples:
        """All examples of a split, in order, encoded; empty if it lists no sources.

        Held-out examples stay in data.test only. data.validation is reduced to `evaluation.max_examples` examples,
        sampled with the run's seed.
        """
        if not getattr(self.config.data, split):
            return EncodedExamples([])
        examples, hold_out = self.examples(split), self.config.data.hold_out
        numbers = np.arange(len(examples))
        if split == "test":
            check_hold_out(examples, hold_out, "data.test")
        elif hold_out:
            numbers = _not_held_out(examples, hold_out)
            if not len(numbers):
                raise ValueError(f"data.hold_out removes every example of data.{split}: hold out less.")
        most = self.config.evaluation.max_examples
        if split == "validation" and most is not None and most < len(numbers):
            drawn = np.random.default_rng(self.config.seed).choice(len(numbers), most, replace=False)
            numbers = numbers[np.sort(drawn)]
        encoded = self.encode(task, split, examples, numbers)
        _tell(split, [encoded])
        return some_left(encoded)

    def train(self, task: Task) -> EncodedExamples:
        """The examples of data.train that are not held out, source by source, encoded."""
        return joined(self._per_source(task, self.examples("train")))

    def _per_source(self, task: Task, opened: Mixture) -> list[EncodedExamples]:
        hold_out, found = self.config.data.hold_out, []
        for source in opened.sources:
            numbers = np.arange(len(source))
            if hold_out:
                numbers = _not_held_out(source, hold_out)
                task.context.count("training examples held out", len(source) - len(numbers))
            found.append(self.encode(task, "train", source, numbers))
        if not any(map(len, found)):
            if hold_out:
                raise ValueError("data.hold_out removes every example of data.train: hold out less.")
            some_left([])
        _tell("train", found)
        return found

    def case_groups(self, cases: Sequence[Encoded]) -> dict[str, Sequence[Encoded]]:
        """Cases by reported segment: seen and unseen with `data.hold_out`, else by `segment_by`."""
        hold_out, segment_by = self.config.data.hold_out, self.config.evaluation.segment_by
        if not hold_out:
            return segments(cases, segment_by)
        if segment_by is not None:
            raise ValueError(
                "evaluation.segment_by cannot be combined with data.hold_out, whose segments are seen and unseen."
            )
        unseen = np.fromiter((is_held_out(e.example, hold_out) for e in cases), bool)
        groups = {SEEN: np.flatnonzero(~unseen), UNSEEN: np.flatnonzero(unseen)}
        return {name: chosen(cases, own) for name, own in groups.items() if len(own)}

    def training(self, task: Task, row_multiple: int, mesh: DeviceMesh | None = None) -> TrainingData:
        """Encodes data.train and batches it.

        Args:
          row_multiple: the number of rows of a batch is a multiple of this.
          mesh: to gather only the rows of this process's devices, where the task allows it; None: whole batches.
        """
        check_batch(self.config, task, row_multiple)
        if not check_unlabeled(self.config, task):
            return self._labeled(task, row_multiple, mesh)
        data = self._labeled(task, row_multiple, mesh)
        cases = {str(split): self.examples(split) for split in MEASURED if getattr(self.config.data, split)}
        encode = partial(self.encode, task, "unlabeled")
        sources, labeled = self.source("unlabeled"), data.examples_per_step
        found, leaks = open_unlabeled(self.config, task, sources, cases, encode, labeled, row_multiple)
        self._unusable.update({row.where: row for row in leaks})
        return with_unlabeled(data, found)

    def _labeled(self, task: Task, row_multiple: int, mesh: DeviceMesh | None) -> TrainingData:
        opened = self.source("train")
        if any(source.augment != AugmentConfig() for source in self.config.data.train):
            opened = self.with_copies(opened)
        if not isinstance(opened, Mixture):
            return _stream_batches(self.config, task, opened, row_multiple)
        per_source = self._per_source(task, opened)
        encoded = joined(per_source)
        task.prepare(encoded)
        mixture = _remixed(self.config, opened, per_source)
        here = partial(rows_here, mesh) if mesh is not None and task.gathers_alone else None
        return _batches(self.config, task, encoded, mixture, row_multiple, here)

    def with_copies(self, opened: Mixture | StreamSource | MixedStream) -> Mixture:
        """The sources with the copies of `data.train[].augment`."""
        if not isinstance(opened, Mixture):
            raise ValueError(
                "data.train[].augment needs sources of known size, but one of data.train is a stream: set streaming: "
                "false, or write the copies into a file with the verb augment."
            )
        task, data, sources = self.config.task, self.config.data, list[IndexableSource]()
        for number, (source, setting) in enumerate(zip(opened.sources, data.train, strict=True)):
            name = f"data.train[{number}].augment"
            setting.augment.check(name)
            if not setting.augment:
                sources.append(source)
                continue
            labels = getattr(task, "labels", None) or ()
            how = ExampleAugmenter(setting.augment, self.config.seed, tuple(labels), task.has_tags)
            sources.append(augmented(source, how, task.augmentations, name))
        return mixture_of(self.config, sources, [setting.weight for setting in data.train])


def mixture_of(config: Config, sources: Sequence[IndexableSource], weights: Sequence[float | None]) -> Mixture:
    """Sources of data.train, or what is left of them, mixed by their weights if they have some."""
    return Mixture(
        sources,
        weights=[weight for weight in weights if weight is not None] or None,
        temperature=config.data.temperature,
        size_cap=config.data.size_cap,
        seed=config.seed,
        versions=list(map(_versions, sources)),
    )


def _versions(source: IndexableSource) -> Versions | None:
    """The entries that are versions of one example: of an augmented source, or of what the task can use of it."""
    if isinstance(source, AugmentedSource):
        return Versions.of(np.arange(len(source)), source.versions)
    if not isinstance(source, _Usable) or source.versions == 1:
        return None
    if (source.encoded.numbers == NONE).any():
        raise ValueError(
            f"source {source.name}: augment cannot be used with this task, which makes examples of its own (turns of a "
            "dialogue): write the copies into a file with the verb augment."
        )
    return Versions.of(source.encoded.numbers, source.versions)


def example_mask(config: Config) -> ExampleMask | None:
    """What `data.mask` does to examples; None: nothing.

    Raises ValueError for a task whose targets are places in the texts, which placeholders would move.
    """
    if not config.data.mask:
        return None
    if config.task.targets_are_places:
        raise ValueError(
            f"data.mask cannot be used with task.type {config.task.name}: its targets are places in the texts, which "
            "placeholders would move. Mask the texts before they are annotated, with `masking.masker.Masker`, and set "
            "data.mask.kinds to []."
        )
    return ExampleMask(config.data.mask, config.task.text_fields)


def _tell(split: Sources, encoded: Sequence[EncodedExamples]) -> None:
    """One line on the stores of a split that are on disk."""
    stores = [store for each in encoded for store in each.stores if store.place is not None]
    if stores:
        count, old = sum(map(len, encoded)), sum(store.reused for store in stores)
        how = "tokenized earlier" if old == len(stores) else "tokenized now" if not old else "tokenized partly earlier"
        folders = ", ".join(dict.fromkeys(str(store.place.parent) for store in stores if store.place))
        say(f"data.{split}: {count:,} examples, {how}, kept in {folders}")


def _not_held_out(examples: NumberedExamples, hold_out: HoldOutConfig) -> np.ndarray:
    """int64: the numbers of the examples that stay."""
    stays = (not is_held_out(examples[number], hold_out) for number in range(len(examples)))
    return np.flatnonzero(np.fromiter(stays, bool))


@dataclass(frozen=True)
class _Usable:
    """The usable examples of a source: some may have been dropped, held out or split into several."""

    name: str
    task: str
    encoded: EncodedExamples
    versions: int = 1  # of each example, see `data.augmented`
    skipped: list[SkippedRow] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        return self.encoded.fingerprint

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> Example:
        return self.encoded[index].example

    def digest(self, index: int) -> bytes:
        return digest_of_example(self[index])


def _remixed(config: Config, opened: Mixture, per_source: Sequence[EncodedExamples]) -> Mixture:
    """The mixture of the usable examples."""
    if [len(each) for each in per_source] == [len(source) for source in opened.sources]:
        return opened
    left: list[IndexableSource] = []
    weights: list[float | None] = []
    for each, source, setting in zip(per_source, opened.sources, config.data.train, strict=True):
        if len(each):
            versions = source.versions if isinstance(source, AugmentedSource) else 1
            left.append(_Usable(source.name, source.task, each, versions))
            weights.append(setting.weight)
    return mixture_of(config, left, weights)


def _batches(
    config: Config,
    task: Task,
    encoded: EncodedExamples,
    mixture: Mixture,
    row_multiple: int,
    here: Callable[[int], np.ndarray] | None,
) -> TrainingData:
    """here: see `loader.OwnRows.rows`."""
    size, rows = config.data.examples_per_step, config.data.batch_rows

    def gather(indices: np.ndarray, rng: np.random.Generator) -> BatchTexts:
        return task.gather(encoded.take(indices), rng)

    lengths, target_lengths, images = encoded.lengths, encoded.target_lengths, None
    if task.context.pixels is not None and encoded.image_counts is not None:
        images = ImageCounts(encoded.image_counts, task.context.pixels.shape)
    tokens = int(lengths.sum()) + (0 if target_lengths is None else int(target_lengths.sum()))
    if size is not None:
        shape = (size, buckets(config), row_multiple, config.seed, target_buckets(task))
        sides = [lengths] if target_lengths is None else [lengths, target_lengths]
        own = None if here is None else OwnRows(sides, here, images)
        shaped = in_few_shapes(Loader(mixture.order, gather, *shape, own=own), task, encoded, config.steps)
        loader: Loader | RowLoader = shaped
        step_size, epoch_steps = f"{size} examples", mixture.epoch_size / size
        assert shaped.shapes is not None
        packing, largest = f" in batches of {shaped.shapes.described}", shaped.shapes.largest_step
    else:
        assert rows is not None
        length, target_length = config.data.max_length, task.max_target_length if target_lengths is not None else None
        row_shape = (rows, length, config.seed, target_lengths, target_length)
        loader = RowLoader(mixture.order, gather, lengths, *row_shape, rows_here=here, images=images)
        room = f"{length:,}" + (f" + {target_length:,}" if target_length else "")
        step_size, epoch_steps = f"{rows} rows of {room} tokens", len(loader.epoch(0)) / rows
        largest = 0
        packing = f" packed into {len(loader.epoch(0)):,} rows of {room} ({1 - loader.real_share():.1%} padding)"
    return TrainingData(
        fingerprint=mixture.fingerprint,
        batches=lambda start, stop, _: loader.batches(start, stop),
        step_size=step_size,
        encoded=encoded,
        tokens=tokens,
        epoch_steps=epoch_steps,
        packing=packing,
        copies=len(encoded) - mixture.epoch_size,
        batch_size=size,
        largest_step=largest,
    )


def _stream_batches(config: Config, task: Task, opened: StreamSource | MixedStream, row_multiple: int) -> TrainingData:
    hold_out = config.data.hold_out
    size, rows = config.data.examples_per_step, config.data.batch_rows
    # Rows are read and encoded in a thread, while an evaluation may use the task's tokenizer and counts.
    reader = task if rows is None else copy.deepcopy(task)
    opened.use(lambda example: not (hold_out and is_held_out(example, hold_out)), partial(check_usable, reader))

    def encode(examples: list[Example]) -> list[Encoded]:
        return some_left(encode_usable(reader, examples, "error")[0])

    if rows is not None:
        length, target_length = config.data.max_length, task.max_target_length
        made = StreamRowLoader(
            opened,
            encode,
            texts=lambda e: e.text,
            gather=task.gather,
            batch_rows=rows,
            window=config.data.stream_window,
            length=length,
            target_length=target_length,
            seed=config.seed,
        )
        room = f"{length:,}" + (f" + {target_length:,}" if target_length else "")
        return TrainingData(opened.name, made.batches, f"{rows} rows of {room} tokens")

    def gather(examples: list[Example], rng: np.random.Generator) -> BatchTexts:
        return task.gather(encode(examples), rng)

    shape = (size or 0, buckets(config), row_multiple, config.seed, target_buckets(task))
    pixels = None if task.context.pixels is None else task.context.pixels.shape
    batches = StreamLoader(opened, gather, *shape, pixels=pixels).batches
    return TrainingData(opened.name, batches, f"{size} examples", batch_size=size)


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


def some_left(encoded: Some) -> Some:
    if not len(encoded):
        raise ValueError("data.truncate: drop removed every example: all texts are longer than data.max_length.")
    return encoded


def buckets(config: Config) -> tuple[int, ...]:
    return length_buckets(config.data.max_length)


def target_buckets(task: Task) -> tuple[int, ...]:
    """Row lengths for target texts; empty for a task without target texts."""
    return length_buckets(task.max_target_length) if task.max_target_length else ()
