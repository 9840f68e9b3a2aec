"""Exact top-k search by inner product over a whole catalogue, with the items sharded over the devices.

Each device scans its items block by block and keeps the k best so far; [queries, items] is never in memory. Sorting a
whole block would cost more than the matrix product, so neighboring items form small groups: the k best items are in the
k groups with the largest maxima, because each of these groups has an item at least as good as any item of the other
groups. Only the items of these k groups are sorted. Finally the k best items of each device are gathered and merged.

Among equal scores, the lower item number comes first at each stage, as in a stable sort.
"""

import functools
from collections.abc import Sequence
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from numpy.typing import ArrayLike

from instructrec_jax.distributed.mesh import DeviceMesh, make_mesh, parameter_sharding, replicated
from instructrec_jax.distributed.mesh_config import MeshConfig

BLOCK = 16_384  # items scored at a time on a device
QUERIES = 256  # queries scored at a time: scores take 4 x BLOCK x QUERIES bytes, 17 MB
# With `fixed_shapes`: these sizes, then the number of items; queries are searched in groups of at most the largest.
QUERY_STEPS, BEST_STEPS, HIDDEN_STEPS = (1, 64), (32, 1024), (64, 4096)
LARGEST_GROUP = 64  # group sizes are powers of two up to this; it divides every block


class ItemIndex:
    """Item vectors on the mesh, for `search`.

    Scores are computed in float32 at full precision, also with bfloat16 vectors. Different blockings of the same matrix
    product may differ in the last bit; only exactly equal scores are ordered by item number.
    """

    def __init__(
        self,
        vectors: ArrayLike,
        *,
        bias: ArrayLike | None = None,
        mesh: DeviceMesh | None = None,
        fixed_shapes: bool = False,
    ) -> None:
        """Places the vectors on the devices.

        Args:
          vectors: [items, d], stored as bfloat16 if they are bfloat16, else as float32. They may be memory-mapped. Do
            not change them afterwards: a CPU device may share their memory.
          bias: [items], added to the scores; -inf excludes an item.
          mesh: defaults to all devices.
          fixed_shapes: search in few shapes, which `compile` compiles beforehand (for a service).

        Raises ValueError, naming the item, for a vector that is not finite or a bias that is NaN or +inf.
        """
        array = np.asarray(vectors)
        if array.ndim != 2 or not array.size:
            raise ValueError(f"item vectors should be [items, d] and not empty, but have shape {array.shape}.")
        offsets = np.zeros(len(array), np.float32) if bias is None else np.asarray(bias, np.float32)
        if offsets.shape != (len(array),):
            raise ValueError(f"bias should be [{len(array)}], one number per item, but has shape {offsets.shape}.")
        self.items, self.width = array.shape
        self.dtype = array.dtype if array.dtype == jnp.bfloat16 else np.dtype(np.float32)
        self.mesh = mesh or make_mesh(MeshConfig())
        self.fixed_shapes = fixed_shapes
        if len(bad := np.flatnonzero(np.isnan(offsets) | (offsets == np.inf))):
            raise ValueError(f"the bias of item {bad[0]} is {offsets[bad[0]]}; it must be finite or -inf.")
        for start in range(0, self.items, BLOCK):
            if len(bad := np.flatnonzero(~np.isfinite(array[start : start + BLOCK]).all(axis=1))):
                raise ValueError(
                    f"the vector of item {start + bad[0]} is not finite: its text may be empty, or the model may have "
                    "diverged."
                )
        devices = int(np.prod([self.mesh.shape[axis] for axis in self.mesh.axes("items")]))
        rows = rows_of_device(self.items, devices)
        self._vectors = self._place(array, self.dtype, rows * devices, 0)
        # Adding +0 turns -0 into 0, because top_k would sort a score of -0 below 0.
        self._bias = self._place(offsets + 0.0, np.dtype(np.float32), rows * devices, -np.inf)

    def _place(self, array: np.ndarray, dtype: np.dtype, rows: int, fill: float) -> jax.Array:
        """Shards [items, ...] over the devices, padded at the end to `rows`; a process reads only its own shards."""
        shape = (rows, *array.shape[1:])

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            start, stop, _ = (slice(None) if index is None else index[0]).indices(rows)
            found = np.ascontiguousarray(array[start:stop], dtype)
            if len(found) == stop - start:
                return found
            missing = [(0, stop - start - len(found)), *[(0, 0)] * (array.ndim - 1)]
            return np.pad(found, missing, constant_values=fill)

        axes = ("items", *[None] * (array.ndim - 1))
        return jax.make_array_from_callback(shape, parameter_sharding(self.mesh, shape, axes), part)

    def search(
        self, queries: ArrayLike, k: int, *, exclude: Sequence[ArrayLike] | np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best items of each query, best first, equal scores by item number.

        Args:
          queries: float [q, d].
          k: at most the number of items.
          exclude: items to leave out of each query's result: int [q, m] padded with -1, or q arrays of any lengths.

        Returns:
          Item numbers int32 [q, k] and their scores float32 [q, k], padded with -1 and -inf where fewer than k items
          remain.

        Raises ValueError for k out of range, shapes that do not match, unknown item numbers, queries that are not
        finite, and scores that overflow float32.
        """
        asked = np.asarray(queries, np.float32)
        if asked.ndim != 2 or asked.shape[1] != self.width:
            raise ValueError(f"queries should be [q, {self.width}] like the items, but have shape {asked.shape}.")
        if not 1 <= k <= self.items:
            raise ValueError(f"k must be from 1 to {self.items}, the number of items, but is {k}.")
        if exclude is not None and len(exclude) != len(asked):
            raise ValueError(f"exclude has {len(exclude)} rows for {len(asked)} queries; give one row per query.")
        if len(bad := np.flatnonzero(~np.isfinite(asked).all(axis=1))):
            raise ValueError(f"query {bad[0]} is not finite: its text may be empty, or the model may have diverged.")
        items = np.empty((len(asked), k), np.int32)
        scores = np.empty((len(asked), k), np.float32)
        most, best = (QUERY_STEPS[-1], self._step(k, BEST_STEPS)) if self.fixed_shapes else (QUERIES, k)
        for start in range(0, len(asked), most):
            block = asked[start : start + most]
            size = 1 << (len(block) - 1).bit_length()  # a power of two, so that few shapes are compiled
            if self.fixed_shapes:
                size = next(step for step in QUERY_STEPS if step >= len(block))
            padded = np.zeros((size, self.width), np.float32)
            padded[: len(block)] = block
            hidden = self._hidden(exclude[start : start + most] if exclude is not None else [], size, start)
            arguments = jax.device_put((padded, hidden), replicated(self.mesh))
            found = jax.device_get(search_items(self._vectors, self._bias, *arguments, mesh=self.mesh, k=best))
            items[start : start + most], scores[start : start + most] = (x[: len(block), :k] for x in found)
        if len(bad := np.flatnonzero((np.isnan(scores) | (scores == np.inf)).any(axis=1))):
            raise ValueError(f"scores of query {bad[0]} overflow float32. Normalize the vectors.")
        return items, scores

    def _step(self, count: int, steps: Sequence[int]) -> int:
        """The first of `steps` and the number of items that is large enough; at most the number of items."""
        return min(next((step for step in steps if step >= count), self.items), self.items)

    def compile(self, most: int) -> None:
        """Searches in every shape of an index with `fixed_shapes`, for k up to `most`."""
        sizes = {self._step(min(k, most), BEST_STEPS) for k in (1, *(step + 1 for step in BEST_STEPS))}
        hidden = {min(count, self.items) for count in (1, *(step + 1 for step in HIDDEN_STEPS))}
        for queries, k, excluded in product(QUERY_STEPS, sorted(sizes), sorted(hidden)):
            self.search(np.zeros((queries, self.width)), k, exclude=np.full((queries, excluded), -1))

    def _hidden(self, rows: Sequence[ArrayLike] | np.ndarray, size: int, first: int) -> np.ndarray:
        """Excluded items as int32 [size, m], padded with -1; m is 0, a power of two or fixed."""
        arrays = [np.asarray(row, np.int64) for row in rows]
        longest = max(map(len, arrays), default=0)
        room = 1 << (longest - 1).bit_length() if longest else 0
        if self.fixed_shapes:
            room = next((step for step in HIDDEN_STEPS if step >= longest), self.items)
        hidden = np.full((size, room), -1, np.int32)
        for number, row in enumerate(arrays):
            if len(row) and not (row.min() >= -1 and row.max() < self.items):
                raise ValueError(
                    f"exclude of query {first + number} holds {row.min() if row.min() < -1 else row.max()}; "
                    f"item numbers are in 0..{self.items - 1}, and -1 is padding."
                )
            hidden[number, : len(row)] = row
        return hidden


def rows_of_device(items: int, devices: int) -> int:
    """Rows of item vectors per device; fewer than a block are padded to whole groups."""
    rows = -(-items // devices)
    return rows if rows >= BLOCK else -(-rows // LARGEST_GROUP) * LARGEST_GROUP


@functools.partial(jax.jit, static_argnames=("mesh", "k"))
def search_items(
    vectors: jax.Array, bias: jax.Array, queries: jax.Array, hidden: jax.Array, *, mesh: DeviceMesh, k: int
) -> tuple[jax.Array, jax.Array]:
    """(item numbers int32 [q, k], scores float32 [q, k]) over the items of all devices."""
    axes = mesh.axes("items")

    def on_device(
        vectors: jax.Array, bias: jax.Array, queries: jax.Array, hidden: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        first = lax.axis_index(axes) * len(vectors)
        # The devices' lists are concatenated in the order of item numbers, so ties are still by item number.
        lists = lax.all_gather(_best_of_device(vectors, bias, queries, hidden, first, k), axes)
        scores, items = (jnp.moveaxis(x, 0, 1).reshape(len(queries), -1) for x in lists)
        best, at = lax.top_k(scores, k)
        return jnp.where(best == -jnp.inf, -1, jnp.take_along_axis(items, at, axis=1)), best

    shared, split = PartitionSpec(), PartitionSpec(axes)
    search = jax.shard_map(
        on_device,
        mesh=mesh.jax_mesh,
        in_specs=(split, split, shared, shared),
        out_specs=(shared, shared),
        check_vma=False,
    )
    return search(vectors, bias, queries, hidden)


def _best_of_device(
    vectors: jax.Array, bias: jax.Array, queries: jax.Array, hidden: jax.Array, first: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    """(scores [q, k], item numbers [q, k]) among this device's items, numbered from `first`."""
    rows, count = len(vectors), len(queries)
    size = min(BLOCK, rows)
    group = _group_size(size, k)
    groups = min(k, size // group)
    column = jnp.arange(count)[:, None]

    def step(best: tuple[jax.Array, jax.Array], number: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        # The last block overlaps the one before it, so that its size is the same; repeated items are masked.
        start = jnp.minimum(number * size, rows - size)
        block = lax.dynamic_slice_in_dim(vectors, start, size).astype(jnp.float32)
        offset = lax.dynamic_slice_in_dim(bias, start, size)
        offset = jnp.where(start + jnp.arange(size) < number * size, -jnp.inf, offset)
        # [items, queries], so that the maxima of groups are vectorized over queries.
        scores = jnp.matmul(block, queries.T, precision=lax.Precision.HIGHEST) + offset[:, None]
        place = hidden - first - start
        place = jnp.where((place >= 0) & (place < size), place, size)  # beyond the end: dropped
        scores = scores.at[place, column].set(-jnp.inf, mode="drop")

        grouped = scores.reshape(size // group, group, count)
        chosen = jnp.sort(lax.top_k(grouped.max(axis=1).T, groups)[1], axis=1)  # [q, groups]
        items = (chosen[:, :, None] * group + jnp.arange(group)).reshape(count, -1)  # in the order of their numbers
        together = jnp.concatenate([best[0], scores[items, column]], axis=1)
        numbers = jnp.concatenate([best[1], first + start + items], axis=1)
        values, at = lax.top_k(together, k)
        return (values, jnp.take_along_axis(numbers, at, axis=1)), None

    nothing = (jnp.full((count, k), -jnp.inf, jnp.float32), jnp.full((count, k), -1, jnp.int32))
    return lax.scan(step, nothing, jnp.arange(-(-rows // size)))[0]


def _group_size(block: int, k: int) -> int:
    """The power of two near √(block / k), which minimizes group maxima (block / size) plus sorted items (k x size)."""
    size = 1
    while size < LARGEST_GROUP and 2 * size * size * k <= block:
        size *= 2
    return size


def products(queries: np.ndarray, items: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """float32 [cases, k]: inner products of queries [cases, size] with candidates, item numbers int [cases, k]."""
    found = np.empty(candidates.shape, np.float32)
    for start in range(0, len(queries), QUERIES):
        block = slice(start, start + QUERIES)
        found[block] = np.einsum("cd,ckd->ck", queries[block], items[candidates[block]])
    return found
