"""Devices as a mesh, and where a parameter lies on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from instructrec_jax.distributed.mesh import (
    MeshConfig,
    batch_sharding,
    data_shards,
    make_mesh,
    parameter_sharding,
    parameter_shardings,
    replicated,
)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(fsdp=4), (2, 4, 1)),
        (MeshConfig(tensor=8), (1, 1, 8)),
        (MeshConfig(data=2, fsdp=2, tensor=2), (2, 2, 2)),
    ],
)
def test_sizes_are_inferred(config: MeshConfig, shape: tuple[int, int, int]) -> None:
    mesh = make_mesh(config)
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh.devices.shape == shape
    assert set(mesh.devices.flat) == set(jax.devices())
    assert data_shards(mesh) == shape[0] * shape[1]


def test_some_of_the_devices() -> None:
    mesh = make_mesh(MeshConfig(fsdp=2), jax.devices()[:4])
    assert mesh.devices.shape == (2, 2, 1) and set(mesh.devices.flat) == set(jax.devices()[:4])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (MeshConfig(fsdp=3), [r"mesh\.fsdp \(3\)", r"mesh\.tensor \(1\)", "8 devices"]),
        (MeshConfig(tensor=16), [r"mesh\.tensor \(16\)", "8 devices"]),
        (MeshConfig(data=3, fsdp=2), [r"mesh\.data \(3\)", r"mesh\.fsdp \(2\)", "= 6", "8 devices", "null"]),
        (MeshConfig(data=0), ["data=0"]),
        (MeshConfig(fsdp=-1), ["fsdp=-1"]),
        (MeshConfig(tensor=0), ["tensor=0"]),
    ],
)
def test_an_error_names_the_dimension(config: MeshConfig, words: list[str]) -> None:
    for word in words:
        with pytest.raises(ValueError, match=word):
            make_mesh(config)


@pytest.mark.parametrize(
    ("shape", "axes", "spec"),
    [
        ((32, 64), ("embed", "mlp"), P("fsdp", "tensor")),
        ((64, 32), ("mlp", "embed"), P("tensor", "fsdp")),
        ((100, 32), ("vocab", "embed"), P("tensor", "fsdp")),
        ((32,), ("heads",), P("tensor")),
        ((3, 32, 64), ("layers", "embed", "heads"), P(None, "fsdp", "tensor")),
        ((32, 5), ("embed", None), P("fsdp", None)),
        ((), (), P()),
        # 2 does not divide 101 or 33: these dimensions stay whole, the others do not.
        ((101, 32), ("vocab", "embed"), P(None, "fsdp")),
        ((33, 64), ("embed", "mlp"), P(None, "tensor")),
    ],
)
def test_a_parameter_lies_by_its_axes(shape: tuple[int, ...], axes: tuple[str | None, ...], spec: P) -> None:
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    sharding = parameter_sharding(mesh, shape, axes)
    expected = jax.NamedSharding(mesh, spec)
    assert sharding.is_equivalent_to(expected, len(shape))
    array = jax.device_put(np.arange(np.prod(shape, dtype=int)).reshape(shape), sharding)
    split = [2 if part is not None else 1 for part in spec] + [1] * (len(shape) - len(spec))
    assert array.addressable_shards[0].data.shape == tuple(n // s for n, s in zip(shape, split, strict=True))


def test_axes_must_match_the_shape() -> None:
    with pytest.raises(ValueError):
        parameter_sharding(make_mesh(MeshConfig()), (4, 4), ("embed",))


def test_stacked_layers_are_never_split_over_layers() -> None:
    """A stack has one dimension more than its axes name."""

    class Block(nnx.Module):
        def __init__(self) -> None:
            self.kernel = nnx.Param(jnp.zeros((4, 8, 16)), axes=("embed", "mlp"))
            self.bias = nnx.Param(jnp.zeros((4, 16)), axes=("mlp",))

    class Stack(nnx.Module):
        def __init__(self) -> None:
            self.block = Block()
            self.scale = nnx.Param(jnp.zeros((8,)), axes=("embed",))

    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    model = Stack()
    shardings = parameter_shardings(mesh, model)
    values = nnx.to_pure_dict(nnx.state(model))
    assert jax.tree.structure(shardings) == jax.tree.structure(values)
    assert shardings["block"]["kernel"].is_equivalent_to(jax.NamedSharding(mesh, P(None, "fsdp", "tensor")), 3)
    assert shardings["block"]["bias"].is_equivalent_to(jax.NamedSharding(mesh, P(None, "tensor")), 2)
    assert shardings["scale"].is_equivalent_to(jax.NamedSharding(mesh, P("fsdp")), 1)


def test_rows_are_split_over_data_and_fsdp_where_they_divide() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert batch_sharding(mesh, 8).is_equivalent_to(jax.NamedSharding(mesh, P(("data", "fsdp"))), 2)
    assert batch_sharding(mesh, 6).is_equivalent_to(replicated(mesh), 2)
    rows = jax.device_put(np.arange(8), batch_sharding(mesh, 8))
    assert {shard.data.shape for shard in rows.addressable_shards} == {(2,)}
