"""Dual-encoder retrieval: an instruction and the items of a catalogue become vectors; the closest items answer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.adapters.checkpoint_heads import Source
from instructrec_jax.adapters.dual_encoder import RetrievalHead
from instructrec_jax.adapters.losses import cross_entropy
from instructrec_jax.backbones.layers import DropoutKeys
from instructrec_jax.data.example import Example
from instructrec_jax.data.loader import Parts, Text
from instructrec_jax.data.packing import max_segments
from instructrec_jax.data.prompts import render
from instructrec_jax.metrics import ranking
from instructrec_jax.recommendation import baselines
from instructrec_jax.recommendation.catalogue import Catalogue, Splits, has_splits
from instructrec_jax.tasks.base import (
    Arrays,
    Encoded,
    Model,
    Predict,
    Scores,
    Task,
    TaskConfig,
    TaskContext,
    microbatches,
    tokenise,
)

ROW_ARRAYS = ("tokens", "token_types", "segment_ids", "positions", "text_numbers")
BLOCK = 512  # cases scored at a time: [BLOCK, items] is the largest array of an evaluation

# Named, because --help shows a setting's comment only where its type is a plain name.
Softmax = Literal["in_batch", "sampled", "full"]
Pooling = Literal["cls", "mean", "max", "mean_sqrt_len"]


@TaskConfig.register_subclass("retrieval")
@dataclass
class RetrievalConfig(TaskConfig):
    """Find the item of a catalogue that answers an instruction."""

    catalogue: str = "data/films"  # folder with items.parquet (columns id, title, text)
    softmax: Softmax = "in_batch"  # candidates that a positive competes with
    negatives: int = 64  # for sampled: further items drawn for each batch, shared by its examples
    refresh_every: int = 100  # for full: steps between recomputations of all item vectors
    projection: int | None = None  # width of the vectors; null: the backbone's, without a projection
    pooling: Pooling | None = None  # null: what the checkpoint declares
    temperature: float = 0.05  # initial temperature of the softmax; it is trained
    cutoffs: list[int] = field(default_factory=lambda: [10])  # k of HR@k, NDCG@k and MRR@k
    candidates: int = 0  # also rank each target among this many uniformly drawn unseen items; 0: do not

    def build(self, context: TaskContext) -> "RetrievalTask":
        return RetrievalTask(self, context)


@dataclass(frozen=True)
class Target:
    """The wanted item and the items already seen, as numbers in the catalogue."""

    item: int
    seen: np.ndarray


class RetrievalTask(Task):
    couples_examples = True

    def __init__(self, config: RetrievalConfig, context: TaskContext):
        self.config, self.context = config, context
        self.metric = f"NDCG@{max(config.cutoffs)}"
        self.catalogue = Catalogue.load(config.catalogue)
        names = [f"the text of item {item!r}" for item in self.catalogue.ids]
        texts = tokenise(self.catalogue.texts, names, context)
        if None in texts:
            raise ValueError("items cannot be dropped for their length: set data.truncate to left or right.")
        self.item_texts: list[Text] = [text for text in texts if text is not None]
        self.refresh_every = config.refresh_every if config.softmax == "full" else 0

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

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        names = [f"the instruction of example {example.id or number!r}" for number, example in enumerate(examples)]
        texts = tokenise([render(example) for example in examples], names, self.context)
        encoded = []
        for example, text, name in zip(examples, texts, names, strict=True):
            if not isinstance(example.output, str):
                raise ValueError(f"{name}: its output should be an item id, but is {example.output!r}.")
            if text is not None:
                try:
                    item, *seen = self.catalogue.numbers([example.output, *example.history])
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error
                encoded.append(Encoded(text, Target(int(item), np.array(seen, np.int32)), example))
        return encoded

    def gather(self, encoded: Sequence[Encoded], rng: np.random.Generator) -> Parts:
        wanted, target = np.unique([e.target.item for e in encoded], return_inverse=True)
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
        allowed = np.stack([~np.isin(candidates, [*e.target.seen, missing]) for e in encoded])
        allowed[np.arange(len(encoded)), target] = True
        number_of_item = np.zeros(room, np.int64)
        number_of_item[: len(items)] = len(encoded) + np.arange(len(items))
        return Parts(
            texts=[e.text for e in encoded] + [self.item_texts[item] for item in items],
            per_example={"target": target.astype(np.int32), "allowed": allowed, "candidates": candidates},
            slots={"query_slots": np.arange(len(encoded)), "candidate_slots": number_of_item},
        )

    # -------------------------------------------------------------- device

    def predict(self, model: Any, batch: Arrays) -> jax.Array:
        """Unit vectors, float32 [rows, segments, vector]."""
        return self._vectors(model, batch, None)

    def _vectors(self, model: Any, batch: Arrays, dropout: DropoutKeys | None) -> jax.Array:
        hidden = model.hidden(batch, dropout)
        return model.head(hidden, batch["segment_ids"], max_segments(hidden.shape[1]))

    def loss(
        self, model: Any, batch: Arrays, *, dropout: DropoutKeys | None, buffers: Arrays, parts: int
    ) -> tuple[jax.Array, jax.Array]:
        """Softmax cross-entropy of the wanted item among the candidates.

        Every example sees the candidates of the whole batch, on all devices and in all parts. With parts > 1 the
        texts go through the backbone part by part and again in the backward pass, so that only the vectors of the
        whole batch are held at once (cached representations; Gao et al., 2021, "Scaling Deep Contrastive Learning
        Batch Size under Memory Limited Setup").
        """
        rows = {name: batch[name] for name in ROW_ARRAYS}
        if parts == 1:
            vectors = self._vectors(model, rows, dropout)
        else:
            graphdef, params = nnx.split(model)

            @jax.checkpoint
            def part_vectors(part: tuple[Arrays, DropoutKeys | None]) -> jax.Array:
                return self._vectors(nnx.merge(graphdef, params), *part)

            keys = None if dropout is None else microbatches({"tokens": dropout.tokens}, parts)["tokens"]
            split = (microbatches(rows, parts), None if keys is None else DropoutKeys(keys))
            vectors = jnp.moveaxis(jax.lax.map(part_vectors, split), 0, 1)
        vectors = vectors.reshape(-1, vectors.shape[-1])
        queries, live = vectors[batch["query_slots"]], vectors[batch["candidate_slots"]]
        scale = model.head.scale()
        if self.config.softmax == "full":
            # Fresh vectors for the batch's own items, remembered ones for the rest of the catalogue; as in SASRec's
            # full softmax, items of the history count as negatives too.
            table = buffers["item_vectors"].at[batch["candidates"]].set(live, mode="drop")
            logits = scale * queries @ table.T
            target = batch["candidates"][batch["target"]]
        else:
            logits = jnp.where(batch["allowed"], scale * queries @ live.T, -1e9)
            target = batch["target"]
        losses = cross_entropy(logits, target)
        return losses.sum(), jnp.float32(len(losses))

    def refresh(self, predict: Predict) -> dict[str, np.ndarray]:
        return {"item_vectors": np.stack(predict(self.item_texts))}

    # -------------------------------------------------------------- evaluation

    def score(self, predict: Predict, encoded: Sequence[Encoded]) -> Scores:
        items = np.stack(predict(self.item_texts))
        queries = np.stack(predict([e.text for e in encoded]))
        return self.score_with(lambda block: queries[block] @ items.T, encoded)

    def score_with(self, score_block: Any, encoded: Sequence[Encoded]) -> Scores:
        """Ranks the wanted items by scores from any method, over the full catalogue, seen items masked.

        Args:
          score_block: slice of cases -> float [cases, items].
        """
        full, sampled, predictions = [], [], []
        rng = np.random.default_rng(self.context.seed)
        top = max(self.config.cutoffs)
        for start in range(0, len(encoded), BLOCK):
            block = slice(start, start + BLOCK)
            scores = np.asarray(score_block(block))
            targets = np.array([e.target.item for e in encoded[block]])
            # A repeated choice is a fair target: it competes although it was seen.
            seen = [e.target.seen[e.target.seen != e.target.item] for e in encoded[block]]
            full.append(ranking.target_ranks(scores, targets, seen))
            if self.config.candidates:
                sampled.append(self._sampled_ranks(scores, targets, seen, rng))
            predictions += self._answers(scores, seen, encoded[block], top)
        ranks = ranking.concatenate(full)
        metrics = {
            name: value
            for name, value in ranking.ranking_metrics(ranks, self.config.cutoffs).items()
            # At 1 all three are the same.
            if name == self.metric or not name.endswith("@1") or not name.startswith(("NDCG", "MRR"))
        }
        if sampled:
            extra = ranking.ranking_metrics(ranking.concatenate(sampled), self.config.cutoffs)
            metrics |= {f"{name} (1+{self.config.candidates})": value for name, value in extra.items()}
        cases = {f"NDCG@{k}": ranking.ndcg(ranks, k) for k in self.config.cutoffs}
        return Scores(metrics, cases, predictions)

    def _sampled_ranks(self, scores: np.ndarray, targets: np.ndarray, seen: list, rng: Any) -> ranking.Ranks:
        chosen = np.empty((len(targets), 1 + self.config.candidates), np.int64)
        for case, target in enumerate(targets):
            unseen = np.setdiff1d(np.arange(scores.shape[1]), [*seen[case], target])
            if len(unseen) < self.config.candidates:
                raise ValueError(
                    f"task.candidates is {self.config.candidates}, but only {len(unseen)} unseen items are left."
                )
            chosen[case] = [target, *rng.choice(unseen, self.config.candidates, replace=False)]
        picked = np.take_along_axis(scores, chosen, axis=1)
        return ranking.target_ranks(picked, np.zeros(len(targets), np.int64))

    def _answers(self, scores: np.ndarray, seen: list, encoded: Sequence[Encoded], top: int) -> list[dict[str, Any]]:
        masked = scores.astype(np.float32)
        for case, items in enumerate(seen):
            masked[case, items] = -np.inf
        order = np.argsort(-masked, axis=1, kind="stable")[:, :top]
        return [
            {
                "id": e.example.id,
                "instruction": e.example.instruction,
                "wanted": self.catalogue.name(e.target.item),
                "answers": [
                    {
                        "item": self.catalogue.ids[i],
                        "text": self.catalogue.name(i),
                        "score": float(masked[case, i]),
                    }
                    for i in order[case]
                    if np.isfinite(masked[case, i])
                ],
                "origin": dict(e.example.origin),
            }
            for case, e in enumerate(encoded)
        ]

    def baselines(self, train: Sequence[Encoded], test: Sequence[Encoded]) -> dict[str, Scores]:
        """BM25 on the words; popularity, Markov-1 and coKNN where the folder has training sequences."""
        methods: list[baselines.Baseline] = [baselines.BM25(self.catalogue.texts)]
        sequences: list[np.ndarray] = []
        if has_splits(self.config.catalogue):
            sequences = Splits.load(self.config.catalogue, self.catalogue).train
            methods = [baselines.Popularity(), baselines.Markov(), baselines.CoOccurrence(), *methods]
        return {method.name: self._baseline(method, sequences, test) for method in methods}

    def _baseline(self, method: Any, sequences: list[np.ndarray], test: Sequence[Encoded]) -> Scores:
        method.fit(sequences, len(self.catalogue))
        histories, words = [e.target.seen for e in test], [render(e.example) for e in test]
        return self.score_with(lambda block: method.score(histories[block], words[block]), test)

    def showcase(self, predict: Predict, encoded: Sequence[Encoded]) -> list[dict[str, Any]]:
        chosen = [encoded[i] for i in np.random.default_rng(self.context.seed).permutation(len(encoded))[:5]]
        records = self.score(predict, chosen).predictions
        return [record | {"answers": record["answers"][:5]} for record in records]
