"""`scripts/benchmark.py data` and `store` run, on a few rows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

SCRIPT = str(Path(__file__).parents[1] / "scripts" / "benchmark.py")
TEMPLATE = "{% for m in messages %}{{ m.role + ' ' + m.content + ' ' }}{% endfor %}"


def said(*arguments: object) -> str:
    ran = subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.slow
def test_formats_of_a_store() -> None:
    pytest.importorskip("array_record")
    found = said("store", "--rows", 300, "--reads", 50)
    assert "300 records" in found
    assert [line.split()[0] for line in found.splitlines()[2:]] == ["Arrow", "ArrayRecord,", "ArrayRecord,"]


@pytest.mark.slow
def test_preparing_instructions(language_models: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    model = tmp_path / "model"
    AutoTokenizer.from_pretrained(language_models["llama"]).save_pretrained(model)
    (model / "config.json").write_text((language_models["llama"] / "config.json").read_text())
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATE}))
    found = said("data", "--model", model, "--rows", 1200, "--compared", 40, "--length", 1024)
    assert "1,200 instructions" in found
    lines = [line for line in found.splitlines() if "first batch;" in line or "examples" in line]
    assert len([line for line in lines if "1,200 examples" in line]) == 2, found
    assert len([line for line in lines if " 40 examples" in line]) == 3, found
