"""Counts from compiled programs, compared with unrolled programs and hand arithmetic."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.distributed.mesh_config import MeshConfig
from instructrec_jax.planning import hlo

LAYERS, WIDTH, ROWS = 2, 128, 64


def compiled(mesh: Mesh, *, unrolled: bool, trips: Any = LAYERS) -> str:
    """The gradient of a few layers, with matrices and rows sharded over 8 devices."""
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    def layer(x: jax.Array, w: jax.Array) -> jax.Array:
        w = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, PartitionSpec()))
        return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), rows)

    def loss(ws: jax.Array, x: jax.Array) -> jax.Array:
        if unrolled:
            for number in range(LAYERS):
                x = layer(x, ws[number])
            return jnp.sum(x)
        return jnp.sum(jax.lax.scan(lambda x, w: (layer(x, w), None), x, ws)[0])

    matrices = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    ws = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32, sharding=matrices)
    x = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32, sharding=rows)
    return jax.jit(jax.grad(loss), out_shardings=matrices).lower(ws, x).compile().as_text()


@pytest.fixture(scope="module")
def programs() -> tuple[hlo.Program, hlo.Program]:
    mesh = make_mesh(MeshConfig(data=1, fsdp=8), jax.devices()[:8]).jax_mesh
    return hlo.parse(compiled(mesh, unrolled=False)), hlo.parse(compiled(mesh, unrolled=True))


def test_loops_are_multiplied_out(programs: tuple[hlo.Program, hlo.Program]) -> None:
    scanned, unrolled = map(hlo.collectives, programs)
    assert any(i.kind == "while" for i, _, _ in hlo.executed(programs[0]))
    assert not any(i.kind == "while" for i, _, _ in hlo.executed(programs[1]))
    matrices = LAYERS * WIDTH * WIDTH * 4
    # each matrix is gathered once (XLA on CPU keeps it for the backward pass), each gradient is reduced
    assert dict(scanned.sizes) == dict(unrolled.sizes) == {"all-gather": matrices, "all-reduce": matrices}
    assert (
        dict(scanned.sent)
        == dict(unrolled.sent)
        == {
            "all-gather": matrices * 7 // 8,
            "all-reduce": 2 * matrices * 7 // 8,
        }
    )


def test_memory_traffic_of_a_loop(programs: tuple[hlo.Program, hlo.Program]) -> None:
    """A loop also writes and reads the stacked residuals of the backward pass: nearly as much again here."""
    scanned, unrolled = map(hlo.memory_traffic, programs)
    assert unrolled < scanned < 2 * unrolled
    matrices = LAYERS * WIDTH * WIDTH * 4
    assert unrolled > 5 * matrices  # each is written when gathered and read twice; its gradient is written and reduced


def test_a_loop_whose_end_the_program_computes_runs_as_often_as_is_said() -> None:
    def program(n: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, n, lambda _, x: jnp.sin(x @ x), x)

    text = jax.jit(program).lower(jnp.int32(3), jnp.ones((16, 16))).compile().as_text()
    once, eight = hlo.parse(text), hlo.parse(text, unbounded=8)
    dots = [sum(n for i, _, n in hlo.executed(p) if i.kind in ("dot", "custom-call", "fusion")) for p in (once, eight)]
    assert dots[1] == 8 * dots[0] > 0


def test_bytes_that_leave_a_device() -> None:
    text = """
ENTRY %main (p: f32[8,16]) -> f32[64,16] {
  %p = f32[8,16]{1,0} parameter(0)
  %g = f32[64,16]{1,0} all-gather(%p), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
  %r = f32[64,16]{1,0} all-reduce(%g), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %s = f32[8,16]{1,0} reduce-scatter(%r), channel_id=3, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  ROOT %c = f32[8,16]{1,0} collective-permute(%s), channel_id=4, source_target_pairs={{0,4},{4,0}}
}
"""
    found = hlo.collectives(hlo.parse(text), per_slice=4)
    whole, part = 64 * 16 * 4, 8 * 16 * 4
    assert dict(found.sent) == {
        "all-gather": whole * 7 // 8,
        "all-reduce": 2 * whole * 3 // 4,
        "reduce-scatter": 4 * part * 3 // 4,  # the scattered array is four times the result
        "collective-permute": part,
    }
    # devices 0-3 are a slice: the reduction stays inside; the scatter is among 0, 2, 4, 6
    assert set(found.between_slices) == {"all-gather", "reduce-scatter", "collective-permute"}


def test_a_collective_in_several_fusions_is_one() -> None:
    """A TPU gather that overlaps products: started in one fusion, finished in another."""
    piece = """
%%%s (p: f32[8,16]) -> f32[64,16] {
  %%p = f32[8,16]{1,0} parameter(0)
  ROOT %%g = f32[64,16]{1,0} all-gather(%%p), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}
}
"""
    text = (
        piece % "begin"
        + piece % "end"
        + """
ENTRY %main (p: f32[8,16]) -> f32[64,16] {
  %p = f32[8,16]{1,0} parameter(0)
  %a = f32[64,16]{1,0} fusion(%p), kind=kCustom, calls=%begin
  ROOT %b = f32[64,16]{1,0} fusion(%p), kind=kCustom, calls=%end
}
"""
    )
    found = hlo.collectives(hlo.parse(text))
    assert dict(found.counts) == {"all-gather": 1} and found.sizes["all-gather"] == 64 * 16 * 4


def test_what_hosts_carry_between_slices() -> None:
    text = """
ENTRY %main (p: bf16[64,16]) -> bf16[64,16] {
  %p = bf16[64,16]{1,0} parameter(0)
  %t = token[] after-all()
  %s = (bf16[64,16]{1,0}, u32[], token[]) send(%p, %t), channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  ROOT %c = bf16[64,16]{1,0} copy(%p)
}
""".replace("\\\n", "")
    found = hlo.collectives(hlo.parse(text), per_slice=4)
    assert sum(found.between_slices.values()) == sum(found.sent.values()) == 64 * 16 * 2


def test_what_is_no_program() -> None:
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse("HloModule empty")
