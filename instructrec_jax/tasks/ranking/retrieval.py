"""Dual-encoder retrieval: instructions and items as vectors, ranked by similarity.

A pair of networks (CLIP, SigLIP) also reads the items' pictures: an item is its text, its picture, or both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from instructrec_jax.adapters.checkpoint_heads import Source, vector_head, vector_size
from instructrec_jax.adapters.losses import cross_entropy
from instructrec_jax.adapters.pair_head import PairVectorHead
from instructrec_jax.adapters.soft_targets import SoftOutputs
from instructrec_jax.arrays import Array
from instructrec_jax.backbones.folder import read_pooling
from instructrec_jax.backbones.layers import DropoutKeys
from instructrec_jax.data.batch import Batch, BatchTexts, PerExample, Text, TextNumbers
from instructrec_jax.data.media.picture import Picture
from instructrec_jax.data.media.text_images import TextImages
from instructrec_jax.data.packing import max_segments
from instructrec_jax.ranking.catalogue import has_splits
from instructrec_jax.ranking.item_pictures import item_pictures, looks_like, picture_folder
from instructrec_jax.tasks.base import Encoded, LossInputs, Model, Network, TaskContext, in_microbatches
from instructrec_jax.tasks.captions import Captions, beside_image, image_alone
from instructrec_jax.tasks.objective import Choice, Objective
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.ranking.ranking_config import RetrievalConfig
from instructrec_jax.tasks.ranking.ranking_task import RankingTask, Target
from instructrec_jax.tasks.texts import with_default_prompt


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ItemCandidates:
    """The instructions and candidate items of a batch.

    Attributes:
      queries: [examples], the texts of the instructions.
      vectors: [candidates], the texts of the candidates.
      items: int32 [candidates], their numbers in the catalogue; its size marks an unused place.
      allowed: bool [examples, candidates], the positive item and the negatives of each example.
      target: int32 [examples], the positive item's place among the candidates.
      log_q: float32 [candidates], log of the expected counts, with `task.log_q`.
      other_positives: int32 [examples, positives], the items that are no negatives; the catalogue's size fills rows.
    """

    queries: TextNumbers
    vectors: TextNumbers
    items: PerExample
    allowed: PerExample
    target: PerExample
    log_q: PerExample | None
    other_positives: PerExample | None


class RetrievalTask(RankingTask):
    """A dual encoder trained by a softmax over items: see `loss`."""

    couples_examples = True
    reads_unlabeled = True

    def __init__(self, config: RetrievalConfig, context: TaskContext):
        context = with_default_prompt(context)
        super().__init__(config, context)
        self.refresh_every = config.refresh_every if config.softmax == "full" else 0
        self._captions = None if config.items == "text" else self._pair(context)
        if self._captions is None:
            declared = None if context.folder is None else read_pooling(context.folder).projection
            self.size = vector_size(config.projection, declared)  # None: the backbone's
        self._known_pictures: tuple[Predict, np.ndarray] | None = None
        self._most_positives = 1  # maximum positive items of a training example
        if config.log_q and config.softmax == "full":
            raise ValueError(
                "task.log_q corrects sampled candidates, but task.softmax full uses all items: leave log_q out."
            )
        if config.log_q and not has_splits(config.catalogue):
            raise ValueError(
                f"task.log_q needs the popularity of items, but {config.catalogue} has no splits/train.jsonl: make the "
                "folder with `python -m instructrec_jax.prepare`, or leave log_q out."
            )
        _ = self.item_texts  # raises for an item's text that is too long now, not in the first evaluation

    def _pair(self, context: TaskContext) -> Captions:
        for name, value in (("projection", self.config.projection), ("pooling", self.config.pooling)):
            if value is not None:
                raise ValueError(f"task.{name} is set, but a pair of networks (task.items) has its own: leave it out.")
        captions = Captions.of(context)
        self.size = captions.spec.text_width or captions.spec.text.hidden_size
        return captions

    def model(self, source: Source) -> Model:
        if self._captions is not None:
            return Model(source.backbone, PairVectorHead(temperature=self.config.temperature))
        head = vector_head(source, self.config.projection, self.config.pooling, self.config.temperature)
        return Model(source.backbone, head)

    # -------------------------------------------------------------- host

    def tokenize(self, texts: Sequence[str], names: Sequence[str]) -> list[Text | None]:
        return super().tokenize(texts, names) if self._captions is None else self._captions.tokens(texts, names)

    def read_items(self) -> list[Text]:
        """The tokens of each item's text, with its picture beside them or in their place."""
        if self._captions is None or self.config.items == "both":
            texts = super().read_items()
            return [self._beside(text, picture) for text, picture in zip(texts, self._pictures, strict=True)]
        lacking = [item for item, picture in zip(self.catalogue.ids, self._pictures, strict=True) if picture is None]
        if lacking:
            raise ValueError(
                f"item {lacking[0]!r} has no picture (column image), and task.items is picture, so it would have no "
                "vector: give it a picture, leave it out of the catalogue, or set task.items to both."
            )
        return [image_alone(self._read_as(picture)) for picture in self._pictures if picture is not None]

    @cached_property
    def _pictures(self) -> list[Picture | None]:
        if self._captions is None:
            return [None] * len(self.catalogue)
        return item_pictures(self.catalogue, picture_folder(self.config.catalogue, self.config.picture_folder))

    def _beside(self, text: Text, picture: Picture | None) -> Text:
        return text if picture is None else beside_image(text, self._read_as(picture))

    def _read_as(self, picture: Picture) -> TextImages:
        assert self.context.pixels is not None
        return TextImages.alone((picture,), self.context.pixels)

    def _check_pictures(self) -> None:
        """Raises ValueError, naming the item, for a picture that cannot be read."""
        assert self.context.pixels is not None or not any(self._pictures)
        for item, picture in zip(self.catalogue.ids, self._pictures, strict=True):
            try:
                if picture is not None and self.context.pixels is not None:
                    self.context.pixels(picture)
            except ValueError as error:
                raise ValueError(
                    f"item {item!r}: {error} Replace the file, or leave its column image empty."
                ) from error

    def prepare(self, train: Sequence[Encoded[Target]]) -> None:
        self._most_positives = max(len(e.target.items) for e in train)
        self._check_pictures()

    def gather(self, encoded: Sequence[Encoded[Target]], rng: np.random.Generator) -> BatchTexts:
        """Of several positive items, each visit of an example draws one; the others are never negatives."""
        chosen = [e.target.items[0] if len(e.target.items) == 1 else rng.choice(e.target.items) for e in encoded]
        positives, target = np.unique(chosen, return_inverse=True)
        items = positives
        if self.config.softmax == "sampled":
            others = np.setdiff1d(np.arange(len(self.catalogue)), positives, assume_unique=True)
            drawn = rng.choice(others, min(self.config.negatives, len(others)), replace=False)
            items = np.concatenate([positives, drawn])
        # Equal targets share one text; unused slots keep the arrays' shapes equal in all batches.
        room = len(encoded) + (self.config.negatives if self.config.softmax == "sampled" else 0)
        missing = len(self.catalogue)  # marks an unused slot
        candidates = np.full(room, missing, np.int32)
        candidates[: len(items)] = items
        allowed = np.stack([~np.isin(candidates, [*e.target.history, *e.target.items, missing]) for e in encoded])
        allowed[np.arange(len(encoded)), target] = True
        number_of_item = np.zeros(room, np.int64)
        number_of_item[: len(items)] = len(encoded) + np.arange(len(items))
        log_q = other_positives = None
        if self.config.log_q:
            log_q = np.zeros(room, np.float32)
            log_q[: len(items)] = np.log(self._expected_counts(len(encoded), len(positives))[items])
        most = max([self._most_positives, *(len(e.target.items) for e in encoded)])
        if self.config.softmax == "full" and most > 1:
            other_positives = np.full((len(encoded), most), missing, np.int32)
            for row, (e, item) in enumerate(zip(encoded, chosen, strict=True)):
                others = e.target.items[e.target.items != item]
                other_positives[row, : len(others)] = others
        return BatchTexts(
            texts=[e.text for e in encoded] + [self.item_texts[item] for item in items],
            own=ItemCandidates(
                queries=np.arange(len(encoded)),
                vectors=number_of_item,
                items=candidates,
                allowed=allowed,
                target=target.astype(np.int32),
                log_q=log_q,
                other_positives=other_positives,
            ),
        )

    def _expected_counts(self, examples: int, positives: int) -> np.ndarray:
        """float64 [items]: expected number of times that an item is among a batch's (distinct) candidates.

        Args:
          examples: number of examples in the batch.
          positives: number of their distinct positive items.
        """
        counts = 1 - (1 - self.popularity) ** examples
        if self.config.softmax == "sampled":
            others = len(self.catalogue) - positives
            counts += (1 - counts) * min(1, self.config.negatives / max(others, 1))
        return counts

    # -------------------------------------------------------------- device

    def predict(self, model: Network, batch: Batch) -> jax.Array:
        """Unit vectors, float32 [rows, segments, vector]."""
        return self._vectors(model, batch, None)

    def _vectors(self, model: Network, batch: Batch, dropout: DropoutKeys | None) -> jax.Array:
        hidden = model.hidden(batch, dropout)
        segments = max_segments(hidden.shape[1])
        if self._captions is not None:
            return model.head(hidden, batch.texts.segment_ids, batch.images, segments)
        return model.head(hidden, batch.texts.segment_ids, segments)

    def loss(self, model: Network, batch: Batch[ItemCandidates], inputs: LossInputs) -> tuple[jax.Array, jax.Array]:
        """Softmax cross-entropy of the positive item among the candidates.

        Candidates are those of the whole batch, on all devices and in all micro-batches. With several micro-batches
        the backbone runs one at a time, and again in the backward pass, so that memory holds only the vectors of the
        whole batch (gradient caching; Gao et al., 2021, "Scaling Deep Contrastive Learning Batch Size under Memory
        Limited Setup").

        With log_q, s_i − log q_i replaces the score s_i of each candidate i, the positive included, so that the softmax
        over the candidates estimates that over the catalogue (Bengio & Senécal, 2008; Yi et al., 2019, equation 3).
        q_i is the expected number of times that i is a candidate: 1 − (1 − p_i)^B for a batch of B examples with
        positives drawn by popularity p (training interactions plus one), duplicates counted once; "sampled" adds
        (1 − that) · negatives / (items − distinct positives).
        """
        logits, target = self._logits_and_targets(model, batch, inputs)
        losses = cross_entropy(logits, target)
        return losses.sum(), jnp.float32(len(losses))

    def soft_outputs(self, model: Network, batch: Batch[ItemCandidates], inputs: LossInputs) -> list[SoftOutputs]:
        logits, _ = self._logits_and_targets(model, batch, inputs)
        return [SoftOutputs("classes", logits, jnp.ones(len(logits)))]

    def _logits_and_targets(
        self, model: Network, batch: Batch[ItemCandidates], inputs: LossInputs
    ) -> tuple[jax.Array, Array]:
        """Logits [examples, candidates], and the positive item's place among them."""
        own, vectors = batch.own, in_microbatches(self._vectors, model, batch.without_own, inputs)
        vectors = vectors.reshape(-1, vectors.shape[-1])
        queries, live = vectors[own.queries], vectors[own.vectors]
        scale = model.head.scale()
        if self.config.softmax == "full":
            # Current vectors for the batch's own items, buffered ones for the rest of the catalogue; as in SASRec's
            # full softmax, history items are negatives too.
            table = inputs.buffers["item_vectors"].at[own.items].set(live, mode="drop")
            logits = scale * queries @ table.T
            target: Array = own.items[own.target]
            if own.other_positives is not None:
                rows_of = jnp.arange(len(queries))[:, None]
                logits = logits.at[rows_of, own.other_positives].set(-1e9, mode="drop")
        else:
            logits = scale * queries @ live.T
            if own.log_q is not None:
                logits = logits - own.log_q
            logits = jnp.where(own.allowed, logits, -1e9)
            target = own.target
        return logits, target

    def refresh(self, predict: Predict) -> dict[str, np.ndarray]:
        return {"item_vectors": self.item_vectors(predict)}

    def buffer_shapes(self, hidden_size: int) -> dict[str, tuple[int, ...]]:
        return {"item_vectors": (len(self.catalogue), self.size or hidden_size)}

    def item_vectors(self, predict: Predict) -> np.ndarray:
        return np.stack(predict(self.item_texts))

    def looks_like(self, predict: Predict, picture: Picture, name: str) -> np.ndarray:
        if self._captions is None:
            return super().looks_like(predict, picture, name)
        assert self.context.pixels is not None
        try:
            self.context.pixels(picture)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        member = predict.each[0]
        (vector,) = member.once([image_alone(self._read_as(picture))])
        return looks_like(vector, self._picture_vectors(member))

    def _picture_vectors(self, predict: Predict) -> np.ndarray:
        """float32 [items, size]: of the pictures alone, zeros for an item without one; kept for the last model."""
        if self._known_pictures is None or self._known_pictures[0] is not predict:
            there = [number for number, picture in enumerate(self._pictures) if picture is not None]
            texts = [image_alone(self._read_as(each)) for each in self._pictures if each is not None]
            vectors = np.zeros((len(self.catalogue), self.size or 0), np.float32)
            if texts:
                vectors[there] = np.stack(predict.once(texts))
            self._known_pictures = predict, vectors
        return self._known_pictures[1]

    def objectives(self, predict: Predict, encoded: Encoded[Target], choice: Choice) -> list[Objective]:
        """The score of an item (by default the best), less that of another; the items' vectors are constants."""
        vectors = self.item_vectors(predict)
        target, against = items = self.explained_items(choice, lambda: self.recommended(predict, encoded))
        weights = vectors[target] if against is None else vectors[target] - vectors[against]
        return [self.objective(items, weights, "score")]

    def query_vectors(self, predict: Predict, encoded: Sequence[Encoded[Target]]) -> np.ndarray:
        return np.stack([np.array(output) for _, output in predict.over(encoded)])
