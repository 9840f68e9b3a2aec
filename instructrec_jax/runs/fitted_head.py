"""Heads that are fitted on the vectors of the training examples (`Task.head_is_fitted`)."""

from collections.abc import Callable, Sequence
from typing import cast

import jax
import numpy as np
from jax.sharding import NamedSharding

from instructrec_jax.data.augmented import MADE_FROM
from instructrec_jax.distributed.launch import place
from instructrec_jax.distributed.mesh import DeviceMesh
from instructrec_jax.evaluation.predictor import make_predict
from instructrec_jax.runs.model import SplitModel
from instructrec_jax.tasks.base import Encoded, Task
from instructrec_jax.training.state import Tree
from instructrec_jax.training.step import make_feature_step

FitHead = Callable[[Tree, Sequence[Encoded]], Tree]


def head_fitter(task: Task, model: SplitModel, mesh: DeviceMesh, buckets: Sequence[int]) -> FitHead:
    """A function: (all parameters, training examples) -> the fitted parameters, nested like all, placed like them.

    Empty where the task's head is not fitted.

    Raises ValueError where the head is frozen, or all of the backbone and the head is not learned by the step.
    """
    if task.head_is_fitted == "never":
        return lambda params, train: {}
    flat, _ = jax.tree_util.tree_flatten_with_path(model.params)
    paths = ["/".join(str(part.key) for part in path) for path, _ in flat]
    if any(path.startswith("head/") and model.is_frozen(path) for path in paths):
        raise ValueError("backbone.freeze freezes the head, which this task fits: leave the head out of it.")
    if task.head_is_fitted == "anew" and all(path.startswith("head/") or model.is_frozen(path) for path in paths):
        raise ValueError(
            "all of the backbone is frozen, but this task tunes its vectors, on which the head is fitted: leave out "
            "backbone.freeze and backbone.train_last, or set task.type classification."
        )

    shardings = cast(dict[str, dict[str, NamedSharding]], model.shardings["head"])

    step = make_feature_step(task, model.graphdef, mesh)

    def fit(params: Tree, train: Sequence[Encoded]) -> Tree:
        if task.head_is_fitted == "once":  # a start needs no changed copies, which may be many
            train = [e for e in train if MADE_FROM not in e.example.origin] or train

        def features() -> np.ndarray:
            run = make_predict(step, params, mesh=mesh, buckets=buckets, per_token=False)
            return np.stack(run([e.text for e in train]))

        head = task.fit(features, train)
        fitted: Tree = {}
        for module, values in head.items():
            fitted[module] = {name: place(value, shardings[module][name]) for name, value in values.items()}
        return {"head": fitted}

    return fit


def check_fits(task: Task, name: str, train: Sequence[Encoded]) -> None:
    """Raises ValueError for a stream, whose examples are not there together."""
    if task.head_is_fitted != "never" and not len(train):
        raise ValueError(
            f"task.type {name} fits its head on all training examples together, which a stream does not have: set "
            "streaming: false."
        )
