"""The gradient of each example's loss with respect to the trained parameters, projected."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property

import jax
import numpy as np
from flax import nnx

from instructrec_jax.data.batch import Batch, lay_out, lengths_of
from instructrec_jax.data.packing import fit, round_to
from instructrec_jax.distributed.mesh import data_shards
from instructrec_jax.explanation.projection import projected
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
      run: opened at any checkpoint, see `at`.
      dimension: of the projection, see `projected`.
      batch: examples that are computed together.
    """

    def __init__(self, run: Run, dimension: int, batch: int):
        self.run, self.dimension, self.batch = run, dimension, batch
        self.program = gradient_program(run, dimension)

    def at(self, run: Run) -> "ExampleGradients":
        """The same program with the parameters and buffers of the run as it is opened at another checkpoint."""
        found = copy.copy(self)
        found.run = run
        vars(found).pop("arrays", None)
        return found

    @cached_property
    def arrays(self) -> tuple[Tree, Tree, Mapping[str, np.ndarray]]:
        """Trained and frozen parameters, and buffers."""
        run = self.run
        buffers = run.task.refresh(run.plain_predictor) if run.task.refresh_every else {}
        return *split_params(run.model.params, run.model.is_frozen), buffers

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
            rows = np.asarray(self.program(*self.arrays, stacked))
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
        rows = round_to(1 << (plan.rows - 1).bit_length(), data_shards(self.run.mesh))
        return lay_out(texts, replace(plan, rows=rows))


def gradient_program(run: Run, dimension: int) -> Callable[..., jax.Array]:
    """Compiles (trained, frozen, buffers, batches with one more axis) -> float32 [batches, dimension]."""
    task, graphdef, mesh, seed = run.task, run.model.graphdef, run.mesh, run.config.seed

    def loss(trained: Tree, frozen: Tree, buffers: Mapping[str, jax.Array], batch: Batch) -> jax.Array:
        model = nnx.merge(graphdef, merge_params(trained, frozen))
        with mesh.tracing():
            return task.loss(task.view(model), batch, LossInputs(buffers=buffers))[0]

    @jax.jit
    def gradients(trained: Tree, frozen: Tree, buffers: Mapping[str, jax.Array], batches: Batch) -> jax.Array:
        def one(batch: Batch) -> jax.Array:
            return projected(jax.grad(loss)(trained, frozen, buffers, batch), dimension, seed)

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
