"""The train state: all arrays that a run carries from step to step, and their shardings."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from instructrec_jax.distributed.mesh import DeviceMesh, Nested, replicated
from instructrec_jax.training.optimizer import path_name

Tree: TypeAlias = Nested[jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """A pytree; checkpoints store all fields but `frozen`.

    Attributes:
      params: trained parameters, nested dicts with 'backbone' (θ) and 'head' (ω).
      frozen: frozen parameters, in the same form; a resumed run reads them from their original files.
      optimizer: optax's state.
      step: int32 scalar, batches consumed.
      key: uint32 [2], the run's random key (raw data); each step folds its number into it.
      buffers: arrays of the model that are not trained, such as item vectors.
      window: float32 scalars, sums since the last log line.
      skipped: int32 scalar, updates skipped because they were not finite.
      skipped_in_a_row: int32 scalar, the same without a finite update since.
    """

    params: Tree
    frozen: Tree
    optimizer: optax.OptState
    step: jax.Array
    key: jax.Array
    buffers: dict[str, jax.Array]
    window: dict[str, jax.Array]
    skipped: jax.Array
    skipped_in_a_row: jax.Array


WINDOW = ("loss", "weight", "grad_norm", "steps")


def empty_window(names: Iterable[str] = WINDOW) -> dict[str, jax.Array]:
    """The sums of a new window: zeros."""
    return {name: jnp.zeros((), jnp.float32) for name in names}


def split_params(params: Tree, is_frozen: Callable[[str], bool]) -> tuple[Tree, Tree]:
    """Splits nested dicts into (trained, frozen) by parameter path."""

    def pick(tree: Tree, prefix: str, frozen: bool) -> Tree:
        picked: Tree = {}
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
        known = merged.get(name)
        merged[name] = merge_params(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return merged


def without_frozen(state: TrainState) -> TrainState:
    """The state as checkpoints store it."""
    return replace(state, frozen={})


def create_state(
    params: Tree,
    optimizer: optax.GradientTransformation,
    seed: int,
    is_frozen: Callable[[str], bool] = lambda path: False,
    buffers: dict[str, jax.Array] | None = None,
) -> TrainState:
    """The state at step 0. Raises ValueError where every parameter is frozen."""
    trained, frozen = split_params(params, is_frozen)
    if not trained:
        raise ValueError("every parameter is frozen: see backbone.freeze, backbone.train_last and lora.")
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


def state_shardings(state: TrainState, params_shardings: Nested[NamedSharding], mesh: DeviceMesh) -> TrainState:
    """Shardings of a (possibly abstract) state: optimizer moments as their parameters, all else replicated."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params_shardings)
    by_path: dict[str, jax.sharding.Sharding] = {path_name(path): sharding for path, sharding in flat}

    def find(path: Sequence[object], leaf: jax.Array) -> jax.sharding.Sharding:
        names = [str(part.key) for part in path if isinstance(part, jax.tree_util.DictKey)]
        if leaf.ndim == 0 or "/".join(names) not in by_path:
            return replicated(mesh)
        return by_path["/".join(names)]

    return jax.tree_util.tree_map_with_path(find, state)
