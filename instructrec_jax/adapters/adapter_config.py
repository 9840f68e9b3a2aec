"""The settings of LoRA, and the values that settings of heads and losses may have."""

import math
from dataclasses import dataclass, field
from typing import Literal

# Named, because --help shows a setting's comment only where its type is a plain name.
PreferenceLoss = Literal["dpo", "ipo", "orpo"]
Kind = Literal["transformer", "hstu", "gru"]
Norm = Literal["pre", "post"]
Activation = Literal["gelu", "relu", "swiglu"]
TokenRowsOf = Literal["none", "added"]
Positions = Literal["learned", "relative", "both", "none"]


@dataclass
class LoraConfig:
    """Low-rank updates of the backbone's linear layers (LoRA), trained instead of the backbone itself."""

    rank: int = 0  # rank of the updates; 0: no LoRA, the backbone itself is trained
    alpha: float = 16.0  # updates are scaled by alpha / rank
    targets: list[str] = field(  # linear layers: all-linear, (ends of) HuggingFace's names, or regular expressions
        default_factory=lambda: ["all-linear"]
    )
    dropout: float = 0.0  # dropout rate of the updates' inputs
    # rows of word embeddings trained beside it; added: of tokens added to a vocabulary
    token_rows: TokenRowsOf = "none"
    rslora: bool = False  # scale by alpha / sqrt(rank) instead (Kalajdzievski, 2023)
    adapter: str | None = None  # folder of a PEFT adapter to start from; sets rank, alpha and targets

    @property
    def on(self) -> bool:
        return self.rank > 0 or self.adapter is not None

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)
