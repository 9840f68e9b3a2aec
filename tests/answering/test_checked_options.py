"""Options that exclude each other, and those that go together."""

from collections.abc import Callable
from pathlib import Path

import pytest

from instructrec_jax.answering.checked_options import (
    Options,
    evaluate_options,
    generate_options,
    predict_options,
    recommend_options,
)

Read = Callable[[str, list[str]], Options]


@pytest.mark.parametrize(
    ("read", "line", "message"),
    [
        (evaluate_options, "a --weights tuned", "--weights is for an ensemble"),
        (evaluate_options, "a --robust_limit 20%", "give --robust, too"),
        (predict_options, "a", "give --text TEXT or --input FILE"),
        (predict_options, "a --text x --input y", "give --text TEXT or --input FILE"),
        (predict_options, "a --text x --out y.csv", "--out needs --input"),
        (predict_options, "a --input - --out y.csv", "redirect stdout"),
        (generate_options, "a --prompt x --samples 2", "--samples is for --task image"),
        (generate_options, "a --input x --image y.png", "--image is for --prompt"),
        (
            recommend_options,
            "a --user 1 --exclude Alien --input x",
            "--user, --exclude cannot be combined with --input",
        ),
        (recommend_options, "a --user 1 --out y.csv", "--out needs --input"),
    ],
)
def test_options_that_exclude_each_other_are_named(read: Read, line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read("", line.split())


@pytest.mark.parametrize(
    ("read", "line"),
    [
        (evaluate_options, "a b --weights tuned"),
        (evaluate_options, "a --average rank --weights tuned"),
        (evaluate_options, "a --robust default --robust_limit 20%"),
        (predict_options, "a --input x --out y.csv"),
        (predict_options, "a --input -"),
        (generate_options, "a --prompt x --task image --samples 2"),
        (generate_options, "a --prompt x --image y.png"),
        (recommend_options, "a --input x --out y.csv"),
    ],
)
def test_options_that_go_together_are_read_with_settings_of_train(read: Read, line: str) -> None:
    options, rest = read("", [*line.split(), "--mesh.tensor", "2"])
    assert rest == ["--mesh.tensor", "2"]
    assert getattr(options, "paths", getattr(options, "path", getattr(options, "run", None))) in (
        *(Path("a"), [Path("a")], [Path("a"), Path("b")]),
    )


def test_a_file_that_is_there_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exists already: choose another --out"):
        generate_options("", ["a", "--prompt", "x", "--out", str(tmp_path)])
