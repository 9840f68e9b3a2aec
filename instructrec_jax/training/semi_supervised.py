"""Learning from examples without labels within the one training step: settings, loss, and what a run remembers."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import jax
import jax.numpy as jnp

from instructrec_jax.adapters.pseudo_labels import (
    THRESHOLDS,
    Learned,
    Marginals,
    Method,
    learned,
    log_shares,
    true_classes,
)
from instructrec_jax.adapters.soft_targets import SoftOutputs
from instructrec_jax.backbones.layers import DropoutKeys
from instructrec_jax.data.batch import Batch
from instructrec_jax.tasks.base import LossInputs, Model, Task
from instructrec_jax.training.method_settings import check_ranges, is_chosen
from instructrec_jax.training.state import TrainState, Tree, empty_window
from instructrec_jax.training.training_config import SemiSupervisedConfig

SUMS = ("unlabeled_loss", "unlabeled", "pseudo_used", "pseudo_known", "pseudo_right", "pseudo_threshold")


SETTINGS_OF: dict[str, tuple[Method, ...]] = {
    "threshold": ("self_training", "fixmatch", "uda"),
    "per_class_thresholds": ("self_training", "fixmatch", "uda"),
    "align": ("self_training", "fixmatch", "uda"),
    "temperature": ("uda",),
}


def check_semi_supervised(config: SemiSupervisedConfig, task: Task, kind: str) -> None:
    """Raises ValueError for settings out of range or without effect, and for a task that the method cannot take.

    kind: the task's type, for messages.
    """
    default, name = SemiSupervisedConfig(), "semi_supervised"
    if not is_chosen(config, name, SETTINGS_OF):
        return
    if config.per_class_thresholds and config.threshold is not None:
        raise ValueError(f"{name}.threshold has no effect with per_class_thresholds: set one of them.")
    if config.momentum != default.momentum and not (config.align or config.per_class_thresholds):
        raise ValueError(f"{name}.momentum has no effect without align or per_class_thresholds: leave it out.")
    ranges = {
        "ratio": (0 < config.ratio < float("inf"), "positive, such as 4"),
        "weight": (0 < config.weight < float("inf"), "positive, such as 1"),
        "ramp_up": (config.ramp_up >= 0, "a number of steps, at least 0"),
        "threshold": (config.threshold is None or 0 <= config.threshold <= 1, "a probability, from 0 to 1"),
        "temperature": (0 < config.temperature < float("inf"), "positive, such as 0.4"),
        "momentum": (0 <= config.momentum < 1, "at least 0 and below 1, such as 0.99"),
        "teacher_decay": (0 <= config.teacher_decay < 1, "at least 0 and below 1, such as 0.99"),
    }
    check_ranges(config, name, ranges)
    _check_task(config, task, kind)


def _check_task(config: SemiSupervisedConfig, task: Task, kind: str) -> None:
    tasks = {f"{kind} {own}": each for own, each in task.subtasks.items()} or {kind: task}
    for name, each in tasks.items():
        if not each.reads_unlabeled:
            hint = " with task.negatives, whose candidates are the answers of others" * (kind == "similarity")
            raise ValueError(
                f"semi_supervised.method is {config.method}, but task.type {name}{hint} does not learn from "
                "data.unlabeled: leave both out."
            )
        if each.context.pixels is not None:
            raise ValueError(
                f"data.unlabeled: task.type {name} reads images or sounds, but unlabeled examples are texts."
            )
        if each.max_target_length is not None:
            raise ValueError(f"data.unlabeled: task.type {name} writes texts, which have no classes: leave it out.")
        if each.outputs_are == "numbers" and config.method != "pi_model":
            raise ValueError(
                f"semi_supervised.method is {config.method}, but task.type {name} predicts numbers, which are no "
                "classes: use pi_model."
            )
        by_class = next((key for key in ("align", "per_class_thresholds") if getattr(config, key)), None)
        if by_class and each.outputs_are != "labels":
            raise ValueError(
                f"semi_supervised.{by_class} compares classes, but task.type {name} has no fixed classes, of which "
                "each example has one: leave it out."
            )


# ---------------------------------------------------------------- what a run remembers


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RememberingState(TrainState):
    """The state of a run that learns from unlabeled examples. (Checkpoints of other runs have no place for more.)

    Attributes:
      teacher: float32, an exponential average of `params`, in the same form; empty with `teacher_decay` 0.
      marginals: see `first_marginals`.
    """

    teacher: Tree
    marginals: dict[str, dict[str, jax.Array]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Noted:
    """Sums over the unlabeled examples of a batch (or of micro-batches, added up).

    Attributes:
      sums: see `SUMS`.
      shares: for each output with classes, float32 [classes] and scalars: Σ w p, Σ w max p, Σ w and, of labeled
        examples, Σ w [label] and Σ w.
    """

    sums: dict[str, jax.Array]
    shares: dict[str, dict[str, jax.Array]] = field(default_factory=dict)


def nothing_noted(marginals: dict[str, dict[str, jax.Array]]) -> Noted:
    """The sums over no example."""
    zeros = {"weight": jnp.zeros(()), "labels": jnp.zeros(())}
    shares = {number: jax.tree.map(jnp.zeros_like, old) | zeros for number, old in marginals.items()}
    return Noted(dict.fromkeys(SUMS, jnp.zeros(())), shares)


def first_marginals(config: SemiSupervisedConfig, task: Task) -> dict[str, dict[str, jax.Array]]:
    """Running averages at step 0 by the number of the output: all classes alike. {}: none are needed."""
    if not (config.align or config.per_class_thresholds):
        return {}
    sizes = [len(each.labels) for each in (list(task.subtasks.values()) or [task])]

    def even(size: int) -> jax.Array:
        return jnp.full(size, 1 / size)

    return {
        str(number): {"predicted": even(size), "labeled": even(size), "confidence": jnp.float32(1 / size)}
        for number, size in enumerate(sizes)
    }


def moved(
    config: SemiSupervisedConfig, marginals: dict[str, dict[str, jax.Array]], noted: Noted
) -> dict[str, dict[str, jax.Array]]:
    """The running averages after a batch: momentum · old + (1 - momentum) · mean of the batch, where it has any."""

    def average(old: jax.Array, total: jax.Array, weight: jax.Array) -> jax.Array:
        new = config.momentum * old + (1 - config.momentum) * total / jnp.maximum(weight, 1e-9)
        return jnp.where(weight > 0, new, old)

    weights = {"predicted": "weight", "confidence": "weight", "labeled": "labels"}
    found = {}
    for number, old in marginals.items():
        new = noted.shares[number]
        found[number] = {name: average(old[name], new[name], new[weight]) for name, weight in weights.items()}
    return found


# ---------------------------------------------------------------- the loss


@dataclass(frozen=True)
class Unlabeled:
    """What the loss of unlabeled examples needs beside the network and a batch.

    Attributes:
      teacher: reads the weak view; without gradient.
      marginals: see `first_marginals`.
      factor: of the sum over the examples, see `factor_of`.
    """

    config: SemiSupervisedConfig
    method: Method
    task: Task
    teacher: Model
    marginals: dict[str, dict[str, jax.Array]]
    factor: jax.Array


def factor_of(
    config: SemiSupervisedConfig, task: Task, model: Model, batch: Batch, inputs: LossInputs, step: jax.Array
) -> jax.Array:
    """λ(step) · Σ w / Σ w′ of the whole batch, w those of labeled examples and w′ those of unlabeled ones.

    So (Σ w ℓ + factor · Σ w′ m d) / Σ w is the mean loss of labeled examples plus λ times that of all unlabeled ones,
    as in FixMatch. λ = weight · exp(-5 (1 - step / ramp_up)²) while step < ramp_up (Laine & Aila, 2017). None of this
    depends on the network, whose arithmetic the compiler leaves out.
    """
    assert batch.unlabeled is not None
    view = task.view(model)
    labeled = task.loss(view, replace(batch, unlabeled=None), inputs)[1]
    unlabeled = sum(jnp.sum(each.weights) for each in task.soft_outputs(view, batch.unlabeled.weak, inputs))
    rest = 1 - jnp.minimum(step / config.ramp_up, 1) if config.ramp_up else jnp.zeros(())
    return config.weight * jnp.exp(-5 * rest**2) * labeled / jnp.maximum(unlabeled, 1e-9)


def unlabeled_loss(
    own: Unlabeled, model: Model, batch: Batch, inputs: LossInputs, weak: DropoutKeys | None, strong: DropoutKeys | None
) -> tuple[jax.Array, Noted]:
    """(factor · Σ w m d, what it noted) of a batch or micro-batch.

    Args:
      inputs: those of the labeled examples; `weak`, `strong`: the dropout keys of both views.
    """
    config, task = own.config, own.task
    assert batch.unlabeled is not None
    views = batch.unlabeled
    theirs = task.soft_outputs(task.view(own.teacher), views.weak, replace(inputs, dropout=weak))
    mine = task.soft_outputs(task.view(model), views.strong, replace(inputs, dropout=strong))
    labeled: Sequence[SoftOutputs | None] = [None] * len(theirs)
    if own.marginals:  # their targets alone, without the network
        labeled = list(task.soft_outputs(task.view(own.teacher), replace(batch, unlabeled=None), inputs))
    total = dict.fromkeys(SUMS, jnp.zeros(()))
    shares = {}
    least = config.threshold if config.threshold is not None else THRESHOLDS.get(own.method, 0.0)
    for number, (there, here, known) in enumerate(zip(theirs, mine, labeled, strict=True)):
        there, here = in_front(there, views.weak), in_front(here, views.strong)
        known_shares = own.marginals.get(str(number))
        found = learned(
            own.method,
            there,
            here,
            threshold=least,
            temperature=config.temperature,
            marginals=None if known_shares is None else Marginals(**known_shares),
            align=config.align,
            per_class=config.per_class_thresholds,
        )
        total = jax.tree.map(jnp.add, total, _named(found, there))
        if known is not None:
            shares[str(number)] = _shares(there, known)
    return own.factor * total["unlabeled_loss"], Noted(total, shares)


def _named(found: Learned, there: SoftOutputs) -> dict[str, jax.Array]:
    values = (found.loss, jnp.sum(there.weights), found.used, found.known, found.right, found.threshold)
    return dict(zip(SUMS, map(jnp.float32, values), strict=True))


def _shares(there: SoftOutputs, known: SoftOutputs) -> dict[str, jax.Array]:
    p, truth = jnp.exp(log_shares(there)), true_classes(known)
    assert truth is not None
    labels = jnp.asarray(known.weights)[..., None] * jax.nn.one_hot(truth, p.shape[-1])
    weights = jnp.asarray(there.weights)[..., None]
    axes = tuple(range(p.ndim - 1))
    return {
        "predicted": jnp.sum(weights * p, axes),
        "confidence": jnp.sum(weights[..., 0] * p.max(-1)),
        "weight": jnp.sum(weights),
        "labeled": jnp.sum(labels, axes),
        "labels": jnp.sum(labels),
    }


def in_front(outputs: SoftOutputs, batch: Batch) -> SoftOutputs:
    """The outputs of a task of tokens with those that count first in each row, in order; others as they are.

    Both views of a text have the same words in the same row and order, though not at the same tokens.
    """
    if outputs.weights.shape != batch.outputs.tokens.shape:
        return outputs
    order = jnp.argsort(jnp.asarray(outputs.weights) == 0, axis=1, stable=True)

    def sorted_(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=1)

    targets = None if outputs.targets is None else sorted_(jnp.asarray(outputs.targets))
    return replace(
        outputs, values=sorted_(outputs.values), weights=sorted_(jnp.asarray(outputs.weights)), targets=targets
    )


def with_memory(config: SemiSupervisedConfig, state: TrainState, task: Task) -> TrainState:
    """The state at step 0 with what the loss of unlabeled examples remembers, and the sums that it logs."""
    if config.method == "none":
        return state
    # copies: the step gives the memory of both to its result
    teacher = jax.tree.map(lambda x: jnp.array(x, jnp.float32), state.params) if config.teacher_decay else {}
    window = empty_window([*state.window, *SUMS])
    own = {each.name: getattr(state, each.name) for each in fields(state)} | {"window": window}
    return RememberingState(**own, teacher=teacher, marginals=first_marginals(config, task))


def remembered(
    config: SemiSupervisedConfig, old: RememberingState, params: Tree, noted: Noted
) -> tuple[Tree, dict[str, dict[str, jax.Array]]]:
    """(teacher, marginals) after an update that gave the parameters."""
    return averaged(config, old.teacher, params, old.step), moved(config, old.marginals, noted)


def averaged(config: SemiSupervisedConfig, old: Tree, new: Tree, step: jax.Array) -> Tree:
    """d · old + (1 - d) · new, parameter by parameter, d = min(teacher_decay, 1 - 1 / (step + 1)).

    The mean teacher of Tarvainen & Valpola, 2017: the first updates follow the network closely.
    """
    if not config.teacher_decay:
        return {}
    decay = jnp.minimum(config.teacher_decay, 1 - 1 / (step + 1.0))
    return jax.tree.map(lambda o, n: decay * o + (1 - decay) * n.astype(o.dtype), old, new)
