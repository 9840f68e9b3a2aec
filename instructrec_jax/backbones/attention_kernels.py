"""Attention by the kernels of accelerators, and by blocks of queries where there is none.

Each takes [rows, length, heads, head_dim] and gives what `attention.plain` does, without [length, length] numbers in
memory. `choose` says which one applies, and announces once where the fast one cannot be used.
"""

import logging
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec

from instructrec_jax.distributed.mesh import is_split, mesh_axes

logger = logging.getLogger(__name__)

LANES = 128  # splash attention works on blocks of so many places at least
SPLASH_BLOCK = 512
QUERY_BLOCK = 512  # queries whose scores exist at a time
LONG = 2048  # queries x keys from LONG² on are worked through in blocks

_announced: set[str] = set()


def platform() -> str:
    """Of the devices that the step runs on: those of the ambient mesh, or jax's own."""
    mesh = jax.sharding.get_abstract_mesh()
    device = getattr(mesh, "abstract_device", None)
    return device.platform if device is not None else jax.default_backend()


def compute_capability() -> tuple[int, int]:
    """Of the GPU that the step runs on: (8, 0) is an A100, (9, 0) an H100. (0, 0) where the device does not say."""
    mesh = jax.sharding.get_abstract_mesh()
    described = getattr(getattr(mesh, "abstract_device", None), "device_kind", None)
    kinds = [d for d in jax.local_devices() if described is None or d.device_kind == described]
    text = str(getattr(kinds[0], "compute_capability", "")) if kinds else ""
    found = re.fullmatch(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def announce(reason: str) -> None:
    """Says once in a program why a kernel is not used."""
    if reason not in _announced:
        _announced.add(reason)
        logger.warning("attention: %s", reason)


def choose(q: jax.Array, *, own: bool, bias: Any, dropout: bool, soft_cap: float | None) -> str:
    """splash (TPU), cudnn (GPU), blocked (long texts) or plain.

    Args:
      own: keys are those of the queries' own tokens, as in training; else a cache, or another text.
      bias: added to the scores, or None.
      dropout: of the probabilities.
    """
    length, head_dim, device = q.shape[1], q.shape[3], platform()
    plain = "blocked" if own and length >= LONG else "plain"
    kernel = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}.get(device)
    if kernel is None or not own:
        return plain
    # What cuDNN asks for: jax tells of it when the step is compiled, by an exception.
    capability = compute_capability() if kernel == "cudnn" else (0, 0)
    widest = 256 if capability >= (9, 0) else 128
    no_mesh = jax.sharding.get_abstract_mesh().empty and jax.device_count() > 1
    reasons = {
        "devices that it is not told of (decoding)": kernel == "splash" and no_mesh,
        "dropout of the probabilities (attention_dropout in config.json)": dropout,
        # with cuDNN too: together with the mask it becomes [rows, heads, length, length] numbers all the same, and
        # what becomes of its gradient, and of float32 beside bfloat16, differs between versions
        "a bias on the scores": bias is not None,
        f"rows of {length} tokens, which {LANES} does not divide": kernel == "splash" and length % LANES > 0,
        "a length that devices split (mesh.context)": is_split("length"),
        "a cap on the scores": kernel == "cudnn" and soft_cap is not None,
        f"rows of {length} tokens, an odd number, beside a mask": kernel == "cudnn" and length % 2 > 0,
        f"heads of {head_dim} features (a multiple of 8 and at most {widest} on this GPU)": kernel == "cudnn"
        and (head_dim % 8 > 0 or head_dim > widest),
        "a GPU that is not an NVIDIA Ampere or later": kernel == "cudnn" and capability < (8, 0),
        "float32": kernel == "cudnn" and q.dtype == jnp.float32,
    }
    for reason, holds in reasons.items():
        if holds:
            announce(f"the {kernel} kernel has no room for {reason}; XLA's own attention is used ({plain}).")
            return plain
    return kernel


# ---------------------------------------------------------------- TPU


def splash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    *,
    causal: bool,
    window: int | None,
    soft_cap: float | None,
    scale: float,
    interpret: bool = False,
) -> jax.Array:
    """Splash attention (a flash attention for TPUs that skips blocks which a mask empties), by each device with its
    rows and heads.

    Inside a segment tokens lie one after another, so causal and window by place in the row are those by position.
    """
    length = q.shape[1]
    if window is not None:
        mask: Any = splash.LocalMask((length, length), (window, 0 if causal else window), 0)
    else:
        mask = splash.CausalMask((length, length)) if causal else splash.FullMask((length, length))
    block = max(size for size in (LANES, 2 * LANES, SPLASH_BLOCK) if length % size == 0)
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    sizes: dict[str, Any] = dict.fromkeys((*names, "block_q_dq", "block_kv_dq"), block)

    def here(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
        kernel = splash.make_splash_mha(
            mask=splash.MultiHeadMask([mask] * q.shape[2]),
            head_shards=1,
            q_seq_shards=1,
            block_sizes=splash.BlockSizes(**sizes),
            attn_logits_soft_cap=soft_cap,
            interpret=interpret,
        )
        q, k, v = (x.transpose(0, 2, 1, 3) for x in ((q * scale).astype(q.dtype), k, v))
        out = jax.vmap(lambda q, k, v, s: kernel(q, k, v, segment_ids=splash.SegmentIds(s, s)))(q, k, v, segment_ids)
        # the kernel lets padding see padding
        return jnp.where((segment_ids > 0)[:, :, None, None], out.transpose(0, 2, 1, 3), 0).astype(v.dtype)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return here(q, k, v, segment_ids)

    def over(name: str, *dims: int) -> tuple[str, ...] | None:
        axes = tuple(axis for axis in mesh_axes(name) if mesh.shape[axis] > 1)
        return axes if axes and all(dim % math.prod(mesh.shape[a] for a in axes) == 0 for dim in dims) else None

    # What does not divide is whole on each device; the compiler itself cannot split a kernel.
    rows, heads = over("batch", q.shape[0]), over("heads", q.shape[2], k.shape[2])
    whole, ids = PartitionSpec(rows, None, heads, None), PartitionSpec(rows, None)
    split = jax.shard_map(here, mesh=mesh, in_specs=(whole, whole, whole, ids), out_specs=whole, check_vma=False)
    return split(q, k, v, segment_ids)


# ---------------------------------------------------------------- GPU


def cudnn_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, *, scale: float) -> jax.Array:
    """cuDNN's flash attention. It knows no segments, so who sees whom is an array of rows x length x length bytes.

    Args:
      mask: bool [rows, 1, queries, keys].
    """
    announce(f"cuDNN takes packed rows by an explicit mask of {mask.size / 1e6:,.0f} MB.")
    some = mask.any(-1)  # a row of padding sees nothing, of which no softmax can be made: it sees the first, then is 0
    first = jnp.arange(mask.shape[-1]) == 0
    out = jax.nn.dot_product_attention(
        q, k, v, mask=mask | (~some[..., None] & first), scale=scale, implementation="cudnn"
    )
    return jnp.where(some.transpose(0, 2, 1)[..., None], out, 0).astype(v.dtype)


# ---------------------------------------------------------------- anywhere


def by_query_blocks(function: Callable[..., jax.Array], queries: dict[str, Any], rest: dict[str, Any]) -> jax.Array:
    """function(**queries, **rest) for QUERY_BLOCK queries at a time; the backward pass computes each block again.

    Args:
      function: gives [rows, queries, heads, head_dim].
      queries: arrays [rows, queries, ...], to be cut, or None.
      rest: what every block gets whole.
    """
    length = next(x.shape[1] for x in queries.values() if x is not None)
    blocks = -(-length // QUERY_BLOCK)

    def cut(x: jax.Array | None) -> jax.Array | None:
        if x is None:
            return None
        padded = jnp.pad(x, [(0, 0), (0, blocks * QUERY_BLOCK - length), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(padded.reshape(len(x), blocks, QUERY_BLOCK, *x.shape[2:]), 1, 0)

    one = jax.checkpoint(lambda part: function(**part, **rest), prevent_cse=False)
    out = jax.lax.map(one, {name: cut(x) for name, x in queries.items()})  # [blocks, rows, block, heads, head_dim]
    return jnp.moveaxis(out, 0, 1).reshape(out.shape[1], -1, *out.shape[3:])[:, :length]
