"""Token classification: one label for every word of a text."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.adapters import losses
from instructrec_jax.adapters.checkpoint_heads import Source, task_head
from instructrec_jax.data.example import Example
from instructrec_jax.data.loader import BatchTexts, Text
from instructrec_jax.metrics.bootstrap import CorpusMetric
from instructrec_jax.metrics.classification import (
    classification_metrics,
    classification_report,
    confusion_matrix,
    resampled_token_f1,
)
from instructrec_jax.metrics.ranking import hit_rate, target_ranks
from instructrec_jax.metrics.tagging import marks_spans, resampled_span_f1, span_metrics
from instructrec_jax.tasks.base import (
    Arrays,
    Encoded,
    LossInputs,
    Model,
    Predict,
    Scores,
    Task,
    TaskConfig,
    TaskContext,
    name_of,
    owners_of,
)
from instructrec_jax.tasks.text.classification import LabelsConfig, check_labels
from instructrec_jax.tasks.texts import owners


@TaskConfig.register_subclass("token_classification")
@dataclass
class TokenClassificationConfig(LabelsConfig):
    """Label every word of a text. The words of `input` (else `instruction`) are separated by spaces."""

    def build(self, context: TaskContext) -> "TokenClassificationTask":
        return TokenClassificationTask(self.labels, context)


@dataclass(frozen=True)
class TagsTarget:
    """int32 [tokens]: the label at the first token of each word, and whether a token is one."""

    labels: np.ndarray
    first: np.ndarray


class TokenClassificationTask(Task):
    reads = "fields"
    per_token = True

    def __init__(self, labels: list[str], context: TaskContext):
        self.labels, self.numbers, self.context = labels, check_labels(labels), context
        self.metric = "span_f1" if marks_spans(labels) else "macro_f1"

    def model(self, source: Source) -> nnx.Module:
        return Model(source.backbone, task_head(source, "token", labels=self.labels))

    def encode(self, examples: Sequence[Example]) -> list[Encoded[TagsTarget]]:
        encoded = []
        for number, example in enumerate(examples):
            name = name_of(example, number)
            text = example.input or example.instruction
            words = list(example.words) or text.split()
            words = [word.lower() for word in words] if self.context.lower_case else words
            tags = example.output
            if not isinstance(tags, tuple) or len(tags) != len(words):
                found = f"{len(tags)} labels" if isinstance(tags, tuple) else repr(tags)
                raise ValueError(f"{name}: its {len(words)} words need as many labels, but its output is {found}.")
            for tag in tags:
                if tag not in self.numbers:
                    raise ValueError(f"{name}: its output {tag!r} is none of the labels {self.labels}.")
            tokens = self.context.tokenizer(" ".join(words), return_offsets_mapping=True, verbose=False)
            if len(tokens["input_ids"]) > self.context.max_length:
                if self.context.truncate == "drop":
                    self.context.count("texts dropped", 1)
                    continue
                raise ValueError(
                    f"{name} has {len(tokens['input_ids'])} tokens, but data.max_length is {self.context.max_length}. "
                    "Raise it, split the text, or set data.truncate to drop (a labelled text is never cut)."
                )
            words_of = owners(tokens, words)
            first = np.zeros(len(words_of), bool)  # a word with a space inside may have a token of no word within
            first[np.unique(words_of, return_index=True)[1]] = True
            first &= words_of >= 0
            labels = np.array([0 if w < 0 else self.numbers[tags[w]] for w in words_of], np.int32)
            if first.sum() != len(words):
                lost = next(w for i, w in enumerate(words) if i not in words_of)
                raise ValueError(
                    f"{name}: the tokenizer makes no token of the word {lost!r}, so it cannot be labelled."
                )
            ids = Text(np.asarray(tokens["input_ids"], np.int32))
            encoded.append(Encoded(ids, TagsTarget(labels, first.astype(np.int32)), example))
        return encoded

    def gather(self, encoded: Sequence[Encoded[TagsTarget]], rng: np.random.Generator) -> BatchTexts:
        per_token = {
            "labels": [e.target.labels for e in encoded],
            "supervised": [e.target.first for e in encoded],
        }
        return BatchTexts([e.text for e in encoded], per_token=per_token)

    def loss(self, model: Any, batch: Arrays, inputs: LossInputs) -> tuple[jax.Array, jax.Array]:
        logits = model.head(model.hidden(batch, inputs.dropout), dropout=inputs.dropout)
        weights = batch["supervised"].astype(jnp.float32)
        return jnp.sum(losses.cross_entropy(logits, batch["labels"]) * weights), jnp.sum(weights)

    def predict(self, model: Any, batch: Arrays) -> jax.Array:
        """float32 [rows, length, labels]."""
        return model.head(model.hidden(batch)).astype(jnp.float32)

    def score(self, predict: Predict, encoded: Sequence[Encoded[TagsTarget]]) -> Scores:
        outputs = predict([e.text for e in encoded])
        words = [o[e.target.first > 0].astype(np.float64) for o, e in zip(outputs, encoded, strict=True)]
        # of equal logits the first label is predicted; the accuracy is the mean over all orders of them
        truth = [e.target.labels[e.target.first > 0] for e in encoded]
        right = [hit_rate(target_ranks(logits, t), 1) for logits, t in zip(words, truth, strict=True)]
        return self._scores(encoded, [logits.argmax(-1) for logits in words], right)

    def _scores(
        self, encoded: Sequence[Encoded[TagsTarget]], guesses: list[np.ndarray], right: list[np.ndarray] | None = None
    ) -> Scores:
        """right: float [words] of each case, the chance that a guess is right; None: 1 where it is, else 0."""
        wanted = [[str(tag) for tag in e.example.output or ()] for e in encoded]  # type: ignore[union-attr]
        found = [[self.labels[i] for i in guess] for guess in guesses]
        flat_wanted, flat_found = [t for row in wanted for t in row], [t for row in found for t in row]
        _, report = classification_report(flat_wanted, flat_found, self.labels)
        if right is None:
            right = [np.array(w) == np.array(f) for w, f in zip(wanted, found, strict=True)]
        cases = {"accuracy": np.array([np.mean(each) for each in right])}
        predictions = [
            {
                "id": e.example.id,
                "input": e.example.input or e.example.instruction,
                "reference": w,
                "prediction": f,
                "score": float(accuracy),
            }
            for e, w, f, accuracy in zip(encoded, wanted, found, cases["accuracy"], strict=True)
        ]
        metrics = classification_metrics(flat_wanted, flat_found, self.labels)
        metrics |= dict.fromkeys(("accuracy", "micro_f1"), float(np.concatenate(right).mean()))
        if marks_spans(self.labels):
            spans, by_kind = span_metrics(wanted, found)
            metrics, report = metrics | spans, f"{report}\nSpans\n{by_kind}"
        counts = confusion_matrix(flat_wanted, flat_found, self.labels)
        charts = {"confusion": {"labels": self.labels, "counts": counts.tolist()}}
        scores = Scores(
            metrics,
            cases,
            predictions,
            report,
            charts=charts,
            compared=["accuracy"],
            corpus=self._corpus(wanted, found),
        )
        return scores.owned_by(owners_of([e.example for e in encoded]))

    def _corpus(self, wanted: list[list[str]], found: list[list[str]]) -> dict[str, CorpusMetric]:
        """Macro F1 of the tokens, and F1 of the spans, of any of the texts."""
        corpus = {"macro_f1": resampled_token_f1(wanted, found, self.labels)}
        return corpus | ({"span_f1": resampled_span_f1(wanted, found)} if marks_spans(self.labels) else {})

    def baselines(self, train: Sequence[Encoded[TagsTarget]], test: Sequence[Encoded[TagsTarget]]) -> dict[str, Scores]:
        """The most frequent label of each word in training; of all words for a new one."""
        counts: dict[str, Counter[int]] = {}
        for e in train:
            words = (e.example.input or e.example.instruction).split()
            for word, label in zip(words, e.target.labels[e.target.first > 0], strict=True):
                counts.setdefault(word, Counter())[int(label)] += 1
        overall = sum(counts.values(), Counter()).most_common(1)[0][0]
        best = {word: count.most_common(1)[0][0] for word, count in counts.items()}
        guesses = [
            np.array([best.get(word, overall) for word in (e.example.input or e.example.instruction).split()])
            for e in test
        ]
        return {"most frequent label of the word": self._scores(test, guesses)}
