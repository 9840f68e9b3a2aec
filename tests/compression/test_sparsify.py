"""Runs with zeros: opened, exported and trained with the same zeros."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_runs import tiny_run

from instructrec_jax import compress as verb
from instructrec_jax.answering.beginning import begun_from
from instructrec_jax.answering.exporting import export
from instructrec_jax.compression.sparsify import shown_sparse, sparsify
from instructrec_jax.compression.sparsity import Sparsity
from instructrec_jax.runs.run import Run
from instructrec_jax.runs.stored import flat


def kernels(run: Run) -> dict[str, np.ndarray]:
    return {
        path: np.asarray(value)
        for path, value in flat(run.model.params).items()
        if path.startswith("backbone/") and path.endswith("/kernel")
    }


@pytest.fixture(scope="module")
def sparse(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("sparse") / "sparse"
    return out, sparsify(finished.run_dir, out, Sparsity.of("2:4", "wanda", ["pooler.dense"]), calibration=8)


def test_the_zeros_are_in_the_run_and_in_its_export(sparse: Any, tmp_path: Path) -> None:
    out, found = sparse
    for path, value in kernels(Run.open(out)).items():
        groups = (value == 0).reshape(*value.shape[:-2], -1, 4, value.shape[-1]).sum(-2)
        assert (groups == (0 if "pooler" in path else 2)).all(), path
    export(out, tmp_path / "hf")
    written = load_file(tmp_path / "hf" / "model.safetensors")["bert.encoder.layer.0.intermediate.dense.weight"]
    assert (written == 0).mean() == 0.5
    assert list(found.losses) == ["wanda", "magnitude", "sparsegpt"] and found.quality is not None
    assert "neither smaller nor faster" in shown_sparse(found) and "times as fast" not in shown_sparse(found)


def test_a_run_that_starts_from_it_keeps_the_zeros(sparse: Any, finished: Any, tmp_path: Path) -> None:
    config = tiny_run("classification", Path(finished.backbone.path), tmp_path, init_from=str(sparse[0]))
    assert begun_from(config).optimizer.keep_zeros
    assert begun_from(config).optimizer.keep_zeros, "also when it resumes"


@pytest.mark.slow  # a training run
def test_training_leaves_the_zeros(sparse: Any, finished: Any, tmp_path: Path) -> None:
    from instructrec_jax.train import train

    config = tiny_run("classification", Path(finished.backbone.path), tmp_path, init_from=str(sparse[0]))
    train(config)
    before, after = kernels(Run.open(sparse[0])), kernels(Run.open(config.run_dir))
    for path, value in after.items():
        np.testing.assert_array_equal(value == 0, before[path] == 0, err_msg=path)
    assert any((after[path] != before[path]).any() for path in after)


def test_what_cannot_be_done_is_named_and_leaves_nothing(finished: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="in groups of 7, but a layer has 32 inputs"):
        sparsify(finished.run_dir, tmp_path / "small", Sparsity.of("3:7", "magnitude"), calibration=4)
    with pytest.raises(ValueError, match="--weights is for codes"):
        verb.main([finished.run_dir, "--out", str(tmp_path / "s"), "--sparsity", "50%", "--weights", "int4"])
    with pytest.raises(ValueError, match="--sparsity beside pruning"):
        verb.main([finished.run_dir, "--out", str(tmp_path / "s"), "--sparsity", "50%", "--layers", "1"])
    assert not list(tmp_path.iterdir())
