"""The settings of each format reach its reader."""

from dataclasses import fields
from typing import Any

import pytest

from instructrec_jax.preparation import readers
from instructrec_jax.preparation.formats import SOURCES
from instructrec_jax.preparation.prepare_data import PrepareConfig
from instructrec_jax.preparation.readers import BadLines

COMMON = {field.name for field in fields(PrepareConfig)}


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_every_setting_of_a_format_reaches_its_reader(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that its reader is not given would be ignored in silence."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    monkeypatch.setattr(readers, f"read_{name}", lambda *args, **options: calls.append((args, options)))
    own = {field.name: f"my {field.name}" for field in fields(SOURCES[name]) if field.name not in COMMON}
    bad = BadLines()
    SOURCES[name](source="folder", out="out", **own).read(bad)
    ((args, options),) = calls
    assert args[0] == "folder" and args[1] is bad
    expected: dict[str, Any] = dict(own)
    if "text_columns" in own:
        expected["text_columns"] = ["my text_columns"]
    assert options == expected


@pytest.mark.parametrize(
    ("given", "read"),
    [("a,b", ["a", "b"]), (" a , ,b,", ["a", "b"]), ("", []), (["a,b", "c"], ["a,b", "c"]), (None, None)],
)
def test_names_of_columns_in_a_text_or_a_list(given: Any, read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    monkeypatch.setattr(readers, "read_table", lambda *_, text_columns, **__: found.append(text_columns))
    SOURCES["table"](source="a", out="b", text_columns=given).read(BadLines())  # type: ignore[call-arg]
    assert found == [read]


def test_a_format_is_chosen_before_anything_is_read() -> None:
    with pytest.raises(TypeError, match="formats.py"):
        PrepareConfig(source="a", out="b").read(BadLines())
