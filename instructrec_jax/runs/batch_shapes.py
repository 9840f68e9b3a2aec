"""The shapes of a run's batches, chosen from the texts of its steps."""

from dataclasses import replace

from instructrec_jax.data.loader import Loader
from instructrec_jax.data.shapes import Sizes, choose_shapes, spread
from instructrec_jax.tasks.base import Task
from instructrec_jax.tasks.encoded_store import EncodedExamples

PLANNED_TEXTS = 2**21  # texts whose batches are packed before the first step, in seconds
GATHERED = 256  # batches that are made for it, of a task that draws the texts of each batch
COMPARED = 4  # batches that tell whether a task does


def in_few_shapes(loader: Loader, task: Task, encoded: EncodedExamples, steps: int) -> Loader:
    """The loader with the shapes of the batches of a run of so many steps.

    All batches are looked at, but in a run of more than `PLANNED_TEXTS` texts, or `GATHERED` steps of a task that draws
    texts (negatives): there a batch may need a shape of its own.
    """
    lengths, targets, counts = encoded.lengths, encoded.target_lengths, encoded.image_counts

    def stored(step: int) -> Sizes:
        some = loader.indices(step)
        return Sizes(lengths[some], *(None if each is None else each[some] for each in (targets, counts)))

    before = dict(task.context.counts)  # of truncated texts, which are counted when the batches are made again

    def made(step: int) -> Sizes:
        return Sizes.of(loader.gathered(step).texts)

    is_known = task.gathers_alone or all(made(step).same_as(stored(step)) for step in range(min(steps, COMPARED)))
    planned = spread(steps, max(1, PLANNED_TEXTS // loader.batch_size) if is_known else GATHERED)
    sizes = [(stored if is_known else made)(step) for step in planned]
    task.context.counts.clear()
    task.context.counts.update(before)
    is_sample, pixels = len(planned) < steps, task.context.pixels
    shapes = choose_shapes(
        sizes,
        loader.buckets,
        loader.row_multiple,
        loader.target_buckets,
        pixels=pixels.shape if pixels is not None and any(each.images is not None for each in sizes) else None,
        longest=Sizes(lengths, targets) if is_known and is_sample else None,
        steps=planned,
        spare=is_sample,
    )
    return replace(loader, shapes=shapes)
