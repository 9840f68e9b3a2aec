"""Licenses and languages that a README.md states, and the counts of sources."""

from pathlib import Path

import pytest
from tiny_runs import changed, tiny_run

from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.runs.data import RunData
from instructrec_jax.runs.provenance import front_matter, provenance, readme_beside


@pytest.mark.parametrize(
    ("text", "license", "language"),
    [
        ("---\nlicense: cc-by-4.0\nlanguage:\n- en\n- zh\n---\n# A", ["cc-by-4.0"], ["en", "zh"]),
        ("\ufeff---\r\nlicense: [mit, other]\r\n---\r\n", ["mit", "other"], []),
        ("---\nlicense: mit\n---", ["mit"], []),
        ("---\nlicense: {a: b}\nlanguage: 3\n---\n", [], []),
        ("---\nlicense: [unclosed\n---\n", [], []),
        ("---\n- license\n---\n", [], []),
        ("# MIT License\n\nlicense: mit\n", [], []),
        ("", [], []),
    ],
)
def test_only_stated_fields_count(text: str, license: list[str], language: list[str], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text, encoding="utf-8", newline="")
    assert front_matter(tmp_path / "README.md") == {"license": license, "language": language}


def test_a_readme_that_cannot_be_read_states_nothing(tmp_path: Path) -> None:
    nothing = {"license": [], "language": []}
    assert front_matter(None) == front_matter(tmp_path / "missing") == front_matter(tmp_path) == nothing
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert front_matter(tmp_path / "README.md") == nothing
    (tmp_path / "README.md").write_bytes(b"---\nlicense: mit\n---\n" + b" " * 1_000_001)
    assert front_matter(tmp_path / "README.md") == nothing


def test_readmes_beside_sources(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}", encoding="utf-8")
    assert readme_beside(SourceConfig(str(tmp_path / "*.jsonl"))) == tmp_path / "README.md"
    assert readme_beside(SourceConfig(str(tmp_path), kind="datasets")) == tmp_path / "README.md"
    assert readme_beside(SourceConfig(str(tmp_path / "none.jsonl"))) is None
    assert readme_beside(SourceConfig("https://example.com/a.jsonl")) is None
    assert readme_beside(SourceConfig("mnist", kind="tfds")) is None


def test_counts_and_licenses_of_the_sources_of_a_run(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n", encoding="utf-8")
    config = tiny_run("classification", checkpoint, tmp_path)
    test = [SourceConfig(str(tmp_path / "test.jsonl"), name="mine", license="cc0-1.0")]
    config = changed(config, data__test=test)
    data = RunData(config)
    data.source("train"), data.source("test")
    assert data.counts == {"train": [24], "test": [12]}
    found = provenance(config, tmp_path, data.counts, 8)
    assert [(each["split"], each["name"], each["examples"], each["license"]) for each in found["sources"]] == [
        ("train", str(tmp_path / "train.jsonl"), 24, ["mit"]),
        ("validation", str(tmp_path / "validation.jsonl"), None, ["mit"]),
        ("test", "mine", 12, ["cc0-1.0"]),
    ]
    assert found["backbone_license"] == ["mit"] and found["device_count"] == 8
    assert provenance(config, None, {}, 1)["backbone_license"] == []
