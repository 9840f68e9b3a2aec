"""Several tasks in one run: a head each on one backbone, which reads every text once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.adapters.checkpoint_heads import Source
from instructrec_jax.backbones.layers import DropoutKeys
from instructrec_jax.data.example import Example
from instructrec_jax.data.loader import Parts
from instructrec_jax.tasks.base import Arrays, Encoded, Model, Predict, Scores, Task, TaskConfig, TaskContext


@dataclass
class PartConfig:
    """One of the tasks."""

    name: str = ""  # what `task` of its examples says (a source's setting, or each record's own)
    task: TaskConfig = field(default_factory=TaskConfig)
    weight: float = 1.0  # of each of its targets in the loss


@TaskConfig.register_subclass("multitask")
@dataclass
class MultitaskConfig(TaskConfig):
    """Learn several tasks at once; each example belongs to the one that its `task` names."""

    tasks: list[PartConfig] = field(default_factory=list)  # name, task (type and settings) and weight of each

    def build(self, context: TaskContext) -> "MultitaskTask":
        return MultitaskTask(self, context)

    @property
    def complete(self) -> bool:
        return all(part.task.complete for part in self.tasks)

    def learn(self, examples: Sequence[Example]) -> "MultitaskConfig":
        def learnt(part: PartConfig) -> PartConfig:
            own = [e for e in examples if e.task == part.name]
            return part if part.task.complete else replace(part, task=part.task.learn(own))

        return replace(self, tasks=[learnt(part) for part in self.tasks])


class View:
    """One task's model inside of the whole: the backbone and its own head.

    Args:
      hidden: the backbone's hidden states for the batch at hand, where they are there already.
    """

    def __init__(self, model: Any, name: str, hidden: jax.Array | None = None):
        self.backbone, self.head, self._model, self._hidden = model.backbone, model.head[name], model, hidden

    def hidden(self, batch: Arrays, dropout: DropoutKeys | None = None) -> jax.Array:
        return self._model.hidden(batch, dropout) if self._hidden is None else self._hidden


class MultitaskTask(Task):
    """The loss is Σ λ w ℓ / Σ λ w over the targets of all tasks, λ being the weight of a target's task.

    `metric` is "average", the mean of the tasks' own metrics; one where less is better counts negative.
    """

    metric = "average"

    def __init__(self, config: MultitaskConfig, context: TaskContext):
        self.context = context
        names = [part.name for part in config.tasks]
        if len(names) < 2 or len(set(names)) != len(names) or not all(names):
            raise ValueError(f"task.tasks should list at least two tasks with different names, but has {names}.")
        self.weights = {part.name: part.weight for part in config.tasks}
        for name, weight in self.weights.items():
            if not 0 < weight < float("inf"):
                raise ValueError(f"the weight of task {name!r} should be a positive number, but is {weight}.")
        self.tasks: dict[str, Task] = {}
        for part in config.tasks:
            task = part.task.build(context)
            if task.couples_examples or task.refresh_every or isinstance(task, MultitaskTask):
                kind = part.task.get_choice_name(type(part.task))
                raise ValueError(
                    f"task {part.name!r} is of type {kind}, whose loss looks at more than an example at a time, so it "
                    "cannot be learnt beside others: train it in a run of its own."
                )
            task.view = partial(View, name=part.name)  # type: ignore[method-assign]
            self.tasks[part.name] = task
        targets = {name: task.max_target_length for name, task in self.tasks.items()}
        if None in targets.values() and set(targets.values()) != {None}:
            without = next(name for name, length in targets.items() if length is None)
            raise ValueError(
                f"task {without!r} reads the encoder and others the decoder of an encoder–decoder, which one batch "
                "cannot do: let it write its answers (task.type language_model), or use an encoder or a decoder."
            )
        self.max_target_length = max((length for length in targets.values() if length is not None), default=None)
        self.needs_pooler = any(task.needs_pooler for task in self.tasks.values())
        self.freeze = [pattern for task in self.tasks.values() for pattern in task.freeze]
        # of each task the arrays of one example: what a batch without any of its examples has
        self._like: dict[str, Parts] = {}

    @property
    def parts(self) -> Mapping[str, Task]:
        return self.tasks

    def model(self, source: Source) -> nnx.Module:
        heads = {}
        for name, task in self.tasks.items():
            model: Any = task.model(source)
            heads[name] = model.head
        return Model(source.backbone, nnx.Dict(heads))

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        for number, example in enumerate(examples):
            if example.task not in self.tasks:
                raise ValueError(
                    f"example {example.id or number!r} is of task {example.task!r}, but task.tasks has "
                    f"{', '.join(self.tasks)}: set `task` of its source, or add the task."
                )
        by_task = {name: self.tasks[name].encode(self._own(examples, name)) for name in {e.task for e in examples}}
        for name, encoded in by_task.items():
            if encoded and name not in self._like:
                self._like[name] = self.tasks[name].gather(encoded[:1], np.random.default_rng(0))
        # in the order of the examples: an example may have become several, or none
        place = {id(example): number for number, example in enumerate(examples)}
        return sorted((e for each in by_task.values() for e in each), key=lambda e: place[id(e.example)])

    def _own(self, examples: Sequence[Example], name: str) -> list[Example]:
        return [e for e in examples if e.task == name]

    def gather(self, encoded: Sequence[Encoded], rng: np.random.Generator) -> Parts:
        """The parts of all tasks; each array has its task's name before its own, and zeros for texts of others."""
        texts: list[Any] = [e.text for e in encoded]
        places = {name: [i for i, e in enumerate(encoded) if e.example.task == name] for name in self.tasks}
        gathered = {}
        for name, own in places.items():
            if not own and name not in self._like:
                raise ValueError(f"no example of task {name!r} was read yet: a stream should begin with all tasks.")
            gathered[name] = self.tasks[name].gather([encoded[i] for i in own], rng) if own else self._like[name]
            for i, text in zip(own, gathered[name].texts, strict=False):
                texts[i] = text  # a task may change its texts: masked ones
        result = Parts(texts)
        for name, own in places.items():
            parts = gathered[name]
            if parts.per_example or parts.slots:
                raise ValueError(f"task {name!r} cannot be learnt beside others: train it in a run of its own.")
            for key, values in parts.per_text.items():
                whole = np.zeros((len(texts), *values.shape[1:]), values.dtype)
                whole[own] = values[: len(own)]
                result.per_text[f"{name}.{key}"] = whole
            for key, rows in parts.per_token.items():
                lengths = [len(text.tokens if text.target is None else text.target) for text in texts]
                spread = [np.zeros(length, np.int32) for length in lengths]
                for i, row in zip(own, rows, strict=False):
                    spread[i] = row
                result.per_token[f"{name}.{key}"] = spread
        return result

    def loss(
        self, model: Any, batch: Arrays, *, dropout: DropoutKeys | None, buffers: Arrays, parts: int
    ) -> tuple[jax.Array, jax.Array]:
        hidden = model.hidden(batch, dropout)
        total = weight = jnp.zeros(())
        for name, task in self.tasks.items():
            own = {key.removeprefix(f"{name}."): array for key, array in batch.items()}
            view = View(model, name, hidden)
            found = task.loss(view, own, dropout=dropout, buffers=buffers, parts=parts)
            total, weight = total + self.weights[name] * found[0], weight + self.weights[name] * found[1]
        return total, weight

    # ---------------------------------------------------------------- scores

    def check(self, encoded: Sequence[Encoded]) -> None:
        for name, own in self._by(encoded):
            self.tasks[name].check(own)

    def score(self, predict: Predict, encoded: Sequence[Encoded]) -> Scores:
        return self._merged({name: self.tasks[name].score(predict.parts[name], own) for name, own in self._by(encoded)})

    def _by(self, encoded: Sequence[Encoded]) -> list[tuple[str, list[Encoded]]]:
        groups = [(name, [e for e in encoded if e.example.task == name]) for name in self.tasks]
        return [(name, own) for name, own in groups if own]

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
        """The simple methods of each task; a method that several tasks have is one row."""
        found: dict[str, dict[str, Scores]] = {}
        learnt_from = dict(self._by(train))
        for name, own in self._by(test):
            if name in learnt_from:
                for method, scores in self.tasks[name].baselines(learnt_from[name], own).items():
                    found.setdefault(method, {})[name] = scores
        return {method: self._merged(scores) for method, scores in found.items()}

    def showcase(self, predict: Predict, encoded: Sequence[Encoded]) -> list[dict[str, Any]]:
        return [
            shown
            for name, own in self._by(encoded)
            for shown in self.tasks[name].showcase(predict.parts[name], own)[:3]
        ]
