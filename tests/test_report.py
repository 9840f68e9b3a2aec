"""`report`: the report again, or the model card, of a run that trained; and the card in what export writes."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from instructrec_jax import export, report
from instructrec_jax.answering.model_card import cell
from instructrec_jax.files import read_json
from instructrec_jax.runs.config import Config


@pytest.fixture
def run(finished: Config, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.run_dir, tmp_path / "run"))


def test_the_report_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "report.html").read_text(encoding="utf-8")
    (run / "report.html").unlink()
    report.main([str(run)])
    assert capsys.readouterr().out == f"written: {run / 'report.html'}\n"
    assert (run / "report.html").read_text(encoding="utf-8") == before


def test_the_card_of_a_run_and_of_its_export(run: Path, finished: Config, tmp_path: Path) -> None:
    report.main([str(run), "--card", "--watts", "65"])
    text = (run / "model_card.md").read_text(encoding="utf-8")
    card = ModelCard(text)
    rows = {row["name"]: row["values"] for row in read_json(run / "evaluation.json")["rows"]}
    results = {each.metric_type: each.metric_value for each in card.data.eval_results or []}
    assert results and results.items() <= rows["after tuning"].items()
    assert f"| {cell(finished.data.train[0].path)} | train | 24 | not stated | not stated |" in text
    assert " kWh, an estimate: 65 W × 8 × " in text and "not stated" in text
    export.main([str(run), "--out", str(tmp_path / "out")])
    exported = ModelCard((tmp_path / "out" / "README.md").read_text(encoding="utf-8"))
    assert exported.data.to_dict() == card.data.to_dict()
    assert exported.text.strip().startswith("# out\n\nExported by instructrec_jax") and "## Limits" in exported.text
    assert 'from_pretrained("out")' in exported.text


def test_wrong_arguments_are_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--watts is for the model card"):
        report.main([str(run), "--watts", "3"])
    with pytest.raises(ValueError, match="not a run directory"):
        report.main([str(tmp_path)])
