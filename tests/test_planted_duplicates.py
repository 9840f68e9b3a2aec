"""scripts/planted_duplicates.py: what it plants, and its table."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import examples
from tiny_runs import tiny_run

from instructrec_jax.data.example import Example
from instructrec_jax.files import read_jsonl, write_jsonl
from instructrec_jax.runs.run import Run
from instructrec_jax.train import train

PATH = Path(__file__).parents[1] / "scripts" / "planted_duplicates.py"
spec = importlib.util.spec_from_file_location("planted_duplicates", PATH)
assert spec is not None and spec.loader is not None
script: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


def test_planted_among_others_and_fewer_are_some_of_them() -> None:
    train, test = examples("classification", 40, 1), examples("classification", 20, 2)
    planted, queries = script.plant(train, test, 30, 5, 0)
    assert len(planted) == 30 and len(queries) == 5 and all(query in planted for query in queries)
    fewer, same = script.plant(train, test, 12, 5, 0)
    assert same == queries and {e.id for e in fewer} < {e.id for e in planted}


def test_the_table(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_run("classification", checkpoint, tmp_path, steps=2, evaluation__compare=False)
    source = Path(config.data.train[0].path)
    planted = [replace(Example.from_record(row), id=f"planted-{n}") for n, row in enumerate(read_jsonl(source))]
    write_jsonl(source, (example.to_record() for example in planted))
    asked = [e for e in planted if [other.instruction for other in planted].count(e.instruction) == 1][:4]
    table = script.measured(Run.open(train(config)), asked, 512).splitlines()
    assert len(table) == 1 + 8 and all("s" in row for row in table)
    own = next(row for row in table if "the same text" in row and "its own" in row and "cosine" in row)
    assert own.count("100.0%") == 2
