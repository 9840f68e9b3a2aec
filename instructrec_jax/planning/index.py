"""The index of a large catalogue on the chips of a mesh, compiled from shapes."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from instructrec_jax.distributed.chips import chip_of
from instructrec_jax.distributed.mesh import DeviceMesh, parameter_sharding, replicated
from instructrec_jax.planning import hlo
from instructrec_jax.ranking.index import QUERIES, rows_of_device, search_items


@dataclass(frozen=True)
class IndexPlan:
    """Costs of the index per chip, for a search of `ranking.index.QUERIES` queries over all items.

    Attributes:
      items: number of items of the catalogue.
      vectors: bytes of item vectors.
      peak: bytes during the search.
      seconds: time to read the vectors once at the full HBM bandwidth; None for an unknown chip.
      collectives: collectives of the search.
    """

    items: int
    vectors: int
    peak: int
    seconds: float | None
    collectives: hlo.Traffic


def plan_index(items: int, width: int, mesh: DeviceMesh, k: int = 100) -> IndexPlan:
    """Compiles the search for the k best of `items` float32 vectors of size `width`.

    Raises ValueError for fewer than k items per chip.
    """
    chips = mesh.devices.size
    if items < chips * k:
        raise ValueError(f"--items is {items}, but {chips} chips need at least {chips * k}.")
    rows = rows_of_device(items, chips) * chips

    def on_mesh(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        sharding = parameter_sharding(mesh, shape, ("items", *[None] * (len(shape) - 1)))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    queries = jax.ShapeDtypeStruct((QUERIES, width), jnp.float32, sharding=replicated(mesh))
    nothing_hidden = jax.ShapeDtypeStruct((QUERIES, 0), jnp.int32, sharding=replicated(mesh))
    arguments = (on_mesh((rows, width)), on_mesh((rows,)), queries, nothing_hidden)
    compiled = search_items.lower(*arguments, mesh=mesh, k=k).compile()
    memory, chip = compiled.memory_analysis(), chip_of(mesh.devices.flat[0])
    assert memory is not None  # every compiler of XLA knows it
    vectors = rows // chips * width * 4
    return IndexPlan(
        items,
        vectors,
        memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes,
        vectors / chip.hbm_speed if chip else None,
        hlo.collectives(hlo.parse(compiled.as_text() or "")),
    )


def show_index(plan: IndexPlan) -> str:
    seconds = f", {plan.seconds * 1e3:.1f} ms to read them" if plan.seconds else ""
    return (
        f"Index of {plan.items:,} items, per chip: {plan.vectors / 1e9:.2f} GB of vectors{seconds}; "
        f"{plan.peak / 1e9:.2f} GB while searching {QUERIES} queries"
    )
