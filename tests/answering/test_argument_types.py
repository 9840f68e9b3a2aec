"""What the values of options are read as."""

import argparse
from pathlib import Path

import pytest
from tiny_pictures import png

from instructrec_jax.answering.argument_types import input_file, picture_file, run_path, share, whole_numbers


def test_values_are_read(tmp_path: Path) -> None:
    assert whole_numbers("1,5,20") == [1, 5, 20]
    assert share("20%") == pytest.approx(0.2) and share("0.005") == 0.005
    assert input_file("x.jsonl") == run_path("x.jsonl") == Path("x.jsonl")
    (tmp_path / "x.png").write_bytes(png(1))
    assert picture_file(str(tmp_path / "x.png")).name.endswith("x.png")


def test_wrong_values_are_named(tmp_path: Path) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="'1;5' should be whole numbers"):
        whole_numbers("1;5")
    with pytest.raises(argparse.ArgumentTypeError, match="'many' is no share"):
        share("many")
    with pytest.raises(argparse.ArgumentTypeError, match="'nan' is no share"):
        share("nan")
    with pytest.raises(argparse.ArgumentTypeError, match="URLs of pictures are never fetched"):
        picture_file("https://example.com/x.png")
    with pytest.raises(argparse.ArgumentTypeError, match="nothing.png cannot be read"):
        picture_file(str(tmp_path / "nothing.png"))
