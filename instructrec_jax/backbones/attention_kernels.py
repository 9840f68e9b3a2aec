"""Attention kernels of accelerators, and attention by blocks of queries for other devices.

All take [rows, length, heads, head_dim] and compute the same as `attention._plain`, without a [length, length] array in
memory. `choose` chooses the kernel and logs once why the fast one cannot be used.
"""

import logging
import math
import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from instructrec_jax.distributed.mesh import is_split, mesh_axes

logger = logging.getLogger(__name__)

LANES = 128  # minimum block size of splash attention
SPLASH_BLOCK = 512  # maximum block size of splash attention
QUERY_BLOCK = 512  # queries per block
LONG = 2048  # minimum length for attention by blocks

_announced: set[str] = set()


def platform() -> str:
    """The platform of the step's devices: those of the current mesh, or jax's default."""
    mesh = jax.sharding.get_abstract_mesh()
    device = getattr(mesh, "abstract_device", None)
    return device.platform if device is not None else jax.default_backend()


def compute_capability() -> tuple[int, int]:
    """The compute capability of the step's GPU: (8, 0) for an A100, (9, 0) for an H100, (0, 0) if unknown."""
    mesh = jax.sharding.get_abstract_mesh()
    described = getattr(getattr(mesh, "abstract_device", None), "device_kind", None)
    kinds = [d for d in jax.local_devices() if described is None or d.device_kind == described]
    text = str(getattr(kinds[0], "compute_capability", "")) if kinds else ""
    found = re.fullmatch(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def announce(reason: str) -> None:
    """Logs a reason once per program."""
    if reason not in _announced:
        _announced.add(reason)
        logger.warning("attention: %s", reason)


def choose(
    q: jax.Array, *, own: bool, bias: jax.Array | None, dropout: bool, soft_cap: float | None, groups: bool = False
) -> str:
    """The kernel: "splash" (TPU), "cudnn" (GPU), "blocked" (long texts) or "plain".

    Args:
      q: [rows, queries, heads, head_dim].
      own: whether the keys are the queries' own tokens, as in training, and not a cache or another text.
      bias: added to the scores, or None.
      dropout: whether probabilities have dropout.
      soft_cap: see `attention.attention`.
      groups: whether some tokens attend to each other whatever their order, see `attention.attention`.
    """
    length, head_dim, device = q.shape[1], q.shape[3], platform()
    known = isinstance(length, int)  # `jax.export` has programs of any length
    plain = "blocked" if own and known and length >= LONG else "plain"
    kernel = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}.get(device)
    if kernel is None or not own:
        return plain
    # cuDNN's requirements; jax raises an exception for violations, but only when the step is compiled.
    capability = compute_capability() if kernel == "cudnn" else (0, 0)
    widest = 256 if capability >= (9, 0) else 128
    no_mesh = jax.sharding.get_abstract_mesh().empty and jax.device_count() > 1
    reasons = {
        "several devices without a mesh (decoding)": kernel == "splash" and no_mesh,
        "dropout of the probabilities (attention_dropout in config.json)": dropout,
        # also with cuDNN: mask and bias together would still need a [rows, heads, length, length] array, and the
        # treatment of the bias's gradient and of float32 with bfloat16 differs between versions
        "a bias on the scores": bias is not None,
        "tokens that attend to each other in both directions (images, prompts)": kernel == "splash" and groups,
        f"rows of {length} tokens (a multiple of {LANES} is needed)": kernel == "splash" and length % LANES > 0,
        "rows split over devices (mesh.context)": is_split("length"),
        "a soft cap on the scores": kernel == "cudnn" and soft_cap is not None,
        f"masked rows of {length} tokens (an even number is needed)": kernel == "cudnn" and length % 2 > 0,
        f"heads of {head_dim} features (a multiple of 8, at most {widest} on this GPU, is needed)": kernel == "cudnn"
        and (head_dim % 8 > 0 or head_dim > widest),
        "a GPU older than NVIDIA Ampere or of another vendor": kernel == "cudnn" and capability < (8, 0),
        "float32": kernel == "cudnn" and q.dtype == jnp.float32,
    }
    for reason, holds in reasons.items():
        if holds:
            announce(f"the {kernel} kernel does not support {reason}; using XLA's attention ({plain}).")
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
    """Splash attention (flash attention for TPUs that skips fully masked blocks); each device has its rows and heads.

    A segment's tokens are contiguous in their row, so causal masks and windows by index equal those by position.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # slow to import, and for TPUs only

    length = q.shape[1]
    if window is not None:
        mask: splash.Mask = splash.LocalMask((length, length), (window, 0 if causal else window), 0)
    else:
        mask = splash.CausalMask((length, length)) if causal else splash.FullMask((length, length))
    block = max(size for size in (LANES, 2 * LANES, SPLASH_BLOCK) if length % size == 0)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )

    def here(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
        kernel = splash.make_splash_mha(
            mask=splash.MultiHeadMask([mask] * q.shape[2]),
            head_shards=1,
            q_seq_shards=1,
            block_sizes=sizes,
            attn_logits_soft_cap=soft_cap,
            interpret=interpret,
        )
        q, k, v = (x.transpose(0, 2, 1, 3) for x in ((q * scale).astype(q.dtype), k, v))
        out = jax.vmap(lambda q, k, v, s: kernel(q, k, v, segment_ids=splash.SegmentIds(s, s)))(q, k, v, segment_ids)
        # the kernel lets padding attend to padding
        return jnp.where((segment_ids > 0)[:, :, None, None], out.transpose(0, 2, 1, 3), 0).astype(v.dtype)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return here(q, k, v, segment_ids)

    def over(name: str, *dims: int) -> tuple[str, ...] | None:
        axes = tuple(axis for axis in mesh_axes(name) if mesh.shape[axis] > 1)
        return axes if axes and all(dim % math.prod(mesh.shape[a] for a in axes) == 0 for dim in dims) else None

    # Dimensions that devices do not divide stay whole on each device; the compiler itself cannot split a kernel.
    rows, heads = over("batch", q.shape[0]), over("heads", q.shape[2], k.shape[2])
    whole, ids = PartitionSpec(rows, None, heads, None), PartitionSpec(rows, None)
    split = jax.shard_map(here, mesh=mesh, in_specs=(whole, whole, whole, ids), out_specs=whole, check_vma=False)
    return split(q, k, v, segment_ids)


# ---------------------------------------------------------------- GPU


def cudnn_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, *, scale: float) -> jax.Array:
    """cuDNN's flash attention. It does not support segments, so it takes a mask of rows x length x length bytes.

    Args:
      mask: bool [rows, 1, queries, keys].
    """
    announce(f"cuDNN needs an explicit mask of {mask.size / 1e6:,.0f} MB for packed rows.")
    some = mask.any(-1)  # a fully masked query has no softmax: let it attend to the first key, then set it to 0
    first = jnp.arange(mask.shape[-1]) == 0
    out = jax.nn.dot_product_attention(
        q, k, v, mask=mask | (~some[..., None] & first), scale=scale, implementation="cudnn"
    )
    return jnp.where(some.transpose(0, 2, 1)[..., None], out, 0).astype(v.dtype)


# ---------------------------------------------------------------- anywhere


def by_query_blocks(
    function: Callable[..., jax.Array], queries: Mapping[str, jax.Array | None], rest: Mapping[str, jax.Array | None]
) -> jax.Array:
    """Runs function(**queries, **rest) on blocks of QUERY_BLOCK queries; the backward pass recomputes each block.

    Args:
      function: returns [rows, queries, heads, head_dim].
      queries: arrays [rows, queries, ...] to be split, or None.
      rest: arguments passed whole to every block.
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
