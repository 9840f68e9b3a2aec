"""What is explained of several examples, in packed rows as training and evaluation lay them out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from instructrec_jax.data.batch import Batch, BatchTexts, lay_out, lengths_of
from instructrec_jax.data.packing import Plan, fit
from instructrec_jax.explanation.patches import Grid
from instructrec_jax.explanation.words import Words
from instructrec_jax.runs.data import buckets, target_buckets
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.base import Encoded, Network, Task
from instructrec_jax.tasks.objective import Objective

Value = Callable[[Network, Batch, jax.Array], jax.Array]  # see `Objective.value`
TOKENS = 128  # of a row in which several texts lie


@dataclass(frozen=True)
class Asked:
    """A number of an example that is explained, and what it is explained by.

    Attributes:
      grid: the patches of a picture; None: the example has no picture.
      items: id -> name of the history, where the network reads items.
    """

    objective: Objective
    encoded: Encoded
    words: Words
    grid: Grid | None = None
    items: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where a text lies in its row: the number of the text, its segment (from 0), tokens and images.

    `outputs`: the tokens that have outputs, of the target where there is one.
    """

    number: int
    segment: int
    tokens: slice
    images: slice
    outputs: slice


@dataclass(frozen=True)
class PackedRows:
    """The texts of some numbers in rows.

    Attributes:
      batch: NumPy arrays, [rows, ...] each.
      weights: of the outputs: float32 [rows, segments, ...], or [rows, length, ...] where `per_token`.
      places: of the texts of each row.
    """

    batch: Batch
    weights: np.ndarray
    places: tuple[tuple[Place, ...], ...]

    def __len__(self) -> int:
        return len(self.places)

    def chosen(self, rows: Sequence[int]) -> tuple[Batch, np.ndarray]:
        """(batch, weights) of some rows, in this order."""
        numbers = np.asarray(rows)
        return jax.tree.map(lambda x: x[numbers], self.batch), self.weights[numbers]

    def blocks(self, size: int) -> Iterator[tuple[list[int], Batch, np.ndarray]]:
        """(numbers of the rows, batch, weights) of `size` rows each; the last ones are filled up with its first row."""
        for first in range(0, len(self), size):
            rows = list(range(first, min(first + size, len(self))))
            yield rows, *self.chosen(rows + rows[:1] * (size - len(rows)))


def packed(run: Run, asked: Sequence[Asked]) -> PackedRows:
    """The texts of some numbers, which are of one task, in as few rows as best fit needs."""
    read = [each.objective.text(each.encoded) for each in asked]
    gather = asked[0].objective.gather
    one = BatchTexts([e.text for e in read], None) if gather is None else gather(read)
    lengths, targets = lengths_of(one.texts)
    room = None if targets is None else _room(target_buckets(run.task), targets)
    plan = fit(lengths, _room(buckets(run.config), lengths), targets, room)
    return PackedRows(lay_out(one, plan), _weights(run.task, asked, plan), _places(one, plan))


def _room(sizes: Sequence[int], lengths: np.ndarray) -> int:
    """The length of rows: of the longest text, or of several short ones together."""
    longest = int(lengths.max())
    several = min(TOKENS, int(lengths.sum()), sizes[-1])
    return next(size for size in sizes if size >= max(longest, several))


def _weights(task: Task, asked: Sequence[Asked], plan: Plan) -> np.ndarray:
    found = [each.objective.weights(each.encoded) for each in asked]
    outputs = plan.length if plan.target_length is None else plan.target_length
    starts = plan.start if plan.target_start is None else plan.target_start
    first = found[0]
    assert first is not None  # of examples that nothing was removed from
    shape = (outputs, *first.shape[1:]) if task.per_token else (plan.segments, *first.shape)
    laid = np.zeros((plan.rows, *shape), np.float32)
    for number, each in enumerate(found):
        assert each is not None
        row, start = int(plan.row[number]), int(starts[number])
        if task.per_token:
            laid[row, start : start + len(each)] = each
        else:
            laid[row, plan.segment[number] - 1] = each
    return laid


def _places(texts: BatchTexts, plan: Plan) -> tuple[tuple[Place, ...], ...]:
    found: list[list[Place]] = [[] for _ in range(plan.rows)]
    images = [0] * plan.rows
    for number, text in enumerate(texts.texts):
        row, start = int(plan.row[number]), int(plan.start[number])
        count = 0 if text.images is None else len(text.images.pictures)
        tokens = outputs = slice(start, start + len(text.tokens))
        if text.target is not None and plan.target_start is not None:
            first = int(plan.target_start[number])
            outputs = slice(first, first + len(text.target))
        seen = slice(images[row], images[row] + count)
        found[row].append(Place(number, int(plan.segment[number]) - 1, tokens, seen, outputs))
        images[row] += count
    return tuple(map(tuple, found))


def values_of(task: Task, network: Network, batch: Batch, weights: jax.Array) -> jax.Array:
    """The number that is explained of each text, float32 [rows, segments]: Σ weights · outputs."""
    outputs = task.predict(network, batch)
    kept = jnp.where(weights != 0, outputs, 0).astype(jnp.float32) * weights
    sums = kept.reshape(*kept.shape[:2], -1).sum(-1)
    if not task.per_token:
        return sums
    own = batch.outputs.segment_ids[..., None] == 1 + jnp.arange(batch.text_numbers.shape[1])
    return jnp.where(own, sums[..., None], 0).sum(1)


def sum_of(value: Value | None, task: Task, network: Network, batch: Batch, weights: jax.Array) -> jax.Array:
    """The sum of these numbers, with gradients also where `Task.predict` has none: see `Objective.value`."""
    if value is not None:
        return value(network, batch, weights).sum()
    return values_of(task, network, batch, weights).sum()
