"""Cross-encoder: a network reads the instruction and one item's text together and scores the pair.

It costs more than a dual encoder, which encodes each item once, but every layer attends to both texts (Nogueira & Cho,
2019, "Passage Re-ranking with BERT"). So it ranks given candidates, or the results of a retriever.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Encoding

from instructrec_jax.adapters.checkpoint_heads import Source, task_head
from instructrec_jax.adapters.losses import binary_cross_entropy
from instructrec_jax.adapters.soft_targets import SoftOutputs
from instructrec_jax.backbones.layers import DropoutKeys
from instructrec_jax.data.batch import Batch, BatchTexts, PerExample, Text, TextNumbers
from instructrec_jax.data.example import Example
from instructrec_jax.data.packing import max_segments
from instructrec_jax.data.prompts import check_fast, render
from instructrec_jax.tasks.base import Encoded, LossInputs, Model, Network, TaskContext, in_microbatches
from instructrec_jax.tasks.objective import Choice, Objective
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.ranking.ranking_config import RerankerConfig, RerankingConfig
from instructrec_jax.tasks.ranking.ranking_task import RankingTask, Target
from instructrec_jax.tasks.targets import TextTargets
from instructrec_jax.tasks.texts import knows_pairs

MOST_ITEMS = 1000  # largest catalogue that can be ranked as a whole
PAIRS = 4096  # texts scored at a time


class RerankingTask(RankingTask):
    """Base of the tasks that score (instruction, item) pairs: subclasses implement `score_candidates`."""

    has_vectors = False

    def __init__(self, config: RerankingConfig, context: TaskContext):
        # A small catalogue can be ranked as a whole, as one list of candidates.
        self.retrieves = "full" in config.protocols
        super().__init__(config, context)
        if self.retrieves and len(self.catalogue) > MOST_ITEMS:
            raise ValueError(
                f"task.protocols lists full, but the catalogue has {len(self.catalogue):,} items, and this task, which "
                f"reads all of them for each case, allows {MOST_ITEMS:,}. Use protocols with candidates (uni99, pop99, "
                "hard9, listed), or rerank the results of a retrieval run (evaluate --rerank)."
            )
        if config.negatives < 1:
            raise ValueError(f"task.negatives must be at least 1, but is {config.negatives}.")

    def score_items(self, predict: Predict, encoded: Sequence[Encoded[Target]]) -> Callable[[slice], np.ndarray]:
        every = np.arange(len(self.catalogue), dtype=np.int32)

        def score_block(block: slice) -> np.ndarray:
            chosen = encoded[block]
            return self.score_candidates(predict, chosen, np.broadcast_to(every, (len(chosen), len(every))))

        return score_block

    def negatives(self, e: Encoded[Target], rng: np.random.Generator) -> np.ndarray:
        """int [n]: up to `negatives` distinct negatives of an example, in random order.

        They are its own candidates, else random items that are neither positive nor in the history.
        """
        count = self.config.negatives
        if e.example.candidates:
            own = np.setdiff1d(self.catalogue.numbers(e.example.candidates), e.target.items)
            return rng.permutation(own)[:count]
        excluded = np.union1d(e.target.items, e.target.history)
        count = min(count, len(self.catalogue) - len(excluded))
        if self.config.draw == "popularity":
            chances = self.popularity.copy()
            chances[excluded] = 0
            return rng.choice(len(chances), count, replace=False, p=chances / chances.sum())
        # the n-th item that is not excluded, without listing all items
        drawn = rng.choice(len(self.catalogue) - len(excluded), count, replace=False)
        return drawn + np.searchsorted(excluded - np.arange(len(excluded)), drawn, side="right")


# ---------------------------------------------------------------- the cross-encoder


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PairLists:
    """The pairs of each example, the positive item's first.

    Attributes:
      pairs: [examples, items], the texts of the pairs.
      present: bool [examples, items], False where a shorter list ends.
    """

    pairs: TextNumbers
    present: PerExample


class RerankerTask(RerankingTask):
    """A pair is encoded as the tokenizer's own text pair: [CLS] instruction [SEP] item [SEP] in BERT.

    If the tokenizer has no separator for pairs, its sep_token, else a line break, separates the texts.
    """

    needs_pooler = True
    reads_unlabeled = True
    labels = ["LABEL_0"]  # name of the head's output in HuggingFace's cross-encoders

    def __init__(self, config: RerankerConfig, context: TaskContext):
        super().__init__(config, context)
        self.couples_examples = config.loss == "listwise"  # a list's texts may lie in several micro-batches
        check_fast(context.tokenizer)
        if config.item_length is not None and config.item_length < 1:
            raise ValueError(f"task.item_length must be at least 1, but is {config.item_length}.")
        longest = int(np.argmax([len(item) for item in self.items]))
        around = len(self._join(self._pieces(["a"])[0], self.items[longest]).tokens) - 1
        self.room = context.max_length - around
        if self.room < 1:
            raise ValueError(
                f"the text of item {self.catalogue.ids[longest]!r} has {len(self.items[longest])} tokens, which leaves "
                f"no room for an instruction in data.max_length ({context.max_length}): raise it, or limit item texts "
                "with task.item_length."
            )

    def model(self, source: Source) -> Model:
        return Model(source.backbone, task_head(source, "sequence", labels=self.labels))

    # -------------------------------------------------------------- host

    def _pieces(self, texts: Sequence[str]) -> list[Encoding]:
        """The tokens of texts, without special tokens."""
        texts = [text.lower() for text in texts] if self.context.lower_case else list(texts)
        pieces = self.context.tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False).encodings
        assert pieces is not None  # of a fast tokenizer
        return pieces

    @cached_property
    def items(self) -> list[Encoding]:
        """The tokens of each item's text."""
        pieces = self._pieces(self.catalogue.texts)
        for item, piece in zip(self.catalogue.ids, pieces, strict=True):
            if not len(piece):
                raise ValueError(f"the text of item {item!r} has no tokens: add a text in items.parquet.")
        if self.config.item_length is not None:
            long = [piece for piece in pieces if len(piece) > self.config.item_length]
            for piece in long:
                piece.truncate(self.config.item_length)
            if long:
                self.context.counts["item texts cut"] = len(long)
        return pieces

    @cached_property
    def _between(self) -> Encoding | None:
        """The separator of instruction and item, if the tokenizer has none for pairs."""
        if knows_pairs(self.context.tokenizer):
            return None
        for separator in (self.context.tokenizer.sep_token, "\n"):
            if separator and len(piece := self._pieces([separator])[0]):
                return piece
        raise ValueError(
            "the tokenizer has no separator for text pairs, no sep_token and no token for a line break to separate "
            "instruction and item: set sep_token in its files."
        )

    def _join(self, instruction: Encoding, item: Encoding) -> Text:
        backend = self.context.tokenizer.backend_tokenizer
        if self._between is None:
            both = backend.post_process(instruction, item)
        else:
            both = backend.post_process(Encoding.merge([instruction, self._between, item], growing_offsets=False))
        has_types = "token_type_ids" in self.context.tokenizer.model_input_names
        return Text(np.array(both.ids, np.int32), np.array(both.type_ids, np.int32) if has_types else None)

    def encode(self, examples: Sequence[Example]) -> list[Encoded[Target]]:
        """The text of each example is its instruction alone.

        An instruction is too long if the longest item's text does not fit beside it. It is cut alike for all items, so
        that they are compared on the same text.
        """
        context = self.context
        encoded = []
        for number, (example, piece) in enumerate(
            zip(examples, self._pieces(list(map(render, examples))), strict=True)
        ):
            name = f"the instruction of example {example.id or number!r}"
            target = self.target(example, name)
            if not len(piece):
                raise ValueError(f"{name} has no tokens.")
            if len(piece) > self.room:
                if context.truncate == "error":
                    raise ValueError(
                        f"{name} has {len(piece)} tokens, but data.max_length ({context.max_length}) leaves room for "
                        f"{self.room} beside the longest item's text. Raise it, limit item texts with "
                        "task.item_length, or set data.truncate to left, right or drop."
                    )
                label = f"instructions {'dropped' if context.truncate == 'drop' else 'cut'}"
                context.count(label, 1)
                if context.truncate == "drop":
                    continue
                self._cut(piece)
            encoded.append(Encoded(Text(np.array(piece.ids, np.int32)), target, example))
        return encoded

    def _cut(self, piece: Encoding) -> None:
        piece.truncate(self.room, direction="left" if self.context.truncate == "left" else "right")

    def pairs(self, encoded: Sequence[Encoded[Target]], items: Sequence[np.ndarray]) -> list[Text]:
        """The pair texts of each example with its `items` (numbers), concatenated."""
        instructions = self._pieces([render(e.example) for e in encoded]) if encoded else []
        for piece in instructions:
            if len(piece) > self.room:
                self._cut(piece)
        return [
            self._join(piece, self.items[item])
            for piece, chosen in zip(instructions, items, strict=True)
            for item in chosen.tolist()
        ]

    def free_pairs(self, query: str, documents: Sequence[str]) -> list[Text]:
        """The pair texts of an instruction with texts that need not be in the catalogue.

        Documents are limited by task.item_length, as items are; with data.truncate left or right, a pair that is too
        long loses the end of its document, and an instruction that is too long is cut as in `encode`.

        Raises ValueError for a text without tokens, or a pair that is longer than data.max_length otherwise.
        """
        context, cuts = self.context, self.context.truncate in ("left", "right")
        asked, *pieces = self._pieces([render(Example(instruction=query)), *documents])
        if not len(asked):
            raise ValueError("the query has no tokens.")
        if cuts and len(asked) > self.room:
            self._cut(asked)
        found = []
        for number, piece in enumerate(pieces):
            if not len(piece):
                raise ValueError(f"document {number} has no tokens.")
            if self.config.item_length is not None:
                piece.truncate(self.config.item_length)
            text = self._join(asked, piece)
            over = len(text.tokens) - context.max_length
            if over > 0 and not (cuts and over < len(piece)):
                raise ValueError(
                    f"query and document {number} have {len(text.tokens)} tokens together, but the run reads at most "
                    f"{context.max_length} (data.max_length): shorten them."
                )
            if over > 0:
                piece.truncate(len(piece) - over)
                context.count("documents cut", 1)
                text = self._join(asked, piece)
            found.append(text)
        return found

    def gather(self, encoded: Sequence[Encoded[Target]], rng: np.random.Generator) -> BatchTexts:
        """The pairs of each example with a positive item (drawn, if it has several) and its negatives."""
        size = 1 + self.config.negatives
        lists = [np.append(rng.choice(e.target.items), self.negatives(e, rng)) for e in encoded]
        lengths = np.array([len(items) for items in lists])
        texts = self.pairs(encoded, lists)
        first = np.cumsum(lengths) - lengths
        if self.config.loss == "pointwise":
            targets = np.zeros(len(texts), np.float32)
            targets[first] = 1
            return BatchTexts(texts, TextTargets(targets, np.ones(len(texts), np.float32)))
        present = np.arange(size) < lengths[:, None]
        numbers = np.where(present, first[:, None] + np.arange(size), first[:, None])
        return BatchTexts(texts, PairLists(numbers, present))

    def objectives(self, predict: Predict, encoded: Encoded[Target], choice: Choice) -> list[Objective]:
        """The score of one item; the network reads it beside the instruction, whose words are explained.

        By default it is the best candidate of the example, or of the catalogue where the task ranks all of it.
        """
        if choice.against is not None:
            raise ValueError("a cross-encoder reads one item at a time: leave out --against, and explain both items.")

        def best() -> int:
            if not encoded.example.candidates and not self.retrieves:
                raise ValueError("the run ranks given candidates only: name the item to explain with --target.")
            return self.recommended(predict, encoded)

        item, _ = items = self.explained_items(choice, best)

        def pair(e: Encoded[Target]) -> Encoded[Target]:
            return replace(e, text=self.pairs([e], [np.array([item])])[0])

        return [replace(self.objective(items, np.ones((), np.float32), "score"), text=pair)]

    # -------------------------------------------------------------- device

    def predict(self, model: Network, batch: Batch) -> jax.Array:
        """float32 [rows, segments]: the score of each pair."""
        return self._scores_of(model, batch, None)

    def _scores_of(self, model: Network, batch: Batch, dropout: DropoutKeys | None) -> jax.Array:
        hidden = model.hidden(batch, dropout)
        segments = max_segments(hidden.shape[1])
        return model.head(model.backbone, hidden, batch.texts.segment_ids, segments, dropout=dropout)[..., 0]

    def loss(
        self, model: Network, batch: Batch[TextTargets | PairLists], inputs: LossInputs
    ) -> tuple[jax.Array, jax.Array]:
        """Pointwise: sigmoid cross-entropy of each pair, 1 for a positive item. Listwise: softmax cross-entropy of the
        positive item among the example's items (ListNet's top-one loss with one relevant item; Cao et al., 2007).

        A list's pairs may lie in several micro-batches, so the network runs one micro-batch at a time (and again in the
        backward pass), and the softmax is over the scores of all.
        """
        own = batch.own
        if isinstance(own, TextTargets):
            scores = self._scores_of(model, batch, inputs.dropout)
            each = binary_cross_entropy(scores[..., None], own.targets[..., None])
            return jnp.sum(each * own.weights), jnp.sum(own.weights)
        scores = in_microbatches(self._scores_of, model, batch.without_own, inputs)
        logits = jnp.where(own.present, scores.reshape(-1)[own.pairs], -jnp.inf)
        return jnp.sum(jax.nn.logsumexp(logits, -1) - logits[:, 0]), jnp.float32(len(logits))

    def soft_outputs(
        self, model: Network, batch: Batch[TextTargets | PairLists], inputs: LossInputs
    ) -> list[SoftOutputs]:
        """Pointwise: whether each pair matches. Listwise: the positive item among the example's items."""
        own = batch.own
        if isinstance(own, TextTargets):
            return [SoftOutputs("labels", self._scores_of(model, batch, inputs.dropout)[..., None], own.weights)]
        scores = in_microbatches(self._scores_of, model, batch.without_own, inputs)
        logits = jnp.where(own.present, scores.reshape(-1)[own.pairs], -1e9)
        return [SoftOutputs("classes", logits, jnp.ones(len(logits)))]

    # -------------------------------------------------------------- scores

    def check(self, encoded: Sequence[Encoded[Target]]) -> None:
        super().check(encoded)
        self.pairs(encoded, [e.target.items for e in encoded])

    def score_candidates(
        self, predict: Predict, encoded: Sequence[Encoded[Target]], candidates: np.ndarray
    ) -> np.ndarray:
        found = [np.empty((0, candidates.shape[1]), np.float32)]
        cases = max(1, PAIRS // max(1, candidates.shape[1]))
        for start in range(0, len(encoded), cases):
            block = slice(start, start + cases)
            texts = self.pairs(encoded[block], list(candidates[block]))
            scores = predict.once(texts)
            found.append(np.array(scores, np.float32).reshape(-1, candidates.shape[1]))
        return np.concatenate(found)
