"""The settings of tasks that rank items; those of the task sequence are in `sequence_settings`."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from instructrec_jax.data.templates import TemplateName
from instructrec_jax.tasks.generation.writing_config import LanguageModelConfig, TrainOn
from instructrec_jax.tasks.search_space import Range, SearchSpace
from instructrec_jax.tasks.task_config import TaskConfig

# Named, because --help shows a setting's comment only where its type is a plain name.
Pooling = Literal["cls", "mean", "max", "mean_sqrt_len"]
Ties = Literal["average", "against"]
Softmax = Literal["in_batch", "sampled", "full"]
ItemInputs = Literal["text", "picture", "both"]
RerankerLoss = Literal["pointwise", "listwise"]
Draw = Literal["uniform", "popularity"]
Form = Literal["likelihood", "choice", "yes_no", "pairwise"]


@dataclass
class RankingConfig(TaskConfig):
    """Rank the items of a catalogue."""

    ranks_catalogue: ClassVar[bool] = True
    catalogue: str = "data/films"  # folder of the catalogue: items.parquet (columns id, title, text)
    protocols: list[str] = field(default_factory=lambda: ["full"])  # full, uni9, uni99, pop99, hard9, listed, FILE
    cutoffs: list[int] = field(default_factory=lambda: [1, 3, 5, 10, 20])  # k of HR@k and NDCG@k
    ties: Ties = "average"  # tied scores: mean over all orders, or against the positive item
    mask_seen: bool = True  # remove history items from the ranking, except positive items
    orders: int = 0  # rerankers: report the position bias over N orders of the candidates; 0: off


@TaskConfig.register_subclass("retrieval")
@dataclass
class RetrievalConfig(RankingConfig):
    """Find the items of a catalogue that fit an instruction, by vector similarity."""

    task_class = "ranking.retrieval:RetrievalTask"
    softmax: Softmax = "in_batch"  # negatives of a positive item: of the batch, sampled, or the whole catalogue
    negatives: int = 64  # for sampled: random items per batch, shared by its examples
    log_q: bool = False  # for in_batch and sampled: logQ correction for the popularity of candidates
    refresh_every: int = 100  # for full: steps between updates of all item vectors
    projection: int | None = None  # size of the vectors; null: the checkpoint's own projection, else none
    pooling: Pooling | None = None  # null: the checkpoint's declared pooling
    temperature: float = 0.05  # initial temperature of the softmax (trained)
    items: ItemInputs = "text"  # what an item is read by; pictures need a CLIP or SigLIP and the column image
    picture_folder: str = ""  # where paths of the catalogue's column `image` start; "": in the catalogue's folder

    @property
    def compares_images(self) -> bool:  # type: ignore[override]
        return self.items != "text"

    @property
    def search_space(self) -> SearchSpace:
        return {"task.temperature": Range(0.01, 0.2, log=True)}


@dataclass
class RerankingConfig(RankingConfig):
    """Rank given candidates."""

    protocols: list[str] = field(default_factory=lambda: ["uni99"])  # uni9, uni99, pop99, hard9, listed, FILE or full
    negatives: int = 4  # negatives per training example: of its candidates, else random items
    draw: Draw = "uniform"  # distribution of random negatives (items outside of the history)


@TaskConfig.register_subclass("reranker")
@dataclass
class RerankerConfig(RerankingConfig):
    """Rank candidates with a cross-encoder of the instruction and each item's text."""

    task_class = "ranking.reranker:RerankerTask"
    loss: RerankerLoss = "pointwise"  # pointwise: sigmoid per pair; listwise: softmax over an example's pairs
    item_length: int | None = None  # maximum tokens of an item's text, cut at the end; null: no limit


@TaskConfig.register_subclass("language_model_ranking")
@dataclass
class LanguageModelRankingConfig(RerankingConfig, LanguageModelConfig):
    """Rank candidates by their likelihood as answers under a language model."""

    task_class = "ranking.language_model_ranking:LanguageModelRankingTask"
    asks_about_images: ClassVar[bool] = False

    form: Form = "likelihood"  # of names; choice: with the candidates listed; yes_no per candidate; pairwise
    alpha: float = 1.0  # log-likelihoods are divided by (number of tokens) ** alpha; 0: not normalized
    end_token: bool = True  # score the end token of the answer with the name
    yes: str = "yes"  # answer of yes_no for a positive candidate
    no: str = "no"  # answer of yes_no for a negative candidate
    question: str | None = None  # question after the instruction in the other forms; null: a built-in question
    train_on: TrainOn = "completions"  # completions: names with their end tokens; all: every token (decoders only)


@TaskConfig.register_subclass("generative")
@dataclass
class GenerativeConfig(RankingConfig, LanguageModelConfig):
    """Recommend by writing the codes of an item (semantic ids)."""

    task_class = "ranking.generative:GenerativeTask"
    asks_about_images: ClassVar[bool] = False
    answers_are_text: ClassVar[bool] = False
    augmented_by: ClassVar[tuple[str, ...]] = ()  # codes in a prompt are no words

    beams: int = 50  # items found for an instruction, and prefixes of codes kept on the way
    history_limit: int = 20  # codes of the last N items of the history that the prompt ends with; 0: none
    train_on: TrainOn = "completions"  # completions: the codes with their end token; all: every token (decoders only)
    template: TemplateName = "plain"  # how a prompt is written; plain: the instruction alone
    max_target_length: int | None = None  # left out: an answer has one token for each level, and an end token

    def text_fields(self, task: str) -> tuple[str, ...]:
        return ()
