"""The device mesh and the table of sharding rules."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar, Union

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from instructrec_jax.distributed.mesh_config import MeshConfig

AXES = ("data", "fsdp", "context", "tensor")

Leaf = TypeVar("Leaf")
Nested = dict[str, Union[Leaf, "Nested[Leaf]"]]  # nested dicts, as those of a model's parameters

# Logical axis -> mesh axes. A parameter names its logical axes at its definition (`nnx.Param(..., axes=...)`), an
# activation at `constrain`. The setting `mesh.rules` changes the table for one mesh.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "length": ("context",),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "items": ("data", "fsdp", "context", "tensor"),
}
# The rules of the mesh for which a program is being traced, for network code, which has no mesh argument.
_traced_rules: ContextVar[Mapping[str, tuple[str, ...]]] = ContextVar("traced_rules", default=RULES)


@dataclass(frozen=True)
class DeviceMesh:
    """Devices arranged along the axes data, fsdp, context and tensor, with the sharding rules.

    Hashable, so that it can be a static argument of `jax.jit`.

    Attributes:
      jax_mesh: the mesh of jax.
      table: the sharding rules, (logical axis, mesh axes) each.
    """

    jax_mesh: Mesh
    table: tuple[tuple[str, tuple[str, ...]], ...] = tuple(RULES.items())

    @cached_property
    def rules(self) -> dict[str, tuple[str, ...]]:
        return dict(self.table)

    @property
    def devices(self) -> np.ndarray:
        return self.jax_mesh.devices

    @property
    def shape(self) -> Mapping[str, int]:
        """Mesh axis -> number of devices along it."""
        return self.jax_mesh.shape

    def axes(self, name: str | None) -> tuple[str, ...]:
        """The mesh axes of a logical axis; none for None."""
        return () if name is None else self.rules.get(name, ())

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Context in which networks are traced for this mesh: `constrain`, `is_split`, `mesh_axes` use its rules."""
        before = _traced_rules.set(self.rules)
        try:
            with jax.sharding.use_abstract_mesh(self.jax_mesh.abstract_mesh):
                yield
        finally:
            _traced_rules.reset(before)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> DeviceMesh:
    """Arranges the devices as a mesh with the axes data, fsdp, context and tensor.

    With several slices (or nodes) the outer part of data and fsdp runs across slices, so that all other collectives use
    the fast links within a slice.

    Raises:
      ValueError: the product of the sizes differs from the number of devices, or a rule has an unknown axis.
    """
    devices = jax.devices() if devices is None else list(devices)
    table = tuple(_rules(config.rules).items())
    sizes = _infer(config, len(devices))
    slices = (config.dcn_data, config.dcn_fsdp, 1, 1)
    kinds = (AxisType.Auto,) * len(AXES)
    if np.prod(slices) == 1:
        return DeviceMesh(jax.make_mesh(sizes, AXES, axis_types=kinds, devices=devices), table)
    return DeviceMesh(Mesh(_across_slices(sizes, slices, devices), AXES, axis_types=kinds), table)


def fitting_mesh(config: MeshConfig) -> MeshConfig:
    """The same settings if they fit this machine's devices, otherwise parameters split over all devices."""
    try:
        _infer(config, jax.device_count())
    except ValueError:
        return MeshConfig(fsdp=jax.device_count(), rules=config.rules)
    return config


def _infer(config: MeshConfig, devices: int) -> tuple[int, ...]:
    """Sizes of the axes within a slice, in the order of AXES."""
    given = {axis: "auto" if getattr(config, axis) is None else getattr(config, axis) for axis in AXES}
    slices = config.dcn_data * config.dcn_fsdp
    numbers = [size for size in given.values() if isinstance(size, int)]
    if min([*numbers, config.dcn_data, config.dcn_fsdp]) < 1:
        raise ValueError(f"mesh sizes must be at least 1, but got {config}.")
    product = int(np.prod(numbers)) * slices
    named = {f"mesh.{axis}": size for axis, size in given.items() if size != "auto"}
    named |= {f"mesh.{axis}": getattr(config, axis) for axis in ("dcn_data", "dcn_fsdp") if slices > 1}
    shown = " x ".join(f"{name} ({size})" for name, size in named.items())
    unknown = [axis for axis, size in given.items() if size == "auto"]
    if len(unknown) > 1:
        raise ValueError(f"mesh.{unknown[0]} and mesh.{unknown[1]} are both auto: set one of them to a number.")
    if unknown:
        if devices % product:
            raise ValueError(
                f"{shown} = {product} does not divide the {devices} devices. Choose sizes whose product divides "
                f"{devices}."
            )
        given[unknown[0]] = devices // product
    elif product != devices:
        raise ValueError(
            f"{shown} = {product}, but there are {devices} devices. Set mesh.data to auto to use the remaining devices."
        )
    return tuple(int(size) for size in given.values())


def _across_slices(sizes: tuple[int, ...], slices: tuple[int, ...], devices: list[jax.Device]) -> np.ndarray:
    """Devices as an array of shape sizes * slices, the slices outermost in each axis."""
    count = int(np.prod(slices))
    by_slice = {getattr(device, "slice_index", None) for device in devices}
    by_process = {device.process_index for device in devices}
    if count in (len(by_slice), len(by_process)):
        return mesh_utils.create_hybrid_device_mesh(
            sizes, slices, devices, process_is_granule=len(by_slice) != count, allow_split_physical_axes=True
        )
    if max(len(by_slice), len(by_process)) > 1:
        raise ValueError(
            f"mesh.dcn_data x mesh.dcn_fsdp = {count}, but the devices belong to {len(by_slice)} slices and "
            f"{len(by_process)} processes: set the product to one of these numbers."
        )
    # Devices of a single process simulate several slices; adjacent devices form a slice.
    outer_first = np.array(devices).reshape(*slices, *sizes)
    order = [axis for pair in zip(range(4), range(4, 8), strict=True) for axis in pair]
    return outer_first.transpose(order).reshape([a * b for a, b in zip(slices, sizes, strict=True)])


# ---------------------------------------------------------------- the rules


def _rules(changes: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    """RULES with the given changes."""
    for name, axes in changes.items():
        if name not in RULES:
            raise ValueError(f"mesh.rules: unknown logical axis {name!r}; choose from {', '.join(RULES)}.")
        if unknown := [axis for axis in axes if axis not in AXES]:
            raise ValueError(f"mesh.rules.{name}: unknown mesh axis {unknown[0]!r}; choose from {', '.join(AXES)}.")
        if len(set(axes)) < len(axes):
            raise ValueError(f"mesh.rules.{name} names a mesh axis twice: {axes}.")
    return RULES | {name: tuple(axes) for name, axes in changes.items()}


def mesh_axes(name: str | None) -> tuple[str, ...]:
    """The mesh axes of a logical axis for the program that is being traced (see `DeviceMesh.tracing`)."""
    return () if name is None else _traced_rules.get().get(name, ())


def _spec(
    rules: Mapping[str, tuple[str, ...]],
    sizes: Mapping[str, int],
    shape: tuple[int, ...],
    axes: Sequence[str | None],
) -> list[tuple[str, ...] | None]:
    """Per dimension the mesh axes that split it: the unused axes of its rule, if their size divides the dimension."""
    spec: list[tuple[str, ...] | None] = []
    taken: set[str] = set()
    for size, axis in zip(shape, axes, strict=True):
        split = tuple(a for a in rules.get(axis or "", ()) if sizes[a] > 1 and a not in taken)
        fits = bool(split) and size % int(np.prod([sizes[a] for a in split])) == 0
        spec.append(split if fits else None)
        taken |= set(split if fits else ())
    return spec


def data_shards(mesh: DeviceMesh) -> int:
    """Number of shards into which the rows of a batch are split."""
    return int(np.prod([mesh.shape[axis] for axis in mesh.axes("batch")]))


def replicated(mesh: DeviceMesh) -> NamedSharding:
    return NamedSharding(mesh.jax_mesh, PartitionSpec())


def batch_sharding(mesh: DeviceMesh, leading: int) -> NamedSharding:
    """Splits the leading dimension over the data-parallel devices; whole on each device if they do not divide it."""
    return activation_sharding(mesh, (leading,), ("batch",))


def activation_sharding(mesh: DeviceMesh, shape: tuple[int, ...], axes: Sequence[str | None]) -> NamedSharding:
    """Sharding of an activation by its logical axes; a dimension that its mesh axes do not divide stays whole."""
    return NamedSharding(mesh.jax_mesh, PartitionSpec(*_spec(mesh.rules, mesh.shape, shape, axes)))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains x to its logical axes' sharding on the mesh being traced for; returns x unchanged without a mesh.

    With activations constrained, the compiler moves parameters to activations and never the reverse.
    """
    mesh = jax.sharding.get_abstract_mesh()
    automatic = [a for a, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto]
    if mesh.empty or len(automatic) < len(mesh.axis_names):  # inside a shard_map arrays are local to a device
        return x
    spec = _spec(_traced_rules.get(), mesh.shape, x.shape, axes)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec)) if any(spec) else x


def is_split(name: str) -> bool:
    """Whether the mesh being traced for splits a logical axis."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and any(mesh.shape[axis] > 1 for axis in mesh_axes(name))


def parameter_sharding(mesh: DeviceMesh, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> NamedSharding:
    """Sharding of a parameter by its logical axes.

    If mesh axes do not divide their dimension (such as a vocabulary of 50,257), they split another dimension of the
    parameter that they do divide. Otherwise a vector stays whole on each device; dimensions of size 1 always do.

    Raises:
      ValueError: mesh axes divide no dimension of a matrix; the error names the dimensions.
    """
    spec = _spec(mesh.rules, mesh.shape, shape, axes)
    for place, axis in enumerate(axes):
        taken = {a for split in spec for a in split or ()}
        left = tuple(a for a in mesh.axes(axis) if mesh.shape[a] > 1 and a not in taken)
        if spec[place] is not None or not left or shape[place] == 1:
            continue
        for other in range(len(shape)):
            both = (*(spec[other] or ()), *left)
            if axes[other] not in (None, "layers") and shape[other] % int(np.prod([mesh.shape[a] for a in both])) == 0:
                spec[other] = both
                break
        else:
            named = [f"{name} {size:,}" for name, size in zip(axes, shape, strict=True) if name not in (None, "layers")]
            if len(named) > 1:
                sizes = " x ".join(f"mesh.{a} {mesh.shape[a]}" for a in left)
                raise ValueError(
                    f"a parameter with the dimensions {', '.join(named)} cannot be split over {sizes}: choose a mesh "
                    "size that divides one of them."
                )
    return NamedSharding(mesh.jax_mesh, PartitionSpec(*spec))


def parameter_shardings(mesh: DeviceMesh, model: nnx.Module) -> Nested[NamedSharding]:
    """Shardings of a (possibly abstract) model's parameters, as nested as `nnx.to_pure_dict(nnx.state(model))`."""
    tree: Nested[NamedSharding] = {}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        shape, axes = variable.get_value().shape, variable.get_metadata()["axes"]
        if len(shape) == len(axes) + 1:
            axes = ("layers", *axes)
        node, names = tree, [str(part) for part in path]
        for name in names[:-1]:
            below = node.setdefault(name, {})
            assert isinstance(below, dict)
            node = below
        node[names[-1]] = parameter_sharding(mesh, shape, axes)
    return tree
