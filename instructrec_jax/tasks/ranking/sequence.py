"""Next-item recommendation: a history as a sequence of item vectors, prefixed with the instruction's vector.

The frozen backbone (tune it before, as a dual encoder) encodes item texts and distinct instructions once, into the
state's buffers (`refresh`); a frozen network of images does so with the items' pictures. Training fits the head, a
small causal transformer, by a softmax over the catalogue.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from instructrec_jax.adapters.checkpoint_heads import Source
from instructrec_jax.adapters.dual_encoder import unit_length
from instructrec_jax.adapters.heads import pool_segments
from instructrec_jax.adapters.losses import linear_cross_entropy
from instructrec_jax.adapters.next_item import MASK, NextItemHead, NextItemSpec
from instructrec_jax.adapters.next_item_losses import gbce_power, sampled_sigmoid, sampled_softmax, scores_of
from instructrec_jax.adapters.soft_targets import SoftOutputs
from instructrec_jax.backbones.folder import read_pooling
from instructrec_jax.backbones.layers import DropoutKeys
from instructrec_jax.data.batch import Array, Batch, BatchTexts, Rows, Text, Whole, end_to_end
from instructrec_jax.data.codec import storable
from instructrec_jax.data.example import Example
from instructrec_jax.data.media.picture import Picture
from instructrec_jax.data.packing import max_segments
from instructrec_jax.data.prompts import render
from instructrec_jax.ranking.item_factors import item_factors
from instructrec_jax.ranking.item_pictures import ItemPictures, PictureNetwork, looks_like, picture_folder
from instructrec_jax.tasks.base import Encoded, LossInputs, Model, Network, TaskContext, in_microbatches, name_of
from instructrec_jax.tasks.objective import Choice, Objective
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.ranking.next_items import (
    NegativeSample,
    NextItems,
    masked_items,
    next_items,
    uniform_negatives,
)
from instructrec_jax.tasks.ranking.ranking_task import RankingTask, Target
from instructrec_jax.tasks.ranking.sequence_settings import SequenceConfig
from instructrec_jax.tasks.texts import tokenize, with_default_prompt

logger = logging.getLogger(__name__)

TABLES = (64, 1024)  # rows of the table of instruction vectors of a call: each size is compiled
LEFT_OUT = -1e9  # added to the score of an item that is not in the softmax
PICTURE_VECTORS = "picture_vectors"  # folder of the catalogue with vectors read before
ONCE = 2**31  # steps between refreshes: only at the start, since the backbone is frozen


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class InputVectors:
    """Vectors for `predict`, float32 [n, width]: of the items' texts, of their pictures (None: the task reads none) and
    of the instructions (None: not needed)."""

    items: Whole
    pictures: Whole | None = None
    instructions: Whole | None = None


@storable
@dataclass(frozen=True)
class SequenceTarget(Target):
    """A target with the instruction's tokens (None where task.text is false)."""

    instruction: Text | None


class SequenceTask(RankingTask):
    """An example's text is [0, items of its history], and the masked item if there are any; for its labels see
    `next_items`.

    In a batch, the first token is the row of the instruction's vector: in training, in the buffer `instruction_texts`,
    else in a temporary table of `query_vectors`.
    """

    refresh_every = ONCE
    reads_history = True

    def __init__(self, config: SequenceConfig, context: TaskContext):
        context = with_default_prompt(context)
        super().__init__(config, context)
        self.config: SequenceConfig = config
        config.check(context.max_length)
        self.masks_items = config.is_masked  # a network that does not know the mask would take it for an item
        self.couples_examples = config.samples_softmax  # by the negatives of the batch
        self.freeze = ["^backbone/"] if config.text else []
        self.head_is_fitted = "once" if config.factor_size else "never"
        declared = read_pooling(context.folder).mode if config.text and context.folder is not None else None
        self.pooling: Any = config.pooling or declared
        self._instructions: dict[bytes, tuple[int, Text]] = {}  # training instructions: see `_numbered`
        self._text_vectors: np.ndarray | None = None
        self._trained: np.ndarray | None = None  # bool [items]: in a training example; None: all count as such
        self.pictures = None if config.pictures is None else self._item_pictures(config.pictures)

    def _item_pictures(self, network: str) -> ItemPictures | None:
        """None where no item has a picture: then all is as without them, bit by bit.

        Raises ValueError for a catalogue without the column, and for an item that would have no vector.
        """
        config = self.config
        folder = picture_folder(config.catalogue, config.picture_folder)
        found = ItemPictures(PictureNetwork(network), self.catalogue, folder, Path(config.catalogue) / PICTURE_VECTORS)
        own = np.arange(len(self.catalogue)) < (len(self.catalogue) - self.new_items if config.ids else 0)
        if not config.text and len(lacking := np.flatnonzero(~found.there & ~own)):
            raise ValueError(
                f"item {self.catalogue.ids[lacking[0]]!r} has no picture (column image), and task.text is false, so it "
                "would have no vector. Give it a picture, leave the item out, or set task.text to true."
            )
        if not found.there[: len(self.catalogue) - self.new_items].any():
            logger.warning("no item of %s has a picture: task.pictures changes nothing.", config.catalogue)
            return None
        return found

    def model(self, source: Source) -> Model:
        if self.config.text and source.pooling.projection is not None:
            raise ValueError(
                f"backbone.path has a projection ({source.pooling.projection.folder}), which task.type sequence does "
                "not apply to its texts' vectors: choose another checkpoint, or set task.text to false."
            )
        spec = NextItemSpec(
            num_items=len(self.catalogue) - self.new_items,
            text_size=source.config.get_text_config().hidden_size if self.config.text else 0,
            ids=self.config.ids,
            hidden_size=self.config.hidden_size,
            num_layers=self.config.num_layers,
            num_heads=self.config.num_heads,
            max_length=self.config.sequence_length,
            dropout=self.config.dropout,
            picture_size=0 if self.pictures is None else self.pictures.network.size,
            factor_size=self.config.factor_size,
            network=self.config.network,
            norm=self.config.norm,
            activation=self.config.activation,
            mlp_factor=self.config.mlp_factor,
            attention_dropout=self.config.attention_dropout,
            positions=self.config.positions,
            item_bias=self.config.item_bias,
            masked=self.config.is_masked,
        )
        head = NextItemHead(spec, rngs=source.rngs, dtype=source.dtype)
        return Model(source.backbone if self.config.text else None, head)

    # -------------------------------------------------------------- host

    def encode(self, examples: Sequence[Example]) -> list[Encoded[SequenceTarget]]:
        instructions = self._tokens([render(e) for e in examples]) if self.config.text else [None] * len(examples)
        encoded, asked = [], [MASK] * self.config.is_masked
        for number, (example, instruction) in enumerate(zip(examples, instructions, strict=True)):
            target = self.target(example, name_of(example, number))
            history = target.history[-self.config.history_limit :]
            if cut := len(target.history) - len(history):
                name = "history items beyond task.history_limit"
                self.context.count(name, cut)
            own = SequenceTarget(target.items, target.history, instruction)
            encoded.append(Encoded(Text(np.array([0, *history, *asked], np.int32)), own, example))
        return encoded

    def _tokens(self, words: Sequence[str]) -> list[Text | None]:
        """The tokens of instructions; equal instructions share a `Text`."""
        different = list(dict.fromkeys(words))
        found = tokenize(different, [f"the instruction {text!r}" for text in different], self.context)
        if None in found:
            raise ValueError("instructions that are too long cannot be dropped: set data.truncate to left or right.")
        by_words = dict(zip(different, found, strict=True))
        return [by_words[text] for text in words]

    def prepare(self, train: Sequence[Encoded[SequenceTarget]]) -> None:
        self._instructions = _numbered(train)
        if self.config.cold_items == "left_out":
            self._trained = np.zeros(len(self.catalogue), bool)
            for e in train:
                self._trained[e.target.items] = self._trained[e.target.history] = True

    def fit(
        self, features: Callable[[], np.ndarray], train: Sequence[Encoded[SequenceTarget]]
    ) -> dict[str, dict[str, np.ndarray]]:
        """The vectors of co-occurrence, of the catalog's training interactions; without these, of the examples."""
        if self.splits is None:
            sequences = [np.append(e.target.history, e.target.items) for e in train]
        else:
            sequences = list(self.splits.train)
        known = len(self.catalogue) - self.new_items
        return {"factors": {"table": item_factors(sequences, known, self.config.factors)}}

    def _row(self, e: Encoded[SequenceTarget]) -> int:
        """The row of the example's instruction in the buffer."""
        if e.target.instruction is None:
            return 0
        known = self._instructions.get(e.target.instruction.tokens.tobytes())
        if known is None:
            raise ValueError(
                f"the instruction {render(e.example)!r} was unknown at the start of training. The task sequence needs "
                "all instructions at the start: set streaming: false for data.train, or task.text: false."
            )
        return known[0]

    def gather(self, encoded: Sequence[Encoded[SequenceTarget]], rng: np.random.Generator) -> BatchTexts:
        config, texts, labels, supervised, negatives = self.config, [], [], [], []
        only_last = config.supervise == "last"
        for e in encoded:
            items = np.append(e.target.history, rng.choice(e.target.items))
            places = len(e.text.tokens) - config.is_masked
            start = len(items) - places
            if not only_last and start:  # another window of a long history at each visit
                start = int(rng.integers(start + 1))
            window, row = items[start : start + places].astype(np.int32), self._row(e)
            if config.is_masked:
                tokens, wanted, counts = masked_items(row, window, only_last, config.mask_share, rng)
            else:
                tokens, wanted, counts = next_items(row, window, only_last)
            texts.append(Text(tokens))
            labels.append(wanted)
            supervised.append(counts)
            if config.loss != "softmax":
                own = np.append(e.target.history, e.target.items)
                negatives.append(uniform_negatives(own, self._pool, (len(tokens), config.negative_count), rng))
        sample = None
        if config.samples_softmax:
            chances = self._chances
            drawn = rng.choice(len(self.catalogue), config.negative_count, p=chances)
            expected = np.log(config.negative_count * chances[drawn])
            sample = NegativeSample(drawn.astype(np.int32), expected.astype(np.float32))
        drawn_each = np.concatenate(negatives) if negatives else None
        return BatchTexts(texts, NextItems(end_to_end(labels), end_to_end(supervised), sample, drawn_each))

    @property
    def _pool(self) -> np.ndarray:
        """int [n]: the items that are drawn as negatives of bce and gbce."""
        self._check_prepared()
        return np.arange(len(self.catalogue)) if self._trained is None else np.flatnonzero(self._trained)

    def gather_answer(self, encoded: Sequence[Encoded[SequenceTarget]], rng: np.random.Generator) -> BatchTexts:
        """The last items of the histories, with the loss of the positive item alone."""
        texts = [Text(np.append(np.int32(self._row(e)), e.text.tokens[1:])) for e in encoded]
        labels = [np.append(e.text.tokens[1:], rng.choice(e.target.items)).astype(np.int32) for e in encoded]
        supervised = [np.eye(1, len(each), len(each) - 1, np.int32)[0] for each in labels]
        return BatchTexts(texts, NextItems(end_to_end(labels), end_to_end(supervised), None))

    @property
    def _chances(self) -> np.ndarray:
        """float64 [items]: the probability that an item is drawn as a negative."""
        self._check_prepared()
        chances = self.popularity if self._trained is None else self.popularity * self._trained
        return chances / chances.sum() if self._trained is not None else chances

    @property
    def _leaves_out(self) -> bool:
        """Whether the full softmax is without some items; the sampled one draws none of them."""
        config = self.config
        return config.cold_items == "left_out" and config.loss == "softmax" and config.softmax == "full"

    def _check_prepared(self) -> None:
        if self.config.cold_items == "left_out" and self._trained is None:
            raise ValueError(
                "task.cold_items is left_out, which needs all training examples at the start: set streaming: false for "
                "data.train, or leave task.cold_items out."
            )

    # -------------------------------------------------------------- device

    def loss(self, model: Network, batch: Batch[NextItems], inputs: LossInputs) -> tuple[jax.Array, jax.Array]:
        """The loss of the next (or a masked) item against the catalogue or a sample of it.

        Sampled softmax: the sum over the catalogue is estimated by the positive item and n items drawn with
        probabilities q, exp(s − log(n q)) each (Jean et al., 2015, equation 8; the logQ correction). For bce and gbce
        see `adapters.next_item_losses`.
        """
        own, config = batch.own, self.config
        weights = jnp.asarray(own.supervised, jnp.float32)
        if own.sample is not None:
            return jnp.sum(weights * sampled_softmax(self._sampled_logits(model, batch, inputs))), jnp.sum(weights)
        queries, table, bias = self._queries(model, batch, inputs)
        if own.negatives is None:
            smoothing = config.label_smoothing
            seen = None
            if config.seen_items == "left_out":
                items, reads = self._seen(batch.texts)
                seen = jnp.where(reads, items[:, None, :], -1)
            loss = linear_cross_entropy(
                queries, table, own.labels, weights, bias=bias, label_smoothing=smoothing, excluded=seen
            )
            return loss, jnp.sum(weights)
        items = jnp.concatenate([own.labels[..., None], own.negatives], -1)
        power = 1.0
        if config.loss == "gbce":
            power = gbce_power(config.negative_count, len(self.catalogue), config.gbce_t)
        losses = sampled_sigmoid(scores_of(queries, table, bias, items), power)
        return jnp.sum(weights * losses), jnp.sum(weights)

    def soft_outputs(self, model: Network, batch: Batch[NextItems], inputs: LossInputs) -> list[SoftOutputs]:
        weights = jnp.asarray(batch.own.supervised, jnp.float32)
        if batch.own.sample is None:
            queries, table, bias = self._queries(model, batch, inputs)
            return [SoftOutputs("classes", queries, weights, table, bias)]
        return [SoftOutputs("classes", self._sampled_logits(model, batch, inputs), weights)]

    def _queries(
        self, model: Network, batch: Batch[NextItems], inputs: LossInputs
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Query vectors [rows, length, size], and the vectors and biases of all items."""
        items, pictures, instructions = self._buffers(inputs)
        table, bias = model.head.item_vectors(items, pictures=pictures)
        if (left_out := inputs.buffers.get("left_out")) is not None:
            bias = left_out if bias is None else bias + left_out
        return model.head(*batch.texts, items, instructions, inputs.dropout, pictures), table, bias

    def _seen(self, texts: Rows) -> tuple[jax.Array, jax.Array]:
        """What a ranking after each position would leave out: the item at each place, int32 [rows, length] (−1: none),
        and which places a position reads, bool [rows, positions, places].

        Of the history's items before a window nothing is known here.
        """
        tokens, segments, positions = map(jnp.asarray, texts)
        item = jnp.where((positions > 0) & (tokens != MASK), tokens, -1)
        reads = segments[:, :, None] == segments[:, None, :]
        if not self.config.is_masked:
            reads &= positions[:, :, None] >= positions[:, None, :]
        return item, reads

    def _buffers(self, inputs: LossInputs) -> tuple[jax.Array, jax.Array | None, jax.Array]:
        """Vectors of the items' texts, of their pictures, and of the instructions."""
        nothing, known = jnp.zeros((len(self.catalogue), 0)), inputs.buffers
        return known.get("item_texts", nothing), known.get("item_pictures"), known.get("instruction_texts", nothing)

    def _sampled_logits(self, model: Network, batch: Batch[NextItems], inputs: LossInputs) -> jax.Array:
        """[rows, length, 1 + negatives], the positive item first."""
        (items, pictures, instructions), sample = self._buffers(inputs), batch.own.sample
        assert sample is not None

        def logits(model: Network, rows: tuple[Rows, Array], keys: DropoutKeys | None) -> jax.Array:
            texts, labels = rows
            positives, bias = model.head.item_vectors(items, labels, pictures)
            others, others_bias = model.head.item_vectors(items, sample.items, pictures)
            asked = model.head(*texts, items, instructions, keys, pictures)
            score = jnp.sum(asked * positives, -1, dtype=jnp.float32) + (0 if bias is None else bias)
            against = jnp.einsum("rld,nd->rln", asked, others, preferred_element_type=jnp.float32)
            against = against + (0 if others_bias is None else others_bias) - sample.log_expected
            taken = labels[..., None] == sample.items
            if self.config.seen_items == "left_out":
                items_read, reads = self._seen(texts)
                among = (items_read[..., None] == sample.items).astype(jnp.float32)
                taken |= jnp.einsum("rps,rsn->rpn", reads.astype(jnp.float32), among) > 0
            against = jnp.where(taken, LEFT_OUT, against)
            return jnp.concatenate([score[..., None], against], -1)

        return in_microbatches(logits, model, (batch.texts, batch.own.labels), inputs)

    def predict(self, model: Network, batch: Batch["InputVectors | None"]) -> jax.Array:
        """float32 [rows, segments, ...], depending on the batch's arrays.

        None: the backbone's unit vectors of texts. `InputVectors` of items: vector and bias of items. Also of
        instructions: query vector and 1 of histories, so that query · item is the score.
        """
        segments, most = batch.texts.segment_ids, max_segments(batch.texts.tokens.shape[1])
        if batch.own is None:
            return unit_length(pool_segments(model.hidden(batch), segments, self.pooling, most).astype(jnp.float32))
        items, pictures = batch.own.items, batch.own.pictures
        if batch.own.instructions is None:
            vectors, bias = model.head.item_vectors(items, batch.texts.tokens, pictures)
            last = jnp.zeros(segments.shape) if bias is None else bias
        else:
            vectors = model.head(*batch.texts, items, batch.own.instructions, item_pictures=pictures)
            last = jnp.ones(segments.shape)
        both = jnp.concatenate([vectors.astype(jnp.float32), last[..., None]], -1)
        return pool_segments(both, segments, "lasttoken", most)

    # -------------------------------------------------------------- vectors

    def refresh(self, predict: Predict) -> dict[str, np.ndarray]:
        pictures = self.picture_inputs
        found = {} if pictures is None else {"item_pictures": pictures}
        if self._leaves_out:
            self._check_prepared()
            assert self._trained is not None
            found["left_out"] = np.where(self._trained, 0, LEFT_OUT).astype(np.float32)
        if not self.config.text:
            return found
        texts = [text for _, text in self._instructions.values()]
        if not texts:
            raise ValueError(
                "the task sequence needs all instructions at the start of training: set streaming: false for "
                "data.train, or task.text: false."
            )
        found["item_texts"] = self.text_vectors(predict)
        return found | {"instruction_texts": self._instruction_vectors(predict, texts)}

    def buffer_shapes(self, hidden_size: int) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        if self.config.text:
            shapes["item_texts"] = (len(self.catalogue), hidden_size)
            shapes["instruction_texts"] = (len(self._instructions), hidden_size)
        if self.pictures is not None:
            shapes["item_pictures"] = (len(self.catalogue), self.pictures.network.size)
        if self._leaves_out:
            shapes["left_out"] = (len(self.catalogue),)
        return shapes

    @cached_property
    def picture_inputs(self) -> np.ndarray | None:
        """float32 [items, picture size]: with mean 0 and standard deviation 1 over the items with pictures (without new
        ones, as in training); zeros for an item without a picture. None: the task reads none."""
        if self.pictures is None:
            return None
        vectors, there = self.pictures.vectors, self.pictures.there
        known = vectors[np.flatnonzero(there[: len(there) - self.new_items])]
        spread = known.std() or np.float32(1)  # 0: all pictures are alike
        return np.where(there[:, None], (vectors - known.mean(0)) / spread, np.float32(0))

    def looks_like(self, predict: Predict, picture: Picture, name: str) -> np.ndarray:
        if self.pictures is None:
            return super().looks_like(predict, picture, name)
        return looks_like(self.pictures.of(picture, name), self.pictures.vectors)

    def text_vectors(self, predict: Predict) -> np.ndarray:
        """float32 [items, text size], with mean 0 and standard deviation 1; the backbone runs each text once."""
        if self._text_vectors is None:
            self._text_vectors = np.zeros((len(self.catalogue), 0), np.float32)
            if self.config.text:
                vectors = np.stack(predict(self.item_texts))
                known = vectors[: len(vectors) - self.new_items]  # without new items, as in training
                self._text_vectors = (vectors - known.mean(0)) / known.std()
        return self._text_vectors

    def _instruction_vectors(self, predict: Predict, texts: Sequence[Text]) -> np.ndarray:
        vectors = np.stack(predict(texts))
        return vectors * np.float32(vectors.shape[1] ** 0.5)

    def item_vectors(self, predict: Predict) -> np.ndarray:
        numbers = [Text(np.array([item], np.int32)) for item in range(len(self.catalogue))]
        return np.stack(predict(numbers, self.inputs(predict)))

    def query_vectors(self, predict: Predict, encoded: Sequence[Encoded[SequenceTarget]]) -> np.ndarray:
        most = TABLES[-1]
        blocks = [encoded[start : start + most] for start in range(0, len(encoded), most)]
        return np.concatenate([self._block_vectors(predict, block) for block in blocks])

    def _block_vectors(self, predict: Predict, encoded: Sequence[Encoded[SequenceTarget]]) -> np.ndarray:
        asked, table = _numbered(encoded), np.zeros((0, 0), np.float32)
        if asked:
            vectors = self._instruction_vectors(predict, [text for _, text in asked.values()])
            rows_of_table = next(size for size in TABLES if size >= len(vectors))
            table = np.zeros((rows_of_table, vectors.shape[1]), np.float32)
            table[: len(vectors)] = vectors
        rows = [0 if (i := e.target.instruction) is None else asked[i.tokens.tobytes()][0] for e in encoded]
        sequences = [Text(np.append(np.int32(r), e.text.tokens[1:])) for r, e in zip(rows, encoded, strict=True)]
        return np.stack(predict(sequences, self.inputs(predict, table)))

    explained_by = "occlusion"

    def objectives(self, predict: Predict, encoded: Encoded[SequenceTarget], choice: Choice) -> list[Objective]:
        """The score of an item (by default the best), less that of another, by the items of the history."""
        vectors = self.item_vectors(predict)
        target, against = items = self.explained_items(choice, lambda: self.recommended(predict, encoded))
        weights = vectors[target] if against is None else vectors[target] - vectors[against]
        found = replace(self.objective(items, weights, "score"), outputs=self.query_vectors, items=self._read_history)
        return [found if self.config.text else replace(found, readings=lambda _: ())]

    def _read_history(self, example: Example) -> dict[str, str]:
        read = self.catalogue.numbers(example.history)[-self.config.history_limit :]
        return {self.catalogue.ids[item]: self.catalogue.name(item) for item in read.tolist()}

    def inputs(self, predict: Predict, instructions: np.ndarray | None = None) -> InputVectors:
        """Args: instructions: their vectors, float32 [n, width]; None: only items are asked for."""
        return InputVectors(self.text_vectors(predict), self.picture_inputs, instructions)


def _numbered(encoded: Sequence[Encoded[SequenceTarget]]) -> dict[bytes, tuple[int, Text]]:
    """The distinct instructions: tokens as bytes -> (number, in order of appearance; text)."""
    found: dict[bytes, tuple[int, Text]] = {}
    for e in encoded:
        if e.target.instruction is not None:
            found.setdefault(e.target.instruction.tokens.tobytes(), (len(found), e.target.instruction))
    return found
