"""The train state: split into trained and frozen and joined again; each array on the devices of its parameter."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.distributed.mesh_config import MeshConfig
from instructrec_jax.training.state import (
    WINDOW,
    create_state,
    empty_window,
    merge_params,
    split_params,
    state_shardings,
    without_frozen,
)

PARAMS: Any = {
    "backbone": {"layers": {"kernel": jnp.ones((8, 4)), "bias": jnp.zeros(4)}, "norm": {"scale": jnp.ones(4)}},
    "head": {"output": {"kernel": jnp.ones((4, 2))}},
}
PATHS = ["backbone/layers/bias", "backbone/layers/kernel", "backbone/norm/scale", "head/output/kernel"]


def paths(tree: Any) -> list[str]:
    return sorted("/".join(part.key for part in path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0])


@pytest.mark.parametrize("chosen", range(16))
def test_split_and_merge_are_inverse(chosen: int) -> None:
    frozen_paths = {path for number, path in enumerate(PATHS) if chosen >> number & 1}
    trained, frozen = split_params(PARAMS, lambda path: path in frozen_paths)
    assert set(paths(frozen)) == frozen_paths and set(paths(trained)) == set(PATHS) - frozen_paths
    for joined in (merge_params(trained, frozen), merge_params(frozen, trained)):
        assert paths(joined) == PATHS
        jax.tree.map(np.testing.assert_array_equal, joined, PARAMS)
    for tree in (trained, frozen):
        assert all(jax.tree.leaves(branch) for branch in tree.values())  # no empty branches


def test_merging_leaves_its_arguments_alone() -> None:
    trained, frozen = split_params(PARAMS, lambda path: path.startswith("backbone/norm"))
    merge_params(trained, frozen)
    assert paths(trained) == [path for path in PATHS if "norm" not in path] and paths(frozen) == [PATHS[2]]


def test_the_state_at_step_0() -> None:
    state = create_state(PARAMS, optax.adam(1e-3), seed=3, is_frozen=lambda path: path.startswith("head"))
    assert paths(state.params) == PATHS[:3] and paths(state.frozen) == PATHS[3:]
    assert paths(state.optimizer[0].mu) == PATHS[:3]  # type: ignore[index]  # no moments of frozen parameters
    assert (int(state.step), int(state.skipped), int(state.skipped_in_a_row)) == (0, 0, 0) and state.buffers == {}
    np.testing.assert_array_equal(state.key, jax.random.key_data(jax.random.key(3)))
    assert set(state.window) == set(WINDOW) and all(float(value) == 0 for value in empty_window().values())
    kept = without_frozen(state)
    assert kept.frozen == {} and kept.params is state.params
    with pytest.raises(ValueError, match="backbone.freeze"):
        create_state(PARAMS, optax.adam(1e-3), seed=0, is_frozen=lambda path: True)


@pytest.mark.parametrize("abstract", [False, True])
def test_moments_lie_where_their_parameters_lie_and_all_else_everywhere(abstract: bool) -> None:
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    spec = {8: PartitionSpec("fsdp", None), 4: PartitionSpec("tensor")}
    shardings = jax.tree.map(lambda leaf: NamedSharding(mesh.jax_mesh, spec[leaf.shape[0]]), PARAMS)
    optimizer = optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(optax.linear_schedule(1, 0, 9)))

    def create() -> Any:
        buffers = {"item_vectors": jnp.ones((8, 4))}
        return create_state(PARAMS, optimizer, 0, lambda path: path == "backbone/norm/scale", buffers)

    found = state_shardings(jax.eval_shape(create) if abstract else create(), shardings, mesh)
    for moments in (found.params, found.optimizer[0].mu, found.optimizer[0].nu):  # type: ignore[index]
        kernel, bias = moments["backbone"]["layers"]["kernel"], moments["backbone"]["layers"]["bias"]
        assert (kernel.spec, bias.spec) == (spec[8], spec[4])
    assert found.frozen["backbone"]["norm"]["scale"].spec == spec[4]  # type: ignore[index]
    for leaf in jax.tree.leaves((found.step, found.key, found.buffers, found.window, found.optimizer[1])):  # type: ignore[index]
        assert leaf.is_fully_replicated
