"""The k best items of a whole catalogue by inner product, exactly, with the items spread over the devices.

Each device walks over its items block by block and keeps the k best so far; [queries, items] never exists. Within a
block, sorting everything would cost more than the matrix product. So neighbouring items form small groups: the k best
items lie in the k groups of largest maximum, since each of these groups holds an item at least as good as any item of
the other groups. Only the items of those k groups are compared one by one. At last the k best of each device, and
nothing else, are gathered and merged.

Of equal scores, the lower item number comes first at each stage, so the answer is that of a stable sort.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from numpy.typing import ArrayLike

from instructrec_jax.distributed.mesh import (
    DeviceMesh,
    MeshConfig,
    make_mesh,
    parameter_sharding,
    replicated,
)

BLOCK = 16_384  # items scored at a time on a device
QUERIES = 256  # queries scored at a time: scores take 4 x BLOCK x QUERIES bytes, 17 MB
LARGEST_GROUP = 64  # group sizes are powers of two up to this; it divides every block


class ItemIndex:
    """Item vectors on the mesh, to be searched.

    Scores are computed in float32 at full precision, also where the vectors are bfloat16. Two blockings of one matrix
    product may round differently in the last bit; ties between exact scores are decided as `search` says.
    """

    def __init__(self, vectors: ArrayLike, *, bias: ArrayLike | None = None, mesh: DeviceMesh | None = None) -> None:
        """Places the vectors on the devices.

        Args:
          vectors: [items, d], kept as bfloat16 if they are, as float32 otherwise. They may be memory-mapped, and are
            not to be changed afterwards: a CPU may use them where they lie.
          bias: [items], added to the scores; -inf takes an item out.
          mesh: defaults to all devices.

        Raises ValueError, naming the item, where a vector is not finite or a bias NaN or +inf.
        """
        array = np.asarray(vectors)
        if array.ndim != 2 or not array.size:
            raise ValueError(f"item vectors should be [items, d], neither of them 0, but have shape {array.shape}.")
        offsets = np.zeros(len(array), np.float32) if bias is None else np.asarray(bias, np.float32)
        if offsets.shape != (len(array),):
            raise ValueError(f"bias should be [{len(array)}], one number an item, but has shape {offsets.shape}.")
        self.items, self.width = array.shape
        self.dtype = array.dtype if array.dtype == jnp.bfloat16 else np.dtype(np.float32)
        self.mesh = mesh or make_mesh(MeshConfig())
        if len(bad := np.flatnonzero(np.isnan(offsets) | (offsets == np.inf))):
            raise ValueError(f"the bias of item {bad[0]} is {offsets[bad[0]]}; only numbers and -inf make sense.")
        for start in range(0, self.items, BLOCK):
            if len(bad := np.flatnonzero(~np.isfinite(array[start : start + BLOCK]).all(axis=1))):
                raise ValueError(
                    f"the vector of item {start + bad[0]} is not finite. Look for an empty text or a diverged model."
                )
        devices = int(np.prod([self.mesh.shape[axis] for axis in self.mesh.axes("items")]))
        rows = rows_of_device(self.items, devices)
        self._vectors = self._place(array, self.dtype, rows * devices, 0)
        # Adding +0 turns a -0 into 0 here, so that a score is never -0, which top_k would sort below 0.
        self._bias = self._place(offsets + 0.0, np.dtype(np.float32), rows * devices, -np.inf)

    def _place(self, array: np.ndarray, dtype: np.dtype, rows: int, fill: float) -> jax.Array:
        """Spreads [items, ...] over the devices, filled up at its end to `rows`; a process reads its parts alone."""
        shape = (rows, *array.shape[1:])

        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(rows)
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
        """The k best items of each query, best first; of equal scores, the lower item number first.

        Args:
          queries: float [q, d].
          k: how many, at most the number of items.
          exclude: item numbers that a query must not get: int [q, m] filled up with -1, or q arrays of any lengths.

        Returns:
          Item numbers int32 [q, k] and their scores float32 [q, k]. Where fewer than k items are left, -1 and -inf
          fill the rest.

        Raises ValueError for k out of range, shapes that do not match, unknown item numbers, queries that are not
        finite, and scores beyond float32.
        """
        asked = np.asarray(queries, np.float32)
        if asked.ndim != 2 or asked.shape[1] != self.width:
            raise ValueError(f"queries should be [q, {self.width}] as the items are, but have shape {asked.shape}.")
        if not 1 <= k <= self.items:
            raise ValueError(f"k is {k}, but there are {self.items} items: choose k from 1 to {self.items}.")
        if exclude is not None and len(exclude) != len(asked):
            raise ValueError(f"exclude has {len(exclude)} rows for {len(asked)} queries; give one row a query.")
        if len(bad := np.flatnonzero(~np.isfinite(asked).all(axis=1))):
            raise ValueError(f"query {bad[0]} is not finite. Look for an empty text or a diverged model.")
        items = np.empty((len(asked), k), np.int32)
        scores = np.empty((len(asked), k), np.float32)
        for start in range(0, len(asked), QUERIES):
            block = asked[start : start + QUERIES]
            size = 1 << (len(block) - 1).bit_length()  # a power of two: few shapes, few compilations
            padded = np.zeros((size, self.width), np.float32)
            padded[: len(block)] = block
            hidden = self._hidden(exclude[start : start + QUERIES] if exclude is not None else [], size, start)
            arguments = jax.device_put((padded, hidden), replicated(self.mesh))
            found = jax.device_get(search_items(self._vectors, self._bias, *arguments, mesh=self.mesh, k=k))
            items[start : start + QUERIES], scores[start : start + QUERIES] = (x[: len(block)] for x in found)
        if len(bad := np.flatnonzero((np.isnan(scores) | (scores == np.inf)).any(axis=1))):
            raise ValueError(f"scores of query {bad[0]} are beyond float32. Normalise the vectors.")
        return items, scores

    def _hidden(self, rows: Sequence[ArrayLike] | np.ndarray, size: int, first: int) -> np.ndarray:
        """Excluded items as int32 [size, m], filled up with -1; m is 0 or a power of two."""
        arrays = [np.asarray(row, np.int64) for row in rows]
        longest = max(map(len, arrays), default=0)
        hidden = np.full((size, 1 << (longest - 1).bit_length() if longest else 0), -1, np.int32)
        for number, row in enumerate(arrays):
            if len(row) and not (row.min() >= -1 and row.max() < self.items):
                raise ValueError(
                    f"exclude of query {first + number} names item {row.min() if row.min() < -1 else row.max()}; "
                    f"item numbers lie in 0..{self.items - 1}, and -1 stands for none."
                )
            hidden[number, : len(row)] = row
        return hidden


def rows_of_device(items: int, devices: int) -> int:
    """How many places for items a device has: less than a block of them is filled up to whole groups."""
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
        # The devices' lists follow one another in the order of the item numbers, so ties stay right.
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
    """(scores [q, k], item numbers [q, k]) among this device's items, which are numbered from `first` on."""
    rows, count = len(vectors), len(queries)
    size = min(BLOCK, rows)
    group = _group_size(size, k)
    groups = min(k, size // group)
    column = jnp.arange(count)[:, None]

    def step(best: tuple[jax.Array, jax.Array], number: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        # The last block reaches back so as to be whole; what it repeats is masked.
        start = jnp.minimum(number * size, rows - size)
        block = lax.dynamic_slice_in_dim(vectors, start, size).astype(jnp.float32)
        offset = lax.dynamic_slice_in_dim(bias, start, size)
        offset = jnp.where(start + jnp.arange(size) < number * size, -jnp.inf, offset)
        # [items, queries]: maxima of groups are then taken over whole vectors of queries.
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
    """The power of two near √(block / k), where maxima (block / size) and items of k groups (k x size) are fewest."""
    size = 1
    while size < LARGEST_GROUP and 2 * size * size * k <= block:
        size *= 2
    return size
