"""ONNX files of encoders, run by onnxruntime on ragged rows."""

from pathlib import Path

import numpy as np
import pytest
import transformers
from llama_cpp_folders import KINDS, folder_of

from instructrec_jax.answering.formats import onnx
from instructrec_jax.answering.formats.onnx import write_onnx
from instructrec_jax.answering.formats.program import folder_program
from instructrec_jax.files import write_json

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def outputs(file: Path, *arrays: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([each.name for each in session.get_inputs()], arrays, strict=True)))[0]


@pytest.mark.slow
def test_vectors_of_ragged_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of("bert", tmp_path / "hf")
    kinds = [{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "p"}, {"type": "a.Normalize"}]
    write_json(tmp_path / "hf" / "modules.json", kinds)
    write_json(tmp_path / "hf" / "p" / "config.json", {"pooling_mode_mean_tokens": True})
    write_onnx(tmp_path / "hf", tmp_path)
    program = folder_program(tmp_path / "hf")
    rng = np.random.default_rng(0)
    for rows, length in ((1, 2), (5, 23), (2, 64)):
        mask = (np.arange(length) < rng.integers(1, length + 1, (rows, 1))).astype(np.int64)
        tokens = rng.integers(0, 90, (rows, length)) * mask
        found = outputs(tmp_path / "model.onnx", tokens, mask, 0 * mask)
        want = program.call(program.params, *(x.astype(np.int32) for x in (tokens, mask, 0 * mask)))
        np.testing.assert_allclose(found, want, atol=1e-4)
    monkeypatch.setattr(onnx, "TOLERANCE", 0.0)
    with pytest.raises(ValueError, match="between the file's outputs and ours"):
        onnx._compare(tmp_path / "model.onnx", program, 90)


def test_logits_of_a_classifier(tmp_path: Path) -> None:
    config = transformers.BertConfig(**KINDS["bert"][1], num_labels=3)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "hf")
    use = write_onnx(tmp_path / "hf", tmp_path)  # compares both itself
    assert "logits" in use
    tokens = np.array([[5, 6, 7, 0]])
    assert outputs(tmp_path / "model.onnx", tokens, (tokens > 0).astype(np.int64), 0 * tokens).shape == (1, 3)


def test_a_decoder_is_named(tmp_path: Path) -> None:
    folder_of("llama", tmp_path)
    with pytest.raises(ValueError, match="llama is none: use --format gguf"):
        write_onnx(tmp_path, tmp_path)
