"""Kinds of sources that rooms above register are opened by their name."""

import pytest

from instructrec_jax.data import kinds
from instructrec_jax.data.rows import Rows


class Two:
    columns = None

    def __init__(self, path: str, split: str) -> None:
        self.named = f"{path} {split}"

    def __len__(self) -> int:
        return 2

    def row(self, index: int) -> dict[str, object]:
        return {"instruction": f"{self.named} {index}"}

    def where(self, index: int) -> str:
        return f"row {index}"


def test_a_registered_kind_is_opened_with_path_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "_openers", {})
    assert not kinds.is_registered("two")
    kinds.register_kind("two", Two)
    rows: Rows = kinds.open_kind("two", "here", "test")
    assert kinds.is_registered("two") and rows.row(1) == {"instruction": "here test 1"}
