"""The converter of a real language model, if its packages are installed."""

import runpy
from pathlib import Path

import pytest
from llama_cpp_folders import smollm2

SCRIPT = Path(__file__).parents[1] / "scripts" / "smollm2_folder.py"


@pytest.mark.slow
def test_it_answers_as_an_instruction_tuned_model(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    smollm2()
    from instructrec_jax.answering.language_model import LanguageModel
    from instructrec_jax.inference.generation_config import GenerationConfig

    runpy.run_path(str(SCRIPT))["main"]([str(tmp_path / "smol")])
    model = LanguageModel(tmp_path / "smol")
    [answer] = model.generate("What is the capital of France?", GenerationConfig(max_new_tokens=24))
    assert "Paris" in answer.text
