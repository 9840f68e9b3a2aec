"""The gradient of each example's loss with respect to the trained parameters, projected."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property

import jax
import numpy as np
from flax import nnx

from instructrec_jax.data.batch import Batch, lay_out, lengths_of
from instructrec_jax.data.packing import fit, round_to
from instructrec_jax.distributed.mesh import data_shards
from instructrec_jax.explanation.projection import check_dimension, projected
from instructrec_jax.runs.data import buckets, target_buckets
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.base import Encoded, LossInputs
from instructrec_jax.training.state import Tree, merge_params, split_params

Numbered = tuple[int, Batch]


class ExampleGradients:
    """Projected gradients of Σ w ℓ, without dropout, one for each encoded example, under one checkpoint's parameters.

    With LoRA these are the gradients of LoRA's matrices and the head: of what is trained. `batch` gradients are in
    memory at a time, float32 of the size of what is trained.

    Args:
      run: opened at the checkpoint.
      batch: examples that are computed together.

    Raises ValueError for a run whose examples have no gradients of their own: an ensemble, a compressed one, or a loss
    that couples the examples of a batch.
    """

    def __init__(self, run: Run, dimension: int, batch: int):
        check_dimension(dimension)
        if batch < 1:
            raise ValueError(f"--batch is {batch}, but should be at least 1.")
        check_gradients(run)
        self.run, self.dimension, self.batch = run, dimension, batch
        self.shards = data_shards(run.mesh)
        self.trained, self.frozen = split_params(run.model.params, run.model.is_frozen)
        task = run.task
        self.buffers: Mapping[str, np.ndarray] = task.refresh(run.plain_predictor) if task.refresh_every else {}

    def of(self, encoded: Iterable[Encoded], *, answers: bool = False) -> np.ndarray:
        """float32 [examples, dimension], in order.

        Args:
          answers: the gradients are of the loss of the target alone, see `Task.gather_answer`.
        """
        found: dict[int, np.ndarray] = {}
        for some in self._groups(encoded, answers):
            batches = [batch for _, batch in some]
            batches += batches[-1:] * (self.batch - len(batches))  # one shape of the program
            stacked = jax.tree.map(lambda *each: np.stack(each), *batches)
            rows = np.asarray(self._compiled(self.trained, self.frozen, self.buffers, stacked))
            if not np.isfinite(rows).all():
                raise ValueError("a gradient is not finite: the run diverged. Train it again, or name a --step.")
            found.update({number: row for (number, _), row in zip(some, rows, strict=False)})
        return np.stack([found[number] for number in range(len(found))])

    def _groups(self, encoded: Iterable[Encoded], answers: bool) -> Iterator[list[Numbered]]:
        """The examples as batches of their own, those of one shape together."""
        waiting: dict[object, list[Numbered]] = {}
        for number, e in enumerate(encoded):
            batch = self._laid(e, number, answers)
            shape = str(jax.tree.map(lambda x: (x.shape, str(x.dtype)), batch))
            waiting.setdefault(shape, []).append((number, batch))
            if len(waiting[shape]) == self.batch:
                yield waiting.pop(shape)
        yield from waiting.values()

    def _laid(self, e: Encoded, number: int, answers: bool) -> Batch:
        """The batch of one example, in as few rows as its texts need."""
        task = self.run.task
        gather = task.gather_answer if answers else task.gather
        texts = gather([e], np.random.default_rng([self.run.config.seed, number]))
        lengths, targets = lengths_of(texts.texts)
        length = next(each for each in buckets(self.run.config) if each >= lengths.max())
        room = None if targets is None else next(each for each in target_buckets(task) if each >= targets.max())
        plan = fit(lengths, length, targets, room)
        rows = round_to(1 << (plan.rows - 1).bit_length(), self.shards)
        return lay_out(texts, replace(plan, rows=rows))

    @cached_property
    def _compiled(self) -> Callable[..., jax.Array]:
        """(trained, frozen, buffers, batches with one more axis) -> float32 [batches, dimension]."""
        task, graphdef, mesh, seed = self.run.task, self.run.model.graphdef, self.run.mesh, self.run.config.seed

        def loss(trained: Tree, frozen: Tree, buffers: Mapping[str, jax.Array], batch: Batch) -> jax.Array:
            model = nnx.merge(graphdef, merge_params(trained, frozen))
            with mesh.tracing():
                return task.loss(task.view(model), batch, LossInputs(buffers=buffers))[0]

        @jax.jit
        def gradients(trained: Tree, frozen: Tree, buffers: Mapping[str, jax.Array], batches: Batch) -> jax.Array:
            def one(batch: Batch) -> jax.Array:
                return projected(jax.grad(loss)(trained, frozen, buffers, batch), self.dimension, seed)

            return jax.vmap(one)(batches)

        return gradients


def check_gradients(run: Run) -> None:
    """Raises ValueError for a run whose training examples have no gradients of their own."""
    if run.members:
        raise ValueError(f"{run.path} is an ensemble, whose members have their own gradients: name a member.")
    if jax.process_count() > 1:
        raise ValueError("--examples runs on one process: start it on one.")
    if run.task.couples_examples:
        raise ValueError(
            f"--examples needs a loss of each example alone, but that of {run.kind} compares the examples of a batch "
            "with each other."
        )
    if run.config.backbone.quantize != "none" and not run.config.lora.on:
        raise ValueError(f"{run.path} is compressed, and codes have no gradients: name the run that it was made of.")
