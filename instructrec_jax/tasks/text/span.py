"""Extractive question answering: the start and end of the answer in the context, or no answer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from instructrec_jax.adapters.checkpoint_heads import Source, task_head
from instructrec_jax.adapters.soft_targets import SoftOutputs
from instructrec_jax.data.batch import Batch, BatchTexts, PerToken, Text, end_to_end
from instructrec_jax.data.codec import storable
from instructrec_jax.data.example import Example
from instructrec_jax.data.packing import max_segments
from instructrec_jax.data.prompts import check_fast
from instructrec_jax.tasks.answers import CaseRecord, Shown, SpanAnswer, TextAnswer
from instructrec_jax.tasks.averaging import Judged, padded
from instructrec_jax.tasks.base import Encoded, LossInputs, Model, Network, Task, TaskContext, name_of, pieces
from instructrec_jax.tasks.generation.question_answering import judge_answers
from instructrec_jax.tasks.generation.summarization import sentences
from instructrec_jax.tasks.generation.written_answers import shown_text
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.scores import Scores
from instructrec_jax.tasks.text.text_config import SpanConfig

NO_ANSWER = "(no answer)"  # in printed examples


@storable
@dataclass(frozen=True)
class Window:
    """A window of the context, with the question.

    Attributes:
      offsets: int32 [tokens, 2], start and end of each context token in the context's characters; -1 for other tokens.
      start, end: first and last token of the answer; 0 and 0: the answer is not in this window.
    """

    offsets: np.ndarray
    start: int
    end: int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SpanMarks:
    """int32 [tokens]: 1 at the first (`starts`) and last (`ends`) token of each text's answer."""

    starts: PerToken
    ends: PerToken


class SpanTask(Task):
    """One `Encoded` per window. The loss is the mean of the cross-entropies of start and end over the window's tokens.

    Windows without the answer have their first token as start and end, whose score is that of "no answer" (Devlin et
    al., 2019, section 4.3).
    """

    reads = "fields"
    metric = "f1"
    gathers_alone = True
    case_measure = "f1"
    per_token = True
    outputs_are = "places"

    def __init__(self, config: SpanConfig, context: TaskContext):
        self.config, self.context, self.tokenizer = config, context, context.tokenizer
        if context.kind != "encoder":
            raise ValueError("task.type span needs an encoder: use question_answering for language models.")
        check_fast(self.tokenizer)
        if config.max_answer_tokens < 1 or config.stride < 0:
            raise ValueError(
                f"task.max_answer_tokens should be at least 1 and task.stride at least 0, but they are "
                f"{config.max_answer_tokens} and {config.stride}."
            )

    def model(self, source: Source) -> Model:
        return Model(source.backbone, task_head(source, "span"))

    # ---------------------------------------------------------------- host

    def encode(self, examples: Sequence[Example]) -> list[Encoded[Window]]:
        encoded = []
        for number, example in enumerate(examples):
            name = name_of(example, number)
            span = self._answer_span(example, name)
            if span is not None:
                encoded += self._windows(example, name, span)
        return encoded

    def _answer_span(self, example: Example, name: str) -> tuple[int, int] | None:
        """(start, end) of the answer in the context's characters, (0, 0) for no answer; None: skip the example."""
        if not example.instruction:
            raise ValueError(f"{name} has no question: set fields.instruction.")
        if not example.input:
            raise ValueError(f"{name} has no context: set fields.input.")
        answers = answers_of(example)
        if not answers:
            if not self.config.no_answer:
                raise ValueError(
                    f"{name} has no answer: add it, or set task.no_answer to true for unanswerable questions."
                )
            return 0, 0
        said = example.origin.get("answer_start")
        if said is not None and said.isdecimal() and example.input.startswith(answers[0], int(said)):
            return int(said), int(said) + len(answers[0])
        for text in answers:
            if (place := example.input.find(text)) >= 0:
                return place, place + len(text)
        if self.config.on_missing_answer == "error":
            raise ValueError(
                f"{name}: its answer {answers[0]!r} is not in the context. Correct it, or set "
                "task.on_missing_answer to skip, to skip and count such examples."
            )
        label = "examples skipped because their answer is not in the context"
        self.context.count(label, 1)
        return None

    def _windows(self, example: Example, name: str, span: tuple[int, int]) -> list[Encoded[Window]]:
        question, context = example.instruction, example.input or ""
        owner = np.arange(len(context))  # character read by the tokenizer -> character of the context
        if self.context.lower_case:
            question, lowered = question.lower(), [c.lower() for c in context]  # some letters become two characters
            owner = np.repeat(owner, [len(c) for c in lowered])
            context = "".join(lowered)
        room = self.context.max_length - len(self.tokenizer(question, "")["input_ids"])
        if room < min(self.config.stride, self.config.max_answer_tokens) + 1:
            raise ValueError(
                f"{name}: beside its question, data.max_length ({self.context.max_length}) has room for {max(0, room)} "
                f"tokens of the context: raise it, or lower task.stride ({self.config.stride})."
            )
        tokens = self.tokenizer(
            question,
            context,
            truncation="only_second",
            max_length=self.context.max_length,
            stride=min(self.config.stride, room - 1),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        if not any(tokens.sequence_ids(0)):
            raise ValueError(f"{name}: the tokenizer finds no tokens in its context: remove the row.")
        types = tokens.get("token_type_ids")
        encoded = []
        for number, ids in enumerate(tokens["input_ids"]):
            inside = np.array([part == 1 for part in tokens.sequence_ids(number)])
            offsets = np.array(tokens["offset_mapping"][number], np.int64).reshape(-1, 2)
            inside &= offsets[:, 1] > offsets[:, 0]  # without empty tokens
            own = np.full(offsets.shape, -1, np.int32)
            own[inside, 0] = owner[offsets[inside, 0]]
            own[inside, 1] = owner[offsets[inside, 1] - 1] + 1
            start, end = self._marks(own, inside, span)
            text = Text(np.array(ids, np.int32), None if types is None else np.array(types[number], np.int32))
            encoded.append(Encoded(text, Window(own, start, end), example))
        return encoded

    def _marks(self, offsets: np.ndarray, inside: np.ndarray, span: tuple[int, int]) -> tuple[int, int]:
        """The tokens with the answer's first and last character; (0, 0) where one is missing in this window."""
        first = np.flatnonzero(inside & (offsets[:, 0] <= span[0]) & (offsets[:, 1] > span[0]))
        last = np.flatnonzero(inside & (offsets[:, 0] < span[1]) & (offsets[:, 1] >= span[1]))
        return (int(first[0]), int(last[0])) if span[1] > 0 and len(first) and len(last) else (0, 0)

    def gather(self, encoded: Sequence[Encoded[Window]], rng: np.random.Generator) -> BatchTexts:
        def marks(places: Sequence[int]) -> np.ndarray:
            texts = zip(encoded, places, strict=True)
            return end_to_end([np.arange(len(e.text.tokens)) == place for e, place in texts])

        starts, ends = marks([e.target.start for e in encoded]), marks([e.target.end for e in encoded])
        return BatchTexts([e.text for e in encoded], SpanMarks(starts, ends))

    # ---------------------------------------------------------------- device

    def loss(self, model: Network, batch: Batch[SpanMarks], inputs: LossInputs) -> tuple[jax.Array, jax.Array]:
        logits = model.head(model.hidden(batch, inputs.dropout), dropout=inputs.dropout)
        member = _member(batch)
        there = member.any(-1)
        total = jnp.zeros(())
        for number, marks in enumerate((batch.own.starts, batch.own.ends)):
            values = logits[..., number]
            log_z = jax.nn.logsumexp(jnp.where(member, values[:, None], -jnp.inf), axis=-1, where=member)
            total += jnp.sum(jnp.where(there, log_z, 0)) - jnp.sum(values * marks)
        return total / 2, jnp.sum(there).astype(jnp.float32)

    def soft_outputs(self, model: Network, batch: Batch[SpanMarks], inputs: LossInputs) -> list[SoftOutputs]:
        """The start and the end of each text, each a class among its tokens."""
        logits = model.head(model.hidden(batch, inputs.dropout), dropout=inputs.dropout)
        member = _member(batch)[:, None]
        values = jnp.where(member, jnp.moveaxis(logits, -1, 1)[:, :, None], -1e9)  # [rows, 2, segments, length]
        weights = jnp.broadcast_to(member.any(-1) / 2, values.shape[:-1])
        return [SoftOutputs("classes", values, weights)]

    def predict(self, model: Network, batch: Batch) -> jax.Array:
        """float32 [rows, length, 2]: logits of start and end."""
        return model.head(model.hidden(batch)).astype(jnp.float32)

    # ---------------------------------------------------------------- scores

    def unanswered(self, example: Example) -> Example:
        return replace(example, output=example.input)

    def answers(self, predict: Predict, encoded: Sequence[Encoded[Window]], k: int = 10) -> list[SpanAnswer]:
        outputs = predict.over(encoded)
        answers = []
        for windows in pieces(encoded):
            context, logits = windows[0].example.input or "", [next(outputs)[1] for _ in windows]
            found = [
                best_span(values, e.target.offsets, self.config.max_answer_tokens)
                for values, e in zip(logits, windows, strict=True)
            ]
            best, begin, end = max(found, key=lambda span: span[0])
            ahead = best - min(float(values[0].astype(np.float64).sum()) for values in logits)
            if self.config.no_answer and -ahead > self.config.no_answer_threshold:
                answers.append(SpanAnswer("", None, None, ahead))
            else:
                answers.append(SpanAnswer(context[begin:end], begin, end, ahead))
        return answers

    def score(self, predict: Predict, encoded: Sequence[Encoded[Window]]) -> Scores:
        return self._scores([each[0].example for each in pieces(encoded)], self.answers(predict, encoded))

    def judged(self, predict: Predict, encoded: Sequence[Encoded[Window]]) -> Judged:
        """Two cases for each window: its tokens are the classes, for the start and for the end."""
        found = [(e.target, logits.astype(np.float64)) for e, logits in predict.over(encoded)]
        starts = [(logits[:, 0], target.start) for target, logits in found]
        ends = [(logits[:, 1], target.end) for target, logits in found]
        rows, right = zip(*[*starts, *ends], strict=True)
        return padded(rows, right)

    def _scores(self, examples: list[Example], answers: Sequence[SpanAnswer | TextAnswer]) -> Scores:
        targets = [answers_of(example) or [""] for example in examples]
        found = judge_answers(examples, [answer.text for answer in answers], targets)
        records = [
            {"id": e.id, "input": e.instruction, **answer.to_record(), "reference": refs, found.main: float(score)}
            for e, answer, refs, score in zip(examples, answers, targets, found.cases[found.main], strict=True)
        ]
        scores = Scores(found.metrics, found.cases, records, segments=found.segments, protocol=found.protocol)
        return scores.owned_by(found.owners)

    def baselines(self, train: Sequence[Encoded[Window]], test: Sequence[Encoded[Window]]) -> dict[str, Scores]:
        """The sentence of the context that shares the most tokens with the question."""
        examples = [each[0].example for each in pieces(test)]
        answers = [TextAnswer(self._closest_sentence(example)) for example in examples]
        return {"sentence closest to the question": self._scores(examples, answers)}

    def _closest_sentence(self, example: Example) -> str:
        def words(text: str) -> set[str]:
            return set(self.tokenizer.tokenize(text.lower() if self.context.lower_case else text))

        asked = words(example.instruction)
        return max(sentences(example.input or ""), key=lambda s: len(asked & words(s)), default="")

    def shown(self, record: CaseRecord) -> Shown:
        return shown_text(record, self.case_measure, empty=NO_ANSWER)


def answers_of(example: Example) -> list[str]:
    """All acceptable answers; empty for an unanswerable question."""
    output = example.output
    return [] if output is None else list(output) if isinstance(output, tuple) else [str(output)]


def best_span(logits: np.ndarray, offsets: np.ndarray, most: int) -> tuple[float, int, int]:
    """(score, start, end) of the best answer in a window, as characters of the context.

    Args:
      logits: float [tokens, 2].
      offsets: see `Window`.
      most: maximum tokens of an answer.
    """
    places = np.flatnonzero(offsets[:, 0] >= 0)
    starts, ends = logits[places].astype(np.float64).T
    pairs = starts[:, None] + ends[None]
    between = places[None] - places[:, None]
    pairs[(between < 0) | (between >= most)] = -np.inf
    first, last = np.unravel_index(int(pairs.argmax()), pairs.shape)
    return float(pairs[first, last]), int(offsets[places[first], 0]), int(offsets[places[last], 1])


def _member(batch: Batch) -> jax.Array:
    """Whether a token belongs to a text, bool [rows, segments, length]."""
    segment_ids = jnp.asarray(batch.texts.segment_ids)
    return segment_ids[:, None] == 1 + jnp.arange(max_segments(segment_ids.shape[1]))[:, None]
