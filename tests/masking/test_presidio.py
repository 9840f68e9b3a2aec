"""Presidio's door, with a stand-in for the package: its language models are not in a registry."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from instructrec_jax.masking.masker import MaskConfig, Masker


class Engine:
    def __init__(self, supported_languages: list[str]) -> None:
        assert supported_languages == ["en"]

    def get_supported_entities(self, language: str) -> list[str]:
        return ["PERSON", "LOCATION", "EMAIL_ADDRESS"]

    def analyze(self, text: str, language: str, entities: list[str]) -> list[SimpleNamespace]:
        assert entities == ["PERSON", "LOCATION"]
        names = {"Ann": "PERSON", "Oslo": "LOCATION"}
        return [
            SimpleNamespace(start=text.index(name), end=text.index(name) + len(name), entity_type=kind)
            for name, kind in names.items()
            if name in text
        ]


def test_presidio_finds_persons_and_places(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("presidio_analyzer")
    package.AnalyzerEngine = Engine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "presidio_analyzer", package)
    session = Masker(MaskConfig(kinds=["email"], presidio="en")).session()
    assert session.mask("Ann (ann@example.com) lives in Oslo.") == "<PERSON_1> (<EMAIL_1>) lives in <PLACE_1>."
