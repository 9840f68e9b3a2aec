"""The same cases in other words: what is asked, and the numbers that are told."""

from pathlib import Path

import numpy as np
import pytest

from instructrec_jax.data.example import Example
from instructrec_jax.evaluation.evaluator import ScoredRow
from instructrec_jax.evaluation.prompt_variants import format_sensitivity, read_wordings, reworded, sensitivity
from instructrec_jax.tasks.scores import Scores

CASES = [
    Example(instruction="What is it about?", input="a dull film", output="love", id="a"),
    Example(instruction="Name {x}: 50%?", input="a book", output="war", id="b"),
]


def test_the_words_change_and_nothing_else() -> None:
    asked = [reworded(case, "Subject?") for case in CASES]
    assert [(e.instruction, e.input, e.output, e.id) for e in asked] == [
        ("Subject?", "a dull film", "love", "a"),
        ("Subject?", "a book", "war", "b"),
    ]
    assert reworded(CASES[1], "Please: {instruction} 谢谢").instruction == "Please: Name {x}: 50%? 谢谢"
    alone = Example(instruction="a dull film", id="c")
    assert reworded(alone, "Subject of {instruction}").instruction == "Subject of a dull film"
    with pytest.raises(ValueError, match="'Subject'.*'c'"):
        reworded(alone, "Subject")


@pytest.mark.parametrize(("text", "words"), [("", "0 wordings|0 prompts"), ("one\n\n", "1 "), ("a\nb\na\n", "'a'")])
def test_files_that_say_too_little(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "wordings.txt").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_wordings(tmp_path / "wordings.txt")


def test_mean_spread_and_worst() -> None:
    values = {"“a”": 0.5, "“b”": 0.8, "“c”": 0.6}
    rows = [ScoredRow(name, {"": Scores({"accuracy": v, "loss": -v})}) for name, v in values.items()]
    found = sensitivity(rows, "accuracy", greater=True)[""]
    assert found["mean"] == pytest.approx(1.9 / 3) and found["spread"] == pytest.approx(np.std([0.5, 0.8, 0.6], ddof=1))
    assert (found["worst"], found["worst_wording"]) == (0.5, "“a”")
    assert sensitivity(rows, "loss", greater=False)[""]["worst_wording"] == "“a”"
    assert format_sensitivity({"unseen": found}).startswith("accuracy, unseen, over 3 prompts: mean 0.6333")
