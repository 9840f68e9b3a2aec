"""Extractive summarization: an encoder selects the sentences of a text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from instructrec_jax.adapters.checkpoint_heads import Source, task_head
from instructrec_jax.adapters.losses import cross_entropy
from instructrec_jax.adapters.soft_targets import SoftOutputs
from instructrec_jax.data.batch import Batch, BatchTexts, PerToken, Text, end_to_end
from instructrec_jax.data.codec import storable
from instructrec_jax.data.example import Example
from instructrec_jax.data.prompts import check_fast, references, render
from instructrec_jax.metrics.text import rouge
from instructrec_jax.tasks.answers import CaseRecord, Shown, TextAnswer
from instructrec_jax.tasks.averaging import Judged
from instructrec_jax.tasks.base import Encoded, LossInputs, Model, Network, Task, TaskContext, examples_of, name_of
from instructrec_jax.tasks.generation.summarization import join, joint, judge_summaries, lead, sentences
from instructrec_jax.tasks.generation.written_answers import scores_of_texts, shown_text
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.scores import Scores
from instructrec_jax.tasks.text.text_config import ExtractiveSummarizationConfig
from instructrec_jax.tasks.texts import owners, too_long

LABELS = ["left out", "summary"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SentenceLabels:
    """int32 [tokens]: 1 in target sentences (`labels`), and the tokens of the token's sentence (`sizes`), 0 in none."""

    labels: PerToken
    sizes: PerToken


@storable
@dataclass(frozen=True)
class Sentences:
    """The sentences of a text.

    Attributes:
      texts: as they stand in the text.
      owners: int32 [tokens], the number of each token's sentence; -1 for none.
      target: bool [sentences], whether the sentence belongs to the summary.
    """

    texts: tuple[str, ...]
    owners: np.ndarray
    target: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """int [sentences]: tokens per sentence."""
        return np.bincount(self.owners[self.owners >= 0], minlength=len(self.texts))


class ExtractiveSummarizationTask(Task):
    """Each token of the text predicts whether its sentence belongs to the summary.

    A sentence's score and loss are means over its tokens. Target sentences are chosen greedily: each adds the most
    ROUGE-1 + ROUGE-2 (Nallapati et al., 2017; Liu & Lapata, 2019).
    """

    reads = "fields"
    metric = "rougeL"
    gathers_alone = True
    case_measure = "rougeL"
    per_token = True
    outputs_are = "labels"

    def __init__(self, config: ExtractiveSummarizationConfig, context: TaskContext):
        self.config, self.context = config, context
        if config.sentences < 1:
            raise ValueError(f"task.sentences should be at least 1, but is {config.sentences}.")
        if context.kind != "encoder":
            raise ValueError(
                "task.type extractive_summarization needs an encoder: use summarization for language models."
            )
        if context.truncate == "left":
            raise ValueError(
                "task.type extractive_summarization keeps the beginning of a text: set data.truncate to right."
            )
        check_fast(context.tokenizer)

    def model(self, source: Source) -> Model:
        return Model(source.backbone, task_head(source, "token", labels=LABELS))

    # ---------------------------------------------------------------- host

    def encode(self, examples: Sequence[Example]) -> list[Encoded[Sentences]]:
        found = [self._encode(e, name_of(e, number)) for number, e in enumerate(examples)]
        return [e for e in found if e is not None]

    def _encode(self, example: Example, name: str) -> Encoded[Sentences] | None:
        parts = sentences(example.input or "")
        if not parts:
            raise ValueError(f"{name} has no text to summarize: set fields.input.")
        if not references(example):
            raise ValueError(f"{name} has no summary: add it, or remove the row.")
        text, numbers = self._tokens(example.instruction, parts, name)
        if text is None:
            return None
        there = parts[: int(numbers.max()) + 1]  # without truncated sentences
        return Encoded(text, Sentences(tuple(there), numbers, self._best(there, references(example))), example)

    def _tokens(self, asked: str, parts: Sequence[str], name: str) -> tuple[Text | None, np.ndarray]:
        """(instruction and sentences as one text, the sentence of each token); text None: dropped."""
        if self.context.lower_case:
            asked, parts = asked.lower(), [part.lower() for part in parts]
        texts = [asked, join(parts)] if asked else [join(parts)]
        tokens = self.context.tokenizer(*texts, return_offsets_mapping=True, verbose=False)
        ids, types = np.array(tokens["input_ids"], np.int32), tokens.get("token_type_ids")
        numbers = owners(tokens, parts, joint(parts), len(texts) - 1)
        own, excess = np.flatnonzero(numbers >= 0), len(ids) - self.context.max_length
        if excess > 0 and too_long(len(ids), name, self.context) == "drop":
            return None, numbers
        if excess >= len(own):
            raise ValueError(
                f"{name}: data.max_length is {self.context.max_length}, too short for its text beside the instruction: "
                "raise it."
            )
        kept = np.delete(np.arange(len(ids)), own[len(own) - max(0, excess) :])
        return Text(ids[kept], None if types is None else np.array(types, np.int32)[kept]), numbers[kept]

    def _best(self, parts: Sequence[str], reference: list[str]) -> np.ndarray:
        """bool [sentences]: the target sentences."""
        chosen: list[int] = []
        best = 0.0
        while len(chosen) < min(self.config.sentences, len(parts)):
            options = [sorted([*chosen, n]) for n in range(len(parts)) if n not in chosen]
            found = rouge([join([parts[n] for n in option]) for option in options], [reference] * len(options))
            gains = np.array(found["rouge1"]) + np.array(found["rouge2"])
            if gains.max() <= best:
                break
            best, chosen = gains.max(), options[int(gains.argmax())]
        return np.isin(np.arange(len(parts)), chosen)

    def gather(self, encoded: Sequence[Encoded[Sentences]], rng: np.random.Generator) -> BatchTexts:
        labels, sizes = [], []
        for e in encoded:
            owners, inside = e.target.owners, e.target.owners >= 0
            labels.append(inside & e.target.target[owners])
            sizes.append(np.where(inside, e.target.sizes[owners], 0))
        return BatchTexts([e.text for e in encoded], SentenceLabels(end_to_end(labels), end_to_end(sizes)))

    # ---------------------------------------------------------------- device

    def loss(self, model: Network, batch: Batch[SentenceLabels], inputs: LossInputs) -> tuple[jax.Array, jax.Array]:
        logits = model.head(model.hidden(batch, inputs.dropout), dropout=inputs.dropout)
        weights = _weights(batch.own)
        return jnp.sum(cross_entropy(logits, batch.own.labels) * weights), jnp.sum(weights)

    def soft_outputs(self, model: Network, batch: Batch[SentenceLabels], inputs: LossInputs) -> list[SoftOutputs]:
        logits = model.head(model.hidden(batch, inputs.dropout), dropout=inputs.dropout)
        return [SoftOutputs("classes", logits, _weights(batch.own))]

    def predict(self, model: Network, batch: Batch) -> jax.Array:
        """float32 [rows, length, 2]."""
        return model.head(model.hidden(batch)).astype(jnp.float32)

    # ---------------------------------------------------------------- scores

    def unanswered(self, example: Example) -> Example:
        return replace(example, output=".")

    def answers(self, predict: Predict, encoded: Sequence[Encoded[Sentences]], k: int = 10) -> list[TextAnswer]:
        answers = []
        for e, logits in predict.over(encoded):
            inside = e.target.owners >= 0
            votes = np.float64(logits[inside, 1]) - np.float64(logits[inside, 0])
            means = np.bincount(e.target.owners[inside], votes, len(e.target.texts)) / np.maximum(e.target.sizes, 1)
            means[e.target.sizes == 0] = -np.inf  # sentences without tokens
            best = np.sort(np.argsort(-means, kind="stable")[: self.config.sentences])
            answers.append(TextAnswer(join([e.target.texts[n] for n in best])))
        return answers

    def judged(self, predict: Predict, encoded: Sequence[Encoded[Sentences]]) -> Judged:
        """A case for each token of a sentence: whether the sentence is in the summary."""
        inside = [e.target.owners >= 0 for e in encoded]
        outputs = [logits[own] for own, (_, logits) in zip(inside, predict.over(encoded), strict=True)]
        right = [e.target.target[e.target.owners[own]] for own, e in zip(inside, encoded, strict=True)]
        return Judged(np.concatenate(outputs).astype(np.float64), np.concatenate(right).astype(np.int64))

    def score(self, predict: Predict, encoded: Sequence[Encoded[Sentences]]) -> Scores:
        return self._scores(encoded, [answer.text for answer in self.answers(predict, encoded)])

    def _scores(self, encoded: Sequence[Encoded[Sentences]], answers: Sequence[str]) -> Scores:
        examples = examples_of(encoded)
        return scores_of_texts(examples, render, answers, judge_summaries(examples, answers))

    def baselines(self, train: Sequence[Encoded[Sentences]], test: Sequence[Encoded[Sentences]]) -> dict[str, Scores]:
        """The first sentences of the text."""
        count = self.config.sentences
        return {f"lead-{count}": self._scores(test, [lead(e.example.input or "", count) for e in test])}

    def shown(self, record: CaseRecord) -> Shown:
        return shown_text(record, self.case_measure)


def _weights(labels: SentenceLabels) -> jax.Array:
    """Of each token; they sum to 1 per sentence."""
    return jnp.where(labels.sizes > 0, 1 / jnp.maximum(labels.sizes, 1), 0.0)
