"""Gradient × input and integrated gradients of an objective with respect to the embeddings of words and patches.

    gradient × input       a_t = x_t · ∂F/∂x_t                                       (Shrikumar et al., 2016)
    integrated gradients   a_t = (x_t − b_t) · ∫₀¹ ∂F/∂x_t (b + α (x − b)) dα        (Sundararajan et al., 2017)

x_t is the word embedding of token t, before positions, norms and scaling. The baseline b has the embedding of the mask
token (or pad, or zero) at the tokens of words, and x elsewhere. With "mean" it has the mean embedding of the words of
data.validation: for networks that never learned what a text of masks is. Patches of pictures are tokens like words: x_t
is the embedding of a patch, before positions, and b_t that of the mean color. The integral is a Gauss–Legendre sum;
Σ a_t over words and patches equals F(x) − F(b) up to its error (completeness).

Several texts lie in a row. They do not see each other, so the gradient of the sum of their numbers is that of each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.arrays import Array
from instructrec_jax.backbones.layers import DropoutKeys, Embedding
from instructrec_jax.backbones.vision import patches_of
from instructrec_jax.data.batch import Batch
from instructrec_jax.data.loader import to_devices
from instructrec_jax.distributed.mesh import data_shards
from instructrec_jax.explanation.patches import GivenPatches, vision_of
from instructrec_jax.explanation.rows import Asked, PackedRows, Place, Value, packed, sum_of, values_of
from instructrec_jax.hf_types import PreTrainedTokenizerBase
from instructrec_jax.runs.run import Run
from instructrec_jax.training.state import Tree

Baseline = Literal["mask", "pad", "zero", "mean"]
FIRST, MOST = 8, 512  # steps of the first try and of the last one; powers of two
MEAN_OF = 1000  # validation cases, of whose words it is the mean
TOLERANCE = 0.01  # completeness error, relative to F(x) − F(b), that needs no more steps

Vectors = dict[str, jax.Array]
"""Embeddings of a batch, float32: "words" [rows, length, features], "patches" [rows, images, patches, features]; only
those that the network has."""


class GivenVectors(nnx.Module):
    """Word embeddings that are `vectors` for the tokens of the text, and the table's for other tokens (of targets)."""

    def __init__(self, inner: Embedding, batch: Batch, vectors: jax.Array):
        self.table = inner.table
        every, tokens = batch.targets is None, batch.texts.tokens
        self.look = lambda ids: vectors.astype(inner.dtype) if every or ids is tokens else inner(ids)

    def __call__(self, ids: jax.Array, keys: DropoutKeys | None = None) -> jax.Array:
        return self.look(ids)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Line:
    """Points between the baseline and the text of each row.

    Attributes:
      tokens: int32 [rows, length], of the baseline.
      fixed: float32 [rows, length], 1 where the baseline is `vector` instead.
      vector: float32 [features], zero or a mean.
      no_patches: float32 [], 1 where the baseline of patches is zero instead of the mean color.
      points, shares: float32 [blocks, rows], the points and their weights; `blocks`: int32 [], how many are used.
      ends: float32 [rows], the points whose numbers are returned.
    """

    tokens: Array
    fixed: Array
    vector: Array
    no_patches: Array
    points: Array
    shares: Array
    ends: Array
    blocks: Array


@dataclass(frozen=True)
class Attributed:
    """Attributions of the tokens and patches of a text.

    Attributes:
      tokens: float64 [tokens]; patches: float64 [pictures, patches].
      value, baseline: F(x) and F(b).
      steps: points of the integral; 1 for a gradient.
      error: |Σ a − (F(x) − F(b))| / |F(x) − F(b)|; None for methods without completeness.
    """

    tokens: np.ndarray
    patches: np.ndarray
    value: float
    baseline: float | None = None
    steps: int = 1
    error: float | None = None


def baseline_token(tokenizer: PreTrainedTokenizerBase | None, kind: Baseline | None) -> tuple[Baseline, int]:
    """(kind, id) of the baseline of words; None: mask where the tokenizer has that token, else zero.

    The id of zero and mean is 0, and unused.

    Raises ValueError for a token that the tokenizer does not have.
    """
    ids = {"mask": None, "pad": None, "zero": 0, "mean": 0}
    if tokenizer is not None:  # a network of images has none
        ids |= {"mask": tokenizer.mask_token_id, "pad": tokenizer.pad_token_id}
    elif kind == "mean":
        raise ValueError("--baseline mean is of words, but the run reads pictures alone: leave it out.")
    chosen: Baseline = kind or ("zero" if ids["mask"] is None else "mask")
    number = ids[chosen]
    if number is None:
        there = ", ".join(name for name, each in ids.items() if each is not None)
        raise ValueError(f"the tokenizer has no {chosen} token: choose --baseline {there}.")
    return chosen, int(number)


def words_of_data(run: Run) -> np.ndarray:
    """The tokens of words of the first validation cases, int32, as often as they occur.

    Raises ValueError for a run without any.
    """
    encoded = run.data.cases(run.task, "validation")[:MEAN_OF]
    special = run.task.context.tokenizer.all_special_ids
    found = np.concatenate([e.text.tokens for e in encoded]) if len(encoded) else np.zeros(0, np.int32)
    found = found[~np.isin(found, special)]
    if not len(found):
        raise ValueError(
            "--baseline mean is of the words of data.validation, which has none: set it, or leave this out."
        )
    return found.astype(np.int32)


class Gradients:
    """Attributions by gradients for the objectives of a run; programs are compiled once per length of rows.

    Raises ValueError for an ensemble, and a network without embeddings of words or patches.
    """

    def __init__(self, run: Run, baseline: Baseline | None = None, most: int = MOST):
        if run.members:
            raise ValueError(f"{run.path} is an ensemble, whose members have their own gradients: name a member.")
        if why := no_gradients(run):
            raise ValueError(f"{why}: only occlusion can explain it (--method occlusion).")
        if most < FIRST or most & (most - 1):
            raise ValueError(f"--max_steps is {most}, but should be a power of two from {FIRST} on.")
        self.run, self.most = run, most
        self.kind, self.token = baseline_token(run.task.context.tokenizer, baseline)
        self.rows = max(FIRST, data_shards(run.mesh))  # points of the integral that are computed together
        if self.rows % data_shards(run.mesh):
            self.rows = FIRST * data_shards(run.mesh)

    def gradient_times_input(self, asked: Sequence[Asked]) -> list[Attributed]:
        """Of each; several rows are computed at once."""
        rows, found = packed(self.run, asked), {}
        for numbers, batch, weights in rows.blocks(self.rows):
            shape = batch.texts.tokens.shape
            ones = np.ones(shape, np.float32)
            zero = np.zeros_like(self._vector)
            line = self._line(np.zeros(shape, np.int32), ones, zero, np.ones(1), np.ones((1, self.rows)), ones[:, 0])
            sums, values = self._computed(asked, batch, weights, line)
            for at, row in enumerate(numbers):
                for place in rows.places[row]:
                    tokens, patches = _of(place, sums, slice(at, at + 1))
                    found[place.number] = Attributed(tokens, patches, _finite(values[at, place.segment]))
        return [found[number] for number in range(len(asked))]

    def integrated(self, asked: Sequence[Asked]) -> list[Attributed]:
        """Of each; doubles the steps until the completeness error is at most `TOLERANCE`, or `most` steps are taken."""
        found: dict[int, Attributed] = {}
        steps, left = FIRST, list(range(len(asked)))
        while left:
            some = [asked[number] for number in left]
            rows = packed(self.run, some)
            for row in range(len(rows)):
                for number, each in self._integrals(some, rows, row, steps):
                    found[left[number]] = each
            steps *= 2
            if steps > self.most:
                break
            left = [number for number in left if (found[number].error or 0.0) > TOLERANCE]
        return [found[number] for number in range(len(asked))]

    def _integrals(
        self, asked: Sequence[Asked], rows: PackedRows, row: int, steps: int
    ) -> list[tuple[int, Attributed]]:
        """(number, attributions) of the texts of one row, which all points of a block have."""
        batch, weights = rows.chosen([row] * self.rows)
        tokens = batch.texts.tokens
        is_word = np.zeros(tokens.shape, bool)
        for place in rows.places[row]:
            is_word[:, place.tokens] = asked[place.number].words.is_word
        base = np.where(is_word, self.token, tokens)
        nodes, lengths = np.polynomial.legendre.leggauss(steps)  # on [−1, 1]
        ends = np.zeros(self.rows)
        ends[0] = 1
        fixed = is_word * float(self.kind in ("zero", "mean"))
        line = self._line(base, fixed, self._vector, (nodes + 1) / 2, lengths / 2, ends)
        sums, values = self._computed(asked, batch, weights, line)
        found = []
        for place in rows.places[row]:
            own, patches = _of(place, sums, slice(None))
            value, base_value = (_finite(each) for each in values[:2, place.segment])
            moved = value - base_value
            error = abs(own.sum() + patches.sum() - moved) / max(abs(moved), 1e-30)
            found.append((place.number, Attributed(own, patches, value, base_value, steps, float(error))))
        return found

    def _line(
        self,
        tokens: np.ndarray,
        fixed: np.ndarray,
        vector: np.ndarray,
        at: np.ndarray,
        shares: np.ndarray,
        ends: np.ndarray,
    ) -> Line:
        """Room for `most` points, so that their number changes no shape; those of one row are dealt out to all."""
        room = (-(-max(self.most, self.rows) // self.rows), self.rows)
        points, weights = np.zeros(room), np.zeros(room)
        points.flat[: shares.size], weights.flat[: shares.size] = at, shares
        return Line(
            tokens=tokens.astype(np.int32),
            fixed=fixed.astype(np.float32),
            vector=vector,
            no_patches=np.array(shares.ndim == 2, np.float32),  # gradient × input has no baseline
            points=points.astype(np.float32),
            shares=weights.astype(np.float32),
            ends=ends.astype(np.float32),
            blocks=np.array(-(-shares.size // self.rows), np.int32),
        )

    def _computed(
        self, asked: Sequence[Asked], batch: Batch, weights: np.ndarray, line: Line
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """(attributions of the points of each row, float64; numbers at its end, float64 [rows, segments])."""
        value, params = asked[0].objective.value, self.run.model.params
        sums, values = self._compiled(value, params, to_devices(batch, self.run.mesh), weights, line)
        return {name: np.asarray(x, np.float64) for name, x in sums.items()}, np.asarray(values, np.float64)

    @cached_property
    def _vector(self) -> np.ndarray:
        """float32 [features]: the baseline of words that is no token."""
        reader = words_of(nnx.merge(self.run.model.graphdef, self.run.model.params).backbone)
        if reader is None:
            return np.zeros(1, np.float32)
        words = words_of_data(self.run) if self.kind == "mean" else np.zeros(1, np.int32)
        vectors = reader.word_embeddings(jnp.asarray(words)).astype(jnp.float32)
        return np.asarray(vectors.mean(0)) * np.float32(self.kind == "mean")

    @cached_property
    def _compiled(self) -> Callable[..., tuple[Vectors, jax.Array]]:
        """(value or None, params, batch, weights, line) -> (attributions, [rows, segments] numbers at `Line.ends`)."""
        graphdef, task, mesh = self.run.model.graphdef, self.run.task, self.run.mesh

        def given(vectors: Vectors, params: Tree, batch: Batch) -> Any:
            """The network with these embeddings; Any: backbones have no common type."""
            model: Any = nnx.merge(graphdef, params)
            if "words" in vectors:
                reader = words_of(model.backbone)
                reader.word_embeddings = GivenVectors(reader.word_embeddings, batch, vectors["words"])
            if "patches" in vectors:
                vision: Any = vision_of(model.backbone)
                patches = vectors["patches"]
                flat = patches.reshape(-1, *patches.shape[2:]).astype(vision.dtype)
                vision.patches = GivenPatches(flat)
            return task.view(model)

        @partial(jax.jit, static_argnums=0)
        def integrate(
            value: Value | None, params: Tree, batch: Batch, weights: jax.Array, line: Line
        ) -> tuple[Vectors, jax.Array]:
            with mesh.tracing():
                text, base = _ends(nnx.merge(graphdef, params), batch, line)
                moved = jax.tree.map(jnp.subtract, text, base)

                def at(points: Array) -> Vectors:
                    return jax.tree.map(lambda b, m: b + points.reshape(-1, *[1] * (m.ndim - 1)) * m, base, moved)

                def block(number: jax.Array, total: Vectors) -> Vectors:
                    def sum_at(vectors: Vectors) -> jax.Array:
                        return sum_of(value, task, given(vectors, params, batch), batch, weights)

                    slopes = jax.grad(sum_at)(at(line.points[number]))
                    share = line.shares[number]
                    return jax.tree.map(lambda t, s: t + share.reshape(-1, *[1] * (s.ndim - 1)) * s, total, slopes)

                slopes = jax.lax.fori_loop(0, line.blocks, block, jax.tree.map(jnp.zeros_like, moved))
                values = values_of(task, given(at(line.ends), params, batch), batch, weights)
                return jax.tree.map(lambda s, m: (s * m).sum(-1), slopes, moved), values

        return integrate


def _ends(model: Any, batch: Batch, line: Line) -> tuple[Vectors, Vectors]:
    """The embeddings of a batch and those of its baseline."""
    text: Vectors = {}
    base: Vectors = {}
    if (reader := words_of(model.backbone)) is not None:
        table = reader.word_embeddings
        images = batch.images
        seen = None if images is None else jnp.asarray(images.places) >= 0  # whose id may lie beyond the table

        def look(tokens: Array) -> jax.Array:
            return table(jnp.asarray(tokens) if seen is None else jnp.where(seen, 0, tokens)).astype(jnp.float32)

        text["words"] = look(batch.texts.tokens)
        base["words"] = jnp.where(line.fixed[..., None] > 0, line.vector, look(line.tokens))
    vision = vision_of(model.backbone)
    if vision is not None and batch.images is not None and batch.images.pixels.shape[1]:
        pixels = jnp.asarray(batch.images.pixels)
        cut = patches_of(batch.images.flat, vision.spec.patch_size)
        found = vision.patches(cut).astype(jnp.float32)
        text["patches"] = found.reshape(*pixels.shape[:2], *found.shape[1:])
        mean = vision.patches(jnp.zeros_like(cut[:1])).astype(jnp.float32)
        base["patches"] = jnp.broadcast_to((1 - line.no_patches) * mean, text["patches"].shape)
    return text, base


def words_of(backbone: Any) -> Any:
    """The part of a backbone that has the word embeddings: the text network of a pair; None: it reads no words."""
    for part in (backbone, getattr(backbone, "text", None)):
        if hasattr(part, "word_embeddings"):
            return part
    return None


def no_gradients(run: Run) -> str:
    """Why a run has no gradients to explain it by; "": it has."""
    if run.task.explained_by == "occlusion":
        return f"the task {run.config.task.name} has no gradients of words"
    backbone: Any = run.model.params.get("backbone", {})
    there = ("word_embeddings" in part for part in (backbone, backbone.get("text", {})))
    if any(there) or "patches" in backbone:
        return ""
    return "the run's network has no word embeddings"


def _of(place: Place, sums: dict[str, np.ndarray], rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """(attributions of the tokens, of the patches [pictures, patches]) of a text, summed over some rows."""
    words, patches = sums.get("words"), sums.get("patches")
    count = place.tokens.stop - place.tokens.start
    own = np.zeros(count) if words is None else words[rows, place.tokens].sum(0)
    return own, np.zeros((0, 0)) if patches is None else patches[rows, place.images].sum(0)


def _finite(value: float) -> float:
    """Raises ValueError for a network that computes no number."""
    if not np.isfinite(value):
        raise ValueError("the model's outputs are not finite: the run diverged. Train it again.")
    return float(value)
