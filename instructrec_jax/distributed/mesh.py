"""The device mesh, and the one table that says how arrays lie on it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "context", "tensor")

# Logical axis -> mesh axes. A parameter names its logical axes where it is made (`nnx.Param(..., axes=...)`), an
# activation where it is constrained (`constrain`). `mesh.rules` of the settings change the table for one mesh.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "length": ("context",),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "items": ("data", "fsdp", "context", "tensor"),
}
# The rules of the mesh whose program is being traced, for code inside networks that has no mesh at hand.
_traced_rules: ContextVar[Mapping[str, tuple[str, ...]]] = ContextVar("traced_rules", default=RULES)

# Named, because --help shows a setting's comment only where its type is a plain name.
Size = int | Literal["auto"] | None  # null means auto


@dataclass
class MeshConfig:
    """How the devices are arranged."""

    data: Size = "auto"  # devices that hold whole copies of the parameters; auto (of one axis): all that are left
    fsdp: Size = 1  # devices over which parameters and optimizer are split, each working on its own rows
    tensor: Size = 1  # devices over which single matrix products are split
    context: Size = 1  # devices over which the length of rows is split
    dcn_data: int = 1  # slices, or nodes, over which data is split besides: so many times the devices of one
    dcn_fsdp: int = 1  # slices, or nodes, over which fsdp is split besides
    rules: dict[str, list[str]] = field(default_factory=dict)  # logical axis: mesh axes, changes of the sharding rules


@dataclass(frozen=True)
class DeviceMesh:
    """Devices arranged along the axes data, fsdp, context and tensor, with the rules of how arrays lie on them.

    Hashable, so that it can be a static argument of `jax.jit`.

    Attributes:
      jax_mesh: the mesh as jax knows it.
      table: the rules, (logical axis, mesh axes) of each.
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
        """Inside, networks are traced for this mesh: `constrain`, `is_split` and `mesh_axes` follow its rules."""
        before = _traced_rules.set(self.rules)
        try:
            with jax.sharding.use_abstract_mesh(self.jax_mesh.abstract_mesh):
                yield
        finally:
            _traced_rules.reset(before)


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> DeviceMesh:
    """Arranges the devices as a mesh with the axes data, fsdp, context and tensor.

    With several slices (or nodes) the outer part of data and fsdp lies across them, so that all other collectives stay
    on the fast links inside one.

    Raises ValueError when the sizes do not multiply to the number of devices, and for rules of unknown axes.
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
    """The same settings where they fit this machine's devices, else parameters split over all of the devices."""
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
        raise ValueError(f"mesh.{unknown[0]} and mesh.{unknown[1]} are both auto: only one size can be inferred.")
    if unknown:
        if devices % product:
            raise ValueError(
                f"{shown} = {product} does not divide the {devices} devices. Choose sizes whose product divides "
                f"{devices}."
            )
        given[unknown[0]] = devices // product
    elif product != devices:
        raise ValueError(
            f"{shown} = {product}, but there are {devices} devices. Set mesh.data to auto to use all that are left."
        )
    return tuple(int(size) for size in given.values())


def _across_slices(sizes: tuple[int, ...], slices: tuple[int, ...], devices: list[Any]) -> np.ndarray:
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
            f"mesh.dcn_data x mesh.dcn_fsdp = {count}, but the devices lie in {len(by_slice)} slices and "
            f"{len(by_process)} processes: set their product to one of these."
        )
    # Devices of one process pretend to be several slices: neighbours stand for one.
    outer_first = np.array(devices).reshape(*slices, *sizes)
    order = [axis for pair in zip(range(4), range(4, 8), strict=True) for axis in pair]
    return outer_first.transpose(order).reshape([a * b for a, b in zip(slices, sizes, strict=True)])


# ---------------------------------------------------------------- the rules


def _rules(changes: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    """RULES with some of them changed."""
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
    """Per dimension the mesh axes that split it: those of its rule that the dimension divides and that are free."""
    spec: list[tuple[str, ...] | None] = []
    taken: set[str] = set()
    for size, axis in zip(shape, axes, strict=True):
        split = tuple(a for a in rules.get(axis or "", ()) if sizes[a] > 1 and a not in taken)
        fits = bool(split) and size % int(np.prod([sizes[a] for a in split])) == 0
        spec.append(split if fits else None)
        taken |= set(split if fits else ())
    return spec


def data_shards(mesh: DeviceMesh) -> int:
    """Number of parts into which the rows of a batch are split."""
    return int(np.prod([mesh.shape[axis] for axis in mesh.axes("batch")]))


def replicated(mesh: DeviceMesh) -> NamedSharding:
    return NamedSharding(mesh.jax_mesh, PartitionSpec())


def batch_sharding(mesh: DeviceMesh, leading: int) -> NamedSharding:
    """Splits the leading dimension over the data-parallel devices; whole on each where it does not divide."""
    return activation_sharding(mesh, (leading,), ("batch",))


def activation_sharding(mesh: DeviceMesh, shape: tuple[int, ...], axes: Sequence[str | None]) -> NamedSharding:
    """Where an activation lies, by its logical axes; a dimension that its mesh axes do not divide stays whole."""
    return NamedSharding(mesh.jax_mesh, PartitionSpec(*_spec(mesh.rules, mesh.shape, shape, axes)))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """x, laid out by its logical axes on the mesh that the step runs on; as it is where there is none.

    Tells the compiler where an activation lies, so that it moves parameters to it and never the other way round.
    """
    mesh = jax.sharding.get_abstract_mesh()
    automatic = [a for a, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto]
    if mesh.empty or len(automatic) < len(mesh.axis_names):  # inside a shard_map arrays are the devices' own
        return x
    spec = _spec(_traced_rules.get(), mesh.shape, x.shape, axes)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec)) if any(spec) else x


def is_split(name: str) -> bool:
    """Whether the mesh that the step runs on splits a logical axis."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and any(mesh.shape[axis] > 1 for axis in mesh_axes(name))


def parameter_sharding(mesh: DeviceMesh, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> NamedSharding:
    """Where a parameter lies, by its logical axes.

    A dimension that its mesh axes do not divide (a vocabulary of 50,257, say) passes them on to another dimension of
    the parameter that they do divide. A vector may be whole on each device instead, and one of size 1 always is.

    Raises ValueError, naming the dimensions, for a matrix that would be whole on devices which are to split it.
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
                    f"a parameter with the dimensions {', '.join(named)} cannot be split over {sizes}, which divides "
                    "none of them: choose a size that does."
                )
    return NamedSharding(mesh.jax_mesh, PartitionSpec(*spec))


def parameter_shardings(mesh: DeviceMesh, model: nnx.Module) -> dict[str, Any]:
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
