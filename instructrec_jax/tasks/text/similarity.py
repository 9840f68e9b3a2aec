"""Choosing a text by the similarity of vectors: response selection, and labels that are known by their words alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
from instructrec_jax.tasks.base import (
    Arrays,
    Encoded,
    Model,
    Predict,
    Scores,
    Task,
    TaskConfig,
    TaskContext,
    in_parts,
    tokenise,
    with_default_prompt,
)
from instructrec_jax.tasks.ranking.ranking_task import Pooling
from instructrec_jax.tasks.ranking.retrieval import ROW_ARRAYS
from instructrec_jax.tasks.text.option_scoring import (
    Options,
    OptionsConfig,
    check_options,
    option_baselines,
    option_scores,
    options_of,
    shown_options,
    with_candidates,
)


@TaskConfig.register_subclass("similarity")
@dataclass
class SimilarityConfig(OptionsConfig):
    """Choose the text (of candidates, or of the words for labels) whose vector is closest to the question's."""

    pooling: Pooling | None = None  # null: what the checkpoint declares
    temperature: float = 0.05  # initial temperature of the softmax; it is trained

    def build(self, context: TaskContext) -> "SimilarityTask":
        return SimilarityTask(self, with_default_prompt(context))


class SimilarityTask(Task):
    """An example's target is its `Options`.

    Training tells the answer from the example's own candidates, or, where these are drawn (`negatives`), from the other
    answers of the batch (in-batch negatives; Henderson et al., 2017, "Efficient Natural Language Response Suggestion").
    """

    couples_examples = True
    metric = "accuracy"

    def __init__(self, config: SimilarityConfig, context: TaskContext):
        check_options(config)
        self.config, self.context = config, context
        self.encodes_together = config.negatives > 0
        self._texts: dict[str, Text] = {}  # of candidates
        self._most = 1  # candidates of an example, as far as examples were encoded

    def model(self, source: Source) -> nnx.Module:
        head = RetrievalHead(
            source.config.hidden_size,
            None,
            pooling=self.config.pooling or source.pooling.mode,
            temperature=self.config.temperature,
            rngs=source.rngs,
            dtype=source.dtype,
        )
        return Model(source.backbone, head)

    # ---------------------------------------------------------------- host

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        examples = with_candidates(examples, self.config, self.context.seed)
        names = [f"example {example.id or number!r}" for number, example in enumerate(examples)]
        options = [options_of(example, name, self.config) for example, name in zip(examples, names, strict=True)]
        new = [text for text in dict.fromkeys(t for o in options for t in o.texts) if text not in self._texts]
        for text, tokens in zip(new, tokenise(new, [f"the candidate {t!r}" for t in new], self.context), strict=True):
            if tokens is None:
                raise ValueError(f"the candidate {text!r} is longer than data.max_length: raise it (none is dropped).")
            self._texts[text] = tokens
        self._most = max([self._most, *(len(option.texts) for option in options)])
        texts = tokenise([render(example) for example in examples], names, self.context)
        return [
            Encoded(text, option, example)
            for text, option, example in zip(texts, options, examples, strict=True)
            if text is not None
        ]

    def gather(self, encoded: Sequence[Encoded], rng: np.random.Generator) -> Parts:
        """The questions, then each different candidate once, but for held-out labels: told that they are wrong each
        time, the network would learn never to choose them."""
        options: list[Options] = [e.target for e in encoded]
        listed = [option.texts_but(self.context.held_out) if option.own else (option.said,) for option in options]
        texts = list(dict.fromkeys(text for each in listed for text in each))
        place = {text: number for number, text in enumerate(texts)}
        # unused places keep the arrays' shapes the same in every batch
        room = min(len(encoded) * (self._most if options[0].own else 1), len(self._texts))
        slots = np.zeros(room, np.int64)
        slots[: len(texts)] = len(encoded) + np.arange(len(texts))
        allowed = np.zeros((len(encoded), room), bool)
        for row, (option, own) in enumerate(zip(options, listed, strict=True)):
            allowed[row, [place[text] for text in own] if option.own else slice(len(texts))] = True
        target = np.array([place[option.said] for option in options], np.int32)
        return Parts(
            [e.text for e in encoded] + [self._texts[text] for text in texts],
            per_example={"target": target, "allowed": allowed},
            slots={"query_slots": np.arange(len(encoded)), "candidate_slots": slots},
        )

    # ---------------------------------------------------------------- device

    def _vectors(self, model: Any, batch: Arrays, dropout: DropoutKeys | None) -> jax.Array:
        hidden = model.hidden(batch, dropout)
        return model.head(hidden, batch["segment_ids"], max_segments(hidden.shape[1]))

    def loss(
        self, model: Any, batch: Arrays, *, dropout: DropoutKeys | None, buffers: Arrays, parts: int
    ) -> tuple[jax.Array, jax.Array]:
        """Softmax cross-entropy of the answer among the candidates, over cosines divided by the temperature."""
        vectors = in_parts(self._vectors, model, {name: batch[name] for name in ROW_ARRAYS}, dropout, parts)
        vectors = vectors.reshape(-1, vectors.shape[-1])
        logits = model.head.scale() * vectors[batch["query_slots"]] @ vectors[batch["candidate_slots"]].T
        losses = cross_entropy(jnp.where(batch["allowed"], logits, -1e9), batch["target"])
        return losses.sum(), jnp.float32(len(losses))

    def predict(self, model: Any, batch: Arrays) -> jax.Array:
        """float32 [rows, segments, hidden]: vectors whose inner products are the logits."""
        return self._vectors(model, batch, None) * jnp.sqrt(model.head.scale())

    # ---------------------------------------------------------------- scores

    def score(self, predict: Predict, encoded: Sequence[Encoded]) -> Scores:
        texts = list(dict.fromkeys(text for e in encoded for text in e.target.texts))
        place = {text: number for number, text in enumerate(texts)}
        candidates = np.stack(predict([self._texts[text] for text in texts])).astype(np.float64)
        queries = np.stack(predict([e.text for e in encoded])).astype(np.float64)
        logits = [
            candidates[[place[text] for text in e.target.texts]] @ query
            for e, query in zip(encoded, queries, strict=True)
        ]
        return option_scores(encoded, [e.target for e in encoded], logits, self.config.labels, "by cosine")

    def baselines(self, train: Sequence[Encoded], test: Sequence[Encoded]) -> dict[str, Scores]:
        options = {id(e): e.target for e in [*train, *test]}
        return option_baselines(train, test, options, self.config.labels)

    def shown(self, record: Mapping[str, Any]) -> dict[str, Any]:
        return shown_options(record)
