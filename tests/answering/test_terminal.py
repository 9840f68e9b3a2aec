"""A table whose columns stand below each other on a terminal, and a person who is asked."""

import io
from typing import Any

import pytest

from instructrec_jax.answering.evidence import Evidence, Part
from instructrec_jax.answering.requests import Answer, Recommendation
from instructrec_jax.answering.terminal import ask_person, named_weight, table, width


@pytest.mark.parametrize(
    ("text", "columns"),
    [("", 0), ("abc", 3), ("漢字", 4), ("é", 1), ("e\u0301", 1), ("🎬", 2), ("a\u200bb", 2), ("ｶﾞ", 2), ("Ａ", 2)],
)
def test_width(text: str, columns: int) -> None:
    assert width(text) == columns


def test_columns_stand_below_each_other() -> None:
    titles = ["Moon (2009)", "太空 🚀 (1997)", "Amélie", "e\u0301"]
    found = [
        Recommendation(f"i{n}", title, 10.0 ** (n - 1), n, [Evidence(Part("word", "good"), 0.5)] if n < 3 else [])
        for n, title in enumerate(titles, 9)
    ]
    lines = table(Answer(prompt="a wish", recommendations=found, notes=["one", "two"])).splitlines()
    assert lines[:4] == ["prompt: a wish", "note: one", "note: two", ""]
    head, *rows = lines[4:]
    assert head.split()[:3] == ["title", "score", "evidence"] and len(rows) == 4
    ends = set()
    for row, each in zip(rows, found, strict=True):
        score = f"{each.score:.4f}"
        assert row.lstrip().startswith(f"{each.rank}  {each.title} ") and score in row
        ends.add(width(row[: row.index(score) + len(score)]))
    assert len(ends) == 1  # the scores end in one column, whatever the titles
    assert all(not row.endswith(" ") for row in rows)


def test_no_recommendations() -> None:
    assert table(Answer(prompt="a wish")).splitlines()[-1].split()[:3] == ["title", "score", "evidence"]


def asked(monkeypatch: pytest.MonkeyPatch, typed: str) -> int | None:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    return ask_person('"War" could be', ["War (1991)", "War (1998)"])


@pytest.mark.parametrize(
    ("typed", "choice"),
    [("1\n", 0), ("2\n", 1), (" 2 \n", 1), ("0\n", None), ("", None), ("3\nwhat?\n\n-1\n1.5\n2\n", 1), ("9\n", None)],
)
def test_a_person_is_asked_until_the_answer_is_a_choice(
    typed: str, choice: int | None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert asked(monkeypatch, typed) == choice
    out, err = capsys.readouterr()
    assert out == "" and "1  War (1991)\n  2  War (1998)\n  0  " in err  # the answers alone go to stdout


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, (None, None)),
        ("coKNN", ("coKNN", None)),
        ("coKNN=0.15", ("coKNN", 0.15)),
        ("runs/a=b=1", ("runs/a=b", 1.0)),
        ("coKNN=1e-1", ("coKNN", 0.1)),
    ],
)
def test_a_name_with_its_weight(text: str | None, expected: tuple[str | None, float | None]) -> None:
    assert named_weight("--hybrid", text) == expected


def test_a_folder_may_have_an_equals_sign_in_its_name(tmp_path: Any) -> None:
    (tmp_path / "run=0.5").mkdir()
    assert named_weight("--rerank", str(tmp_path / "run=0.5")) == (str(tmp_path / "run=0.5"), None)


@pytest.mark.parametrize("text", ["coKNN=", "coKNN=much", "=x"])
def test_a_weight_that_is_none_names_its_option(text: str) -> None:
    with pytest.raises(ValueError, match=f"--hybrid.*{text}"):
        named_weight("--hybrid", text)
