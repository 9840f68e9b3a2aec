"""Everything that a training run carries from step to step, and how it lies on the mesh."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from instructrec_jax.distributed.mesh import DeviceMesh, replicated
from instructrec_jax.training.optimizer import path_name

Tree = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """A pytree; all of it but `frozen` is checkpointed.

    Attributes:
      params: trained parameters, nested dicts with 'backbone' (θ) and 'head' (ω).
      frozen: parameters that are not trained, in the same form; no checkpoint holds them: they are read again from
        where they came from.
      optimizer: optax's state.
      step: int32 scalar, batches consumed.
      key: uint32 [2], the run's random key (raw data); each step folds its number into it.
      buffers: arrays that are not trained but belong to the model, such as item vectors.
      window: float32 scalars summed since the last line of the log.
      skipped: int32 scalar, updates skipped because they were not finite.
      skipped_in_a_row: int32 scalar.
    """

    params: Tree
    frozen: Tree
    optimizer: Any
    step: jax.Array
    key: jax.Array
    buffers: Tree
    window: dict[str, jax.Array]
    skipped: jax.Array
    skipped_in_a_row: jax.Array


WINDOW = ("loss", "weight", "grad_norm", "steps")


def empty_window() -> dict[str, jax.Array]:
    return {name: jnp.zeros((), jnp.float32) for name in WINDOW}


def split_params(params: Tree, is_frozen: Callable[[str], bool]) -> tuple[Tree, Tree]:
    """Splits nested dicts into (trained, frozen) by the parameters' paths."""

    def pick(tree: Tree, prefix: str, frozen: bool) -> Tree:
        picked = {}
        for name, value in tree.items():
            path = f"{prefix}{name}"
            if isinstance(value, dict):
                if below := pick(value, path + "/", frozen):
                    picked[name] = below
            elif is_frozen(path) == frozen:
                picked[name] = value
        return picked

    return pick(params, "", False), pick(params, "", True)


def merge_params(first: Tree, second: Tree) -> Tree:
    """The inverse of `split_params`."""
    merged = dict(first)
    for name, value in second.items():
        merged[name] = merge_params(merged[name], value) if name in merged else value
    return merged


def without_frozen(state: TrainState) -> TrainState:
    """What a checkpoint holds."""
    return replace(state, frozen={})


def create_state(
    params: Tree,
    optimizer: optax.GradientTransformation,
    seed: int,
    is_frozen: Callable[[str], bool] = lambda path: False,
    buffers: Tree | None = None,
) -> TrainState:
    trained, frozen = split_params(params, is_frozen)
    if not trained:
        raise ValueError("nothing is left to train: every parameter is frozen.")
    return TrainState(
        params=trained,
        frozen=frozen,
        optimizer=optimizer.init(trained),
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(jax.random.key(seed)),
        buffers=buffers or {},
        window=empty_window(),
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
    )


def state_shardings(state: TrainState, params_shardings: Tree, mesh: DeviceMesh) -> TrainState:
    """Shardings of a (possibly abstract) state: moments lie where their parameters lie, the rest is everywhere."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params_shardings)
    by_path = {path_name(path): sharding for path, sharding in flat}

    def find(path: tuple[Any, ...], leaf: Any) -> Any:
        names = [str(part.key) for part in path if isinstance(part, jax.tree_util.DictKey)]
        if leaf.ndim == 0 or "/".join(names) not in by_path:
            return replicated(mesh)
        return by_path["/".join(names)]

    return jax.tree_util.tree_map_with_path(find, state)
