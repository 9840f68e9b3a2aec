"""Packages that the base installation lacks: found without being imported, or named with their extra."""

import sys
from types import ModuleType

import pytest

from instructrec_jax.extras import EXTRAS, installed, require


def test_a_package_is_found_without_being_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "antigravity", raising=False)
    assert installed("antigravity") and "antigravity" not in sys.modules
    assert not installed("a_package_of_next_year")


def test_a_module_without_a_spec_counts_as_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as those that other programs put into `sys.modules`."""
    module = ModuleType("made_by_hand")
    module.__spec__ = None
    monkeypatch.setitem(sys.modules, "made_by_hand", module)
    assert installed("made_by_hand")


@pytest.mark.parametrize("package", sorted(EXTRAS))
def test_a_missing_package_names_its_extra_and_who_needs_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instructrec_jax.extras.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"data\.kind.*{package}.*instructrec_jax\[{EXTRAS[package]}\]"):
        require(package, "data.kind")


def test_an_installed_package_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instructrec_jax.extras.find_spec", lambda name: object())
    require("wandb", "tracking.wandb_project")
