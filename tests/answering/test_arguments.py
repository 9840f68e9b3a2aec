"""The verbs' command lines: defaults in the help, typos, files of settings."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from instructrec_jax import prepare
from instructrec_jax.__main__ import listing
from instructrec_jax.answering import arguments
from instructrec_jax.answering.arguments import parse_options, parse_with_settings
from instructrec_jax.runs.config import ConfigError
from instructrec_jax.runs.help_text import fitted_help

PARSERS = {name: make for name, make in vars(arguments).items() if name.endswith("_parser") and name != "verb_parser"}


def made(make: Callable[..., Any]) -> Any:
    return make(*[""] * len(inspect.signature(make).parameters))


@pytest.mark.parametrize("name", PARSERS)
def test_help_shows_the_defaults(name: str) -> None:
    for action in made(PARSERS[name])._actions:
        if action.option_strings and action.default not in (None, False, "", [], "==SUPPRESS=="):
            assert "default" in action.help, action.option_strings


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("recommend", ["RUN", "--histroy", "Alien"], "history"),
        ("recommend", ["RUN", "--query", "a film"], "instruction"),
        ("recommend", ["RUN", "--top_k", "5"], "k"),
        ("evaluate", ["RUN", "--spilt", "test"], "split"),
        ("evaluate", ["RUN", "--lr", "1"], "optimizer.learning_rate"),
        ("generate", ["RUN", "--promt", "Name a river."], "prompt"),
        ("generate", ["RUN", "--max_tokens", "5"], "max_new_tokens"),
        ("predict", ["RUN", "--output", "x.csv"], "out"),
        ("plan", ["--topolgy", "cpu:8"], "topology"),
        ("export", ["RUN", "--fromat", "hf"], "format"),
        ("export", ["RUN", "--output", "x"], "out"),
        ("assist", ["RUN", "--treshold", "1"], "threshold"),
        ("watch", ["RUN", "--batch_size", "1"], "batch"),
    ],
)
def test_a_misspelled_option_suggests_the_right_one(name: str, given: list[str], meant: str) -> None:
    parse = parse_options if name in ("export", "assist", "watch") else parse_with_settings
    with pytest.raises(ConfigError, match=f"'{given[-2][2:]}'.*'{meant}'"):
        parse(made(PARSERS[f"{name}_parser"]), given)


@pytest.mark.parametrize("columns", ["80", "132"])
def test_help_fits_the_terminal(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for name, make in PARSERS.items():
        verb = importlib.import_module(f"instructrec_jax.{name.removesuffix('_parser')}")
        shown = make(
            verb.__doc__, *[["gpt2", "llama"] * 30][: len(inspect.signature(make).parameters) - 1]
        ).format_help()
        assert max(map(len, shown.splitlines())) <= int(columns), name
        assert shown.startswith(f"usage: {verb.__doc__.splitlines()[0].partition('`')[2].rstrip('`.')} [options]")
    assert max(map(len, fitted_help(prepare.__doc__).splitlines())) <= int(columns)
    assert max(map(len, listing().splitlines())) <= 80


def test_help_stands_in_two_columns_where_there_is_room() -> None:
    doc = "What it\ndoes.\n\n    verb FILE           every row of the file with what the network predicts for it"
    assert fitted_help(doc, 60).splitlines() == [
        "What it does.",
        "",
        "  verb FILE  every row of the file with what the network",
        "             predicts for it",
    ]
    narrow = fitted_help(doc, 40).splitlines()
    assert narrow[2:] == ["  verb FILE", "      every row of the file with what", "      the network predicts for it"]


@pytest.mark.parametrize("name", PARSERS)
def test_every_option_is_accepted(name: str) -> None:
    parser = made(PARSERS[name])
    for option in arguments.own_options(parser) - {"help"}:
        try:  # whatever else is missing on this command line
            parse_with_settings(parser, [f"--{option}", "1"])
        except ConfigError as error:
            assert "there is no" not in str(error)


def test_an_unusable_command_line_is_one_line() -> None:
    for given in ([], ["RUN", "--step", "last"], ["RUN", "--split", "tset"]):
        with pytest.raises(ConfigError, match=r"^[^\n]+--help[^\n]+$"):
            parse_with_settings(arguments.evaluate_parser(""), given)


def test_a_file_of_settings_needs_no_option() -> None:
    given = ["FOLDER", "my.yaml", "--data.test", "x.yaml"]
    options, rest = parse_with_settings(arguments.evaluate_parser(""), given)
    assert options.paths[0].name == "FOLDER" and rest == ["--config_path", "my.yaml", "--data.test", "x.yaml"]
