"""Token classification: one label per word."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from instructrec_jax.adapters import losses
from instructrec_jax.adapters.checkpoint_heads import Source, task_head
from instructrec_jax.adapters.soft_targets import SoftOutputs
from instructrec_jax.data.batch import Batch, BatchTexts, Text, end_to_end
from instructrec_jax.data.codec import storable
from instructrec_jax.data.example import Example
from instructrec_jax.data.mapped import Mapped
from instructrec_jax.metrics.bootstrap import CorpusMetric
from instructrec_jax.metrics.classification import (
    classification_metrics,
    classification_report,
    confusion_matrix,
    resampled_token_f1,
)
from instructrec_jax.metrics.ranking import hit_rate, target_ranks
from instructrec_jax.metrics.tagging import marks_spans, resampled_span_f1, span_metrics
from instructrec_jax.tasks.answers import TagsAnswer, Word
from instructrec_jax.tasks.averaging import Judged
from instructrec_jax.tasks.base import Encoded, LossInputs, Model, Network, Task, TaskContext, examples_of, name_of
from instructrec_jax.tasks.objective import Choice, Objective, Reading, contrast, one_of
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.scores import Scores, owners_of
from instructrec_jax.tasks.targets import TokenLabels
from instructrec_jax.tasks.text.classification import check_labels
from instructrec_jax.tasks.text.text_config import TokenClassificationConfig
from instructrec_jax.tasks.texts import owners


@storable
@dataclass(frozen=True)
class TagsTarget:
    """int32 [tokens] each: the label at each word's first token, and 1 for first tokens."""

    labels: np.ndarray
    first: np.ndarray


class TokenClassificationTask(Task):
    """Cross-entropy at the first token of each word."""

    reads = "fields"
    case_measure = "accuracy"
    gathers_alone = True
    per_token = True
    reads_unlabeled = True
    outputs_are = "labels"

    def __init__(self, config: TokenClassificationConfig, context: TaskContext):
        self.labels, self.numbers, self.context = config.labels, check_labels(config.labels), context
        self.metric = "span_f1" if marks_spans(self.labels) else "macro_f1"

    def model(self, source: Source) -> Model:
        return Model(source.backbone, task_head(source, "token", labels=self.labels))

    def encode(self, examples: Sequence[Example]) -> list[Encoded[TagsTarget]]:
        encoded = []
        for number, example in enumerate(examples):
            name = name_of(example, number)
            words = self._words(example)
            tags = example.output
            if not isinstance(tags, tuple) or len(tags) != len(words):
                found = f"{len(tags)} label{'s' * (len(tags) != 1)}" if isinstance(tags, tuple) else repr(tags)
                raise ValueError(f"{name}: its {len(words)} words need one label each, but its output is {found}.")
            for tag in tags:
                if tag not in self.numbers:
                    raise ValueError(f"{name}: its output {tag!r} is not one of the labels {self.labels}.")
            tokens = self.context.tokenizer(" ".join(words), return_offsets_mapping=True, verbose=False)
            if len(tokens["input_ids"]) > self.context.max_length:
                if self.context.truncate == "drop":
                    self.context.count("texts dropped", 1)
                    continue
                raise ValueError(
                    f"{name} has {len(tokens['input_ids'])} tokens, but data.max_length is {self.context.max_length}. "
                    "Raise it, split the text, or set data.truncate to drop (labeled texts are never truncated)."
                )
            words_of = owners(tokens, words)
            first = np.zeros(len(words_of), bool)  # a word that contains a space may contain a token without a word
            first[np.unique(words_of, return_index=True)[1]] = True
            first &= words_of >= 0
            labels = np.array([0 if w < 0 else self.numbers[tags[w]] for w in words_of], np.int32)
            if first.sum() != len(words):
                lost = next(w for i, w in enumerate(words) if i not in words_of)
                raise ValueError(
                    f"{name}: the tokenizer finds no token in the word {lost!r}: remove the word and its label."
                )
            ids = Text(np.asarray(tokens["input_ids"], np.int32))
            encoded.append(Encoded(ids, TagsTarget(labels, first.astype(np.int32)), example))
        return encoded

    def gather(self, encoded: Sequence[Encoded[TagsTarget]], rng: np.random.Generator) -> BatchTexts:
        labels = end_to_end([e.target.labels for e in encoded])
        return BatchTexts([e.text for e in encoded], TokenLabels(labels, end_to_end([e.target.first for e in encoded])))

    def loss(self, model: Network, batch: Batch[TokenLabels], inputs: LossInputs) -> tuple[jax.Array, jax.Array]:
        logits = model.head(model.hidden(batch, inputs.dropout), dropout=inputs.dropout)
        weights = batch.own.weights
        return jnp.sum(losses.cross_entropy(logits, batch.own.labels) * weights), jnp.sum(weights)

    def soft_outputs(self, model: Network, batch: Batch[TokenLabels], inputs: LossInputs) -> list[SoftOutputs]:
        logits = model.head(model.hidden(batch, inputs.dropout), dropout=inputs.dropout)
        return [SoftOutputs("classes", logits, batch.own.weights, targets=batch.own.labels)]

    def predict(self, model: Network, batch: Batch) -> jax.Array:
        """float32 [rows, length, labels]."""
        return model.head(model.hidden(batch)).astype(jnp.float32)

    def unanswered(self, example: Example) -> Example:
        words = example.words or (example.input or example.instruction).split()
        return replace(example, output=(self.labels[0],) * len(words))

    def without_target(self, encoded: Encoded[TagsTarget]) -> Encoded[TagsTarget]:
        target = encoded.target
        return Encoded(encoded.text, TagsTarget(np.full_like(target.labels, -1), target.first), encoded.example)

    def answers(self, predict: Predict, encoded: Sequence[Encoded[TagsTarget]], k: int = 10) -> list[TagsAnswer]:
        return [
            TagsAnswer(_tagged(e.example, [self.labels[i] for i in logits.argmax(-1)]))
            for e, logits in zip(encoded, self._logits(predict, encoded), strict=True)
        ]

    def _logits(self, predict: Predict, encoded: Sequence[Encoded[TagsTarget]]) -> list[np.ndarray]:
        """float64 [words, labels] of each example, at the first token of each word."""
        return [output[e.target.first > 0].astype(np.float64) for e, output in predict.over(encoded)]

    def objectives(self, predict: Predict, encoded: Encoded[TagsTarget], choice: Choice) -> list[Objective]:
        """The logit of a tag (by default the predicted one), less that of another, of each word, or of `choice.word`.

        Of a word that occurs several times, the first occurrence.
        """
        words = self._words(encoded.example)
        if choice.word is not None and choice.word not in words:
            raise ValueError(f"--word is {choice.word!r}, but the text has the words {words}.")
        (logits,) = self._logits(predict, [encoded])
        asked = dict.fromkeys(words if choice.word is None else [choice.word])
        return [self._of_word(word, logits[words.index(word)], choice) for word in asked]

    def _of_word(self, word: str, logits: np.ndarray, choice: Choice) -> Objective:
        target, against = contrast(choice, self.labels, int(logits.argmax()), "label")
        chosen = one_of(len(self.labels), target, against)

        def weights(e: Encoded[TagsTarget]) -> np.ndarray | None:
            words = self._words(e.example)
            if word not in words:
                return None
            found = np.zeros((len(e.text.tokens), len(self.labels)), np.float32)
            found[np.flatnonzero(e.target.first)[words.index(word)]] = chosen
            return found

        def readings(example: Example) -> list[Reading]:
            return [Reading.whole(" ".join(self._words(example)))]

        other = None if against is None else self.labels[against]
        return Objective(f"{self.labels[target]} of {word}", other, "logit", weights, readings)

    def _words(self, example: Example) -> list[str]:
        words = list(example.words) or (example.input or example.instruction).split()
        return [word.lower() for word in words] if self.context.lower_case else words

    def judged(self, predict: Predict, encoded: Sequence[Encoded[TagsTarget]]) -> Judged:
        truth = np.concatenate([e.target.labels[e.target.first > 0] for e in encoded])
        return Judged(np.concatenate(self._logits(predict, encoded)), truth.astype(np.int64))

    def score(self, predict: Predict, encoded: Sequence[Encoded[TagsTarget]]) -> Scores:
        words = self._logits(predict, encoded)
        # tied logits: the first label is predicted; the accuracy is the mean over all orders
        truth = [e.target.labels[e.target.first > 0] for e in encoded]
        right = [hit_rate(target_ranks(logits, t), 1) for logits, t in zip(words, truth, strict=True)]
        return self._scores(encoded, [logits.argmax(-1) for logits in words], right)

    def _scores(
        self, encoded: Sequence[Encoded[TagsTarget]], guesses: list[np.ndarray], right: list[np.ndarray] | None = None
    ) -> Scores:
        """right: float [words] for each case, expected accuracy; None: 1 where the guess is correct, else 0."""
        targets = [[self.labels[i] for i in e.target.labels[e.target.first > 0]] for e in encoded]
        found = [[self.labels[i] for i in guess] for guess in guesses]
        flat_targets, flat_found = [t for row in targets for t in row], [t for row in found for t in row]
        _, report = classification_report(flat_targets, flat_found, self.labels)
        if right is None:
            right = [np.array(w) == np.array(f) for w, f in zip(targets, found, strict=True)]
        cases = {"accuracy": np.array([np.mean(each) for each in right])}

        def record(e: Encoded, wanted: list[str], said: list[str], accuracy: float) -> dict[str, object]:
            asked = {"id": e.example.id, "input": e.example.input or e.example.instruction, "reference": wanted}
            return asked | {"prediction": said, self.case_measure: float(accuracy)}

        metrics = classification_metrics(flat_targets, flat_found, self.labels)
        metrics |= dict.fromkeys(("accuracy", "micro_f1"), float(np.concatenate(right).mean()))
        if marks_spans(self.labels):
            spans, by_kind = span_metrics(targets, found)
            metrics, report = metrics | spans, f"{report}\nSpans\n{by_kind}"
        counts = confusion_matrix(flat_targets, flat_found, self.labels)
        charts = {"confusion": {"labels": self.labels, "counts": counts.tolist()}}
        scores = Scores(
            metrics,
            cases,
            Mapped(record, encoded, targets, found, cases["accuracy"]),
            report,
            charts=charts,
            compared=["accuracy"],
            corpus=self._corpus(targets, found),
        )
        return scores.owned_by(owners_of(examples_of(encoded)))

    def _corpus(self, targets: list[list[str]], found: list[list[str]]) -> dict[str, CorpusMetric]:
        """Token macro F1 and span F1, which intervals resample by text."""
        corpus = {"macro_f1": resampled_token_f1(targets, found, self.labels)}
        return corpus | ({"span_f1": resampled_span_f1(targets, found)} if marks_spans(self.labels) else {})

    def baselines(self, train: Sequence[Encoded[TagsTarget]], test: Sequence[Encoded[TagsTarget]]) -> dict[str, Scores]:
        """The most frequent training label of each word; for unseen words, of all words."""
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


def _tagged(example: Example, tags: Sequence[str]) -> tuple[Word, ...]:
    """The words of an example with their tags and places."""
    text, tagged, at = example.input or example.instruction, [], 0
    for word, tag in zip(example.words or text.split(), tags, strict=True):
        at = max(at, text.find(word, at))
        tagged.append(Word(word, tag, at, at + len(word)))
        at += len(word)
    return tuple(tagged)
