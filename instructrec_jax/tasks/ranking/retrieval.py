"""Dual-encoder retrieval: an instruction and the items of a catalogue become vectors; the closest items answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.adapters.checkpoint_heads import Source
from instructrec_jax.adapters.dual_encoder import RetrievalHead
from instructrec_jax.adapters.losses import cross_entropy
from instructrec_jax.backbones.layers import DropoutKeys
from instructrec_jax.data.loader import BatchTexts
from instructrec_jax.data.packing import max_segments
from instructrec_jax.ranking.catalogue import has_splits
from instructrec_jax.tasks.base import (
    Arrays,
    Encoded,
    LossInputs,
    Model,
    Predict,
    TaskConfig,
    TaskContext,
    in_microbatches,
    with_default_prompt,
)
from instructrec_jax.tasks.ranking.ranking_task import Pooling, RankingConfig, RankingTask, Target

ROW_ARRAYS = ("tokens", "token_types", "segment_ids", "positions", "text_numbers")

# Named, because --help shows a setting's comment only where its type is a plain name.
Softmax = Literal["in_batch", "sampled", "full"]


@TaskConfig.register_subclass("retrieval")
@dataclass
class RetrievalConfig(RankingConfig):
    """Find the item of a catalogue that answers an instruction."""

    softmax: Softmax = "in_batch"  # candidates that a positive competes with
    negatives: int = 64  # for sampled: further items drawn for each batch, shared by its examples
    log_q: bool = False  # for in_batch and sampled: correct scores for how often popular items are candidates
    refresh_every: int = 100  # for full: steps between recomputations of all item vectors
    projection: int | None = None  # width of the vectors; null: the backbone's, without a projection
    pooling: Pooling | None = None  # null: what the checkpoint declares
    temperature: float = 0.05  # initial temperature of the softmax; it is trained

    def build(self, context: TaskContext) -> "RetrievalTask":
        return RetrievalTask(self, with_default_prompt(context))


class RetrievalTask(RankingTask):
    couples_examples = True

    def __init__(self, config: RetrievalConfig, context: TaskContext):
        super().__init__(config, context)
        self.refresh_every = config.refresh_every if config.softmax == "full" else 0
        self.most_wanted = 1  # items of one training example
        if config.log_q and config.softmax == "full":
            raise ValueError("task.log_q corrects a sample of candidates; task.softmax full has all: set one of them.")
        if config.log_q and not has_splits(config.catalogue):
            raise ValueError(
                f"task.log_q needs to know how popular items are, but {config.catalogue} has no splits/train.jsonl: "
                "make the folder with `python -m instructrec_jax.prepare`, or leave log_q out."
            )
        _ = self.item_texts  # an item's text that is too long is an error now, not after the first epoch

    def model(self, source: Source) -> nnx.Module:
        head = RetrievalHead(
            source.config.hidden_size,
            self.config.projection,
            pooling=self.config.pooling or source.pooling.mode,
            temperature=self.config.temperature,
            rngs=source.rngs,
            dtype=source.dtype,
        )
        return Model(source.backbone, head)

    # -------------------------------------------------------------- host

    def prepare(self, train: Sequence[Encoded[Target]]) -> None:
        self.most_wanted = max(len(e.target.items) for e in train)

    def gather(self, encoded: Sequence[Encoded[Target]], rng: np.random.Generator) -> BatchTexts:
        """An example that wants several items learns one of them a visit, and never takes the others as negatives."""
        chosen = [e.target.items[0] if len(e.target.items) == 1 else rng.choice(e.target.items) for e in encoded]
        wanted, target = np.unique(chosen, return_inverse=True)
        items = wanted
        if self.config.softmax == "sampled":
            others = np.setdiff1d(np.arange(len(self.catalogue)), wanted, assume_unique=True)
            drawn = rng.choice(others, min(self.config.negatives, len(others)), replace=False)
            items = np.concatenate([wanted, drawn])
        # Equal targets share one text; the unused places keep the arrays' shapes the same in every batch.
        room = len(encoded) + (self.config.negatives if self.config.softmax == "sampled" else 0)
        missing = len(self.catalogue)  # a number that no item has
        candidates = np.full(room, missing, np.int32)
        candidates[: len(items)] = items
        allowed = np.stack([~np.isin(candidates, [*e.target.history, *e.target.items, missing]) for e in encoded])
        allowed[np.arange(len(encoded)), target] = True
        number_of_item = np.zeros(room, np.int64)
        number_of_item[: len(items)] = len(encoded) + np.arange(len(items))
        arrays = {"target": target.astype(np.int32), "allowed": allowed, "candidates": candidates}
        if self.config.log_q:
            arrays["log_q"] = np.zeros(room, np.float32)
            arrays["log_q"][: len(items)] = np.log(self._expected_counts(len(encoded), len(wanted))[items])
        most = max([self.most_wanted, *(len(e.target.items) for e in encoded)])
        if self.config.softmax == "full" and most > 1:
            arrays["also_wanted"] = np.full((len(encoded), most), missing, np.int32)
            for row, (e, item) in enumerate(zip(encoded, chosen, strict=True)):
                others = e.target.items[e.target.items != item]
                arrays["also_wanted"][row, : len(others)] = others
        return BatchTexts(
            texts=[e.text for e in encoded] + [self.item_texts[item] for item in items],
            per_example=arrays,
            slots={"query_slots": np.arange(len(encoded)), "candidate_slots": number_of_item},
        )

    def _expected_counts(self, examples: int, wanted: int) -> np.ndarray:
        """float64 [items]: how often an item is expected among a batch's candidates, where each stands once.

        Args:
          examples: of the batch.
          wanted: distinct items that they want.
        """
        counts = 1 - (1 - self.popularity) ** examples
        if self.config.softmax == "sampled":
            others = len(self.catalogue) - wanted
            counts += (1 - counts) * min(1, self.config.negatives / max(others, 1))
        return counts

    # -------------------------------------------------------------- device

    def predict(self, model: Any, batch: Arrays) -> jax.Array:
        """Unit vectors, float32 [rows, segments, vector]."""
        return self._vectors(model, batch, None)

    def _vectors(self, model: Any, batch: Arrays, dropout: DropoutKeys | None) -> jax.Array:
        hidden = model.hidden(batch, dropout)
        return model.head(hidden, batch["segment_ids"], max_segments(hidden.shape[1]))

    def loss(self, model: Any, batch: Arrays, inputs: LossInputs) -> tuple[jax.Array, jax.Array]:
        """Softmax cross-entropy of the wanted item among the candidates.

        Every example sees the candidates of the whole batch, on all devices and in all parts. With parts > 1 the
        texts go through the backbone part by part and again in the backward pass, so that only the vectors of the
        whole batch are held at once (cached representations; Gao et al., 2021, "Scaling Deep Contrastive Learning
        Batch Size under Memory Limited Setup").

        With log_q, s_i − log q_i takes the place of the score s_i of each candidate i, the wanted one included, so that
        the softmax over the candidates estimates the one over the catalogue (Bengio & Senécal, 2008; Yi et al., 2019,
        equation 3). q_i is the expected number of times that i is a candidate: 1 − (1 − p_i)^B for a batch of B
        examples whose wanted items are drawn by popularity p (training interactions plus one), equal ones counted
        once; "sampled" adds (1 − that) · negatives / (items − distinct wanted ones).
        """
        rows = {name: batch[name] for name in ROW_ARRAYS}
        vectors = in_microbatches(self._vectors, model, rows, inputs)
        vectors = vectors.reshape(-1, vectors.shape[-1])
        queries, live = vectors[batch["query_slots"]], vectors[batch["candidate_slots"]]
        scale = model.head.scale()
        if self.config.softmax == "full":
            # Fresh vectors for the batch's own items, remembered ones for the rest of the catalogue; as in SASRec's
            # full softmax, items of the history count as negatives too.
            table = inputs.buffers["item_vectors"].at[batch["candidates"]].set(live, mode="drop")
            logits = scale * queries @ table.T
            target = batch["candidates"][batch["target"]]
            if "also_wanted" in batch:
                rows_of = jnp.arange(len(queries))[:, None]
                logits = logits.at[rows_of, batch["also_wanted"]].set(-1e9, mode="drop")
        else:
            logits = scale * queries @ live.T
            if "log_q" in batch:
                logits = logits - batch["log_q"]
            logits = jnp.where(batch["allowed"], logits, -1e9)
            target = batch["target"]
        losses = cross_entropy(logits, target)
        return losses.sum(), jnp.float32(len(losses))

    def refresh(self, predict: Predict) -> dict[str, np.ndarray]:
        return {"item_vectors": self.item_vectors(predict)}

    def buffer_shapes(self, hidden_size: int) -> dict[str, tuple[int, ...]]:
        return {"item_vectors": (len(self.catalogue), self.config.projection or hidden_size)}

    def item_vectors(self, predict: Predict) -> np.ndarray:
        return np.stack(predict(self.item_texts))

    def query_vectors(self, predict: Predict, encoded: Sequence[Encoded[Target]]) -> np.ndarray:
        return np.stack(predict([e.text for e in encoded]))
