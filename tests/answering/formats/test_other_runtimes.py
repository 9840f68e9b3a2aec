"""export writes runs and HuggingFace folders for other runtimes, whole or not at all."""

from pathlib import Path

import numpy as np
import pytest
from llama_cpp_folders import folder_of
from tiny_runs import untrained_run

from instructrec_jax.answering.exporting import export
from instructrec_jax.answering.formats.program import folder_program
from instructrec_jax.backbones.tensor_names import TensorFiles
from instructrec_jax.export import main
from instructrec_jax.files import read_json
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks import ClassificationConfig


def test_a_run_is_written_with_its_head(finished: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("flatbuffers")
    export(finished.run_dir, tmp_path / "hf")
    for format in ("stablehlo", "compressed-tensors"):
        main([finished.run_dir, "--out", str(tmp_path / format), "--format", format])
        assert str(tmp_path / format) in capsys.readouterr().out
        assert f"from {finished.run_dir} (step" in (tmp_path / format / "README.md").read_text()
    weights = np.load(tmp_path / "stablehlo" / "weights.npz")
    want = folder_program(tmp_path / "hf").params
    assert weights.keys() == want.keys() and all(np.array_equal(weights[name], want[name]) for name in want)
    assert read_json(tmp_path / "compressed-tensors" / "config.json", dict)["quantization_config"]["ignore"]
    with TensorFiles(tmp_path / "compressed-tensors") as small, TensorFiles(tmp_path / "hf") as dense:
        assert np.array_equal(small.read("classifier.weight"), dense.read("classifier.weight"))
        assert "bert.encoder.layer.0.attention.self.query.weight_scale" in small.names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compressed-tensors", "hf", "stablehlo"]


def test_what_cannot_be_written_leaves_nothing(finished: Config, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    with pytest.raises(ValueError, match="no place for the tensor classifier"):
        export(finished.run_dir, tmp_path / "out", format="gguf", dtype="F32")
    with pytest.raises(ValueError, match="--dtype is 'F16', but should be one of float32"):
        export(finished.run_dir, tmp_path / "out", format="hf", dtype="F16")
    with pytest.raises(ValueError, match="--dtype is 'float16', but should be one of F16"):
        export(finished.run_dir, tmp_path / "out", format="gguf", dtype="float16")
    with pytest.raises(ValueError, match="should be left out for --format onnx"):
        export(finished.run_dir, tmp_path / "out", format="onnx", dtype="float16")
    with pytest.raises(ValueError, match="nowhere"):
        export(tmp_path / "nowhere", tmp_path / "out", format="gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["gguf", "onnx", "stablehlo", "compressed-tensors"])
def test_networks_of_images_are_refused_before_anything_is_written(
    format: str, image_networks: dict[str, Path], tmp_path: Path
) -> None:
    run = untrained_run(tmp_path / "run", ClassificationConfig(["a", "b"]), image_networks["vit"], 32)
    with pytest.raises(ValueError, match=f"--format {format} is for networks of texts, but .*run reads pictures"):
        export(run, tmp_path / "out", format=format)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_becomes_a_file_that_opens_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into llama.cpp's format, and back by the path of the file, where a run or a folder is named."""
    pytest.importorskip("gguf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder_of("llama", tmp_path / "hf")
    export(tmp_path / "hf", tmp_path / "out", format="gguf", dtype="F32")
    file = tmp_path / "out" / "model.gguf"
    again, before = Run.open(file, ["--task.type", "language_model", "--data.max_length", "64"]), tmp_path / "hf"
    with TensorFiles(again.folder) as found, TensorFiles(before) as want:
        assert all(np.array_equal(found.read(name), want.read(name)) for name in want.names)
    export(file, tmp_path / "eight", format="gguf", dtype="Q8_0")
    assert (tmp_path / "eight" / "model.gguf").stat().st_size < 0.4 * file.stat().st_size
