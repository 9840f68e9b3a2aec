"""From settings to the data that the verbs work with: opened, checked, tokenised once, cut into batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from instructrec_jax.runs.config import Config
from instructrec_jax.data.example import Example
from instructrec_jax.data.hold_out import SEEN, UNSEEN, check_hold_out, is_held_out
from instructrec_jax.data.loader import Batch, Loader, Parts, RowLoader, StreamLoader, lengths_of
from instructrec_jax.data.mixture import Mixture
from instructrec_jax.data.packing import length_buckets
from instructrec_jax.data.skipped import SkippedRow, summarize_skipped
from instructrec_jax.data.sources import ListSource, open_sources
from instructrec_jax.data.stream import StreamSource
from instructrec_jax.distributed.launch import say
from instructrec_jax.evaluation.evaluator import segments
from instructrec_jax.tasks.base import Encoded, Task

Split = Literal["train", "validation", "test"]


def labels_of(config: Config) -> list[str] | None:
    return getattr(config.task, "labels", None)


def learnt(config: Config) -> Config:
    """The settings, with what the task takes from data.train where it is not set: label names, say."""
    if config.task.complete or not config.data.train:
        return config
    opened = open_sources(config.data.train, on_bad_example=config.data.on_bad_example)
    if isinstance(opened, StreamSource):
        raise ValueError("task.labels cannot be taken from a stream, which is not read to its end: list them.")
    return replace(config, task=config.task.learn([opened[i] for i in range(len(opened))]))


@dataclass
class TrainingData:
    """What is trained on.

    Attributes:
      encoded: all examples, tokenised once (empty for a stream).
      tokens: in all of their texts (and targets).
      fingerprint: changes when the examples change.
      batches: (start, stop, position of a stream) -> batches of these steps.
      opened: the source, which knows the rows it skipped.
      step_size: what a step works on, for people to read.
      epoch_steps: steps in an epoch (0 for a stream).
      packing: how an epoch lies in rows, for people to read (empty where each batch is packed by itself).
    """

    encoded: list[Encoded]
    tokens: int
    fingerprint: str
    batches: Callable[[int, int, Any], Iterator[Batch]]
    opened: Any
    step_size: str
    epoch_steps: float = 0.0
    packing: str = ""

    @property
    def skipped(self) -> list[SkippedRow]:
        return self.opened.skipped

    def describe(self) -> str:
        if not self.encoded:
            return "a stream of unknown size"
        examples = f"{len(self.encoded):,} with {self.tokens:,} tokens{self.packing}"
        return f"{examples}; an epoch is {self.epoch_steps:,.1f} steps"


def training_data(config: Config, task: Task, row_multiple: int, processes: tuple[int, int] = (0, 1)) -> TrainingData:
    """Opens, checks and tokenises data.train.

    Args:
      processes: the part of each batch that this process lays out, and the number of parts.
    """
    if not config.data.train:
        raise ValueError("data.train lists no sources: name at least one file or data set to train on.")
    check_batch(config, task, row_multiple)
    opened = open_sources(
        config.data.train,
        labels=labels_of(config),
        on_bad_example=config.data.on_bad_example,
        temperature=config.data.temperature,
        size_cap=config.data.size_cap,
        seed=config.seed,
    )
    size, rows = config.data.batch_size, config.data.batch_rows
    shape = (size or 0, buckets(config), row_multiple, config.seed, *processes, target_buckets(task))
    hold_out = config.data.hold_out
    if isinstance(opened, StreamSource):
        if hold_out:
            raise ValueError("data.hold_out cannot look ahead in a stream: set streaming: false, or filter it before.")

        def gather_stream(examples: list[Example], rng: np.random.Generator) -> Parts:
            return task.gather(encode(task, examples), rng)

        if rows is not None:
            raise ValueError(
                "data.batch_rows packs whole epochs, but data.train is a stream, whose examples are not known in "
                "advance: set data.batch_size instead, or streaming: false."
            )
        stream = StreamLoader(opened, gather_stream, *shape)
        return TrainingData([], 0, opened.name, stream.batches, opened, f"{size} examples")
    per_source = []
    for source in opened.sources:
        examples = [source[i] for i in range(len(source))]
        kept = [e for e in examples if not is_held_out(e, hold_out)]
        if len(kept) < len(examples):
            count(task, "training examples held out", len(examples) - len(kept))
        per_source.append(encode(task, kept) if kept else [])
    encoded = [e for part in per_source for e in part]
    if not encoded:
        raise ValueError("data.hold_out leaves nothing of data.train: hold out less.")
    mixture = opened
    if [len(part) for part in per_source] != [len(source) for source in opened.sources]:
        # some were dropped for their length, held out, or became several: mix what there is
        there = [
            (ListSource([e.example for e in part], source.name, source.task), setting.weight)
            for part, source, setting in zip(per_source, opened.sources, config.data.train, strict=True)
            if part
        ]
        left, weights = [source for source, _ in there], [weight for _, weight in there if weight is not None] or None
        mixture = Mixture(
            left,
            weights=weights,
            temperature=config.data.temperature,
            size_cap=config.data.size_cap,
            seed=config.seed,
        )

    def gather(indices: np.ndarray, rng: np.random.Generator) -> Parts:
        return task.gather([encoded[i] for i in indices], rng)

    lengths, target_lengths = lengths_of([e.text for e in encoded])
    tokens = int(lengths.sum()) + (0 if target_lengths is None else int(target_lengths.sum()))
    if rows is None:
        loader: Loader | RowLoader = Loader(mixture.order, gather, *shape)
        step_size, epoch_steps, packing = f"{size} examples", len(encoded) / (size or 1), ""
    else:
        length, target_length = config.data.max_length, task.max_target_length if target_lengths is not None else None
        row_shape = (rows, length, config.seed, *processes, target_lengths, target_length)
        loader = RowLoader(mixture.order, gather, lengths, *row_shape)
        room = f"{length:,}" + (f" + {target_length:,}" if target_length else "")
        step_size, epoch_steps = f"{rows} rows of {room} tokens", len(loader.epoch(0)) / rows
        packing = f" in {len(loader.epoch(0)):,} rows of {room}, {loader.real_share():.1%} of them real"
    return TrainingData(
        encoded,
        tokens,
        mixture.fingerprint,
        lambda start, stop, _: loader.batches(start, stop),
        opened,
        step_size,
        epoch_steps,
        packing,
    )


def check_batch(config: Config, task: Task, row_multiple: int) -> None:
    """Refuses a batch that is not given as either examples or rows, and rows where they cannot be."""
    size, rows = config.data.batch_size, config.data.batch_rows
    if (size is None) == (rows is None):
        problem = "neither is set" if size is None else f"they are {size} and {rows}"
        raise ValueError(
            "the size of a batch is either data.batch_size (examples) or data.batch_rows (packed rows of "
            f"data.max_length tokens), but {problem}: set one of them, and leave the other out or null."
        )
    if rows is None:
        return
    if task.couples_examples:
        kind = config.task.get_choice_name(type(config.task))
        raise ValueError(
            f"the task {kind} compares the examples of a batch with each other, so the size of its batch is a number "
            "of examples: set data.batch_size instead of data.batch_rows."
        )
    if rows % row_multiple:
        shards = row_multiple // config.accumulation
        raise ValueError(
            f"data.batch_rows is {rows}, but must be a multiple of {row_multiple}: {shards} data-parallel devices x "
            f"accumulation {config.accumulation}."
        )


def evaluation_data(config: Config, task: Task, split: Split, skipped: list[SkippedRow] | None = None) -> list[Encoded]:
    """All examples of data.train, data.validation or data.test, in order, encoded; empty when it lists no sources.

    What is held out is there only in the test. Rows that `on_bad_example: skip` leaves out are added to `skipped`, or
    told on stderr where there is no list.
    """
    sources = getattr(config.data, split)
    if not sources:
        return []
    opened = open_sources(sources, labels=labels_of(config), on_bad_example=config.data.on_bad_example)
    if isinstance(opened, StreamSource):
        raise ValueError("a stream cannot be evaluated on: set streaming: false for validation and test sources.")
    if skipped is not None:
        skipped += opened.skipped
    elif opened.skipped:
        say(summarize_skipped(opened.skipped))
    examples = [opened[i] for i in range(len(opened))]
    if split == "test":
        check_hold_out(examples, config.data.hold_out, "data.test")
        return encode(task, examples)
    kept = [e for e in examples if not is_held_out(e, config.data.hold_out)]
    if not kept:
        raise ValueError(f"data.hold_out leaves nothing of data.{split}: hold out less.")
    return encode(task, kept)


def case_groups(config: Config, cases: Sequence[Encoded]) -> dict[str, list[Encoded]]:
    """The test cases by what is reported apart: seen and unseen where something is held out, else `segment_by`."""
    hold_out = config.data.hold_out
    if not hold_out:
        return segments(cases, config.evaluation.segment_by)
    if config.evaluation.segment_by is not None:
        raise ValueError("data.hold_out tells seen from unseen cases: leave out evaluation.segment_by beside it.")
    groups: dict[str, list[Encoded]] = {SEEN: [], UNSEEN: []}
    for e in cases:
        groups[UNSEEN if is_held_out(e.example, hold_out) else SEEN].append(e)
    return {name: own for name, own in groups.items() if own}


def count(task: Task, what: str, number: int) -> None:
    task.context.counts[what] = task.context.counts.get(what, 0) + number


def encode(task: Task, examples: Sequence[Example]) -> list[Encoded]:
    encoded = task.encode(examples)
    if not encoded:
        raise ValueError("no example is left: data.truncate is drop, and every text is longer than data.max_length.")
    return encoded


def buckets(config: Config) -> tuple[int, ...]:
    return length_buckets(config.data.max_length)


def target_buckets(task: Task) -> tuple[int, ...]:
    """Row lengths for the targets of texts; none for a task without targets."""
    return length_buckets(task.max_target_length) if task.max_target_length else ()
