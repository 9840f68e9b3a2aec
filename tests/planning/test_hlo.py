"""Collectives and traffic of compiled programs: a loop counts as its steps written out one by one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from instructrec_jax.distributed.mesh import MeshConfig, make_mesh
from instructrec_jax.planning import hlo

LAYERS, WIDTH, ROWS = 5, 64, 16


def program(scanned: bool) -> hlo.Program:
    """The gradient of LAYERS products whose kernels are split over eight devices."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))

    def layer(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, None]:
        y = jnp.tanh(x @ kernel)
        return jax.lax.with_sharding_constraint(y, NamedSharding(mesh, PartitionSpec("fsdp"))), None

    def loss(kernels: jax.Array, x: jax.Array) -> jax.Array:
        if scanned:
            x, _ = jax.lax.scan(layer, x, kernels)
        else:
            for kernel in kernels:
                x, _ = layer(x, kernel)
        return jnp.sum(x**2)

    where = [NamedSharding(mesh, spec) for spec in (PartitionSpec(None, "fsdp"), PartitionSpec("fsdp"))]
    shapes = [(LAYERS, WIDTH, WIDTH), (ROWS, WIDTH)]
    arguments = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=w) for s, w in zip(shapes, where, strict=True)]
    compiled = jax.jit(jax.grad(loss), out_shardings=where[0]).lower(*arguments).compile()
    return hlo.parse(compiled.as_text())


def test_a_loop_moves_what_its_steps_move() -> None:
    scanned, unrolled = (hlo.collectives(program(each)) for each in (True, False))
    kernel = WIDTH * WIDTH * 4
    gathered = [each.sizes["all-gather"] for each in (scanned, unrolled)]
    # XLA may reuse what the forward pass gathered, but not across the two loops
    assert all(LAYERS * kernel <= size <= 2 * LAYERS * kernel for size in gathered), gathered
    reduced = [each.sizes["all-reduce"] + each.sizes["reduce-scatter"] for each in (scanned, unrolled)]
    assert reduced[0] == pytest.approx(reduced[1], rel=0.3) and reduced[1] >= LAYERS * kernel
    sent = scanned.sent["all-gather"]
    assert sent == pytest.approx(scanned.sizes["all-gather"] * 7 / 8, abs=LAYERS * 2)


def test_traffic_of_a_product() -> None:
    """Two matrices are read and one is written."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((256, 512), (512, 128))]
    found = hlo.parse(jax.jit(jnp.dot).lower(*shapes).compile().as_text())
    assert hlo.memory_traffic(found) == 4 * (256 * 512 + 512 * 128 + 256 * 128)


def test_a_slice_of_a_stack_counts_as_the_slice() -> None:
    """A loop reads each layer's kernel once, not the whole stack at every step."""

    def run(kernels: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, kernel: (x @ kernel, None), x, kernels)[0]

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((40, 64, 64), (8, 64))]
    found = hlo.parse(jax.jit(run).lower(*shapes).compile().as_text())
    stack = 4 * 40 * 64 * 64
    assert stack <= hlo.memory_traffic(found) < 5 * stack  # of which a CPU copies some


@pytest.mark.parametrize(
    ("attributes", "group"),
    [
        ("replica_groups={{0,2},{1,3}}, dimensions={0}", [0, 2]),
        ("replica_groups=[2,4]<=[8]", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [0, 4]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, dimensions={1}", [0, 4]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", [0, 1, 2, 3]),
        ("source_target_pairs={{0,15},{1,0}}", [0, 15]),
    ],
)
def test_groups(attributes: str, group: list[int]) -> None:
    assert hlo.first_group(attributes) == group


def test_what_tpus_write() -> None:
    """Loops of known trips, pieces of one gather that share a channel, arrays on the chip, and slices of a pod."""
    text = """HloModule step
%piece.1 (p: bf16[4,8]) -> bf16[64,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  ROOT %ag.1 = bf16[64,8]{1,0} all-gather(%p), channel_id=7, replica_groups=[1,16]<=[16], dimensions={0}
}
%body.async_collective_fusion.1 (q: bf16[4,8]) -> bf16[64,8] {
  %q = bf16[4,8]{1,0} parameter(0)
  ROOT %ag.2 = bf16[64,8]{1,0} all-gather(%q), channel_id=9, replica_groups=[1,16]<=[16], dimensions={0}
}
%async_collective_fusion.2 (q: bf16[4,8]) -> bf16[64,8] {
  %q.2 = bf16[4,8]{1,0} parameter(0)
  ROOT %ag.3 = bf16[64,8]{1,0} all-gather(%q.2), channel_id=9, replica_groups=[1,16]<=[16], dimensions={0}
}
%body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = (s32[], f32[8]) parameter(0)
  %x = f32[8]{0} get-tuple-element(%t), index=1
  %r = f32[8]{0} all-reduce(%x), replica_groups=[8,2]<=[2,8]T(1,0), to_apply=%add
  %f = bf16[64,8]{1,0} fusion(%x), kind=kCustom, calls=%async_collective_fusion.2
  %n = f32[128]{0:T(128)S(1)} copy(%r)
  ROOT %o = (s32[], f32[8]) tuple(%x, %r)
}
%condition (t: (s32[], f32[8])) -> pred[] {
  %t.1 = (s32[], f32[8]) parameter(0)
  %bound = s32[] constant(12)
  ROOT %less = pred[] compare(%t.1, %bound), direction=LT
}
ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %start = bf16[64,8]{1,0} fusion(%a), kind=kCustom, calls=%body.async_collective_fusion.1
  %init = (s32[], f32[8]) tuple(%a, %a)
  %loop = (s32[], f32[8]) while(%init), condition=%condition, body=%body
  ROOT %out = f32[8]{0} get-tuple-element(%loop), index=1
}
"""
    program = hlo.parse(text)
    found = hlo.collectives(program, per_slice=8)
    assert found.counts == {"all-reduce": 12, "all-gather": 1}
    assert found.sizes == {"all-reduce": 12 * 32, "all-gather": 64 * 8 * 2}
    assert found.sent["all-reduce"] == 12 * 32  # 2 x 1/2
    assert found.between_slices["all-reduce"] == found.sent["all-reduce"]  # 0 and 8 lie in two slices
    assert hlo.shape_bytes("f32[128]{0:T(128)S(1)}", in_main_memory=True) == []
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("nothing")


def test_sizes_of_types() -> None:
    sizes: dict[str, Any] = {"f32[2,3]": [24], "(bf16[4]{0}, pred[5])": [8, 5], "s32[]": [4], "token[]": []}
    for text, expected in sizes.items():
        assert hlo.shape_bytes(text) == expected
    assert np.sum(hlo.shape_bytes("(f32[2]{0}, f32[3]{0})")) == 20
