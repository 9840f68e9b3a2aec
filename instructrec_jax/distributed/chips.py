"""What accelerator chips can do at best, and topologies of them that need not be there."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from instructrec_jax.extras import require


@dataclass(frozen=True)
class Chip:
    """Of one chip: FLOP/s of bfloat16 products, HBM bytes and bytes/s, and bytes/s of its links to other chips."""

    flops: float
    hbm: float
    hbm_speed: float
    link_speed: float  # all links of a chip together, one direction
    dcn_speed: float  # a chip's share of its host's network, between slices
    clock: float | None = None  # cycles/s, which gives the compiler's own estimates a time


# Google Cloud's page of each version, docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, "System architecture": peak
# compute, HBM, its bandwidth, inter-chip interconnect (given for both directions: half of it here), their network.
# Of v4 and v6e, the links and the network are from memory, not read there.
# The clock follows from the peak and the matrix units there: 128 x 128 products each, 8 units (v4, v5p) or 4 (v5e).
CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 300e9, 6.25e9, 1.05e9),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9, 3.1e9, 1.5e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9, 6.25e9, 1.75e9),
    "v6e": Chip(918e12, 32 * 2**30, 1640e9, 400e9, 12.5e9),
}
# What devices call themselves -> the chip.
KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
}


def chip_of(device: Any) -> Chip | None:
    """The chip of a device; None for one that the table lacks (a CPU, say)."""
    return CHIPS.get(KINDS.get(device.device_kind, ""))


# NVIDIA's data sheets: FLOP/s of dense bfloat16 products (half of the number with sparsity), by what devices call
# themselves. Cards of one name differ by their form: an H100 in a PCIe slot has fewer units and a lower clock. The
# first pattern that matches the whole name counts; a share of a card (MIG) has no number here.
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


def peak_flops(device: Any) -> float | None:
    """FLOP/s of bfloat16 products at best; None for a device that the tables lack."""
    chip = chip_of(device)
    if chip is not None:
        return chip.flops
    name = device.device_kind
    if " MIG " in f"{name} ":
        return None
    return next((flops for pattern, flops in GPU_FLOPS if re.fullmatch(pattern, name)), None)


def topology_devices(topology: str, slices: int) -> Sequence[Any]:
    """Devices of `v5p:4x4x4` (chip: chips in each direction), for so many slices; or of `cpu:8`.

    They can be compiled for, and nothing else. TPUs need libtpu; virtual CPU devices need room in XLA_FLAGS.

    Raises ValueError for what there is not, with the remedy.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", topology)
    if found is None or found[1] not in (*CHIPS, "cpu"):
        raise ValueError(
            f"--topology is a chip and how many lie in each direction, such as v5e:4x4 or v5p:4x4x4, or cpu:8; "
            f"not {topology!r}. Chips: {', '.join(CHIPS)}."
        )
    import jax

    if slices < 1:
        raise ValueError(f"--slices must be at least 1, but is {slices}.")
    if found[1] == "cpu":
        count = int(found[2]) * slices if found[2].isdigit() else 0
        if not 1 <= count <= len(jax.devices("cpu")):
            raise ValueError(
                f"{topology} with {slices} slice(s) asks for {count} virtual devices, but there are "
                f"{len(jax.devices('cpu'))}: set XLA_FLAGS=--xla_force_host_platform_device_count={max(count, 1)}."
            )
        return jax.devices("cpu")[:count]
    require("libtpu", f"--topology {topology}")
    from jax.experimental import topologies

    # There is no TPU to ask, no other host, and nothing that two programs could want at once.
    absent = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    os.environ |= absent | dict(os.environ)
    try:
        more = {"num_slices": slices} if slices > 1 else {}
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **more).devices
    except Exception as error:  # jax and libtpu raise many kinds
        raise ValueError(f"there is no topology {topology}: {str(error).partition(chr(10))[0]}") from error
