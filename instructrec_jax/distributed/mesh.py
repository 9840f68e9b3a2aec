"""The device mesh, and the one table that says how arrays lie on it."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes. A parameter names its logical axes where it is made (`nnx.Param(..., axes=...)`).
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "items": ("data", "fsdp", "tensor"),
}


@dataclass
class MeshConfig:
    """How the devices are arranged."""

    data: int | None = None  # devices that hold whole copies of the parameters; null takes all that are left
    fsdp: int = 1  # devices over which parameters and optimizer are split, each working on its own rows
    tensor: int = 1  # devices over which single matrix products are split


def make_mesh(config: MeshConfig, devices: list[Any] | None = None) -> Mesh:
    """Arranges the devices as a mesh with the axes data, fsdp and tensor.

    Raises ValueError when the sizes do not multiply to the number of devices.
    """
    devices = devices or jax.devices()
    inner = config.fsdp * config.tensor
    if min(config.fsdp, config.tensor) < 1 or (config.data is not None and config.data < 1):
        raise ValueError(f"mesh sizes must be at least 1, but got {config}.")
    if config.data is None and len(devices) % inner:
        raise ValueError(
            f"mesh.fsdp ({config.fsdp}) x mesh.tensor ({config.tensor}) = {inner} does not divide "
            f"the {len(devices)} devices. Choose sizes whose product divides {len(devices)}."
        )
    data = len(devices) // inner if config.data is None else config.data
    if data * inner != len(devices):
        raise ValueError(
            f"mesh.data ({data}) x mesh.fsdp ({config.fsdp}) x mesh.tensor ({config.tensor}) = {data * inner}, "
            f"but there are {len(devices)} devices. Set mesh.data to null to use all that are left."
        )
    shape = (data, config.fsdp, config.tensor)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def data_shards(mesh: Mesh) -> int:
    """Number of parts into which the rows of a batch are split."""
    return int(np.prod([mesh.shape[axis] for axis in RULES["batch"]]))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, leading: int) -> NamedSharding:
    """Splits the leading dimension over the data-parallel devices; whole on each where it does not divide."""
    divides = leading % data_shards(mesh) == 0
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]) if divides else PartitionSpec())


def parameter_sharding(mesh: Mesh, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> NamedSharding:
    """Where a parameter lies, by its logical axes. A dimension that its mesh axes do not divide stays whole."""
    spec = []
    for size, axis in zip(shape, axes, strict=True):
        mesh_axes = RULES.get(axis or "", ())
        split = int(np.prod([mesh.shape[a] for a in mesh_axes]))
        spec.append(mesh_axes if split > 1 and size % split == 0 else None)
    return NamedSharding(mesh, PartitionSpec(*spec))


def parameter_shardings(mesh: Mesh, model: nnx.Module) -> dict[str, Any]:
    """Shardings of a (possibly abstract) model's parameters, nested like `nnx.to_pure_dict(nnx.state(model))`."""
    tree: dict[str, Any] = {}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        shape, axes = variable.get_value().shape, variable.get_metadata()["axes"]
        if len(shape) == len(axes) + 1:
            axes = ("layers", *axes)
        node, names = tree, [str(part) for part in path]
        for name in names[:-1]:
            node = node.setdefault(name, {})
        node[names[-1]] = parameter_sharding(mesh, shape, axes)
    return tree
