"""Settings of the backbone."""

from dataclasses import dataclass, field
from typing import Literal

# Named, because --help shows a setting's comment only where its type is a plain name.
DType = Literal["auto", "float32", "bfloat16"]
Quantize = Literal["none", "int8", "nf4"]
Remat = Literal["none", "attention", "dots", "offload", "full"]


@dataclass
class BackboneConfig:
    """The pretrained network."""

    path: str = ""  # HuggingFace folder, hub id, or the name of an embedded demo, for its small backbone
    verify: bool = False  # compare the weights with the SHA-256 that the hub's cache has of them, before they are read
    random_init: bool = False  # take only the architecture from the folder and draw new weights
    freeze: list[str] = field(default_factory=list)  # not trained: paths with one of these (regexes)
    train_last: int | None = None  # train only the last so many layers, what follows them, and the head; null: all
    quantize: Quantize = "none"  # how the weights of linear layers are kept, with lora: int8 or nf4 save memory
    dtype: DType = "auto"  # of activations; auto: bfloat16 on accelerators
    remat: Remat = "none"  # what the backward pass computes again; offload: as dots, and what is kept waits on the host
