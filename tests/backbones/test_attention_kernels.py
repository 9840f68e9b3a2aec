"""The other ways to compute attention, against the plain one (which test_attention.py holds against brute force)."""

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructrec_jax.backbones import attention_kernels as kernels
from instructrec_jax.backbones.attention import attention
from instructrec_jax.backbones.layers import dropout_keys
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.distributed.mesh_config import MeshConfig

ROWS, LENGTH, HEADS, KEY_HEADS, DIM = 2, 256, 4, 2, 16


def packed(length: int = LENGTH) -> tuple[np.ndarray, np.ndarray]:
    """Segments of ragged lengths, one row with padding at its end."""
    segments, positions = np.zeros((ROWS, length), np.int32), np.zeros((ROWS, length), np.int32)
    for row, lengths in enumerate(([length // 2 + 3, length // 4, 7], [length - 9, 9])):
        start = 0
        for number, n in enumerate(lengths, 1):
            segments[row, start : start + n], positions[row, start : start + n] = number, np.arange(n)
            start += n
    return segments, positions


def inputs(length: int = LENGTH) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    shapes = [(ROWS, length, heads, DIM) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def with_gradients(function: Any, *arguments: jax.Array) -> Any:
    """The result, and the gradients of a sum that weighs each number of it differently."""
    weights = jnp.sin(jnp.arange(ROWS * arguments[0].shape[1] * HEADS * DIM)).reshape(arguments[0].shape)
    everything = tuple(range(len(arguments)))
    run = jax.jit(lambda *a: (function(*a), jax.grad(lambda *b: jnp.sum(function(*b) * weights), everything)(*a)))
    return run(*arguments)


def assert_same(found: Any, expected: Any, atol: float = 2e-5) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"causal": True},
    {"causal": True, "window": 20},
    {"window": 20},
    {"causal": True, "soft_cap": 5.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_splash_attention_is_the_plain_one(options: dict[str, Any]) -> None:
    """The TPU's kernel, interpreted."""
    segments, positions = packed()
    expected = with_gradients(
        lambda *x: attention(*x, segment_ids=segments, positions=positions, scale=0.3, **options), *inputs()
    )
    settings = {"causal": False, "window": None, "soft_cap": None, "scale": 0.3} | options
    found = with_gradients(
        lambda *x: kernels.splash_attention(*x, jnp.asarray(segments), interpret=True, **settings), *inputs()
    )
    assert_same(found, expected)


@pytest.mark.parametrize("sizes", [{"data": 2, "tensor": 2}, {"data": 4}, {"data": 1, "tensor": 4}], ids=str)
def test_splash_attention_on_four_devices(sizes: dict[str, int]) -> None:
    """Each device runs the kernel on its rows and heads; two rows on four, or two key heads, stay whole."""
    segments, positions = packed()
    expected = attention(*inputs(), segment_ids=segments, positions=positions, causal=True)
    mesh = make_mesh(MeshConfig(**sizes), jax.devices()[:4])

    def run(*x: jax.Array) -> jax.Array:
        with mesh.tracing():
            settings: dict[str, Any] = {"causal": True, "window": None, "soft_cap": None, "scale": DIM**-0.5}
            return kernels.splash_attention(*x, jnp.asarray(segments), interpret=True, **settings)

    spread = jax.device_put(inputs(), jax.NamedSharding(mesh.jax_mesh, jax.P()))
    assert_same(jax.jit(run)(*spread), expected)
    assert "shard_map" in str(jax.make_jaxpr(run)(*spread))  # a kernel outside of one cannot be compiled for several


@pytest.mark.parametrize(
    "options", [*OPTIONS, {"bias": True}, {"causal": True, "dropout": True}, {"causal": True, "groups": True}], ids=str
)
def test_blocks_of_queries_are_the_plain_one(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the block does not divide the length."""
    segments, positions = packed()
    options = dict(options)
    arguments = inputs()
    if options.pop("bias", False):
        rng = np.random.default_rng(1)
        arguments.append(jnp.asarray(rng.normal(size=(1, HEADS, LENGTH, LENGTH)), jnp.float32))
    if options.pop("dropout", False):
        keys = dropout_keys(jnp.uint32(3), jnp.asarray(segments), jnp.asarray(positions))
        options |= {"dropout_rate": 0.3, "dropout_keys": keys}
    if options.pop("groups", False):
        options["groups"] = jnp.asarray(positions // 40 % 3)

    def run(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        return attention(q, k, v, segment_ids=segments, positions=positions, bias=bias, **options)

    expected = with_gradients(run, *arguments)
    monkeypatch.setattr(kernels, "LONG", 1)
    monkeypatch.setattr(kernels, "QUERY_BLOCK", 100)
    assert_same(with_gradients(run, *arguments), expected)


def test_blocks_take_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporaries of the compiled gradient at 4,096 tokens: whole scores would be 4 x 2 x 4 x 4,096² = 537 MB."""
    length = 4096
    segments, positions = packed(length)

    def temporaries() -> int:
        def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return jnp.sum(attention(q, k, v, segment_ids=segments, positions=positions, causal=True))

        program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*inputs(length)).compile()
        return program.memory_analysis().temp_size_in_bytes

    blocked = temporaries()
    monkeypatch.setattr(kernels, "LONG", 10**9)
    assert blocked < 0.4 * temporaries()


def test_what_a_kernel_has_no_room_for_is_announced_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    q = inputs()[0]
    nothing: dict[str, Any] = {"own": True, "bias": None, "dropout": False, "soft_cap": None}
    assert kernels.choose(q, **nothing) == "plain"  # this is a CPU
    assert kernels.choose(inputs(2048)[0], **nothing) == "blocked"
    monkeypatch.setattr(kernels, "_announced", set())
    monkeypatch.setattr(kernels, "platform", lambda: "tpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert kernels.choose(q, **nothing) == "splash"
    assert kernels.choose(q, **nothing | {"own": False}) == "plain"  # a cache: nothing to announce
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert kernels.choose(q, **nothing | {"dropout": True}) == "plain"
            assert kernels.choose(q[:, :200], **nothing) == "plain"
            assert kernels.choose(q, **nothing | {"bias": q}) == "plain"
            assert kernels.choose(q, **nothing | {"groups": True}) == "plain"
        monkeypatch.setattr(jax, "device_count", lambda: 8)
        assert kernels.choose(q, **nothing) == "plain"  # and no mesh around it
        with make_mesh(MeshConfig()).tracing():
            assert kernels.choose(q, **nothing) == "splash"
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 5 and "dropout" in told[0] and "200 tokens" in told[1] and "bias" in told[2]
    assert "in both directions" in told[3]


@pytest.mark.parametrize(
    ("capability", "length", "head_dim", "options", "kernel"),
    [
        ((9, 0), 128, 64, {}, "cudnn"),
        ((9, 0), 50, 256, {}, "cudnn"),
        ((8, 0), 128, 128, {}, "cudnn"),
        ((9, 0), 51, 64, {}, "plain"),  # an odd length beside a mask
        ((8, 0), 128, 256, {}, "plain"),  # Gemma's heads on an A100
        ((9, 0), 128, 264, {}, "plain"),
        ((9, 0), 128, 20, {}, "plain"),  # no multiple of 8
        ((7, 5), 128, 64, {}, "plain"),  # older than Ampere
        ((0, 0), 128, 64, {}, "plain"),  # no NVIDIA GPU
        ((9, 0), 128, 64, {"bias": np.zeros(1, np.float32)}, "plain"),  # T5, MPNet
        ((9, 0), 128, 64, {"soft_cap": 5.0}, "plain"),
        ((9, 0), 128, 64, {"groups": True}, "cudnn"),  # its mask holds them
        ((9, 0), 128, 64, {"dropout": True}, "plain"),
        ((9, 0), 4096, 20, {}, "blocked"),
    ],
)
def test_cudnn_is_chosen_where_it_takes_the_shapes(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    length: int,
    head_dim: int,
    options: dict[str, Any],
    kernel: str,
) -> None:
    monkeypatch.setattr(kernels, "platform", lambda: "gpu")
    monkeypatch.setattr(kernels, "compute_capability", lambda: capability)
    settings: dict[str, Any] = {"own": True, "bias": None, "dropout": False, "soft_cap": None}
    q = jax.ShapeDtypeStruct((2, length, 2, head_dim), jnp.bfloat16)
    assert kernels.choose(q, **settings | options) == kernel
    assert kernels.choose(jax.ShapeDtypeStruct(q.shape, jnp.float32), **settings | options) != "cudnn"


def test_the_ambient_mesh_says_which_devices() -> None:
    mesh = make_mesh(MeshConfig(data=8))
    with mesh.tracing():
        assert kernels.platform() == "cpu"
    assert kernels.platform() == jax.default_backend()
