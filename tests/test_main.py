"""The command `instructrec`: its verbs, its list of them, and what a verb is given. (`instructrec_jax.__main__`)"""

import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest

import instructrec_jax
from instructrec_jax import __main__ as module
from instructrec_jax.__main__ import VERBS, listing, main

PACKAGE = Path(instructrec_jax.__file__).parent


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["instructrec", *arguments])
    main()


def test_the_verbs_are_the_modules_with_a_main() -> None:
    with_main = {path.stem for path in PACKAGE.glob("*.py") if '__name__ == "__main__"' in path.read_text()}
    assert with_main - {"__main__"} == set(VERBS) and len(set(VERBS)) == len(VERBS)


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_the_list_has_a_line_of_each_verb(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, *arguments)
    printed = capsys.readouterr().out
    assert printed.strip() == listing()
    lines = {line.split()[0]: line for line in listing().splitlines() if re.match("  [a-z]", line)}
    assert list(lines) == list(VERBS)
    for verb, line in lines.items():
        doc = importlib.import_module(f"instructrec_jax.{verb}").__doc__ or ""
        said = line.split(maxsplit=1)[1]
        assert doc.startswith(said) and len(said) > 10 and len(line) <= 120


@pytest.mark.parametrize("verb", ["trian", "__main__", "files", "", "../train"])
def test_an_unknown_verb_is_named_with_the_list(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, verb)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert repr(verb) in said.err and "  train" in said.err and said.out == ""


def test_a_verb_runs_as_a_module_with_the_rest_of_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(module.runpy, "run_module", lambda name, **options: seen.extend([name, options, [*sys.argv]]))
    run(monkeypatch, "evaluate", "runs/films", "--split", "test")
    name, options, arguments = seen
    assert name == "instructrec_jax.evaluate" and options == {"run_name": "__main__", "alter_sys": False}
    assert arguments == ["evaluate", "runs/films", "--split", "test"]


def test_the_command_is_installed() -> None:
    file = PACKAGE.parent / "pyproject.toml"
    if not file.exists():
        pytest.skip("the package is installed without its repository")
    scripts = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {"instructrec": "instructrec_jax.__main__:main"}
