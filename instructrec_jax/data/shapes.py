"""The shapes of a run's batches: at most two, chosen before the first step from the lengths of its texts.

The training step is compiled once for each shape of a batch, which takes as long as many steps. So a batch is packed
into the cheapest of two shapes that holds it, and the rows that it does not need are empty. Empty rows have no segment
and no weight, so losses, gradients and dropout are those of the batch without them, up to rounding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Self

import numpy as np

from instructrec_jax.data.batch import Text, lengths_of
from instructrec_jax.data.media.text_images import images_per_row
from instructrec_jax.data.packing import Plan, fit, plan_batch, round_to, row_cost

TRIED = 32  # batches on which all row lengths are tried
SAVES = 0.05  # the share of the computing that a second shape has to save, as it is compiled, too
SPARE = 1 / 8  # more rows, where the run has batches that are not looked at


@dataclass(frozen=True)
class Sizes:
    """The texts of a batch, int [texts] each: tokens, tokens of targets, and images (None: no text has any)."""

    lengths: np.ndarray
    targets: np.ndarray | None = None
    images: np.ndarray | None = None

    @classmethod
    def of(cls, texts: Sequence[Text]) -> Self:
        counts = np.array([0 if text.images is None else len(text.images.pictures) for text in texts], np.int64)
        return cls(*lengths_of(texts), counts if counts.any() else None)

    @property
    def sides(self) -> list[np.ndarray]:
        return [self.lengths] if self.targets is None else [self.lengths, self.targets]

    @property
    def counts(self) -> np.ndarray:
        """The images of each text."""
        return np.zeros(len(self.lengths), np.int64) if self.images is None else self.images

    def same_as(self, other: "Sizes") -> bool:
        mine, theirs = [*self.sides, self.counts], [*other.sides, other.counts]
        return len(mine) == len(theirs) and all(map(np.array_equal, mine, theirs))

    def fits(self, length: int, target_length: int | None) -> bool:
        """Whether no text and no target is longer than a row."""
        room = (length, target_length or 0)
        return all(int(side.max()) <= most for side, most in zip(self.sides, room, strict=False))


@dataclass(frozen=True)
class Shape:
    """The rows of a batch, the length of a row and of a target row, and the images that a row has room for."""

    rows: int
    length: int
    target_length: int | None = None
    images: int = 0

    @property
    def cost(self) -> float:
        return self.rows * row_cost(self.length, self.target_length or 0)

    @property
    def described(self) -> str:
        room = f"{self.length:,}" + (f" + {self.target_length:,}" if self.target_length else "")
        return f"{self.rows:,} rows of {room} tokens"

    def plan(self, sizes: Sizes) -> Plan | None:
        """Where the texts of a batch lie in this shape, without their images; None: it does not fit."""
        if not sizes.fits(self.length, self.target_length):
            return None
        plan = fit(sizes.lengths, self.length, sizes.targets, self.target_length)
        if plan.rows > self.rows or images_per_row(plan.row, sizes.counts) > self.images:
            return None
        return replace(plan, rows=self.rows)


@dataclass(frozen=True)
class Shapes:
    """The shapes of a run's batches.

    Attributes:
      shapes: the cheapest first.
      buckets, row_multiple, target_buckets: see `packing.plan_batch`, which packs a batch that fits none of them.
      pixels: (height, width, channels) of images, (frames, mels) of sounds; None: there are none.
      largest_step: a step whose batch needs the last shape.
      padding: share of the batches' tokens that is padding.
    """

    shapes: Sequence[Shape]
    buckets: Sequence[int]
    row_multiple: int
    target_buckets: Sequence[int] = ()
    pixels: tuple[int, ...] | None = None
    largest_step: int = 0
    padding: float = 0.0

    def plan(self, sizes: Sizes) -> Plan:
        """Where the texts of a batch lie, in the cheapest shape that holds them."""
        for shape in self.shapes:
            if (plan := shape.plan(sizes)) is not None:
                return self._with_images(plan, shape.images)
        plan = plan_batch(sizes.lengths, self.buckets, self.row_multiple, sizes.targets, self.target_buckets)
        return self._with_images(plan, images_per_row(plan.row, sizes.counts))

    def _with_images(self, plan: Plan, count: int) -> Plan:
        return plan if self.pixels is None else replace(plan, images=(count, *self.pixels))

    @property
    def described(self) -> str:
        return f"{' or '.join(shape.described for shape in self.shapes)} ({self.padding:.1%} padding)"


@dataclass(frozen=True)
class _Needs:
    """What batches need in rows of one length: float [batches] rows (inf: a text is longer), int [batches] images."""

    length: int
    target_length: int | None
    rows: np.ndarray
    images: np.ndarray

    @classmethod
    def of(cls, length: int, target_length: int | None, batches: Sequence[Sizes], row_multiple: int) -> Self:
        rows, images = np.full(len(batches), np.inf), np.zeros(len(batches), np.int64)
        for number, sizes in enumerate(batches):
            if sizes.fits(length, target_length):
                plan = fit(sizes.lengths, length, sizes.targets, target_length)
                rows[number] = round_to(plan.rows, row_multiple)
                images[number] = images_per_row(plan.row, sizes.counts)
        return cls(length, target_length, rows, images)

    @property
    def cost(self) -> float:
        """Of a row."""
        return row_cost(self.length, self.target_length or 0)

    def shape(self, chosen: np.ndarray) -> Shape:
        """The shape that holds some of the batches, bool [batches]."""
        return Shape(int(self.rows[chosen].max()), self.length, self.target_length, int(self.images[chosen].max()))


def choose_shapes(
    batches: Sequence[Sizes],
    buckets: Sequence[int],
    row_multiple: int,
    target_buckets: Sequence[int] = (),
    *,
    pixels: tuple[int, ...] | None = None,
    longest: Sizes | None = None,
    steps: Sequence[int] | None = None,
    spare: bool = False,
    most: int = 2,
) -> Shapes:
    """The shapes that compute the least for some batches: each of them fits one.

    Args:
      longest: texts of other batches, of which the longest has to fit, too; None: there are none.
      steps: the step of each batch; None: 0, 1, ...
      spare: whether the run has more batches than these, for which the largest shape gets more rows.
      most: how many shapes, 1 or 2.
    """
    kinds = list(product(buckets, [None] if batches[0].targets is None else target_buckets))
    known = batches if longest is None else [*batches, longest]
    whole = {kind for kind in kinds if all(sizes.fits(*kind) for sizes in known)}
    some = [batches[number] for number in spread(len(batches), TRIED)]
    tried = {kind: _Needs.of(*kind, some, row_multiple) for kind in kinds}
    pairs = [(kind, kind) for kind in kinds if kind in whole]
    if most > 1:
        pairs += [pair for pair in product(kinds, kinds) if not whole.isdisjoint(pair)]
    first, second = min(pairs, key=lambda pair: _divided(tried[pair[0]], tried[pair[1]], most)[0])
    needs = {kind: _Needs.of(*kind, batches, row_multiple) for kind in dict.fromkeys((first, second))}
    one = min((kind for kind in needs if kind in whole), key=lambda kind: _divided(needs[kind], needs[kind], 1)[0])
    cost, in_first = _divided(needs[first], needs[second], most)
    alone, in_one = _divided(needs[one], needs[one], 1)
    if cost > (1 - SAVES) * alone:
        first, second, in_first = one, one, in_one
    groups = [(first, in_first), (second, ~in_first)]
    found = [(needs[kind].shape(chosen), chosen) for kind, chosen in groups if chosen.any()]
    found.sort(key=lambda each: each[0].cost)
    places = sum(shape.rows * (shape.length + (shape.target_length or 0)) * int(own.sum()) for shape, own in found)
    shapes, number = [shape for shape, _ in found], int(np.flatnonzero(found[-1][1])[0])
    if spare:
        rows = round_to(math.ceil(shapes[-1].rows * (1 + SPARE)), row_multiple)
        shapes[-1] = replace(shapes[-1], rows=rows)
    step = number if steps is None else steps[number]
    padding = 1 - sum(int(side.sum()) for sizes in batches for side in sizes.sides) / places
    return Shapes(shapes, buckets, row_multiple, target_buckets, pixels, step, padding)


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly spread."""
    return list(range(count)) if count <= most else np.linspace(0, count - 1, most).astype(int).tolist()


def _divided(first: _Needs, second: _Needs, most: int) -> tuple[float, np.ndarray]:
    """(cost of all batches, bool [batches] those in the first shape) for the best division into at most `most` shapes.

    The first shape takes the batches that need the fewest rows of it, the second one the others.
    """
    count = len(second.rows)
    in_first = np.zeros(count, bool)
    if most == 1:
        return count * float(second.rows.max()) * second.cost, in_first
    order = np.argsort(first.rows, kind="stable")
    rest = np.maximum.accumulate(np.append(second.rows[order], 0)[::-1])[::-1]  # rows of the batches order[k:], by k
    own = np.append(0, first.rows[order])  # rows of the batches order[:k]
    sizes = np.arange(count + 1)
    costs = sizes * own * first.cost + (count - sizes) * rest * second.cost
    best = int(np.argmin(costs))
    in_first[order[:best]] = True
    return float(costs[best]), in_first


def grown(
    sizes: Sizes, shape: Shape | None, buckets: Sequence[int], row_multiple: int, targets: Sequence[int]
) -> Shape:
    """The shape of a stream's batch: that of the batches before, or a larger one with some room for those to come.

    Args:
      shape: of the batches before; None: there are none.
      buckets, targets: lengths of rows and of their targets.
    """
    if shape is not None and shape.plan(sizes) is not None:
        return shape
    plan = plan_batch(sizes.lengths, buckets, row_multiple, sizes.targets, targets)
    length, target_length = plan.length, plan.target_length
    if shape is not None:
        length = max(length, shape.length)
        target_length = None if target_length is None else max(target_length, shape.target_length or 0)
    plan = fit(sizes.lengths, length, sizes.targets, target_length)
    images = images_per_row(plan.row, sizes.counts)
    rows = round_to(plan.rows + max(1, plan.rows // 4), row_multiple)
    if shape is not None and length == shape.length and target_length == shape.target_length:
        rows = max(rows, shape.rows)
    return Shape(rows, length, target_length, images if shape is None else max(images, shape.images))
