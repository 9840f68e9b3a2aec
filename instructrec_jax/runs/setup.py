"""The training step and its initial state, built in one place for training, planning, benchmarks and tests."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import optax

from instructrec_jax.data.batch import Batch
from instructrec_jax.distributed.launch import place
from instructrec_jax.distributed.mesh import DeviceMesh
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.runs.adapting import check_trainable
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.data import buckets
from instructrec_jax.runs.fitted_head import FitHead, head_fitter
from instructrec_jax.runs.initial import initial_model
from instructrec_jax.runs.model import SplitModel, abstract_model
from instructrec_jax.runs.teachers import beside_step, open_teachers
from instructrec_jax.tasks.base import Task
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.training.optimizer import make_optimizer
from instructrec_jax.training.parameters import learning_rate_factors, with_learning_rate
from instructrec_jax.training.robust_training import check_robust_training
from instructrec_jax.training.semi_supervised import with_memory
from instructrec_jax.training.state import TrainState, Tree, create_state, state_shardings
from instructrec_jax.training.step import make_train_step
from instructrec_jax.training.training_config import OptimizerConfig

Buffers = Mapping[str, np.ndarray | jax.Array | jax.ShapeDtypeStruct]
Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


@dataclass(frozen=True)
class TrainingSetup:
    """The training step of a run and its initial state.

    Attributes:
      state: arrays on the mesh; jax.ShapeDtypeStruct in an abstract setup.
      shardings: nested like `state`.
      teachers: the networks of `distil.teachers`.
      step: (state, batch) -> (state, sums of the log window), see `training.step.make_train_step`.
      predict_with: parameters -> the model, ready for `task.score`.
      fit_head: what of the parameters is fitted instead of learned, see `runs.fitted_head.head_fitter`.
      optimizer_config: the optimizer's settings, with the default learning rate filled in.
      learning_rate_note: the learning rate as a line of the summary.
    """

    config: Config
    task: Task
    mesh: DeviceMesh
    model: SplitModel
    teachers: Sequence[SplitModel]
    optimizer: optax.GradientTransformation
    state: TrainState
    shardings: TrainState
    step: Step
    predict_with: Callable[[Tree], Predict]
    fit_head: FitHead
    optimizer_config: OptimizerConfig
    learning_rate_note: str

    @classmethod
    def load(
        cls, config: Config, task: Task, folder: Path, mesh: DeviceMesh, buffers: Buffers | None = None
    ) -> "TrainingSetup":
        """With the pretrained (or randomly initialized) parameters of `folder`, sharded over the mesh.

        Args:
          buffers: buffers of the state; None: zeros, until the task's `refresh` before the first step.
        """
        return cls._of(config, task, initial_model(config, task, folder, mesh), mesh, buffers)

    @classmethod
    def abstract(cls, config: Config, task: Task, folder: Path, mesh: DeviceMesh) -> "TrainingSetup":
        """With shapes instead of arrays, for devices that need not be present."""
        check_trainable(config)
        model = abstract_model(config, task, folder, mesh)
        return cls._of(config, task, model, mesh, abstract=True)

    @classmethod
    def _of(
        cls,
        config: Config,
        task: Task,
        model: SplitModel,
        mesh: DeviceMesh,
        buffers: Buffers | None = None,
        abstract: bool = False,
    ) -> "TrainingSetup":
        network, fresh = model.network, config.backbone.random_init
        rates = {"config.json": model.source.config.to_dict(), "lora": vars(config.lora), "task": vars(config.task)}
        check_robust_training(config.robust_training, task, config.task.name, network, rates)
        chosen, rate_note = with_learning_rate(config.optimizer, network, model.is_frozen, random_init=fresh)
        factors = learning_rate_factors(network, chosen.layer_decay) if chosen.layer_decay < 1 else None
        optimizer = make_optimizer(chosen, config.steps, factors)
        predict_with = predictor(task, model.graphdef, mesh, buckets(config))

        def create(params: Tree) -> TrainState:
            state = create_state(params, optimizer, config.seed, is_frozen=model.is_frozen)
            return with_memory(config.semi_supervised, state, task)

        state = jax.eval_shape(create, model.params) if abstract else create(model.params)
        if buffers is None:
            shapes = task.buffer_shapes(model.source.config.get_text_config().hidden_size)
            make = jax.ShapeDtypeStruct if abstract else np.zeros
            buffers = {name: make(shape, np.float32) for name, shape in shapes.items()} if task.refresh_every else {}
        state = replace(state, buffers=buffers)
        shardings = state_shardings(state, model.shardings, mesh)
        teachers = open_teachers(config, task, mesh, are_abstract=abstract)
        step = make_train_step(
            task,
            model.graphdef,
            optimizer,
            mesh=mesh,
            shardings=shardings,
            accumulation=config.accumulation,
            teachers=beside_step(config, task, teachers, mesh, are_abstract=abstract),
            semi_supervised=config.semi_supervised,
            robust_training=config.robust_training,
        )
        if not abstract:
            state = place(state, shardings)
        fit_head = head_fitter(task, model, mesh, buckets(config))
        functions = (step, predict_with, fit_head)
        return cls(config, task, mesh, model, teachers, optimizer, state, shardings, *functions, chosen, rate_note)
