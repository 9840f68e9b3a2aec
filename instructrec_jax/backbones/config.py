"""Settings of the backbone."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class BackboneConfig:
    """The pretrained network."""

    path: str = ""  # HuggingFace folder or hub id; "films" is the small one that comes with this package
    random_init: bool = False  # take only the architecture from the folder and draw new weights
    frozen: bool = False  # train the head alone
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of activations; auto: bfloat16 on accelerators
    remat: Literal["none", "dots", "full"] = "none"  # what the backward pass computes again to save memory
