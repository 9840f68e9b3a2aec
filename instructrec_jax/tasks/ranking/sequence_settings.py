"""The settings of the task sequence."""

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from instructrec_jax.adapters.adapter_config import Activation, Kind, Norm, Positions
from instructrec_jax.tasks.ranking.ranking_config import Pooling, RankingConfig
from instructrec_jax.tasks.search_space import Options, Range, SearchSpace
from instructrec_jax.tasks.task_config import TaskConfig

Supervise = Literal["all", "last"]
NextItemSoftmax = Literal["full", "sampled"]
NextItemLoss = Literal["softmax", "bce", "gbce"]
SequenceObjective = Literal["next", "masked"]
ColdItems = Literal["negatives", "left_out"]
SeenItems = Literal["negatives", "left_out"]
# Setting -> the setting, and its values, without which it has no effect.
HAVE_EFFECT = {
    "norm": ("network", ("transformer",)),
    "activation": ("network", ("transformer",)),
    "mlp_factor": ("network", ("transformer",)),
    "attention_dropout": ("network", ("transformer",)),
    "item_bias": ("ids", (True,)),
    "seen_items": ("loss", ("softmax",)),
    "mask_share": ("objective", ("masked",)),
    "gbce_t": ("loss", ("gbce",)),
    "label_smoothing": ("loss", ("softmax",)),
    "softmax": ("loss", ("softmax",)),
}


@TaskConfig.register_subclass("sequence")
@dataclass
class SequenceConfig(RankingConfig):
    """Predict the next item of a history, a sequence of item vectors after the instruction's vector."""

    task_class = "ranking.sequence:SequenceTask"

    text: bool = True  # encode item texts and instructions with the backbone
    ids: bool = True  # learn a vector per item (new items have none)
    factors: int = 64  # with ids: 2 × N numbers per item, at first factors of what follows what; 0: none
    pictures: str | None = (
        None  # folder of the frozen network (CLIP, ViT ...) that reads the items' pictures; null: none
    )
    picture_folder: str = ""  # where paths of the catalogue's column `image` start; "": in the catalogue's folder
    hidden_size: int = 64  # hidden size of the head
    num_layers: int = 2  # layers of the head
    num_heads: int = 2  # attention heads of the head
    dropout: float = 0.2  # dropout of the head's embeddings and layers
    history_limit: int = 50  # last N items of a history; in training, any N in a row
    network: Kind = "transformer"  # of the head: transformer, hstu (gated pointwise attention) or gru
    norm: Norm = "pre"  # of a transformer: before its sublayers, or after them
    activation: Activation = "gelu"  # of a transformer's feed-forward layers
    mlp_factor: int = 4  # width of a transformer's feed-forward layers / hidden_size
    attention_dropout: float = 0.0  # dropout of a transformer's attention weights
    positions: Positions = "learned"  # vectors of positions, biases of distances (relative), both or none
    item_bias: bool = True  # learn a bias of each item's score beside its vector (see ids)
    objective: SequenceObjective = "next"  # predict each next item, or masked ones from both sides (BERT4Rec)
    mask_share: float = 0.2  # for masked: share of the items that are masked in training
    supervise: Supervise = "all"  # train on every item of a history, or only on the positive item
    loss: NextItemLoss = "softmax"  # or bce, gbce: sigmoids of the item and of others, drawn uniformly
    gbce_t: float = 0.75  # for gbce: 0 is bce, 1 makes a score's sigmoid the item's probability
    label_smoothing: float = 0.0  # for the full softmax: share of the target that all items have equally
    softmax: NextItemSoftmax = "full"  # softmax over the catalogue, or over sampled negatives
    negatives: int | None = None  # sampled: drawn by popularity, per batch (1024); bce, gbce: per item (1, 256)
    seen_items: SeenItems = "left_out"  # of the softmax, like in a ranking (mask_seen), or negatives
    cold_items: ColdItems = "negatives"  # left_out: items of no training example are in no softmax, so not learned away
    pooling: Pooling | None = None  # pooling of the backbone; null: the checkpoint's declared pooling
    augmented_by: ClassVar[tuple[str, ...]] = ()  # an instruction's vector is computed once

    @property
    def search_space(self) -> SearchSpace:
        space: dict[str, Range | Options] = {
            "optimizer.learning_rate": Range(2e-4, 1e-2, log=True),
            "task.dropout": Range(0.1, 0.6),
            "task.hidden_size": Options((64, 128, 256)),
            "task.num_layers": Options((1, 2, 3)),
        }
        if self.attention_dropout:
            space["task.attention_dropout"] = Range(0.05, 0.6)
        if self.loss == "gbce":
            space["task.gbce_t"] = Range(0.0, 1.0)
            if self.negatives is not None:  # else the settings as they are would be no point of the space
                space["task.negatives"] = Range(16, 512, log=True)
        if self.objective == "masked":
            space["task.mask_share"] = Range(0.1, 0.6)
        return space

    @property
    def factor_size(self) -> int:
        """Width of the vectors of co-occurrence: of what follows an item, and of what it follows."""
        return 2 * self.factors if self.ids else 0

    @property
    def is_masked(self) -> bool:
        return self.objective == "masked"

    @property
    def samples_softmax(self) -> bool:
        return self.loss == "softmax" and self.softmax == "sampled"

    @property
    def negative_count(self) -> int:
        return {"softmax": 1024, "bce": 1, "gbce": 256}[self.loss] if self.negatives is None else self.negatives

    @property
    def sequence_length(self) -> int:
        """Positions of the longest sequence: the instruction, the history, and a masked item."""
        return self.history_limit + 1 + self.is_masked

    def check(self, max_length: int) -> None:
        """Raises ValueError for settings out of range, that contradict each other or that would have no effect.

        max_length: data.max_length.
        """
        if self.history_limit < 1:
            raise ValueError(f"task.history_limit must be at least 1, but is {self.history_limit}.")
        if self.sequence_length > max_length:
            raise ValueError(
                f"data.max_length is {max_length}, but a sequence has task.history_limit + {1 + self.is_masked} = "
                f"{self.sequence_length} positions: raise data.max_length or lower task.history_limit."
            )
        if not (self.text or self.ids or self.pictures):
            raise ValueError(
                "task.text and task.ids are both false, so items would have no vectors: set one to true, or "
                "task.pictures."
            )
        for name, value, ends, fits in (
            ("negatives", self.negative_count, "at least 1", self.negative_count >= 1),
            ("mlp_factor", self.mlp_factor, "at least 1", self.mlp_factor >= 1),
            ("factors", self.factors, "at least 0", self.factors >= 0),
            ("dropout", self.dropout, "in [0, 1)", 0 <= self.dropout < 1),
            ("attention_dropout", self.attention_dropout, "in [0, 1)", 0 <= self.attention_dropout < 1),
            ("label_smoothing", self.label_smoothing, "in [0, 1)", 0 <= self.label_smoothing < 1),
            ("gbce_t", self.gbce_t, "in [0, 1]", 0 <= self.gbce_t <= 1),
            ("mask_share", self.mask_share, "in (0, 1]", 0 < self.mask_share <= 1),
        ):
            if not fits:
                raise ValueError(f"task.{name} must be {ends}, but is {value}.")
        self._check_effects()

    def _check_effects(self) -> None:
        default = {field.name: field.default for field in fields(self)}
        for name, (other, values) in HAVE_EFFECT.items():
            found = getattr(self, other)
            if getattr(self, name) != default[name] and found not in values:
                raise ValueError(
                    f"task.{name} has no effect with task.{other} {str(found).lower()}: leave task.{name} out."
                )
        if self.loss == "softmax" and self.seen_items == "left_out" and not self.mask_seen:
            raise ValueError(
                "task.mask_seen is false, so items of the history are ranked, but task.seen_items left_out does not "
                "train their scores: set task.seen_items to negatives."
            )
        if self.network == "gru" and self.positions in ("relative", "both"):
            raise ValueError("a GRU has no attention, so task.positions must be learned or none with task.network gru.")
        if self.network == "gru" and self.is_masked:
            raise ValueError(
                "a GRU reads in one direction, so task.objective masked needs task.network transformer or hstu."
            )
        if self.label_smoothing and (self.softmax == "sampled" or self.cold_items == "left_out"):
            raise ValueError(
                "task.label_smoothing gives each item of the catalogue a share, so it needs task.softmax full and "
                "task.cold_items negatives."
            )
