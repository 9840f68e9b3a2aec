"""Settings of the backbone."""

from dataclasses import dataclass, field
from typing import Literal

# Named because --help shows a setting's comment only if its type is a plain name.
DType = Literal["auto", "float32", "bfloat16"]
Quantize = Literal["none", "int8", "int4", "nf4"]
Activations = Literal["none", "int8"]
CacheDType = Literal["auto", "int8"]
Remat = Literal["none", "attention", "dots", "offload", "full"]


@dataclass
class BackboneConfig:
    """The pretrained network."""

    path: str = ""  # HuggingFace folder, hub id, or name of an embedded demo
    verify: bool = False  # check the weights against the SHA-256 in the hub's cache before reading them
    random_init: bool = False  # use only the folder's architecture, with randomly initialized weights
    freeze: list[str] = field(default_factory=list)  # regular expressions: matching parameter paths are not trained
    train_last: int | None = None  # train only the last N layers, the final norm and the head; null: all layers
    quantize: Quantize = "none"  # quantization of frozen linear layers, with lora only; compress does it without
    quantize_group: int | None = None  # inputs that share a scale: 32, 64 or 128; null: all for int8, 64 for 4 bits
    quantize_activations: Activations = "none"  # int8: products of integers, with one scale for each token
    quantize_smooth: bool = False  # whether the kernels hold SmoothQuant's divisors; compress sets it
    quantize_embeddings: bool = False  # also word embeddings, and the output layer over the vocabulary: int8 by row
    quantize_keep: list[str] = field(default_factory=list)  # linear layers that stay as they are, as in lora.targets
    dtype: DType = "auto"  # dtype of activations; auto: bfloat16 on accelerators
    cache_dtype: CacheDType = "auto"  # dtype of keys and values while writing; int8: with a scale per token and head
    remat: Remat = "none"  # gradient checkpointing policy; offload: like dots, with saved activations in host memory
