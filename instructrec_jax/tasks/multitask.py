"""Multitask learning: a head per subtask on one backbone, which reads each text once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.adapters.checkpoint_heads import Source
from instructrec_jax.adapters.soft_targets import SoftOutputs
from instructrec_jax.data.batch import Along, Array, Batch, BatchTexts, PerText, Rows, Text, lengths_of, map_arrays
from instructrec_jax.data.example import Example
from instructrec_jax.tasks.answers import Answer, Shown
from instructrec_jax.tasks.base import Encoded, HeadView, LossInputs, Model, Network, Task, TaskContext, pieces
from instructrec_jax.tasks.encoded_store import of_task
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.scores import Scores
from instructrec_jax.tasks.task_config import MultitaskConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Subtasks:
    """The number of each text's subtask, int32 [texts] (1, 2, ...; 0: no text), and the arrays of each by name."""

    owner: PerText
    subtasks: dict[str, Any]


class MultitaskTask(Task):
    """The loss is Σ λ w ℓ / Σ λ w over the targets of all subtasks, with λ the weight of a target's subtask.

    `metric` is "average", the mean of the subtasks' own metrics; a metric where lower is better counts negative.
    """

    metric = "average"

    def __init__(self, config: MultitaskConfig, context: TaskContext):
        self.context = context
        names = [subtask.name for subtask in config.tasks]
        if len(names) < 2 or len(set(names)) != len(names) or not all(names):
            raise ValueError(f"task.tasks should list at least two tasks with different names, but has {names}.")
        self.weights = {subtask.name: subtask.weight for subtask in config.tasks}
        for name, weight in self.weights.items():
            if not 0 < weight < float("inf"):
                raise ValueError(f"task.tasks: the weight of task {name!r} should be positive, but is {weight}.")
        self.tasks: dict[str, Task] = {}
        for subtask in config.tasks:
            if subtask.task.draws_images or subtask.task.draws_texts:
                raise ValueError(
                    f"task.tasks: task {subtask.name!r} is of type {subtask.task.name}, which draws images and cannot "
                    "share a run: train it in its own run."
                )
            task = subtask.task.build(context)
            if task.couples_examples or task.refresh_every or task.subtasks or task.head_is_fitted != "never":
                raise ValueError(
                    f"task.tasks: task {subtask.name!r} is of type {subtask.task.name}, whose loss depends on several "
                    "examples or on buffers, or whose head is fitted on all of them, so it cannot share a run: train "
                    "it in its own run."
                )
            task.head_name = subtask.name
            self.tasks[subtask.name] = task
        targets = {name: task.max_target_length for name, task in self.tasks.items()}
        if None in targets.values() and set(targets.values()) != {None}:
            without = next(name for name, length in targets.items() if length is None)
            raise ValueError(
                f"task.tasks: task {without!r} uses the encoder of an encoder–decoder, other tasks its decoder, which "
                "one batch cannot do: make it generate answers (task.type language_model), or use another backbone."
            )
        self.max_target_length = max((length for length in targets.values() if length is not None), default=None)
        self.needs_pooler = any(task.needs_pooler for task in self.tasks.values())
        self.freeze = [pattern for task in self.tasks.values() for pattern in task.freeze]
        self._one: dict[str, Encoded] = {}  # an example of each subtask, for the arrays of a batch without any

    @property
    def subtasks(self) -> Mapping[str, Task]:
        return self.tasks

    def model(self, source: Source) -> Model:
        heads = {}
        for name, task in self.tasks.items():
            heads[name] = task.model(source).head
        return Model(source.backbone, nnx.Dict(heads))

    @property
    def encodes_together(self) -> bool:  # type: ignore[override]
        return any(task.encodes_together for task in self.tasks.values())

    def encoding_depends_on(self) -> dict[str, object]:
        return {name: task.encoding_depends_on() for name, task in self.tasks.items()}

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        for number, example in enumerate(examples):
            if example.task not in self.tasks:
                raise ValueError(
                    f"example {example.id or number!r} belongs to task {example.task!r}, but task.tasks lists "
                    f"{', '.join(self.tasks)}: set `task` of its source, or add the task."
                )
        by_number: list[list[Encoded]] = [[] for _ in examples]  # in the order of the examples
        for name, task in self.tasks.items():
            own = [number for number, example in enumerate(examples) if example.task == name]
            place = {id(examples[number]): number for number in own}
            encoded = task.encode([examples[number] for number in own]) if own else []
            number = own[-1] if own else 0
            for e in reversed(encoded):  # encodings derived from an example (earlier turns) come before it
                number = place.get(id(e.example), number)
                by_number[number].insert(0, e)
        return [e for each in by_number for e in each]

    def prepare(self, train: Sequence[Encoded]) -> None:
        for name, task in self.tasks.items():
            own = of_task(train, name)
            if not len(own):
                raise ValueError(f"data.train has no example of task {name!r}: add some, or remove it from task.tasks.")
            task.prepare(own)
            self._one[name] = own[0]

    def gather(self, encoded: Sequence[Encoded], rng: np.random.Generator) -> BatchTexts:
        """The texts of all subtasks; each array is prefixed with its subtask's name, and zero for other texts.

        The texts of a subtask with one text per example are in the order of the examples; those of a subtask with more
        texts (pairs of instruction and item, say) come last.
        """
        own = {name: [e for e in encoded if e.example.task == name] for name in self.tasks}
        gathered = {name: self._gather(name, own[name], rng) for name in self.tasks}
        moved = [name for name in self.tasks if len(gathered[name].texts) != len(own[name])]
        texts: list[Text] = []
        places: dict[str, list[int]] = {name: [] for name in self.tasks}

        def put(name: str) -> None:
            text = gathered[name].texts[len(places[name])]
            places[name].append(len(texts))
            texts.append(text)

        for e in encoded:
            if e.example.task not in moved:
                put(e.example.task)
        for name in moved:
            for _ in gathered[name].texts:
                put(name)
        owner = np.zeros(len(texts), np.int32)
        for number, name in enumerate(self.tasks, 1):
            owner[places[name]] = number
        own_texts = {name: _spread(gathered[name], np.array(places[name], int), texts) for name in self.tasks}
        return BatchTexts(texts, Subtasks(owner, own_texts))

    def _gather(self, name: str, own: Sequence[Encoded], rng: np.random.Generator) -> BatchTexts:
        """The subtask's batch of its examples; without examples, the same arrays with no texts."""
        if not own and name not in self._one:
            raise ValueError(
                f"no example of task {name!r} so far: a stream must begin with examples of all task.tasks."
            )
        if own:
            self._one.setdefault(name, own[0])
            return self.tasks[name].gather(own, rng)
        one = self.tasks[name].gather([self._one[name]], np.random.default_rng(0))
        return BatchTexts([], map_arrays(lambda axis, array: array if axis is Along.WHOLE else array[:0], one.own))

    def loss(self, model: Network, batch: Batch[Subtasks], inputs: LossInputs) -> tuple[jax.Array, jax.Array]:
        hidden = model.hidden(batch, inputs.dropout)
        total = weight = jnp.zeros(())
        for number, (name, task) in enumerate(self.tasks.items(), 1):
            view, own = HeadView(model, name, hidden), own_batch(batch, name, number)
            found = task.loss(view, own, inputs)
            total, weight = total + self.weights[name] * found[0], weight + self.weights[name] * found[1]
        return total, weight

    def soft_outputs(self, model: Network, batch: Batch[Subtasks], inputs: LossInputs) -> list[SoftOutputs]:
        hidden = model.hidden(batch, inputs.dropout)
        found = []
        for number, (name, task) in enumerate(self.tasks.items(), 1):
            own = task.soft_outputs(HeadView(model, name, hidden), own_batch(batch, name, number), inputs)
            found += [replace(each, weights=self.weights[name] * each.weights) for each in own]
        return found

    @property
    def reads_unlabeled(self) -> bool:  # type: ignore[override]
        return all(task.reads_unlabeled for task in self.tasks.values())

    def as_unlabeled(self, example: Example) -> Example:
        return self.tasks[example.task].as_unlabeled(example) if example.task in self.tasks else example

    def without_target(self, encoded: Encoded) -> Encoded:
        return self.tasks[encoded.example.task].without_target(encoded)

    # ---------------------------------------------------------------- scores

    def check(self, encoded: Sequence[Encoded]) -> None:
        for name, own in self._by(encoded):
            self.tasks[name].check(own)

    def unanswered(self, example: Example) -> Example:
        if example.task not in self.tasks:
            raise ValueError(
                f"the record belongs to task {example.task!r}, but the run's tasks are {', '.join(self.tasks)}: set "
                "its field task."
            )
        return self.tasks[example.task].unanswered(example)

    def answers(self, predict: Predict, encoded: Sequence[Encoded], k: int = 10) -> list[Answer]:
        found = {
            name: iter(self.tasks[name].answers(predict.subtasks[name], own, k)) for name, own in self._by(encoded)
        }
        return [next(found[each[0].example.task]) for each in pieces(encoded)]

    def score(self, predict: Predict, encoded: Sequence[Encoded]) -> Scores:
        return self._merged(
            {name: self.tasks[name].score(predict.subtasks[name], own) for name, own in self._by(encoded)}
        )

    def _by(self, encoded: Sequence[Encoded]) -> list[tuple[str, Sequence[Encoded]]]:
        groups = [(name, of_task(encoded, name)) for name in self.tasks]
        return [(name, own) for name, own in groups if len(own)]

    def _merged(self, scores: Mapping[str, Scores]) -> Scores:
        def named(name: str, metric: str) -> str:
            return f"{metric} ({name})"

        own = {name: self.tasks[name] for name in scores}
        signed = [
            scores[name].metrics[task.metric] * (1 if task.greater_is_better else -1)
            for name, task in own.items()
            if task.metric in scores[name].metrics
        ]
        average = {"average": float(np.mean(signed))} if len(signed) == len(scores) else {}
        metrics = {named(n, m): value for n, each in scores.items() for m, value in each.metrics.items()}
        return Scores(
            average | metrics,
            {named(n, m): values for n, each in scores.items() for m, values in each.cases.items()},
            [{"task": n, **record} for n, each in scores.items() for record in each.predictions],
            "\n\n".join(f"{n}\n{each.report}" for n, each in scores.items() if each.report),
            [*average, *(named(n, m) for n, each in scores.items() for m in each.main or each.metrics)],
            protocol="; ".join(f"{n}: {each.protocol}" for n, each in scores.items() if each.protocol),
            charts={named(n, m): data for n, each in scores.items() for m, data in each.charts.items()},
            compared=[named(n, m) for n, each in scores.items() for m in (own[n].metric, *each.compared)],
            corpus={named(n, m): metric for n, each in scores.items() for m, metric in each.corpus.items()},
            owners={named(n, m): owners for n, each in scores.items() for m, owners in each.owners.items()},
            note="; ".join(f"{n}: {each.note}" for n, each in scores.items() if each.note),
        )

    def baselines(self, train: Sequence[Encoded], test: Sequence[Encoded]) -> dict[str, Scores]:
        """The baselines of each subtask; baselines of the same name share a row."""
        found: dict[str, dict[str, Scores]] = {}
        training = dict(self._by(train))
        for name, own in self._by(test):
            if name in training:
                for baseline, scores in self.tasks[name].baselines(training[name], own).items():
                    found.setdefault(baseline, {})[name] = scores
        return {baseline: self._merged(scores) for baseline, scores in found.items()}

    def showcase(self, predict: Predict, encoded: Sequence[Encoded]) -> list[Shown]:
        return [
            shown
            for name, own in self._by(encoded)
            for shown in self.tasks[name].showcase(predict.subtasks[name], own)[:3]
        ]


def own_batch(batch: Batch[Subtasks], name: str, number: int) -> Batch:
    """A batch as one subtask sees it: its own arrays, the texts of others as padding.

    So a loss that counts texts, and not only weights, counts only those of the subtask.
    """
    mine = batch.own.owner == number  # [rows, segments]

    def own(rows: Rows) -> Rows:
        there = jnp.take_along_axis(mine, jnp.maximum(rows.segment_ids - 1, 0), axis=1)
        return replace(rows, segment_ids=jnp.where(there, rows.segment_ids, 0))

    targets = None if batch.targets is None else own(batch.targets)
    return replace(batch, texts=own(batch.texts), targets=targets, own=batch.own.subtasks[name])


def _spread(own: BatchTexts, places: np.ndarray, texts: Sequence[Text]) -> object:
    """A subtask's arrays for all `texts` of the batch, of which its own are at `places`; zero for others."""
    lengths, target_lengths = lengths_of(texts)
    outputs = lengths if target_lengths is None else target_lengths
    tokens = np.repeat(np.isin(np.arange(len(texts)), places), outputs)  # whether a token is the subtask's

    def spread(axis: Along, array: Array) -> Array:
        if axis is Along.WHOLE:
            return array
        if axis not in (Along.TOKENS, Along.TEXTS):
            raise ValueError(f"arrays along {axis.value} cannot share a batch with other tasks.")
        each = axis is Along.TOKENS
        whole = np.zeros((len(tokens) if each else len(texts), *array.shape[1:]), array.dtype)
        whole[tokens if each else places] = array
        return whole

    return map_arrays(spread, own.own)
