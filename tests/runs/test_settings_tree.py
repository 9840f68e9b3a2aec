"""Short forms of settings, and names that are nearly right."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.runs.settings_tree import SYNONYMS, completed, nearest, plain


@dataclass
class Inner:
    rate: float | None = None
    names: list[str] = field(default_factory=list)


@dataclass
class Outer:
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    sources: list[SourceConfig] = field(default_factory=list)


def test_a_path_is_a_source_at_every_depth() -> None:
    assert completed(Outer, {"sources": "a.csv"}) == {"sources": [{"path": "a.csv"}]}
    assert completed(Outer, {"sources": ["a.csv", {"path": "b.csv"}]})["sources"] == [  # type: ignore[index]
        {"path": "a.csv"},
        {"path": "b.csv"},
    ]
    untouched = {"inner": {"rate": "text", "names": ["a"]}, "maybe": None, "unknown": 3}
    assert completed(Outer, untouched) == untouched  # types of single values, and unknown names, are not its business


@pytest.mark.parametrize(
    ("tree", "name"),
    [
        ({"inner": 3}, "`inner`"),
        ({"maybe": []}, "`maybe`"),
        ({"inner": {"names": "a"}}, "`inner.names`"),
        ({"sources": [3]}, "`sources.0`"),
        ({"sources": 3}, "`sources`"),
    ],
)
def test_another_form_is_named(tree: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        completed(Outer, tree)


def test_own_options_come_before_settings() -> None:
    known = ["task.history_limit", "optimizer.learning_rate", "run_dir", "seed"]
    assert nearest("histroy", known, ["history"]) == "history"
    assert nearest("histroy_limit", known) == "task.history_limit"
    assert (nearest("output", known, ["out"]), nearest("output", known)) == ("out", "run_dir")
    assert nearest("learning-rate", known) == "optimizer.learning_rate" and nearest("xyzzy", known) is None
    assert all(name not in meant for name, meant in SYNONYMS.items())


def test_values_from_python() -> None:
    assert plain({"a": (Path("x"), 1), "b": Inner(0.5)}) == {"a": ["x", 1], "b": {"rate": 0.5, "names": []}}
