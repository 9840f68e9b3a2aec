"""Devices as a mesh, and where a parameter lies on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from instructrec_jax.distributed.mesh import (
    _across_slices,
    batch_sharding,
    constrain,
    data_shards,
    make_mesh,
    mesh_axes,
    parameter_sharding,
    parameter_shardings,
    replicated,
)
from instructrec_jax.distributed.mesh_config import MeshConfig


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1, 1, 1)),
        (MeshConfig(fsdp=4), (2, 4, 1, 1)),
        (MeshConfig(tensor=8), (1, 1, 1, 8)),
        (MeshConfig(data=2, fsdp=2, tensor=2), (2, 2, 1, 2)),
        (MeshConfig(data=2, fsdp="auto", context=2), (2, 2, 2, 1)),
        (MeshConfig(data=None, fsdp=2), (4, 2, 1, 1)),
        (MeshConfig(dcn_data=2, fsdp=2), (4, 2, 1, 1)),
        (MeshConfig(data=1, fsdp="auto", dcn_fsdp=4), (1, 8, 1, 1)),
    ],
)
def test_sizes_are_inferred(config: MeshConfig, shape: tuple[int, ...]) -> None:
    mesh = make_mesh(config)
    assert mesh.jax_mesh.axis_names == ("data", "fsdp", "context", "tensor")
    assert mesh.devices.shape == shape
    assert set(mesh.devices.flat) == set(jax.devices())
    assert data_shards(mesh) == shape[0] * shape[1]


def test_some_of_the_devices() -> None:
    mesh = make_mesh(MeshConfig(fsdp=2), jax.devices()[:4])
    assert mesh.devices.shape == (2, 2, 1, 1) and set(mesh.devices.flat) == set(jax.devices()[:4])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (MeshConfig(fsdp=3), [r"mesh\.fsdp \(3\)", r"mesh\.tensor \(1\)", "8 devices"]),
        (MeshConfig(tensor=16), [r"mesh\.tensor \(16\)", "8 devices"]),
        (MeshConfig(data=3, fsdp=2), [r"mesh\.data \(3\)", r"mesh\.fsdp \(2\)", "= 6", "8 devices", "auto"]),
        (MeshConfig(data=0), ["data=0"]),
        (MeshConfig(fsdp=-1), ["fsdp=-1"]),
        (MeshConfig(tensor=0), ["tensor=0"]),
        (MeshConfig(fsdp="auto"), ["mesh.data.*mesh.fsdp.*auto"]),
        (MeshConfig(dcn_data=3), [r"mesh\.dcn_data \(3\)", "8 devices"]),
        (MeshConfig(rules={"vocabulary": ["tensor"]}), ["rules.*vocabulary"]),
        (MeshConfig(rules={"vocab": ["tenser"]}), ["rules.vocab.*tenser"]),
        (MeshConfig(rules={"vocab": ["fsdp", "fsdp"]}), ["rules.vocab.*fsdp"]),
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
        # 2 does not divide 101 or 33: their axes go to the other dimension; a vector stays whole.
        ((101, 32), ("vocab", "embed"), P(None, ("fsdp", "tensor"))),
        ((33, 64), ("embed", "mlp"), P(None, ("tensor", "fsdp"))),
        ((33,), ("mlp",), P(None)),
        ((3, 101, 32), ("layers", "vocab", "embed"), P(None, None, ("fsdp", "tensor"))),
    ],
)
def test_a_parameter_lies_by_its_axes(shape: tuple[int, ...], axes: tuple[str | None, ...], spec: P) -> None:
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    sharding = parameter_sharding(mesh, shape, axes)
    expected = jax.NamedSharding(mesh.jax_mesh, spec)
    assert sharding.is_equivalent_to(expected, len(shape))
    array = jax.device_put(np.arange(np.prod(shape, dtype=int)).reshape(shape), sharding)
    split = [1 if part is None else 2 ** len([part] if isinstance(part, str) else part) for part in spec] + [1] * (
        len(shape) - len(spec)
    )
    assert array.addressable_shards[0].data.shape == tuple(n // s for n, s in zip(shape, split, strict=True))


def test_a_matrix_that_nothing_divides_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"embed 33, mlp 35.*mesh.fsdp 2"):
        parameter_sharding(make_mesh(MeshConfig(fsdp=2, tensor=2)), (33, 35), ("embed", "mlp"))


def test_rules_belong_to_their_mesh() -> None:
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2, rules={"vocab": [], "embed": ["tensor"], "batch": ["data"]}))
    other = make_mesh(MeshConfig(fsdp=4, tensor=2))  # a second mesh changes nothing of the first
    expected = jax.NamedSharding(mesh.jax_mesh, P(None, "tensor"))
    assert parameter_sharding(mesh, (32, 64), ("vocab", "embed")).is_equivalent_to(expected, 2)
    assert data_shards(mesh) == 1
    assert data_shards(other) == 4
    with mesh.tracing():
        assert mesh_axes("embed") == ("tensor",)
        with other.tracing():
            assert mesh_axes("embed") == ("fsdp",)
        assert mesh_axes("embed") == ("tensor",)
    assert mesh_axes("embed") == ("fsdp",)


def test_slices_are_the_outer_part_of_their_axis() -> None:
    """Neighboring devices, which stand for one slice, share everything but the outermost part of fsdp."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, dcn_fsdp=2))
    numbers = np.vectorize(lambda device: device.id)(mesh.devices)[:, :, 0, 0]
    np.testing.assert_array_equal(numbers, [[0, 1, 4, 5], [2, 3, 6, 7]])


class _Device:
    """What the arrangement asks of a device of several slices."""

    platform, device_kind, process_index = "gpu", "fake", 0

    def __init__(self, number: int) -> None:
        self.id, self.slice_index = number, number // 4


def test_real_slices_are_told_apart_by_their_number() -> None:
    devices = [_Device(n) for n in (0, 4, 1, 5, 2, 6, 3, 7)]
    found = _across_slices((2, 2, 1, 1), (2, 1, 1, 1), devices)
    np.testing.assert_array_equal(
        [[d.slice_index for d in row] for row in found[:, :, 0, 0]], [[0] * 2] * 2 + [[1] * 2] * 2
    )
    with pytest.raises(ValueError, match="= 4.* 2 slices"):
        _across_slices((2, 1, 1, 1), (4, 1, 1, 1), devices)


def test_a_constrained_activation_lies_by_its_axes() -> None:
    mesh = make_mesh(MeshConfig(data=2, tensor=2, context=2))

    def f(x: jax.Array) -> jax.Array:
        with mesh.tracing():
            return constrain(x * 2, "batch", "length", "mlp")

    found = jax.jit(f)(jax.device_put(jnp.zeros((4, 6, 8)), replicated(mesh)))
    assert found.sharding.is_equivalent_to(jax.NamedSharding(mesh.jax_mesh, P("data", "context", "tensor")), 3)
    odd = jax.jit(f)(jax.device_put(jnp.zeros((4, 5, 8)), replicated(mesh)))
    assert odd.sharding.is_equivalent_to(jax.NamedSharding(mesh.jax_mesh, P("data", None, "tensor")), 3)
    x = jnp.zeros((4, 6, 8))
    assert constrain(x, "batch", "length", "mlp") is x  # no mesh


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
    assert shardings["block"]["kernel"].is_equivalent_to(jax.NamedSharding(mesh.jax_mesh, P(None, "fsdp", "tensor")), 3)
    assert shardings["block"]["bias"].is_equivalent_to(jax.NamedSharding(mesh.jax_mesh, P(None, "tensor")), 2)
    assert shardings["scale"].is_equivalent_to(jax.NamedSharding(mesh.jax_mesh, P("fsdp")), 1)


def test_rows_are_split_over_data_and_fsdp_where_they_divide() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert batch_sharding(mesh, 8).is_equivalent_to(jax.NamedSharding(mesh.jax_mesh, P(("data", "fsdp"))), 2)
    assert batch_sharding(mesh, 6).is_equivalent_to(replicated(mesh), 2)
    rows = jax.device_put(np.arange(8), batch_sharding(mesh, 8))
    assert {shard.data.shape for shard in rows.addressable_shards} == {(2,)}
