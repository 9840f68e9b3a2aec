"""Gradient × input and integrated gradients of an objective with respect to the word embeddings.

    gradient × input       a_t = x_t · ∂F/∂x_t                                       (Shrikumar et al., 2016)
    integrated gradients   a_t = (x_t − b_t) · ∫₀¹ ∂F/∂x_t (b + α (x − b)) dα        (Sundararajan et al., 2017)

x_t is the word embedding of token t, before positions, norms and scaling. The baseline b has the embedding of the mask
token (or pad, or zero) at the tokens of words, and x elsewhere. The integral is a Gauss–Legendre sum; Σ a_t equals
F(x) − F(b) up to its error (completeness).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.arrays import Array
from instructrec_jax.backbones.layers import DropoutKeys, Embedding
from instructrec_jax.data.batch import Batch, BatchTexts, lay_out, lengths_of
from instructrec_jax.data.loader import to_devices
from instructrec_jax.data.packing import fit
from instructrec_jax.distributed.mesh import data_shards
from instructrec_jax.hf_types import PreTrainedTokenizerBase
from instructrec_jax.runs.data import buckets, target_buckets
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.base import Encoded, Network, Task
from instructrec_jax.tasks.objective import Objective
from instructrec_jax.training.state import Tree

Value = Callable[[Network, Batch, jax.Array], jax.Array]  # see `Objective.value`
Baseline = Literal["mask", "pad", "zero"]
FIRST, MOST = 8, 512  # steps of the first try and of the last one; powers of two
TOLERANCE = 0.01  # completeness error, relative to F(x) − F(b), that needs no more steps


class GivenVectors(nnx.Module):
    """Word embeddings that are `vectors` for the tokens of the text, and the table's for other tokens."""

    def __init__(self, inner: Embedding, tokens: Array, vectors: jax.Array):
        self.table = inner.table
        self.look = lambda ids: vectors.astype(inner.dtype) if ids is tokens else inner(ids)

    def __call__(self, ids: jax.Array, keys: DropoutKeys | None = None) -> jax.Array:
        return self.look(ids)


@dataclass(frozen=True)
class Attributed:
    """Attributions of a text's tokens.

    Attributes:
      tokens: float64 [tokens].
      value, baseline: F(x) and F(b).
      steps: points of the integral; 1 for a gradient.
      error: |Σ a − (F(x) − F(b))| / |F(x) − F(b)|; None for methods without completeness.
    """

    tokens: np.ndarray
    value: float
    baseline: float | None = None
    steps: int = 1
    error: float | None = None


def baseline_token(tokenizer: PreTrainedTokenizerBase, kind: Baseline | None) -> tuple[Baseline, int]:
    """(kind, id) of the baseline of words; None: mask where the tokenizer has that token, else zero (id 0, unused).

    Raises ValueError for a token that the tokenizer does not have.
    """
    ids = {"mask": tokenizer.mask_token_id, "pad": tokenizer.pad_token_id, "zero": 0}
    chosen: Baseline = kind or ("zero" if ids["mask"] is None else "mask")
    if ids[chosen] is None:
        there = ", ".join(name for name, each in ids.items() if each is not None)
        raise ValueError(f"the tokenizer has no {chosen} token: choose --baseline {there}.")
    return chosen, int(ids[chosen])


class Gradients:
    """Attributions by gradients for the objectives of a run; programs are compiled once per length of rows.

    Raises ValueError for an ensemble, and a network without word embeddings.
    """

    def __init__(self, run: Run, baseline: Baseline | None = None, most: int = MOST):
        if run.members:
            raise ValueError(f"{run.path} is an ensemble, whose members have their own gradients: name a member.")
        if "word_embeddings" not in run.model.params.get("backbone", {}):
            raise ValueError("the run's network has no word embeddings: only occlusion can explain it.")
        if most < FIRST or most & (most - 1):
            raise ValueError(f"--max_steps is {most}, but should be a power of two from {FIRST} on.")
        self.run, self.most = run, most
        self.kind, self.token = baseline_token(run.task.context.tokenizer, baseline)
        self.rows = max(FIRST, data_shards(run.mesh))  # points of the integral that are computed together
        if self.rows % data_shards(run.mesh):
            self.rows = FIRST * data_shards(run.mesh)

    def gradient_times_input(self, objective: Objective, encoded: Encoded, owner: np.ndarray) -> Attributed:
        """owner: int32 [tokens], see `words.Words`; unused, because the method has no baseline."""
        batch, length, weights = batch_of(self.run, objective, encoded, self.rows)
        sums, values = self._compiled(
            objective.value, self.run.model.params, batch, weights, *self._points(batch, owner, 0)
        )
        return Attributed(np.asarray(sums, np.float64)[:length], _finite(float(values[0])))

    def integrated(self, objective: Objective, encoded: Encoded, owner: np.ndarray) -> Attributed:
        """Doubles the steps until the completeness error is at most `TOLERANCE`, or `most` steps are taken."""
        batch, length, weights = batch_of(self.run, objective, encoded, self.rows)
        steps = FIRST
        while True:
            points = self._points(batch, owner, steps)
            sums, (value, base) = self._compiled(objective.value, self.run.model.params, batch, weights, *points)
            tokens = np.asarray(sums, np.float64)[:length]
            value, base = _finite(float(value)), _finite(float(base))
            moved = value - base
            error = abs(tokens.sum() - moved) / max(abs(moved), 1e-30)
            if error <= TOLERANCE or steps >= self.most:
                return Attributed(tokens, value, base, steps, float(error))
            steps *= 2

    def _points(self, batch: Batch, owner: np.ndarray, steps: int) -> tuple[np.ndarray, ...]:
        """(int32 [length] baseline tokens, float32 [length] 1 where the baseline is zero, the points, their weights).

        Points and weights are float32 [blocks, rows]. steps 0: one point, x, and x itself instead of x − b.
        """
        length = batch.texts.tokens.shape[1]
        tokens = np.array(batch.texts.tokens[0])
        is_word = np.pad(owner >= 0, (0, length - len(owner)))
        zero: np.ndarray
        if steps == 0:
            at, share, zero = np.ones((1,)), np.ones((1,)), np.ones((length,))
        else:
            nodes, lengths = np.polynomial.legendre.leggauss(steps)  # on [−1, 1]
            at, share = (nodes + 1) / 2, lengths / 2
            zero = is_word * float(self.kind == "zero")
            tokens = np.where(is_word, self.token, tokens)
        room = (-(-max(self.most, self.rows) // self.rows), self.rows)
        points, shares = np.zeros(room), np.zeros(room)
        points.flat[: len(at)], shares.flat[: len(at)] = at, share
        blocks = np.array(-(-len(at) // self.rows), np.int32)
        floats = (each.astype(np.float32) for each in (zero, points, shares))
        return (tokens.astype(np.int32), *floats, blocks)

    @cached_property
    def _compiled(self) -> Callable[..., tuple[jax.Array, jax.Array]]:
        """(value or None, params, batch, weights, *points) -> (attributions [length], F(x) and F(b))."""
        graphdef, task, mesh = self.run.model.graphdef, self.run.task, self.run.mesh

        def values(
            value: Value | None, vectors: jax.Array, params: Tree, batch: Batch, weights: jax.Array
        ) -> jax.Array:
            """F of each row, float32 [rows], for word embeddings [rows, length, features]."""
            model: Any = nnx.merge(graphdef, params)  # Any: backbones have no common type
            model.backbone.word_embeddings = GivenVectors(model.backbone.word_embeddings, batch.texts.tokens, vectors)
            return values_of(task, value, task.view(model), batch, weights)

        @partial(jax.jit, static_argnums=0)
        def integrate(
            value: Value | None,
            params: Tree,
            batch: Batch,
            weights: jax.Array,
            base_tokens: jax.Array,
            zero: jax.Array,
            points: jax.Array,
            shares: jax.Array,
            blocks: jax.Array,
        ) -> tuple[jax.Array, jax.Array]:
            with mesh.tracing():
                model: Any = nnx.merge(graphdef, params)
                table = model.backbone.word_embeddings
                text = table(batch.texts.tokens[0]).astype(jnp.float32)
                base = jnp.where(zero[:, None] > 0, 0, table(base_tokens).astype(jnp.float32))
                moved = text - base

                def block(number: jax.Array, total: jax.Array) -> jax.Array:
                    vectors = base + points[number][:, None, None] * moved
                    slopes = jax.grad(lambda v: values(value, v, params, batch, weights).sum())(vectors)
                    return total + jnp.tensordot(shares[number], slopes, 1)

                slope = jax.lax.fori_loop(0, blocks, block, jnp.zeros_like(moved))
                ends = jnp.zeros(len(batch.texts.tokens)).at[0].set(1.0)
                both = values(value, base + ends[:, None, None] * moved, params, batch, weights)
                return (slope * moved).sum(-1), both[:2]

        return integrate


def batch_of(run: Run, objective: Objective, encoded: Encoded, rows: int) -> tuple[Batch, int, np.ndarray]:
    """(the text in each of `rows` rows, its tokens, the weights of the outputs of a row)."""
    asked, weights = objective.text(encoded), objective.weights(encoded)
    assert weights is not None  # of an example that nothing was removed from
    one = BatchTexts([asked.text], None) if objective.gather is None else objective.gather([asked])
    (length,), targets = lengths_of(one.texts)
    bucket = next(each for each in buckets(run.config) if each >= length)
    room = None if targets is None else next(r for r in target_buckets(run.task) if r >= targets[0])
    laid = lay_out(one, fit(np.array([length]), bucket, targets, room))
    laid = jax.tree.map(lambda x: np.repeat(x, rows, axis=0), laid)
    if run.task.per_token:
        padding = (room or bucket) - len(weights)
        weights = np.pad(weights, [(0, padding), *[(0, 0)] * (weights.ndim - 1)])
    return to_devices(laid, run.mesh), int(length), weights


def values_of(task: Task, value: Value | None, network: Network, batch: Batch, weights: jax.Array) -> jax.Array:
    """The number that an objective explains (see there) for the text of each row, float32 [rows]."""
    if value is not None:
        return value(network, batch, weights)
    outputs = task.predict(network, batch)
    outputs = outputs if task.per_token else outputs[:, 0]
    kept = jnp.where(weights != 0, outputs, 0).astype(jnp.float32)
    return (kept * weights).reshape(len(kept), -1).sum(-1)


def _finite(value: float) -> float:
    """Raises ValueError for a network that computes no number."""
    if not np.isfinite(value):
        raise ValueError("the model's outputs are not finite: the run diverged. Train it again.")
    return value
