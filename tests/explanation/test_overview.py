"""What `evaluate --explanations` puts into a run's report."""

import shutil
from pathlib import Path

import pytest

from instructrec_jax import evaluate
from instructrec_jax.evaluation.explained import Explanations
from instructrec_jax.explanation import overview
from instructrec_jax.explanation.explain import Explanation
from instructrec_jax.explanation.faithfulness import Faithfulness, MethodRow
from instructrec_jax.explanation.overview import most_faithful, pushed
from instructrec_jax.explanation.page import shaded
from instructrec_jax.files import read_json, write_jsonl
from instructrec_jax.runs.config import Config

BETTER, WORSE, NONE = (0.5, 0.25, 0.75), (-0.5, -0.75, -0.25), (0.0, -0.1, 0.1)


def explained(text: str, target: str, scores: dict[str, float | None]) -> Explanation:
    return Explanation(text, "gradient", target, None, "logit", 1.5, tuple(scores), tuple(scores.values()))


def test_a_text_is_shaded_by_its_largest_score() -> None:
    found = shaded(explained("Good, good 好 film.", "love", {"Good": -2.0, "好": 1.0, "film": None}))
    pieces = [("Good", -1.0), (", ", None), ("good", -1.0), (" ", None), ("好", 0.5), (" ", None)]
    assert found["pieces"] == [*pieces, ("film", None), (".", None)]
    assert "".join(piece for piece, _ in found["pieces"]) == "Good, good 好 film."
    assert shaded(explained("a b", "love", {"a": 0.0, "b": 0.0}))["pieces"][0] == ("a", 0.0)


def test_words_are_listed_by_what_they_add_up_to() -> None:
    texts = [explained("x", "love", {"Warm": 1.0, "cold": -3.0}), explained("y", "love", {"warm": 2.0, "red": 0.5})]
    (love, war) = pushed([*texts, explained("z", "war", {"guns": 4.0, "why": None})])
    assert [(each["word"], each["score"], each["texts"]) for each in love["words"]] == [
        ("warm", 1.5, 2),
        ("cold", -3.0, 1),
        ("red", 0.5, 1),
    ]
    assert love["target"] == "love" and war["words"] == [{"word": "guns", "score": 4.0, "texts": 1}]


def rows(*more: tuple[float, float, float]) -> Faithfulness:
    methods = ("integrated", "gradient", "occlusion")
    found = tuple(MethodRow(m, BETTER, WORSE, each, WORSE) for m, each in zip(methods, more, strict=True))
    return Faithfulness(found, (0.0, 0.0), 5, 1, "logit")


def test_the_method_that_gains_most_explains() -> None:
    best = most_faithful(rows(BETTER, (0.9, 0.1, 1.7), NONE))
    assert best is not None and best.method == "gradient"
    assert most_faithful(rows(NONE, NONE, NONE)) is None


def shown(folder: Path) -> tuple[Explanations, str]:
    found = read_json(folder / "explanations.json", Explanations)
    return found, (folder / "report.html").read_text(encoding="utf-8")


def test_the_report_has_them(
    finished: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished.run_dir, folder)
    monkeypatch.setattr(overview, "most_faithful", lambda measured: measured.rows[0])
    evaluate.main([str(folder), "--explanations", "3", "--no_baselines", "--split", "validation"])
    found, page = shown(folder)
    assert found["texts_measured"] <= 3 and len(found["methods"]) == 4
    assert found["method"] == "integrated gradients" and len(found["texts"]) == 3 and found["targets"]
    assert "Words for and against each prediction" in page and 'class="shade"' in page
    assert "with explanations" in capsys.readouterr().out

    monkeypatch.setattr(overview, "most_faithful", lambda measured: None)
    evaluate.main([str(folder), "--explanations", "3", "--no_baselines", "--split", "validation"])
    found, page = shown(folder)
    assert found["texts"] == [] and "No method beats random orders" in page


def test_too_few_examples_are_named(finished: Config) -> None:
    with pytest.raises(ValueError, match="asked of 1 examples"):
        evaluate.main([finished.run_dir, "--explanations", "1", "--no_baselines", "--split", "validation"])


def test_texts_without_words_are_left_out_and_open_integrals_counted(
    finished: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished.run_dir, folder)
    texts = ["a good film about war", "?!", "a dull old book about love", "very bright music"]
    write_jsonl(tmp_path / "few.jsonl", [{"instruction": text, "output": "war"} for text in texts])
    monkeypatch.setattr(overview, "most_faithful", lambda measured: measured.rows[0])
    monkeypatch.setattr("instructrec_jax.explanation.explain.TOLERANCE", 0.0)  # no integral is that exact
    evaluate.main(
        [str(folder), "--explanations", "4", "--no_baselines", "--data.validation", str(tmp_path / "few.jsonl")]
    )
    found, page = shown(folder)
    assert found["texts_measured"] == len(found["texts"]) == found["unconverged"] == 3
    assert "The integrals of 3 texts have a completeness error above 1%" in page
