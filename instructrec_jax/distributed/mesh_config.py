"""The settings of the device mesh."""

from dataclasses import dataclass, field
from typing import Literal

# Named, because --help shows a setting's comment only where its type is a plain name.
Size = int | Literal["auto"] | None  # null means auto


@dataclass
class MeshConfig:
    """Sizes of the device mesh's axes."""

    data: Size = "auto"  # data parallelism: devices with whole parameters; auto (one axis only): remaining devices
    fsdp: Size = 1  # data parallelism with parameters and optimizer state split over the devices
    tensor: Size = 1  # tensor parallelism: devices over which each matrix product is split
    context: Size = 1  # context parallelism: devices over which the length of rows is split
    dcn_data: int = 1  # slices (or nodes) of additional data parallelism; the sizes above are those within a slice
    dcn_fsdp: int = 1  # slices (or nodes) over which fsdp is split in addition
    rules: dict[str, list[str]] = field(default_factory=dict)  # changes of the sharding rules, logical axis: mesh axes
