"""The data of a run: each source parsed once, cases in order or sampled by the seed, and batches that cannot be."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import task_config
from tiny_runs import changed

from instructrec_jax.data.batch import BatchTexts, Text
from instructrec_jax.data.example import Example
from instructrec_jax.data.hold_out import HoldOutConfig
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.data.stream import StreamSource
from instructrec_jax.runs import data as module
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.data import RunData, buckets, check_batch, some_left, target_buckets
from instructrec_jax.runs.training_data import TrainingData
from instructrec_jax.tasks import ClassificationConfig
from instructrec_jax.tasks.base import Encoded, Task, TaskContext


class Stub(Task):
    """Each word is a token; texts of more than eight words are dropped."""

    def __init__(self) -> None:
        self.context = TaskContext(None, 64)
        self.prepared: list[int] = []

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        words = [(e, len(e.instruction.split())) for e in examples]
        return [Encoded(Text(np.full(n, 7, np.int32)), e.output, e) for e, n in words if n <= 8]

    def prepare(self, train: Sequence[Encoded]) -> None:
        self.prepared.append(len(train))

    def gather(self, encoded: Sequence[Encoded], rng: np.random.Generator) -> BatchTexts:
        return BatchTexts([e.text for e in encoded], None)


def config_of(folder: Path, count: int = 10, **changes: Any) -> Config:
    rows = [
        {
            "instruction": "a film " + "very " * (n % 3),
            "output": "ab"[n % 2],
            "id": str(n),
            "origin": {"user": f"u{n % 4}"},
        }
        for n in range(count)
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = [SourceConfig(str(path))]
    plain = Config(task=ClassificationConfig(labels=["a", "b"]))
    every = {"data__train": source, "data__validation": source, "data__test": source}
    return changed(plain, **(every | {"data__batch_size": 4} | changes))


def names(encoded: Sequence[Encoded]) -> list[str]:
    return [e.example.id for e in encoded]


# ------------------------------------------------------------------ sources


def test_each_source_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    whole = module.open_sources
    monkeypatch.setattr(module, "open_sources", lambda *a, **o: calls.append(a) or whole(*a, **o))
    data = RunData(config_of(tmp_path))
    for _ in range(2):
        assert [e.id for e in data.examples("train")] == [str(n) for n in range(10)]
        assert names(data.cases(Stub(), "train")) == [str(n) for n in range(10)]
    assert len(calls) == 1 and data.source("train") is data.source("train")


def test_labels_are_learnt_from_the_training_data(tmp_path: Path) -> None:
    config = config_of(tmp_path, task=ClassificationConfig())
    assert RunData(config).config.task.label_names == ["a", "b"]
    assert RunData(config_of(tmp_path)).config.task.label_names == ["a", "b"]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_without_sources_is_named(split: Any, tmp_path: Path) -> None:
    data = RunData(config_of(tmp_path, **{f"data__{split}": []}))
    with pytest.raises(ValueError, match=f"data.{split}"):
        data.source(split)
    assert len(data.cases(Stub(), split)) == 0


def test_a_stream_is_not_evaluated_on(tmp_path: Path) -> None:
    data = RunData(config_of(tmp_path))
    data._opened["test"] = object.__new__(StreamSource)
    with pytest.raises(ValueError, match="data.test.*streaming"):
        data.cases(Stub(), "test")


# ------------------------------------------------------------------ cases


def test_validation_cases_are_sampled_by_the_seed_and_stay_in_order(tmp_path: Path) -> None:
    def drawn(**changes: Any) -> list[str]:
        return names(
            RunData(config_of(tmp_path, 50, evaluation__max_examples=8, **changes)).cases(Stub(), "validation")
        )

    first = drawn()
    assert len(set(first)) == 8 and first == sorted(first, key=int) and drawn() == first
    assert drawn(seed=1) != first
    few = RunData(config_of(tmp_path, 5, evaluation__max_examples=8))
    assert len(few.cases(Stub(), "validation")) == 5 and len(few.cases(Stub(), "test")) == 5


def test_held_out_examples_are_in_the_test_alone(tmp_path: Path) -> None:
    config = config_of(tmp_path, data__hold_out=HoldOutConfig(labels=["b"]))
    data, task = RunData(config), Stub()
    assert {e.target for e in data.cases(task, "train")} == {e.target for e in data.cases(task, "validation")} == {"a"}
    groups = data.case_groups(data.cases(task, "test"))
    assert {name: {e.target for e in cases} for name, cases in groups.items()} == {"seen": {"a"}, "unseen": {"b"}}
    data.training(task, 1)
    assert task.prepared == [5] and task.context.counts == {"training examples held out": 5}


def test_segments_by_the_origin_or_by_what_was_held_out(tmp_path: Path) -> None:
    data = RunData(config_of(tmp_path, evaluation__segment_by="user"))
    groups = data.case_groups(data.cases(Stub(), "test"))
    assert {name: len(cases) for name, cases in groups.items()} == {"u0": 3, "u1": 3, "u2": 2, "u3": 2}
    both = RunData(config_of(tmp_path, evaluation__segment_by="user", data__hold_out=HoldOutConfig(labels=["b"])))
    with pytest.raises(ValueError, match="evaluation.segment_by.*data.hold_out"):
        both.case_groups(both.cases(Stub(), "test"))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_holding_everything_out_is_named(split: Any, tmp_path: Path) -> None:
    data = RunData(config_of(tmp_path, data__hold_out=HoldOutConfig(labels=["a", "b"])))
    with pytest.raises(ValueError, match=f"data.hold_out.*data.{split}"):
        data.training(Stub(), 1) if split == "train" else data.cases(Stub(), split)


def test_texts_that_are_all_too_long_are_named() -> None:
    with pytest.raises(ValueError, match="data.truncate.*data.max_length"):
        some_left([])


# ------------------------------------------------------------------ batches


def test_training_data_tell_their_size(tmp_path: Path) -> None:
    found = RunData(config_of(tmp_path)).training(Stub(), 2)
    tokens = sum(2 + n % 3 for n in range(10))
    assert (found.tokens, found.epoch_steps, found.step_size) == (tokens, 2.5, "4 examples")
    shape = "2 rows of 32 tokens (81.9% padding)"
    assert found.describe() == f"10 examples with {tokens} tokens in batches of {shape}; 2.5 steps per epoch"
    seen = [batch.tokens for batch in found.batches(0, 5, None)]
    assert sum(seen) == 2 * tokens  # twenty examples
    packed = RunData(config_of(tmp_path, data__batch_size=None, data__batch_rows=2, data__max_length=8)).training(
        Stub(), 2
    )
    rows = -(-tokens // 8)
    assert packed.epoch_steps >= rows / 2 and "2 rows of 8 tokens" in packed.step_size and "padding" in packed.packing
    assert TrainingData("f", found.batches, "4 examples").describe() == "a stream of unknown size"


def test_the_same_examples_have_the_same_fingerprint(tmp_path: Path) -> None:
    first = RunData(config_of(tmp_path)).training(Stub(), 1).fingerprint
    assert RunData(config_of(tmp_path)).training(Stub(), 1).fingerprint == first
    assert RunData(config_of(tmp_path, 9)).training(Stub(), 1).fingerprint != first
    held = RunData(config_of(tmp_path, data__hold_out=HoldOutConfig(labels=["b"]))).training(Stub(), 1).fingerprint
    assert held not in ("", first)


@pytest.mark.parametrize(
    ("changes", "couples", "named"),
    [
        ({"batch_size": 8, "batch_rows": 8}, False, "data.batch_size.*data.batch_rows"),
        ({"batch_size": None, "batch_rows": 8}, True, "data.batch_size.*data.batch_rows"),
        ({"batch_size": None, "batch_rows": 6}, False, "data.batch_rows.*6.*multiple of 8"),
    ],
)
def test_batches_that_cannot_be(changes: dict[str, Any], couples: bool, named: str, tmp_path: Path) -> None:
    config = changed(config_of(tmp_path), accumulation=2, **{f"data__{name}": value for name, value in changes.items()})
    task: Any = SimpleNamespace(couples_examples=couples)
    with pytest.raises(ValueError, match=named):
        check_batch(config, task, 8)


def test_batches_that_can_be(tmp_path: Path) -> None:
    task: Any = SimpleNamespace(couples_examples=True)
    check_batch(config_of(tmp_path, data__batch_size=7), task, 8)  # rows are padded to the multiple
    check_batch(config_of(tmp_path, data__batch_size=None), task, 8)
    rows = config_of(tmp_path, data__batch_size=None, data__batch_rows=16)
    check_batch(rows, SimpleNamespace(couples_examples=False), 8)  # type: ignore[arg-type]


def test_buckets_end_at_the_longest_text() -> None:
    config = changed(Config(task=task_config("regression", Path())), data__max_length=100)
    assert buckets(config)[-1] == 100 and list(buckets(config)) == sorted(set(buckets(config)))
    assert target_buckets(SimpleNamespace(max_target_length=None)) == ()  # type: ignore[arg-type]
    assert target_buckets(SimpleNamespace(max_target_length=24))[-1] == 24  # type: ignore[arg-type]
