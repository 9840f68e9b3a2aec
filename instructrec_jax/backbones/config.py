"""Settings of the backbone."""

from dataclasses import dataclass
from typing import Literal

# Named, because --help shows a setting's comment only where its type is a plain name.
DType = Literal["auto", "float32", "bfloat16"]
Remat = Literal["none", "dots", "full"]


@dataclass
class BackboneConfig:
    """The pretrained network."""

    path: str = ""  # HuggingFace folder or hub id; "films" is the small one that comes with this package
    random_init: bool = False  # take only the architecture from the folder and draw new weights
    frozen: bool = False  # train the head alone
    train_last: int | None = None  # train only the last so many layers, what follows them, and the head; null: all
    dtype: DType = "auto"  # of activations; auto: bfloat16 on accelerators
    remat: Remat = "none"  # what the backward pass computes again to save memory
