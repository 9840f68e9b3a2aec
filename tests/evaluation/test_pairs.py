"""The page of examples and their copies."""

from pathlib import Path

from instructrec_jax.data.example import Example, Message
from instructrec_jax.evaluation.pairs import Pair, write_pairs


def test_changed_words_are_marked_on_both_sides() -> None:
    old = Example(instruction="the old film was <b>good</b>", output=("a", "b"))
    copy = Example(instruction="the film was <b>fine</b>", output=("a", "b"), origin={"augmented_by": "delete"})
    pair = Pair.of(old, copy)
    assert pair.old == [("the ", False), ("old ", True), ("film was ", False), ("<b>good</b>", True)]
    assert pair.new == [("the ", False), ("film was ", False), ("<b>fine</b>", True)]
    assert (pair.methods, pair.target) == ("delete", "a b")


def test_the_page_escapes_and_needs_nothing(tmp_path: Path) -> None:
    old = Example(instruction="x", messages=(Message("user", "<script>"), Message("assistant", "hidden")), output=None)
    pairs = [Pair.of(old, Example(instruction="y", messages=old.messages))]
    page = write_pairs(tmp_path / "page.html", pairs, "1 left out: <odd>", "more.jsonl").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page and "1 left out: &lt;odd&gt;" in page
    assert "<del>x</del>" in page and "<ins>y</ins>" in page and "hidden" not in page
    assert "http" not in page.replace("http-equiv", "")
