"""Tables fit the terminal: aligned where they can be, else wrapped, else stacked; nothing is lost."""

import os

import pytest

from instructrec_jax.evaluation.layout import aligned, fits, fitted, text_width
from instructrec_jax.evaluation.tables import format_examples, format_table

METRICS = [f"{name}@10, {where}" for where in ("phrasings seen in training", "unseen phrasings") for name in "RNM"]
NAMES = ["before tuning", "after tuning", "coKNN normalized by the known item's popularity", "BM25", "random"]


def wide() -> dict:
    values = {metric: 0.1 * (number + 1) for number, metric in enumerate(METRICS)}
    rows = [
        {
            "name": name,
            "values": {metric: value + 0.001 * n for metric, value in values.items()},
            "intervals": {metric: (value, value + 0.1) for metric, value in values.items()},
        }
        for n, name in enumerate(NAMES)
    ]
    pairs = [(name, metric) for name in NAMES if name != "after tuning" for metric in METRICS]
    differences = [
        {"name": f"after tuning − {name}", "metric": metric, "mean": 0.1 + 0.01 * n, "low": 0.05, "high": 0.2}
        for n, (name, metric) in enumerate(pairs)
    ]
    segment = {"cases": 10, "metric": METRICS[0], "low": 0.1, "high": 0.2, "shown": "after tuning"}
    name = "popularity decile 1 (0 to 12 training interactions), phrasings seen in training"
    segments = [segment | {"name": f"{name} {n}", "values": {"after tuning": 0.15}} for n in range(12)]
    return {
        "split": "validation, which also chose the checkpoint",
        "protocol": "All 460 films are ranked, those already seen are masked; 900 cases of 300 users. " * 2,
        "metrics": METRICS,
        "rows": rows,
        "differences": differences,
        "segments": segments,
    }


@pytest.mark.parametrize("width", [60, 80, 100, 132])
def test_a_wide_evaluation_fits(width: int) -> None:
    text = format_table(wide(), width=width, more="runs/films/report.html")
    assert max(len(line) for line in text.splitlines()) <= width
    words = " ".join(text.split())
    for number in range(len(METRICS)):
        for row in range(len(NAMES)):
            assert f"{0.1 * (number + 1) + 0.001 * row:.4f}" in words  # every value of the table
    assert len(text.splitlines()) < 80 and words.count("runs/films/report.html") == 3


def test_long_lists_keep_the_closest_difference_of_each_metric() -> None:
    differences = wide()["differences"]
    for n, each in enumerate(differences):
        each["low"] = -0.05 if n % 2 else 0.05  # verdicts differ
        each["metric"] = METRICS[n % 3]
    text = format_table({"differences": differences}, width=200, more="R")
    shown = text[text.index("Paired") :].splitlines()
    assert shown[0].endswith("after tuning minus") and shown[-1] == f"{len(differences) - 8} more in R"
    listed = shown[1:-1]
    assert len(listed) == 8 and all(any(metric in line for line in listed) for metric in METRICS[:3])
    assert sum(line.startswith("before tuning") for line in listed) == 6  # they have the smallest advantages


def test_differences_that_agree_are_one_sentence_for_each_metric() -> None:
    text = format_table(wide(), width=200, more="R").split("Paired differences (95% bootstrap)\n")[1].splitlines()
    assert text[0] == (
        f"{METRICS[0]}: after tuning is significantly better (95%) than all 4 others; closest: before tuning "
        "(+0.1000 [+0.0500, +0.2000])"
    )
    assert len(METRICS) == 6 and text[6] == "all 24 in R"


def test_a_tie_has_no_numbers() -> None:
    tie = {"name": "after tuning − most frequent label", "metric": "accuracy", "mean": 0.0, "low": 0.0, "high": 0.0}
    text = format_table({"differences": [tie]}, width=80)
    assert text.splitlines()[-1].split() == "most frequent label accuracy no difference".split()


def test_columns_that_belong_together_stay_together() -> None:
    table = [["", "a long metric ", "interval", "another metric ", "interval"], ["row", "1.0* ", "x", "2.0  ", "y"]]
    assert fitted(table, 100, [2, 2]) == aligned(table)
    lines = fitted(table, 40, [2, 2])
    assert fits(lines, 40) and lines.count("") == 1
    first, second = (lines[: lines.index("")], lines[lines.index("") + 1 :])
    assert first[-1].split() == ["row", "1.0*", "x"] and second[-1].split() == ["row", "2.0", "y"]


def test_intervals_give_way_to_values() -> None:
    assert "0.1000 to 0.2000" in format_table(wide(), width=400)
    narrow = format_table(wide(), width=100, more="R")
    assert "0.1000 to 0.2000" not in narrow and "95% intervals: R" in narrow.splitlines()


def test_examples_fit() -> None:
    example = {
        "instruction": "a film about " + "love and war " * 20,
        "wanted": "4.5",
        "answers": [{"text": "0.4003", "score": 16.8077, "measure": "squared error"}],
    }
    lines = format_examples([example], width=60).splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[-2:] == ["  answer: 0.4003  (squared error 16.8077)", "  target: 4.5"]


def test_the_width_is_the_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert text_width() == 80
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((0, 0)))  # as some containers say
    assert text_width() == 100
