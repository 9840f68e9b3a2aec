"""Files of sentence-transformers: what is declared is read back, and wrong weights are refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from instructrec_jax.backbones.folder import POOLING_MODES, Projection, read_pooling
from instructrec_jax.backbones.sentence_vectors import WEIGHT, read_projection, write_sentence_modules

KERNEL = np.random.default_rng(0).normal(size=(8, 3))


def write(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text('{"model_type": "bert"}')
    settings: dict[str, Any] = {"hidden_size": 8, "pooling": "mean", "projection": None, "max_length": 64}
    write_sentence_modules(folder, **(settings | {"lower_case": False} | changes))


@pytest.mark.parametrize("mode", sorted(set(POOLING_MODES.values())))
@pytest.mark.parametrize("lower_case", [True, False])
def test_pooling_is_read_back(mode: str, lower_case: bool, tmp_path: Path) -> None:
    write(tmp_path, pooling=mode, lower_case=lower_case, max_length=37)
    found = read_pooling(tmp_path)
    assert (found.mode, found.normalize, found.max_length, found.lower_case) == (mode, True, 37, lower_case)
    assert found.declared and found.projection is None


def test_a_projection_is_read_back(tmp_path: Path) -> None:
    write(tmp_path, projection=KERNEL)
    projection = read_pooling(tmp_path).projection
    assert projection is not None and (projection.inputs, projection.outputs) == (8, 3)
    np.testing.assert_array_equal(read_projection(projection), KERNEL.astype(np.float32))
    kinds = [each["type"].rpartition(".")[2] for each in json.loads((tmp_path / "modules.json").read_text())]
    assert kinds == ["Transformer", "Pooling", "Dense", "Normalize"]


def test_older_declarations_are_replaced_and_prompts_stay(tmp_path: Path) -> None:
    write(tmp_path, projection=KERNEL)
    (tmp_path / "config_sentence_transformers.json").write_text('{"prompts": {"query": "find "}}')
    (tmp_path / "sentence_roberta_config.json").write_text('{"max_seq_length": 1}')
    (tmp_path / "2_Notes.txt").touch()  # no folder
    write(tmp_path, pooling="cls")
    names = {path.name for path in tmp_path.iterdir()}
    assert "2_Dense" not in names and "sentence_roberta_config.json" not in names
    assert {"config_sentence_transformers.json", "2_Notes.txt", "1_Pooling", "modules.json"} <= names
    assert read_pooling(tmp_path).mode == "cls" and read_pooling(tmp_path).projection is None


def test_a_projection_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    for value in (np.nan, np.inf):
        bad = KERNEL.copy()
        bad[2, 1] = value
        with pytest.raises(ValueError, match="projection"):
            write(tmp_path, projection=bad)


def dense(folder: Path, tensors: dict[str, np.ndarray]) -> Projection:
    save_file(tensors, folder / "model.safetensors")
    return Projection(folder, inputs=8, outputs=3)


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({WEIGHT: KERNEL.astype(np.float32)}, r"\(8, 3\).*\(3, 8\)"),  # not transposed
        ({WEIGHT: np.full((3, 8), np.nan, np.float32)}, WEIGHT),
        ({WEIGHT: np.ones((3, 8), np.float32), "linear.bias": np.ones(3, np.float32)}, "linear.bias"),
        ({"weight": np.ones((3, 8), np.float32)}, WEIGHT),
        ({WEIGHT: np.ones((3, 8), np.int64)}, WEIGHT),
    ],
)
def test_weights_that_do_not_fit_are_named(tensors: dict[str, np.ndarray], named: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=named):
        read_projection(dense(tmp_path, tensors))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=tmp_path.name):
        read_projection(Projection(tmp_path, inputs=8, outputs=3))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_weights_become_float32_of_inputs_by_outputs(dtype: Any, tmp_path: Path) -> None:
    stored = np.ascontiguousarray(KERNEL.T.astype(dtype))
    found = read_projection(dense(tmp_path, {WEIGHT: stored}))
    assert found.dtype == np.float32 and found.shape == (8, 3)
    np.testing.assert_array_equal(found, stored.T.astype(np.float32))
