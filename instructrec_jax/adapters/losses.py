"""Losses, in float32. Tasks compute the sums and weights over a batch.

Logits over a vocabulary, [rows, length, vocab], would be by far the largest array of a training run.
`linear_cross_entropy` takes the output layer's input and table instead and processes rows in chunks. On a mesh each
device processes its own rows, and gradients are summed over devices once, at the end.
"""

# Why our own: optax 0.2.8 needs whole logits, as does tokamax 0.0.12 off TPU, which also lacks weights, bias and
# smoothing.

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jax.sharding import AxisType, PartitionSpec
from jax.typing import DTypeLike

from instructrec_jax.arrays import Array
from instructrec_jax.distributed.mesh import mesh_axes

CHUNK_BYTES = 2**28  # maximum size of one chunk's fp32 logits on a device
CHUNK_TOKENS = 1024  # minimum number of tokens per chunk and device, within CHUNK_BYTES

Result = TypeVar("Result")
Gradients = dict[str, jax.Array]  # by name: "hidden", "table", "bias"


def cross_entropy(logits: Array, labels: Array) -> jax.Array:
    """−log softmax(logits)[label]. logits [..., classes], labels int32 [...] -> [...]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


def binary_cross_entropy(logits: Array, labels: Array) -> jax.Array:
    """Mean over the last axis of the sigmoid cross-entropy. logits and labels (0 or 1) [..., classes] -> [...]."""
    return optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), labels.astype(jnp.float32)).mean(-1)


def squared_error(predictions: Array, targets: Array) -> jax.Array:
    """(ŷ − y)², elementwise."""
    return jnp.square(predictions.astype(jnp.float32) - targets.astype(jnp.float32))


# ---------------------------------------------------------------- of pairs


def softmax_of_pairs(logits: Array, alike: Array) -> jax.Array:
    """The mean of −log softmax over each pair's row and over its column, [pairs].

    CLIP's loss (Radford et al., 2021, "Learning Transferable Visual Models From Natural Language Supervision", figure
    3).

    Args:
        logits: float [pairs, pairs]; those of the pairs themselves are on the diagonal.
        alike: bool [pairs, pairs], which pairs are no negatives of each other (the diagonal is never masked).
    """
    own = jnp.arange(len(logits))
    others = alike & ~jnp.eye(len(logits), dtype=bool)
    masked = jnp.where(others, -1e9, logits.astype(jnp.float32))
    return (cross_entropy(masked, own) + cross_entropy(masked.T, own)) / 2


def sigmoid_of_pairs(logits: Array, alike: Array) -> jax.Array:
    """Σ_j −log sigmoid(± logit) over each pair's row, [pairs]: + for the pair itself, − for its negatives.

    SigLIP's loss (Zhai et al., 2023, "Sigmoid Loss for Language Image Pre-Training", equation 1). Arguments as in
    `softmax_of_pairs`.
    """
    own = jnp.eye(len(logits), dtype=bool)
    losses = -jax.nn.log_sigmoid(jnp.where(own, 1, -1) * logits.astype(jnp.float32))
    return jnp.where(alike & ~own, 0, losses).sum(-1)


# ---------------------------------------------------------------- over a vocabulary


@dataclass(frozen=True)
class _Options:
    scale: float = 1.0
    soft_cap: float | None = None
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    chunk: int | None = None


def linear_cross_entropy(
    hidden: jax.Array,
    table: jax.Array,
    labels: Array,
    weights: Array,
    *,
    bias: jax.Array | None = None,
    scale: float = 1.0,
    soft_cap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    excluded: Array | None = None,
    chunk: int | None = None,
) -> jax.Array:
    """Σ w ℓ over a vocabulary, without an array [rows, length, vocab].

        z = soft_cap(scale · hidden @ tableᵀ + bias)
        ℓ = −(1 − ε) log softmax(z)[label] − ε mean(log softmax(z)) + z_loss · logsumexp(z)²

    with ε = `label_smoothing` (Szegedy et al., 2016; as in torch.nn.functional.cross_entropy). The z-loss is that of
    PaLM (Chowdhery et al., 2022). Each chunk's gradients are computed together with its logits (Hsu et al., "Liger
    Kernel", 2024), so nothing is recomputed. Positions of weight 0 are sorted to the end of their row, and chunks
    without any other positions are skipped.

    Args:
        hidden: float [rows, length, h]. Matrix products are computed in its dtype and summed in fp32.
        table: float [vocab, h].
        labels: int32 [rows, length]. A label outside the vocabulary gives NaN, unless its weight is 0.
        weights: float32 [rows, length], constants: a gradient by weights is a ValueError.
        bias: float [vocab].
        scale: factor of hidden.
        soft_cap: logits become soft_cap · tanh(logits / soft_cap).
        excluded: int32 [rows, length, n], entries of the vocabulary that are not in the softmax (nor in the mean) of a
            position, except its label; a number outside the vocabulary excludes nothing.
        chunk: positions per row and chunk; None chooses it, see `chunk_size`.

    Returns: float32 scalar.
    Raises ValueError for inconsistent shapes and for options out of range.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), but is {label_smoothing}.")
    if z_loss < 0:
        raise ValueError(f"z_loss must be at least 0, but is {z_loss}.")
    _check(hidden, table, labels, weights, bias, soft_cap, chunk)
    if excluded is not None and excluded.shape[:2] != labels.shape:
        raise ValueError(f"excluded must be [rows, length, n], but is {list(excluded.shape)}.")
    options = _Options(scale, soft_cap, label_smoothing, z_loss, chunk)
    return _weighted_sum(options, hidden, table, bias, labels, weights, excluded)


def token_losses(
    hidden: jax.Array,
    table: jax.Array,
    labels: Array,
    weights: Array | None = None,
    *,
    bias: jax.Array | None = None,
    scale: float = 1.0,
    soft_cap: float | None = None,
    chunk: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """−log softmax(z)[label] and whether the label is the argmax of z, both [rows, length]; not differentiable.

    Arguments as in `linear_cross_entropy`. Positions of weight 0 are not computed and give 0 and False. A label outside
    the vocabulary gives NaN and False.
    """
    weights = jnp.ones(labels.shape, jnp.float32) if weights is None else weights
    _check(hidden, table, labels, weights, bias, soft_cap, chunk)
    options = _Options(scale, soft_cap, chunk=chunk)
    function = functools.partial(_token_losses, options)
    return _by_rows(function, (True, True), hidden, table, bias, labels, weights, None)


def _check(
    hidden: jax.Array,
    table: jax.Array,
    labels: Array,
    weights: Array,
    bias: jax.Array | None,
    soft_cap: float | None,
    chunk: int | None,
) -> None:
    fits = hidden.ndim == 3 and labels.shape == weights.shape == hidden.shape[:2]
    if not fits or table.shape[1:] != hidden.shape[2:] or (bias is not None and bias.shape != table.shape[:1]):
        shapes = {"hidden": hidden, "table": table, "labels": labels, "weights": weights, "bias": bias}
        found = ", ".join(f"{name} {list(x.shape)}" for name, x in shapes.items() if x is not None)
        raise ValueError(
            "the shapes must be hidden [rows, length, h], table [vocab, h], labels and weights [rows, length] and bias "
            f"[vocab], but are {found}."
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integers, but are {labels.dtype}.")
    if soft_cap is not None and soft_cap <= 0:
        raise ValueError(f"soft_cap must be positive (or None for no cap), but is {soft_cap}.")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, but is {chunk}.")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted_sum(
    options: _Options,
    hidden: jax.Array,
    table: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    weights: jax.Array,
    excluded: jax.Array | None,
) -> jax.Array:
    return _sum_and_gradients(options, (), hidden, table, bias, labels, weights, excluded)[0]


def _forward(
    options: _Options,
    hidden: CustomVJPPrimal,
    table: CustomVJPPrimal,
    bias: CustomVJPPrimal | None,
    labels: CustomVJPPrimal,
    weights: CustomVJPPrimal,
    excluded: CustomVJPPrimal | None,
) -> tuple[jax.Array, Gradients]:
    if weights.perturbed:
        raise ValueError("linear_cross_entropy has no gradient by weights: pass jax.lax.stop_gradient(weights).")
    # only the gradients in use: the table of a frozen network has none
    inputs = {"hidden": hidden, "table": table, "bias": bias}
    by = tuple(name for name, x in inputs.items() if x is not None and x.perturbed)
    bias_value, left_out = (None if each is None else each.value for each in (bias, excluded))
    return _sum_and_gradients(options, by, hidden.value, table.value, bias_value, labels.value, weights.value, left_out)


def _backward(
    _: _Options, gradients: Gradients, cotangent: jax.Array | SymbolicZero
) -> tuple[jax.Array | None, jax.Array | None, jax.Array | None, None, None, None]:
    if isinstance(cotangent, SymbolicZero):
        return None, None, None, None, None, None
    scaled = {name: (gradient * cotangent).astype(gradient.dtype) for name, gradient in gradients.items()}
    return scaled.get("hidden"), scaled.get("table"), scaled.get("bias"), None, None, None


_weighted_sum.defvjp(_forward, _backward, symbolic_zeros=True)


def _by_rows(
    function: Callable[..., Result],
    outputs: object,
    hidden: jax.Array,
    table: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array | np.ndarray,
    weights: jax.Array | np.ndarray,
    excluded: jax.Array | np.ndarray | None,
) -> Result:
    """Runs function(hidden, table, bias, labels, weights, excluded, axes=) on each device, with the device's rows.

    The compiler alone would sum the table's gradient over devices in every chunk. Tensor parallelism is left to the
    compiler.

    Args:
        outputs: as nested as the function's result: True for an array with rows, False for an array that is equal on
            all devices (a sum over `axes`, the mesh axes that split rows and length).
    """
    mesh = jax.typeof(hidden).sharding.mesh
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))

    def split_over(name: str, size: int) -> tuple[str, ...]:
        axes = tuple(axis for axis in mesh_axes(name) if kinds.get(axis) == AxisType.Auto and mesh.shape[axis] > 1)
        return axes if size % int(np.prod([mesh.shape[axis] for axis in axes])) == 0 else ()

    over_rows, over_length = split_over("batch", hidden.shape[0]), split_over("length", hidden.shape[1])
    axes = over_rows + over_length
    if not axes:
        return function(hidden, table, bias, labels, weights, excluded, axes=())
    rows, whole = PartitionSpec(over_rows or None, over_length or None), PartitionSpec()
    split = jax.shard_map(
        functools.partial(function, axes=axes),
        mesh=mesh,
        in_specs=(rows, whole, whole, rows, rows, rows),
        out_specs=jax.tree.map(lambda has_rows: rows if has_rows else whole, outputs),
        axis_names=set(axes),
        check_vma=False,
    )
    return split(hidden, table, bias, labels, weights, excluded)


@dataclass(frozen=True)
class _Chunks:
    """The positions of each row, those of nonzero weight first, split into chunks.

    `order` int32 [rows, count * size] holds positions in the row (0 beyond its end), `back` [rows, length] is its
    inverse; only the first `used` chunks contain a position of nonzero weight.
    """

    order: jax.Array
    back: jax.Array
    used: jax.Array
    size: int

    @classmethod
    def of(cls, weights: jax.Array, size: int, axes: tuple[str, ...]) -> "_Chunks":
        length = weights.shape[1]
        order = jnp.argsort(weights == 0, axis=1, stable=True)
        most = jnp.sum(weights != 0, axis=1).max(initial=0)
        most = jax.lax.pmax(most, axes) if axes else most  # same count on all devices, for collectives inside a chunk
        padded = jnp.pad(order, ((0, 0), (0, -length % size)))
        return cls(padded, jnp.argsort(order, axis=1), (most + size - 1) // size, size)

    def take(
        self, number: jax.Array, hidden: jax.Array, labels: jax.Array, weights: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        inside = number * self.size + jnp.arange(self.size) < weights.shape[1]
        x, labels, weights = (self.places_of(number, each) for each in (hidden, labels, weights))
        return x, labels, jnp.where(inside, weights, 0)

    def places_of(self, number: jax.Array, whole: jax.Array) -> jax.Array:
        """A chunk's part of [rows, length, ...]: [rows, size, ...]."""
        places = jax.lax.dynamic_slice_in_dim(self.order, number * self.size, self.size, axis=1)
        return jnp.take_along_axis(whole, places.reshape(*places.shape, *(1,) * (whole.ndim - 2)), axis=1)

    def empty(self, *features: int, dtype: DTypeLike) -> jax.Array:
        return jnp.zeros((*self.order.shape, *features), dtype)

    def put(self, whole: jax.Array, number: jax.Array, part: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(whole, part.astype(whole.dtype), number * self.size, axis=1)

    def restore(self, whole: jax.Array) -> jax.Array:
        """[rows, count * size, ...] in the order of chunks -> [rows, length, ...] in the order of the row."""
        back = self.back.reshape(*self.back.shape, *(1,) * (whole.ndim - 2))
        return jnp.take_along_axis(whole, back, axis=1)


def chunk_size(rows: int, length: int, vocab: int, chunk: int | None) -> int:
    """Positions per chunk of a row: chunks of equal size, as few as the bounds allow."""
    if chunk is None:
        # an eighth of the row, so that positions of weight 0 are skipped, but enough for efficient matrix products
        worthwhile = max(length // 8, CHUNK_TOKENS // rows)
        chunk = max(1, min(worthwhile, CHUNK_BYTES // (4 * rows * vocab)))
    return -(-length // -(-length // chunk))


def _logits(options: _Options, x: jax.Array, table: jax.Array, bias: jax.Array | None) -> jax.Array:
    x = (x * options.scale).astype(x.dtype)
    z = jnp.einsum("rch,vh->rcv", x, table.astype(x.dtype), preferred_element_type=jnp.float32)
    z = z if bias is None else z + bias
    return z if options.soft_cap is None else options.soft_cap * jnp.tanh(z / options.soft_cap)


def _without(z: jax.Array, excluded: jax.Array, labels: jax.Array) -> jax.Array:
    """z [rows, size, vocab] with −inf for the entries excluded [rows, size, n], except the labels [rows, size]."""
    rows, size, vocab = z.shape
    others = jnp.where((excluded == labels[..., None]) | (excluded < 0), vocab, excluded)
    return z.at[jnp.arange(rows)[:, None, None], jnp.arange(size)[:, None], others].set(-jnp.inf, mode="drop")


def _compare(z: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mask of the label's logit [..., vocab], its value [...], and logsumexp(z) [...] (NaN for an unknown label).

    The value is a masked sum, because a look-up would gather logits that are split over devices.
    """
    chosen = jnp.arange(z.shape[-1]) == labels[..., None]
    known = (labels >= 0) & (labels < z.shape[-1])
    log_z = jnp.where(known, jax.nn.logsumexp(z, axis=-1), jnp.nan)
    return chosen, jnp.sum(jnp.where(chosen, z, 0), axis=-1), log_z


def _sum_and_gradients(
    options: _Options,
    by: tuple[str, ...],
    hidden: jax.Array,
    table: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    weights: jax.Array,
    excluded: jax.Array | None,
) -> tuple[jax.Array, Gradients]:
    """Σ w ℓ, and its gradients by the inputs named in `by` (hidden, table, bias), in their dtypes."""
    outputs = (False, {name: name == "hidden" for name in by})
    function = functools.partial(_rows_sum_and_gradients, options, by)
    return _by_rows(function, outputs, hidden, table, bias, labels, weights, excluded)


def _rows_sum_and_gradients(
    options: _Options,
    by: tuple[str, ...],
    hidden: jax.Array,
    table: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    weights: jax.Array,
    excluded: jax.Array | None,
    *,
    axes: tuple[str, ...],
) -> tuple[jax.Array, Gradients]:
    (rows, length, width), vocab = hidden.shape, len(table)
    chunks = _Chunks.of(weights, chunk_size(rows, length, vocab, options.chunk), axes)
    smoothing, cap = options.label_smoothing, options.soft_cap

    def step(number: jax.Array, carry: tuple[jax.Array, Gradients]) -> tuple[jax.Array, Gradients]:
        total, sums = carry
        x, label, weight = chunks.take(number, hidden, labels, weights)
        z = _logits(options, x, table, bias)
        if excluded is not None:
            z = _without(z, chunks.places_of(number, excluded), label)
        competing = vocab if excluded is None else jnp.isfinite(z).sum(-1)
        chosen, at_label, log_z = _compare(z, label)
        loss = log_z - (1 - smoothing) * at_label + options.z_loss * jnp.square(log_z)
        if smoothing:
            loss -= smoothing * z.sum(-1, where=jnp.isfinite(z)) / competing
        total += jnp.sum(jnp.where(weight != 0, weight * loss, 0))
        if not by:
            return total, sums

        # dℓ/dz = softmax(z) (1 + 2 z_loss logsumexp(z)) − (1 − ε) [label] − ε / vocab; dz of the capped logits last
        dz = jnp.exp(z - log_z[..., None]) * (1 + 2 * options.z_loss * log_z[..., None])
        dz -= jnp.where(chosen, 1 - smoothing, 0)
        if smoothing:
            dz -= jnp.where(jnp.isfinite(z), smoothing / jnp.asarray(competing)[..., None], 0)
        dz = dz if cap is None else dz * jnp.where(jnp.isfinite(z), 1 - jnp.square(z / cap), 0)
        dz = jnp.where(weight[..., None] != 0, dz * weight[..., None], 0)
        sums = dict(sums)
        if "bias" in sums:
            sums["bias"] += dz.sum((0, 1))
        dz = dz.astype(x.dtype)
        if "table" in sums:
            # positions as one dimension: with two, XLA on CPU takes twice as long
            by_place = dz.reshape(-1, vocab), x.reshape(-1, width)
            sums["table"] += jnp.einsum("pv,ph->vh", *by_place, preferred_element_type=jnp.float32) * options.scale
        if "hidden" in sums:
            dx = jnp.einsum("rcv,vh->rch", dz, table.astype(x.dtype), preferred_element_type=jnp.float32)
            sums["hidden"] = chunks.put(sums["hidden"], number, dx * options.scale)
        return total, sums

    zeros = {
        "hidden": lambda: chunks.empty(width, dtype=hidden.dtype),
        "table": lambda: jnp.zeros(table.shape, jnp.float32),
        "bias": lambda: jnp.zeros((vocab,), jnp.float32),
    }
    start = (jnp.zeros(()), {name: zeros[name]() for name in by})
    total, sums = jax.lax.fori_loop(0, chunks.used, step, start)
    by_rows = {"hidden": chunks.restore(sums.pop("hidden"))} if "hidden" in sums else {}
    total, sums = jax.lax.psum((total, sums), axes) if axes else (total, sums)
    dtypes = {"table": table.dtype} | ({} if bias is None else {"bias": bias.dtype})
    return total, by_rows | {name: value.astype(dtypes[name]) for name, value in sums.items()}


def _token_losses(
    options: _Options,
    hidden: jax.Array,
    table: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    weights: jax.Array,
    excluded: None,
    *,
    axes: tuple[str, ...],
) -> tuple[jax.Array, jax.Array]:
    rows, length, _ = hidden.shape
    chunks = _Chunks.of(weights, chunk_size(rows, length, len(table), options.chunk), axes)

    def step(number: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        x, label, weight = chunks.take(number, hidden, labels, weights)
        z = _logits(options, x, table, bias)
        _, at_label, log_z = _compare(z, label)
        found = jnp.where(weight != 0, log_z - at_label, 0), (weight != 0) & (z.argmax(-1) == label)
        return tuple(chunks.put(whole, number, part) for whole, part in zip(carry, found, strict=True))

    start = (chunks.empty(dtype=jnp.float32), chunks.empty(dtype=bool))
    loss, hit = jax.lax.fori_loop(0, chunks.used, step, start)
    return chunks.restore(loss), chunks.restore(hit)
