"""A setup of shapes alone is that of the arrays: what `plan` compiles is what `train` runs."""

from pathlib import Path
from typing import Any

import jax
import pytest
from tiny_runs import changed, tiny_run

from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.runs.model import open_task
from instructrec_jax.runs.setup import TrainingSetup
from instructrec_jax.tasks.ranking.retrieval import RetrievalTask
from instructrec_jax.train import train


def layout(tree: Any, shardings: Any) -> list[tuple[str, tuple[int, ...], str, str]]:
    """(path, shape, dtype, sharding) of every array."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    placed = jax.tree.leaves(shardings)
    return [
        (jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype), str(where.spec))
        for (path, leaf), where in zip(flat, placed, strict=True)
    ]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("classification", {"backbone__train_last": 1, "mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}),
        ("regression", {"lora__rank": 2, "backbone__quantize": "int8", "mesh__fsdp": 8, "mesh__data": 1}),
    ],
)
def test_shapes_dtypes_and_places_of_the_abstract_setup(
    kind: str, changes: dict[str, Any], checkpoint: Path, tmp_path: Path
) -> None:
    config = tiny_run(kind, checkpoint, tmp_path, **changes)
    mesh = make_mesh(config.mesh)

    def task() -> Any:
        return open_task(config, checkpoint)

    real = TrainingSetup.load(config, task(), checkpoint, mesh)
    shapes = TrainingSetup.abstract(config, task(), checkpoint, mesh)
    assert layout(real.state, real.shardings) == layout(shapes.state, shapes.shardings)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes.state))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(real.state))
    for leaf, where in zip(jax.tree.leaves(real.state), jax.tree.leaves(real.shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(where, leaf.ndim)
    assert real.model.graphdef == shapes.model.graphdef and real.learning_rate_note == shapes.learning_rate_note
    assert real.state.frozen and int(real.state.step) == 0  # both settings freeze a part


def test_buffers_are_computed_by_the_loop_alone(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run reads its items, or the answers of a reference, once at its start; a resumed one not at all."""
    computed: list[int] = []
    refresh = RetrievalTask.refresh

    def counted(task: RetrievalTask, predict: Any) -> Any:
        computed.append(len(computed))
        return refresh(task, predict)

    monkeypatch.setattr(RetrievalTask, "refresh", counted)
    config = tiny_run(
        "retrieval", checkpoint, tmp_path, evaluation__every=0, task__softmax="full", task__refresh_every=4
    )
    train(changed(config, steps=2))
    assert len(computed) == 1
    train(config)  # from step 2 to 6
    assert len(computed) == 2
