"""The registry of embedded demos, which no other room goes around."""

import ast
from pathlib import Path

import pytest

import instructrec_jax
from instructrec_jax.answering.phrasing import wording_of
from instructrec_jax.files import write_json
from instructrec_jax.preparation import demos
from instructrec_jax.ranking.catalogue import Catalogue
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.model import backbone_folder, prepare_data

PACKAGE = Path(instructrec_jax.__file__).parent


def test_every_demo_is_registered_by_importing_preparation() -> None:
    found = {path.parent.parent.name for path in PACKAGE.glob("preparation/*/backbone/config.json")}
    assert set(demos.names()) == found
    for name in demos.names():
        demo = demos.find(name, "data.prepare")
        assert demos.is_demo(name) and (demo.backbone / "tokenizer.json").is_file()
        assert backbone_folder(name) == demo.backbone
        assert demos.demo_of({"source": demo.source}) is demo
    assert demos.demo_of({"source": "movielens"}) is None and demos.demo_of({}) is None


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="data.prepare"):
        demos.find("books", "data.prepare")
    config = Config()
    config.data.prepare = "books"
    with pytest.raises(ValueError, match="data.prepare.*books"):
        prepare_data(config)
    with pytest.raises(ValueError, match="backbone.path"):
        backbone_folder("")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_room_names_a_demo(path: Path) -> None:
    """By import or as a text of its own; docstrings may give examples."""
    if path.is_relative_to(PACKAGE / "preparation"):
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom | ast.Import):
            imported = [f"{getattr(node, 'module', '')}.{alias.name}" for alias in node.names]
            assert not [name for name in imported if set(name.split(".")) & set(demos.names())], imported
        if isinstance(node, ast.Constant):
            assert node.value not in demos.names(), f"line {node.lineno}"


@pytest.mark.parametrize("name", demos.names())
def test_requests_are_worded_as_the_demo_words_them(name: str, tmp_path: Path) -> None:
    demo = demos.find(name, "data.prepare")
    write_json(tmp_path / "card.json", {"source": demo.source, "settings": {}})
    wording = wording_of(tmp_path)
    items = Catalogue(["a", "b", "c"], ["A", "B", "C"], ["x", "y", "z"], {"year": [1990, 1991, 1992]})
    assert wording.always_told and wording.titles == demo.titles_in_prompt
    assert wording.prompt(items, [], "a quiet one") == "a quiet one"
    nothing, history, both = demo.instructions
    assert wording.prompt(items, [], "") == nothing
    assert wording.prompt(items, [0, 1, 2], "") == history.replace("{history}", demo.listing(["A", "B", "C"]))
    assert wording.prompt(items, [2], "Go {x}!") == both.replace("{history}", "C").replace("{intention}", "Go {x}!")
