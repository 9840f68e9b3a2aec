"""Peak performance of accelerator chips, and topologies of chips to compile for without having them."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import jax

from instructrec_jax.extras import require


@dataclass(frozen=True)
class Chip:
    """Peak numbers of one chip."""

    flops: float  # FLOP/s of bfloat16 matrix products
    hbm: float  # bytes of high-bandwidth memory (HBM)
    hbm_speed: float  # bytes/s of HBM
    link_speed: float  # bytes/s of the links to other chips: all links together, one direction
    dcn_speed: float  # bytes/s between slices: the chip's share of its host's network
    clock: float | None = None  # cycles/s, which convert the compiler's cycle estimates to seconds


# Sources: Google Cloud's page of each version, docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, "System architecture":
# peak compute, HBM, HBM bandwidth, inter-chip interconnect (halved here, since given for both directions), network.
# The links and networks of v4 and v6e are quoted from memory. The clock follows from the peak and the matrix units:
# 128 x 128 products each, 8 units (v4, v5p) or 4 units (v5e).
CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 300e9, 6.25e9, 1.05e9),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9, 3.1e9, 1.5e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9, 6.25e9, 1.75e9),
    "v6e": Chip(918e12, 32 * 2**30, 1640e9, 400e9, 12.5e9),
}
# `device_kind` -> chip
KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
}


def chip_of(device: jax.Device) -> Chip | None:
    """The chip of a device; None for an unlisted one, such as a CPU."""
    return CHIPS.get(KINDS.get(device.device_kind, ""))


# Pattern of `device_kind` -> FLOP/s of dense bfloat16 products (half of the number with sparsity), from NVIDIA's data
# sheets. Cards of one name differ by form factor: an H100 in a PCIe slot has fewer units and a lower clock. The first
# pattern that matches the whole name applies; MIG instances are not listed.
GPU_FLOPS = (
    (r"NVIDIA H100 PCIe", 756e12),
    (r"NVIDIA (H100|H200) NVL", 835.5e12),
    (r"NVIDIA H100( 80GB HBM3| SXM.*)?", 989e12),
    (r"NVIDIA (H200|GH200)( .*)?", 989e12),
    (r"NVIDIA A100[- ].*", 312e12),
    (r"NVIDIA L40S", 362e12),
    (r"NVIDIA L40", 181e12),
    (r"NVIDIA L4", 121e12),
)


def peak_flops(device: jax.Device) -> float | None:
    """Peak FLOP/s of bfloat16 products; None for an unlisted device."""
    chip = chip_of(device)
    if chip is not None:
        return chip.flops
    name = device.device_kind
    if " MIG " in f"{name} ":
        return None
    return next((flops for pattern, flops in GPU_FLOPS if re.fullmatch(pattern, name)), None)


def topology_devices(topology: str, slices: int) -> Sequence[jax.Device]:
    """Abstract devices of a topology, to compile for (not to run on).

    TPUs need libtpu; virtual CPU devices need XLA_FLAGS.

    Args:
      topology: chip and chips in each direction, such as `v5p:4x4x4`, or `cpu:8`.
      slices: number of slices.

    Raises:
      ValueError: an unknown or unavailable topology.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", topology)
    if found is None or found[1] not in (*CHIPS, "cpu"):
        raise ValueError(
            f"--topology must be a chip type and the number of chips in each direction, such as v5e:4x4 or v5p:4x4x4, "
            f"or cpu:8, but is {topology!r}. Chip types: {', '.join(CHIPS)}."
        )
    if slices < 1:
        raise ValueError(f"--slices must be at least 1, but is {slices}.")
    if found[1] == "cpu":
        count = int(found[2]) * slices if found[2].isdigit() else 0
        if not 1 <= count <= len(jax.devices("cpu")):
            raise ValueError(
                f"--topology {topology} with {slices} slice(s) needs {count} virtual devices, but there are "
                f"{len(jax.devices('cpu'))}: set XLA_FLAGS=--xla_force_host_platform_device_count={max(count, 1)}."
            )
        return jax.devices("cpu")[:count]
    require("libtpu", f"--topology {topology}")
    from jax.experimental import topologies

    # Without a TPU there is no metadata to query, no other host and no conflict between two programs.
    absent = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    os.environ |= absent | dict(os.environ)
    try:
        more = {"num_slices": slices} if slices > 1 else {}
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **more).devices
    except Exception as error:  # jax and libtpu raise many kinds
        raise ValueError(f"unknown --topology {topology}: {str(error).partition(chr(10))[0]}") from error
