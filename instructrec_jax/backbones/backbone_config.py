"""Settings of the backbone."""

from dataclasses import dataclass, field
from typing import Literal

# Named because --help shows a setting's comment only if its type is a plain name.
DType = Literal["auto", "float32", "bfloat16"]
Quantize = Literal["none", "int8", "nf4"]
Remat = Literal["none", "attention", "dots", "offload", "full"]


@dataclass
class BackboneConfig:
    """The pretrained network."""

    path: str = ""  # HuggingFace folder, hub id, or the name of an embedded demo (its small network)
    verify: bool = False  # check the weights against the SHA-256 in the hub's cache before reading them
    random_init: bool = False  # use only the folder's architecture, with randomly initialized weights
    freeze: list[str] = field(default_factory=list)  # regular expressions: matching parameter paths are not trained
    train_last: int | None = None  # train only the last N layers, the final norm and the head; null: all layers
    quantize: Quantize = "none"  # quantization of frozen linear layers, with lora only; int8 or nf4 save memory
    dtype: DType = "auto"  # dtype of activations; auto: bfloat16 on accelerators
    remat: Remat = "none"  # gradient checkpointing policy; offload: like dots, with saved activations in host memory
