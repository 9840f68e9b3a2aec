"""scripts/robust_training.py: the noisy texts, each way's runs, which are trained once, and the intervals."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from tiny_runs import tiny_run, write_settings

from instructrec_jax.data.example import Example
from instructrec_jax.files import read_jsonl
from instructrec_jax.robustness.perturbations import Perturbation

PATH = Path(__file__).parents[1] / "scripts" / "robust_training.py"
spec = importlib.util.spec_from_file_location("robust_training_script", PATH)
assert spec is not None and spec.loader is not None
robust_training = importlib.util.module_from_spec(spec)
spec.loader.exec_module(robust_training)


def test_each_way_is_trained_once(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = write_settings(
        tiny_run("classification", checkpoint, tmp_path, steps=2, evaluation__every=0), tmp_path / "settings.yaml"
    )
    words = [str(settings), "--seeds", "3", "4", "--out", str(tmp_path / "out"), "--steps", "3", "--most", "5"]
    words += ["--noise", "{keyboard: {rate: 1.0}}"]
    words += ["--way", "both", "{augment: {swap: 0.9}, robust_training.method: r_drop, robust_training.weight: 2}"]
    monkeypatch.setattr(sys, "argv", ["robust_training.py", *words])
    robust_training.main()
    for way in ("plain", "both"):
        folder = tmp_path / f"out/seed-3/{way}"
        assert len([row for row in read_jsonl(folder / "metrics.jsonl") if row["kind"] == "train"]) == 3
        said = (folder / "config.yaml").read_text()
        assert ("method: r_drop" in said) == ("swap: 0.9" in said) == (way == "both")
    found = capsys.readouterr().out
    assert re.search(r"seed 4, both: clean 0\.\d+, keyboard \(rate 1\.0\) 0\.\d+, unseen noise 0\.\d+", found)
    monkeypatch.setattr(robust_training, "train", lambda config: pytest.fail("it was trained"))
    robust_training.main()
    assert capsys.readouterr().out.splitlines()[-4:] == found.splitlines()[-4:]


def test_an_unchanged_text_counts_as_it_is() -> None:
    """A target's own words stay; the texts are a function of the perturbation and the example."""
    examples = [Example(instruction=text, output="films") for text in ("films", "a dull evening with films", "12")]
    texts = robust_training.noisy(examples, [Perturbation("keyboard", {"rate": 1.0})], "en")
    clean, changed = texts.values()
    assert list(texts) == ["clean", "keyboard (rate 1.0)"] and clean == examples
    assert [a == b for a, b in zip(clean, changed, strict=True)] == [True, False, True]
    assert changed[1].instruction.endswith("films")
    assert texts == robust_training.noisy(examples, [Perturbation("keyboard", {"rate": 1.0})], "en")


def test_the_interval_is_students_over_paired_seeds() -> None:
    plain, other = np.array([0.7, 0.72, 0.69]), np.array([0.75, 0.79, 0.73])
    rows = [{"plain": {"clean": a}, "other": {"clean": b}} for a, b in zip(plain, other, strict=True)]
    low, high = 100 * np.array(stats.ttest_rel(other, plain).confidence_interval(0.95))
    mean = 100 * np.mean(other - plain)
    table = robust_training.table(rows)
    assert f"| other | {100 * other.mean():.1f}, {mean:+.1f} ({low:+.1f} to {high:+.1f}) |" in table
    assert "| plain | 70.3 |" in table and "to" not in robust_training.table(rows[:1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--noise", "{okr: {rate: 0.1}}"], "--noise: there is no perturbation 'okr'. Did you mean 'ocr'?"),
        (["--noise", "ocr"], "--noise should be settings"),
        (["--way", "typos", "typos"], "--way typos should be settings"),
        (["--steps"], "settings are pairs"),
    ],
)
def test_wrong_arguments_are_named(
    words: list[str], message: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = write_settings(tiny_run("classification", checkpoint, tmp_path), tmp_path / "settings.yaml")
    monkeypatch.setattr(sys, "argv", ["robust_training.py", str(settings), "--out", str(tmp_path / "out"), *words])
    with pytest.raises(SystemExit) as stopped:
        robust_training.main()
    assert message in str(stopped.value)
